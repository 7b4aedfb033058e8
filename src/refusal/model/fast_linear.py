"""Products of linear layers on x86 processors by oneDNN, with the weights in its own order where
memory allows.

torch multiplies float32 by MKL, which reads the weights as they lie: with the 16 to 64 rows of a
completion step that is a third of what the processor can do (docs/performance.md). The numbers are
the same to rounding. A layer stays an ``nn.Linear`` with its weight, so whatever reads, edits,
saves or differentiates weights is not concerned: a copy in oneDNN's order is only used while the
weight is the one that was copied, and never where gradients are asked for.
"""

import platform
from typing import NamedTuple
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float
from torch import Tensor, nn

from refusal.core import parallel
from refusal.model.batch_size import free_memory

SMALLEST = (
    1 << 18
)  # weights of a layer that is worth it: below, calling costs as much as multiplying
ROWS = 512  # that the order is chosen for; it serves 1 to 768 rows well (docs/performance.md)
SHARE = 0.5  # of the free memory, for copies of the weights
DTYPES = (torch.float32, torch.bfloat16)


class _Copy(NamedTuple):
    """A weight in oneDNN's order, and what the weight was then."""

    packed: Tensor
    weight: Tensor
    address: int
    version: int


_copies: "WeakKeyDictionary[nn.Module, _Copy]" = WeakKeyDictionary()


class FastLinear(nn.Linear):
    """An ``nn.Linear`` that multiplies by oneDNN."""

    def forward(self, input: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_out"]:  # noqa: A002 (torch's name)
        """``input`` times the weight's transpose, plus the bias."""
        weight, copy = self.weight, _copies.get(self)
        packed = None if copy is None or _changed(copy, weight) else copy.packed
        if (
            torch.is_grad_enabled()
            or input.dtype != weight.dtype
            or input.shape[-1] != self.in_features
            or not input.numel()
            or (packed is None and weight.dtype != torch.float32)
        ):
            return super().forward(input)
        factor = weight if packed is None else packed
        product: Tensor = torch.ops.mkldnn._linear_pointwise(
            input, factor, self.bias, "none", [], ""
        )
        return product


def speed_up(model: nn.Module) -> None:
    """Let the large linear layers of a model on the processor multiply by oneDNN.

    Their weights are copied into its order where all copies together take at most half of the free
    memory. Without a copy only float32 gains anything.
    """
    layers = [m for m in model.modules() if type(m) is nn.Linear and _suits(m.weight)]
    if not layers or not _available():
        return
    held = sum(m.weight.numel() * m.weight.element_size() for m in layers)
    copied = copies(held, free_memory(torch.device("cpu")))
    for layer in layers:
        layer.__class__ = FastLinear
        if copied:
            _copy(layer)


def copies(held: int, free: int | float) -> int:
    """Bytes of the copies that ``speed_up`` makes of ``held`` bytes of weights with ``free`` bytes
    left: all or none.
    """
    fits = held * parallel.world() <= SHARE * free
    return held if fits and _available() else 0


def copied_bytes(model: nn.Module) -> int:
    """Bytes of the copies that ``speed_up`` has made of a model's weights."""
    found = [copy.weight for m in model.modules() if (copy := _copies.get(m)) is not None]
    return sum(weight.numel() * weight.element_size() for weight in found)


def _copy(layer: nn.Linear) -> None:
    weight = layer.weight
    try:
        packed = torch.ops.mkldnn._reorder_linear_weight(weight.detach(), ROWS)
    except RuntimeError:  # bfloat16 on a processor that cannot multiply in it
        return
    _copies[layer] = _Copy(packed, weight, weight.data_ptr(), weight._version)


def _changed(copy: _Copy, weight: Tensor) -> bool:
    """Whether the weight is another one than was copied, or was written to since."""
    return (
        copy.weight is not weight
        or copy.address != weight.data_ptr()
        or copy.version != weight._version
    )


def _suits(weight: Tensor) -> bool:
    """A plain matrix on the processor, large enough; versions of inference tensors are not
    counted.
    """
    return (
        type(weight) is nn.Parameter
        and weight.device.type == "cpu"
        and weight.dtype in DTYPES
        and weight.is_contiguous()
        and weight.numel() >= SMALLEST
        and not weight.is_inference()
    )


def _available() -> bool:
    """Whether torch was built with what is called here; measured on x86 processors only."""
    return (
        platform.machine().lower() in {"x86_64", "amd64"}
        and torch.backends.mkldnn.is_available()
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
        and hasattr(torch.ops.mkldnn, "_reorder_linear_weight")
    )
