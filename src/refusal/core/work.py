"""What a stage asks of a model, counted before it runs: time, memory and money are sums over it.

A stage says which prompts it reads and what it writes; how long that takes and what it holds in
memory depends on the model and the machine, which know nothing of stages.
"""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Read:
    """Prompts read once each for what follows their last token.

    Attributes:
        prompts: how many; ``length``: tokens of one, beside what all of them begin with.
    """

    prompts: int | float
    length: int | float


@dataclass(frozen=True)
class Search:
    """Prompts read again and again, each time under another edit.

    Attributes:
        tokens: in all; ``passes``: through the model in all.
        kept: tokens whose residual stream is kept for every block; ``kept_prompts``: prompts whose
            next-token probabilities are kept.
    """

    tokens: int | float
    passes: int | float
    kept: int | float = 0.0
    kept_prompts: int = 0


@dataclass(frozen=True)
class Write:
    """Completions written side by side.

    Attributes:
        rows: how many; ``new``: tokens that each may have; ``length``: tokens of a prompt.
        starts: how often what all prompts begin with is read: once for each intervention.
        samples: completions of each prompt, which is read once for all of them.
    """

    rows: int | float
    new: int
    length: int | float
    starts: int = 1
    samples: int = 1


@dataclass(frozen=True)
class Force:
    """Texts read for the logits of each of their tokens, float64 a few at a time.

    Attributes:
        tokens: in all; ``together``: those that could be read at once.
    """

    tokens: int | float
    together: int | float


@dataclass(frozen=True)
class Score:
    """Given answers read for their log-likelihoods. ``tokens``: in all."""

    tokens: int | float


@dataclass(frozen=True)
class Ask:
    """Questions to a server or to another model, whose speed is not known here.

    Attributes:
        requests: how many; ``read``, ``written``: tokens of one.
        price: money for all, where prices were given.
    """

    requests: int | float
    read: int | float
    written: int | float
    price: int | float | None = None


Work = Read | Search | Write | Force | Score | Ask


def extent(work: Sequence[Work]) -> float:
    """How large pieces of work of one kind are beside each other: completions that are written,
    tokens of texts that are read; 1 where neither is.
    """
    written = sum(one.rows for one in work if isinstance(one, Write))
    return float(written or sum(one.tokens for one in work if isinstance(one, Force)) or 1)


def side_by_side(work: Sequence[Work]) -> list[Work]:
    """Completions that are written in the same batches counted as such, and all other work."""
    writes = [one for one in work if isinstance(one, Write)]
    others: list[Work] = [one for one in work if not isinstance(one, Write)]
    rows = sum(write.rows for write in writes)
    if not rows:
        return others
    length = sum(write.rows * write.length for write in writes) / rows
    starts = sum(write.starts for write in writes)
    most, samples = max(write.new for write in writes), writes[0].samples
    return [Write(rows, most, length, starts, samples), *others]


@dataclass(frozen=True)
class Lengths:
    """Tokens of a training, validation and test prompt beside what all begin with, which is
    ``begins`` tokens long.
    """

    train: int | float = 20.0  # a one-line instruction with its template
    val: int | float = 20.0
    test: int | float = 20.0
    begins: int | float = 20.0
