"""The interventions as pure functions of the residual stream, and where each of them acts.

Projection is done in float32 also when the model runs in bfloat16, and never in place.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel

from refusal.errors import DirectionError
from refusal.hooks import Edit
from refusal.records import Direction
from refusal.sites import Sites


@runtime_checkable
class Intervention(Protocol):
    """Anything that turns a direction into edits of a model's forward pass."""

    def edits(self, model: PreTrainedModel, sites: Sites) -> list[Edit]:
        """What to do at which modules."""
        ...


@dataclass(frozen=True)
class Ablate:
    """Directional ablation: project the direction out of the stream everywhere, at every token.

    The stream is clean if what enters block 0 is and every write is (it is their sum), so only those are projected
    (paper section 2.4, equation 4).
    """

    direction: Direction

    def __call__(self, x: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_model"]:
        """``x`` without its component along the direction."""
        return project_out(x, self.direction.vector)

    def edits(self, model: PreTrainedModel, sites: Sites) -> list[Edit]:
        """Project the input of block 0 and every write."""
        _check_width(self.direction, sites)
        first = Edit(model.get_submodule(sites.blocks[0]), "input", self)
        return [first] + [Edit(model.get_submodule(n), "output", self) for names in sites.writers for n in names]


@dataclass(frozen=True)
class Add:
    """Activation addition: ``x + alpha * norm * r_hat`` at the input of one block, at every token.

    ``alpha = 1`` adds the difference in means itself, ``alpha = -1`` is the method's subtraction (paper section 2.4,
    equation 3). ``layer`` defaults to the layer the direction was read at.
    """

    direction: Direction
    alpha: float = 1.0
    layer: int | None = None

    def __call__(self, x: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_model"]:
        """``x`` moved along the direction."""
        step = self.direction.vector.to(x.device).float() * (self.alpha * self.direction.norm)
        return (x.float() + step).to(x.dtype)

    def edits(self, model: PreTrainedModel, sites: Sites) -> list[Edit]:
        """Add at the input of the block."""
        _check_width(self.direction, sites)
        layer = self.direction.layer if self.layer is None else self.layer
        if not 0 <= layer < sites.n_layers:
            raise DirectionError(f"Layer {layer} does not exist: the model has layers 0 to {sites.n_layers - 1}.")
        return [Edit(model.get_submodule(sites.blocks[layer]), "input", self)]


def project_out(x: Float[Tensor, "*batch d_model"], unit: Float[Tensor, "d_model"]) -> Float[Tensor, "*batch d_model"]:
    """``x - r_hat (r_hat . x)`` in float32, in the dtype of ``x``."""
    r = unit.to(x.device).float()
    wide = x.float()
    return (wide - (wide @ r)[..., None] * r).to(x.dtype)


def all_edits(interventions: Sequence[Intervention], model: PreTrainedModel, sites: Sites) -> list[Edit]:
    """The edits of several interventions, in order."""
    return [edit for intervention in interventions for edit in intervention.edits(model, sites)]


def _check_width(direction: Direction, sites: Sites) -> None:
    width = direction.vector.shape[-1]
    if width != sites.d_model:
        raise DirectionError(
            f"The direction has {width} dimensions but the model's residual stream {sites.d_model}. "
            "Use a direction that was found on this model."
        )
