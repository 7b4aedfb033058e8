"""Whether a mean over all prompts will miss its limit, from its first prompts in random order.

The exact bounds of ``search.py`` ask what the unknown values could be at worst; these tests ask
what they are likely to be, at a stated risk. They read a score as the sum of something known for
every prompt (its value for the unmodified model, or for the candidate to beat) and a difference
from it, of which the first prompts are a random sample: a t-test with the finite population's
correction (Cochran 1977, Sampling Techniques, section 2.8).

Only one mistake changes what the rule chooses: to drop the candidate that it would choose. Nobody
else's fate matters, so the risk is not divided among the candidates. It is divided among the tests
of a candidate: the ``j``-th is made at ``risk / (j (j + 1))``, which sums up to ``risk`` however
many there are.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

from scipy.stats import norm
from scipy.stats import t as student

FEWEST = 4  # values that a spread can be taken from


@dataclass(frozen=True)
class Sample:
    """What is known of a mean over all prompts that should not exceed ``limit``.

    Attributes:
        known: the values of the first prompts, which stand in random order.
        expected: something like the value, known for every prompt; zeros where nothing is.
    """

    known: Sequence[float]
    expected: Sequence[float]
    limit: float

    @property
    def testable(self) -> bool:
        """Whether there is a spread to judge by, and anything unknown."""
        return FEWEST <= len(self.known) < len(self.expected)

    @cached_property
    def excess(self) -> float:
        """By how much the estimated mean exceeds the limit."""
        k, n = len(self.known), len(self.expected)
        differences = (sum(self.known) - sum(self.expected[:k])) / k
        return sum(self.expected) / n + differences - self.limit

    @cached_property
    def spread(self) -> float:
        """Standard deviation of the differences from what was expected."""
        k = len(self.known)
        found = [value - other for value, other in zip(self.known, self.expected, strict=False)]
        mean = sum(found) / k
        return math.sqrt(sum((d - mean) ** 2 for d in found) / (k - 1))


def level(risk: float, test: int) -> float:
    """What the ``test``-th test (from 1) of a candidate may risk, so that all of them together risk
    ``risk``.
    """
    return risk / (test * (test + 1))


def exceeds(sample: Sample, risk: float, floor: float = 0.0) -> bool:
    """Whether the mean over all prompts exceeds the limit, by a one-sided test at ``risk``.

    ``floor``: a spread that is certain not to be too small. A few values of a skewed or two-humped
    distribution may all come from its one side and lie close together, so that their own spread
    says too little: both must be exceeded, the own one by Student's quantile, ``floor`` by the
    normal one.
    """
    k, n = len(sample.known), len(sample.expected)
    return sample.excess > _margin(k, n, risk, sample.spread, floor)


def enough(sample: Sample, risk: float, floor: float = 0.0) -> int | None:
    """After how many prompts a test should tell that the mean exceeds the limit, if they go on as
    they began; ``None`` if they begin below it.
    """
    k, n = len(sample.known), len(sample.expected)
    if sample.excess <= 0:
        return None
    if k < FEWEST:
        return min(FEWEST, n)
    for j in range(k + 1, n):
        if sample.excess > _margin(j, n, risk, sample.spread, floor):
            return j
    return n


def _margin(k: int, n: int, risk: float, spread: float, floor: float) -> float:
    """By how much the mean of ``k`` of ``n`` values must exceed the limit."""
    own, normal = _quantiles(k, risk)
    return max(own * spread, normal * floor) * math.sqrt((1 - k / n) / k)


@lru_cache(maxsize=4096)
def _quantiles(k: int, risk: float) -> tuple[float, float]:
    """Of Student's t for ``k`` values and of the normal distribution, exceeded with probability
    ``risk``.
    """
    return float(student.isf(risk, k - 1)), float(norm.isf(risk))
