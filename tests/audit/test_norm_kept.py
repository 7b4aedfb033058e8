"""The edit that keeps norms, as hooks, against the edit of the weights themselves."""

import pytest
import tiny_models
import torch

from refusal import Ablate, Direction, UnsupportedModelError
from refusal.evaluations.audit.norm_kept import NormKept
from refusal.model.forward import last_logits
from refusal.weights.orthogonalise import orthogonalised

TEXTS = ["Sing a song", "How do I bake bread?", "Why?"]


def direction(d_model: int) -> Direction:
    vector = torch.randn(d_model, generator=torch.Generator().manual_seed(3))
    return Direction(vector / vector.norm(), 1.0, -1, 1)


@pytest.mark.parametrize("family", ["llama", "qwen2", "gpt2", "gemma"])
def test_hooks_do_what_the_edited_weights_do(family: str) -> None:
    model = tiny_models.chat_model(family)
    along = direction(model.sites.d_model)
    with orthogonalised(model, along, norm="column"):
        expected = last_logits(model, TEXTS)
    with model.apply(NormKept.of(model, along)):
        found = last_logits(model, TEXTS)
    with model.apply(Ablate(along)):
        ablated = last_logits(model, TEXTS)
    scale = float(expected.norm())
    assert float((found - expected).norm()) < 1e-4 * scale
    assert float((ablated - expected).norm()) > 1e-2 * scale


def test_where_there_are_no_hooks_for_it_that_is_said() -> None:
    model = tiny_models.chat_model("gemma2")
    with pytest.raises(UnsupportedModelError, match="behind a norm"):
        NormKept.of(model, direction(model.sites.d_model))
