"""How library code reports progress without knowing who listens.

A stage opens ``with task("collect", total=256) as advance`` and calls ``advance(n)``. By default
nobody listens; ``display`` installs a listener for the terminal. What transformers
loads is reported so too (`model/loading_bars.py`).
"""

import logging
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar

NOTE = 25  # level of what every user should read though nothing is wrong: below a warning
logging.addLevelName(NOTE, "NOTE")

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
