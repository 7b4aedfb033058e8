"""How library code reports progress without knowing who listens.

A stage opens ``with task("collect", total=256) as advance`` and calls ``advance(n)``. By default
nobody listens; ``display`` installs a listener for the terminal. Loading by transformers is
reported the same way.
"""

from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from typing import Any

from transformers import modeling_gguf_pytorch_utils
from transformers.utils import logging as transformers_logging

Advance = Callable[[int], None]
Listener = Callable[[str, int, str], AbstractContextManager[Advance]]


def _silent(name: str, total: int, unit: str) -> AbstractContextManager[Advance]:
    return nullcontext(lambda n: None)


_listener: ContextVar[Listener] = ContextVar("refusal_progress", default=_silent)


def task(name: str, total: int, unit: str = "prompts") -> AbstractContextManager[Advance]:
    """Open a unit of work of ``total`` steps (0: nobody knows how many); yields ``advance(n)``."""
    return _listener.get()(name, total, unit)


@contextmanager
def listening(listener: Listener) -> Iterator[None]:
    """Route every ``task`` opened inside to ``listener``."""
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)


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
