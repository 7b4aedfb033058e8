"""What a model needs in memory and a run in time, from the model's config alone: no weights are
read.

A prompt token costs two operations for each weight that it meets (a mixture's token meets its
active experts only), and the traffic of its activations. A step of completions costs one product of
all weights with as many rows as are still going, and reading their keys and values. How many tokens
a stage reads was counted on real runs (their ``manifest.json`` has it); how long prompts are, the
tokenizer says; how fast a device is, ``speed``.
"""

import math
from dataclasses import dataclass, replace

import torch
from transformers import AutoConfig, AutoTokenizer, PreTrainedModel

from refusal.config.run_config import RunConfig
from refusal.core.errors import ConfigError
from refusal.model.batch_size import free_memory, rows_that_fit, tokens_that_fit
from refusal.model.chat_template import find_format, render, tokenize
from refusal.model.checkpoint_check import hub_options
from refusal.model.load import auto_class, loading, resolve
from refusal.model.placement import find_device, find_dtype
from refusal.model.sizes import ModelSize, activation_bytes, size_of
from refusal.pipeline.costs import memory
from refusal.pipeline.costs.speed import DEVICES, Speed, measure_speed
from refusal.prompts.load import load_prompts

# of a one-line instruction with its template, once what prompts begin with in common is read once
PROMPT_TOKENS = 20.0
DRAWN = 1.4  # prompts read for each that passes the filter
WRITTEN = 0.7  # of the tokens that a completion may have: many end early
POSITIONS = 5  # tokens after the instruction: that many candidates a layer
# of a triple loop's tokens: early exit, and induce starts in the middle (docs/performance.md)
SCORED = 0.07
LOOKED = 12.0  # prompts for each candidate besides: what it takes to see that it fails
TRAFFIC = 3.0  # times that the activations of a block go to memory and back
COPIED = (
    3.0  # times that keys and values go to memory and back in a step: they grow by being copied
)
LOOKS = 3.0  # passes for each candidate
FORCING = 2.0  # times the cost of reading, where every token's logits are needed, in float64
JUDGED = 48  # completions that choose the refusal tokens
MATCHED = 200  # prompts of the matched pairs
SAMPLE = 64  # prompts of a class whose length is looked at
SHARING = 0.9  # of the time that several processes would save if none ever waited (docs/scale.md)
SPLITTING = 0.6  # likewise where each has a part of every weight: they meet after every sublayer
RUNTIME = 750_000_000  # Python, torch, transformers, and what loading leaves behind


@dataclass(frozen=True)
class Lengths:
    """Tokens of a training, validation and test prompt beside what all begin with, which is
    ``begins`` tokens long.
    """

    train: float = PROMPT_TOKENS
    val: float = PROMPT_TOKENS
    test: float = PROMPT_TOKENS
    begins: float = PROMPT_TOKENS


@dataclass(frozen=True)
class Estimate:
    """What a run should take.

    Attributes:
        weights_bytes: of one copy of the model. memory_bytes: of a process.
        seconds: of all devices together working, by stage. processes: that share the work, a copy
            each; or one, whose model is spread over ``devices``, of which one works at a time.
        fits: whether a device's memory, or that of all together, is enough.
        split: every device holds a part of every weight (``tp_plan``), and all work at once.
        cost: where a price is given, in its currency.
    """

    weights_bytes: int
    memory_bytes: int
    seconds: dict[str, float]
    devices: int = 1
    processes: int = 1
    fits: bool = True
    split: bool = False
    cost: float | None = None

    @property
    def total_seconds(self) -> float:
        """Of all stages."""
        return sum(self.seconds.values())


