"""Cut work into batches of similar length, and halve the batch when memory runs out."""

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch

from refusal.errors import OutOfMemoryError

log = logging.getLogger(__name__)
T = TypeVar("T")


@dataclass
class BatchSize:
    """How many rows run at once; shared by all stages of a model, so that it is halved only once."""

    value: int


def batched(lengths: Sequence[int], size: BatchSize, run: Callable[[list[int]], T]) -> Iterator[tuple[list[int], T]]:
    """Call ``run`` on lists of indices, longest rows first, and yield ``(indices, result)``.

    Longest first, so that memory runs out at once or never; rows of similar length share a batch, so that little is
    padded. When memory runs out the batch is halved for good and the same rows are tried again.

    Raises:
        OutOfMemoryError: one row alone does not fit.
    """
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    start = 0
    while start < len(order):
        rows = order[start : start + size.value]
        try:
            result = run(rows)
        except (RuntimeError, MemoryError) as error:
            if not _is_out_of_memory(error):
                raise
            if len(rows) == 1:
                raise OutOfMemoryError(
                    f"A single prompt of {lengths[rows[0]]} tokens does not fit into memory. Use a smaller model, "
                    "--dtype bfloat16, fewer --max-new-tokens, or a device with more memory."
                ) from error
            size.value = max(1, len(rows) // 2)
            log.warning("Out of memory with %d prompts at once: going on with %d.", len(rows), size.value)
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            continue
        yield rows, result
        start += len(rows)


def _is_out_of_memory(error: BaseException) -> bool:
    """CUDA and Apple raise ``torch.OutOfMemoryError``; the CPU allocator a plain RuntimeError."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    message = str(error).lower()
    return "out of memory" in message or "can't allocate memory" in message or "not enough memory" in message
