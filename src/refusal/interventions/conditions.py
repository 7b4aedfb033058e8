"""The conditions under which a model is measured, and their names, which stand in files and tables.

A condition is the baseline, an intervention with the direction itself (``ablation``), or one with a
control direction in its place (``random-3-ablation``, ``shuffled-addition``).
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from refusal.core.errors import ConfigError
from refusal.core.records import Label
from refusal.interventions import INTERVENTIONS

if TYPE_CHECKING:
    from refusal.core.direction import Direction
    from refusal.model.edits import Intervention

BASELINE = "baseline"
LABELS: tuple[Label, Label] = ("harmful", "harmless")
# What the method claims: ablation and subtraction stop refusal, addition causes it, ablation leaves
# the rest alone.
CLAIMED = ("ablation", "subtraction", "addition")
# By class of the test prompts. These are what `actions`, `stopping` and `conditions` give, written
# out since a report of a run is to need no torch.
ACTIONS: dict[Label, tuple[str, ...]] = {
    "harmful": ("ablation", "subtraction"),
    "harmless": ("ablation", "addition"),
}
STOPPING = ("ablation", "subtraction")
CONDITIONS = tuple(
    (label, condition) for label, names in ACTIONS.items() for condition in (BASELINE, *names)
)
_NAME = re.compile(
    rf"(?:(random-\d+|shuffled|matched)-)?({'|'.join(map(re.escape, INTERVENTIONS))})"
)


@dataclass(frozen=True)
class Condition:
    """What is done to the model: an intervention, with a control in the direction's place or not.

    Neither: the baseline.
    """

    intervention: str | None = None
    control: str | None = None

    @property
    def name(self) -> str:
        """As files and tables have it."""
        parts = (self.control, self.intervention)
        return "-".join(part for part in parts if part is not None) or BASELINE

    @classmethod
    def named(cls, name: str) -> "Condition":
        """The condition of a name.

        Raises:
            ConfigError: there is no such intervention, or no such control.
        """
        if name == BASELINE:
            return cls()
        if (found := _NAME.fullmatch(name)) is None:
            raise ConfigError(
                f"There is no condition {name!r}. Use {BASELINE} or one of: "
                f"{', '.join(INTERVENTIONS)}, alone or after random-1- (any number), shuffled- or "
                "matched-."
            )
        return cls(found[2], found[1])

    def on(self, direction: "Direction") -> "tuple[Intervention, ...]":
        """What it does, given the direction that it is about (of a control, the control's)."""
        if self.intervention is None:
            return ()
        return (INTERVENTIONS[self.intervention].make(direction),)


def interventions_for(condition: str, direction: "Direction") -> "tuple[Intervention, ...]":
    """What the condition of a name does to the model, given the direction that it is about.

    Raises:
        ConfigError: there is no such condition.
    """
    return Condition.named(condition).on(direction)


def actions(interventions: Iterable[str] = CLAIMED) -> dict[Label, tuple[str, ...]]:
    """Which of the interventions each class of test prompts is completed under.

    Raises:
        ConfigError: there is no such intervention.
    """
    table = {name: INTERVENTIONS[name] for name in interventions}
    return {
        label: tuple(name for name, action in table.items() if label in action.sets)
        for label in LABELS
    }


def stopping(interventions: Iterable[str] = CLAIMED) -> tuple[str, ...]:
    """Those that are to stop refusal, and should change nothing else.

    Raises:
        ConfigError: there is no such intervention.
    """
    return tuple(name for name in interventions if INTERVENTIONS[name].stops)


def conditions(interventions: Iterable[str] = CLAIMED) -> tuple[tuple[Label, str], ...]:
    """Class and condition of everything that is measured of a direction on the test prompts.

    Raises:
        ConfigError: there is no such intervention.
    """
    return tuple(
        (label, condition)
        for label, names in actions(interventions).items()
        for condition in (BASELINE, *names)
    )


def random_group(condition: str) -> str | None:
    """What the random directions of an intervention are called together (``random-ablation``);
    ``None`` for other conditions.
    """
    kind, _, rest = condition.partition("-")
    return f"random-{rest.partition('-')[2]}" if kind == "random" else None
