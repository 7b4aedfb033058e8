"""What of the last block only the tokens need whose logits are asked for.

Once the last attention has read a row, a token's stream concerns that token alone. So the last
block's MLP, most of its weights, is computed at the tokens that the head sees (docs/performance.md
says what that saves). Which modules these are is measured: those that make of one token what they
make of it among others.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from refusal.model.hooks import Call, Edit, hooked
from refusal.model.probe import probe_ids
from refusal.model.writers import tolerance_of

SHARE = 0.25  # of the block's parameters, that a module must have to be worth it


def find_by_itself(model: PreTrainedModel, block: str) -> tuple[str, ...]:
    """The large children of a block that take one vector a token, and nothing else, and give one
    that depends on no other token.
    """
    parent = model.get_submodule(block)
    least = SHARE * _weights(parent)
    calls = [_Calls(n, child) for n, child in parent.named_children() if _weights(child) >= least]
    watch = [hook for one in calls for hook in one.hooks]
    with torch.inference_mode():
        with hooked(watch):
            model(input_ids=probe_ids(model), use_cache=False)
        return tuple(f"{block}.{one.name}" for one in calls if one.treats_tokens_apart())


def _weights(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


@dataclass
class _Calls:
    """What a child was called with and gave back, each time."""

    name: str
    child: nn.Module
    given: list[tuple[tuple[Any, ...], dict[str, Any]]] = field(default_factory=list)
    back: list[Any] = field(default_factory=list)

    @property
    def hooks(self) -> tuple[Call, Edit]:
        """What notes them."""
        return Call(self.child, self._note), Edit(self.child, "result", self.back.append)

    def _note(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.given.append((args, kwargs))

    def treats_tokens_apart(self) -> bool:
        """Whether it was called once, with one vector a token and nothing else, and the last token
        alone comes out as it did among the others.
        """
        if len(self.given) != 1:
            return False
        (args, kwargs), back = self.given[0], self.back[0]
        x = args[0] if len(args) == 1 and not kwargs else None
        if not isinstance(x, Tensor) or not isinstance(back, Tensor) or back.shape != x.shape:
            return False
        if x.dim() != 3 or not x.is_floating_point():
            return False
        alone, among = self.child(x[:, -1:]).float(), back[:, -1:].float()
        gap = (alone - among).norm() / among.norm().clamp_min(1e-12)
        return bool(gap <= tolerance_of(x.dtype))
