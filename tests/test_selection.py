"""The fast selection against the plain triple loop: the same candidate, the same value of every
score it computes.
"""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import plain
import pytest
import tiny_models
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from refusal import (
    Candidates,
    CandidateScore,
    ChatModel,
    Direction,
    DirectionError,
    NoCandidateError,
    NonFiniteError,
    Prompt,
    PromptPair,
    RefusalTokens,
    Rule,
    Selection,
    choose,
    kl_divergence,
    select,
)
from refusal.directions.refusal_metric import METRIC_BOUND, kl_floor
from refusal.directions.selection.rule import explain, rejected
from refusal.directions.selection.score import Scorer
from refusal.directions.selection.select import HowToSearch

TOKENS = RefusalTokens((40, 41, 42), ("a", "b", "c"), source="test")
WORDS = st.text(st.characters(codec="ascii", exclude_categories=["C"]), min_size=1, max_size=30)


def pair_of(harmful: Sequence[str], harmless: Sequence[str]) -> PromptPair:
    return PromptPair(
        tuple(Prompt(f"a{i}", text, "harmful") for i, text in enumerate(harmful)),
        tuple(Prompt(f"b{i}", text, "harmless") for i, text in enumerate(harmless)),
    )


def random_candidates(model: ChatModel, positions: int, seed: int, size: float = 1.0) -> Candidates:
    shape = (positions, model.sites.n_layers, model.sites.d_model)
    vectors = size * torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    return Candidates(vectors, TOKENS, "tiny")


def plain_scores(
    model: ChatModel, candidates: Candidates, pair: PromptPair
) -> list[CandidateScore]:
    """Every candidate, every prompt alone, every score (DESIGN: the mathematics)."""
    assert candidates.tokens is not None
    return plain.scores(
        model.hf,
        model.sites.blocks,
        model.sites.writers,
        model.tokenize([p.text for p in pair.harmful]),
        model.tokenize([p.text for p in pair.harmless]),
        [
            candidates.at(i, layer)
            for i in range(-candidates.n_positions, 0)
            for layer in range(candidates.n_layers)
        ],
        candidates.tokens.ids,
    )


def assert_same(
    found: Selection, oracle: list[CandidateScore], rule: Rule, n_layers: int, atol: float = 1e-3
) -> None:
    by_place = {(s.position, s.layer): s for s in oracle}
    for score in found.scores:
        other = by_place[score.position, score.layer]
        for name in ("bypass", "induce", "kl"):
            value, expected = getattr(score, name), getattr(other, name)
            if value is not None:
                assert value == pytest.approx(expected, abs=atol, nan_ok=True), (score, other)
    best = choose(oracle, n_layers, **vars(rule))
    assert_rightly_rejected(found, by_place, best, rule, n_layers)
    if best is None:
        assert not found.qualified
    else:
        assert found.qualified
        assert (found.score.position, found.score.layer) == (best.position, best.layer)
        assert (found.direction.position, found.direction.layer) == (best.position, best.layer)


def assert_rightly_rejected(
    found: Selection,
    oracle: dict[tuple[int, int], CandidateScore],
    best: CandidateScore | None,
    rule: Rule,
    n_layers: int,
) -> None:
    """Whatever a candidate was dropped for is true of its scores over all prompts."""
    for score in found.scores:
        other = oracle[score.position, score.layer]
        true = {
            "layer": other.layer >= rule.eligible_layers(n_layers),
            "induce": other.induce is not None and other.induce < rule.induce_threshold,
            "kl": other.kl is not None and other.kl > rule.kl_threshold,
            "nan": any(
                value is not None and math.isnan(value)
                for value in (other.bypass, other.induce, other.kl)
            ),
            "bypass": best is not None
            and other.bypass is not None
            and other.bypass > (best.bypass or 0.0),
        }
        assert (
            score.rejected_because is None or true[score.rejected_because] or not found.qualified
        ), (score, other)


