"""Statistics, named once: scipy does the work.

Intervals are at 95 %. Rates get Wilson's interval; the change of a rate between two conditions on the same prompts
gets Newcombe's (1998, Statistics in Medicine 17:2635, method 10) and McNemar's exact test; means get a bootstrap over
prompts. Bootstraps are seeded: the same numbers give the same interval.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

import numpy as np
from jaxtyping import Float
from scipy.stats import binomtest, bootstrap, mannwhitneyu

CONFIDENCE = 0.95
RESAMPLES = 4000


@dataclass(frozen=True)
class Estimate:
    """A number, its 95 % interval, and the p-value of "it is zero" where a test was made."""

    value: float
    low: float
    high: float
    p_value: float | None = None


def wilson_interval(successes: int, n: int) -> tuple[float, float]:
    """Wilson score interval (95 %) of a share; ``(0, 1)`` when there is nothing to count."""
    if n == 0:
        return 0.0, 1.0
    interval = binomtest(successes, n).proportion_ci(CONFIDENCE, method="wilson")
    return float(interval.low), float(interval.high)


def rate(hits: Sequence[bool]) -> Estimate:
    """A share with Wilson's interval."""
    n = len(hits)
    return Estimate(sum(hits) / n if n else 0.0, *wilson_interval(sum(hits), n))


def together(runs: Sequence[Estimate]) -> Estimate:
    """What several runs on the same prompts show together: the mean of their values and of their bounds.

    The interval is as wide as one run's: a prompt's answers in several runs go together, so it counts once.
    """
    return Estimate(fmean(r.value for r in runs), fmean(r.low for r in runs), fmean(r.high for r in runs))


def rate_change(before: Sequence[bool], after: Sequence[bool]) -> Estimate:
    """``share(after) - share(before)`` on the same prompts, in the same order.

    Newcombe's square-and-add interval from the two Wilson intervals and the correlation phi of the pairs; the p-value
    is McNemar's exact one: given how many prompts changed, are both ways as likely?
    """
    n = len(before)
    if len(after) != n:
        raise ValueError(f"{n} prompts before and {len(after)} after cannot be paired")
    if n == 0:
        return Estimate(0.0, -1.0, 1.0, 1.0)
    x, y = np.array(before, dtype=bool), np.array(after, dtype=bool)
    gained, lost = int((y & ~x).sum()), int((x & ~y).sum())
    p, q = float(x.mean()), float(y.mean())
    (p_low, p_high), (q_low, q_high) = wilson_interval(int(x.sum()), n), wilson_interval(int(y.sum()), n)
    phi = _phi(int((x & y).sum()), lost, gained, int((~x & ~y).sum()))
    change = q - p
    down, up = (q - q_low, p_high - p), (q_high - q, p - p_low)
    low, high = (math.sqrt(max(0.0, a * a - 2 * phi * a * b + b * b)) for a, b in (down, up))
    p_value = float(binomtest(gained, gained + lost).pvalue) if gained + lost else 1.0
    return Estimate(change, max(-1.0, change - low), min(1.0, change + high), p_value)


def _phi(both: int, first: int, second: int, neither: int) -> float:
    """Correlation of the pairs with Newcombe's continuity correction; 0 when a margin is empty."""
    margins = (both + first) * (second + neither) * (both + second) * (first + neither)
    if margins == 0:
        return 0.0
    product = both * neither - first * second
    n = both + first + second + neither
    corrected = max(product - n / 2, 0.0) if product > 0 else product
    return corrected / math.sqrt(margins)


def mean(values: Sequence[float]) -> Estimate:
    """A mean with a bootstrap interval over its values."""
    return ratio(values, [1.0] * len(values))


def ratio(totals: Sequence[float], weights: Sequence[float]) -> Estimate:
    """``sum(totals) / sum(weights)`` with a bootstrap interval over the pairs (nats of a text and its tokens)."""
    return _bootstrapped(np.array([totals, weights], dtype=float), lambda t, w, axis: t.sum(axis) / w.sum(axis))


def ratio_change(before: Sequence[float], after: Sequence[float], weights: Sequence[float]) -> Estimate:
    """Change of ``ratio`` between two conditions on the same texts."""
    if len(before) != len(after):
        raise ValueError(f"{len(before)} texts before and {len(after)} after cannot be paired")
    return ratio([b - a for a, b in zip(before, after, strict=True)], weights)


def _bootstrapped(data: Float[np.ndarray, "kind item"], statistic: object) -> Estimate:
    """Percentile bootstrap over the items; with fewer than two items there is no interval, said as infinite."""
    if data.shape[1] == 0:
        return Estimate(math.nan, -math.inf, math.inf)
    value = float(statistic(*data, axis=-1))  # type: ignore[operator]
    if data.shape[1] < 2:
        return Estimate(value, -math.inf, math.inf)
    found = bootstrap(
        tuple(data), statistic, n_resamples=RESAMPLES, paired=True, vectorized=True, confidence_level=CONFIDENCE,
        method="percentile", rng=np.random.default_rng(0), batch=500,
    ).confidence_interval  # fmt: skip
    return Estimate(value, float(found.low), float(found.high))


def auroc(positive: list[float], negative: list[float]) -> float | None:
    """Area under the ROC curve: P(positive > negative), ties half; ``None`` when a class is empty."""
    if not positive or not negative:
        return None
    u = mannwhitneyu(positive, negative, alternative="greater").statistic
    return float(u) / (len(positive) * len(negative))
