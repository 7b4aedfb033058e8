"""What a model needs in memory and a run in time, from the model's config alone: no weights are read.

The arithmetic of one token is two operations for each weight that it meets (a mixture's token meets its active experts
only). Reading prompts is bound by arithmetic; writing by arithmetic or by reading all weights once a step, whichever is
slower. How many tokens a stage reads was counted on real runs (their ``manifest.json`` has it). How fast this machine
multiplies and reads is measured, in about two seconds.
"""

import time
from dataclasses import dataclass, replace

import torch
from transformers import AutoConfig

from refusal.batches import BUSY_ROWS, BUSY_TOKENS, free_memory
from refusal.config import RunConfig
from refusal.evaluate.drift import CHUNK, MOST_TOKENS
from refusal.model import DTYPES, auto_class, find_device, loading, resolve
from refusal.sizes import ModelSize, size_of

PROMPT_TOKENS = 20  # of a one-line instruction with its template, once what prompts begin with in common is read once
DRAWN = 1.2  # prompts read for each that passes the filter
WRITTEN = 0.7  # of the tokens that a completion may have: many end early
POSITIONS = 5  # tokens after the instruction: that many candidates a layer
SCORED = 0.07  # of a triple loop's tokens: early exit, and induce starts in the middle (docs/performance.md)
LOOKED = 240  # tokens for each candidate besides: what it takes to see that it fails
READING = 0.5  # of the matrix products' rate, all overheads included
WRITING = 0.25  # the same for a step of a batch that is being completed: few rows, and attention to a cache
FORCING = 0.25  # the same where every token's logits are needed, in float64
JUDGED = 48  # completions that choose the refusal tokens
MATCHED = 200  # prompts of the matched pairs
SHARING = 0.9  # of the time that several processes would save if none ever waited (docs/performance.md)
RUNTIME = 1_000_000_000  # Python, torch, transformers, and what loading leaves behind


@dataclass(frozen=True)
class Speed:
    """Of a device in a dtype: operations a second of matrix products, bytes a second read from memory."""

    flops: float
    bandwidth: float


# Makers' data sheets: dense bfloat16 operations and bytes a second, bytes of memory.
DEVICES = {
    "a100": (Speed(312e12, 2.04e12), 80e9),
    "h100": (Speed(989e12, 3.35e12), 80e9),
    "h200": (Speed(989e12, 4.8e12), 141e9),
    "b200": (Speed(2250e12, 8e12), 180e9),
    "l40s": (Speed(362e12, 0.86e12), 48e9),
    "mi300x": (Speed(1307e12, 5.3e12), 192e9),
}


@dataclass(frozen=True)
class Estimate:
    """What a run should take.

    Attributes:
        weights_bytes: of one copy of the model. memory_bytes: of a process.
        seconds: of all devices together working, by stage. processes: that share the work, a copy each; or one, whose
            model is spread over ``devices``, of which one works at a time.
        cost: where a price is given.
    """

    weights_bytes: int
    memory_bytes: int
    seconds: dict[str, float]
    devices: int = 1
    processes: int = 1
    fits: bool = True
    cost: float | None = None

    @property
    def total_seconds(self) -> float:
        """Of all stages."""
        return sum(self.seconds.values())


def estimate_on(
    size: ModelSize, config: RunConfig, speed: Speed, kind: str, memory: int | float, count: int, price: float | None
) -> Estimate:
    """A run on ``count`` devices of ``memory`` bytes: a copy of the model on each if it fits, else one over all."""
    one = estimate(size, config, speed, kind)
    shared = one.memory_bytes <= memory
    seconds = {name: value / (count * SHARING if shared and count > 1 else 1) for name, value in one.seconds.items()}
    total = sum(seconds.values())
    return replace(
        one,
        seconds=seconds,
        devices=count,
        processes=count if shared else 1,
        fits=shared or one.memory_bytes <= memory * count,
        cost=None if price is None else price * count * total / 3600,
    )


def model_size(name: str, revision: str | None = None) -> ModelSize:
    """The size of a model by its config: it is built without memory for its weights.

    Raises:
        ModelLoadError: not found, no network, or no readable config.
    """
    options = {"revision": revision} if revision is not None else {}
    with loading(name):
        config = AutoConfig.from_pretrained(resolve(name), **options)
        with torch.device("meta"):
            model = auto_class(config).from_config(config)
    return size_of(model, config)


