"""The last block's MLP runs at the tokens whose logits are asked for, and nothing else changes."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import tiny_models
import torch
from plain import last_logits
from torch import Tensor, nn

from refusal import Ablate, ChatModel, Direction
from refusal.model.forward import plan, read, read_from
from refusal.model.generation import generate
from refusal.model.hooks import Edit, hooked, narrowed
from refusal.model.last_block import find_by_itself

TEXTS = ["Hi", "Why is the sky blue on most days?", "List ten rivers."]


@contextmanager
def tokens_seen(model: ChatModel) -> Iterator[list[int]]:
    """How many tokens each call of the last block's first large linear layer is for."""
    seen: list[int] = []
    mlp = model.hf.get_submodule(model.by_itself[0])
    layer = next(m for m in mlp.modules() if isinstance(m, nn.Linear))
    own = layer.forward

    def forward(x: Tensor) -> Tensor:
        seen.append(x[..., 0].numel())
        return own(x)

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(layer.__dict__, "forward", forward)
        yield seen


@pytest.mark.parametrize("family", ["llama", "gemma2", "phi3", "gpt_neox"])
def test_the_last_mlp_sees_one_token_a_prompt(family: str) -> None:
    model = tiny_models.chat_model(family)
    rows = model.tokenize(TEXTS)
    (planned,) = plan(model, rows)
    batch = planned.lay_out()
    with tokens_seen(model) as seen:
        logits = read(model, batch, copies=2)
    assert seen == [2 * len(TEXTS)]
    expected = torch.stack([last_logits(model.hf, rows[i]) for i in batch.prompts])
    for copy in logits:
        torch.testing.assert_close(copy, expected, atol=1e-5, rtol=1e-5)


def test_it_sees_every_token_whose_logits_are_asked_for() -> None:
    model = tiny_models.chat_model("llama")
    rows = model.tokenize(TEXTS)
    (planned,) = plan(model, rows)
    batch = planned.lay_out()
    starts = [3] * len(TEXTS)
    with tokens_seen(model) as seen:
        read_from(model, batch, starts)
    assert seen == [sum(len(rows[i]) - 3 for i in batch.prompts)]


def test_it_sees_one_token_a_row_when_prompts_are_read_to_be_continued() -> None:
    model = tiny_models.chat_model("llama")
    with tokens_seen(model) as seen:
        generate(model, TEXTS, max_new_tokens=1)
    assert set(seen) <= {1, len(TEXTS)}


def test_every_token_is_computed_where_something_inside_is_hooked() -> None:
    model = tiny_models.chat_model("llama")
    (planned,) = plan(model, model.tokenize(TEXTS))
    batch = planned.lay_out()
    mlp = model.hf.get_submodule(model.by_itself[0])
    shapes = []
    inside = Edit(mlp.get_submodule("down_proj"), "output", lambda x: shapes.append(x.shape))
    expected = read(model, batch)
    torch.testing.assert_close(read(model, batch, [inside]), expected, atol=1e-5, rtol=1e-5)
    assert shapes == [(*batch.ids.shape, model.sites.d_model)]


def test_what_is_done_to_its_output_sees_every_row() -> None:
    model = tiny_models.chat_model("llama")
    (planned,) = plan(model, model.tokenize(TEXTS))
    batch = planned.lay_out()
    unit = torch.nn.functional.normalize(torch.randn(model.sites.d_model), dim=0)
    with model.apply(Ablate(Direction(unit, 1.0, -1, 1))):
        few = read(model, batch)
        model.by_itself, kept = (), model.by_itself
        every = read(model, batch)
        model.by_itself = kept
    torch.testing.assert_close(few, every, atol=1e-5, rtol=1e-5)


def test_the_module_is_as_it_was_afterwards() -> None:
    model = tiny_models.chat_model("llama")
    mlp = model.hf.get_submodule(model.by_itself[0])
    at = torch.tensor([0])
    with pytest.raises(RuntimeError, match="stop"), narrowed(mlp, at, at):
        assert "forward" in mlp.__dict__
        raise RuntimeError("stop")
    assert "forward" not in mlp.__dict__


class Mixing(nn.Module):
    """Adds to each token what all tokens together are."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        """A vector a token."""
        mixed: Tensor = self.inner(x) + x.mean(dim=1, keepdim=True)
        return mixed


def test_a_module_that_mixes_tokens_is_not_taken() -> None:
    model = tiny_models.chat_model("llama")
    last = model.hf.get_submodule(model.sites.blocks[-1])
    assert find_by_itself(model.hf, model.sites.blocks[-1]) == (f"{model.sites.blocks[-1]}.mlp",)
    own = last.mlp
    assert isinstance(own, nn.Module)
    last.mlp = Mixing(own)
    try:
        assert find_by_itself(model.hf, model.sites.blocks[-1]) == ()
    finally:
        last.mlp = own
    with hooked([]):
        assert find_by_itself(model.hf, model.sites.blocks[-1])
