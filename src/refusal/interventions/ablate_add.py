"""The interventions of the paper as pure functions of the residual stream: ablation and addition.

Projection is done in float32 also when the model runs in bfloat16, and never in place.
"""

from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel

from refusal.core.direction import Direction
from refusal.core.valid import check_width
from refusal.interventions.stream import Placed, StreamEdit, edits_at
from refusal.model.hooks import Edit
from refusal.model.sites import Sites


@dataclass(frozen=True)
class Ablate(StreamEdit):
    """Directional ablation: ``x - alpha r_hat (r_hat . x)`` everywhere, at every token.

    ``alpha = 1`` projects the direction out (paper section 2.4, equation 4), ``alpha = 0`` does
    nothing at all, to the bit.
    """

    direction: Direction
    alpha: float = 1.0

    @property
    def block(self) -> None:
        """Everything that is written to the stream."""
        return None

    @property
    def vectors(self) -> Float[Tensor, "2 d_model"]:
        """The unit vector, and what is taken away for each unit along it."""
        unit = self.direction.vector.float()
        return torch.stack([unit, self.alpha * unit])

    @staticmethod
    def change(
        x: Float[Tensor, "*batch d_model"], vectors: Float[Tensor, "2 *rows d_model"]
    ) -> Float[Tensor, "*batch d_model"]:
        """``x`` with less of its component along the direction."""
        return project_out(x, vectors[0], vectors[1])

    def __call__(self, x: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_model"]:
        """``x`` with less of its component along the direction."""
        return super().__call__(x) if self.alpha else x  # -0.0 - 0.0 would be 0.0

    def edits(self, model: PreTrainedModel, sites: Sites) -> list[Edit]:
        """Project the input of block 0 and every write; nothing with ``alpha = 0``."""
        return super().edits(model, sites) if self.alpha else []


@dataclass(frozen=True)
class AblateEach:
    """Ablation of several directions side by side: the rows of a batch are as many equal groups,
    one a direction.
    """

    directions: tuple[Direction, ...]

    def edits(self, model: PreTrainedModel, sites: Sites) -> list[Edit]:
        """Project the input of block 0 and every write, each group of rows with its own
        direction.
        """
        for direction in self.directions:
            check_width(direction.vector, sites.d_model)
        units = Placed(
            torch.stack([direction.vector.float() for direction in self.directions])[:, None]
        )

        def clean(x: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_model"]:
            groups = x.unflatten(0, (len(self.directions), -1)).flatten(
                1, -2
            )  # (direction, row * token, d_model)
            return project_out(groups, units.beside(x)).view_as(x)

        return edits_at(model, sites, None, clean)


@dataclass(frozen=True)
class Add(StreamEdit):
    """Activation addition: ``x + alpha * norm * r_hat`` at the input of one block, at every token.

    ``alpha = 1`` adds the difference in means itself, ``alpha = -1`` is the method's subtraction
    (paper section 2.4, equation 3). ``layer`` defaults to the layer the direction was read at.
    """

    direction: Direction
    alpha: float = 1.0
    layer: int | None = None

    @property
    def block(self) -> int:
        """The block at whose input the step is added."""
        return self.direction.layer if self.layer is None else self.layer

    @property
    def vectors(self) -> Float[Tensor, "1 d_model"]:
        """The step."""
        return self.direction.vector.float()[None] * (self.alpha * self.direction.norm)

    @staticmethod
    def change(
        x: Float[Tensor, "*batch d_model"], vectors: Float[Tensor, "1 *rows d_model"]
    ) -> Float[Tensor, "*batch d_model"]:
        """``x`` moved by the step."""
        return (x.float() + vectors[0]).to(x.dtype)


def project_out(
    x: Float[Tensor, "*batch d_model"],
    unit: Float[Tensor, "d_model"] | Float[Tensor, "group 1 d_model"],
    taken: Float[Tensor, "d_model"] | Float[Tensor, "group 1 d_model"] | None = None,
) -> Float[Tensor, "*batch d_model"]:
    """``x - taken (unit . x)`` in float32, in the dtype of ``x``; ``taken`` is by default ``unit``.

    The vectors are float32 and on the device of ``x``.
    """
    wide = x.float()
    along = wide @ (unit[:, None] if unit.dim() == 1 else unit.mT)
    return torch.addcmul(wide, along, unit if taken is None else taken, value=-1).to(x.dtype)


subtract = partial(Add, alpha=-1.0)
