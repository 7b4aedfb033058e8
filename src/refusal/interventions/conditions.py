"""The conditions under which a model is measured, and their names, which stand in files and tables.

A condition is the baseline, an intervention with the direction itself (``ablation``), or one with a
control direction in its place (``random-3-ablation``, ``shuffled-addition``). Numbers may stand
behind the intervention's name, its strength first of all: ``ablation@0.5``. Before it stands
whether it acts on some prompts only: ``conditional-addition`` on those at which a monitor fires,
``unless-ablation`` on the others.
"""

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from refusal.core.errors import ConfigError
from refusal.core.records import Label
from refusal.interventions import INTERVENTIONS
from refusal.interventions.action import WHEN, Action

if TYPE_CHECKING:
    from refusal.core.direction import Direction
    from refusal.interventions.conditional import Conditional, Gate
    from refusal.interventions.stream import StreamEdit
    from refusal.model.edits import Intervention

BASELINE = "baseline"
LABELS: tuple[Label, Label] = ("harmful", "harmless")
# What the method claims, of every direction: ablation and subtraction stop refusal, addition causes
# it, ablation leaves the rest alone.
CLAIMED = ("ablation", "subtraction", "addition")
# Conditions of a direction itself, in the order of tables; not each is measured of each class.
BY_PROMPT = tuple(f"{when}-{name}" for when in WHEN for name in INTERVENTIONS)
ORDER = (BASELINE, *INTERVENTIONS, *BY_PROMPT)
EVERY = tuple((label, condition) for label in LABELS for condition in ORDER)
_NAME = re.compile(
    rf"(?:(random-\d+|shuffled|matched)-)?((?:(?:{'|'.join(WHEN)})-)?"
    rf"(?:{'|'.join(map(re.escape, INTERVENTIONS))})(?:@.*)?)"
)


def action_of(name: str) -> Action:
    """The intervention of a name, with the numbers that stand behind it: ``ablation@0.5``.

    Raises:
        ConfigError: there is no such intervention, or it takes no such numbers.
    """
    for when in WHEN:
        if name.startswith(f"{when}-"):
            inner = action_of(name.removeprefix(f"{when}-"))
            if inner.when is None:
                return replace(inner, when=when, sets=LABELS, stops=True)
    base, at, rest = name.partition("@")
    action: Action = INTERVENTIONS[base]
    try:
        numbers = tuple(float(part) for part in rest.split(",")) if at else ()
        spelled = ",".join(f"{number:g}" for number in numbers)
    except ValueError as error:
        raise ConfigError(
            f"The intervention {name!r} has {rest!r} behind its name, where numbers are due: "
            "ablation@0.5."
        ) from error
    if not all(map(math.isfinite, numbers)):
        raise ConfigError(f"The intervention {name!r} has a number that is not finite.")
    if spelled != rest:  # one spelling, one file
        raise ConfigError(f"The intervention {name!r} is written {base}@{spelled}.")
    if len(numbers) not in action.counts:
        due = " or ".join(map(str, action.counts))
        raise ConfigError(
            f"The intervention {base} takes {due} number(s) behind its name, not {len(numbers)}: "
            "ablation@0.5, kernel@1,0.7,0.2,0.5."
        )
    return replace(action, numbers=numbers)


def in_order(condition: str) -> tuple[int, str]:
    """Where a condition of the direction itself stands in tables, as what to sort by."""
    return ORDER.index(condition.partition("@")[0]), condition


def is_plain(condition: str) -> bool:
    """Whether it is of the direction itself, or the baseline: no control's."""
    return condition.partition("@")[0] in ORDER


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
                f"matched-, and after {'- or '.join(WHEN)}-."
            )
        action_of(found[2])
        return cls(found[2], found[1])

    def on(self, direction: "Direction", gate: "Gate | None" = None) -> "tuple[Intervention, ...]":
        """What it does, given the direction that it is about (of a control, the control's).

        Raises:
            ConfigError: it acts by a monitor, and there is no gate.
        """
        edit = self.under(direction, gate)
        return () if edit is None else (edit,)

    def under(
        self, direction: "Direction", gate: "Gate | None"
    ) -> "StreamEdit | Conditional | None":
        """Its intervention, made of the direction that it is about and the gate, where it acts by a
        monitor; ``None`` for the baseline.

        Raises:
            ConfigError: it acts by a monitor, and there is no gate.
        """
        if self.intervention is None or gate is None:
            return self.edit(direction)
        return action_of(self.intervention).under(direction, gate)

    def edit(self, direction: "Direction") -> "StreamEdit | None":
        """Its intervention, made of the direction that it is about; ``None`` for the baseline.

        Raises:
            ConfigError: it acts by a monitor.
        """
        if self.intervention is None:
            return None
        return action_of(self.intervention).make(direction)


def interventions_for(
    condition: str, direction: "Direction", gate: "Gate | None" = None
) -> "tuple[Intervention, ...]":
    """What the condition of a name does to the model, given the direction that it is about, and
    what decides where it acts on some prompts only.

    Raises:
        ConfigError: there is no such condition, or it acts by a monitor and there is no gate.
    """
    return Condition.named(condition).on(direction, gate)


def actions(further: Iterable[str] = ()) -> dict[Label, tuple[str, ...]]:
    """What each class of test prompts is completed under: what the method claims, and ``further``
    interventions.

    Raises:
        ConfigError: there is no such intervention.
    """
    names = dict.fromkeys((*CLAIMED, *further))
    found: dict[Label, tuple[str, ...]] = {}
    for label in LABELS:
        found[label] = tuple(name for name in names if label in action_of(name).sets)
    return found


def stopping(further: Iterable[str] = ()) -> tuple[str, ...]:
    """Those of the claimed and of ``further`` interventions that are to stop refusal, and should
    change nothing else.

    Raises:
        ConfigError: there is no such intervention.
    """
    names = dict.fromkeys((*CLAIMED, *further))
    return tuple(name for name in names if action_of(name).stops)


def by_prompt(names: Iterable[str]) -> tuple[str, ...]:
    """Those of some interventions that act on some prompts only, by a monitor.

    Raises:
        ConfigError: there is no such intervention.
    """
    return tuple(name for name in names if action_of(name).when is not None)


def conditions(further: Iterable[str] = ()) -> tuple[tuple[Label, str], ...]:
    """Class and condition of everything that is measured of a direction on the test prompts.

    Raises:
        ConfigError: there is no such intervention.
    """
    found = []
    for label, names in actions(further).items():
        found += [(label, condition) for condition in (BASELINE, *names)]
    return tuple(found)


CONDITIONS = conditions()


def random_group(condition: str) -> str | None:
    """What the random directions of an intervention are called together (``random-ablation``);
    ``None`` for other conditions.
    """
    kind, _, rest = condition.partition("-")
    return f"random-{rest.partition('-')[2]}" if kind == "random" else None
