"""Gradients with respect to what interventions are made of, against finite differences in float64.

Of families whose norms do not go through float32.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import tiny_models
import torch
from torch import Tensor

from refusal import Ablate, Add, ChatModel, Direction
from refusal.interventions.affine import Affine
from refusal.interventions.kernel import Kernel
from refusal.model.forward import last_logits
from refusal.model.gradients import frozen, loss_gradients

WIDTH, LAYERS = tiny_models.WIDTH, tiny_models.LAYERS
TEXTS = ("Why?", "Name three rivers.", "Why is that?")
STEP = 1e-5


def drawn(seed: int, *shape: int) -> Tensor:
    made = torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    unit: Tensor = made / made.norm(dim=-1, keepdim=True)
    return unit


def model_of(family: str) -> ChatModel:
    model = tiny_models.chat_model(family)
    last_logits(model, TEXTS)  # what is cached without gradients must not be in the way
    model.hf.double()
    return model


def direction(leaf: Tensor, **more: Any) -> Direction:
    return Direction(leaf[0], 1.5, -1, 2, **more)


Made = Callable[[Tensor], Any]
FORMS: dict[str, tuple[int, Made]] = {
    "ablation": (1, lambda leaf: Ablate(direction(leaf), 0.7)),
    "subspace": (3, lambda leaf: Ablate(direction(leaf, basis=leaf))),
    "kernel": (2, lambda leaf: Ablate(direction(leaf, basis=leaf), kernel=Kernel.of((1, 1, 0, 1)))),
    "per layer": (LAYERS, lambda x: Ablate(direction(x, by_layer=x), per_layer=True)),
    "addition": (1, lambda leaf: Add(direction(leaf))),
    "affine": (1, lambda leaf: Affine(direction(leaf), 3 * drawn(9, 1, WIDTH)[0], 0.5)),
}


def one_of(made: Made, leaf: Tensor) -> list[Any]:
    return [made(leaf)]


def entropy(
    rows: Sequence[Sequence[int]], starts: Sequence[int]
) -> Callable[[Sequence[int], Sequence[Tensor]], Tensor]:
    """Cross-entropy of the texts, each token as much as any other."""

    def loss(prompts: Sequence[int], logits: Sequence[Tensor]) -> Tensor:
        parts = []
        for i, one in zip(prompts, logits, strict=True):
            targets = torch.tensor(rows[i][starts[i] :])
            parts.append(torch.nn.functional.cross_entropy(one, targets, reduction="sum"))
        return torch.stack(parts).sum()

    return loss


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("family", ["phi", "gpt2"])
def test_gradients_are_finite_differences(family: str, form: str) -> None:
    model, (rank, made) = model_of(family), FORMS[form]
    rows = model.tokenize(TEXTS)
    starts = [len(row) - 6 for row in rows]
    leaf = drawn(3, rank, WIDTH).requires_grad_(True)
    loss = entropy(rows, starts)
    value, (gradient,) = loss_gradients(model, rows, starts, lambda: [made(leaf)], loss, [leaf])
    ways = drawn(4, 2, rank * WIDTH).view(2, rank, WIDTH)
    for way in ways:
        ends = []
        for sign in (1, -1):
            moved = (leaf.detach() + sign * STEP * way).requires_grad_(True)
            found = loss_gradients(model, rows, starts, partial(one_of, made, moved), loss, [moved])
            ends.append(found[0])
        slope = (ends[0] - ends[1]) / (2 * STEP)
        assert float((gradient * way).sum()) == pytest.approx(slope, rel=1e-5, abs=1e-7)
    assert float(gradient.norm()) > 1e-3
    assert value > 0


def test_batches_add_up_and_nothing_stays_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of("phi")
    for name, parameter in model.hf.named_parameters():
        parameter.requires_grad_("mlp" in name)
    rows = model.tokenize(TEXTS)
    starts = [len(row) - 6 for row in rows]
    leaf, unused = drawn(3, 1, WIDTH).requires_grad_(True), drawn(5, 1).requires_grad_(True)
    given = (rows, starts, lambda: [Ablate(direction(leaf))], entropy(rows, starts), [leaf, unused])
    together = loss_gradients(model, *given)
    monkeypatch.setattr("refusal.model.gradients.TOKENS", 1)
    apart = loss_gradients(model, *given)
    assert apart[0] == pytest.approx(together[0], rel=1e-9)
    torch.testing.assert_close(apart[1][0], together[1][0], rtol=1e-7, atol=1e-9)
    assert not apart[1][1].any()
    for name, parameter in model.hf.named_parameters():
        assert parameter.requires_grad == ("mlp" in name)
        assert parameter.grad is None
    assert not any(module._forward_hooks for module in model.hf.modules())
    with pytest.raises(RuntimeError, match="mine"), frozen(model.hf):
        raise RuntimeError("mine")
    assert any(parameter.requires_grad for parameter in model.hf.parameters())


def test_in_half_precision_gradients_reach_a_float32_vector() -> None:
    hf: Any = tiny_models.network("llama")
    model = ChatModel(hf.bfloat16(), tiny_models.tokenizer(), name="half")
    rows = model.tokenize(TEXTS)
    starts = [len(row) - 6 for row in rows]
    leaf = drawn(3, 1, WIDTH).float().requires_grad_(True)

    def made() -> list[Ablate]:
        return [Ablate(replace(direction(leaf), model="half"))]

    value, (gradient,) = loss_gradients(model, rows, starts, made, entropy(rows, starts), [leaf])
    assert torch.isfinite(gradient).all()
    assert gradient.any()
    assert value > 0
