"""Tests that drop a candidate: against scipy's t-test, by their error rate where the truth is known,
and on selections whose every score is known.
"""

import json
import math
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from scipy.stats import t as student
from scipy.stats import ttest_1samp

from refusal import CandidateScore, Direction, Rule, choose
from refusal.directions.refusal_metric import METRIC_BOUND
from refusal.directions.selection.score import Score, Scorer
from refusal.directions.selection.search import SCORES, Candidate, Search
from refusal.directions.selection.sequential import FEWEST, Sample, enough, exceeds, level

N = 32
Values = dict[tuple[int, int, Score], list[float]]


class Tabled:
    """In place of a model: scores that are in a table."""

    def __init__(self, values: Values, unmodified: dict[Score, list[float]], n_layers: int) -> None:
        self.table = values
        self.unmodified = unmodified
        self.n_layers = n_layers
        self.base = torch.zeros(1, 1000)
        self.taken = 0

    def n_prompts(self, score: Score) -> int:
        return len(self.unmodified[score])

    def cost(self, score: Score, start: int, stop: int, layer: int) -> float:
        return (stop - start) * (1.0 - layer / self.n_layers if score == "induce" else 1.0)

    def room(self, score: Score, start: int, stop: int) -> int:
        return 4

    def plan_alike(self) -> None:
        pass

    def values(
        self, score: Score, start: int, stop: int, directions: Sequence[Direction]
    ) -> torch.Tensor:
        self.taken += (stop - start) * len(directions)
        rows = [self.table[d.position, d.layer, score][start:stop] for d in directions]
        return torch.tensor(rows, dtype=torch.float64)


def means(values: Values) -> list[CandidateScore]:
    places = sorted({(position, layer) for position, layer, _ in values})
    return [
        CandidateScore(
            position,
            layer,
            float(np.mean(values[position, layer, "bypass"])),
            float(np.mean(values[position, layer, "induce"])),
            float(np.mean(values[position, layer, "kl"])),
            None,
        )
        for position, layer in places
    ]


def search(values: Values, unmodified: dict[Score, list[float]], rule: Rule, risk: float) -> Search:
    n_layers = 1 + max(layer for _, layer, _ in values)
    candidates = [
        Candidate(Direction(torch.ones(4) / 2, 1.0, s.position, s.layer)) for s in means(values)
    ]
    scorer = Tabled(values, unmodified, n_layers)
    found = Search(cast(Scorer, scorer), candidates, n_layers, risk)
    found.run(rule)
    return found


def spread_around(
    scores: Sequence[dict[str, Any]], rng: np.random.Generator
) -> tuple[Values, dict[Score, list[float]]]:
    """Values per prompt with the published means and the noise of a real model, where the size of a
    candidate's effect differs from prompt to prompt by a quarter and is skewed.
    """
    names: dict[Score, str] = {
        "bypass": "refusal_score",
        "induce": "steering_score",
        "kl": "kl_div_score",
    }
    none = next(s for s in scores if s["kl_div_score"] == 0)
    unmodified = {
        score: none[name] + rng.normal(0, 1.4, N) if score != "kl" else np.zeros(N)
        for score, name in names.items()
    }
    values: Values = {}
    for s in scores:
        for score, name in names.items():
            effect = s[name] - float(unmodified[score].mean())
            each = rng.gamma(12.0, 1 / 12, N)
            found = unmodified[score] + effect * each / each.mean()
            if score != "kl":
                found = np.clip(found + rng.normal(0, 0.7, N), -METRIC_BOUND, METRIC_BOUND)
            values[s["position"], s["layer"], score] = found.tolist()
    return values, {score: list(map(float, of)) for score, of in unmodified.items()}


@pytest.mark.parametrize("k", [4, 9, 20, 31])
def test_the_test_is_a_t_test_with_the_finite_populations_correction(k: int) -> None:
    rng = np.random.default_rng(k)
    for limit in (-0.5, 0.0, 0.3):
        expected = rng.normal(0, 2, N)
        known = expected[:k] + rng.normal(0.3, 1, k)
        sample = Sample(known.tolist(), expected.tolist(), limit)
        differences = known - expected[:k] + expected.mean()
        uncorrected = ttest_1samp(differences, limit).statistic
        p = student.sf(uncorrected / math.sqrt(1 - k / N), k - 1)
        for risk in (0.4, 0.1, 0.01, 1e-3, min(p * 0.99, 0.4), min(p * 1.01, 0.4)):
            assert exceeds(sample, risk) == (p < risk)


def test_a_sample_of_the_whole_or_of_too_few_is_not_tested() -> None:
    for k, testable in ((FEWEST - 1, False), (FEWEST, True), (N - 1, True), (N, False)):
        assert Sample([1.0] * k, [0.0] * N, 0.0).testable == testable