def between(values: list[float], share: float) -> float:
    """Halfway between two neighbours of the sorted values."""
    values = sorted(values)
    at = int(share * len(values))
    return (values[at] + values[at + 1]) / 2


@pytest.fixture(scope="module")
def oracles() -> dict[str, list[CandidateScore]]:
    """The plain scores of each family, which do not depend on how the fast ones are asked for."""
    return {}


@pytest.mark.parametrize(
    "family",
    ["llama", "qwen3", "gemma2", "gemma3_text", "phi", "olmo2", "mistral-sliding", "mamba"],
)
@pytest.mark.parametrize("full_map", [False, True])
def test_fast_equals_plain(
    family: str, full_map: bool, pair: PromptPair, oracles: dict[str, list[CandidateScore]]
) -> None:
    model = tiny_models.chat_model(family)
    candidates = random_candidates(model, 3, seed=1)
    if family not in oracles:
        oracles[family] = plain_scores(model, candidates, pair)
    oracle = oracles[family]
    # Thresholds between scores, so that each criterion rejects some and none hangs on rounding.
    rule = Rule(
        induce_threshold=between([s.induce or 0.0 for s in oracle], 1 / 3),
        kl_threshold=between([s.kl or 0.0 for s in oracle], 1 / 2),
    )
    found = select(
        model,
        candidates,
        pair,
        filtered=False,
        rule=rule,
        how=HowToSearch(full_map=full_map, resamples=0),
    )
    assert_same(found, oracle, rule, model.sites.n_layers)
    assert found.qualified
    if full_map:
        assert all(None not in (s.bypass, s.induce, s.kl) for s in found.scores)
    else:
        assert found.rejected["layer"] == 3
        assert any(s.bypass is None for s in found.scores if s.rejected_because != "layer")


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    family=st.sampled_from(["llama", "gemma", "qwen2"]),
    template=st.sampled_from(sorted(tiny_models.TEMPLATES)),
    harmful=st.lists(WORDS, min_size=1, max_size=6),
    harmless=st.lists(WORDS, min_size=1, max_size=9),
    seed=st.integers(0, 99),
    size=st.sampled_from([0.0, 0.1, 1.0, 5.0]),
    induce=st.floats(-12, 0),
    kl=st.floats(0.001, 3),
    budget=st.sampled_from([40, 300, 5000]),
)
def test_fast_equals_plain_for_random_prompts_and_thresholds(
    family: str, template: str, harmful: list[str], harmless: list[str], seed: int, size: float, induce: float,
    kl: float, budget: int,
) -> None:  # fmt: skip
    model = tiny_models.chat_model(family, template)
    model.token_budget.value = budget
    pair = pair_of(harmful, harmless)
    candidates = random_candidates(model, 2, seed, size)
    oracle = plain_scores(model, candidates, pair)
    rule = Rule(induce, kl)
    try:
        found = select(
            model, candidates, pair, filtered=False, rule=rule, how=HowToSearch(resamples=20)
        )
    except NoCandidateError:
        inside = [
            s
            for s in oracle
            if rejected(s, rule, 5) in (None, "induce") and s.kl is not None and s.kl <= kl
        ]
        assert not inside
        return
    assert_same(found, oracle, rule, model.sites.n_layers)


def test_a_tie_goes_to_the_first_as_in_the_plain_loop(
    model: ChatModel, pair: PromptPair, monkeypatch: pytest.MonkeyPatch
) -> None:
    candidates = random_candidates(model, 3, seed=1)
    candidates.vectors[:] = candidates.vectors[
        1, 1
    ].clone()  # all alike: bypass and KL tie everywhere
    exact = Scorer.values

    def rounded(self: Scorer, *args: Any) -> torch.Tensor:
        """Tied to the last bit, which rows at different places of a batch are not on every
        processor.
        """
        return exact(self, *args).round(decimals=3)

    monkeypatch.setattr(Scorer, "values", rounded)
    rule = Rule(-math.inf, math.inf)
    oracle = plain_scores(model, candidates, pair)
    found = select(model, candidates, pair, filtered=False, rule=rule, how=HowToSearch(resamples=0))
    assert_same(found, oracle, rule, model.sites.n_layers)


