"""Whether prompts still score as those that a monitor was calibrated on."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy.stats import ks_2samp

from refusal.core.monitor import Monitor
from refusal.core.stats import Estimate, rate

RARE = 0.01  # of a test: how often it may say so of prompts that have not drifted
FEW = 20  # prompts below which nothing is said


@dataclass(frozen=True)
class Drift:
    """Scores beside those of the calibration.

    Attributes:
        distance, p_value: of the two-sample Kolmogorov-Smirnov test.
        fired: the share above the threshold, with Wilson's interval; ``eps`` was promised of
            harmless prompts.
        drifted: what is different, in words; nothing where nothing is, or too little is known.
    """

    n: int
    n_calibration: int
    distance: float
    p_value: float
    fired: Estimate
    eps: float
    drifted: tuple[str, ...]

    @property
    def line(self) -> str:
        """All of it, to be read."""
        low, high = 100 * self.fired.low, 100 * self.fired.high
        found = (
            f"{self.n} prompts beside {self.n_calibration} of the calibration: distance "
            f"{self.distance:.3f} (Kolmogorov-Smirnov, p = {self.p_value:.2g}), "
            f"{self.fired.value:.1%} fire ({low:.1f}–{high:.1f}), at most "
            f"{self.eps:.1%} promised of harmless ones."
        )
        if self.n < FEW:
            return f"{found} Fewer than {FEW} prompts say nothing of drift."
        said = "; ".join(self.drifted) or "no drift is seen"
        return f"{found} {said[0].upper()}{said[1:]}."


def drift(monitor: Monitor, logits: Float[np.ndarray, "n"]) -> Drift:
    """Compare the scores of prompts, at least one, with those of the calibration.

    They have drifted where the Kolmogorov-Smirnov test says so at 1 %, or where the interval of the
    share that fires lies above what was promised: other traffic, or harmful prompts in it.
    """
    test = ks_2samp(logits, monitor.calibration)
    fired = rate(monitor.fires(logits).tolist())
    said = []
    if len(logits) >= FEW and test.pvalue < RARE:
        higher = np.median(logits) > np.median(monitor.calibration)
        way = "higher" if higher else "lower"
        said.append(f"the scores have drifted, their median is {way} than the calibration's")
    if len(logits) >= FEW and fired.low > monitor.eps:
        said.append("more fire than was promised of harmless prompts")
    counts = (len(logits), len(monitor.calibration))
    return Drift(
        *counts, float(test.statistic), float(test.pvalue), fired, monitor.eps, tuple(said)
    )
