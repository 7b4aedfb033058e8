"""What a model needs in memory and a run in time, from the model's config alone: no weights are read.

The arithmetic of one token is two operations for each weight that it meets (a mixture's token meets its active experts
only). Reading prompts is bound by arithmetic; writing by arithmetic or by reading all weights once a step, whichever is
slower. How many tokens a stage reads was counted on real runs (their ``manifest.json`` has it). How fast this machine
multiplies and reads is measured, in about two seconds.
"""

import time
from dataclasses import dataclass

import torch
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel

from refusal.batches import BUSY_ROWS, BUSY_TOKENS
from refusal.config import RunConfig
from refusal.model import DTYPES, auto_class, loading, resolve

PROMPT_TOKENS = 20  # of a one-line instruction with its template, once what prompts begin with in common is read once
DRAWN = 1.2  # prompts read for each that passes the filter
WRITTEN = 0.7  # of the tokens that a completion may have: many end early
SCORED = 0.22  # of a triple loop's tokens: early exit, and induce starts in the middle (docs/performance.md)
READING = 0.55  # of the matrix products' rate, all overheads included
WRITING = 0.25  # the same for a step of a batch that is being completed: few rows, and attention to a cache
JUDGED = 48  # completions that choose the refusal tokens
RUNTIME = 700 << 20  # Python, torch, transformers and what they load


@dataclass(frozen=True)
class ModelSize:
    """What a config says about size.

    Attributes:
        weights: parameters in all.
        active: parameters that a token of the blocks meets (embedding and head left out).
        head: parameters of the output head, met by tokens whose logits are read.
        cache: values of keys and values that one token leaves in the cache.
        layers: decoder blocks; d_model: width of the residual stream; inner: the widest MLP tensor.
    """

    weights: int
    active: int
    head: int
    cache: int
    layers: int
    d_model: int
    inner: int


@dataclass(frozen=True)
class Speed:
    """Of a device in a dtype: operations a second of matrix products, bytes a second read from memory."""

    flops: float
    bandwidth: float


@dataclass(frozen=True)
class Estimate:
    """Bytes, and seconds by stage."""

    weights_bytes: int
    memory_bytes: int
    seconds: dict[str, float]

    @property
    def total_seconds(self) -> float:
        """Of all stages."""
        return sum(self.seconds.values())


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


def size_of(model: PreTrainedModel, config: PreTrainedConfig) -> ModelSize:
    """Counts a model's parameters; those of experts count as active by the share of experts that a token meets."""
    text = config.get_text_config()
    share = _active_share(text)
    vocabulary = {id(model.get_input_embeddings().weight)}
    head = model.get_output_embeddings()
    if head is not None:
        vocabulary.add(id(head.weight))
    weights = active = 0
    for name, parameter in model.named_parameters():
        weights += parameter.numel()
        if id(parameter) not in vocabulary:
            active += int(parameter.numel() * (share if ".experts." in name else 1))
    heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
    per_head = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    return ModelSize(
        weights=weights,
        active=active,
        head=text.vocab_size * text.hidden_size,
        cache=2 * text.num_hidden_layers * heads * per_head,
        layers=text.num_hidden_layers,
        d_model=text.hidden_size,
        inner=getattr(text, "intermediate_size", None) or 4 * text.hidden_size,
    )


def _active_share(config: PreTrainedConfig) -> float:
    """Experts that a token meets, of all."""
    met = getattr(config, "num_experts_per_tok", None)
    names = ("num_local_experts", "num_experts", "n_routed_experts")
    there = next((n for name in names if (n := getattr(config, name, None))), None)
    return met / there if met and there else 1.0


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

    Memory: the weights, the runtime, and the larger of what a reading pass and what a generated batch holds. Time: see
    the module; a stage's tokens are stated above as constants.
    """
    bytes_each = DTYPES[config.dtype].itemsize
    weights = size.weights * bytes_each
    reading = BUSY_TOKENS.get(device, BUSY_TOKENS["cpu"]) * (
        bytes_each * (12 * size.d_model + 4 * size.inner) + 16 * size.d_model
    )
    rows = min(BUSY_ROWS.get(device, BUSY_ROWS["cpu"]), config.n_test)
    vocabulary = size.head // size.d_model
    writing = rows * ((PROMPT_TOKENS + config.max_new_tokens) * size.cache * bytes_each + 3 * 4 * vocabulary)
    return Estimate(weights, weights + RUNTIME + max(reading, writing), _seconds(size, config, speed, bytes_each))


def _seconds(size: ModelSize, config: RunConfig, speed: Speed, bytes_each: int) -> dict[str, float]:
    def read(tokens: float) -> float:
        return 2 * size.active * tokens / (READING * speed.flops)

    def write(rows: int, length: int) -> float:
        average = max(1.0, WRITTEN * rows)
        by_arithmetic = 2 * (size.active + size.head) * average / (WRITING * speed.flops)
        by_memory = (size.active + size.head) * bytes_each / speed.bandwidth
        return read(float(rows * PROMPT_TOKENS)) + length * max(by_arithmetic, by_memory)

    eligible = len(range(0, config.rule.eligible_layers(size.layers), config.layer_step))
    candidates = eligible * 5  # positions after the instruction: five or so
    share = 1.0 if config.full_map else SCORED
    main = 6 * write(config.n_test, config.max_new_tokens)
    sets = 3 * len(config.over_refusal) * 1.5 * write(config.n_over_refusal, config.max_new_tokens)
    controlled = 4 + 3 * len(config.over_refusal)
    some = min(config.n_control, config.n_test) * (config.controls + 2 if config.controls else 0)
    return {
        "refusal tokens": write(JUDGED, 32) if not config.refusal_tokens else 0.0,
        "extract": read(2.0 * DRAWN * config.n_train * PROMPT_TOKENS),
        "select": read(3 * candidates * config.n_val * PROMPT_TOKENS * share),
        "generate": main + sets,
        "controls": controlled * write(some, config.max_new_tokens) if some else 0.0,
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
