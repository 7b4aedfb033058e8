"""At which lengths a completion is read, so that one generation says how refusal grows with it."""

from collections.abc import Iterator, Sequence

EARLY = 32  # tokens: a refusal that shows only after them is a delayed one


def reading_lengths(most: int) -> tuple[int, ...]:
    """Lengths in tokens at which completions of at most ``most`` are read, the last of them
    ``most``: 8, 16, 32, 48, 64, 96, 128, 192, 256, …, each a third or a half longer than the one
    before.
    """
    found: list[int] = []
    for length in _endless():
        if length >= most:
            return (*found, most)
        found.append(length)
    raise AssertionError("they have no end")


def _endless() -> Iterator[int]:
    yield 8
    yield 16
    length = 32
    while True:
        yield length
        yield length * 3 // 2
        length *= 2


def last_step(lengths: Sequence[int]) -> tuple[int, int] | None:
    """The last of some lengths, and the one before it that it is compared with: the longest that it
    is longer than by a third or more, since over a few tokens nothing rises. ``None`` where there
    is none.
    """
    before = [length for length in lengths[:-1] if 4 * length <= 3 * lengths[-1]]
    return (before[-1], lengths[-1]) if before else None
