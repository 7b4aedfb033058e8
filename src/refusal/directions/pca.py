"""Principal component: the axis along which pairs of a harmful and a harmless prompt differ most.

The pairs are of no more in common than their place in the drawing order, so the axis may be a
topic's; the sign is that of the difference in means.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from refusal.config.run_config import RunConfig
from refusal.directions.from_activations import FromActivations, Rows


class PrincipalComponent(FromActivations):
    """The first right singular vector of the paired differences, which are not centred."""

    def find(self, harmful: Rows, harmless: Rows, config: RunConfig) -> Float[Tensor, "1 d_model"]:
        """The component of one place; prompts that have no partner are left out."""
        n = min(len(harmful), len(harmless))
        axis: Tensor = torch.linalg.svd(harmful[:n] - harmless[:n], full_matrices=False).Vh[0]
        towards = axis @ (harmful.mean(0) - harmless.mean(0))
        return (axis * (-1.0 if towards < 0 else 1.0))[None]
