"""Weights and hooks must do the same; a model in which they do not is refused, not exported."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import plain
import pytest
import tiny_models
import torch
from torch import nn

from refusal import (
    Ablate,
    ChatModel,
    Direction,
    UnsupportedModelError,
    export_lora,
    export_model,
    orthogonalise,
)
from refusal.model.forward import last_logits
from refusal.weights.agreement import check_unedited
from refusal.weights.edit import edit_of
from refusal.weights.parameters import find_parameters

PROMPTS = ("Why?", "Name three rivers of Europe, please.")


def direction_for(model: ChatModel) -> Direction:
    vector = torch.randn(model.sites.d_model, generator=torch.Generator().manual_seed(3))
    return Direction(vector / vector.norm(), 2.0, -1, 1, model=model.name)


def test_what_the_embedding_feeds_beside_the_stream_is_ablated_too() -> None:
    """Zamba's shared blocks read the embedding: plain hooks there, at block inputs and at writes
    are the oracle.
    """
    model = tiny_models.chat_model("zamba2")
    assert model.sites.embedding_elsewhere
    direction = direction_for(model)
    rows = model.tokenize(PROMPTS)

    def project(module: nn.Module, args: Any, output: torch.Tensor) -> torch.Tensor:
        return output - (output @ direction.vector)[..., None] * direction.vector

    with plain.Ablated(model.hf, model.sites.blocks, model.sites.writers, direction.vector):
        leaking = torch.stack([plain.last_logits(model.hf, row) for row in rows])
        handle = model.hf.get_input_embeddings().register_forward_hook(project)
        expected = torch.stack([plain.last_logits(model.hf, row) for row in rows])
        handle.remove()
    with model.apply(Ablate(direction)):
        found = last_logits(model, PROMPTS)
    assert (found - expected).abs().max() < 1e-4
    assert (leaking - expected).abs().max() > 1


@pytest.mark.parametrize("family", [*tiny_models.FAMILIES, *tiny_models.OTHERS])
def test_elsewhere_means_zamba(family: str) -> None:
    assert tiny_models.chat_model(family).sites.embedding_elsewhere == (family == "zamba2")


def test_a_leak_is_refused(tmp_path: Path) -> None:
    model = tiny_models.chat_model("zamba2")
    model.sites = replace(model.sites, embedding_elsewhere=False)
    direction = direction_for(model)
    with pytest.raises(
        UnsupportedModelError, match=r"differ in Zamba2ForCausalLM: by \d+\.\d% of what"
    ):
        export_lora(model, direction, tmp_path / "adapter")
    with pytest.raises(UnsupportedModelError, match=r"limit 0\.1%"):
        export_model(model, direction, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_rounding_is_no_leak(dtype: torch.dtype) -> None:
    for family in ("llama", "granite", "gpt2", "zamba2", "qwen3_moe"):
        hf: Any = tiny_models.network(family)
        model = ChatModel(hf.to(dtype), tiny_models.tokenizer(), name=family)
        direction = replace(direction_for(model), model=family)
        parameters = find_parameters(model.hf, model.sites)
        edit = edit_of(model.hf, model.sites, parameters, direction)
        check_unedited(model.hf, model.sites, edit)


def test_a_leak_shows_in_half_precision_too() -> None:
    hf: Any = tiny_models.network("llama")
    model = ChatModel(hf.to(torch.bfloat16), tiny_models.tokenizer(), name="tiny-llama")
    leaking = replace(model.sites, writers=tuple(names[:1] for names in model.sites.writers))
    parameters = find_parameters(model.hf, model.sites)
    edit = edit_of(model.hf, model.sites, parameters, direction_for(model))
    with pytest.raises(UnsupportedModelError, match=r"limit 0\.1%"):
        check_unedited(model.hf, leaking, edit)


def test_all_that_was_tied_gets_weights_of_its_own() -> None:
    model = tiny_models.chat_model("zamba2")
    shared = (
        model.hf.model.layers[1].shared_transformer,
        model.hf.model.layers[3].shared_transformer,
    )
    before = [dict(block.named_parameters()) for block in shared]
    assert before[0].keys() == before[1].keys()
    assert all(before[1][name] is weight for name, weight in before[0].items())
    orthogonalise(model, direction_for(model))
    after = [dict(block.named_parameters()) for block in shared]
    assert all(after[1][name] is not weight for name, weight in after[0].items())
    assert all(torch.equal(after[1][name], weight) for name, weight in after[0].items())
    assert not model.hf.config.tie_word_embeddings
