"""Score only what decides: a candidate is dropped as soon as the rule must reject it, whatever is still to come.

Induce comes first (its passes are the shortest), then KL, then bypass, each in parts of the prompts. After a part the
mean over all prompts lies between exact bounds (the metric's range, a KL term's floor); a candidate whose bounds are on
the wrong side of a threshold is out, and so is a bypass that cannot get below the best one any more.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import get_args

import torch
from jaxtyping import Float
from torch import Tensor

from refusal.metrics import METRIC_BOUND, kl_floor
from refusal.progress import Advance, task
from refusal.records import CandidateScore, Direction
from refusal.selection.rule import Rule
from refusal.selection.score import Score, Scorer

SCORES: tuple[Score, ...] = get_args(Score)
SLACK = 1e-9  # rounding of a mean: no candidate exactly at a threshold is dropped by its bound


@dataclass
class Contender:
    """A candidate and what is known of it: per score the values of its first prompts, and why it is out."""

    direction: Direction
    values: dict[Score, Float[Tensor, "prompt"]] = field(default_factory=dict)
    parts: dict[Score, int] = field(default_factory=dict)
    out: str | None = None

    def mean(self, score: Score, n: int) -> float | None:
        """The score over all ``n`` prompts, once all are known."""
        known = self.values.get(score)
        return float(known.mean()) if known is not None and len(known) == n else None

    def bound(self, score: Score, n: int, value: float) -> float:
        """The score if every value to come is ``value``: with the least or the greatest possible one, a bound."""
        known = self.values.get(score, torch.zeros(0))
        return (float(known.sum()) + (n - len(known)) * value) / n


class Search:
    """The scoring of all candidates of one selection."""

    def __init__(self, scorer: Scorer, contenders: list[Contender], n_layers: int) -> None:
        self.scorer = scorer
        self.contenders = contenders
        self.n_layers = n_layers
        self.n = {score: scorer.n_prompts(score) for score in SCORES}
        self.kl_floor = kl_floor(scorer.base.shape[-1])

    def run(self, rule: Rule, everything: bool = False) -> None:
        """Score who is still in, until the rule's choice among them is certain.

        ``everything``: drop nobody on the way, so that every candidate has all three scores.
        """
        for score in SCORES:
            self._score(score, [c for c in self.contenders if c.out is None], None if everything else rule)
        self.judge(rule)

    def fill(self, contenders: Sequence[Contender], score: Score) -> None:
        """Give all of ``contenders`` a score, also those that are out."""
        self._score(score, contenders, None)

    def judge(self, rule: Rule) -> None:
        """Say for every candidate with a complete score which criterion rejects it."""
        for contender in self.contenders:
            reason = rule.reject(self.score_of(contender), self.n_layers)
            contender.out = reason or contender.out

    def scores(self) -> list[CandidateScore]:
        """What is known of every candidate."""
        return [self.score_of(contender) for contender in self.contenders]

    def score_of(self, contender: Contender) -> CandidateScore:
        """What is known of a candidate, as a record; a mean that is not complete is ``None``."""
        induce, kl, bypass = (contender.mean(score, self.n[score]) for score in SCORES)
        where = contender.direction
        return CandidateScore(where.position, where.layer, bypass, induce, kl, contender.out)

    def _score(self, score: Score, contenders: Sequence[Contender], rule: Rule | None) -> None:
        """Score ``contenders`` part by part; with a ``rule``, drop who cannot be chosen any more."""
        missing = sum(self.n[score] - len(c.values.get(score, ())) for c in contenders)
        if not missing:
            return
        with task(f"select: {score}", total=missing, unit="prompts") as advance:
            for part in range(len(self.scorer.parts[score])):
                todo = [c for c in contenders if c.parts.get(score, 0) <= part and (rule is None or c.out is None)]
                self._score_part(score, part, todo, rule, advance)

    def _score_part(self, score: Score, part: int, todo: list[Contender], rule: Rule | None, advance: Advance) -> None:
        if score == "bypass":  # the promising first: they set the mark that the others must get below
            todo = sorted(todo, key=lambda c: c.bound(score, self.n[score], -METRIC_BOUND))

        def wanted(i: int) -> bool:
            if rule is not None and todo[i].out is None:
                todo[i].out = self._certain(todo[i], score, rule)
            return rule is None or todo[i].out is None

        for i, values in self.scorer.values(score, part, [c.direction for c in todo], wanted):
            contender = todo[i]
            known = contender.values.get(score, torch.zeros(0, dtype=torch.float64))
            contender.values[score] = torch.cat([known, values])
            contender.parts[score] = part + 1
            advance(len(values))
            if rule is not None:
                contender.out = self._certain(contender, score, rule)

    def _certain(self, contender: Contender, score: Score, rule: Rule) -> str | None:
        """Why the rule must reject a candidate, whatever its unknown values are; ``None`` while it need not."""
        known = contender.values.get(score)
        if known is None:
            return None
        n = self.n[score]
        if known.isnan().any():
            return "nan"
        if len(known) == n and (reason := rule.reject(self.score_of(contender), self.n_layers)):
            return reason
        if score == "induce" and contender.bound(score, n, METRIC_BOUND) < rule.induce_threshold - SLACK:
            return "induce"
        if score == "kl" and contender.bound(score, n, self.kl_floor) > rule.kl_threshold + SLACK:
            return "kl"
        if score == "bypass" and contender.bound(score, n, -METRIC_BOUND) > self._best_bypass() + SLACK:
            return "bypass"
        return None

    def _best_bypass(self) -> float:
        """The lowest complete bypass of a candidate that is still in."""
        means = [c.mean("bypass", self.n["bypass"]) for c in self.contenders if c.out is None]
        return min((mean for mean in means if mean is not None), default=math.inf)