def measure_speed(device: torch.device, dtype: str, size: int = 2048) -> Speed:
    """How fast this device multiplies matrices of a reading pass, and reads memory; about two seconds."""
    kind = DTYPES[dtype]
    left = torch.ones(BUSY_TOKENS.get(device.type, BUSY_TOKENS["cpu"]), size, dtype=kind, device=device)
    right = torch.ones(size, 4 * size, dtype=kind, device=device)
    vector = torch.ones(1, size, dtype=kind, device=device)
    weights = torch.ones(size, (256 << 20) // kind.itemsize // size, dtype=kind, device=device)
    multiply = _best_seconds(lambda: left @ right, device)
    read = _best_seconds(lambda: vector @ weights, device)
    return Speed(flops=2 * left.numel() * right.shape[1] / multiply, bandwidth=weights.numel() * kind.itemsize / read)


def estimate(size: ModelSize, config: RunConfig, speed: Speed, device: str = "cpu") -> Estimate:
    """Memory and time of a run.

    Memory: the weights, the runtime, and the largest of what is held while loading from another dtype, by a reading
    pass, by a batch that is being completed (keys and values, three times over while they grow) and by drift (logits
    of a batch, a few in float64). Time: see the module; a stage's tokens are stated above as constants.
    """
    bytes_each = DTYPES[config.dtype].itemsize
    weights = size.weights * bytes_each
    reading = BUSY_TOKENS.get(device, BUSY_TOKENS["cpu"]) * (
        bytes_each * (12 * size.d_model + 4 * size.inner) + 16 * size.d_model
    )
    rows = min(BUSY_ROWS.get(device, BUSY_ROWS["cpu"]), config.n_test)
    vocabulary = size.head // size.d_model
    kept = (2 * PROMPT_TOKENS + config.max_new_tokens) * size.cache * bytes_each
    writing = rows * (3 * kept + 3 * 4 * vocabulary)
    forcing = vocabulary * (MOST_TOKENS * 2 * bytes_each + CHUNK * 3 * 8) if config.drift_tokens else 0
    # A checkpoint in another dtype is mapped into memory while it is converted.
    loading = size.weights * size.stored - RUNTIME // 2 if size.stored != bytes_each else 0
    memory = weights + RUNTIME + max(reading, writing, forcing, loading)
    return Estimate(weights, memory, _seconds(size, config, speed, bytes_each))


def plan(config: RunConfig, count: int = 1) -> Estimate:
    """The estimate of a configuration on ``count`` devices of the kind that its ``device`` names, or of this machine.

    Raises:
        ModelLoadError: the model's config cannot be read.
        ConfigError: unknown device.
    """
    size = model_size(config.model, config.revision)
    if config.device in DEVICES:
        speed, memory = DEVICES[config.device]
        kind = "cuda"
    else:
        device = find_device(config.device)
        speed, memory, kind = measure_speed(device, config.dtype), free_memory(device), device.type
    return estimate_on(size, config, speed, kind, memory, count, config.price_per_device_hour)


def _seconds(size: ModelSize, config: RunConfig, speed: Speed, bytes_each: int) -> dict[str, float]:
    def read(tokens: float) -> float:
        return 2 * size.active * tokens / (READING * speed.flops)

    def write(rows: int, length: int) -> float:
        average = max(1.0, WRITTEN * rows)
        by_arithmetic = 2 * (size.active + size.head) * average / (WRITING * speed.flops)
        by_memory = (size.active + size.head) * bytes_each / speed.bandwidth
        return read(float(rows * PROMPT_TOKENS)) + length * max(by_arithmetic, by_memory)

    candidates = POSITIONS * len(range(0, config.rule.eligible_layers(size.layers), config.layer_step))
    literal = 3.0 * candidates * config.n_val * PROMPT_TOKENS
    scored = literal if config.full_map else SCORED * literal + LOOKED * candidates
    others = len(config.over_refusal) * 1.5  # XSTest has two halves
    controls = config.controls + 2 if config.controls else 0
    main = 6 * write(config.n_test, config.max_new_tokens)
    sets = 3 * others * write(config.n_over_refusal, config.max_new_tokens)
    some = min(config.n_control, config.n_test) * controls
    answer = PROMPT_TOKENS + WRITTEN * config.max_new_tokens
    texts = 3 * min(config.n_texts, config.n_test) + 2 * controls * min(config.n_control, config.n_texts)
    others_texts = len(config.texts) * (3 * config.n_texts + 2 * controls * min(config.n_control, config.n_texts))
    drift = texts * answer + others_texts * config.text_tokens if config.drift_tokens else 0.0
    return {
        "refusal tokens": write(JUDGED, 32) + read(float(JUDGED * PROMPT_TOKENS)) if not config.refusal_tokens else 0.0,
        "extract": read(2.0 * DRAWN * config.n_train * PROMPT_TOKENS),
        "select": read(scored + 2.0 * DRAWN * config.n_val * PROMPT_TOKENS),
        "generate": main + sets,
        "controls": (4 + 2 * others) * write(some, config.max_new_tokens)
        + read((2.0 * config.n_train + MATCHED) * PROMPT_TOKENS)
        if controls
        else 0.0,
        "drift": READING / FORCING * read(drift),
    }


def _best_seconds(call: object, device: torch.device, tries: int = 5) -> float:
    """The fastest of some calls; the first is not counted."""
    assert callable(call)
    best = float("inf")
    for i in range(tries + 1):
        start = time.perf_counter()
        call()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        if i:
            best = min(best, time.perf_counter() - start)
    return best
