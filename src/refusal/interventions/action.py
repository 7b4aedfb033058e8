"""An intervention as a condition of a run, told without torch: reports and help ask it too."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from refusal.core.errors import ConfigError
from refusal.core.records import Label, Metric
from refusal.core.registry import imported

if TYPE_CHECKING:
    from refusal.core.direction import Direction
    from refusal.interventions.conditional import Conditional, Gate
    from refusal.interventions.stream import StreamEdit

When = Literal["conditional", "unless"]
WHEN: tuple[When, ...] = ("conditional", "unless")
_CONDITIONAL = "refusal.interventions.conditional"


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
        when: whether it acts on all prompts, or by a monitor: ``conditional``, where that fires, or
            ``unless`` it does.
    """

    made_by: str
    sets: tuple[Label, ...]
    stops: bool = False
    told_by: str | None = None
    counts: tuple[int, ...] = (0,)
    by_layer: bool = False
    numbers: tuple[float, ...] = ()
    when: When | None = None

    def make(self, direction: "Direction") -> "StreamEdit":
        """Make the intervention of a direction.

        Raises:
            DirectionError: something that it needs is not known of the direction.
            ConfigError: it acts by a monitor.
        """
        if self.when is not None:
            raise ConfigError(
                f"What is called {self.when}-… acts by what a monitor says of each prompt, and "
                "here is none. Give one with --condition-on where there is that option; else leave "
                f"{self.when}- out."
            )
        maker: Callable[..., StreamEdit] = imported(self.made_by)
        return maker(direction, *self.numbers)

    def under(self, direction: "Direction", gate: "Gate") -> "StreamEdit | Conditional":
        """Make the intervention of a direction, on the prompts that a gate lets through where it
        acts by a monitor.

        Raises:
            DirectionError: something that it needs is not known of the direction.
        """
        made = replace(self, when=None).make(direction)
        if self.when is None:
            return made
        conditional: Callable[..., Conditional] = imported(f"{_CONDITIONAL}:Conditional")
        return conditional(made, gate, self.when == "unless")

    def tell(self, direction: "Direction") -> Sequence[Metric]:
        """Give the further numbers of a direction."""
        found: Sequence[Metric] = () if self.told_by is None else imported(self.told_by)(direction)
        return found
