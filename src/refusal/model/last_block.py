"""What of the last block only the tokens need whose logits are asked for.

Once the last attention has read a row, a token's stream concerns that token alone. So the last
block's MLP, most of its weights, is computed at the tokens that the head sees (docs/performance.md
says what that saves). Which modules these are is measured: those that make of one token what they
make of it among others.
"""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from refusal.model.hooks import Call, Edit, hooked
from refusal.model.probe import probe_ids

SHARE = 0.25  # of the block's parameters, that a module must have to be worth it
SAME = {torch.float32: 1e-4, torch.float64: 1e-4}  # relative; half precisions: HALF
HALF = 2e-2


def find_by_itself(model: PreTrainedModel, block: str) -> tuple[str, ...]:
    """The large children of a block that take one vector a token, and nothing else, and give one
    that depends on no other token.
    """
    parent = model.get_submodule(block)
    weights = sum(p.numel() for p in parent.parameters())
    large = {
        name: child
        for name, child in parent.named_children()
        if sum(p.numel() for p in child.parameters()) >= SHARE * weights
    }
    given: dict[str, list[Any]] = {name: [] for name in large}
    back: dict[str, list[Any]] = {name: [] for name in large}
    watch: list[Call | Edit] = []
    for name, child in large.items():
        watch.append(Call(child, partial(_note, given[name])))
        watch.append(Edit(child, "result", back[name].append))
    with torch.inference_mode():
        with hooked(watch):
            model(input_ids=probe_ids(model), use_cache=False)
        return tuple(
            f"{block}.{name}"
            for name, child in large.items()
            if len(given[name]) == 1 and _treats_tokens_apart(child, given[name][0], back[name][0])
        )


def _note(calls: list[Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    calls.append((args, kwargs))


def _treats_tokens_apart(child: nn.Module, given: Any, back: Any) -> bool:
    """Whether the last token alone comes out as it did among the others."""
    args, kwargs = given
    if len(args) != 1 or kwargs or not isinstance(args[0], Tensor) or not isinstance(back, Tensor):
        return False
    x = args[0]
    if x.dim() != 3 or not x.is_floating_point() or back.shape != x.shape:
        return False
    alone, among = child(x[:, -1:]).float(), back[:, -1:].float()
    gap = (alone - among).norm() / among.norm().clamp_min(1e-12)
    return bool(gap <= SAME.get(x.dtype, HALF))
