"""How fast a device is: this machine measured, in seconds; others by their makers' data sheets.

Measured are a few decoder blocks of the model's shape with random weights, so that whatever a block
consists of is in the figure. Where that cannot be (no room for a block, blocks of several kinds)
products of matrices stand for it.
"""

import logging
import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import nn
from transformers import DynamicCache, PreTrainedConfig, PreTrainedModel

from refusal.model.batch_size import BUSY_TOKENS, free_memory
from refusal.model.caches import rows_apart
from refusal.model.fast_linear import speed_up
from refusal.model.forward import ROW_TOKENS
from refusal.model.placement import find_dtype
from refusal.model.sizes import active_parameters
from refusal.weights.proxy_model import BUILD_ERRORS, blocks_needed, build, shorten

log = logging.getLogger(__name__)

# seconds that a GPU's driver needs to start all that a block consists of, one after another
LAUNCHING = 0.8e-3
REACHED = 0.6  # of a data sheet's operations a second that matrix products reach
STEP_ROWS = (1, 4, 16, 64, 256)
PASS_TOKENS = (16, 64, 256)  # and as many as keep the device busy
WRITTEN_ROWS = (1, 4, 16, 64)
CACHED = 32  # tokens that a timed step looks back on
TIMED_BYTES = 256 << 20  # of blocks, so that no cache holds them
MOST_BYTES = 4 << 30
Times = tuple[tuple[int, float], ...]


@dataclass(frozen=True)
class Speed:
    """Of a device in a dtype.

    Attributes:
        flops: operations a second of matrix products with as many rows as a reading pass has
            tokens.
        bandwidth: bytes a second read from memory.
        steps: seconds for each weight of a product with few rows, by the rows; by default what is
            slower, arithmetic or reading the weights in bfloat16.
        block: seconds that a block takes at least, however little it has to do.
        reading: seconds of a block of the model in question for a pass, by its tokens.
        writing: seconds of a block of that model for a step of completions, by its rows.
    """

    flops: float
    bandwidth: float
    steps: Times = ()
    block: float = 0.0
    reading: Times = ()
    writing: Times = ()

    def step(self, rows: int | float) -> float:
        """Seconds for each weight of a product with so many rows."""
        return (
            _between(self.steps, rows)
            if self.steps
            else max(2 / self.bandwidth, 2 * rows / self.flops)
        )

    def read(self, tokens: int | float) -> float | None:
        """Seconds of a block for a pass of so many tokens, if that was measured."""
        return _between(self.reading, tokens) if self.reading else None

    def write(self, rows: int | float) -> float | None:
        """Likewise for a step of so many rows."""
        return _between(self.writing, rows) if self.writing else None

    def times(self, factor: int | float) -> "Speed":
        """A device so many times as fast, but for what a block takes at least."""

        def faster(times: Times) -> Times:
            return tuple((n, seconds / factor) for n, seconds in times)

        return replace(
            self,
            flops=self.flops * factor,
            bandwidth=self.bandwidth * factor,
            steps=faster(self.steps),
            reading=faster(self.reading),
            writing=faster(self.writing),
        )


def _between(times: Times, n: int | float) -> float:
    """Interpolated; beyond the last in proportion to it."""
    counts, seconds = zip(*times, strict=True)
    return float(np.interp(n, np.array(counts), np.array(seconds))) * max(
        1.0, float(n / counts[-1])
    )


def _data_sheet(flops: float, bandwidth: float) -> Speed:
    return Speed(REACHED * flops, bandwidth, block=LAUNCHING)


# Makers' data sheets: dense bfloat16 operations and bytes a second, bytes of memory.
DEVICES = {
    "a100": (_data_sheet(312e12, 2.04e12), 80e9),
    "h100": (_data_sheet(989e12, 3.35e12), 80e9),
    "h200": (_data_sheet(989e12, 4.8e12), 141e9),
    "b200": (_data_sheet(2250e12, 8e12), 180e9),
    "l40s": (_data_sheet(362e12, 0.86e12), 48e9),
    "mi300x": (_data_sheet(1307e12, 5.3e12), 192e9),
}


