"""Near-duplicates the plain way: every pair is compared."""

from collections.abc import Iterable, Sequence

Words = frozenset[str]


def jaccard(a: Words, b: Words) -> float:
    """What two sets share of what they have together."""
    shared = len(a & b)
    return shared / (len(a) + len(b) - shared)


def near(a: Words, b: Words, threshold: float = 0.6) -> bool:
    """Whether the similarity reaches the threshold."""
    return jaccard(a, b) >= threshold


def has_near(group: Words, others: Iterable[Words], threshold: float = 0.6) -> bool:
    return any(near(group, other, threshold) for other in others)


def near_pairs(
    groups: Sequence[tuple[str, Words]], others: Sequence[tuple[str, Words]]
) -> list[tuple[str, str]]:
    """The ids of every near-duplicate pair between two lists of ``(id, words)``."""
    return [(i, j) for i, a in groups for j, b in others if i != j and near(a, b)]
