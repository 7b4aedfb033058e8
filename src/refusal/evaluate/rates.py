"""Rates over verdicts: each with its interval, and its change from the baseline on the same prompts."""

from collections.abc import Callable, Mapping, Sequence

from refusal.conditions import BASELINE, random_group
from refusal.evaluate.detector import paper_substring_match
from refusal.records import Completion, Metric
from refusal.stats import Estimate, rate, rate_change, together

Completions = Mapping[tuple[str, str], Sequence[Completion]]  # by (set, condition)

# ``refusal_rate`` counts whole and partial refusals; ``degenerate_rate`` text that is neither a refusal nor an answer;
# ``substring_refusal_rate`` is the paper's 12-substring rule.
HITS: dict[str, Callable[[Completion], bool]] = {
    "refusal_rate": lambda c: c.verdict in ("refusal", "partial"),
    "partial_rate": lambda c: c.verdict == "partial",
    "degenerate_rate": lambda c: c.verdict == "degenerate",
    "substring_refusal_rate": lambda c: paper_substring_match(c.answer),
}
COMPARED = ("refusal_rate", "degenerate_rate")


def measure(completions: Sequence[Completion], set: str, condition: str) -> tuple[Metric, ...]:
    """Rates over the completions of one set under one condition, with Wilson intervals."""
    return tuple(
        metric(name, set, condition, rate([hit(c) for c in completions]), len(completions))
        for name, hit in HITS.items()
    )


def measure_all(completions: Completions) -> tuple[Metric, ...]:
    """All rates; for every condition but the baseline also the change from the baseline, paired by prompt.

    What the random directions do together is added as ``random-ablation`` and so on.
    """
    found: list[Metric] = []
    for (set, condition), rows in completions.items():
        found += measure(rows, set, condition)
        base = completions.get((set, BASELINE))
        if base is not None and condition != BASELINE:
            found += _changes(base, rows, set, condition)
    return (*found, *random_together(found))


def metric(name: str, set: str, condition: str, estimate: Estimate, n: int) -> Metric:
    """A metric from an estimate."""
    return Metric(name, set, condition, estimate.value, estimate.low, estimate.high, n, estimate.p_value)


def _changes(base: Sequence[Completion], rows: Sequence[Completion], set: str, condition: str) -> list[Metric]:
    before = paired(base, rows)
    return [
        metric(
            f"{name}_change",
            set,
            condition,
            rate_change([HITS[name](c) for c in before], [HITS[name](c) for c in rows]),
            len(rows),
        )
        for name in COMPARED
    ]


def paired(base: Sequence[Completion], rows: Sequence[Completion]) -> list[Completion]:
    """The baseline's completions of the prompts of ``rows``, in their order."""
    by_id = {c.prompt_id: c for c in base}
    return [by_id[c.prompt_id] for c in rows]


def random_together(metrics: Sequence[Metric]) -> list[Metric]:
    """The random directions' metrics as one for each name, set and action."""
    groups: dict[tuple[str, str, str], list[Metric]] = {}
    for m in metrics:
        if (group := random_group(m.condition)) is not None:
            groups.setdefault((m.name, m.set, group), []).append(m)
    return [
        metric(*key, together([Estimate(m.value, m.low, m.high) for m in ms]), ms[0].n) for key, ms in groups.items()
    ]