def test_enough_is_where_the_same_spread_would_tell() -> None:
    rng = np.random.default_rng(1)
    for mean in (-1.0, 0.2, 1.0, 5.0):
        known = (mean + rng.normal(0, 1, 6)).tolist()
        sample = Sample(known, [0.0] * N, 0.0)
        stop = enough(sample, 1e-4)
        if np.mean(known) <= 0:
            assert stop is None
            continue
        assert stop is not None
        m, sd = float(np.mean(known)), float(np.std(known, ddof=1))
        tells = [
            m > student.isf(1e-4, j - 1) * sd * math.sqrt((1 - j / N) / j) for j in range(7, N)
        ]
        assert stop == next((j for j, tell in zip(range(7, N), tells, strict=True) if tell), N)
    assert enough(Sample([1.0], [0.0] * N, 0.0), 1e-4) == FEWEST


def test_the_levels_add_up_to_the_risk() -> None:
    assert sum(level(0.1, j) for j in range(1, 100_000)) == pytest.approx(0.1, rel=1e-4)


@pytest.mark.parametrize(("skewed", "factor"), [(False, 1.0), (True, 1.0)])
def test_a_mean_at_its_limit_is_dropped_as_rarely_as_stated(skewed: bool, factor: float) -> None:
    """Looked at after 4, 6, 8 … of 32 values whose mean is the limit itself, 4,000 times; skewed as
    effects are: a long tail on the far side of the limit.
    """
    rng, risk, dropped, times = np.random.default_rng(2), 0.05, 0, 4000
    for _ in range(times):
        values = rng.gamma(2.0, 1.0, N) if skewed else rng.normal(0, 1, N)
        values = (values - values.mean()).tolist()
        looks = [Sample(values[:k], [0.0] * N, 1e-9) for k in range(FEWEST, N, 2)]
        dropped += any(exceeds(look, level(risk, j)) for j, look in enumerate(looks, 1))
    assert dropped / times <= factor * risk + 3 * math.sqrt(risk / times)


@pytest.mark.parametrize(
    "name", ["gemma-2b-it", pytest.param("qwen-1_8b-chat", marks=pytest.mark.slow)]
)
def test_the_published_tables_choice_survives_for_every_seed(name: str, data: Path) -> None:
    """Prompts made up around the published scores, 20 seeds: the choice with the risk is the exact
    one, for less work.
    """
    scores = json.loads((data / "published_scores" / f"{name}.json").read_text("utf-8"))
    risky = exact = 0
    for seed in range(20):
        values, unmodified = spread_around(scores, np.random.default_rng(seed))
        n_layers = 1 + max(layer for _, layer, _ in values)
        true = choose(means(values), n_layers)
        with_risk = search(values, unmodified, Rule(), 1e-4)
        without = search(values, unmodified, Rule(), 0.0)
        for found in (with_risk, without):
            best = choose(found.scores(), n_layers)
            assert true is not None
            assert best is not None
            assert (best.position, best.layer) == (true.position, true.layer)
            assert best.bypass == pytest.approx(true.bypass)
        risky += cast(Tabled, with_risk.scorer).taken
        exact += cast(Tabled, without.scorer).taken
    assert risky < 0.7 * exact


@pytest.mark.slow
def test_a_large_risk_misses_the_choice_no_more_often_than_stated() -> None:
    """Twelve candidates close to one another, so that mistakes are likely; 400 times at 20 %."""
    missed, times, risk = 0, 400, 0.2
    for seed in range(times):
        rng = np.random.default_rng(seed)
        unmodified: dict[Score, list[float]] = {
            "induce": rng.normal(-3, 1, N).tolist(),
            "kl": [0.0] * N,
            "bypass": rng.normal(3, 1, N).tolist(),
        }
        values: Values = {}
        for layer in range(12):
            values[-1, layer, "induce"] = rng.normal(rng.normal(0.3, 0.4), 1.0, N).tolist()
            values[-1, layer, "kl"] = (rng.gamma(1.0, 0.08, N)).tolist()
            values[-1, layer, "bypass"] = rng.normal(rng.normal(-2, 0.4), 1.0, N).tolist()
        rule = Rule(prune_layers=0.0)
        true = choose(means(values), 12, **vars(rule))
        found = search(values, unmodified, rule, risk)
        best = choose(found.scores(), 12, **vars(rule))
        missed += best != true and (best is None or true is None or best.layer != true.layer)
    assert 0 < missed <= risk * times


def test_what_is_chosen_and_what_it_beat_is_complete_or_has_a_reason() -> None:
    rng = random.Random(0)
    noise = np.random.default_rng(0)
    unmodified: dict[Score, list[float]] = {score: [0.0] * N for score in SCORES}
    values: Values = {}
    for layer in range(10):
        values[-1, layer, "induce"] = noise.normal(rng.uniform(-4, 4), 1, N).tolist()
        values[-1, layer, "kl"] = noise.gamma(1.0, rng.uniform(0.005, 0.08), N).tolist()
        values[-1, layer, "bypass"] = noise.normal(rng.uniform(-6, 2), 1, N).tolist()
    found = search(values, unmodified, Rule(prune_layers=0.0), 1e-3)
    alive = [c for c in found.candidates if c.out is None]
    assert alive
    assert all(found.is_complete(c) for c in alive)
    dropped = [c for c in found.candidates if c.out is not None and c.tests]
    assert dropped  # by a test
    assert all(len(c.values[cast(Score, c.out)]) >= FEWEST for c in dropped)
