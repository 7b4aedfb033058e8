"""What is to be done to the tensors of a checkpoint, before anything is written."""

from dataclasses import dataclass

from transformers import PreTrainedModel

from refusal.interventions.stream import Place
from refusal.weights.parameters import StreamParameter


@dataclass(frozen=True)
class Target:
    """Where a checkpoint tensor goes: a parameter's name, and the pattern of the conversion it goes
    through, if any.
    """

    name: str
    pattern: str | None


@dataclass(frozen=True)
class TensorEdit:
    """Project on dimension ``axis`` what is written at ``place``; behind ``norm``, the direction
    that this module's input has to lose.
    """

    axis: int
    norm: str | None
    place: Place


@dataclass(frozen=True)
class TensorCopy:
    """The checkpoint's tensor ``source`` under another ``name``: as the source is written, or its
    ``original``.
    """

    source: str
    name: str
    original: bool


@dataclass(frozen=True)
class Plan:
    """The edit of a whole checkpoint.

    Attributes:
        model: the model without weights.
        parameters: what is edited, by run-time name.
        edits: what is edited, by checkpoint name.
        unclaimed: tensors that transformers ignores when it loads this model; they are written as
            they are.
        norms: for each norm of an edit, its parameters' names within the module and in the
            checkpoint.
        untied: whether the embedding is tied to the head, which keeps the original.
        copies: then, tensors to write once more, since the config says that nothing is tied any
            more.
    """

    model: PreTrainedModel
    parameters: tuple[StreamParameter, ...]
    edits: dict[str, TensorEdit]
    unclaimed: frozenset[str]
    norms: dict[str, dict[str, str]]
    untied: bool
    copies: tuple[TensorCopy, ...]
