"""How many threads a test with the real model may use: its share of the machine when tests run side
by side.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

WORKERS = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))


@contextmanager
def all_cores() -> Iterator[None]:
    """This worker's share of the cores inside the block; the tests with tiny models have one."""
    before = torch.get_num_threads()
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // WORKERS))
    try:
        yield
    finally:
        torch.set_num_threads(before)
