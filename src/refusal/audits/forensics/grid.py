"""Did a weight go through few bits? Then its values stand on a grid, group by group.

A projection that was made before is hidden by that rounding, so the floor says nothing. In a group
of 16 neighbours, which every format of 4 to 6 bits shares a scale in, ``(x - min) / (max - min)``
times some number of steps up to 63 is whole for all of them, as far as the stored dtype tells.
"""

import torch
from jaxtyping import Float
from torch import Tensor

GROUP = 16
STEPS = 63  # of six bits
SAMPLES = 256
MOST_ON_GRID = 0.5  # of the groups: with more the weight is on a grid
BLUR = 0.25  # of a step: so near, sixteen values are by chance in 4 of 1000 groups


def on_grid(weight: Tensor) -> bool:
    """Whether most of a sample of a weight's groups have at most 63 equal steps."""
    width = weight.shape[-1] // GROUP * GROUP
    if not width:
        return False
    rows = weight.reshape(-1, weight.shape[-1])
    groups_a_row = width // GROUP
    count = min(SAMPLES, len(rows) * groups_a_row)
    places = torch.linspace(0, len(rows) * groups_a_row - 1, count, dtype=torch.float64).long()
    columns = (places % groups_a_row)[:, None] * GROUP + torch.arange(GROUP)
    groups = rows[(places // groups_a_row)[:, None], columns].double()
    groups = groups[(groups != groups[:, :1]).any(1)]
    if not len(groups):
        return False
    return float(_whole(groups, torch.finfo(weight.dtype).eps).double().mean()) > MOST_ON_GRID


def _whole(groups: Float[Tensor, "n group"], eps: float) -> Tensor:
    """Which groups stand on a grid."""
    low, high = groups.amin(1, keepdim=True), groups.amax(1, keepdim=True)
    steps = torch.arange(2, STEPS + 1, dtype=torch.float64)
    shares = ((groups - low) / (high - low))[:, None] * steps[:, None]
    blur = 0.75 * eps * groups.abs().amax(1, keepdim=True) / (high - low) * steps + 1e-6
    off = (shares - shares.round()).abs().amax(2)
    return ((off < blur) & (blur < BLUR)).any(1)
