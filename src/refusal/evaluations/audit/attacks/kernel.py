"""A strength for every layer, one for attention and one for MLPs, searched for.

Two goals at once, the refusal metric and KL: points spread evenly over all kernels first, then
changed ones of those that no other beats in both (an evolution with the front as its parents).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import qmc

from refusal.core.errors import DirectionError
from refusal.core.work import Search, Work
from refusal.evaluations.audit.attack import Attack, Bench, Found, Setting
from refusal.evaluations.audit.records import Trial, Validated
from refusal.interventions.conditions import Condition
from refusal.runs.stage import Plan

# Of each tent: the most, where (share of the depth), the least (share of the most), the reach.
LOW, HIGH = (0.0, 0.3, 0.0, 0.1), (1.5, 1.0, 1.0, 1.0)
SPREAD = 32  # kernels that are tried first, a power of two
GENERATION = 16
TRIALS = 96
STEP = 0.15  # of a number's range: standard deviation of a change
JUDGED = 3  # whose completions decide


@dataclass(frozen=True)
class _Tried:
    condition: str
    point: tuple[float, ...]
    bypass: float
    kl: float


class SearchedKernel(Attack):
    """Ablation of the textbook direction with the layer kernel that does best."""

    searches = True

    def find(self, bench: Bench) -> Found:
        """Search until the trials are done or the budget is spent; the best three are completed.

        Raises:
            DirectionError: every kernel is beyond the damage limit.
        """
        random = np.random.default_rng(bench.config.seed)
        points = qmc.Sobol(2 * len(LOW), rng=bench.config.seed).random(SPREAD)
        tried: list[_Tried] = []
        seen, note = 0, ""
        while seen < TRIALS:
            if seen and bench.budget.spent:
                note = "the budget is spent"
                break
            tried += _scored(bench, points)
            seen += len(points)
            parents = front(tried)
            if not parents:
                points = random.random((GENERATION, 2 * len(LOW)))
                continue
            chosen = [parents[i].point for i in random.integers(0, len(parents), GENERATION)]
            moved = np.array(chosen) + random.normal(0, STEP, (GENERATION, 2 * len(LOW)))
            points = moved.clip(0, 1)
        best = sorted(front(tried), key=lambda one: one.bypass)[:JUDGED]
        if not best:
            raise DirectionError(
                f"Each of {seen} kernels is beyond the damage limit of "
                f"{bench.config.damage_limit:g} nats. Raise --damage-limit."
            )
        settings = {}
        for i, one in enumerate(best, start=1):
            settings[f"kernel-{i}"] = Setting(one.condition, bench.textbook_seen)
        trials = [Trial(one.condition, Validated(one.bypass, one.kl)) for one in front(tried)]
        said = f"{seen} kernels were tried, {len(tried)} of them within the damage limit"
        return Found(settings, trials=trials, note="; ".join(filter(None, (said, note))))

    @classmethod
    def costs(cls, plan: Plan) -> Sequence[Work]:
        """Both classes of validation prompts, once a trial."""
        tokens = 2 * TRIALS * plan.config.n_val * plan.lengths.val
        return (Search(tokens, 2 * TRIALS),)


def condition_of(point: Sequence[float]) -> str:
    """The kernel at a point of the unit cube, as a condition."""
    low, high = np.array(LOW * 2), np.array(HIGH * 2)
    numbers = low + np.asarray(point) * (high - low)
    numbers[2::4] *= numbers[0::4]
    return "kernel@" + ",".join(f"{round(float(number), 3):g}" for number in numbers)


def front(tried: Sequence[_Tried]) -> list[_Tried]:
    """Those that no other beats in one score without losing in the other, the least KL first."""
    found: list[_Tried] = []
    for one in sorted(tried, key=lambda one: (one.kl, one.bypass)):
        if not found or one.bypass < found[-1].bypass:
            found.append(one)
    return found


def _scored(bench: Bench, points: np.ndarray) -> list[_Tried]:
    """Those of some kernels that are within the damage limit; bypass only of them."""
    limit, names = bench.config.damage_limit, [condition_of(point) for point in points]
    edits = [Condition.named(name).edit(bench.textbook) for name in names]
    found = bench.validation.kl(edits, limit)
    within = [i for i, kl in enumerate(found) if kl <= limit]
    bypass = bench.validation.bypass([edits[i] for i in within])
    tried = []
    for i, values in zip(within, bypass, strict=True):
        mean = sum(values) / len(values)
        tried.append(_Tried(names[i], tuple(map(float, points[i])), mean, found[i]))
    return tried