def test_nan_candidates_are_rejected_and_the_rest_is_chosen_from(
    model: ChatModel, pair: PromptPair
) -> None:
    candidates = random_candidates(model, 2, seed=3)
    candidates.vectors[0, :3] = float("nan")
    rule = Rule(-math.inf, math.inf)
    found = select(
        model, candidates, pair, filtered=False, rule=rule, how=HowToSearch(resamples=10)
    )
    assert found.rejected["nan"] == 3
    assert_same(found, plain_scores(model, candidates, pair), rule, model.sites.n_layers)
    candidates.vectors[:] = float("nan")
    with pytest.raises(NonFiniteError, match="--dtype float32"):
        select(model, candidates, pair, filtered=False)


def test_when_none_qualifies_the_closest_stands_in_and_says_so(
    model: ChatModel, pair: PromptPair, caplog: pytest.LogCaptureFixture
) -> None:
    candidates = random_candidates(model, 2, seed=5)
    oracle = plain_scores(model, candidates, pair)
    rule = Rule(induce_threshold=18.0, kl_threshold=sorted(s.kl or 0.0 for s in oracle)[5])
    found = select(
        model, candidates, pair, filtered=False, rule=rule, how=HowToSearch(resamples=10)
    )
    assert not found.qualified
    assert not found.direction.qualified
    assert found.score.rejected_because == "induce"
    best = choose(
        oracle, model.sites.n_layers, induce_threshold=-math.inf, kl_threshold=rule.kl_threshold
    )
    assert best is not None
    assert (found.score.position, found.score.layer) == (best.position, best.layer)
    assert "No candidate qualifies; rejected by induce" in caplog.text
    assert "misses by" in caplog.text
    with pytest.raises(NoCandidateError, match=r"rejected by .*Nearest: .*misses by .*--strict"):
        select(model, candidates, pair, filtered=False, rule=rule, how=HowToSearch(strict=True))


def test_early_exit_saves_tokens(model: ChatModel, pair: PromptPair) -> None:
    candidates = random_candidates(model, 3, seed=1)
    full = select(
        model,
        candidates,
        pair,
        filtered=False,
        rule=Rule(-math.inf, math.inf),
        how=HowToSearch(full_map=True, resamples=0),
    )
    spent = model.forward_tokens
    rule = Rule(
        between([s.induce or 0.0 for s in full.scores], 1 / 2),
        between([s.kl or 0.0 for s in full.scores], 0.5),
    )
    found = select(model, candidates, pair, filtered=False, rule=rule, how=HowToSearch(resamples=0))
    assert found.qualified
    assert model.forward_tokens - spent < 0.7 * spent


