"""The threshold of a monitor, by split-conformal prediction."""

import math
from fractions import Fraction

import numpy as np
from jaxtyping import Float

from refusal.core.errors import MonitorError, NonFiniteError


def conformal_threshold(scores: Float[np.ndarray, "n"], eps: float) -> float:
    """The ``ceil((n + 1)(1 - eps))``-th smallest of ``n`` scores of harmless prompts.

    Of further prompts that come from where these do, a share of at most ``eps`` lies above it, in
    expectation over calibrations (Vovk et al. 2005; Papadopoulos et al. 2002). Given one
    calibration, the share below it is distributed as ``Beta(k, n + 1 - k)``, ``k`` the place that
    is taken, where no two scores are equal.

    Raises:
        MonitorError: ``eps`` is no share, or there are too few scores for it.
        NonFiniteError: a score is NaN or infinite.
    """
    if not 0 < eps < 1:
        raise MonitorError(f"eps is {eps:g}, and must lie between 0 and 1. Give 0.01, say.")
    if not np.isfinite(scores).all():
        raise NonFiniteError("A calibration score is not finite. Try --dtype float32.")
    share = Fraction(str(eps))  # 100 x 0.99 must be 99, not a little more
    place = math.ceil((len(scores) + 1) * (1 - share))
    if place > len(scores):
        raise MonitorError(
            f"{len(scores)} harmless calibration prompts are too few to promise that a share of "
            f"{eps:g} fires: at least {math.ceil(1 / share) - 1} are needed. Give more with "
            "--calibration, or a larger --eps."
        )
    return float(np.sort(scores)[place - 1])
