"""COSMIC: the score against a plain loop, and a model whose best candidate is known."""

import html
import json
from pathlib import Path

import plain
import pytest
import tiny_models
import torch
from conftest import make_prompts
from saved import save_model, small_config, times, write_prompts
from torch import Tensor

from refusal import (
    Candidates,
    ChatModel,
    Direction,
    NoCandidateError,
    PromptPair,
    run,
    tokens_for,
)
from refusal.config.run_config import make_config
from refusal.directions import METHODS
from refusal.directions.cosmic import cosmic_scores, last_means

PAIR = PromptPair(make_prompts("harmful", 9), make_prompts("harmless", 7, offset=50))
PLANTED = (-2, 1)


def means(model: ChatModel, rows: list[list[int]]) -> Tensor:
    """Every prompt alone: mean block input at the last token, (layer, d_model)."""
    blocks = [model.hf.get_submodule(name) for name in model.sites.blocks]
    seen = [plain.block_inputs(model.hf, blocks, row)[:-1] for row in rows]
    return torch.stack([torch.stack([x[-1] for x in one]) for one in seen]).double().mean(0)


def cosine(a: Tensor, b: Tensor) -> float:
    return float(a @ b / (a.norm() * b.norm()))


def rows_of(model: ChatModel) -> tuple[list[list[int]], list[list[int]]]:
    harmful, harmless = ([p.text for p in some] for some in (PAIR.harmful, PAIR.harmless))
    return model.tokenize(harmful), model.tokenize(harmless)


def random_candidates(model: ChatModel, seed: int = 3) -> Candidates:
    shape = (2, model.sites.n_layers, model.sites.d_model)
    vectors = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    return Candidates(vectors, None, "tiny")


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2"])
def test_scores_are_those_of_a_plain_loop(family: str) -> None:
    model = tiny_models.chat_model(family)
    harmful, harmless = rows_of(model)
    candidates = random_candidates(model)
    places = [candidates.at(p, layer) for p in (-2, -1) for layer in range(tiny_models.LAYERS)]
    bad, good = means(model, harmful), means(model, harmless)
    low = min(range(tiny_models.LAYERS), key=lambda layer: cosine(bad[layer], good[layer]))
    blocks = model.sites.blocks
    expected = []
    for place in places:
        with plain.Ablated(model.hf, blocks, model.sites.writers, place.vector):
            ablated = means(model, harmful)
        with plain.Added(model.hf.get_submodule(blocks[place.layer]), place.vector * place.norm):
            added = means(model, harmless)
        expected.append(cosine(ablated[low], good[low]) + cosine(added[low], bad[low]))
    assert len({round(value, 3) for value in expected}) > 5
    assert cosmic_scores(model, places, harmful, harmless) == pytest.approx(expected, abs=1e-4)


def test_means_are_of_every_layer_asked_for(model: ChatModel) -> None:
    harmful, _ = rows_of(model)
    found = last_means(model, harmful, [1, 3])
    torch.testing.assert_close(found, means(model, harmful)[[1, 3]], atol=1e-5, rtol=1e-5)


def planted() -> tuple[ChatModel, Tensor]:
    """A model in which one token, ``#``, writes along one axis into all that come after it, in
    block 0 by attention; no other block does anything.
    """
    model = tiny_models.chat_model("qwen2")
    axis = torch.zeros(tiny_models.WIDTH)
    axis[0] = 1.0
    (token,) = model.tokenizer.encode("#", add_special_tokens=False)
    with torch.no_grad():
        for name, weight in model.hf.named_parameters():
            if "proj" in name:
                weight.zero_()
        embedding = model.hf.get_parameter("model.embed_tokens.weight")
        embedding[:, :9] = 0.0
        embedding[token] = 0.0
        embedding[token, 8] = 4.0  # what attention of block 0 reads, evenly over all tokens
        model.hf.get_parameter("model.layers.0.self_attn.v_proj.weight")[0, 8] = 8.0
        model.hf.get_parameter("model.layers.0.self_attn.o_proj.weight")[0, 0] = 8.0
    return model, axis


def test_the_planted_direction_is_found() -> None:
    model, axis = planted()
    marked = tuple(
        type(p)(p.id, f"### {p.text} ###", "harmful") for p in make_prompts("harmful", 9)
    )
    pair = PromptPair(marked, make_prompts("harmless", 9, offset=50))
    config = make_config(method="cosmic", n_train=9, n_val=9, kl_threshold=1000.0)
    method = METHODS["cosmic"]()
    found = method.extract(model, pair, None, config)
    assert found.tokens is None
    truth = found.at(-1, 1)
    assert float(truth.vector @ axis) == pytest.approx(1.0, abs=1e-5)
    decoys = torch.randn(found.vectors.shape, generator=torch.Generator().manual_seed(0))
    decoys *= truth.norm / decoys.norm(dim=-1, keepdim=True)
    decoys[PLANTED] = truth.vector * truth.norm
    candidates = Candidates(decoys, None, "planted")
    selection = method.select(model, candidates, pair, config)
    assert (selection.direction.position, selection.direction.layer) == PLANTED
    assert selection.score.more["cosmic"] == pytest.approx(2.0, abs=1e-3)
    others = [s.more["cosmic"] for s in selection.scores if s.more and s != selection.score]
    assert max(value for value in others if value is not None) < 1.9


