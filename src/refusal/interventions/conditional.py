"""Interventions on some prompts only: a monitor reads each prompt in the pass that reads it anyway,
and an intervention acts in the blocks above on the rows whose prompt fires (after CAST, arXiv
2409.05907).

The decision is made once, where the prompt is read whole, and stays with the row through decoding:
it is kept beside the row's keys and values, with which rows come, go and are reordered. A pass has
one prompt a row meanwhile (``LoadedModel.apart``), and what prompts begin with is read with each of
them (``LoadedModel.watched``), since it is changed for some of them and not for others.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers import PreTrainedModel

from refusal.core.errors import DirectionError, NonFiniteError
from refusal.core.monitor import Monitor
from refusal.interventions.side_by_side import SideBySide
from refusal.interventions.stream import StreamEdit
from refusal.model.base import LoadedModel
from refusal.model.caches import marks
from refusal.model.edits import RowWise
from refusal.model.fingerprint import check_monitor
from refusal.model.hooks import Call, Edit
from refusal.model.prompt_ends import End, prompt_ends
from refusal.model.sites import Sites


@dataclass(frozen=True)
class Gate:
    """What decides of a prompt: a monitor, and the post-instruction tokens by which prompts are
    found in a pass.
    """

    monitor: Monitor
    suffix: tuple[int, ...]

    @property
    def block(self) -> int:
        """The first block at whose input the decision is known."""
        return max(reader.layer for reader in self.monitor.readers)


def gate_of(model: LoadedModel, monitor: Monitor) -> Gate:
    """The gate of a model's prompts.

    Raises:
        MonitorError: the monitor was fitted on another model or template.
    """
    check_monitor(monitor, model)
    return Gate(monitor, tuple(model.chat.suffix))


@dataclass(frozen=True)
class Conditional:
    """An intervention that acts from the block on at which it is decided, on rows whose prompt
    fires.

    Attributes:
        unless: on those whose prompt does not fire, instead.
    """

    edit: StreamEdit
    gate: Gate
    unless: bool = False
    by_prompt: ClassVar[bool] = True

    def edits(self, model: PreTrainedModel, sites: Sites) -> list[Edit | Call]:
        """What reads, and what acts.

        Raises:
            DirectionError: the intervention acts below the block at which it is decided, or there
                is no such block.
        """
        return Conditioned([self]).edits(model, sites)


def beside(interventions: Sequence[StreamEdit | Conditional | None]) -> RowWise:
    """Interventions on the rows of one batch, each row under its own; ``None`` leaves a row as it
    is.
    """
    plain = [one for one in interventions if not isinstance(one, Conditional)]
    return SideBySide(plain) if len(plain) == len(interventions) else Conditioned(interventions)


class Conditioned:
    """Interventions on the rows of one batch, some of them conditional.

    A row under a conditional one is left as it is until that is decided, and then as it is or under
    what that does.
    """

    by_prompt: ClassVar[bool] = True

    def __init__(self, interventions: Sequence[StreamEdit | Conditional | None]) -> None:
        """Of any kinds and at any places, all of one model.

        Raises:
            DirectionError: gates of several chat templates.
        """
        self.interventions = tuple(interventions)
        found = {i: one for i, one in enumerate(interventions) if isinstance(one, Conditional)}
        self.conditional: Mapping[int, Conditional] = found
        self.monitors = {id(one.gate.monitor): one.gate.monitor for one in found.values()}
        if len({one.gate.suffix for one in found.values()}) != 1:
            raise DirectionError(
                "Conditional interventions side by side have gates of several chat templates. Use "
                "gates of one model."
            )
        self.suffix = next(iter(found.values())).gate.suffix
        self.mark = id(self)  # of what is noted beside rows; another one may take it over
        self.which: Sequence[int] | None = None
        self.call: _Call | None = None
        self.inner = SideBySide([])

    def __len__(self) -> int:
        return len(self.interventions)

    def rows(self, which: Sequence[int]) -> None:
        """Row ``i`` of the coming calls is under intervention ``which[i]``."""
        self.which = list(which)

    def edits(self, model: PreTrainedModel, sites: Sites) -> list[Edit | Call]:
        """What is told of each call, what reads, and what acts.

        Raises:
            DirectionError: an intervention acts below the block at which it is decided, or there is
                no such block, or it has another width than the model.
        """
        later = int(sites.lanes is not None)  # a mixture of lanes is read inside the block
        plain = [None if isinstance(one, Conditional) else one for one in self.interventions]
        acting = [one.edit for one in self.conditional.values()]
        starts = [one.gate.block + later for one in self.conditional.values()]
        self.inner = SideBySide([*plain, *acting], [*[None] * len(plain), *starts])
        reads = []
        for layer in sorted({r.layer for m in self.monitors.values() for r in m.readers}):
            if layer >= sites.n_layers:
                raise DirectionError(
                    f"The monitor reads at layer {layer}, and the model has layers 0 to "
                    f"{sites.n_layers - 1}. Use a monitor of this model."
                )
            reads.append(self._reading(model, sites, layer))
        return [Call(model, self._called), *reads, *self.inner.edits(model, sites)]

    def _called(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """A call begins: whose prompts does it read, or which rows does it continue?"""
        given = args[0] if args else kwargs.get("input_ids")
        if not isinstance(given, Tensor):
            raise DirectionError("A conditional intervention needs a call with token ids.")
        which = [0] * len(given) if self.which is None else list(self.which)
        if len(which) != len(given) or (self.which is None and len(self) > 1):
            raise DirectionError(
                f"{len(given)} rows run side by side where {len(self.which or ())} were laid out: "
                "say with rows() which intervention each is under."
            )
        asked = [row for row, i in enumerate(which) if i in self.conditional]
        cache = kwargs.get("past_key_values", kwargs.get("cache_params"))
        known = marks(cache).get(self.mark) if cache is not None else None
        ends = {end.row: end for end in prompt_ends(args, kwargs, self.suffix)}  # a row's last
        acts = [False] * len(which)
        self.call = _Call(which, {row: ends[row] for row in asked if row in ends}, acts, cache)
        if len(self.call.ends) < len(asked):
            if self.call.ends or known is None or len(known) != len(which):
                raise DirectionError(
                    f"Row {next(row for row in asked if row not in ends)} of a pass holds no whole "
                    "prompt that ends as the chat template ends one, so a monitor cannot decide "
                    "of it. Benchmarks need --task-chat; thoughts must be off or closed."
                )
            self.call.acts = list(known)
        self._tell()

    def _tell(self) -> None:
        """Have the inner ones be those that act, and keep that beside the rows."""
        call = self.call
        assert call is not None
        if call.cache is not None and self.conditional:
            marks(call.cache)[self.mark] = list(call.acts)
        self.inner.rows(
            [self._acting(i) if act else i for i, act in zip(call.which, call.acts, strict=True)]
        )

    def _acting(self, i: int) -> int:
        """Where what a conditional one does stands among the inner ones."""
        return len(self) + list(self.conditional).index(i)

    def _reading(self, model: PreTrainedModel, sites: Sites, layer: int) -> Edit:
        def read(x: Tensor) -> None:
            call = self.call
            if call is None or not call.ends:
                return
            decided = False
            for name, monitor in self.monitors.items():
                decided |= self._read(call, name, monitor, layer, x)
            if decided:
                self._tell()

        return Edit(model.get_submodule(sites.reading(layer)), "input", read)

    def _read(self, call: "_Call", name: int, monitor: Monitor, layer: int, x: Tensor) -> bool:
        """Read what a monitor reads at a layer; whether its rows are decided by that."""
        rows = [r for r in call.ends if id(self._of(call, r).gate.monitor) == name]
        here = [i for i, reader in enumerate(monitor.readers) if reader.layer == layer]
        if not (rows and here):
            return False
        index = torch.tensor(rows, device=x.device)
        for i in here:
            place = monitor.readers[i].place(len(self.suffix))
            columns = [call.ends[row].path[place] for row in rows]
            at = x[index, torch.tensor(columns, device=x.device)]
            call.z[name, i] = monitor.readers[i].z(at).cpu()
        if any((name, i) not in call.z for i in range(len(monitor.readers))):
            return False
        scores = monitor.scores(*(call.z[name, i] for i in range(len(monitor.readers)))).tolist()
        if not all(map(math.isfinite, scores)):
            raise NonFiniteError("A monitor's score is not finite. Run with --dtype float32.")
        for row, score in zip(rows, scores, strict=True):
            call.acts[row] = bool(monitor.fires(score)) != self._of(call, row).unless
        return True

    def _of(self, call: "_Call", row: int) -> Conditional:
        return self.conditional[call.which[row]]


@dataclass
class _Call:
    """One call of the model.

    Attributes:
        which: intervention each row is under. ends: the prompts of rows to be decided.
        acts: whether what a row's conditional intervention does is done. cache: beside which that
            is kept. z: by monitor and reader, of the rows to be decided.
    """

    which: list[int]
    ends: dict[int, End]
    acts: list[bool]
    cache: Any

    def __post_init__(self) -> None:
        self.z: dict[tuple[int, int], Tensor] = {}
