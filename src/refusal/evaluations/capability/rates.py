"""Benchmark results as metrics: each with its interval, and its change from the baseline on the
same items.
"""

import math
from collections.abc import Mapping, Sequence

from refusal.core.records import Metric
from refusal.core.stats import Estimate, mean, rate, rate_change, ratio_change
from refusal.evaluations.capability.results import ItemResult, TaskRun
from refusal.evaluations.refusal.rates import metric, random_together
from refusal.interventions.conditions import BASELINE

PREFIX = "capability_"  # then the name that lm-eval gives the metric


def capability_metrics(runs: Mapping[str, TaskRun]) -> tuple[Metric, ...]:
    """Metrics of one task by condition, the task's main one first.

    What is right or wrong gets Wilson's interval, and for its change Newcombe's and McNemar's exact
    test; other numbers a bootstrap over items. Intervals are over items as one sample; subjects of
    a group are not weighted. A task without items (perplexity of a whole text) gives lm-eval's
    aggregate, with infinite bounds. What the random directions do together is added.
    """
    found: list[Metric] = []
    base = _by_metric(runs[BASELINE].items)
    for condition, run in runs.items():
        for name, items in _by_metric(run.items).items():
            values = list(items.values())
            found.append(metric(PREFIX + name, run.task, condition, _estimate(values), len(values)))
            if condition != BASELINE:
                before = [base[name][ident] for ident in items]
                found.append(
                    metric(
                        f"{PREFIX}{name}_change",
                        run.task,
                        condition,
                        _change(before, values),
                        len(values),
                    )
                )
        if not run.items:
            found += _aggregate(run, condition)
    return (*found, *random_together(found))


def _by_metric(items: Sequence[ItemResult]) -> dict[str, dict[str, float]]:
    """Values by metric and item."""
    found: dict[str, dict[str, float]] = {}
    for item in items:
        found.setdefault(item.metric, {})[item.id] = item.value
    return found


def is_binary(values: Sequence[float]) -> bool:
    """Whether items are right or wrong."""
    return all(value in (0.0, 1.0) for value in values)


def _estimate(values: Sequence[float]) -> Estimate:
    return rate([value == 1.0 for value in values]) if is_binary(values) else mean(values)


def _change(before: Sequence[float], after: Sequence[float]) -> Estimate:
    if is_binary([*before, *after]):
        return rate_change([value == 1.0 for value in before], [value == 1.0 for value in after])
    return ratio_change(before, after, [1.0] * len(before))


def _aggregate(run: TaskRun, condition: str) -> list[Metric]:
    found = []
    for task, numbers in run.aggregate.items():
        where = run.task if task == run.task else f"{run.task}/{task}"
        n = int(numbers.get("sample_len") or 0)
        for key, value in numbers.items():
            if key != "sample_len" and not key.startswith("sample_"):
                name = PREFIX + key.removesuffix(",none")
                score = Estimate(math.nan if value is None else value, -math.inf, math.inf)
                found.append(metric(name, where, condition, score, n))
    return found