def test_out_of_memory_while_scoring_halves_the_batch_and_changes_nothing(
    model: ChatModel,
    pair: PromptPair,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    candidates = random_candidates(model, 2, seed=1)
    rule = Rule(-math.inf, math.inf)
    expected = select(
        model,
        candidates,
        pair,
        filtered=False,
        rule=rule,
        how=HowToSearch(full_map=True, resamples=0),
    )
    forward = model.hf.forward

    def tight(**arguments: torch.Tensor) -> object:
        if arguments["input_ids"].numel() > 150:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
        return forward(**arguments)

    monkeypatch.setattr(model.hf, "forward", tight)
    found = select(
        model,
        candidates,
        pair,
        filtered=False,
        rule=rule,
        how=HowToSearch(full_map=True, resamples=0),
    )
    assert "Out of memory" in caplog.text
    model.token_budget.value = 10_000  # the unmodified run does not fit either
    again = select(
        model,
        candidates,
        pair,
        filtered=False,
        rule=rule,
        how=HowToSearch(full_map=True, resamples=0),
    )
    assert again.score.bypass == pytest.approx(expected.score.bypass, abs=1e-4)
    for a, b in zip(found.scores, expected.scores, strict=True):
        assert (a.bypass, a.induce, a.kl) == pytest.approx((b.bypass, b.induce, b.kl), abs=1e-4)


def test_bounds_hold() -> None:
    generator = torch.Generator().manual_seed(0)
    for scale in (0.1, 1, 10, 100):
        a, b = (scale * torch.randn(64, 50, generator=generator) for _ in range(2))
        assert kl_divergence(a, b).min() >= kl_floor(50)
    near = torch.zeros(1, 50)  # the floor is reached where q + e is proportional to a sparse p
    assert kl_divergence(near, near + 0) == pytest.approx(0)
    assert math.isclose(METRIC_BOUND, 18.420680753952366, rel_tol=1e-9)


def test_stability_is_the_bootstrap_done_plainly(model: ChatModel, pair: PromptPair) -> None:
    candidates = random_candidates(model, 3, seed=1)
    rule = Rule(-math.inf, math.inf)
    found = select(
        model,
        candidates,
        pair,
        filtered=False,
        rule=rule,
        how=HowToSearch(full_map=True, resamples=300),
    )
    assert found.stability is not None
    shares = {(w.position, w.layer): w.share for w in found.stability.winners}
    assert found.stability.none_qualifies == 0
    assert sum(shares.values()) <= 1 + 1e-9
    # Plain: per-prompt bypass of every candidate, prompts drawn with replacement.
    rows = model.tokenize([p.text for p in pair.harmful])
    places = [(position, layer) for position in range(-3, 0) for layer in range(4)]
    table = torch.tensor(
        [
            plain.bypass_values(
                model.hf,
                model.sites.blocks,
                model.sites.writers,
                rows,
                candidates.at(*c),
                TOKENS.ids,
            )
            for c in places
        ]
    )
    generator = torch.Generator().manual_seed(1)
    wins = torch.zeros(len(places))
    for _ in range(2000):
        wins[
            table[:, torch.randint(0, len(rows), (len(rows),), generator=generator)]
            .mean(1)
            .argmin()
        ] += 1 / 2000
    for place, share in zip(places, wins.tolist(), strict=True):
        assert shares.get(place, 0.0) == pytest.approx(share, abs=0.12)
    for i, row in enumerate(found.stability.cosines):
        assert row[i] == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize(
    ("file", "n_layers", "expected"),
    [("gemma-2b-it.json", 18, (-2, 10)), ("qwen-1_8b-chat.json", 24, (-2, 15))],
)
def test_published_scores_give_the_published_choice(
    data: Path, file: str, n_layers: int, expected: tuple[int, int]
) -> None:
    rows = json.loads((data / "published_scores" / file).read_text())
    scores = [
        CandidateScore(
            r["position"], r["layer"], r["refusal_score"], r["steering_score"], r["kl_div_score"]
        )
        for r in rows
    ]
    best = choose(scores, n_layers)
    assert best is not None
    assert (best.position, best.layer) == expected


def test_the_rule_floors_the_layer_limit_and_takes_thresholds_as_met() -> None:
    assert Rule().eligible_layers(18) == 14
    assert Rule().eligible_layers(28) == 22
    met = CandidateScore(-1, 13, bypass=-1.0, induce=0.0, kl=0.1)
    assert choose([met], 18) == met
    assert choose([CandidateScore(-1, 14, -1.0, 0.0, 0.1)], 18) is None
    assert choose([CandidateScore(-1, 13, -1.0, -1e-9, 0.1)], 18) is None
    assert choose([CandidateScore(-1, 13, -1.0, 0.0, 0.1 + 1e-9)], 18) is None
    assert choose([CandidateScore(-1, 13, float("nan"), 0.0, 0.1)], 18) is None
    assert choose([], 18) is None
    assert "none was scored" in explain([])


def test_a_candidate_that_does_not_exist_is_named(model: ChatModel) -> None:
    with pytest.raises(DirectionError, match="no candidate at position -4, layer 0"):
        random_candidates(model, 3, 0).at(-4, 0)
    assert isinstance(random_candidates(model, 3, 0).at(-1, 0), Direction)