def estimate_on(
    size: ModelSize,
    config: RunConfig,
    speed: Speed,
    kind: str,
    room: int | float,
    count: int,
    price: float | None,
    lengths: Lengths | None = None,
) -> Estimate:
    """A run on ``count`` devices with ``room`` bytes each: a copy of the model on each if it fits,
    else one over all.

    With ``tp_plan`` in the configuration every device holds a part of every weight, whether a copy
    would fit or not.

    Args:
        kind: ``cpu``, ``cuda`` or ``mps``: how much runs at once depends on it.
        price: of a device for an hour.
    """
    split = config.tp_plan is not None and count > 1
    if split:  # each device has a part of every product, but as many of them to start
        speed = speed.times(count * SPLITTING)
    one = estimate(size, config, speed, kind, lengths, room, count if split else 1)
    shared = one.fits and not split
    if (
        not split and not one.fits
    ):  # spread over the devices: together they hold it, one at a time works
        one = estimate(size, config, speed, kind, lengths, room * count)
    faster = count * SHARING if shared and count > 1 else 1.0
    seconds = {name: value / faster for name, value in one.seconds.items()}
    return replace(
        one,
        seconds=seconds,
        devices=count,
        processes=count if shared or split else 1,
        split=split,
        cost=None if price is None else price * count * sum(seconds.values()) / 3600,
    )


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


def prompt_lengths(config: RunConfig) -> Lengths:
    """How long the prompts of a configuration are for its model's tokenizer.

    Raises:
        PromptError: a prompt file cannot be used.
        ModelLoadError: no readable tokenizer.
        ChatTemplateError: no chat template, or it rejects the system prompt.
    """
    with loading(config.model):
        tokenizer = AutoTokenizer.from_pretrained(
            resolve(config.model), **hub_options(config.revision)
        )
    begins = float(len(find_format(tokenizer, config.system).prefix))
    prompts = load_prompts(
        config.prompts,
        seed=config.seed,
        dedup=config.dedup,
        data_dir=config.data_dir,
        column=config.column,
        system=config.system,
    )
    found = []
    for pair in (prompts.train, prompts.val, prompts.test):
        texts = [prompt.text for prompt in (*pair.harmful[:SAMPLE], *pair.harmless[:SAMPLE])]
        tokens = [
            len(tokenize(tokenizer, render(tokenizer, text, config.system))) - begins
            for text in texts
        ]
        found.append(sum(tokens) / max(1, len(tokens)))
    return Lengths(found[0], found[1], found[2], begins)


