"""A monitor as a hook: it reads the prompts of any pass that is made in a block, and adds none."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from refusal.core.errors import MonitorError, NonFiniteError
from refusal.core.monitor import Monitor
from refusal.core.turns import Question
from refusal.directions.monitor.reading import Scored
from refusal.model.chat_model import ChatModel
from refusal.model.fingerprint import check_monitor
from refusal.model.hooks import Call, Edit, hooked
from refusal.model.prompt_ends import End, prompt_ends

Ids = tuple[int, ...]


class Watch:
    """What a monitor has seen since its block was entered."""

    def __init__(self, model: ChatModel, monitor: Monitor) -> None:
        self.model, self.monitor = model, monitor
        self._ends: list[End] = []
        self._z: dict[int, Tensor] = {}
        self._kept: list[tuple[list[Ids], Tensor]] = []
        self._by_ids: dict[Ids, Tensor] = {}

    @property
    def edits(self) -> list[Edit | Call]:
        """The hooks: one is told of every call, the others read at the two layers."""
        suffix = len(self.model.chat.suffix)
        found: list[Edit | Call] = [Call(self.model.hf, self._called)]
        for number, one in enumerate(self.monitor.readers):
            found.append(self._reader(number, one.layer, one.place(suffix)))
        return found

    def of(self, questions: Sequence[Question]) -> Scored:
        """The scores of prompts that were read inside the block, in the order of ``questions``.

        A prompt that was read several times, under other interventions say, has the score of the
        last time.

        Raises:
            MonitorError: one was not read, or not whole.
            NonFiniteError: what was read of one is NaN or infinite.
        """
        self._sort()
        rows = [tuple(row) for row in self.model.tokenize(questions)]
        missing = [i for i, row in enumerate(rows) if row not in self._by_ids]
        if missing:
            raise MonitorError(
                f"{len(missing)} of {len(rows)} prompts were not read whole while the monitor "
                f"watched, the first of them {str(questions[missing[0]])[:60]!r}. Watch around the "
                "pass that reads them, in this process; completions that think freely begin after "
                "other tokens than a monitor is fitted on."
            )
        width = (0, 2)
        z = torch.stack([self._by_ids[row] for row in rows]) if rows else torch.empty(width)
        if not torch.isfinite(z).all():  # NaN is above no threshold: it would never fire
            raise NonFiniteError(
                f"What the monitor has read of {self.model.name} is not finite. Try --dtype "
                "float32."
            )
        return Scored(z, self.monitor.scores(z[:, 0], z[:, 1]))

    def forget(self) -> None:
        """Let go of what was seen."""
        self._kept.clear()
        self._by_ids.clear()

    def _called(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """A call begins: where its prompts end."""
        self._ends = prompt_ends(args, kwargs, self.model.chat.suffix)
        self._z.clear()

    def _reader(self, number: int, layer: int, position: int) -> Edit:
        one = self.monitor.readers[number]

        def keep(x: Tensor) -> None:
            if not self._ends:
                return
            rows = torch.tensor([end.row for end in self._ends], device=x.device)
            columns = torch.tensor([end.path[position] for end in self._ends], device=x.device)
            self._z[number] = one.z(x[rows, columns])
            if len(self._z) == len(self.monitor.readers):
                z = torch.stack([self._z[i].cpu() for i in range(len(self._z))], dim=1)
                self._kept.append(([end.ids for end in self._ends], z))

        return Edit(self.model.hf.get_submodule(self.model.sites.reading(layer)), "input", keep)

    def _sort(self) -> None:
        for ids, z in self._kept:
            self._by_ids.update(zip(ids, z, strict=True))
        self._kept.clear()


@contextmanager
def watch(model: ChatModel, monitor: Monitor) -> Iterator[Watch]:
    """Have a monitor read every prompt that is run inside the block, by whatever forward pass or
    generation; what it saw is asked for afterwards, or in between: ``seen.of(questions)``.

    A score belongs to a prompt, also where it is continued. Prompts are read whole meanwhile: what
    several begin with is not read once for all of them. Inside ``model.apply`` it reads what the
    intervention has made of the stream, outside what was there before the edit at the same place.

    Raises:
        MonitorError: it was fitted on another model or template.
    """
    check_monitor(monitor, model)
    seen = Watch(model, monitor)
    model.watched += 1
    try:
        with hooked(seen.edits):
            yield seen
    finally:
        model.watched -= 1
