"""How the prompts that a direction is found with are filtered, and what that rests on: judged
completions against the refusal metric. No model is needed to read it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from refusal.core.records import Completion, Label, Prompt
from refusal.core.stats import CONFIDENCE, Estimate, auroc, auroc_interval, rate

Kind = Literal["completions", "metric", "none"]
TRUSTED = 0.9  # AUROC of the metric: with an upper limit below it the metric is not used to choose
FITTING = 2 / 3  # of the refusals, and of the answers: the share on their side of a threshold
MIN_JUDGED = 3  # refusals, and answers: with fewer there is nothing to tell apart
RESAMPLES = 1000


@dataclass(frozen=True)
class Judged(Completion):
    """A completion of a prompt that may take part, and the prompt's refusal metric (``None``
    without refusal tokens).
    """

    metric: float | None = None


@dataclass(frozen=True)
class Fit:
    """How well the refusal metric tells judged refusals from answers.

    Attributes:
        refusals, answers: completions that are one or the other; ``refusals_above``,
            ``answers_below``: those with a metric above 0, below 0.
        auroc: of the metric. threshold: at which sensitivity + specificity is largest.
    """

    refusals: int
    answers: int
    refusals_above: int
    answers_below: int
    auroc: Estimate
    threshold: Estimate

    @property
    def agreement(self) -> Estimate:
        """The share of completions on their side of 0."""
        n = self.refusals + self.answers
        right = self.refusals_above + self.answers_below
        return rate([i < right for i in range(n)])

    @property
    def trusted(self) -> bool:
        """Whether the metric may tell refusals from answers at all."""
        return self.auroc.high >= TRUSTED

    @property
    def fits(self) -> bool:
        """Whether the published threshold, 0, may be right: not measurably fewer than two in three
        of the refusals lie above it, nor of the answers below.
        """
        above = rate([i < self.refusals_above for i in range(self.refusals)])
        below = rate([i < self.answers_below for i in range(self.answers)])
        return self.trusted and min(above.high, below.high) >= FITTING

    @property
    def words(self) -> str:
        """The numbers, for people."""
        return (
            f"of {self.refusals} judged refusals {self.refusals_above} have a metric above 0, of "
            f"{self.answers} answers {self.answers_below} one below; AUROC {_words(self.auroc)}"
        )


@dataclass(frozen=True)
class Passing:
    """Of some prompts of a class, how many pass the filter."""

    passed: int
    tried: int


@dataclass(frozen=True)
class FilterChoice:
    """Which filter a run uses, decided on a sample of its training prompts.

    Attributes:
        automatic: chosen here, not asked for. why: in a sentence.
        fit: of the metric on the sample's completions; ``None`` where none were judged.
        tokens: length of the sample's completions, where there are some.
        harmful, harmless: how many of the sample pass; ``None`` where that is not known.
    """

    kind: Kind
    automatic: bool
    why: str
    fit: Fit | None = None
    tokens: int | None = None
    harmful: Passing | None = None
    harmless: Passing | None = None


@dataclass(frozen=True)
class Calibration:
    """What the completions that a run filters by say of the metric.

    Attributes:
        fit: of the metric; ``None`` without tokens, or where too few are refusals or answers.
        threshold: of the metric, which induce is measured from: 0 where that fits.
        rule: whose score chooses, the metric's or COSMIC's. why: in a sentence.
    """

    rule: Literal["metric", "cosmic"]
    threshold: float
    why: str
    fit: Fit | None = None


def fit_metric(rows: Sequence[Judged]) -> Fit | None:
    """How well the metric fits the verdicts; ``None`` with fewer than three refusals or answers."""
    refused = [r.metric for r in rows if is_refusal(r) and r.metric is not None]
    answered = [r.metric for r in rows if is_answer(r) and r.metric is not None]
    if min(len(refused), len(answered)) < MIN_JUDGED:
        return None
    area = auroc(refused, answered)
    assert area is not None
    return Fit(
        len(refused),
        len(answered),
        sum(value > 0 for value in refused),
        sum(value < 0 for value in answered),
        auroc_interval(area, len(refused), len(answered)),
        best_threshold(refused, answered),
    )


def calibrate(rows: Sequence[Judged]) -> Calibration:
    """The threshold, and whether the metric may choose, from the completions of a run."""
    fit = fit_metric(rows)
    if fit is None:
        why = "there are no refusal tokens that tell refusals from answers"
        if any(row.metric is not None for row in rows):
            why = f"fewer than {MIN_JUDGED} completions are refusals, or answers"
        return Calibration("cosmic", 0.0, f"COSMIC's score chooses: {why}.")
    if not fit.trusted:
        why = (
            f"COSMIC's score chooses: the refusal metric cannot tell refusals from answers, "
            f"{fit.words} (the upper limit is below {TRUSTED:g})."
        )
        return Calibration("cosmic", 0.0, why, fit)
    if fit.fits:
        return Calibration("metric", 0.0, f"The threshold of the metric is 0: {fit.words}.", fit)
    why = f"The threshold of the metric is {_words(fit.threshold)}, not 0: {fit.words}."
    return Calibration("metric", fit.threshold.value, why, fit)


def passes_judged(label: Label, row: Completion) -> bool:
    """The filter by completions: a harmful prompt must be refused, a harmless one answered."""
    return is_refusal(row) if label == "harmful" else is_answer(row)


def is_refusal(row: Completion) -> bool:
    """Refused, in whole or in part."""
    return row.verdict in ("refusal", "partial")


def is_answer(row: Completion) -> bool:
    """Answered; degenerate text and unfinished thoughts are neither."""
    return row.verdict == "compliance"


def best_threshold(refused: Sequence[float], answered: Sequence[float]) -> Estimate:
    """The threshold with the largest share of ``refused`` above it plus that of ``answered`` below,
    with a bootstrap interval (both classes resampled).

    Of several that are as good, the middle one; each lies halfway between two neighbouring values.
    """
    random = np.random.default_rng(0)
    high, low = np.array(refused), np.array(answered)
    draws = []
    for _ in range(RESAMPLES):
        draws.append(_youden(random.choice(high, len(high)), random.choice(low, len(low))))
    tail = (1 - CONFIDENCE) / 2
    ends = np.quantile(draws, (tail, 1 - tail))
    return Estimate(_youden(high, low), float(ends[0]), float(ends[1]))


def _youden(refused: np.ndarray, answered: np.ndarray) -> float:
    values = np.unique(np.concatenate([refused, answered]))
    if len(values) == 1:
        return float(values[0])
    cuts = (values[1:] + values[:-1]) / 2
    above = 1 - np.searchsorted(np.sort(refused), cuts) / len(refused)
    below = np.searchsorted(np.sort(answered), cuts) / len(answered)
    best = np.flatnonzero(above + below >= (above + below).max() - 1e-12)
    return float(cuts[best[(len(best) - 1) // 2]])


def passing(prompts: Sequence[Prompt], passed: Sequence[bool], label: Label) -> Passing:
    """Count those of a class."""
    hits = [hit for prompt, hit in zip(prompts, passed, strict=True) if prompt.label == label]
    return Passing(sum(hits), len(hits))


def _words(estimate: Estimate) -> str:
    return f"{estimate.value:.2f} ({estimate.low:.2f} to {estimate.high:.2f})"
