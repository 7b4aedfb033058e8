"""What is known of a monitor after an evaluation, as records: no tensors, JSON as it is."""

from dataclasses import dataclass
from typing import Literal

from refusal.core.records import Label
from refusal.core.stats import Estimate

Kind = Literal["test", "over-refusal", "language", "jailbreak"]


@dataclass(frozen=True)
class SetResult:
    """One set of prompts: the share that fires, and the mean logit with its standard deviation
    (``None`` of a single prompt).
    """

    name: str
    kind: Kind
    label: Label
    fired: Estimate
    mean: float
    sd: float | None
    n: int


@dataclass(frozen=True)
class Recall:
    """The share of harmful prompts found where a share ``fpr`` of the harmless ones fires, at most:
    ``false_alarms`` of them, those above ``threshold``.
    """

    fpr: float
    tpr: Estimate
    threshold: float
    false_alarms: int


@dataclass(frozen=True)
class Contrast:
    """A harmful set against a harmless one, whatever the monitor's own threshold."""

    harmful: str
    harmless: str
    auroc: Estimate
    recalls: tuple[Recall, ...]
    n_harmful: int
    n_harmless: int


@dataclass(frozen=True)
class Bin:
    """Prompts whose probability lies in an interval: what was said on average, and what is so."""

    low: float
    high: float
    predicted: float
    observed: Estimate
    n: int


@dataclass(frozen=True)
class Reliability:
    """Whether the probabilities are shares, on the test sets as they are mixed: Brier score (0 is
    best, .25 is a constant .5), expected calibration error, and what both are made of.
    """

    brier: Estimate
    error: float
    bins: tuple[Bin, ...]


@dataclass(frozen=True)
class LeftOut:
    """A source of prompts, told from the other class by a monitor refitted without it, and by one
    refitted with its other half; both on the same half.
    """

    source: str
    label: Label
    without: Contrast
    same: Contrast


@dataclass(frozen=True)
class Evaluated:
    """A monitor, evaluated on prompts that it was not made with."""

    model: str
    refusal: tuple[int, int | str]
    harmfulness: tuple[int, int | str]
    threshold: float
    eps: float
    n_calibration: int
    sets: tuple[SetResult, ...]
    contrasts: tuple[Contrast, ...]
    reliability: Reliability | None
    left_out: tuple[LeftOut, ...]
    notes: tuple[str, ...] = ()
