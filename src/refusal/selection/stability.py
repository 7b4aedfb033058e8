"""How firm the choice is: choose again on resampled validation prompts (bootstrap), from the scores per prompt.

A candidate that just misses a threshold may meet it in a resample, so near misses get the scores they lack first.
Those that miss by more than sampling explains take no part.
"""

import math

import numpy as np
import torch

from refusal.records import CandidateScore, Stability, Win
from refusal.selection.rule import Rule
from refusal.selection.score import Score
from refusal.selection.search import SCORES, Contender, Search

NEAR = 1.645  # standard errors: a candidate farther from a threshold meets it in fewer than 5 % of resamples
SHOWN = 8


def measure_stability(
    search: Search, best: CandidateScore, rule: Rule, resamples: int = 1000, seed: int = 0
) -> Stability:
    """Share of resamples that each candidate wins, and the cosines between the most frequent winners.

    The harmless prompts (induce, KL) and the harmful ones (bypass) are resampled independently. ``best`` is listed in
    any case, at its place.
    """
    _complete_near_misses(search, rule)
    ready = [c for c in search.contenders if all(len(c.values.get(s, ())) == search.n[s] for s in SCORES)]
    tables = {score: np.stack([c.values[score].numpy() for c in ready]) for score in SCORES}  # (candidate, prompt)
    random = np.random.default_rng(seed)
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
    chosen = next(i for i, c in enumerate(ready) if (c.direction.position, c.direction.layer) == _place(best))
    order = sorted(range(len(ready)), key=lambda i: (-wins[i], i != chosen))
    shown = [i for i in order if wins[i] > 0 or i == chosen][:SHOWN]
    vectors = torch.stack([ready[i].direction.vector for i in shown])
    return Stability(
        resamples=resamples,
        contenders=len(ready),
        none_qualifies=float(resamples - wins.sum()) / resamples,
        winners=tuple(
            Win(ready[i].direction.position, ready[i].direction.layer, float(wins[i]) / resamples) for i in shown
        ),
        cosines=tuple(tuple(round(float(value), 6) for value in row) for row in vectors @ vectors.T),
    )


def _place(score: CandidateScore) -> tuple[int, int]:
    return score.position, score.layer


def _complete_near_misses(search: Search, rule: Rule) -> None:
    """Give candidates that may qualify in a resample all three scores."""
    near = [c for c in search.contenders if c.out in (None, "induce", "kl") and _near(search, c, "induce", rule)]
    search.fill(near, "kl")
    near = [c for c in near if _near(search, c, "kl", rule)]
    search.fill(near, "bypass")


def _near(search: Search, contender: Contender, score: Score, rule: Rule) -> bool:
    """Whether a complete score meets its threshold or misses it by no more than sampling may explain."""
    values = contender.values.get(score, torch.zeros(0))
    if len(values) < search.n[score] or not values.isfinite().all():
        return False
    error = float(values.std(correction=0)) / math.sqrt(len(values))
    mean = float(values.mean())
    return (mean - rule.kl_threshold if score == "kl" else rule.induce_threshold - mean) <= NEAR * error
