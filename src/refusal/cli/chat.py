"""The conversation of `refusal chat`: questions by themselves, and commands that switch between
conditions.
"""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

from refusal.cli import present as display
from refusal.cli.options import default_folder
from refusal.cli.progress_bars import reporting
from refusal.config.options import ModelOptions
from refusal.core.direction import Direction
from refusal.core.errors import PromptError, RunFolderError
from refusal.core.valid import check_place, check_width
from refusal.interventions.ablate_add import Add
from refusal.interventions.conditions import interventions_for
from refusal.model.chat_model import ChatModel
from refusal.model.load import load
from refusal.runs.files import read_manifest
from refusal.weights.same_weights import check_loaded

COMMANDS = "/baseline  /ablate  /add ALPHA  /quit"


def start(
    name: str, out: Path | None, file: Path | None, max_new_tokens: int, options: ModelOptions
) -> None:
    """Load a model and a direction that fits it, and talk until the end of the input.

    Args:
        out: the run folder that the direction is in, by default the model's.
        file: of the direction, if it is in no run folder.

    Raises:
        RunFolderError: there is no direction yet.
        DirectionError: it is of another model.
    """
    folder = out or default_folder(name)
    if file is None and not (folder / "direction.safetensors").is_file():
        raise RunFolderError(
            f"{folder} holds no direction yet. Find it first: refusal select {name} --out {folder}."
        )
    found = Direction.load(file or folder / "direction.safetensors")
    with reporting():
        model = load(name, **options.model_dump(exclude_defaults=True))
        if (run := file.parent if file else folder).joinpath("manifest.json").is_file():
            check_loaded(run, read_manifest(run), model)
            found = replace(found, model=model.name)
    # What does not fit is refused here, not in the middle of the talk.
    check_width(found.vector, model.sites.d_model)
    check_place(found.position, found.layer, len(model.chat.suffix), model.sites.n_layers)
    if found.model and found.model != model.name:
        display.show_notice(f"Note: this direction was found on {found.model}.")
    display.show_notice(f"Each line is one question by itself. {COMMANDS}")
    converse(model, found, max_new_tokens)


def converse(model: ChatModel, direction: Direction, max_new_tokens: int) -> None:
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