def test_kl_and_late_layers_are_limits(model: ChatModel) -> None:
    candidates = random_candidates(model, seed=6)
    method = METHODS["cosmic"]()
    open_config = make_config(method="cosmic", n_val=7, kl_threshold=1000.0, full_map=True)
    everything = method.select(model, candidates, PAIR, open_config)
    eligible = [s for s in everything.scores if s.layer < 4]
    assert everything.score == max(eligible, key=lambda s: s.more["cosmic"] or -9)
    assert {s.rejected_because for s in everything.scores if s.layer == 4} == {"layer"}
    assert everything.score.bypass is None
    assert everything.score.kl is not None
    limit = min(s.kl for s in eligible if s.kl is not None and s.kl < everything.score.kl)
    strict = method.select(
        model, candidates, PAIR, make_config(method="cosmic", n_val=7, kl_threshold=limit)
    )
    inside = [s for s in eligible if s.kl is not None and s.kl <= limit * (1 + 1e-6)]
    assert (strict.score.position, strict.score.layer) in {(s.position, s.layer) for s in inside}
    assert strict.rejected["kl"] >= 1
    with pytest.raises(NoCandidateError, match=r"no candidate is within 0\."):
        method.select(
            model, candidates, PAIR, make_config(method="cosmic", n_val=7, kl_threshold=0.0)
        )


def test_the_three_scores_of_the_chosen_one_are_given_where_tokens_are(model: ChatModel) -> None:
    tokens = tokens_for(model, PAIR, ("I", "A"))
    bare = random_candidates(model)
    candidates = Candidates(bare.vectors, tokens, "tiny")
    config = make_config(method="cosmic", n_val=7, kl_threshold=1000.0)
    with_tokens = METHODS["cosmic"]().select(model, candidates, PAIR, config)
    without = METHODS["cosmic"]().select(model, bare, PAIR, config)
    assert with_tokens.direction.layer == without.direction.layer
    assert with_tokens.score.more == pytest.approx(without.score.more)
    direction: Direction = with_tokens.direction
    harmful, harmless = (
        model.tokenize([p.text for p in x[:7]]) for x in (PAIR.harmful, PAIR.harmless)
    )
    (expected,) = plain.scores(
        model.hf,
        model.sites.blocks,
        model.sites.writers,
        harmful,
        harmless,
        [direction],
        tokens.ids,
    )
    score = with_tokens.score
    assert score.bypass == pytest.approx(expected.bypass, abs=1e-3)
    assert score.induce == pytest.approx(expected.induce, abs=1e-3)
    assert score.kl == pytest.approx(expected.kl, abs=1e-3)


@pytest.mark.parametrize("tokens", [(), ("I", "A")])
def test_a_run_needs_no_refusal_tokens(tmp_path: Path, tokens: tuple[str, ...]) -> None:
    config = small_config(
        save_model(tmp_path / "model"),
        write_prompts(tmp_path),
        method="cosmic",
        refusal_tokens=tokens,
        filter=True,  # there is nothing to filter by
        layer_step=1,
        seeds=2,
        controls=1,
        n_control=2,
    )
    out = tmp_path / "run"
    result = run(config, out)
    assert (result.tokens is None) == (not tokens)
    assert result.selection is not None
    rows = json.loads((out / "scores.json").read_text("utf-8"))
    chosen = [row for row in rows if row["rejected_because"] is None and row["kl"] is not None]
    assert [row["cosmic"] for row in chosen] == [result.selection.score.more["cosmic"]]
    for key in ("position", "layer", "bypass", "induce", "kl", "rejected_because"):
        assert all(key in row for row in rows)
    assert (chosen[0]["bypass"] is None) == (not tokens)
    page = (out / "report.html").read_text("utf-8")
    assert "highest cosmic score" in page
    header = (out / "tables" / "scores.csv").read_text("utf-8").splitlines()[0]
    assert header.endswith(",cosmic")
    assert "cosmic score not the highest" in page
    shown = str(result.selection._repr_html_())
    assert "cosmic: the method's own score" in html.unescape(shown)
    conditions = {m.condition for m in result.metrics if m.name == "cosmic"}
    assert conditions == {"seed-42", "seed-43"}
    before = times(out)
    again = run(config, out)
    assert times(out) == before
    assert again.selection is not None
    assert again.selection.score == result.selection.score
