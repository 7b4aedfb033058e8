"""How much runs at once: chosen from free memory, halved when memory runs out all the same."""

import ctypes
import errno
import logging
import platform
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import psutil
import torch

from refusal.core import parallel
from refusal.core.errors import OutOfMemoryError

log = logging.getLogger(__name__)
T = TypeVar("T")

# More tokens at once than this keep no processor busier (measured, docs/performance.md), only
# memory.
BUSY_TOKENS = {"cpu": 768, "mps": 4096, "cuda": 16384}
BUSY_ROWS = {"cpu": 192, "mps": 128, "cuda": 512}
FEWEST_TOKENS = 256
# tokens at once, about, whose logits are all looked at: each needs a row of the vocabulary
MOST_SCORED = 2048
FORCED_TOKENS = 1024  # likewise where each token's row is kept, a few of them in float64:
FORCED_CHUNK = 64
SHARE = 0.25  # of the free memory, for activations or for a cache
# glibc's malloc.h, and what its own adaptive thresholds end up at
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3
LARGEST_MMAP_THRESHOLD = 32 << 20


@dataclass
class BatchSize:
    """How many tokens (reading) or rows (writing) run at once; shared by all stages, so that it is
    halved once.
    """

    value: int
    unit: str = "prompts"

    def halve(self, tried: int) -> None:
        """Go on with half of what was ``tried``, and say so.

        Raises:
            OutOfMemoryError: the model is split over processes, which must all run the same.
        """
        if parallel.split():
            raise OutOfMemoryError(
                f"Out of memory with {tried} {self.unit} at once in a process that holds a part "
                "of the model. Split it over more processes, or write fewer completions at once "
                "with --batch-size."
            )
        self.value = max(1, tried // 2)
        log.warning(
            "Out of memory with %d %s at once: going on with %d.", tried, self.unit, self.value
        )
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def batched(
    lengths: Sequence[int], size: BatchSize, run: Callable[[list[int]], T]
) -> Iterator[tuple[list[int], T]]:
    """Call ``run`` on lists of indices, longest rows first, and yield ``(indices, result)``.

    Longest first, so that memory runs out at once or never; rows of similar length share a batch,
    so that little is padded. When memory runs out the batch is halved for good and the same rows
    are tried again.

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
            if not is_out_of_memory(error):
                raise
            if len(rows) == 1:
                raise too_large(lengths[rows[0]]) from error
            size.halve(len(rows))
            continue
        yield rows, result
        start += len(rows)


NO_MEMORY = (
    "out of memory",
    "can't allocate memory",
    "cannot allocate memory",
    "not enough memory",
    "bad_alloc",
    "os error 12",
    "can't start new thread",
)


def is_out_of_memory(error: BaseException) -> bool:
    """CUDA and Apple raise ``torch.OutOfMemoryError``, the CPU allocator a RuntimeError, a mapped
    file anything.
    """
    if (
        isinstance(error, (torch.OutOfMemoryError, MemoryError))
        or getattr(error, "errno", None) == errno.ENOMEM
    ):
        return True
    message = str(error).lower()
    return any(words in message for words in NO_MEMORY)


def too_large(tokens: int) -> OutOfMemoryError:
    """The error for a single prompt that does not fit."""
    return OutOfMemoryError(
        f"A single prompt of {tokens} tokens does not fit into memory. Use a smaller model, "
        "--dtype bfloat16, fewer --max-new-tokens, or a device with more memory."
    )


def token_budget(device: torch.device, bytes_per_token: int) -> int:
    """Tokens that a forward pass may hold: as many as keep the device busy, if their activations
    fit.
    """
    return tokens_that_fit(device.type, free_memory(device), bytes_per_token)


def row_budget(device: torch.device, bytes_per_row: int) -> int:
    """Rows that may be generated at once: their keys and values must fit."""
    return rows_that_fit(device.type, free_memory(device), bytes_per_row)


def tokens_that_fit(kind: str, free: int | float, bytes_per_token: int) -> int:
    """Tokens of a pass on a kind of device with so many bytes free."""
    most = BUSY_TOKENS.get(kind, BUSY_TOKENS["cpu"])
    return int(max(FEWEST_TOKENS, min(most, free * SHARE // max(1, bytes_per_token))))


def rows_that_fit(kind: str, free: int | float, bytes_per_row: int) -> int:
    """Rows written at once on a kind of device with so many bytes free."""
    most = BUSY_ROWS.get(kind, BUSY_ROWS["cpu"])
    return int(max(1, min(most, free * SHARE // max(1, bytes_per_row))))


@contextmanager
def keeping_memory() -> Iterator[None]:
    """On the CPU: keep freed memory for the next pass inside the block, and give it back at the
    end.

    glibc returns large freed blocks to the system, which hands every page out anew, zeroed, one
    fault each: a tenth of a pass (docs/performance.md). Elsewhere this does nothing.
    """
    libc = ctypes.CDLL(None) if platform.libc_ver()[0] == "glibc" else None
    if libc is not None:
        libc.mallopt(M_MMAP_THRESHOLD, LARGEST_MMAP_THRESHOLD)
        libc.mallopt(M_TRIM_THRESHOLD, 1 << 30)
        libc.mallopt(M_TOP_PAD, 64 << 20)
    try:
        yield
    finally:
        if libc is not None:
            libc.mallopt(M_TRIM_THRESHOLD, 2 * LARGEST_MMAP_THRESHOLD)
            libc.mallopt(M_TOP_PAD, 0)
            libc.malloc_trim(0)


def free_memory(device: torch.device) -> int:
    """Bytes free on a device; for the CPU the smaller of what the system and its control group
    leave.
    """
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device))
    free = int(psutil.virtual_memory().available)
    limit, used = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")
    if limit.is_file() and used.is_file() and (text := limit.read_text().strip()) != "max":
        free = min(free, max(0, int(text) - int(used.read_text())))
    return free
