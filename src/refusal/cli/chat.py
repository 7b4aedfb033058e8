"""The conversation of `refusal chat`, under the condition that its commands choose. Replies go to
stdout as they come, all else to stderr.
"""

import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from refusal.cli import present as display
from refusal.cli.options import default_folder
from refusal.cli.progress_bars import reporting
from refusal.config.options import ModelOptions
from refusal.core.direction import Direction
from refusal.core.errors import ChatTemplateError, PromptError, RunFolderError
from refusal.core.sampling import Sampling
from refusal.core.thinking import split
from refusal.core.turns import Turns
from refusal.core.valid import check_place, check_width
from refusal.interventions.ablate_add import Add
from refusal.interventions.conditions import interventions_for
from refusal.model.chat_model import ChatModel
from refusal.model.load import load
from refusal.model.reply import Reply, along, reply
from refusal.runs.files import read_manifest
from refusal.weights.same_weights import check_loaded

COMMANDS = "/baseline  /ablate  /add ALPHA  /reset  /tokens  /quit"


def start(
    name: str,
    out: Path | None,
    file: Path | None,
    max_new_tokens: int,
    options: ModelOptions,
    temperature: float = 0.0,
) -> None:
    """Load a model and a direction that fits it, and talk until the end of the input.

    Args:
        out: the run folder that the direction is in, by default the model's.
        file: of the direction, if it is in no run folder.
        temperature: that replies are drawn at; 0 takes the likeliest token.

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
    positions = len(model.chat.suffix) + 1  # and the last token of the instruction
    check_place(found.position, found.layer, positions, model.sites.n_layers)
    if found.model and found.model != model.name:
        display.show_notice(f"Note: this direction was found on {found.model}.")
    display.show_notice(f"The conversation goes on until /reset. {COMMANDS}")
    converse(Talk(model, found, max_new_tokens, temperature))


@dataclass
class Talk:
    """A conversation under way.

    Attributes:
        direction: what the conditions are about. temperature: that replies are drawn at.
        turns: what was said, thoughts left out; they stay when the condition changes.
        condition, interventions: those of the next reply.
        asked: questions so far, since the start: each has its own draws.
        shows_tokens: whether every token's projection is shown.
    """

    model: ChatModel
    direction: Direction
    max_new_tokens: int
    temperature: float = 0.0
    turns: Turns = ()
    condition: str = "baseline"
    interventions: tuple[Any, ...] = field(default=())
    asked: int = 0
    shows_tokens: bool = False

    def say(self, line: str) -> Reply:
        """Ask, show the reply as it comes and where it lies on the direction, and keep both.

        Raises:
            PromptError: no room. ChatTemplateError: the template rejects the conversation.
        """
        question = (*self.turns, ("user", line))
        sampling, stream = Sampling(self.temperature, 1, self.asked), _Stream()
        with self.model.apply(*self.interventions):
            made = reply(self.model, question, self.max_new_tokens, sampling, stream.told)
            stream.end(made.text)
            self._show_projections(made)
        self.asked += 1
        if answer := split(made.text).answer:
            self.turns = (*question, ("assistant", answer))
        else:
            display.show_notice("There is no answer in this reply, so it is not kept.")
        return made

    def _show_projections(self, made: Reply) -> None:
        """At the place of the prompt that the direction was read at, and over what was written."""
        values = along(self.model, (*made.prompt, *made.tokens), self.direction)
        n, place = len(made.prompt), self.direction
        text = f"projection at layer {place.layer}: {values[n + place.position]:+.2f} at the prompt"
        written = values[n:]
        if len(written):
            text += f", mean {written.mean():+.2f} over {len(written)} tokens"
        display.show_notice(text)
        if self.shows_tokens:
            for token, value in zip(made.tokens, written.tolist(), strict=True):
                display.show_notice(f"{value:+9.2f}  {self.model.tokenizer.decode([token])!r}")

    def command(self, line: str) -> bool:
        """Do what a command says; whether it is one."""
        changed = _switch(line, self.direction)
        if changed is not None:
            self.condition, self.interventions = changed
        elif line == "/reset":
            self.turns = ()
        elif line == "/tokens":
            self.shows_tokens = not self.shows_tokens
        else:
            return False
        return True


class _Stream:
    """A text that grows, shown as far as it has not been."""

    def __init__(self) -> None:
        self.shown = ""

    def told(self, text: str) -> None:
        """The text so far; a character that is not complete waits, and so does what may change."""
        if text.startswith(self.shown) and not text.endswith("\ufffd"):
            display.show_part(text[len(self.shown) :])
            self.shown = text

    def end(self, text: str) -> None:
        """The whole; where it is not what was shown, it is shown anew."""
        goes_on = text.startswith(self.shown)
        display.show_part((text[len(self.shown) :] if goes_on else f"\n{text}") + "\n")


def converse(talk: Talk) -> None:
    """Questions and replies until ``/quit`` or the end of the input."""
    while (line := _ask(talk.condition)) is not None:
        if line.startswith("/"):
            if not talk.command(line):
                display.show_notice(f"Commands: {COMMANDS}")
        elif line:
            try:
                talk.say(line)
            except (PromptError, ChatTemplateError) as error:  # the next may be answered
                hint = " /reset begins a new conversation." if talk.turns else ""
                display.show_notice(f"{error}{hint}")


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
