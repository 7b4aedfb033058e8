"""The edit of a model's weights that does what an ablation does: what is taken out of which
parameter.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from refusal.core.direction import Direction
from refusal.core.errors import DirectionError, UnsupportedModelError
from refusal.core.valid import EXACT, check_width
from refusal.interventions.ablate_add import Ablate
from refusal.interventions.stream import Place, part_of
from refusal.model.sites import Sites
from refusal.weights.parameters import StreamParameter, removal_for
from refusal.weights.projection import Removal

Blocks = Sequence[str]
Writers = Sequence[Sequence[str]]


@dataclass(frozen=True)
class WeightEdit:
    """An ablation as what is taken out of each parameter.

    Attributes:
        parameters: those that change.
        removals: of each of them, by name.
    """

    ablation: Ablate
    parameters: tuple[StreamParameter, ...]
    removals: Mapping[str, Removal]


def as_ablation(what: Direction | Ablate) -> Ablate:
    """An ablation; of a direction the whole of it."""
    return Ablate(what) if isinstance(what, Direction) else what


def edit_of(
    hf: PreTrainedModel,
    sites: Sites,
    parameters: Iterable[StreamParameter],
    what: Direction | Ablate,
) -> WeightEdit:
    """What is taken out of which of ``parameters``, which are all that write to the stream.

    Raises:
        DirectionError: the ablation changes nothing, or lacks the direction of a layer.
        UnsupportedModelError: a strength that differs between attention and MLP, and a parameter
            that cannot be told to be of either.
    """
    ablation, kept = as_ablation(what), []
    removals = {}
    for parameter in parameters:
        place = place_of(parameter, sites.blocks, sites.writers)
        rows, strength = ablation.taken_at(place)
        removal = removal_for(hf, parameter, rows, strength)
        if not removal.idle:
            removals[parameter.name] = removal
            kept.append(parameter)
    check_something(kept)
    return WeightEdit(ablation, tuple(kept), removals)


def place_of(parameter: StreamParameter, blocks: Blocks, writers: Writers) -> Place:
    """Where in a model of these blocks a parameter writes.

    Raises:
        UnsupportedModelError: it is in a block, and in none of its writers.
    """
    depth = len(blocks)
    layer = next((i for i, b in enumerate(blocks) if parameter.name.startswith(f"{b}.")), None)
    if layer is None:
        return Place(None, None, depth)
    names = writers[layer]
    within = [n for n in names if n == parameter.norm or f"{parameter.name}.".startswith(f"{n}.")]
    if not within:
        raise UnsupportedModelError(
            f"{parameter.name} writes to the stream and is in none of the writers of its block: "
            f"{', '.join(names)}. Ablation by hooks works: use Ablate."
        )
    return Place(layer, part_of(names, max(within, key=len)), depth)


def acts(ablation: Ablate, place: Place) -> bool:
    """Whether an ablation changes what is written at a place."""
    rows, strength = ablation.taken_at(place)
    return bool(strength) and bool(rows.any())


def check_something(parameters: Sequence[StreamParameter]) -> None:
    """Raise DirectionError where no parameter changes."""
    if not parameters:
        raise DirectionError(
            "The ablation changes no weight: its strength is 0 everywhere. Give another."
        )


def check_direction(what: Direction | Ablate, name: str, d_model: int) -> None:
    """Make sure that a direction's rows are orthonormal and fit the model called ``name``.

    Raises:
        DirectionError: they do not.
    """
    direction = as_ablation(what).direction
    if direction.model and direction.model != name:
        raise DirectionError(
            f"The direction was found on {direction.model}, not on {name}. Give a direction of "
            "this model; if it is the same model under another name, set the direction's `model` "
            "to this name."
        )
    check_width(direction.vector, d_model)
    length = float(direction.vector.double().norm())
    if not abs(length - 1) < EXACT:
        raise DirectionError(
            f"The direction has length {length:.7g}, not 1: an edit would leave some of it. Divide "
            "it by its norm, in float32."
        )
    rows = direction.rows.double()
    off = rows @ rows.T - torch.eye(len(rows), dtype=rows.dtype, device=rows.device)
    if not float(off.abs().max()) < 2 * EXACT:  # a length's square is off by twice as much
        raise DirectionError(
            "The rows of the direction's subspace are not orthonormal. Make it with "
            "refusal.core.subspace.spanned."
        )
