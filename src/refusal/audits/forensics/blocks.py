"""A weight as blocks of columns: the stream's dimension first, every input a column, float32.

Nothing larger than a block is copied, so that a tensor and its base in their own dtypes are all
that is held whole.
"""

from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor

CHUNK = 2**22  # elements of a block: 16 MB in float32


def columns(
    weight: Tensor, axis: int, dtype: torch.dtype = torch.float32
) -> Iterator[Float[Tensor, "d_model input"]]:
    """What a weight writes to the stream for each of its inputs, a block of inputs at a time.

    Args:
        weight: any number of dimensions; fused experts ``[expert, ...]`` come one by one.
        axis: the dimension of size d_model.
        dtype: of the blocks.
    """
    for view in views(weight, axis):
        yield view.reshape(len(view), -1).to(dtype)


def views(weight: Tensor, axis: int) -> Iterator[Tensor]:
    """The parts of a weight that ``columns`` copies, the stream's dimension first, as views of
    it.
    """
    if weight.dim() == 3 and axis > 0:
        for expert in weight:
            yield from views(expert, axis - 1)
    elif weight.dim() == 2:
        step = max(1, CHUNK // weight.shape[axis])
        for part in weight.split(step, 1 - axis):
            yield part.movedim(axis, 0)
    else:
        yield weight.movedim(axis, 0)


def common(one: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    """The part that two tensors of as many dimensions share: a vocabulary may have grown."""
    for dim, size in enumerate(map(min, zip(one.shape, other.shape, strict=True))):
        one, other = one.narrow(dim, 0, size), other.narrow(dim, 0, size)
    return one, other


def rounded_alike(base: Tensor, candidate: Tensor) -> Tensor:
    """The base in the candidate's dtype if that holds less, so that a conversion is no change."""
    narrow = torch.finfo(candidate.dtype).eps > torch.finfo(base.dtype).eps
    return base.to(candidate.dtype) if narrow else base
