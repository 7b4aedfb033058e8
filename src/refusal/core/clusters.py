"""Rates over several samples of each prompt. The samples of a prompt go together, so what counts is
how many prompts there are, and how far the samples of one differ.

Intervals are those of `stats` with an effective number of answers: as many independent ones would
be as uncertain (Kish 1965; Wilson's interval with it: Dean and Pagano 2015, Survey Methodology 41).
With one sample a prompt all is as in `stats`, exactly.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from refusal.core import stats
from refusal.core.stats import Accuracy, Estimate, Z

Groups = Sequence[Sequence[bool]]  # by prompt its samples


def grouped(prompts: Iterable[str], hits: Iterable[bool]) -> dict[str, list[bool]]:
    """Hits by the prompt that they belong to, in the order in which prompts come."""
    found: dict[str, list[bool]] = {}
    for prompt, hit in zip(prompts, hits, strict=True):
        found.setdefault(prompt, []).append(hit)
    return found


def _single(*sides: Groups) -> bool:
    return all(len(samples) == 1 for groups in sides for samples in groups)


def _flat(groups: Groups) -> list[bool]:
    return [hit for samples in groups for hit in samples]


@dataclass(frozen=True)
class _Share:
    """A share over samples.

    Attributes:
        value: of all samples. off: by prompt, by how much its hits exceed what that share gives.
        n: effective number of answers. size: mean number of samples. spread: how much as uncertain
            as so many independent answers (Kish's design effect).
    """

    value: float
    off: Float[np.ndarray, "prompt"]
    n: float
    size: float
    spread: float

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's."""
        p, n = self.value, self.n
        middle = (p + Z**2 / (2 * n)) / (1 + Z**2 / n)
        reach = Z / (1 + Z**2 / n) * math.sqrt(p * (1 - p) / n + (Z / (2 * n)) ** 2)
        return max(0.0, min(p, middle - reach)), min(1.0, max(p, middle + reach))


def _share(groups: Groups) -> _Share:
    """The design effect is ``sum_c e_c^2 / sum_i e_i^2`` with ``e_i = hit - share`` and ``e_c`` its
    sum over a prompt: 1 of independent samples, their number where all of a prompt agree.

    Two prompts are added, refused in every sample and in none: where hits are few, nearly nothing
    is known of how far samples agree, and then they are taken to. It is held at 1 or more.
    """
    counts = np.array([len(samples) for samples in groups], dtype=float)
    hits = np.array([sum(samples) for samples in groups], dtype=float)
    total, size = counts.sum(), float(counts.mean())
    p = float(hits.sum() / total)
    off = hits - counts * p
    added = (1 - p) ** 2 + p**2
    together = float((off**2).sum()) + size**2 * added
    apart = float(total) * p * (1 - p) + size * added
    spread = max(1.0, together / apart)
    return _Share(p, off, float(total) / spread, size, spread)


def rate(groups: Groups) -> Estimate:
    """The share of all samples, with Wilson's interval for the effective number."""
    if _single(groups):
        return stats.rate(_flat(groups))
    share = _share(groups)
    return Estimate(share.value, *share.interval)


def rate_change(before: Groups, after: Groups) -> Estimate:
    """``share(after) - share(before)`` on the same prompts, in the same order; the numbers of
    samples may differ.

    Newcombe's interval as in ``stats.rate_change``, phi being the correlation of the prompts' sums.
    The p-value is that of the exact test that swaps before and after prompt by prompt: with one
    sample a prompt it is McNemar's.
    """
    if len(before) != len(after):
        raise ValueError(f"{len(before)} prompts before and {len(after)} after cannot be paired")
    if _single(before, after):
        return stats.rate_change(_flat(before), _flat(after))
    x, y = _share(before), _share(after)
    low, high = stats.square_and_add((x.value, *x.interval), (y.value, *y.interval), _phi(x, y))
    return Estimate(y.value - x.value, low, high, _swapped(before, after))


def _phi(x: _Share, y: _Share) -> float:
    """Correlation of the prompts' sums with Newcombe's continuity correction, half an answer of
    each prompt as it counts; 0 where all of one side agree.
    """
    scale = math.sqrt(float((x.off**2).sum() * (y.off**2).sum()))
    if scale == 0:
        return 0.0
    product = float(x.off @ y.off)
    half = math.sqrt(x.spread * x.size * y.spread * y.size) / 2
    return (max(product - half, 0.0) if product > 0 else product) / scale


def _swapped(before: Groups, after: Groups) -> float:
    """How often the sum of the prompts' differences is as large by chance, either sign of each
    being as likely; counted exactly, in units that make every difference a whole number.
    """
    unit = math.lcm(*(len(samples) for groups in (before, after) for samples in groups))
    pairs = zip(before, after, strict=True)
    apart = [sum(a) * (unit // len(a)) - sum(b) * (unit // len(b)) for b, a in pairs]
    steps = [abs(difference) for difference in apart if difference]
    chances = np.ones(1)  # of the sums from -total to total
    for step in steps:
        wider = np.zeros(len(chances) + 2 * step)
        wider[: len(chances)] += chances / 2
        wider[2 * step :] += chances / 2
        chances = wider
    sums = np.arange(-sum(steps), sum(steps) + 1)
    return min(1.0, float(chances[np.abs(sums) >= abs(sum(apart))].sum()))


def corrected_rate(groups: Groups, accuracy: Accuracy) -> Estimate | None:
    """``stats.corrected_rate`` for the effective number of answers."""
    if _single(groups):
        return stats.corrected_rate(sum(_flat(groups)), len(groups), accuracy)
    share = _share(groups)
    return stats.corrected_rate(share.value * share.n, share.n, accuracy)


def corrected_change(before: Groups, after: Groups, accuracy: Accuracy) -> Estimate | None:
    """``stats.corrected_change`` with the change and the rates as they are here."""
    if _single(before, after):
        return stats.corrected_change(_flat(before), _flat(after), accuracy)
    rates = corrected_rate(before, accuracy), corrected_rate(after, accuracy)
    return stats.change_corrected(rate_change(before, after), *rates, accuracy)


def agreement_of_samples(groups: Mapping[str, Sequence[bool]]) -> dict[str, Estimate]:
    """Shares of the prompts that are hit in ``all``, in ``some`` but not all, and in ``no`` sample;
    over prompts, with Wilson's interval.
    """
    sides = list(groups.values())
    return {
        "all": stats.rate([all(samples) for samples in sides]),
        "some": stats.rate([any(samples) and not all(samples) for samples in sides]),
        "no": stats.rate([not any(samples) for samples in sides]),
    }
