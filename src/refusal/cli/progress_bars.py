"""Progress, warnings and notes while something runs, on stderr."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from refusal.cli import console
from refusal.core import parallel
from refusal.core.progress import NOTE, Advance, Listener, listening


class _Rate(ProgressColumn):
    """Steps per second, or seconds per step when slow."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        if not speed:
            return Text("")
        shown = f"{speed:.1f} {task.fields['unit']}/s" if speed >= 1 else f"{1 / speed:.1f} s each"
        return Text(shown, style="cyan")


class _Lines(logging.Handler):
    """Log records as lines on stderr, for a person to read."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print one record on one line, above the progress if there is any."""
        style = {logging.WARNING: "yellow", logging.ERROR: "bold red"}.get(record.levelno, "dim")
        label = (f"{record.levelname.lower()}: ", style)
        console.err.print(Text.assemble(label, record.getMessage()), soft_wrap=True)


@contextmanager
def reporting(quiet: bool = False, verbose: bool = False) -> Iterator[None]:
    """Show warnings and notes (with ``verbose`` details too) on stderr; on a terminal progress
    too.
    """
    from transformers import logging as transformers_logging  # slow to import

    quiet = quiet or not parallel.is_writer()
    level = logging.ERROR if quiet else logging.INFO if verbose else NOTE
    handler = _Lines()
    logger = logging.getLogger("refusal")
    before = logger.level
    logger.addHandler(handler)
    logger.setLevel(level)
    transformers_logging.set_verbosity_error()
    # loading is reported as a task, like everything else
    transformers_logging.disable_progress_bar()
    # its retries, a line each
    logging.getLogger("huggingface_hub").setLevel(logging.INFO if verbose else logging.ERROR)
    try:
        with warnings.catch_warnings():
            if not verbose:  # of libraries, to their callers
                warnings.simplefilter("ignore")
            if quiet or not console.err.is_terminal:
                yield
            else:
                with show_progress():
                    yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before)


@contextmanager
def show_progress() -> Iterator[None]:
    """Show bars for everything slow inside the block, in a terminal or a notebook.

    The library shows nothing by itself. In a notebook this needs ``refusal[notebook]``.
    """
    with _progress() as progress, listening(_listener(progress)):
        yield


def _progress() -> Progress:
    columns = (
        TextColumn("{task.description}", style="bold", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[unit]}", markup=False),
        _Rate(),
        TimeRemainingColumn(compact=True, elapsed_when_finished=True),
    )
    return Progress(*columns, console=console.err)


def _listener(progress: Progress) -> Listener:
    @contextmanager
    def listener(name: str, total: int, unit: str) -> Iterator[Advance]:
        shown = progress.add_task(name, total=total or None, unit=unit)
        done = 0

        def advance(n: int) -> None:
            nonlocal done
            done += n
            progress.advance(shown, n)

        try:
            yield advance
        finally:
            if total:  # also when it took fewer steps than it might have
                progress.update(shown, total=done)
            else:
                progress.remove_task(shown)

    return listener
