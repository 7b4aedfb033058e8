"""Statistics, named once: scipy does the work."""

from scipy.stats import binomtest, mannwhitneyu

CONFIDENCE = 0.95


def wilson_interval(successes: int, n: int) -> tuple[float, float]:
    """Wilson score interval (95 %) of a share; ``(0, 1)`` when there is nothing to count."""
    if n == 0:
        return 0.0, 1.0
    interval = binomtest(successes, n).proportion_ci(CONFIDENCE, method="wilson")
    return float(interval.low), float(interval.high)


def auroc(positive: list[float], negative: list[float]) -> float | None:
    """Area under the ROC curve: P(positive > negative), ties half; ``None`` when a class is empty."""
    if not positive or not negative:
        return None
    u = mannwhitneyu(positive, negative, alternative="greater").statistic
    return float(u) / (len(positive) * len(negative))
