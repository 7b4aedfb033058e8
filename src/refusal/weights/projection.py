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
    off, size = squares**0.5, size_before(old, axis, removal)
    rounding = left_over(new, axis, removal, size)[1]
    if not off <= rounding:
        raise UnsupportedModelError(
            f"{name} has {off:.2g} more or less of the direction than an ablation of strength "
            f"{removal.strength:g} leaves, where rounding explains {rounding:.2g}. Report the "
            "model's kind to this project."
        )


def size_before(weight: Tensor, axis: int, removal: Removal, norm: NormRule | None = None) -> float:
    """Frobenius norm of a weight that is to be edited, as `left_over` is told it.

    With ``norm = "column"`` every vector counts as much more as the edit makes what is left of it
    longer: so does it with what rounding has left there.
    """
    if weight.dim() == 1:
        return float(weight.double().norm())
    other, step = _pieces(weight, axis)
    squares = 0.0
    for piece in weight.split(step, other):
        old = piece.float()
        if norm == "column":
            new = _projected(piece, axis, removal)
            longer = _rescaled(new, old, axis).norm(dim=axis) / new.norm(dim=axis).clamp_min(1e-30)
            old = old.norm(dim=axis) * longer.clamp_min(1)
        squares += float(old.square().sum(dtype=torch.float64))
    return float(squares**0.5)


def left_over(weight: Tensor, axis: int, removal: Removal, size: float) -> tuple[float, float]:
    """How much of the direction ``removal`` still reads in an edited weight, and how much rounding
    may leave; both as Frobenius norms.

    Of a written vector ``w`` with ``c = read w`` the edit stores ``w' = w - strength c write``. The
    limit has two parts:

    - Storing rounds every element of ``w'`` by itself, by at most half of ``eps |w'_i|`` with
      ``eps`` the precision of its dtype: ``0.29 eps`` is the standard deviation. What is read of
      that adds up like noise, to ``0.29 eps |read * w'|``; ``2 eps`` is seven of them.
    - The arithmetic is in float32, on elements as large as those of ``w`` and of ``strength c
      write``, however little of them is left: summing ``c`` (in about 8 levels, each off by half of
      float32's ``eps`` of what is summed, at most ``|w|``), the product, the difference, ``read``
      and ``write`` themselves (``read write' = 1`` to ``eps``), and reading ``w'`` here. With
      ``|c| <= |w|`` each is at most ``eps / 2`` of ``|w|`` or of ``strength |write| |w|``; 16 of
      both are allowed, ``8 eps (1 + strength |write|) |w|``. That is 2e-6 of a weight that lies
      along the direction, and 1e-4 of what is read of a random one of width 4096.

    Args:
        weight: as it is now. axis: the dimension on the stream's side.
        removal: what was removed.
        size: of the weight before the edit, see `size_before`.
    """
    wide, precision = weight.dim() if weight.dim() > 1 else 0, torch.finfo(weight.dtype)
    other, step = _pieces(weight, axis) if wide else (0, weight.numel())
    sums = torch.zeros(2, dtype=torch.float64)
    for part in weight.split(step, other):
        values = part.float().movedim(axis, -1)
        for row in removal.read:
            read = values * row
            both = [x.square().sum(dtype=torch.float64).cpu() for x in (read.sum(-1), read)]
            sums += torch.stack(both)
    left, each = sums.sqrt().tolist()
    arithmetic = 1 + abs(removal.strength) * float(removal.write.norm())
    smallest = precision.smallest_normal * precision.eps * weight.numel() ** 0.5
    single = torch.finfo(torch.float32).eps
    return left, 2 * precision.eps * each + 8 * single * arithmetic * size + smallest
