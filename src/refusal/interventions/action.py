"""An intervention as a condition of a run, told without torch: reports and help ask it too."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from refusal.core.records import Label, Metric
from refusal.core.registry import imported

if TYPE_CHECKING:
    from refusal.core.direction import Direction
    from refusal.interventions.stream import StreamEdit


@dataclass(frozen=True)
class Action:
    """How an intervention is made of a direction, and what it is measured on.

    Attributes:
        made_by: ``"module:attribute"`` of what makes it of a direction, a class or a function.
        sets: the test prompts that are completed under it.
        stops: it is to stop refusal and change nothing else, so that drift, over-refusal and
            benchmarks are measured under it too.
        told_by: ``"module:attribute"`` of a function of a direction that gives further numbers,
            without which the condition cannot be read.
        counts: how many numbers may stand behind its name (``ablation@0.5``); they are given on to
            what makes it.
        by_layer: it needs the directions of the single layers.
        numbers: those that do.
    """

    made_by: str
    sets: tuple[Label, ...]
    stops: bool = False
    told_by: str | None = None
    counts: tuple[int, ...] = (0,)
    by_layer: bool = False
    numbers: tuple[float, ...] = ()

    def make(self, direction: "Direction") -> "StreamEdit":
        """Make the intervention of a direction.

        Raises:
            DirectionError: something that it needs is not known of the direction.
        """
        maker: Callable[..., StreamEdit] = imported(self.made_by)
        return maker(direction, *self.numbers)

    def tell(self, direction: "Direction") -> Sequence[Metric]:
        """Give the further numbers of a direction."""
        found: Sequence[Metric] = () if self.told_by is None else imported(self.told_by)(direction)
        return found
