"""The conversation of `refusal chat`: questions by themselves, and commands that switch between
conditions.
"""

import math
from typing import Any

from refusal.cli import present as display
from refusal.core.direction import Direction
from refusal.core.errors import PromptError
from refusal.interventions.ablate_add import Add
from refusal.interventions.conditions import interventions_for
from refusal.model.chat_model import ChatModel

COMMANDS = "/baseline  /ablate  /add ALPHA  /quit"


def talk(model: ChatModel, direction: Direction, max_new_tokens: int) -> None:
    """Questions and replies until ``/quit`` or the end of the input."""
    interventions: tuple[Any, ...] = ()
    condition = "baseline"
    while (line := _ask(condition)) is not None:
        if line.startswith("/"):
            changed = _switch(line, direction)
            if changed is None:
                display.show_notice(f"Commands: {COMMANDS}")
            else:
                condition, interventions = changed
        elif line:
            try:
                with model.apply(*interventions):
                    display.show_reply(model.generate([line], max_new_tokens)[0])
            except PromptError as error:  # too long for the model: the next may not be
                display.show_notice(str(error))


def _ask(condition: str) -> str | None:
    """The next line, or ``None`` at the end."""
    try:
        line = input(f"[{condition}] > ").strip()
        line.encode()
    except (EOFError, RuntimeError):  # the end, or no input at all
        return None
    except UnicodeError:
        display.show_notice("This line is not UTF-8 and was not asked. Write it in UTF-8.")
        return ""
    return None if line == "/quit" else line


def _switch(line: str, direction: Direction) -> tuple[str, tuple[Any, ...]] | None:
    """The condition that a chat command asks for; ``None`` if it is no command."""
    match line.split():
        case ["/baseline"]:
            return "baseline", ()
        case ["/ablate"]:
            return "ablation", interventions_for("ablation", direction)
        case ["/add", text] if (alpha := _number(text)) is not None:
            return f"add {alpha:g}", (Add(direction, alpha),)
        case _:
            return None


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None
