"""Directions taken out of one weight: the arithmetic that every way of editing shares."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from refusal.config.exports import NormRule
from refusal.core.errors import UnsupportedModelError

CHUNK = 2**24  # elements projected at once in float32: 64 MB


@dataclass(frozen=True)
class Removal:
    """Take out of a written vector ``x`` some of its components: ``x - strength write' (read x)``,
    with ``read write'`` the identity.

    Writing straight to the stream both are the same orthonormal rows. Behind a post-norm they
    differ, see ``before_norm``.
    """

    read: Float[Tensor, "rank d_model"]
    write: Float[Tensor, "rank d_model"]
    strength: float = 1.0

    @classmethod
    def of(
        cls, rows: Float[Tensor, "d_model"] | Float[Tensor, "rank d_model"], strength: float = 1.0
    ) -> "Removal":
        """Orthogonal projection on what a unit vector or orthonormal rows leave, float32."""
        each = (rows[None] if rows.dim() == 1 else rows).float()
        return cls(each, each, strength)

    def to(self, device: torch.device) -> "Removal":
        """On another device."""
        return Removal(self.read.to(device), self.write.to(device), self.strength)

    @property
    def idle(self) -> bool:
        """Whether it changes nothing."""
        return not (self.strength and bool(self.write.any()))


def project_weight(
    weight: Tensor,
    axis: int,
    removal: Removal | Float[Tensor, "d_model"],
    norm: NormRule | None = None,
) -> Tensor:
    """``weight`` with less of the direction on dimension ``axis``: a new tensor of the same dtype.

    Arithmetic is float32, a piece at a time, so that no whole float32 copy is made. Fused experts
    are done one by one: sums are rounded in an order that depends on the shape, and so this gives
    bit for bit what single experts give.

    Args:
        weight: any tensor whose dimension ``axis`` has size d_model.
        axis: the dimension on the stream's side.
        removal: what is removed, float32, on the device of ``weight``; a unit vector stands for
            ``Removal.of`` it.
        norm: ``column``: rescale what each input writes (the vectors along ``axis``) to the norm it
            had, which leaves nothing of the direction. ``row``: rescale what all inputs write to
            each dimension of the stream, which brings a part of the direction back. A bias is
            projected only.
    """
    removal = removal if isinstance(removal, Removal) else Removal.of(removal)
    if weight.dim() == 1:
        return _projected(weight, 0, removal).to(weight.dtype)
    out = torch.empty_like(weight)
    if weight.dim() == 3:
        for source, target in zip(weight, out, strict=True):
            target.copy_(project_weight(source, axis % 3 - 1, removal, norm))
        return out
    other, step = _pieces(weight, axis)
    pieces = list(zip(weight.split(step, other), out.split(step, other), strict=True))
    scale = None
    if norm == "row":
        scale = _row_scale([source for source, _ in pieces], axis, removal)
    for source, target in pieces:
        new = _projected(source, axis, removal)
        if norm == "column":
            new = _rescaled(new, source.float(), axis)
            left = _read(new, axis, removal).norm()
            assert removal.strength != 1 or left <= 1e-4 * new.norm(), (
                "norm preservation brought the direction back"
            )
        target.copy_(new if scale is None else new * scale)
    return out


def component(weight: Tensor, axis: int, removal: Removal) -> Float[Tensor, "rank *other"]:
    """What ``removal`` reads in ``weight``, without the dimension ``axis``, float32.

    No matrix product: on some processors that rounds by where in memory its operands lie.
    """
    moved = weight.float().movedim(axis, -1)
    return torch.stack([(moved * read).sum(-1) for read in removal.read])


def _read(weight: Tensor, axis: int, removal: Removal) -> Tensor:
    return weight.movedim(axis, -1) @ removal.read.mT


def _projected(weight: Tensor, axis: int, removal: Removal) -> Tensor:
    """In float32."""
    moved = weight.float().movedim(axis, -1)
    new = moved
    for along, write in zip(component(weight, axis, removal), removal.write, strict=True):
        new = torch.addcmul(new, along[..., None], write, value=-removal.strength)
    return new.movedim(-1, axis)


def _rescaled(new: Tensor, old: Tensor, axis: int) -> Tensor:
    """Every vector along ``axis`` as long as it was; those that were all direction stay as they are
    (nearly zero).
    """
    before, after = old.norm(dim=axis, keepdim=True), new.norm(dim=axis, keepdim=True)
    return torch.where(after > 1e-2 * before, new * (before / after), new)


def _row_scale(pieces: Sequence[Tensor], axis: int, removal: Removal) -> Tensor:
    """By how much each dimension of the stream has to grow for all that is written to it to have
    the norm it had; those that were all direction stay.
    """
    across, nothing = 1 - axis % 2, torch.zeros((), dtype=torch.float64)
    before, after = nothing, nothing
    for piece in pieces:
        before = before + piece.double().square().sum(across, keepdim=True)
        new = _projected(piece, axis, removal)
        after = after + new.double().square().sum(across, keepdim=True)
    before, after = before.sqrt(), after.sqrt()
    return torch.where(after > 1e-2 * before, before / after, 1.0).float()


def _pieces(weight: Tensor, axis: int) -> tuple[int, int]:
    """The dimension that a weight is cut along, and how much of it makes a piece."""
    other = max(
        (dim for dim in range(weight.dim()) if dim != axis % weight.dim()),
        key=weight.shape.__getitem__,
    )
    return other, max(1, CHUNK // (weight.numel() // weight.shape[other]))


def share_read(old: Tensor, new: Tensor, axis: int, removal: Removal) -> tuple[float, float]:
    """Sums of squares of what ``removal`` reads in a weight and in its edited copy, in float64."""
    if old.dim() == 1:
        both = [component(x, axis, removal).double().square().sum() for x in (old, new)]
        return float(both[0]), float(both[1])
    other, step = _pieces(old, axis)
    sums = [0.0, 0.0]
    for pair in zip(old.split(step, other), new.split(step, other), strict=True):
        for i, x in enumerate(pair):
            sums[i] += float(component(x, axis, removal).double().square().sum())
    return sums[0], sums[1]


def check_kept(
    name: str, old: Tensor, new: Tensor, axis: int, removal: Removal, norm: NormRule | None
) -> None:
    """Make sure that an edit of another strength than 1 has left just the share it should of what
    ``removal`` reads, to the dtype's rounding; with norms kept, that share of a longer vector.

    Raises:
        UnsupportedModelError: it has not.
    """
    if removal.strength == 1 or norm is not None:
        return
    squares, pairs = 0.0, [(old, new)]
    if old.dim() > 1:
        other, step = _pieces(old, axis)
        pairs = list(zip(old.split(step, other), new.split(step, other), strict=True))
    for before, after in pairs:
        kept = (1 - removal.strength) * component(before, axis, removal)
        squares += float((component(after, axis, removal) - kept).double().square().sum())
    off, rounding = squares**0.5, left_over(new, axis, removal)[1]
    rounding += abs(removal.strength) * left_over(old, axis, removal)[1]  # arithmetic in float32
    if not off <= rounding:
        raise UnsupportedModelError(
            f"{name} has {off:.2g} more or less of the direction than an ablation of strength "
            f"{removal.strength:g} leaves, where rounding explains {rounding:.2g}. Report the "
            "model's kind to this project."
        )


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
        for row in removal.read:
            read = values * row
            both = [x.square().sum(dtype=torch.float64).cpu() for x in (read.sum(-1), read)]
            sums[:2] += torch.stack(both)
        sums[2] += values.square().sum(dtype=torch.float64).cpu()
    left, each, size = sums.sqrt().tolist()
    smallest = precision.smallest_normal * precision.eps * weight.numel() ** 0.5
    return left, 2 * precision.eps * each + 1e-6 * size + smallest
