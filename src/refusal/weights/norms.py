"""What has to leave the input of a norm for its output to lose a direction."""

import copy

import torch
from jaxtyping import Float
from torch import Tensor, nn

from refusal.core.errors import UnsupportedModelError
from refusal.weights.projection import Removal

SMALL_GAIN = 0.01  # of the mean squared gain; measured: 0 and 0.1 leave larger gaps to the hooks


def before_norm(
    norm: nn.Module, rows: Float[Tensor, "rank d_model"], strength: float = 1.0
) -> Removal:
    """What to take out of the input of ``norm`` for its output to lose orthonormal ``rows``, or a
    share ``strength`` of them, float32, on the device of ``rows``.

    With the norm's gain ``g`` the output is ``g * x / s(x)``. Reading ``unit * g`` and writing
    ``unit / g`` takes out of it just what the hook takes, but for the norm's own rescaling (``s``
    is that of the edited ``x``). Where a gain is nearly 0 dividing by it would make that rescaling
    large, so the write is ``unit * g / (g^2 + a little)``: any write leaves nothing of ``unit`` in
    the output. A norm that subtracts the mean does so with both. Of several rows the writes are
    combined so that each is read by its own row only. The gain is measured (Gemma's is ``1 +
    weight``). A bias of the norm writes to the stream by itself.

    Raises:
        UnsupportedModelError: the module is neither an RMS nor a layer norm.
    """
    wide = copy.deepcopy(norm).float()
    device = next((p.device for p in norm.parameters()), torch.device("cpu"))

    def run(x: Tensor) -> Tensor:
        with torch.no_grad():
            out: Tensor = wide(x.to(device)[None, None])[0, 0]
        return out.float().cpu()

    d_model = rows.shape[1]
    scale = 100.0  # the norm's epsilon is nothing beside it
    signs = torch.tensor([1.0, -1.0]).repeat(d_model)[:d_model]
    plus, minus = run(signs * scale), run(-signs * scale)
    gain, bias = (plus - minus) / 2 * signs, (plus + minus) / 2
    centred = torch.allclose(run(signs * scale + 3 * scale), plus, rtol=1e-3, atol=1e-5)

    def linear(x: Tensor) -> Tensor:
        return x - x.mean(-1, keepdim=True) if centred else x

    x = torch.randn(d_model, generator=torch.Generator().manual_seed(0)) * scale
    expected = gain * linear(x) / linear(x).square().mean().sqrt() + bias
    if d_model % 2 or not (run(x) - expected).norm() <= 1e-3 * expected.norm():
        raise UnsupportedModelError(
            f"The {type(norm).__name__} between a writer and the stream is no RMS or layer norm, "
            "so weights cannot be edited through it. Ablation by hooks works: use Ablate."
        )
    weighted = rows.float().cpu() * gain
    read = linear(weighted)
    read = read / read.norm(dim=1, keepdim=True).clamp_min(1e-30)  # zero rows stay
    write = linear(weighted / (gain.square() + SMALL_GAIN * gain.square().mean()))
    if len(rows) == 1:
        overlap = read[0] @ write[0]
        write = write / (overlap if overlap else 1.0)
    else:
        write = torch.linalg.solve((read @ write.T).double().T, write.double()).float()
    return Removal(read, write, strength).to(rows.device)


def is_norm(module: nn.Module) -> bool:
    """Whether a writer is a norm: without a matrix it can only rescale what it is given."""
    return all(parameter.dim() == 1 for parameter in module.parameters())