def measure_speed(
    device: torch.device, dtype: str, like: PreTrainedModel | None = None, size: int = 2048
) -> Speed:
    """How fast this device multiplies matrices of a reading pass and of a step, and reads memory;
    10 to 20 seconds.

    With a model ``like`` (which may be on the meta device) also how fast it is at blocks of that
    model's shape. ``size``: rows and columns of the matrices.
    """
    kind = find_dtype(dtype, device)
    weights = torch.ones((256 << 20) // kind.itemsize // size, size, dtype=kind, device=device)

    def seconds(rows: int, some: torch.Tensor) -> float:
        layer = nn.Linear(size, len(some), bias=False, device="meta")
        layer.weight = nn.Parameter(some, requires_grad=False)
        speed_up(nn.Sequential(layer))
        left = torch.ones(rows, size, dtype=kind, device=device)
        with torch.no_grad():
            return _typical_seconds(lambda: layer(left), device) / some.numel()

    tokens = _busy(device)
    steps = tuple((rows, seconds(rows, weights)) for rows in STEP_ROWS)
    found = Speed(
        2 * tokens / seconds(tokens, weights[: 4 * size]), kind.itemsize / steps[0][1], steps
    )
    if like is None:
        return found
    try:
        return _with_blocks(found, like, device, kind)
    except BUILD_ERRORS as error:
        log.info("Blocks of %s could not be timed: %s", type(like).__name__, error)
        return found


@torch.no_grad()  # not inference_mode: weights made in it are not made faster
def _with_blocks(
    speed: Speed, like: PreTrainedModel, device: torch.device, dtype: torch.dtype
) -> Speed:
    """Add the times of a few blocks of a model, where those can stand for all."""
    small = _few_blocks(like, device, dtype)
    if small is None:
        return speed
    with torch.device(device):
        model = build(small, dtype=dtype)
    speed_up(model)
    n: int = small.get_text_config().num_hidden_layers
    vocabulary: int = small.get_text_config().vocab_size

    most: int = getattr(small.get_text_config(), "max_position_embeddings", None) or ROW_TOKENS

    def read(tokens: int) -> float:  # in rows as a pass has them
        width = min(tokens, ROW_TOKENS, most)
        ids = torch.arange(width, device=device).expand(max(1, tokens // width), -1) % vocabulary
        return _typical_seconds(lambda: model(input_ids=ids, use_cache=False), device) / n

    def write(rows: int) -> float:
        cache, ids = (
            DynamicCache(config=small),
            torch.zeros(rows, CACHED, dtype=torch.long, device=device),
        )
        model(input_ids=ids, past_key_values=cache)
        return (
            _typical_seconds(lambda: model(input_ids=ids[:, :1], past_key_values=cache), device) / n
        )

    reading = tuple((tokens, read(tokens)) for tokens in (*PASS_TOKENS, _busy(device)))
    return replace(
        speed, reading=reading, writing=tuple((rows, write(rows)) for rows in WRITTEN_ROWS)
    )


def _few_blocks(
    like: PreTrainedModel, device: torch.device, dtype: torch.dtype
) -> PreTrainedConfig | None:
    """The config of a model with a few of the blocks; ``None`` without attention or room, or with
    blocks unlike.
    """
    layers: int = like.config.get_text_config().num_hidden_layers
    if blocks_needed(like) > 1 or not rows_apart(like.config):
        return None
    enough = math.ceil(TIMED_BYTES * layers / (active_parameters(like) * dtype.itemsize))
    small = shorten(like.config, min(layers, enough), cut_lists=True)
    with torch.device("meta"):
        size = build(small).num_parameters() * dtype.itemsize
    return small if size <= min(MOST_BYTES, free_memory(device) // 2) else None


def _busy(device: torch.device) -> int:
    return BUSY_TOKENS.get(device.type, BUSY_TOKENS["cpu"])


def finish(device: torch.device) -> None:
    """Until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def _typical_seconds(call: Callable[[], object], device: torch.device) -> float:
    """The median of three calls, after one that is not counted."""
    found = []
    for _ in range(4):
        start = time.perf_counter()
        call()
        finish(device)
        found.append(time.perf_counter() - start)
    return statistics.median(found[1:])
