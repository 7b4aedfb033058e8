"""The progress bars that transformers draws while it loads, as tasks of this package."""

from collections.abc import Iterable, Iterator, Sized
from contextlib import contextmanager
from typing import Any

from transformers import modeling_gguf_pytorch_utils
from transformers.utils import logging as transformers_logging

from refusal.core.progress import task


@contextmanager
def bars_as_tasks() -> Iterator[None]:
    """Turn the bars that transformers draws inside the block into tasks, so that they show where
    all progress shows.

    Its GGUF loader calls tqdm directly, deaf to transformers' own switch and hook: for the block it
    gets the one that listens to them.
    """
    before = transformers_logging.set_tqdm_hook(lambda factory, args, kwargs: _Bar(*args, **kwargs))
    loader: Any = modeling_gguf_pytorch_utils
    direct, loader.tqdm = loader.tqdm, transformers_logging.tqdm
    try:
        yield
    finally:
        loader.tqdm = direct
        transformers_logging.set_tqdm_hook(before)


class _Bar(transformers_logging.EmptyTqdm):
    """Stands in for a tqdm bar: walks its items as a task; every other method of a bar does
    nothing.
    """

    def __init__(self, items: Iterable[Any] = (), desc: str = "load", **kwargs: Any) -> None:
        self._items = items
        self._name = desc.rstrip(".").lower()

    def __iter__(self) -> Iterator[Any]:
        total = len(self._items) if isinstance(self._items, Sized) else 0
        with task(self._name, total, "steps") as advance:
            for item in self._items:
                yield item
                advance(1)
