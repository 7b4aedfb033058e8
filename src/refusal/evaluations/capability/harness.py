"""Being lm-eval's host: whether it is there, quiet, its progress shown where all progress shows,
its random numbers.
"""

import importlib
import logging
import random
import sys
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, redirect_stdout
from typing import Any

import numpy as np
import torch

from refusal.core.errors import ConfigError
from refusal.core.progress import task

BARS = (
    "lm_eval.api.task",
    "lm_eval.api.model",
    "lm_eval.models.huggingface",
)  # modules that draw bars
READER = "lm_eval.models.huggingface"  # the one that says when it cuts a prompt
SEEDS = (0, 1234, 1234)  # of python, numpy and torch: lm-eval's defaults


def require() -> None:
    """Raise ConfigError where lm-eval is not installed."""
    try:
        for module in ("lm_eval.evaluator", *BARS):
            importlib.import_module(module)
    except ImportError as error:
        raise ConfigError(
            f"Benchmarks need lm-eval, which cannot be imported ({error}). "
            "Install it with: pip install 'refusal[capability]'"
        ) from error


@contextmanager
def hosted(label: str) -> Iterator[None]:
    """Inside the block lm-eval logs errors only, prints nothing to stdout, and its bars are a task
    named ``label``.

    That a prompt is too long and is cut is still logged, once: it changes the numbers. Random
    numbers start where lm-eval starts them, and go on as before after the block.
    """
    import datasets

    with ExitStack() as stack:
        stack.enter_context(redirect_stdout(sys.stderr))
        stack.enter_context(_seeded())
        stack.enter_context(_levels({"lm_eval": logging.ERROR, READER: logging.WARNING}))
        reader, first_cut = logging.getLogger(READER), _first_cut()
        reader.addFilter(first_cut)
        stack.callback(reader.removeFilter, first_cut)
        bar = _bar(label, stack)
        for name in BARS:
            module = importlib.import_module(name)
            stack.callback(setattr, module, "tqdm", module.tqdm)
            module.tqdm = bar  # type: ignore[attr-defined]
        if not datasets.are_progress_bars_disabled():
            datasets.disable_progress_bars()
            stack.callback(datasets.enable_progress_bars)
        yield


@contextmanager
def _seeded() -> Iterator[None]:
    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng():
        random.seed(SEEDS[0])
        np.random.seed(SEEDS[1])
        torch.manual_seed(SEEDS[2])
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)


@contextmanager
def _levels(levels: dict[str, int]) -> Iterator[None]:
    before = {name: logging.getLogger(name).level for name in levels}
    try:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
        yield
    finally:
        for name, level in before.items():
            logging.getLogger(name).setLevel(level)


def _first_cut() -> logging.Filter:
    class FirstCut(logging.Filter):
        """Errors, and the first message that a prompt was cut ("Truncating", "truncation")."""

        said = False

        def filter(self, record: logging.LogRecord) -> bool:
            cut = "truncat" in record.getMessage().lower()
            passes = record.levelno >= logging.ERROR or (cut and not self.said)
            self.said |= cut
            return passes

    return FirstCut()


def _bar(label: str, stack: ExitStack) -> type[Any]:
    """A stand-in for tqdm: a bar that is moved by hand is a task, closed with ``stack``; a walk
    just walks.
    """

    class Bar:
        def __init__(
            self, items: Iterable[Any] | None = None, total: int = 0, **kwargs: Any
        ) -> None:
            self._items = items
            self._task = ExitStack()
            if items is None:
                stack.push(self._task)
                self.update = self._task.enter_context(task(label, total, "requests"))

        def __iter__(self) -> Iterator[Any]:
            return iter(self._items or ())

        def close(self) -> None:
            self._task.close()

    return Bar
