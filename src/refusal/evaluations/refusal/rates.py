"""Rates over verdicts: each with its interval, and its change from the baseline on the same
prompts.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence

from refusal.core.records import Completion, Metric
from refusal.core.stats import (
    Accuracy,
    Estimate,
    corrected_change,
    corrected_rate,
    rate,
    rate_change,
    together,
)
from refusal.detector.accuracy import DETECTOR
from refusal.detector.verdict import paper_substring_match
from refusal.interventions.conditions import BASELINE, random_group

Completions = Mapping[tuple[str, str], Sequence[Completion]]  # by (set, condition)

# ``refusal_rate`` counts whole and partial refusals; ``degenerate_rate`` text that is neither a
# refusal nor an answer; ``unfinished_rate`` thoughts that have not ended, given only where some
# have not; ``substring_refusal_rate`` is the paper's 12-substring rule.
REFUSED = ("refusal", "partial")
HITS: dict[str, Callable[[Completion], bool]] = {
    "refusal_rate": lambda c: c.verdict in REFUSED,
    "partial_rate": lambda c: c.verdict == "partial",
    "degenerate_rate": lambda c: c.verdict == "degenerate",
    "unfinished_rate": lambda c: c.verdict == "unfinished",
    "substring_refusal_rate": lambda c: paper_substring_match(c.answer),
}
COMPARED = ("refusal_rate", "degenerate_rate")
# Rates that are given a second time, corrected for the errors of who judged, as far as those are
# known.
CORRECTED: dict[str, Accuracy] = {"refusal_rate": DETECTOR}


def measure(completions: Sequence[Completion], set_name: str, condition: str) -> tuple[Metric, ...]:
    """Rates over the completions of one set under one condition, with Wilson intervals; then the
    corrected ones.
    """
    found: list[Metric] = []
    for name, hit in HITS.items():
        hits = [hit(c) for c in completions]
        if name == "unfinished_rate" and not any(hits):
            continue
        found.append(metric(name, set_name, condition, rate(hits), len(hits)))
        if name in CORRECTED:
            found += corrected(name, set_name, condition, sum(hits), len(hits), CORRECTED[name])
    return tuple(found)


def corrected(
    name: str, set_name: str, condition: str, count: int, n: int, accuracy: Accuracy
) -> Iterator[Metric]:
    """``<name>_corrected``; nothing where the judge knows no better than chance."""
    estimate = corrected_rate(count, n, accuracy)
    if estimate is not None:
        yield metric(f"{name}_corrected", set_name, condition, estimate, n)


def measure_all(completions: Completions) -> tuple[Metric, ...]:
    """All rates; for every condition but the baseline also the change from the baseline, paired by
    prompt.

    What the random directions do together is added as ``random-ablation`` and so on, and how often
    the detector is right where that was counted.
    """
    found: list[Metric] = []
    for (set_name, condition), rows in completions.items():
        found += measure(rows, set_name, condition)
        base = completions.get((set_name, BASELINE))
        if base is not None and condition != BASELINE:
            found += _changes(base, rows, set_name, condition)
    rests_on = accuracy_metrics("detector", DETECTOR) if found else ()
    return (*found, *random_together(found), *rests_on)


def accuracy_metrics(judge: str, accuracy: Accuracy) -> tuple[Metric, ...]:
    """``sensitivity`` and ``specificity`` of a judge, what its corrected rates rest on."""
    return (
        metric(
            "sensitivity", "judges", judge, accuracy.sensitivity, accuracy.hits + accuracy.misses
        ),
        metric(
            "specificity",
            "judges",
            judge,
            accuracy.specificity,
            accuracy.rejections + accuracy.false_alarms,
        ),
    )


def metric(name: str, set_name: str, condition: str, estimate: Estimate, n: int) -> Metric:
    """A metric from an estimate."""
    return Metric(
        name, set_name, condition, estimate.value, estimate.low, estimate.high, n, estimate.p_value
    )


def _changes(
    base: Sequence[Completion], rows: Sequence[Completion], set_name: str, condition: str
) -> Iterator[Metric]:
    before = paired(base, rows)
    for name in COMPARED:
        hits = ([HITS[name](c) for c in before], [HITS[name](c) for c in rows])
        yield metric(f"{name}_change", set_name, condition, rate_change(*hits), len(rows))
        change = corrected_change(*hits, CORRECTED[name]) if name in CORRECTED else None
        if change is not None:
            yield metric(f"{name}_corrected_change", set_name, condition, change, len(rows))


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
        metric(*key, together([Estimate(m.value, m.low, m.high) for m in ms]), ms[0].n)
        for key, ms in groups.items()
    ]
