"""How fast a loaded model is here, in a second or two: its first blocks and its head are timed."""

import logging
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor
from transformers import DynamicCache

from refusal.core import parallel
from refusal.model.base import LoadedModel
from refusal.model.caches import rows_apart
from refusal.model.contexts import context_length
from refusal.model.forward import ROW_TOKENS, call, uncounted
from refusal.model.hooks import skipped
from refusal.pipeline.costs.speed import CACHED, Speed, Times, finish
from refusal.weights.proxy_model import blocks_needed

log = logging.getLogger(__name__)

BLOCKS = 2  # that are timed
LONG = 0.1  # seconds from which on a call is not made again
ENOUGH = 0.4  # seconds for one size, from which on no larger one is tried
TRIES = 3  # after the first call, which is not counted where there are others
READ_TOKENS = (16, 64, 256)  # and as many as a pass may have
WRITTEN_ROWS = (1, 16, 64, 256)
EXPECTED = (RuntimeError, ValueError, IndexError, TypeError, AttributeError)


def loaded_speed(model: LoadedModel) -> Speed:
    """Seconds of a block by the tokens of a pass and the rows of a step, and of the head.

    The first blocks stand for all; where there are several kinds of them, the head's product stands
    for every product. Of several processes all must call this at once: so they work in the run.
    """
    with torch.inference_mode(), uncounted(model):
        speed = _head(model)
        if blocks_needed(model.hf) > 1:
            return speed
        try:
            return _Blocks(model).added_to(speed)
        except EXPECTED as error:
            log.info("Blocks of %s could not be timed: %s", model.name, error)
            return speed


def _head(model: LoadedModel) -> Speed:
    """By the output head alone."""
    head = model.hf.get_submodule(model.sites.head)
    weights = sum(parameter.numel() for parameter in head.parameters())
    width, dtype = model.sites.d_model, model.hf.dtype

    def seconds(rows: int) -> float:
        x = torch.ones(rows, 1, width, dtype=dtype, device=model.device)
        return _seconds(lambda: head(x), model.device)

    steps = tuple((rows, each / weights) for rows, each in _timed(WRITTEN_ROWS, seconds))
    rows, each = steps[-1]
    return Speed(2 * rows / each, dtype.itemsize / steps[0][1], steps)


class _Blocks:
    """The first blocks of a model with everything around them but the head."""

    def __init__(self, model: LoadedModel) -> None:
        self.model = model
        self.blocks = [model.hf.get_submodule(name) for name in model.sites.blocks]
        self.head = model.hf.get_submodule(model.sites.head)
        self.timed = min(BLOCKS, len(self.blocks))

    def added_to(self, speed: Speed) -> Speed:
        """The speed with the times of a block."""
        busy = self.model.token_budget.value
        reading = _timed([*(n for n in READ_TOKENS if n < busy), busy], self._read)
        apart = rows_apart(self.model.hf.config)
        writing = _timed(WRITTEN_ROWS, self._write) if apart else ()
        return Speed(speed.flops, speed.bandwidth, speed.steps, 0.0, reading, writing)

    def _read(self, tokens: int) -> float:
        """Of a block, for a pass over rows of different tokens."""
        width = min(tokens, ROW_TOKENS, context_length(self.model.hf.config) or ROW_TOKENS)
        ids = self._ids(max(1, tokens // width), width)
        return self._of_a_block(lambda: self._call(ids, 0))

    def _write(self, rows: int) -> float:
        """Of a block, for a step that looks back on a few tokens."""
        cache, token = DynamicCache(config=self.model.hf.config), self._ids(rows, 1)
        with self._only(self.timed):
            self._call(self._ids(1, CACHED), 0, cache)
        cache.batch_repeat_interleave(rows)
        return self._of_a_block(lambda: self._call(token, cache.get_seq_length(), cache))

    def _of_a_block(self, run: Callable[[], object]) -> float:
        """Seconds of ``run`` with the blocks, less those without any."""
        found = []
        for n in (self.timed, 0):
            with self._only(n):
                found.append(_seconds(run, self.model.device))
        return max(found[0] - found[1], 1e-9) / self.timed

    @contextmanager
    def _only(self, n: int) -> Iterator[None]:
        """The first ``n`` blocks and no head, for the duration of the block."""
        with skipped(self.blocks[n:], self.model.sites.in_tuple), skipped([self.head]):
            yield

    def _ids(self, rows: int, width: int) -> Int[Tensor, "row token"]:
        """Tokens of many kinds, so that a mixture's go to many experts."""
        vocabulary: int = self.model.hf.config.get_text_config().vocab_size
        return (torch.arange(rows * width) % vocabulary).view(rows, width).to(self.model.device)

    def _call(self, ids: Int[Tensor, "row token"], seen: int, cache: Any = None) -> None:
        rows, width = ids.shape
        everything = torch.ones(rows, seen + width, dtype=torch.bool, device=ids.device)
        positions = torch.arange(seen, seen + width, device=ids.device).expand_as(ids)
        call(self.model, ids, everything, positions, cache)


def _timed(sizes: Sequence[int], seconds: Callable[[int], float]) -> Times:
    """Seconds by size, the smallest first, until one has taken long."""
    found: list[tuple[int, float]] = []
    for size in sizes:
        start = time.perf_counter()
        found.append((size, seconds(size)))
        spent = time.perf_counter() - start
        if _agreed(spent > ENOUGH):
            break
    return tuple(found)


def _seconds(run: Callable[[], object], device: torch.device) -> float:
    """The median of a few calls, or what the only one took."""
    found: list[float] = []
    while len(found) <= TRIES:
        start = time.perf_counter()
        run()
        finish(device)
        found.append(time.perf_counter() - start)
        if _agreed(found[-1] > LONG):
            break
    return statistics.median(found[1:] or found)


def _agreed(enough: bool) -> bool:
    """Processes that hold parts of one model must all make the same calls."""
    return parallel.decided(lambda: enough) if parallel.split() else enough
