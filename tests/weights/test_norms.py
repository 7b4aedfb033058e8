"""Through a norm the direction is gone from the output, and little else."""

import pytest
import torch
from torch import nn

from refusal import UnsupportedModelError
from refusal.weights.norms import before_norm


@pytest.mark.parametrize("make", [nn.RMSNorm, nn.LayerNorm, lambda d: nn.LayerNorm(d, bias=False)])
def test_what_a_norm_has_to_lose(make: type[nn.Module]) -> None:
    random = torch.Generator().manual_seed(0)
    norm = make(64)
    for p in norm.parameters():
        p.data = 0.5 + torch.rand(64, generator=random)
    unit = torch.randn(64, generator=random)
    unit = unit / unit.norm()
    removal = before_norm(norm, unit[None])
    x = torch.randn(10, 64, generator=random)
    edited = norm(x - (x @ removal.read.T) @ removal.write)
    bias = getattr(norm, "bias", None)
    constant = 0.0 if bias is None else float(bias.detach() @ unit)
    assert (edited @ unit - constant).abs().max() < 1e-4
    # Beyond the norm's own rescaling it is what the hook does, unless the norm also subtracts the
    # mean again.
    hooked = norm(x) - (norm(x) @ unit - constant)[:, None] * unit
    near = 0.9999 if isinstance(norm, nn.RMSNorm) else 0.99
    if bias is not None:
        edited, hooked = edited - bias, hooked - bias
    assert torch.nn.functional.cosine_similarity(edited, hooked, dim=-1).min() > near


def test_something_that_is_no_norm_is_refused() -> None:
    with pytest.raises(UnsupportedModelError, match=r"GELU .* is no RMS or layer norm"):
        before_norm(nn.GELU(), torch.ones(1, 8) / 8**0.5)
