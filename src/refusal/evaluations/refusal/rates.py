"""Rates over verdicts: each with its interval, and its change from the baseline on the same
prompts. Where prompts have several samples, those of one go together (``core/clusters``).
"""

from collections.abc import Callable, Iterator, Mapping, Sequence

from refusal.core.clusters import (
    Groups,
    agreement_of_samples,
    corrected_change,
    corrected_rate,
    grouped,
    rate,
    rate_change,
)
from refusal.core.records import Completion, Metric
from refusal.core.stats import Accuracy, Estimate, together
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
SAMPLES = "refused_in_{}_samples"  # all, some, no: shares of the prompts, where each has several
# Rates that are given a second time, corrected for the errors of who judged, as far as those are
# known.
CORRECTED: dict[str, Accuracy] = {"refusal_rate": DETECTOR}


def measure(completions: Sequence[Completion], set_name: str, condition: str) -> tuple[Metric, ...]:
    """Rates over the completions of one set under one condition, with Wilson intervals; then the
    corrected ones, and of several samples how many prompts are refused in all, some or none.
    """
    found: list[Metric] = []
    for name, hit in HITS.items():
        hits = list(by_prompt(completions, hit).values())
        if name == "unfinished_rate" and not any(map(any, hits)):
            continue
        found.append(metric(name, set_name, condition, rate(hits), len(hits)))
        if name in CORRECTED:
            found += corrected(name, set_name, condition, hits, CORRECTED[name])
    samples = by_prompt(completions, HITS["refusal_rate"])
    if any(len(hits) > 1 for hits in samples.values()):
        for which, share in agreement_of_samples(samples).items():
            name = SAMPLES.format(which)
            found.append(metric(name, set_name, condition, share, len(samples)))
    return tuple(found)


def by_prompt(
    completions: Sequence[Completion], hit: Callable[[Completion], bool]
) -> dict[str, list[bool]]:
    """Whether each sample is a hit, by prompt."""
    return grouped((c.prompt_id for c in completions), map(hit, completions))


def corrected(
    name: str, set_name: str, condition: str, hits: Groups, accuracy: Accuracy
) -> Iterator[Metric]:
    """``<name>_corrected``; nothing where the judge knows no better than chance."""
    estimate = corrected_rate(hits, accuracy)
    if estimate is not None:
        yield metric(f"{name}_corrected", set_name, condition, estimate, len(hits))


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
    for name in COMPARED:
        before, after = by_prompt(base, HITS[name]), by_prompt(rows, HITS[name])
        hits = ([before[prompt] for prompt in after], list(after.values()))
        yield metric(f"{name}_change", set_name, condition, rate_change(*hits), len(after))
        change = corrected_change(*hits, CORRECTED[name]) if name in CORRECTED else None
        if change is not None:
            yield metric(f"{name}_corrected_change", set_name, condition, change, len(after))


def random_together(metrics: Sequence[Metric]) -> list[Metric]:
    """The random directions' metrics as one for each name, set and action."""
    groups: dict[tuple[str, str, str], list[Metric]] = {}
    for m in metrics:
        if (group := random_group(m.condition)) is not None:
            groups.setdefault((m.name, m.set, group), []).append(m)
    found = []
    for key, ms in groups.items():
        pooled = together([Estimate(m.value, m.low, m.high) for m in ms])
        found.append(metric(*key, pooled, ms[0].n))
    return found
