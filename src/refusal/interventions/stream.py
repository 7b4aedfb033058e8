"""What all interventions along a direction have in common: one function of the residual stream, and
the places where it is applied.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel

from refusal.core.direction import Direction
from refusal.core.errors import DirectionError
from refusal.core.valid import check_width
from refusal.model.hooks import Edit, EditFunction, hooked
from refusal.model.lanes import Lanes
from refusal.model.probe import run_probe
from refusal.model.sites import Sites

LEAST_GAIN = 0.05  # of what is added to every lane, in what a block reads
LEAST_STRAIGHT = 0.5  # of how that moves, along the direction
MLP = ("mlp", "ffn", "feed_forward", "feedforward", "experts", "moe")
Part = Literal["attention", "mlp"]


@dataclass(frozen=True)
class Place:
    """What is written to the stream where: by a part of a block, or (``part = None``) what enters
    a block (block 0 where ``layer = None``), of a model of ``depth`` blocks.
    """

    layer: int | None
    part: Part | None
    depth: int


class StreamEdit(ABC):
    """A function of the residual stream with a few vectors, float32, as its only parameters.

    ``change`` must broadcast over the vectors, so that several interventions of one class can run
    side by side in a batch. It computes in float32, returns the dtype of ``x``, and never changes
    ``x`` in place. Side by side, one with fewer vectors gets zero vectors at the end.
    """

    direction: Direction

    @property
    def idle(self) -> bool:
        """Whether it changes nothing at all, to the bit."""
        return False

    @property
    def varies(self) -> bool:
        """Whether its vectors differ from place to place."""
        return False

    @property
    def repeats(self) -> bool:
        """Whether doing it twice is doing it once."""
        return True

    @property
    @abstractmethod
    def block(self) -> int | None:
        """The block at whose input it acts; ``None``: everything that is written to the stream."""

    @property
    @abstractmethod
    def vectors(self) -> Float[Tensor, "vector d_model"]:
        """What ``change`` needs of this one."""

    def vectors_at(self, place: Place) -> Float[Tensor, "vector d_model"] | None:
        """What ``change`` needs at a place; ``None`` where nothing is done."""
        return self.vectors

    @staticmethod
    @abstractmethod
    def change(
        x: Float[Tensor, "*batch d_model"], vectors: Float[Tensor, "vector *rows d_model"]
    ) -> Float[Tensor, "*batch d_model"]:
        """``x`` as it is to be; ``vectors`` are on the device of ``x``."""

    def __call__(self, x: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_model"]:
        """``x`` as it is to be."""
        return x if self.idle else self.change(x, self.vectors.to(x.device))

    def edits(self, model: PreTrainedModel, sites: Sites) -> list[Edit]:
        """``change`` at every place where it acts.

        Raises:
            DirectionError: the direction has another width than the model, or the model no such
                block.
        """
        if self.idle:
            return []
        check_width(self.direction.vector, sites.d_model)
        if self.block is None and self.varies:
            return edits_everywhere(model, sites, self._change_at, self.repeats)
        vectors = Placed(self.vectors)

        def change(x: Tensor) -> Tensor:
            return self.change(x, vectors.beside(x))

        return edits_at(model, sites, self.block, change, self.repeats)

    def _change_at(self, place: Place) -> EditFunction | None:
        found = self.vectors_at(place)
        if found is None:
            return None
        vectors = Placed(found)
        return lambda x: self.change(x, vectors.beside(x))


def edits_at(
    model: PreTrainedModel,
    sites: Sites,
    block: int | None,
    change: EditFunction,
    repeats: bool = True,
    start: int | None = None,
) -> list[Edit]:
    """``change`` at the input of a block; with ``None`` everywhere (`edits_everywhere`), from the
    block ``start`` on.

    In a stream of several lanes a change acts on each of them; at a block so that what the block
    reads of them is changed as it says.

    Raises:
        DirectionError: the model has no such block, it lies below ``start``, or it does not read
            what was changed.
    """
    lanes = sites.lanes
    if block is not None and start is not None and block < start:
        raise DirectionError(
            f"The intervention acts at layer {block}, and whether it is to act is known from layer "
            f"{start} on. Use a monitor that reads at layer {block} or below, or a direction of a "
            "later layer."
        )
    if block is not None:
        if not 0 <= block < sites.n_layers:
            raise DirectionError(
                f"Layer {block} does not exist: the model has layers 0 to {sites.n_layers - 1}."
            )
        if lanes is not None:
            change = lanes.each(change, _gain(sites, lanes, block))
        return [Edit(model.get_submodule(sites.blocks[block]), "input", change)]
    return edits_everywhere(model, sites, lambda place: change, repeats, start)


def edits_everywhere(
    model: PreTrainedModel,
    sites: Sites,
    change_at: Callable[[Place], EditFunction | None],
    repeats: bool = True,
    start: int | None = None,
) -> list[Edit]:
    """The change of each place, at what enters block 0 and at every write, of which the stream is
    the sum; and at the embedding, where blocks read that beside the stream.

    Args:
        change_at: what is done at a place; ``None``: nothing.
        start: only at what enters that block and what is written from there on.
        repeats: a change done twice is done once. Else what enters block 0 is left alone where the
            embedding is changed.

    Raises:
        DirectionError: a change that does not repeat, where the stream is no sum of writes or what
            is changed in the embedding is not just what enters block 0; no block is left.
    """
    if not (repeats or sites.additive):
        raise DirectionError(
            "In this model the residual stream is no plain sum of what is written to it, so an "
            "ablation of another strength than 1 is not defined. Use strength 1."
        )
    edits = []

    def put(name: str, side: Literal["input", "output"], change: EditFunction | None) -> None:
        if change is not None:
            each = change if sites.lanes is None else sites.lanes.each(change)
            edits.append(Edit(model.get_submodule(name), side, each))

    first_block = start or 0
    if first_block >= sites.n_layers:
        raise DirectionError(
            f"Whether an intervention is to act is known from layer {first_block} on, and the "
            f"model has layers 0 to {sites.n_layers - 1}. Use a monitor that reads below."
        )
    first = change_at(Place(start or None, None, sites.n_layers))
    beside = sites.embedding_elsewhere and start is None
    if beside and first is not None:
        put(sites.embedding, "output", first)
    if beside and first is not None and not repeats:
        _check_embedding_alone(model, sites)
    else:
        put(sites.blocks[first_block], "input", first)
    for layer, names in list(enumerate(sites.writers))[first_block:]:
        for name in names:
            put(name, "output", change_at(Place(layer, part_of(names, name), sites.n_layers)))
    return edits


def part_of(names: Sequence[str], writer: str) -> Part:
    """Which part of its block a writer is, of all ``names``: the first that runs is attention (or
    what stands in its place), all others are MLPs. One that writes alone is what its name says,
    else attention.
    """
    if len(names) > 1:
        return "attention" if writer == names[0] else "mlp"
    last = writer.rpartition(".")[2].lower()
    return "mlp" if any(word in last for word in MLP) else "attention"


def _check_embedding_alone(model: PreTrainedModel, sites: Sites) -> None:
    """Raise DirectionError unless what enters block 0 is the embedding's output and nothing
    else, so that a change of the one is a change of the other.
    """
    seen: list[Tensor] = []

    def keep(x: Tensor) -> None:
        seen.append(x.detach().clone())

    with hooked([Edit(model.get_submodule(sites.embedding), "output", keep)]):
        stream = run_probe(model, sites.blocks[:1]).inputs[0]
    if not (seen and torch.equal(seen[0].to(stream).view_as(stream), stream)):
        raise DirectionError(
            "In this model blocks read the embedding beside the stream, and what enters block 0 is "
            "not the embedding alone, so an ablation of another strength than 1 is not defined. "
            "Use strength 1."
        )


def _gain(sites: Sites, lanes: Lanes, block: int) -> float:
    gain, straight = lanes.gains[block], lanes.straight[block]
    if gain < LEAST_GAIN or straight < LEAST_STRAIGHT:
        raise DirectionError(
            f"Block {sites.blocks[block]} does not read what is added to its {lanes.count} lanes: "
            f"the mixture it reads moves {gain:.2g} times as far, {straight:.0%} of that along the "
            "direction. Add at another layer, or ablate."
        )
    return gain


def wide(x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """``x`` in float32, or in float64 where it is that: what changes compute in."""
    return x if x.dtype == torch.float64 else x.float()


class Placed:
    """A tensor that is copied to each device at most once, not at every call of a hook."""

    def __init__(self, tensor: Tensor) -> None:
        self.on: dict[torch.device, Tensor] = {tensor.device: tensor}

    def beside(self, x: Tensor) -> Tensor:
        """The tensor on the device of ``x``."""
        if x.device not in self.on:
            self.on[x.device] = next(iter(self.on.values())).to(x.device)
        return self.on[x.device]
