"""The two outputs, and what can be wrong with them: everything that is printed goes through
here.
"""

import io
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

from refusal.core.text import sanitised


class PlainConsole(Console):
    """A console on which texts are what they say: no markup, no emoji codes, no control characters.

    Everything that is printed comes through ``render``, whatever table or line it stands in.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**options, markup=False, emoji=False, highlight=False)

    def on_broken_pipe(self) -> None:
        """Not rich's own end of the program: the command line knows what to do."""
        raise BrokenPipeError

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterable[Segment]:
        """As rich does, every text of it ``visible``; rich's own cursor movements and colours
        stay.
        """
        for part in super().render(renderable, options):
            yield part if part.control else Segment(sanitised(part.text), part.style)


err = PlainConsole(stderr=True)
out = PlainConsole()


def prepare_output() -> None:
    """Make sure that there are outputs, and that every text can be written to them whatever their
    encoding.
    """
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # closed by whoever started the program
            setattr(sys, name, Path(os.devnull).open("w", encoding="utf-8"))  # noqa: SIM115 (for as long as the program runs)
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(
            errors="surrogateescape"
        )  # a line of other bytes is refused, and the next one read


def flush() -> None:
    """Write out what stdout still holds, so that a failure is noticed while it can be told."""
    if sys.stdout is not None:
        sys.stdout.flush()


def close_output() -> None:
    """Nobody reads stdout or stderr any more: what is left for them goes nowhere, without a word at
    the exit.
    """
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except BrokenPipeError:
            os.dup2(nowhere, stream.fileno())
