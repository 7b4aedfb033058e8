"""Statistics, named once: scipy does the work.

Intervals are at 95 %. Rates get Wilson's interval; the change of a rate between two conditions on
the same prompts gets Newcombe's (1998, Statistics in Medicine 17:2635, method 10) and McNemar's
exact test; means get a bootstrap over prompts. Bootstraps are seeded: the same numbers give the
same interval. Rates corrected for the errors of who judged have the formulas beside them.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

import numpy as np
from jaxtyping import Float
from scipy.stats import binomtest, bootstrap, mannwhitneyu, norm

CONFIDENCE = 0.95
Z = float(norm.ppf((1 + CONFIDENCE) / 2))
RESAMPLES = 4000


@dataclass(frozen=True)
class Estimate:
    """A number, its 95 % interval, and the p-value of "it is zero" where a test was made."""

    value: float
    low: float
    high: float
    p_value: float | None = None


@dataclass(frozen=True)
class Accuracy:
    """How a judge did where the truth is known, as counts; what it looks for, a refusal say, is
    called positive.

    Attributes:
        hits: positive ones that it found; ``misses``: that it did not find.
        rejections: negative ones that it left alone; ``false_alarms``: that it took for positive.
        source: where that was counted.
    """

    hits: int
    misses: int
    rejections: int
    false_alarms: int
    source: str = ""

    def __post_init__(self) -> None:
        """Raise ValueError for a negative count."""
        if min(self.hits, self.misses, self.rejections, self.false_alarms) < 0:
            raise ValueError(f"{self} has a negative count; give numbers of items")

    @property
    def sensitivity(self) -> Estimate:
        """Share of the positive ones that it finds."""
        return _share(self.hits, self.hits + self.misses)

    @property
    def specificity(self) -> Estimate:
        """Share of the negative ones that it leaves alone."""
        return _share(self.rejections, self.rejections + self.false_alarms)

    @property
    def informedness(self) -> float:
        """Sensitivity + specificity - 1 (Youden's J); 0 or less is no better than chance, nothing
        counted is 0.
        """
        positives, negatives = self.hits + self.misses, self.rejections + self.false_alarms
        return (
            self.hits / positives - self.false_alarms / negatives
            if positives and negatives
            else 0.0
        )


def wilson_interval(successes: int, n: int) -> tuple[float, float]:
    """Wilson score interval (95 %) of a share; ``(0, 1)`` when there is nothing to count."""
    if n == 0:
        return 0.0, 1.0
    interval = binomtest(successes, n).proportion_ci(CONFIDENCE, method="wilson")
    return float(interval.low), float(interval.high)


def rate(hits: Sequence[bool]) -> Estimate:
    """A share with Wilson's interval."""
    return _share(sum(hits), len(hits))


def _share(count: int, n: int) -> Estimate:
    return Estimate(count / n if n else 0.0, *wilson_interval(count, n))


def together(runs: Sequence[Estimate]) -> Estimate:
    """What several runs on the same prompts show together: the mean of their values and of their
    bounds.

    The interval is as wide as one run's: a prompt's answers in several runs go together, so it
    counts once.
    """
    return Estimate(
        fmean(r.value for r in runs), fmean(r.low for r in runs), fmean(r.high for r in runs)
    )


def rate_change(before: Sequence[bool], after: Sequence[bool]) -> Estimate:
    """``share(after) - share(before)`` on the same prompts, in the same order.

    Newcombe's square-and-add interval from the two Wilson intervals and the correlation phi of the
    pairs; the p-value is McNemar's exact one: given how many prompts changed, are both ways as
    likely?
    """
    n = len(before)
    if len(after) != n:
        raise ValueError(f"{n} prompts before and {len(after)} after cannot be paired")
    if n == 0:
        return Estimate(0.0, -1.0, 1.0, 1.0)
    x, y = np.array(before, dtype=bool), np.array(after, dtype=bool)
    gained, lost = int((y & ~x).sum()), int((x & ~y).sum())
    p, q = float(x.mean()), float(y.mean())
    (p_low, p_high), (q_low, q_high) = (
        wilson_interval(int(x.sum()), n),
        wilson_interval(int(y.sum()), n),
    )
    phi = _phi(int((x & y).sum()), lost, gained, int((~x & ~y).sum()))
    low, high = square_and_add((p, p_low, p_high), (q, q_low, q_high), phi)
    p_value = float(binomtest(gained, gained + lost).pvalue) if gained + lost else 1.0
    return Estimate(q - p, low, high, p_value)


def square_and_add(
    before: tuple[float, float, float], after: tuple[float, float, float], phi: float
) -> tuple[float, float]:
    """Newcombe's interval of ``after - before``, each a share with its bounds, from the correlation
    ``phi`` of the two.
    """
    (p, p_low, p_high), (q, q_low, q_high) = before, after
    down, up = (q - q_low, p_high - p), (q_high - q, p - p_low)
    low, high = (math.sqrt(max(0.0, a * a - 2 * phi * a * b + b * b)) for a, b in (down, up))
    return max(-1.0, q - p - low), min(1.0, q - p + high)


def _phi(both: int, first: int, second: int, neither: int) -> float:
    """Correlation of the pairs with Newcombe's continuity correction; 0 when a margin is empty."""
    margins = (both + first) * (second + neither) * (both + second) * (first + neither)
    if margins == 0:
        return 0.0
    product = both * neither - first * second
    n = both + first + second + neither
    corrected = max(product - n / 2, 0.0) if product > 0 else product
    return corrected / math.sqrt(margins)


def corrected_rate(successes: int | float, n: int | float, accuracy: Accuracy) -> Estimate | None:
    """The share of positive ones behind ``successes`` of ``n`` found by a judge that errs: Rogan
    and Gladen (1978).

    ``(q + spec - 1) / (sens + spec - 1)`` for a raw share ``q``, clipped to 0..1 (American Journal
    of Epidemiology 107:71). The interval is Lang and Reiczigel's (2014, Preventive Veterinary
    Medicine 113:13), which carries the uncertainty of all three shares: each is shrunk (``q`` as
    Wilson does, the others by one item to either side), and the middle is shifted by ``delta``.
    ``None`` where the judge knows no better than chance: then nothing follows.
    """
    if accuracy.informedness <= 0:
        return None
    if n == 0:
        return Estimate(0.0, 0.0, 1.0)
    positives, negatives = (
        accuracy.hits + accuracy.misses,
        accuracy.rejections + accuracy.false_alarms,
    )
    value = _unit((successes / n - accuracy.false_alarms / negatives) / accuracy.informedness)
    positives, negatives = positives + 2, negatives + 2
    size, q = n + Z**2, (successes + Z**2 / 2) / (n + Z**2)
    sens, spec = (accuracy.hits + 1) / positives, (accuracy.rejections + 1) / negatives
    middle = (q + spec - 1) / (sens + spec - 1)
    of_sens, of_spec = sens * (1 - sens) / positives, spec * (1 - spec) / negatives
    delta = 2 * Z**2 * (middle * of_sens - (1 - middle) * of_spec)
    variance = q * (1 - q) / size + middle**2 * of_sens + (1 - middle) ** 2 * of_spec
    reach = Z * math.sqrt(variance) / (sens + spec - 1)
    low, high = _unit(middle + delta - reach), _unit(middle + delta + reach)
    return Estimate(value, min(low, value), max(high, value))


def corrected_change(
    before: Sequence[bool], after: Sequence[bool], accuracy: Accuracy
) -> Estimate | None:
    """``corrected_rate(after) - corrected_rate(before)`` on the same prompts, by a judge that errs
    alike on both.

    Specificity cancels: the truth changes by the raw change over ``J = sens + spec - 1``. The
    interval is that of this ratio (Newcombe 2016, MOVER-R, Statistical Methods in Medical Research
    25:1774) from the raw change's and that of ``J`` (square-and-add over the two Wilson intervals).
    The p-value is the raw change's: both are zero together.
    """
    n = len(before)
    first, second = (corrected_rate(sum(hits), n, accuracy) for hits in (before, after))
    return change_corrected(rate_change(before, after), first, second, accuracy)


def change_corrected(
    raw: Estimate, first: Estimate | None, second: Estimate | None, accuracy: Accuracy
) -> Estimate | None:
    """A raw change corrected; ``first`` and ``second`` are the corrected rates before and after."""
    if first is None or second is None:
        return None
    sens, spec, j = accuracy.sensitivity, accuracy.specificity, accuracy.informedness
    j_low = j - math.hypot(sens.value - sens.low, spec.value - spec.low)
    j_high = j + math.hypot(sens.high - sens.value, spec.high - spec.value)
    value = second.value - first.value
    if j_low <= 0:
        return Estimate(value, -1.0, 1.0, raw.p_value)
    low = _ratio_low(raw.value, raw.low, (j, j_low, j_high))
    high = -_ratio_low(-raw.value, -raw.high, (j, j_low, j_high))
    return Estimate(value, max(-1.0, min(low, value)), min(1.0, max(high, value)), raw.p_value)


def _ratio_low(top: float, low: float, bottom: tuple[float, float, float]) -> float:
    """MOVER-R's lower end of ``top / bottom``; ``bottom`` with its own bounds, all above 0.

    It is the root below ``top / bottom`` of ``(top - r bottom)^2 = (top - low)^2 + r^2 d^2``. ``d``
    is how far the bottom may go to where the ratio falls: up where the root is positive, down where
    it is negative.
    """
    value, down, up = bottom
    d = up - value if low >= 0 else value - down
    a, b, c = value**2 - d**2, top * value, low * (2 * top - low)
    root = math.sqrt((top - low) ** 2 * a + (d * top) ** 2)
    if low < 0:
        return (b - root) / a
    return c / (b + root) if c > 0 else 0.0


def _unit(value: float) -> float:
    return min(1.0, max(0.0, value))


def mean(values: Sequence[float]) -> Estimate:
    """A mean with a bootstrap interval over its values."""
    return ratio(values, [1.0] * len(values))


def ratio(totals: Sequence[float], weights: Sequence[float]) -> Estimate:
    """``sum(totals) / sum(weights)`` with a bootstrap interval over the pairs (nats of a text and
    its tokens).
    """
    return _bootstrapped(
        np.array([totals, weights], dtype=float), lambda t, w, axis: t.sum(axis) / w.sum(axis)
    )


def ratio_change(
    before: Sequence[float], after: Sequence[float], weights: Sequence[float]
) -> Estimate:
    """Change of ``ratio`` between two conditions on the same texts."""
    if len(before) != len(after):
        raise ValueError(f"{len(before)} texts before and {len(after)} after cannot be paired")
    return ratio([b - a for a, b in zip(before, after, strict=True)], weights)


def _bootstrapped(data: Float[np.ndarray, "kind item"], statistic: object) -> Estimate:
    """Percentile bootstrap over the items; with fewer than two items there is no interval, said as
    infinite.
    """
    if data.shape[1] == 0:
        return Estimate(math.nan, -math.inf, math.inf)
    value = float(statistic(*data, axis=-1))  # type: ignore[operator]
    if data.shape[1] < 2:
        return Estimate(value, -math.inf, math.inf)
    found = bootstrap(
        tuple(data),
        statistic,
        n_resamples=RESAMPLES,
        paired=True,
        vectorized=True,
        confidence_level=CONFIDENCE,
        method="percentile",
        rng=np.random.default_rng(0),
        batch=500,
    ).confidence_interval
    return Estimate(value, float(found.low), float(found.high))


def auroc_estimate(positive: list[float], negative: list[float]) -> Estimate:
    """``auroc`` with the interval of ``auroc_interval``; NaN in (0, 1) when a class is empty."""
    area = auroc(positive, negative)
    return auroc_interval(math.nan if area is None else area, len(positive), len(negative))


def auroc(positive: list[float], negative: list[float]) -> float | None:
    """Area under the ROC curve: P(positive > negative), ties half; ``None`` when a class is
    empty.
    """
    if not positive or not negative:
        return None
    u = mannwhitneyu(positive, negative, alternative="greater").statistic
    return float(u) / (len(positive) * len(negative))


def auroc_interval(area: float, m: int, n: int) -> Estimate:
    """The area under a ROC curve of ``m`` positive and ``n`` negative values, with its interval.

    Newcombe's score interval (2006, Statistics in Medicine 25:559, method 5): the areas ``t`` with
    ``|t - area| = z sqrt(V(t))``, ``V(t) = t (1 - t) (1 + N ((1 - t) / (2 - t) + t / (1 + t))) /
    (m n)``, ``N = (m + n) / 2 - 1``. It has a width at an area of 1 too.
    """
    if min(m, n) < 1:
        return Estimate(area, 0.0, 1.0)
    pairs = (m + n) / 2 - 1

    def beyond(t: float) -> bool:
        spread = t * (1 - t) * (1 + pairs * ((1 - t) / (2 - t) + t / (1 + t))) / (m * n)
        return abs(t - area) > Z * math.sqrt(max(0.0, spread))

    def end(outside: float) -> float:
        """Between the area, which is inside, and an end: bisection."""
        inside = area
        for _ in range(60):
            middle = (inside + outside) / 2
            inside, outside = (inside, middle) if beyond(middle) else (middle, outside)
        return inside

    return Estimate(area, end(0.0), end(1.0))
