"""What all interventions along a direction have in common: one function of the residual stream, and
the places where it is applied.
"""

from abc import ABC, abstractmethod

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel

from refusal.core.direction import Direction
from refusal.core.errors import DirectionError
from refusal.core.valid import check_width
from refusal.model.hooks import Edit, EditFunction
from refusal.model.lanes import Lanes
from refusal.model.sites import Sites

LEAST_GAIN = 0.05  # of what is added to every lane, in what a block reads
LEAST_STRAIGHT = 0.5  # of how that moves, along the direction


class StreamEdit(ABC):
    """A function of the residual stream with a few vectors, float32, as its only parameters.

    ``change`` must broadcast over the vectors, so that several interventions of one class can run
    side by side in a batch. It computes in float32, returns the dtype of ``x``, and never changes
    ``x`` in place.
    """

    direction: Direction

    @property
    @abstractmethod
    def block(self) -> int | None:
        """The block at whose input it acts; ``None``: everything that is written to the stream."""

    @property
    @abstractmethod
    def vectors(self) -> Float[Tensor, "vector d_model"]:
        """What ``change`` needs of this one."""

    @staticmethod
    @abstractmethod
    def change(
        x: Float[Tensor, "*batch d_model"], vectors: Float[Tensor, "vector *rows d_model"]
    ) -> Float[Tensor, "*batch d_model"]:
        """``x`` as it is to be; ``vectors`` are on the device of ``x``."""

    def __call__(self, x: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_model"]:
        """``x`` as it is to be."""
        return self.change(x, self.vectors.to(x.device))

    def edits(self, model: PreTrainedModel, sites: Sites) -> list[Edit]:
        """``change`` at every place where it acts.

        Raises:
            DirectionError: the direction has another width than the model, or the model no such
                block.
        """
        check_width(self.direction.vector, sites.d_model)
        vectors = Placed(self.vectors)
        return edits_at(model, sites, self.block, lambda x: self.change(x, vectors.beside(x)))


def edits_at(
    model: PreTrainedModel, sites: Sites, block: int | None, change: EditFunction
) -> list[Edit]:
    """``change`` at the input of a block; with ``None`` everywhere.

    The stream is the sum of what enters block 0 and of every write, so everywhere is there; and at
    the embedding, where blocks read that beside the stream.

    In a stream of several lanes a change acts on each of them; at a block so that what the block
    reads of them is changed as it says.

    Raises:
        DirectionError: the model has no such block, or it does not read what was changed.
    """
    lanes = sites.lanes
    if block is not None:
        if not 0 <= block < sites.n_layers:
            raise DirectionError(
                f"Layer {block} does not exist: the model has layers 0 to {sites.n_layers - 1}."
            )
        if lanes is not None:
            change = lanes.each(change, _gain(sites, lanes, block))
        return [Edit(model.get_submodule(sites.blocks[block]), "input", change)]
    if lanes is not None:
        change = lanes.each(change)
    edits = [Edit(model.get_submodule(sites.blocks[0]), "input", change)]
    if sites.embedding_elsewhere:
        edits.append(Edit(model.get_submodule(sites.embedding), "output", change))
    for names in sites.writers:
        edits += [Edit(model.get_submodule(name), "output", change) for name in names]
    return edits


def _gain(sites: Sites, lanes: Lanes, block: int) -> float:
    gain, straight = lanes.gains[block], lanes.straight[block]
    if gain < LEAST_GAIN or straight < LEAST_STRAIGHT:
        raise DirectionError(
            f"Block {sites.blocks[block]} does not read what is added to its {lanes.count} lanes: "
            f"the mixture it reads moves {gain:.2g} times as far, {straight:.0%} of that along the "
            "direction. Add at another layer, or ablate."
        )
    return gain


class Placed:
    """A tensor that is copied to each device at most once, not at every call of a hook."""

    def __init__(self, tensor: Tensor) -> None:
        self.on: dict[torch.device, Tensor] = {tensor.device: tensor}

    def beside(self, x: Tensor) -> Tensor:
        """The tensor on the device of ``x``."""
        if x.device not in self.on:
            self.on[x.device] = next(iter(self.on.values())).to(x.device)
        return self.on[x.device]
