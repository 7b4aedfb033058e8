"""Affine concept editing (arXiv 2411.09003): the component along the direction is set to what it is
on harmless prompts, not to zero.

Zero need not be neutral: where both classes lie far on one side of it, ablation to zero takes the
model out of what it knows.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from refusal.core.direction import Direction
from refusal.core.errors import DirectionError
from refusal.core.records import Metric
from refusal.core.valid import check_width
from refusal.interventions.stream import StreamEdit, wide


@dataclass(frozen=True)
class Affine(StreamEdit):
    """``x - u (u . x) + u (u . reference) + alpha r`` at the input of the block where the direction
    was read, at every token.

    ``u`` is the direction's unit vector, ``r`` the difference in means, ``reference`` the mean
    residual stream of harmless prompts there. ``alpha = 0`` sets the component along ``u`` to the
    harmless mean's, ``alpha = 1`` to the harmful mean's, whatever it was.
    """

    direction: Direction
    reference: Float[Tensor, "d_model"]
    alpha: float = 0.0

    def __post_init__(self) -> None:
        """Raise DirectionError unless the reference is as wide as the direction."""
        check_width(self.direction.vector, len(self.reference))

    @property
    def block(self) -> int:
        """The block at whose input the direction was read."""
        return self.direction.layer

    @property
    def vectors(self) -> Float[Tensor, "2 d_model"]:
        """The unit vector, and the component that all tokens get."""
        unit = wide(self.direction.vector)
        level = unit.double() @ self.reference.double().to(unit.device)
        level = level + self.alpha * self.direction.norm
        return torch.stack([unit, unit * level.to(unit.dtype)])

    @staticmethod
    def change(
        x: Float[Tensor, "*batch d_model"], vectors: Float[Tensor, "2 *rows d_model"]
    ) -> Float[Tensor, "*batch d_model"]:
        """``x`` with that component instead of its own."""
        unit, level = vectors.to(wide(x).dtype)
        along = wide(x) @ (unit[:, None] if unit.dim() == 1 else unit.mT)
        changed: Tensor = torch.addcmul(wide(x), along, unit, value=-1) + level
        return changed.to(x.dtype)


def to_harmless_mean(direction: Direction, alpha: float = 0.0) -> Affine:
    """The component of harmless prompts for all; with ``alpha`` so far on towards harmful ones.

    Raises:
        DirectionError: no harmless mean is known of the direction.
    """
    return Affine(direction, harmless_mean(direction), alpha)


def levels(direction: Direction) -> Sequence[Metric]:
    """The mean component along the direction of harmless prompts, and beside it of harmful ones."""
    harmless = float(direction.vector.double() @ harmless_mean(direction).double())
    means = {"harmless": harmless, "harmful": harmless + direction.norm}
    found = []
    for label, value in means.items():
        name = f"mean_{label}_component"
        found.append(Metric(name, "direction", "affine", value, value, value, 1))
    return found


def harmless_mean(direction: Direction) -> Float[Tensor, "d_model"]:
    """The mean residual stream of harmless prompts at the direction's place.

    Raises:
        DirectionError: it is not known.
    """
    if direction.harmless_mean is None:
        raise DirectionError(
            "The direction has no harmless mean beside it, which affine and projected need: the "
            "method that found it gives none, or an older version found it. Use --method dim or "
            "cosmic; in a run of an older version delete candidates.safetensors, and the same "
            "command makes it again."
        )
    return direction.harmless_mean
