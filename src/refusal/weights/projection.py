"""A direction taken out of one weight: the arithmetic that every way of editing shares."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

CHUNK = 2**24  # elements projected at once in float32: 64 MB


@dataclass(frozen=True)
class Removal:
    """Take out of a written vector ``x`` its component: ``x - write (read . x)``, with ``read .
    write = 1``.

    Writing straight to the stream both are the unit direction. Behind a post-norm they differ, see
    ``before_norm``.
    """

    read: Float[Tensor, "d_model"]
    write: Float[Tensor, "d_model"]

    @classmethod
    def of(cls, unit: Float[Tensor, "d_model"]) -> "Removal":
        """Orthogonal projection, float32."""
        return cls(unit.float(), unit.float())

    def to(self, device: torch.device) -> "Removal":
        """On another device."""
        return Removal(self.read.to(device), self.write.to(device))


def project_weight(
    weight: Tensor,
    axis: int,
    removal: Removal | Float[Tensor, "d_model"],
    preserve_norm: bool = False,
) -> Tensor:
    """``weight`` without the direction on dimension ``axis``: a new tensor of the same dtype.

    Arithmetic is float32, a piece at a time, so that no whole float32 copy is made. Fused experts
    are done one by one: sums are rounded in an order that depends on the shape, and so this gives
    bit for bit what single experts give.

    Args:
        weight: any tensor whose dimension ``axis`` has size d_model.
        axis: the dimension on the stream's side.
        removal: what is removed, float32, on the device of ``weight``; a unit vector stands for
            ``Removal.of`` it.
        preserve_norm: rescale what each input writes (the vectors along ``axis``) to the norm it
            had. Rescaling along any other dimension would bring the direction back. A bias is
            projected only.
    """
    removal = removal if isinstance(removal, Removal) else Removal.of(removal)
    if weight.dim() == 1:
        return _projected(weight, 0, removal).to(weight.dtype)
    out = torch.empty_like(weight)
    if weight.dim() == 3:
        for source, target in zip(weight, out, strict=True):
            target.copy_(project_weight(source, axis % 3 - 1, removal, preserve_norm))
        return out
    other = max(
        (dim for dim in range(weight.dim()) if dim != axis % weight.dim()),
        key=weight.shape.__getitem__,
    )
    step = max(1, CHUNK // (weight.numel() // weight.shape[other]))
    for source, target in zip(weight.split(step, other), out.split(step, other), strict=True):
        new = _projected(source, axis, removal)
        if preserve_norm:
            new = _rescaled(new, source.float(), axis)
            left = (new.movedim(axis, -1) @ removal.read).norm()
            assert left <= 1e-4 * removal.read.norm() * new.norm(), (
                "norm preservation brought the direction back"
            )
        target.copy_(new)
    return out


def component(weight: Tensor, axis: int, removal: Removal) -> Tensor:
    """What ``removal`` reads in ``weight``, without the dimension ``axis``, float32.

    No matrix product: on some processors that rounds by where in memory its operands lie.
    """
    return (weight.float().movedim(axis, -1) * removal.read).sum(-1)


def _projected(weight: Tensor, axis: int, removal: Removal) -> Tensor:
    """In float32."""
    along = component(weight, axis, removal)[..., None]
    return torch.addcmul(weight.float().movedim(axis, -1), along, removal.write, value=-1).movedim(
        -1, axis
    )


def _rescaled(new: Tensor, old: Tensor, axis: int) -> Tensor:
    """Every vector along ``axis`` as long as it was; those that were all direction stay as they are
    (nearly zero).
    """
    before, after = old.norm(dim=axis, keepdim=True), new.norm(dim=axis, keepdim=True)
    return torch.where(after > 1e-2 * before, new * (before / after), new)


def left_over(weight: Tensor, axis: int, removal: Removal) -> tuple[float, float]:
    """How much of the direction ``removal`` still reads in an edited weight, and how much rounding
    may leave.

    The weight's dtype rounds every element by itself, so what is read adds up like noise: the limit
    is twice the dtype's precision of ``read * weight`` (about seven standard deviations), and some
    float32 arithmetic.
    """
    wide, precision = weight.dim() if weight.dim() > 1 else 0, torch.finfo(weight.dtype)
    other = max(
        (dim for dim in range(wide) if dim != axis % wide), key=weight.shape.__getitem__, default=0
    )
    step = max(1, CHUNK // (weight.numel() // weight.shape[other])) if wide else weight.numel()
    sums = torch.zeros(3, dtype=torch.float64)
    for part in weight.split(step, other):
        values = part.float().movedim(axis, -1)
        read = values * removal.read
        sums += torch.stack(
            [x.square().sum(dtype=torch.float64).cpu() for x in (read.sum(-1), read, values)]
        )
    left, each, size = sums.sqrt().tolist()
    smallest = precision.smallest_normal * precision.eps * weight.numel() ** 0.5
    return left, 2 * precision.eps * each + 1e-6 * size + smallest
