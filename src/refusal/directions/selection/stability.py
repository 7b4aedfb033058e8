"""How firm the choice is: choose again on resampled validation prompts (bootstrap), from the scores
per prompt.

A candidate that just misses a threshold may meet it in a resample, and one that qualifies may not,
so near misses get the scores they lack first. Those that miss by more than sampling explains take
no part.
"""

import math

import numpy as np
import torch
from jaxtyping import Float

from refusal.config.rule import Rule
from refusal.core.records import CandidateScore, Stability, Win
from refusal.directions.selection.score import Score
from refusal.directions.selection.search import SCORES, Candidate, Search

# standard errors: a candidate farther from a threshold meets it in fewer than 5 % of resamples
NEAR = 1.645
SHOWN = 8


def measure_stability(
    search: Search, best: CandidateScore, rule: Rule, resamples: int = 1000
) -> Stability:
    """Share of resamples that each candidate wins, and the cosines between the most frequent
    winners.

    The harmless prompts (induce, KL) and the harmful ones (bypass) are resampled independently.
    ``best`` is listed in any case, at its place.
    """
    _complete_near_misses(search, rule)
    ready = [c for c in search.candidates if search.is_complete(c)]
    tables = {
        score: np.array([c.values[score] for c in ready]) for score in SCORES
    }  # (candidate, prompt)
    random = np.random.default_rng(0)
    wins = np.zeros(len(ready), dtype=int)
    eligible = np.array([c.direction.layer < rule.eligible_layers(search.n_layers) for c in ready])
    for _ in range(resamples):
        harmless = random.integers(0, search.n["induce"], search.n["induce"])
        harmful = random.integers(0, search.n["bypass"], search.n["bypass"])
        qualifies = (
            eligible
            & (tables["induce"][:, harmless].mean(1) >= rule.induce_threshold)
            & (tables["kl"][:, harmless].mean(1) <= rule.kl_threshold)
        )
        if qualifies.any():
            wins[np.where(qualifies, tables["bypass"][:, harmful].mean(1), np.inf).argmin()] += 1
    chosen = next(
        i for i, c in enumerate(ready) if (c.direction.position, c.direction.layer) == _place(best)
    )
    order = sorted(range(len(ready)), key=lambda i: (-wins[i], i != chosen))
    shown = [i for i in order if wins[i] > 0 or i == chosen][:SHOWN]
    winners = []
    for i in shown:
        where = ready[i].direction
        winners.append(Win(where.position, where.layer, float(wins[i]) / resamples))
    vectors = torch.stack([ready[i].direction.vector for i in shown])
    return Stability(
        resamples=resamples,
        contenders=len(ready),
        none_qualifies=float(resamples - wins.sum()) / resamples,
        winners=tuple(winners),
        cosines=tuple(
            tuple(round(float(value), 6) for value in row) for row in vectors @ vectors.T
        ),
    )


def _place(score: CandidateScore) -> tuple[int, int]:
    return score.position, score.layer


def _complete_near_misses(search: Search, rule: Rule) -> None:
    """Give candidates that may win a resample all three scores, the lowest bypass first.

    Nobody wins whose bypass is farther than sampling explains above that of a candidate that
    qualifies in any case.
    """
    while True:
        mark = _sure(search, rule)
        incomplete = [c for c in search.candidates if not search.is_complete(c)]
        near = [c for c in incomplete if _may_win(search, c, mark, rule)]
        if not near:
            return
        candidate = min(
            near, key=lambda c: c.estimate("bypass") if c.values["bypass"] else -math.inf
        )
        missing: list[Score] = [
            score for score in ("bypass", "kl", "induce") if not search.has(candidate, score)
        ]
        search.fill([candidate], missing[0])


def _may_win(search: Search, candidate: Candidate, mark: Candidate | None, rule: Rule) -> bool:
    """Whether no score known so far misses by more than sampling may explain."""
    if candidate.direction.layer >= rule.eligible_layers(search.n_layers) or candidate.out == "nan":
        return False
    bypass = np.array(candidate.values["bypass"])
    return (
        _gap(rule.induce_threshold - np.array(candidate.values["induce"])) <= NEAR
        and _gap(np.array(candidate.values["kl"]) - rule.kl_threshold) <= NEAR
        and (mark is None or _gap(bypass - np.array(mark.values["bypass"])[: len(bypass)]) <= NEAR)
    )


def _qualifies(search: Search, candidate: Candidate, rule: Rule) -> bool:
    """Whether a candidate is complete and meets both thresholds by more than sampling explains."""
    eligible = candidate.direction.layer < rule.eligible_layers(search.n_layers)
    if not eligible or not search.is_complete(candidate):
        return False
    return (
        _gap(np.array(candidate.values["induce"]) - rule.induce_threshold) > NEAR
        and _gap(rule.kl_threshold - np.array(candidate.values["kl"])) > NEAR
    )


def _sure(search: Search, rule: Rule) -> Candidate | None:
    """Of the candidates that qualify by more than sampling explains, the lowest bypass."""
    sure = [c for c in search.candidates if _qualifies(search, c, rule)]
    return min(sure, key=lambda c: c.estimate("bypass"), default=None)


def _gap(values: Float[np.ndarray, "prompt"]) -> float:
    """The mean in standard errors; 0 where nothing is known."""
    if not len(values) or not np.isfinite(values).all():
        return 0.0
    mean, error = float(values.mean()), float(values.std()) / math.sqrt(len(values))
    return mean / error if error else math.copysign(math.inf, mean) if mean else 0.0
