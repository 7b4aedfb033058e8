"""What a run should take in memory, time and money, from the model's config alone: no weights are
read.

Each stage counts what it reads and writes (``core.work``); here is what that costs on a device. A
prompt token costs two operations for each weight that it meets (a mixture's token meets its active
experts only), and the traffic of its activations. A step of completions costs one product of all
weights with as many rows as are going, and reading their keys and values. How long prompts
are, the tokenizer says; how fast a device is, ``speed``.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from transformers import AutoConfig, PreTrainedModel

from refusal.core.work import Ask, Force, Read, Score, Search, Work, Write
from refusal.model.checkpoint_check import hub_options
from refusal.model.fast_linear import copies
from refusal.model.load import auto_class, loading, resolve
from refusal.model.memory import Room, memory_of, room_on, weights_of
from refusal.model.placement import find_dtype
from refusal.model.sizes import ModelSize, activation_bytes
from refusal.model.writing import ENTER
from refusal.pipeline.costs.speed import Speed
from refusal.pipeline.stages import ALL
from refusal.runs.stage import Plan, Stage

WRITTEN = 0.7  # of the tokens that a completion may have: many end early
FULL = 0.93  # of the rows that there is room for, while some are left to enter (model/writing.py)
TRAFFIC = 3.0  # times that the activations of a block go to memory and back
COPIED = 3.0  # times that keys and values go to memory and back in a step: they grow by copying
FORCING = 2.0  # times the cost of reading, where every token's logits are needed, in float64
SHARING = 0.9  # of the time that several processes would save if none ever waited (docs/scale.md)
SPLITTING = 0.6  # likewise where each has a part of every weight: they meet after every sublayer
RUNTIME = 750_000_000  # Python, torch, transformers, and what loading leaves behind


@dataclass(frozen=True)
class Machine:
    """Devices of one kind that share a run.

    Attributes:
        speed: of one. kind: ``cpu``, ``cuda`` or ``mps``; how much runs at once depends on it.
        room: bytes of each. count: how many. price: of one for an hour.
    """

    speed: Speed
    kind: str = "cpu"
    room: int | float = math.inf
    count: int = 1
    price: int | float | None = None


@dataclass(frozen=True)
class Estimate:
    """What a run should take.

    Attributes:
        weights_bytes: of one copy of the model. memory_bytes: of a process.
        seconds: of all devices together working, by stage. processes: that share the work, a copy
            each; or one, whose model is spread over ``devices``, of which one works at a time.
        fits: whether a device's memory, or that of all together, is enough.
        split: every device holds a part of every weight (``tp_plan``), and all work at once.
        cost: of the devices and of judges that are paid, in the currency of the prices given.
        asked: questions to servers and other models by stage, whose time is not counted.
        sizes, said: those that fit the minutes asked for, and what is said of them.
    """

    weights_bytes: int
    memory_bytes: int
    seconds: dict[str, float]
    devices: int = 1
    processes: int = 1
    fits: bool = True
    split: bool = False
    cost: float | None = None
    asked: dict[str, int] | None = None
    sizes: dict[str, int | None] | None = None
    said: tuple[str, ...] = ()

    @property
    def total_seconds(self) -> float:
        """Of all stages."""
        return sum(self.seconds.values())


def estimate(size: ModelSize, plan: Plan, machine: Machine) -> Estimate:
    """A run on a machine: a copy of the model on each device if it fits, else one over all.

    With ``tp_plan`` in the configuration every device holds a part of every weight, whether a copy
    would fit or not.

    Raises:
        ConfigError: a stage cannot be counted.
    """
    count, split = machine.count, plan.config.tp_plan is not None and machine.count > 1
    work = _by_stage(plan)
    if split:  # each device has a part of every product, but as many of them to start
        faster = machine.speed.times(count * SPLITTING)
        one = _alone(size, plan, work, replace(machine, speed=faster), count)
    else:
        one = _alone(size, plan, work, machine)
    shared = not split and one.fits
    if not split and not one.fits:  # over all devices: together they hold it, one at a time works
        one = _alone(size, plan, work, replace(machine, room=machine.room * count))
    saved = count * SHARING if shared and count > 1 else 1.0
    seconds = {name: value / saved for name, value in one.seconds.items()}
    asks = {name: [one for one in some if isinstance(one, Ask)] for name, some in work.items()}
    paid = [ask.price for some in asks.values() for ask in some if ask.price is not None]
    cost = sum(paid) if paid else None
    if machine.price is not None:
        cost = (cost or 0.0) + machine.price * count * sum(seconds.values()) / 3600
    asked = {name: round(sum(ask.requests for ask in some)) for name, some in asks.items() if some}
    return replace(
        one,
        seconds=seconds,
        devices=count,
        processes=count if shared or split else 1,
        split=split,
        cost=cost,
        asked=asked,
    )


def seconds_by_stage(
    plan: Plan,
    size: ModelSize,
    speed: Speed,
    room: Room,
    stages: Sequence[type[Stage]] = ALL,
) -> dict[str, float]:
    """Of one process alone, for every stage that has work.

    Raises:
        ConfigError: a stage cannot be counted.
    """
    return _seconds(_by_stage(plan, stages), _Clock(size, speed, room, plan.lengths.begins))


def _seconds(work: dict[str, list[Work]], clock: "_Clock") -> dict[str, float]:
    return {name: sum(map(clock.seconds, stage)) for name, stage in work.items()}


def _by_stage(plan: Plan, stages: Sequence[type[Stage]] = ALL) -> dict[str, list[Work]]:
    """The work of every stage that has some, in the order of a run."""
    found: dict[str, list[Work]] = {}
    for stage in stages:
        if costs := stage.costs(plan):
            found.setdefault(stage.name, []).extend(costs)
    return found


def _alone(
    size: ModelSize, plan: Plan, work: dict[str, list[Work]], machine: Machine, parts: int = 1
) -> Estimate:
    """In one process on one device that holds one of ``parts`` of the model.

    Memory: the weights, the runtime, and the largest of what is held while loading from another
    dtype and by the stages, whose batches are as large as the room allows.
    """
    config, kind = plan.config, machine.kind
    itemsize = find_dtype(config.dtype, torch.device(kind)).itemsize
    weights = weights_of(size, itemsize, config.quantize) // parts
    free = max(0, machine.room - weights - RUNTIME)
    plain = kind == "cpu" and parts == 1 and config.quantize is None and config.device_map is None
    again = copies((size.linear + size.head) * itemsize, free) if plain else 0
    free -= again
    part = replace(size, cache=size.cache // parts)
    room = room_on(part, kind, itemsize, weights, free, config.batch_size)
    need = memory_of([one for stage in work.values() for one in stage], room)
    # A checkpoint in another dtype is mapped into main memory while it is converted.
    mapped = kind == "cpu" and parts == 1 and size.stored != itemsize
    converting = size.weights * size.stored - RUNTIME // 2 if mapped else 0
    working = max(converting, 0 if need is None else need.working)
    seconds = _seconds(work, _Clock(size, machine.speed, room, plan.lengths.begins))
    needed = weights + again + RUNTIME + working
    return Estimate(weights, needed, seconds, fits=working <= free)


@dataclass(frozen=True)
class _Clock:
    """Seconds that work takes on a device; prompts begin with ``begins`` tokens in common."""

    size: ModelSize
    speed: Speed
    room: Room
    begins: int | float

    def seconds(self, work: Work) -> float:
        """Of one kind of work."""
        match work:
            case Read(prompts, length):
                return self._prompts(prompts, length)
            case Search(tokens, passes):
                return self._pass(tokens, passes)
            case Write():
                return self._written(work)
            case Force(tokens):
                return FORCING * self._pass(tokens, max(1.0, tokens / self.room.tokens))
            case Score(tokens):
                return self._pass(tokens, max(1.0, tokens / self.room.tokens))
        return 0.0  # asked of somebody else

    @property
    def _traffic(self) -> float:
        """Seconds that the activations of a token take in a block."""
        size = self.size
        each = activation_bytes(size.d_model, size.inner, self.room.itemsize)
        return TRAFFIC * each / self.speed.bandwidth

    def _pass(self, tokens: int | float, passes: int | float) -> float:
        """So many tokens in so many passes; none where something is only kept."""
        if not passes:
            return 0.0
        some, each = tokens / passes, self.size.active / self.size.layers
        block = self.speed.read(some)
        if block is None:
            block = some * (2 * each / self.speed.flops + self._traffic) + self.speed.block
        return passes * self.size.layers * block

    def _prompts(self, n: int | float, length: int | float) -> float:
        """At least a pass for each class, and each reads what all begin with."""
        passes = max(2, n * length / self.room.tokens)
        return self._pass(n * length + passes * self.begins, passes)

    def _written(self, work: Write) -> float:
        """Prompts, a few at a time, what all begin with once an intervention; and step after step:
        the batch is full while rows are left that can enter, and then thins out.
        """
        rows, new, length = work.rows, work.new, work.length
        most = self.room.rows(2 * math.ceil(length) + new)
        last = min(rows, most)
        entering = ENTER * (rows - last) / most  # passes that a few rows enter by
        prompts = rows / work.samples * length
        passes = max(2, prompts / self.room.tokens, entering)
        read = self._pass(prompts + work.starts * self.begins, passes)
        steps = max(0.0, WRITTEN * new - 1)  # of a row: its first token comes with the prompt
        full = steps * (rows - last) / (FULL * most)
        thinning = max(0, new - 1) * self._step(max(1.0, WRITTEN * last), length + new / 2)
        return read + full * self._step(FULL * most, length + new / 2) + thinning

    def _step(self, going: float, seen: float) -> float:
        """One more token of so many rows, each of which looks back on so many."""
        size, speed = self.size, self.speed
        block = speed.write(going)
        if block is None:
            each = size.active / size.layers
            block = each * speed.step(going) + going * self._traffic + speed.block
        step = size.layers * block + size.head * speed.step(going)
        return step + COPIED * going * seen * size.cache * self.room.itemsize / speed.bandwidth


def model_outline(name: str, revision: str | None = None) -> PreTrainedModel:
    """A model by its config, without memory for its weights (on the meta device).

    Raises:
        ModelLoadError: not found, no network, or no readable config.
    """
    options = hub_options(revision)
    with loading(name):
        config = AutoConfig.from_pretrained(resolve(name), **options)
        with torch.device("meta"):
            model: PreTrainedModel = auto_class(config).from_config(config, trust_remote_code=False)
    return model
