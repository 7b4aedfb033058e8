"""One weight without a direction: the arithmetic that every way of editing shares."""

import torch
from jaxtyping import Float
from torch import Tensor

CHUNK = 2**24  # elements projected at once in float32: 64 MB


def project_weight(weight: Tensor, axis: int, unit: Float[Tensor, "d_model"], preserve_norm: bool = False) -> Tensor:
    """``weight`` without its component along ``unit`` on dimension ``axis``: a new tensor of the same dtype.

    Arithmetic is float32, a piece at a time, so that no whole float32 copy is made. Fused experts are done one by one:
    sums are rounded in an order that depends on the shape, and so this gives bit for bit what single experts give.

    Args:
        weight: any tensor whose dimension ``axis`` has the size of ``unit``.
        axis: the dimension on the stream's side.
        unit: unit vector, float32, on the device of ``weight``.
        preserve_norm: rescale what each input writes (the vectors along ``axis``) to the norm it had. Rescaling along
            any other dimension would bring the direction back. A bias is projected only.
    """
    if weight.dim() == 1:
        return _projected(weight, 0, unit).to(weight.dtype)
    out = torch.empty_like(weight)
    if weight.dim() == 3:
        for source, target in zip(weight, out, strict=True):
            target.copy_(project_weight(source, axis - 1, unit, preserve_norm))
        return out
    other = max((dim for dim in range(weight.dim()) if dim != axis % weight.dim()), key=weight.shape.__getitem__)
    step = max(1, CHUNK // (weight.numel() // weight.shape[other]))
    for source, target in zip(weight.split(step, other), out.split(step, other), strict=True):
        new = _projected(source, axis, unit)
        if preserve_norm:
            new = _rescaled(new, source.float(), axis)
            left = (new.movedim(axis, -1) @ unit).norm()
            assert left <= 1e-4 * new.norm(), "norm preservation brought the direction back"
        target.copy_(new)
    return out


def _projected(weight: Tensor, axis: int, unit: Float[Tensor, "d_model"]) -> Tensor:
    """In float32."""
    wide = weight.float().movedim(axis, -1)
    return torch.addcmul(wide, (wide @ unit)[..., None], unit, value=-1).movedim(-1, axis)


def _rescaled(new: Tensor, old: Tensor, axis: int) -> Tensor:
    """Every vector along ``axis`` as long as it was; those that were all direction stay as they are (nearly zero)."""
    before, after = old.norm(dim=axis, keepdim=True), new.norm(dim=axis, keepdim=True)
    return torch.where(after > 1e-2 * before, new * (before / after), new)
