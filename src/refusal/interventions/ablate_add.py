"""The interventions as pure functions of the residual stream, and where each of them acts.

Projection is done in float32 also when the model runs in bfloat16, and never in place.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel

from refusal.core.errors import DirectionError
from refusal.core.records import Direction
from refusal.core.valid import check_width
from refusal.model.hooks import Edit, EditFunction
from refusal.model.sites import Sites


@dataclass(frozen=True)
class Ablate:
    """Directional ablation: project the direction out of the stream everywhere, at every token.

    The stream is clean if what enters block 0 is and every write is (it is their sum), so only
    those are projected (paper section 2.4, equation 4); and the embedding's output, where blocks
    read that beside the stream.
    """

    direction: Direction

    def __call__(self, x: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_model"]:
        """``x`` without its component along the direction."""
        return project_out(x, self.direction.vector.to(x.device).float())

    def edits(self, model: PreTrainedModel, sites: Sites) -> list[Edit]:
        """Project the input of block 0 and every write."""
        check_width(self.direction.vector, sites.d_model)
        unit = _Placed(self.direction.vector.float())
        return _everywhere(model, sites, lambda x: project_out(x, unit.beside(x)))


@dataclass(frozen=True)
class AblateEach:
    """Ablation of several directions side by side: the rows of a batch are as many equal groups,
    one a direction.
    """

    directions: tuple[Direction, ...]

    def edits(self, model: PreTrainedModel, sites: Sites) -> list[Edit]:
        """As ``Ablate``, each group of rows with its own direction."""
        for direction in self.directions:
            check_width(direction.vector, sites.d_model)
        units = _Placed(
            torch.stack([direction.vector.float() for direction in self.directions])[:, None]
        )

        def clean(x: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_model"]:
            groups = x.unflatten(0, (len(self.directions), -1)).flatten(
                1, -2
            )  # (direction, row * token, d_model)
            return project_out(groups, units.beside(x)).view_as(x)

        return _everywhere(model, sites, clean)


@dataclass(frozen=True)
class Add:
    """Activation addition: ``x + alpha * norm * r_hat`` at the input of one block, at every token.

    ``alpha = 1`` adds the difference in means itself, ``alpha = -1`` is the method's subtraction
    (paper section 2.4, equation 3). ``layer`` defaults to the layer the direction was read at.
    """

    direction: Direction
    alpha: float = 1.0
    layer: int | None = None

    @property
    def step(self) -> Float[Tensor, "d_model"]:
        """What is added, float32."""
        return self.direction.vector.float() * (self.alpha * self.direction.norm)

    def __call__(self, x: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_model"]:
        """``x`` moved along the direction."""
        return (x.float() + self.step.to(x.device)).to(x.dtype)

    def edits(self, model: PreTrainedModel, sites: Sites) -> list[Edit]:
        """Add at the input of the block."""
        check_width(self.direction.vector, sites.d_model)
        layer = self.direction.layer if self.layer is None else self.layer
        if not 0 <= layer < sites.n_layers:
            raise DirectionError(
                f"Layer {layer} does not exist: the model has layers 0 to {sites.n_layers - 1}."
            )
        step = _Placed(self.step)
        block = model.get_submodule(sites.blocks[layer])
        return [Edit(block, "input", lambda x: (x.float() + step.beside(x)).to(x.dtype))]


def project_out(
    x: Float[Tensor, "*batch d_model"],
    unit: Float[Tensor, "d_model"] | Float[Tensor, "group 1 d_model"],
) -> Float[Tensor, "*batch d_model"]:
    """``x - r_hat (r_hat . x)`` in float32, in the dtype of ``x``; ``unit`` is float32 and on the
    device of ``x``.
    """
    wide = x.float()
    along = wide @ (unit[:, None] if unit.dim() == 1 else unit.mT)
    return torch.addcmul(wide, along, unit, value=-1).to(x.dtype)


class _Placed:
    """A tensor that is copied to each device at most once, not at every call of a hook."""

    def __init__(self, tensor: Tensor) -> None:
        self.on = {tensor.device: tensor}

    def beside(self, x: Tensor) -> Tensor:
        """The tensor on the device of ``x``."""
        if x.device not in self.on:
            self.on[x.device] = next(iter(self.on.values())).to(x.device)
        return self.on[x.device]


def _everywhere(model: PreTrainedModel, sites: Sites, clean: EditFunction) -> list[Edit]:
    """``clean`` at the input of block 0, at every write, and at the embedding where it is read
    elsewhere too.
    """
    first = [Edit(model.get_submodule(sites.blocks[0]), "input", clean)]
    if sites.embedding_elsewhere:
        first.append(Edit(model.get_submodule(sites.embedding), "output", clean))
    return [
        *first,
        *(
            Edit(model.get_submodule(name), "output", clean)
            for names in sites.writers
            for name in names
        ),
    ]
