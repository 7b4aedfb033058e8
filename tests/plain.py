"""The method written the plain way, prompt by prompt, with transformers only: the oracle for the
fast paths.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from refusal import CandidateScore


def block_inputs(
    hf: PreTrainedModel, blocks: Sequence[nn.Module], ids: Sequence[int]
) -> list[Tensor]:
    """Input of every block and the output of the last for one prompt, ``(token, d_model)`` each."""
    seen: list[Tensor] = []

    def before(module: nn.Module, args: Any, kwargs: Any) -> None:
        seen.append((args[0] if args else kwargs["hidden_states"])[0])

    def after(module: nn.Module, args: Any, output: Any) -> None:
        seen.append((output[0] if isinstance(output, tuple) else output)[0])

    handles = [block.register_forward_pre_hook(before, with_kwargs=True) for block in blocks]
    handles.append(blocks[-1].register_forward_hook(after))
    with torch.no_grad():
        hf(input_ids=torch.tensor([list(ids)]), use_cache=False)
    for handle in handles:
        handle.remove()
    return seen


def last_logits(hf: PreTrainedModel, ids: Sequence[int]) -> Tensor:
    """Logits of the last token of one prompt, alone in its batch."""
    with torch.no_grad():
        logits: Tensor = hf(input_ids=torch.tensor([list(ids)]), use_cache=False).logits[0, -1]
    return logits


def metric(logits: Tensor, tokens: Sequence[int]) -> float:
    p = logits.double().softmax(-1)[list(tokens)].sum()
    return float(torch.log(p + 1e-8) - torch.log(1 - p + 1e-8))


def kl(base: Tensor, other: Tensor) -> float:
    p, q = base.double().softmax(-1), other.double().softmax(-1)
    return float((p * (torch.log(p + 1e-6) - torch.log(q + 1e-6))).sum())


class Ablated:
    """Project a unit vector out of every block input and every listed write, and out of the last
    block's output.
    """

    def __init__(
        self,
        hf: PreTrainedModel,
        blocks: Sequence[str],
        writers: Sequence[Sequence[str]],
        unit: Tensor,
    ):
        self.hooks: list[Any] = []
        for block in blocks:
            self.hooks.append(
                hf.get_submodule(block).register_forward_pre_hook(self._before, with_kwargs=True)
            )
        for name in [n for group in writers for n in group]:
            self.hooks.append(hf.get_submodule(name).register_forward_hook(self._after))
        self.unit = unit

    def _project(self, x: Tensor) -> Tensor:
        return x - (x @ self.unit)[..., None] * self.unit

    def _before(self, module: nn.Module, args: Any, kwargs: Any) -> Any:
        if args:
            return (self._project(args[0]), *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": self._project(kwargs["hidden_states"])}

    def _after(self, module: nn.Module, args: Any, output: Any) -> Any:
        if isinstance(output, tuple):
            return (self._project(output[0]), *output[1:])
        return self._project(output)

    def __enter__(self) -> "Ablated":
        return self

    def __exit__(self, *_: object) -> None:
        for hook in self.hooks:
            hook.remove()


class Added:
    """Add a vector to the input of one block at every token."""

    def __init__(self, block: nn.Module, vector: Tensor):
        self.vector = vector
        self.hook = block.register_forward_pre_hook(self._before, with_kwargs=True)

    def _before(self, module: nn.Module, args: Any, kwargs: Any) -> Any:
        if args:
            return (args[0] + self.vector, *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": kwargs["hidden_states"] + self.vector}

    def __enter__(self) -> "Added":
        return self

    def __exit__(self, *_: object) -> None:
        self.hook.remove()


def bypass_values(
    hf: PreTrainedModel,
    blocks: Sequence[str],
    writers: Sequence[Sequence[str]],
    rows: Any,
    direction: Any,
    tokens: Any,
) -> list[float]:
    """Refusal metric of each prompt with the direction projected out everywhere."""
    with Ablated(hf, blocks, writers, direction.vector):
        return [metric(last_logits(hf, row), tokens) for row in rows]


def scores(
    hf: PreTrainedModel,
    blocks: Sequence[str],
    writers: Sequence[Sequence[str]],
    harmful: Sequence[Sequence[int]],
    harmless: Sequence[Sequence[int]],
    directions: Sequence[Any],
    tokens: Sequence[int],
) -> list[CandidateScore]:
    """The triple loop: every candidate, every prompt alone, every score."""
    base = [last_logits(hf, row) for row in harmless]
    out = []
    for direction in directions:
        bypass = bypass_values(hf, blocks, writers, harmful, direction, tokens)
        with Ablated(hf, blocks, writers, direction.vector):
            drift = [kl(b, last_logits(hf, row)) for b, row in zip(base, harmless, strict=True)]
        with Added(hf.get_submodule(blocks[direction.layer]), direction.vector * direction.norm):
            induce = [metric(last_logits(hf, row), tokens) for row in harmless]
        place = direction.position, direction.layer
        means = (sum(bypass) / len(bypass), sum(induce) / len(induce), sum(drift) / len(drift))
        out.append(CandidateScore(*place, *means))
    return out
