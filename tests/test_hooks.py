"""The context manager leaves nothing behind and composes."""

import pytest
import tiny_models
import torch
from torch import nn

from refusal import Ablate, Add, ChatModel, Direction
from refusal.model.forward import last_logits
from refusal.model.hooks import Edit, hooked, skipped


def hooks_of(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


@pytest.fixture
def direction() -> Direction:
    torch.manual_seed(3)
    vector = torch.randn(tiny_models.WIDTH)
    return Direction(vector / vector.norm(), 2.5, -1, 2)


def test_hooks_are_gone_after_an_exception(model: ChatModel, direction: Direction) -> None:
    before = hooks_of(model.hf)
    with pytest.raises(RuntimeError, match="boom"), model.apply(Ablate(direction), Add(direction)):
        assert hooks_of(model.hf) > before
        raise RuntimeError("boom")
    assert hooks_of(model.hf) == before


def test_hooks_are_gone_when_installing_one_fails(model: ChatModel) -> None:
    class Broken(nn.Module):
        def register_forward_hook(self, *args: object, **kwargs: object) -> None:  # type: ignore[override]
            raise RuntimeError("no hooks here")

    good = Edit(model.hf.get_submodule(model.sites.blocks[0]), "input", lambda x: None)
    with pytest.raises(RuntimeError), hooked([good, Edit(Broken(), "output", lambda x: None)]):
        pass
    assert hooks_of(model.hf) == 0


def test_apply_changes_nothing_afterwards(model: ChatModel, direction: Direction) -> None:
    before = last_logits(model, ["Hello"])
    with model.apply(Ablate(direction)):
        inside = last_logits(model, ["Hello"])
    assert not torch.allclose(before, inside)
    assert torch.equal(before, last_logits(model, ["Hello"]))


def test_nesting_equals_giving_both_and_opposite_additions_cancel(
    model: ChatModel, direction: Direction
) -> None:
    with model.apply(Ablate(direction)), model.apply(Add(direction, 0.5)):
        nested = last_logits(model, ["Hello"])
    with model.apply(Ablate(direction), Add(direction, 0.5)):
        assert torch.equal(nested, last_logits(model, ["Hello"]))
    with model.apply(Add(direction, 1.0)), model.apply(Add(direction, -1.0)):
        torch.testing.assert_close(last_logits(model, ["Hello"]), last_logits(model, ["Hello"]))
        cancelled = last_logits(model, ["Hello"])
    torch.testing.assert_close(cancelled, last_logits(model, ["Hello"]), atol=1e-5, rtol=1e-5)


def test_tuple_outputs_keep_their_other_parts() -> None:
    class Pair(nn.Module):
        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, str]:
            return x, "weights"

    module = Pair()
    with hooked([Edit(module, "output", lambda x: x + 1)]):
        out, other = module(torch.zeros(2))
    assert torch.equal(out, torch.ones(2))
    assert other == "weights"


def test_skipped_blocks_pass_their_input_on_and_come_back(model: ChatModel) -> None:
    block = model.hf.get_submodule(model.sites.blocks[0])
    x = torch.randn(1, 3, tiny_models.WIDTH)
    with pytest.raises(RuntimeError), skipped([block]):
        assert torch.equal(block(x), x)
        raise RuntimeError
    assert "forward" not in block.__dict__


def test_skipped_blocks_return_a_tuple_where_their_caller_expects_one() -> None:
    model = tiny_models.chat_model("falcon")
    assert model.sites.in_tuple
    block = model.hf.get_submodule(model.sites.blocks[0])
    x = torch.randn(1, 3, tiny_models.WIDTH)
    with skipped([block], in_tuple=True):
        assert torch.equal(block(x)[0], x)
    assert not tiny_models.chat_model().sites.in_tuple


def test_the_whole_result_of_a_module_can_be_read() -> None:
    seen: list[object] = []
    model = tiny_models.chat_model("falcon")
    block = model.hf.get_submodule(model.sites.blocks[0])
    with hooked([Edit(block, "result", seen.append)]):
        last_logits(model, ["Hi"])
    assert isinstance(seen[0], tuple)
