"""Score only what decides: a candidate is dropped as soon as the rule must reject it, whatever is
still to come.

After any number of prompts the mean over all of them lies between exact bounds (the metric's range,
a KL term's floor). A candidate whose bounds are on the wrong side of a threshold is out, and so is
one whose bypass cannot get below that of the best candidate that is complete. Which score a
candidate gets next is chosen for the least work: induce is looked at first (its passes are the
shortest); a score that seems to fail is taken as far as its bound should need; what seems to pass
everything is completed, the lowest bypass first, because it sets the mark that the others must
meet. The order is a guess from the values so far; the bounds, and so the choice, are not.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, get_args

from refusal.config.rule import Rule
from refusal.core import parallel
from refusal.core.direction import Direction
from refusal.core.progress import task
from refusal.core.records import CandidateScore
from refusal.directions.refusal_metric import METRIC_BOUND, kl_floor
from refusal.directions.selection.rule import rejected
from refusal.directions.selection.score import Score, Scorer
from refusal.directions.selection.sequential import FEWEST, Sample, enough, exceeds, level

SCORES: tuple[Score, ...] = get_args(Score)
SLACK = 1e-9  # rounding of a mean: no candidate exactly at a threshold is dropped by its bound
PARTLY = 1 / 8  # share of the prompts that tells how a score will come out
AHEAD = 3  # batches for each of several processes between two meetings
ROUND = 8  # batches for each process between two meetings, where nothing is decided on the way
# Share of the prompts that what is scored ahead is rounded up to: candidates then go side by side.
GRAIN = 1 / 16


@dataclass(eq=False)
class Candidate:
    """A candidate and what is known of it: per score the values of its first prompts, and why it is
    out.

    ``tests`` counts how often it was tested whether the rule would reject it. ``tested`` says with
    how many values of a score, and against which other candidate, and ``spreads`` the spread then.
    """

    direction: Direction
    values: dict[Score, list[float]] = field(
        default_factory=lambda: {score: [] for score in SCORES}
    )
    out: str | None = None
    tests: int = 0
    tested: "dict[Score, tuple[int, Candidate | None]]" = field(default_factory=dict)
    spreads: "dict[Score, tuple[int, Candidate | None, float]]" = field(default_factory=dict)

    def estimate(self, score: Score) -> float:
        """The mean of the values so far; NaN if there are none."""
        known = self.values[score]
        return sum(known) / len(known) if known else math.nan


class PartialScore(NamedTuple):
    """Give a candidate the values of ``score`` for prompts ``start .. stop - 1``; ``layer`` only
    matters to induce.
    """

    score: Score
    start: int
    stop: int
    layer: int


class EvaluationBatch(NamedTuple):
    """One partial score of candidates that go through the model side by side."""

    part: PartialScore
    candidates: tuple[Candidate, ...]


class Search:
    """The scoring of all candidates of one selection.

    ``risk``: the probability that the candidate which the rule would choose is dropped by a test on
    its first prompts (``sequential.py``); the scorer's prompts must then stand in random order. At
    0 nothing is tested, and nothing but the exact bounds drops a candidate.
    """

    def __init__(
        self, scorer: Scorer, candidates: list[Candidate], n_layers: int, risk: float = 0.0
    ) -> None:
        self.risk = risk
        self.mark: Candidate | None = None  # the lowest bypass of those known to qualify
        self.scorer = scorer
        self.candidates = candidates
        self.n_layers = n_layers
        self.n = {score: scorer.n_prompts(score) for score in SCORES}
        # What the unknown values of a score would have to be for it to pass after all.
        self.saving: dict[Score, float] = {
            "induce": METRIC_BOUND,
            "kl": kl_floor(scorer.base.shape[-1]),
            "bypass": -METRIC_BOUND,
        }

    def run(self, rule: Rule, everything: bool = False) -> None:
        """Score who is still in, until the rule's choice among them is certain.

        ``everything``: drop nobody on the way, so that every candidate has all three scores.
        """
        if everything:
            for score in SCORES:
                self.fill(self.candidates, score)
        else:
            self._decide(rule)
        self.judge(rule)

    def fill(self, candidates: Sequence[Candidate], score: Score) -> None:
        """Give all of the candidates every value of a score, also those that are out."""
        todo = [c for c in candidates if not self.has(c, score)]
        if not todo:
            return
        with task(f"select: {score}", total=len(todo), unit="candidates") as advance:
            while todo:
                batches = self._batches(
                    [(c, self._rest(c, score)) for c in todo], ROUND * parallel.world()
                )
                self._take(batches)
                todo = [c for c in todo if not self.has(c, score)]
                advance(sum(len(batch.candidates) for batch in batches))

    def judge(self, rule: Rule) -> None:
        """Say for every candidate with a complete score which criterion rejects it."""
        for candidate in self.candidates:
            reason = rejected(self.score_of(candidate), rule, self.n_layers)
            candidate.out = reason if self.is_complete(candidate) else reason or candidate.out

    def scores(self) -> list[CandidateScore]:
        """What is known of every candidate."""
        return [self.score_of(candidate) for candidate in self.candidates]

    def score_of(self, candidate: Candidate) -> CandidateScore:
        """What is known of a candidate, as a record; a mean that is not complete is ``None``."""
        induce, kl, bypass = (
            candidate.estimate(s) if self.has(candidate, s) else None for s in SCORES
        )
        where = candidate.direction
        return CandidateScore(where.position, where.layer, bypass, induce, kl, candidate.out)

    def has(self, candidate: Candidate, score: Score) -> bool:
        """Whether a score is known for all prompts."""
        return len(candidate.values[score]) == self.n[score]

    def is_complete(self, candidate: Candidate) -> bool:
        """Whether all three scores are."""
        return all(self.has(candidate, score) for score in SCORES)

    def _decide(self, rule: Rule) -> None:
        live = [c for c in self.candidates if c.out is None]
        with task("select", total=len(live), unit="candidates") as advance:
            while live:
                limits = self._limits(rule)
                live.sort(key=lambda c: self._promise(c, limits))
                head = live[0]
                if self._next(head, limits) is None:
                    live.remove(head)  # complete, and the best so far
                    advance(1)
                    continue
                # Few batches a round, since what a round learns the next one knows; more than one
                # for each of several processes, so that one that is done has something to do.
                wanted = [(c, step) for c in live if (step := self._next(c, limits)) is not None]
                self._take(
                    self._batches(wanted, AHEAD * parallel.world() if parallel.world() > 1 else 1)
                )
                limits = self._limits(rule)
                for candidate in live:
                    candidate.out = self._certain(candidate, rule, limits)
                advance(sum(c.out is not None for c in live))
                live = [c for c in live if c.out is None]

    def _limits(self, rule: Rule) -> dict[Score, float]:
        """What each score must meet: the thresholds, and the lowest bypass of a candidate known to
        qualify.
        """
        complete = [c for c in self.candidates if c.out is None and self.is_complete(c)]
        qualified = [c for c in complete if not rejected(self.score_of(c), rule, self.n_layers)]
        self.mark = min(qualified, key=lambda c: c.estimate("bypass"), default=None)
        return {
            "induce": rule.induce_threshold,
            "kl": rule.kl_threshold,
            "bypass": math.inf if self.mark is None else self.mark.estimate("bypass"),
        }

    def _promise(self, candidate: Candidate, limits: dict[Score, float]) -> tuple[bool, float]:
        """Sorts whom to go on with: not yet looked at, then what passes so far by its bypass, then
        what fails.
        """
        fails = any(self._needed(candidate, score, limits) for score in SCORES)
        return fails, candidate.estimate("bypass") if candidate.values["bypass"] else -math.inf

    def _next(self, candidate: Candidate, limits: dict[Score, float]) -> PartialScore | None:
        """What to learn next of a candidate: what should decide it with the least work; ``None`` if
        all is known.
        """
        layer = candidate.direction.layer
        unseen = [s for s in SCORES if math.isfinite(limits[s]) and not candidate.values[s]]
        if "induce" in unseen:
            return self._partly("induce", layer)
        needed = {score: self._needed(candidate, score, limits) for score in SCORES}
        fatal = [self._rest(candidate, s, stop) for s, stop in needed.items() if stop is not None]
        if fatal:
            return min(fatal, key=lambda step: self.scorer.cost(*step))
        if not candidate.values["bypass"]:
            return self._partly("bypass", 0)
        if "kl" in unseen:
            return self._partly("kl", 0)
        order: tuple[Score, ...] = ("kl", "bypass", "induce")
        missing = [score for score in order if not self.has(candidate, score)]
        return self._rest(candidate, missing[0]) if missing else None

    def _needed(self, candidate: Candidate, score: Score, limits: dict[Score, float]) -> int | None:
        """After how many prompts the bound of a score should reject, if its values go on as they
        began.

        As they began: with the same mean distance from the unmodified model's. ``None`` if nothing
        is known or the score does not fail so far.
        """
        known, n, saving = candidate.values[score], self.n[score], self.saving[score]
        if not known or len(known) == n:
            return None
        grain = max(1, int(GRAIN * n))
        likely = None
        if self.risk and math.isfinite(limits[score]):
            sample = self._sample(candidate, score, limits)
            likely = enough(sample, level(self.risk, candidate.tests + 1), self._floor(score))
        unmodified = self.scorer.unmodified[score]
        shift = (sum(known) - sum(unmodified[: len(known)])) / len(known)
        total = sum(known)
        for j in range(len(known), n):
            total += unmodified[j] + shift
            if j + 1 == likely or self._misses(score, (total + (n - j - 1) * saving) / n, limits):
                return min(n, -(-(j + 1) // grain) * grain)
        return None

    def _sample(self, candidate: Candidate, score: Score, limits: dict[Score, float]) -> Sample:
        """The values of a score for a test whether their mean exceeds what it may; with the signs
        turned for induce, which may not be too low.
        """
        sign = -1.0 if score == "induce" else 1.0
        mark = self.mark if score == "bypass" else None
        expected = self.scorer.unmodified[score] if mark is None else mark.values[score]
        known = candidate.values[score]
        return Sample([sign * v for v in known], [sign * v for v in expected], sign * limits[score])

    def _likely(self, candidate: Candidate, score: Score, limits: dict[Score, float]) -> bool:
        """Whether a test on the first prompts says that a score misses its limit; each is counted,
        and made once.
        """
        about = (len(candidate.values[score]), self.mark if score == "bypass" else None)
        if candidate.tested.get(score) == about or not math.isfinite(limits[score]):
            return False
        sample = self._sample(candidate, score, limits)
        if not sample.testable:
            return False
        candidate.tested[score] = about
        candidate.tests += 1
        return exceeds(sample, level(self.risk, candidate.tests), self._floor(score))

    def _floor(self, score: Score) -> float:
        """The largest spread of any candidate's values; what does little spreads little."""
        about = self.mark if score == "bypass" else None
        nowhere: dict[Score, float] = dict.fromkeys(SCORES, 0.0)
        for c in self.candidates:
            known = len(c.values[score])
            if known >= FEWEST and c.spreads.get(score, (0, None, 0.0))[:2] != (known, about):
                spread = self._sample(c, score, nowhere).spread
                c.spreads[score] = known, about, spread
        return max((c.spreads[score][2] for c in self.candidates if score in c.spreads), default=0)

    def _misses(self, score: Score, bound: float, limits: dict[Score, float]) -> bool:
        """Whether a mean is on the wrong side: induce must reach its limit, the others must not
        exceed theirs.
        """
        return bound < limits[score] - SLACK if score == "induce" else bound > limits[score] + SLACK

    def _partly(self, score: Score, layer: int) -> PartialScore:
        first = max(FEWEST if self.risk else 1, int(PARTLY * self.n[score]))
        return PartialScore(score, 0, min(first, self.n[score]), layer)

    def _rest(self, candidate: Candidate, score: Score, stop: int | None = None) -> PartialScore:
        """The values that a candidate lacks, of the prompts before ``stop`` (``None``: of all)."""
        layer = candidate.direction.layer if score == "induce" else 0
        end = self.n[score] if stop is None else stop
        return PartialScore(score, len(candidate.values[score]), end, layer)

    def _batches(
        self, wanted: Sequence[tuple[Candidate, PartialScore]], most: int
    ) -> list[EvaluationBatch]:
        """The first ``most`` batches: candidates with the same step go side by side, as many as fit
        into a pass.
        """
        self.scorer.plan_alike()
        by_step: dict[PartialScore, list[Candidate]] = {}
        for candidate, step in wanted:
            by_step.setdefault(step, []).append(candidate)
        batches = []
        for step, group in by_step.items():
            room = self.scorer.room(step.score, step.start, step.stop)
            for start in range(0, len(group), room):
                batches.append(EvaluationBatch(step, tuple(group[start : start + room])))
            if len(batches) >= most:
                break
        return batches[:most]

    def _take(self, batches: Sequence[EvaluationBatch]) -> None:
        """Have the batches taken, by whichever process is free, and note what they saw."""

        def values(batch: EvaluationBatch) -> list[list[float]]:
            step, directions = batch.part, [c.direction for c in batch.candidates]
            found: list[list[float]] = self.scorer.values(
                step.score, step.start, step.stop, directions
            ).tolist()
            return found

        for batch, found in zip(batches, parallel.share(batches, values), strict=True):
            for candidate, new in zip(batch.candidates, found, strict=True):
                candidate.values[batch.part.score] += new

    def _certain(self, candidate: Candidate, rule: Rule, limits: dict[Score, float]) -> str | None:
        """Why the rule must reject a candidate, whatever its unknown values are; ``None`` while it
        need not.
        """
        if any(math.isnan(value) for known in candidate.values.values() for value in known):
            return "nan"
        if reason := rejected(self.score_of(candidate), rule, self.n_layers):
            return reason
        for score in SCORES:
            known, n = candidate.values[score], self.n[score]
            if known and self._misses(
                score, (sum(known) + (n - len(known)) * self.saving[score]) / n, limits
            ):
                return score
        if self.risk and all(c.values["induce"] for c in self.candidates if c.out is None):
            return next((s for s in SCORES if self._likely(candidate, s, limits)), None)
        return None
