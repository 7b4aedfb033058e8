"""Linear discriminant analysis: the difference in means, seen through the inverse of the covariance
within the classes.

``(S + lambda tr(S)/d I)^-1 (mean_harmful - mean_harmless)``, the direction along which the classes
are best told apart (Fisher 1936). It reads well, and writes badly where the best reader avoids
noisy axes on which the model writes: docs/finders.md has figures.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from refusal.config.run_config import RunConfig
from refusal.directions.from_activations import FromActivations, Rows
from refusal.directions.packages import from_sklearn


class LinearDiscriminant(FromActivations):
    """The covariance is shrunk towards a multiple of the identity by Ledoit and Wolf's estimate."""

    def find(self, harmful: Rows, harmless: Rows, config: RunConfig) -> Float[Tensor, "1 d_model"]:
        """The discriminant of one place."""
        centred = torch.cat([harmful - harmful.mean(0), harmless - harmless.mean(0)])
        dim = harmful.mean(0) - harmless.mean(0)
        shrunk = from_sklearn("covariance").ledoit_wolf_shrinkage
        share = float(shrunk(centred.numpy(), assume_centered=True)) if centred.any() else 1.0
        return discriminant(dim, centred, share)[None]


def discriminant(
    dim: Float[Tensor, "d_model"], centred: Rows, share: float
) -> Float[Tensor, "d_model"]:
    """``((1 - share) S + share tr(S)/d I)^-1 dim`` for ``S = centred' centred / n``.

    With fewer prompts than dimensions by Woodbury's identity, in a system of the prompts' size:
    ``(a I + b C'C)^-1 r = (r - b C' (a I + b C C')^-1 C r) / a``.

    Args:
        share: of the multiple of the identity, above 0 where there are fewer rows than dimensions;
            1 gives the difference in means.
    """
    n, d = centred.shape
    a = share * float(centred.square().sum()) / (n * d)
    b = (1 - share) / n
    if share >= 1:  # nothing of the covariance is left
        return dim
    found: Tensor
    if n >= d:
        found = torch.linalg.solve(a * torch.eye(d).double() + b * centred.mT @ centred, dim)
        return found
    inner = a * torch.eye(n).double() + b * centred @ centred.mT
    found = (dim - b * centred.mT @ torch.linalg.solve(inner, centred @ dim)) / a
    return found
