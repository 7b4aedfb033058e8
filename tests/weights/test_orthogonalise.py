"""Edited weights do what the hooks do; the edit is undone to the bit; what cannot be edited is
refused.
"""

from dataclasses import replace

import pytest
import tiny_models
import torch

from refusal import (
    Ablate,
    ChatModel,
    Direction,
    DirectionError,
    find_parameters,
    orthogonalisation_gap,
    orthogonalise,
    orthogonalised,
)
from refusal.model.forward import last_logits
from refusal.model.hooks import Edit, hooked

PROMPTS = ("Why?", "Name three rivers of Europe, please.", "How do birds find their way home?")
FAMILIES = [*tiny_models.FAMILIES, *tiny_models.OTHERS]


def direction_for(model: ChatModel, seed: int = 3) -> Direction:
    vector = torch.randn(model.sites.d_model, generator=torch.Generator().manual_seed(seed))
    return Direction(vector / vector.norm(), 2.0, -1, 1, model=model.name)


def leftover(model: ChatModel, unit: torch.Tensor) -> float:
    """Largest share of the stream that lies along ``unit``, over block inputs and the last
    output.
    """
    worst = [0.0]

    def look(x: torch.Tensor) -> None:
        worst.append(float(((x.float() @ unit).abs() / x.float().norm(dim=-1)).max()))

    blocks = [model.hf.get_submodule(name) for name in model.sites.blocks]
    with hooked(
        [*(Edit(block, "input", look) for block in blocks), Edit(blocks[-1], "output", look)]
    ):
        last_logits(model, PROMPTS)
    return max(worst)


@pytest.mark.parametrize("family", FAMILIES)
def test_weights_do_what_the_hooks_do(family: str) -> None:
    model = tiny_models.chat_model(family)
    direction = direction_for(model)
    before = last_logits(model, PROMPTS)
    with model.apply(Ablate(direction)):
        expected = last_logits(model, PROMPTS)
    report = orthogonalise(model, direction, PROMPTS)
    assert report.gap is not None
    assert leftover(model, direction.vector) < 1e-4
    edited = last_logits(model, PROMPTS)
    assert report.gap.logits == pytest.approx(float((edited - expected).abs().max()))
    if report.behind_norm:
        # The hook does not rescale what is left and the norm does: near, not equal.
        assert (edited - expected).norm() < 0.5 * (before - expected).norm()
    else:
        assert report.gap.logits < 1e-3
        assert report.gap.kl < 1e-6
        assert report.gap.same_argmax == 1
    assert (before - expected).abs().max() > 0.1  # the edit does something


@pytest.mark.parametrize("family", FAMILIES)
def test_the_context_manager_leaves_nothing_behind(family: str) -> None:
    model = tiny_models.chat_model(family)
    before, config = model.weight_hash(), model.hf.config.to_dict()
    with orthogonalised(model, direction_for(model)):
        assert model.weight_hash() != before
    assert model.weight_hash() == before
    assert model.hf.config.to_dict() == config
    with pytest.raises(RuntimeError, match="mine"), orthogonalised(model, direction_for(model)):
        raise RuntimeError("mine")
    assert model.weight_hash() == before


def test_a_tied_embedding_is_untied() -> None:
    model = tiny_models.chat_model("llama", tie_word_embeddings=True)
    direction = direction_for(model)
    embedding, head = model.hf.get_input_embeddings(), model.hf.get_output_embeddings()
    original = model.hf.get_parameter("lm_head.weight").detach().clone()
    assert head.weight is embedding.weight
    gap = orthogonalisation_gap(model, direction, PROMPTS)
    assert head.weight is embedding.weight
    report = orthogonalise(model, direction)
    assert report.untied
    assert not model.hf.config.tie_word_embeddings
    assert torch.equal(model.hf.get_parameter("lm_head.weight"), original)
    edited = model.hf.get_parameter("model.embed_tokens.weight")
    assert (edited @ direction.vector).abs().max() < 1e-5
    assert gap.logits < 1e-3


def test_preserved_norms_keep_the_stream_clean() -> None:
    model = tiny_models.chat_model("qwen2")
    direction = direction_for(model)
    norms = {
        p.name: model.hf.get_parameter(p.name).norm(dim=p.axis)
        for p in find_parameters(model.hf, model.sites)
    }
    axes = {p.name: p.axis for p in find_parameters(model.hf, model.sites)}
    report = orthogonalise(model, direction, PROMPTS, norm="column")
    assert report.norm == "column"
    assert leftover(model, direction.vector) < 1e-4
    for name, norm in norms.items():
        assert torch.allclose(model.hf.get_parameter(name).norm(dim=axes[name]), norm, rtol=1e-4)


def test_twice_is_once() -> None:
    model = tiny_models.chat_model("gemma2")
    direction = direction_for(model)
    with orthogonalised(model, direction):
        once = {name: p.detach().clone() for name, p in model.hf.named_parameters()}
        gap = orthogonalisation_gap(model, direction, PROMPTS)
        assert gap.logits < 1e-3  # hooks find nothing to take out
        orthogonalise(model, direction)
        for name, p in model.hf.named_parameters():
            assert (p - once[name]).abs().max() < 1e-5


def test_a_direction_that_does_not_fit_is_refused() -> None:
    model = tiny_models.chat_model()
    fits = direction_for(model)
    before = model.weight_hash()
    with pytest.raises(DirectionError, match=r"16 dimensions .* 32"):
        orthogonalise(model, replace(fits, vector=torch.ones(16) / 4))
    with pytest.raises(DirectionError, match="found on another/model, not on tiny-llama"):
        orthogonalise(model, replace(fits, model="another/model"))
    with pytest.raises(DirectionError, match="length 0, not 1"):
        orthogonalise(model, replace(fits, vector=torch.zeros(32)))
    with pytest.raises(DirectionError, match="length nan"):
        orthogonalise(model, replace(fits, vector=torch.full((32,), torch.nan)))
    assert model.weight_hash() == before
