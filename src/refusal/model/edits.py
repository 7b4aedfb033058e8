"""What is done to a model's forward pass, before it is done: an intervention says which edits it
is.
"""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from transformers import PreTrainedModel

from refusal.model.hooks import Call, Edit
from refusal.model.sites import Sites


@runtime_checkable
class Intervention(Protocol):
    """Anything that turns a direction into edits of a model's forward pass."""

    def edits(self, model: PreTrainedModel, sites: Sites) -> Sequence[Edit | Call]:
        """What to do at which modules."""
        ...


class RowWise(Intervention, Protocol):
    """Several interventions in one batch, each row under its own."""

    def __len__(self) -> int:
        """How many there are."""
        ...

    def rows(self, which: Sequence[int]) -> None:
        """Row ``i`` of the coming calls is under intervention ``which[i]``."""
        ...


def by_prompt(interventions: Sequence[Intervention]) -> int:
    """How many of them decide by a row's prompt: they have to see it whole, alone in its row."""
    return sum(getattr(one, "by_prompt", False) for one in interventions)


def all_edits(
    interventions: Sequence[Intervention], model: PreTrainedModel, sites: Sites
) -> list[Edit | Call]:
    """The edits of several interventions, in order."""
    return [edit for intervention in interventions for edit in intervention.edits(model, sites)]
