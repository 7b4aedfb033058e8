"""The conditions that a server offers, and those of the rows that run, side by side in a batch."""

import inspect
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial

from refusal.core.direction import Direction
from refusal.core.errors import ConfigError, DirectionError
from refusal.core.registry import imported
from refusal.interventions import INTERVENTIONS
from refusal.interventions.action import WHEN
from refusal.interventions.conditional import Conditional, Conditioned, Gate, beside
from refusal.interventions.conditions import BASELINE, CLAIMED, action_of
from refusal.interventions.stream import StreamEdit
from refusal.model.base import LoadedModel
from refusal.model.edits import Intervention

Edit = StreamEdit | Conditional
ABOUT = {
    "conditional": "On prompts at which the monitor fires: ",
    "unless": "On prompts at which the monitor does not fire: ",
}
MOST = 12  # conditions whose hooks stay in place; each costs a little at every step


@dataclass(frozen=True)
class Offered:
    """A condition as it is listed: its name, whether numbers may stand behind it, whether it is
    meant to stop refusal, and what it does.
    """

    name: str
    takes_number: bool
    stops: bool
    about: str


class Conditions:
    """The conditions of one model and direction.

    Args:
        direction: ``None``: there is but the baseline.
        gate: what decides where conditional interventions act; ``None``: there are none.
        reading: what reads the stream before anything is done to it.
    """

    def __init__(
        self,
        model: LoadedModel,
        direction: Direction | None,
        gate: Gate | None,
        reading: Intervention,
    ) -> None:
        self.model, self.direction, self.gate, self.reading = model, direction, gate, reading
        self.made: dict[str, Edit | None] = {BASELINE: None}
        self.places: dict[str, int] = {}  # by name, in ``beside``
        self.beside = beside(())
        self.hooks = ExitStack()

    def offered(self) -> tuple[Offered, ...]:
        """The baseline, and every intervention that can be made of the direction as it is; by a
        monitor those of the method.
        """
        found = [Offered(BASELINE, False, False, "The model as it is.")]
        names = [] if self.direction is None else list(INTERVENTIONS)
        if names and self.gate is not None:
            names += [f"{when}-{name}" for when in WHEN for name in CLAIMED]
        for name in names:
            action = action_of(name) if name not in INTERVENTIONS else INTERVENTIONS[name]
            if 0 not in action.counts:
                continue
            try:
                self.check(name)
            except DirectionError:
                continue
            where = "" if action.when is None else ABOUT[action.when]
            about = where + _about(action.made_by)
            found.append(Offered(name, 1 in action.counts, action.stops, about))
        return tuple(found)

    def check(self, name: str) -> None:
        """Make sure that there is a condition of this name; safe from any thread.

        Raises:
            ConfigError: there is none. DirectionError: it cannot be made of this direction.
        """
        edit = self._make(name)
        if edit is not None:
            edit.edits(self.model.hf, self.model.sites)

    def lay_out(self, names: Sequence[str]) -> None:
        """Have the coming calls be of rows under these conditions."""
        if any(name not in self.places for name in names) or not self.places:
            self._put_beside(names)
        self.beside.rows([self.places[name] for name in names])

    def rest(self) -> None:
        """Take all hooks away until rows are laid out again."""
        self.hooks.close()
        self.places, self.made = {}, {BASELINE: None}

    def _put_beside(self, names: Sequence[str]) -> None:
        """Hooks for these conditions and for as many of the others as may stay."""
        needed = list(dict.fromkeys(names))
        others = [name for name in self.places if name not in needed]
        room = max(0, MOST - len(needed))
        kept = [*(others[-room:] if room else []), *needed]
        self.hooks.close()
        self.made = {name: self.made.get(name) or self._make(name) for name in kept}
        self.places = {name: i for i, name in enumerate(kept)}
        self.beside = beside(list(self.made.values()))
        if isinstance(self.beside, Conditioned):
            self.beside.mark = id(self)  # what was decided of rows that run holds
        self.hooks.enter_context(self.model.apply(self.reading, self.beside))

    def _make(self, name: str) -> Edit | None:
        if name == BASELINE:
            return None
        action = action_of(name)
        if self.direction is None:
            raise ConfigError(
                f"There is no direction for {name!r}: the model is served as it is. Serve the "
                "folder of a run, or give --direction."
            )
        made = action.make if self.gate is None else partial(action.under, gate=self.gate)
        return made(self.direction)


def _about(made_by: str) -> str:
    """What an intervention does, from its own documentation: the first sentence."""
    text = " ".join((inspect.getdoc(imported(made_by)) or "").split("\n\n")[0].split())
    return text.replace("``", "")