def estimate(
    size: ModelSize,
    config: RunConfig,
    speed: Speed,
    device: str = "cpu",
    lengths: Lengths | None = None,
    room: int | float = math.inf,
    parts: int = 1,
) -> Estimate:
    """Memory and time of a run in one process on a device with ``room`` bytes that holds one of
    ``parts`` of the model.

    Memory: the weights, the runtime, and the largest of what is held while loading from another
    dtype and by the stages (``memory``), whose batches are as large as the room allows. Time: see
    the module; a stage's tokens are stated above as constants.
    """
    lengths = lengths if lengths is not None else Lengths()
    itemsize = find_dtype(config.dtype, torch.device(device)).itemsize
    weights = memory.weights_of(size, itemsize, config.quantize) // parts
    part = replace(size, cache=size.cache // parts)
    length = int(2 * lengths.test) + config.max_new_tokens
    free, drift = max(0, room - weights - RUNTIME), config.drift_tokens > 0
    tokens = tokens_that_fit(device, free, activation_bytes(size.d_model, size.inner, itemsize))
    rows = rows_that_fit(device, free, length * part.cache * itemsize)
    rows = min(rows, config.batch_size or rows)
    reading = memory.reading(part, weights, itemsize, tokens)
    if device == "cpu":  # elsewhere what selection keeps is in main memory
        reading = memory.choosing(part, reading, itemsize, config.n_val * lengths.val, config.n_val)
    stages = [
        reading,
        memory.writing(part, weights, itemsize, min(rows, config.n_test), length),
        *(
            [memory.forcing(part, weights, itemsize, memory.forced_tokens(config, lengths.test))]
            if drift
            else []
        ),
    ]
    # A checkpoint in another dtype is mapped into main memory while it is converted.
    mapped = device == "cpu" and parts == 1 and size.stored != itemsize
    converting = size.weights * size.stored - RUNTIME // 2 if mapped else 0
    working = max(converting, *(stage.working for stage in stages))
    seconds = _seconds(size, config, speed, itemsize, lengths, tokens, rows)
    return Estimate(weights, weights + RUNTIME + working, seconds, fits=working <= free)


def plan(config: RunConfig, count: int = 1) -> Estimate:
    """The estimate of a configuration on ``count`` devices of the kind that its ``device`` names,
    or of this machine.

    Raises:
        ModelLoadError: the model's config or tokenizer cannot be read.
        PromptError: a prompt file cannot be used.
        ConfigError: unknown device.
    """
    outline, lengths = model_outline(config.model, config.revision), prompt_lengths(config)
    if config.device in DEVICES:
        speed, room = DEVICES[config.device]
        kind = "cuda"
    else:
        device = _device_here(config.device)
        speed, room, kind = (
            measure_speed(device, config.dtype, outline),
            free_memory(device),
            device.type,
        )
    size = size_of(outline, outline.config)
    return estimate_on(
        size, config, speed, kind, room, count, config.price_per_device_hour, lengths
    )


def _device_here(name: str) -> torch.device:
    try:
        return find_device(name)
    except ConfigError as error:
        raise ConfigError(
            f"{error} Or name a kind that is known by its data sheet: {', '.join(DEVICES)}."
        ) from error


def _seconds(
    size: ModelSize,
    config: RunConfig,
    speed: Speed,
    itemsize: int,
    lengths: Lengths,
    budget: int,
    most: int,
) -> dict[str, float]:
    traffic = (
        TRAFFIC * activation_bytes(size.d_model, size.inner, itemsize) / speed.bandwidth
    )  # of a token in a block
    each, head = size.active / size.layers, size.head  # parameters

    def read(tokens: int | float, passes: int | float) -> float:
        some = tokens / passes
        block = speed.read(some)
        if block is None:
            block = some * (2 * each / speed.flops + traffic) + speed.block
        return passes * size.layers * block

    def read_prompts(n: int | float, length: float) -> float:
        passes = max(
            2, n * length / budget
        )  # at least one a class, and each reads what all begin with
        return read(n * length + passes * lengths.begins, passes)

    def write(rows: int, new: int, prompt: float) -> float:
        batches = max(1.0, rows / most)
        going = max(1.0, WRITTEN * rows / batches)
        kept = COPIED * going * (prompt + new / 2) * size.cache * itemsize / speed.bandwidth
        block = speed.write(going)
        if block is None:
            block = each * speed.step(going) + going * traffic + speed.block
        return read_prompts(rows, prompt) + batches * new * (
            size.layers * block + head * speed.step(going) + kept
        )

    drawn = DRAWN if config.filter else 1.0
    new, test = config.max_new_tokens, lengths.test
    candidates = POSITIONS * len(
        range(0, config.rule.eligible_layers(size.layers), config.layer_step)
    )
    literal = 3.0 * candidates * config.n_val * lengths.val
    scored = literal if config.full_map else SCORED * literal + LOOKED * lengths.val * candidates
    others = len(config.over_refusal) * 1.5  # XSTest has two halves
    controls = config.controls + 2 if config.controls else 0
    main = 6 * write(config.n_test, new, test)
    sets = 3 * others * write(config.n_over_refusal, new, PROMPT_TOKENS)
    some = min(config.n_control, config.n_test) * controls
    answer = test + WRITTEN * new
    texts = 3 * min(config.n_texts, config.n_test) + 2 * controls * min(
        config.n_control, config.n_texts
    )
    others_texts = len(config.texts) * (
        3 * config.n_texts + 2 * controls * min(config.n_control, config.n_texts)
    )
    drift = texts * answer + others_texts * config.text_tokens if config.drift_tokens else 0.0
    chosen = not config.refusal_tokens
    return {
        "refusal tokens": write(JUDGED, 32, lengths.train) + read_prompts(JUDGED, lengths.train)
        if chosen
        else 0.0,
        "extract": read_prompts(2 * drawn * config.n_train, lengths.train),
        "select": read(scored, LOOKS * candidates)
        + read_prompts(2 * drawn * config.n_val, lengths.val),
        "projections": read_prompts(2 * config.n_val, lengths.val),
        "generate": main + sets,
        "controls": (4 + 2 * others) * write(some, new, test)
        + read_prompts(2 * config.n_train, lengths.train)
        + read_prompts(MATCHED, PROMPT_TOKENS)
        if controls
        else 0.0,
        "drift": FORCING * read(drift, max(1.0, drift / budget)) if drift else 0.0,
    }
