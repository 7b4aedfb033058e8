"""The interventions of the paper as pure functions of the residual stream: ablation, of any
strength and of subspaces, and addition.

Projection is done in float32 also when the model runs in bfloat16, and never in place.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel

from refusal.core.direction import Direction
from refusal.core.errors import DirectionError
from refusal.core.valid import check_width
from refusal.interventions.kernel import Kernel
from refusal.interventions.stream import Place, Placed, StreamEdit, edits_at, wide
from refusal.model.hooks import Edit
from refusal.model.sites import Sites


@dataclass(frozen=True)
class Ablate(StreamEdit):
    """Directional ablation: ``x - alpha Q' (Q x)`` everywhere, at every token, with ``Q`` the
    direction's orthonormal rows (one, or a subspace's).

    ``alpha = 1`` projects the direction out (paper section 2.4, equation 4), ``alpha = 0`` does
    nothing at all, to the bit, ``alpha = 2`` reflects.

    Attributes:
        kernel: ``alpha`` is multiplied by what it says at each block; what enters block 0 stays.
        per_layer: what block ``l`` writes loses the direction of layer ``l``
            (``direction.by_layer``) instead; what enters block 0 that of layer 0.
    """

    direction: Direction
    alpha: float = 1.0
    kernel: Kernel | None = None
    per_layer: bool = False

    @property
    def block(self) -> None:
        """Everything that is written to the stream."""
        return None

    @property
    def idle(self) -> bool:
        """Whether nothing is taken anywhere."""
        return self.alpha == 0  # -0.0 - 0.0 would be 0.0

    @property
    def varies(self) -> bool:
        """Whether strength or direction differ from block to block."""
        return self.per_layer or self.kernel is not None

    @property
    def repeats(self) -> bool:
        """Whether it is a projection wherever it acts."""
        return self.alpha == 1 and self.kernel is None

    @property
    def rank(self) -> int:
        """How many dimensions are taken out at a place."""
        return 1 if self.per_layer else self.direction.rank

    def taken_at(self, place: Place) -> tuple[Float[Tensor, "rank d_model"], float]:
        """Orthonormal rows (or a zero one) of what is taken out of what is written at a place, and
        the strength.

        Raises:
            DirectionError: the direction of that layer is not known.
        """
        share = 1.0 if self.kernel is None else self.kernel.at(place)
        rows = _layer(self.direction, place) if self.per_layer else self.direction.rows
        return wide(rows), self.alpha * share

    @property
    def vectors(self) -> Float[Tensor, "vector d_model"]:
        """Each row, followed by what is taken away for each unit along it."""
        return _paired(wide(self.direction.rows), self.alpha)

    def vectors_at(self, place: Place) -> Float[Tensor, "vector d_model"] | None:
        """Each row at a place, followed by what is taken away for each unit along it."""
        rows, strength = self.taken_at(place)
        return _paired(rows, strength) if strength and rows.detach().any() else None

    @staticmethod
    def change(
        x: Float[Tensor, "*batch d_model"], vectors: Float[Tensor, "vector *rows d_model"]
    ) -> Float[Tensor, "*batch d_model"]:
        """``x`` with less of its components along the rows.

        Row by row, each component that of ``x`` itself, so that a zero row changes no bit.
        """
        given, vectors = wide(x), vectors.to(wide(x).dtype)
        new = given
        for unit, taken in zip(vectors[::2], vectors[1::2], strict=True):
            along = given @ (unit[:, None] if unit.dim() == 1 else unit.mT)
            new = torch.addcmul(new, along, taken, value=-1)
        return new.to(x.dtype)


def _paired(rows: Float[Tensor, "rank d_model"], strength: float) -> Float[Tensor, "two d_model"]:
    return torch.stack([rows, strength * rows], dim=1).flatten(0, 1)


def _layer(direction: Direction, place: Place) -> Float[Tensor, "1 d_model"]:
    layer, known = place.layer or 0, direction.by_layer
    if known is None or len(known) <= layer:
        there = "none" if known is None else f"layers 0 to {len(known) - 1} alone"
        raise DirectionError(
            f"Ablation per layer needs a direction of layer {layer}, and {there} stand beside this "
            "one. A run finds them with --interventions per_layer; in a run of an older version "
            "delete direction.safetensors first."
        )
    return known[layer][None]


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
        return wide(self.direction.vector)[None] * (self.alpha * self.direction.norm)

    @staticmethod
    def change(
        x: Float[Tensor, "*batch d_model"], vectors: Float[Tensor, "1 *rows d_model"]
    ) -> Float[Tensor, "*batch d_model"]:
        """``x`` moved by the step."""
        return (wide(x) + vectors[0]).to(x.dtype)


def project_out(
    x: Float[Tensor, "*batch d_model"],
    unit: Float[Tensor, "d_model"] | Float[Tensor, "group 1 d_model"],
) -> Float[Tensor, "*batch d_model"]:
    """``x - unit (unit . x)`` in float32, in the dtype of ``x``.

    The vectors are float32 and on the device of ``x``.
    """
    given = x.float()
    along = given @ (unit[:, None] if unit.dim() == 1 else unit.mT)
    return torch.addcmul(given, along, unit, value=-1).to(x.dtype)


def subtract(direction: Direction, alpha: float = 1.0) -> Add:
    """Addition of a negative step (paper section 2.4, equation 3)."""
    return Add(direction, -alpha)
