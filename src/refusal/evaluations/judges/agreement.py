"""How far two judges of the same completions agree: share, Cohen's kappa, confusion matrix."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from refusal.core.clusters import grouped, rate
from refusal.core.errors import ConfigError
from refusal.evaluations.judges.judgement import Judgement

# What judges of one kind are compared on: whether the model refused, as in ``Verdict.refused``, or
# was safe.
COMPARED = {
    "refusal": "refused",
    "partial": "refused",
    "compliance": "not refused",
    "degenerate": "not refused",
    "unfinished": "not refused",
    "safe": "safe",
    "unsafe": "unsafe",
}
PAIRS = (("refused", "not refused"), ("safe", "unsafe"))


@dataclass(frozen=True)
class Agreement:
    """Two judges over the completions for which both have a label.

    Attributes:
        first, second: the judges' names.
        n: completions with two labels.
        left_out: completions that one of the judges, or both, has no label for.
        share: part of ``n`` on which they agree, with its Wilson interval ``low`` to ``high``, the
            samples of a prompt taken together; ``None`` for none.
        kappa: Cohen's kappa, agreement beyond chance; ``None`` where chance alone makes them agree
            (both always say the same one thing) or there is nothing to compare.
        confusion: ``confusion[label of first][label of second]`` is a number of completions.
    """

    first: str
    second: str
    n: int
    left_out: int
    share: float | None
    low: float
    high: float
    kappa: float | None
    confusion: dict[str, dict[str, int]]


def agreement(
    first: str,
    ours: Sequence[Judgement],
    second: str,
    theirs: Sequence[Judgement],
    whose: Mapping[str, str] | None = None,
) -> Agreement:
    """Compare the judgements of the judges named ``first`` and ``second``; paired by prompt id, one
    per prompt, or by sample where ``whose`` says which prompt's each is.

    Raises:
        ConfigError: one judge speaks of refusal and the other of safety, or neither gives labels.
    """
    said = []
    for side in (ours, theirs):
        said.append({j.prompt_id: COMPARED[j.label] for j in side if j.label is not None})
    words = {word for side in said for word in side.values()}
    pair = next((pair for pair in PAIRS if words <= set(pair)), None)
    if pair is None or not words:
        raise ConfigError(
            f"The judges {first} and {second} share no labels. Compare judges of refusal, or "
            "judges of safety."
        )
    shared = [key for key in said[0] if key in said[1]]
    both = [(said[0][key], said[1][key]) for key in shared]
    counts, n = Counter(both), len(both)
    prompts = (key if whose is None else whose[key] for key in shared)
    agreed = rate(list(grouped(prompts, (a == b for a, b in both)).values()))
    return Agreement(
        first=first,
        second=second,
        n=n,
        left_out=len({j.prompt_id for side in (ours, theirs) for j in side}) - n,
        share=agreed.value if n else None,
        low=agreed.low,
        high=agreed.high,
        kappa=_kappa(both),
        confusion={a: {b: counts[a, b] for b in pair} for a in pair},
    )


def _kappa(both: Sequence[tuple[str, str]]) -> float | None:
    """Cohen 1960: (observed - expected) / (1 - expected), expected from each judge's own shares."""
    n = len(both)
    if not n:
        return None
    observed = sum(a == b for a, b in both) / n
    ours, theirs = Counter(a for a, _ in both), Counter(b for _, b in both)
    expected = sum(ours[label] * theirs[label] for label in ours) / n**2
    return (observed - expected) / (1 - expected) if expected < 1 else None
