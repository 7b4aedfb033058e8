"""In which contexts prompts are asked: other system prompts, turns before them, other languages."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from refusal.config.run_config import RunConfig
from refusal.config.systems import SYSTEMS
from refusal.core.errors import ConfigError
from refusal.core.text_files import read_user_text, user_path
from refusal.evaluations.transfer.record import RANDOM
from refusal.interventions.conditions import BASELINE
from refusal.model.chat_model import ChatModel
from refusal.model.chat_template import Around, find_format
from refusal.model.harmless_turns import harmless_turns

OWN = "run"  # the run's own context, where no other name is given to it


@dataclass(frozen=True)
class Context:
    """What stands around prompts, and in which language they are.

    Attributes:
        language: ``None`` is the run's own prompts.
    """

    name: str
    system: str | None
    turns: int
    language: str | None = None


def contexts_of(config: RunConfig) -> tuple[Context, ...]:
    """The contexts that a configuration asks for; none, or the run's own among them.

    Every system prompt has the first number of turns, the first system prompt each of them: one
    thing is changed at a time. Languages are asked as the run's own prompts are.

    Raises:
        ConfigError: an unknown system prompt, one context twice, or more turns than are built in.
        PromptError: a file cannot be read.
    """
    given = (config.transfer_systems, config.transfer_turns, config.transfer_languages)
    if not any(given):
        return ()
    systems = [_system(name) for name in config.transfer_systems] or [(OWN, config.system)]
    turns = config.transfer_turns or (config.turns,)
    base = turns[0]
    found = [Context(_name(name, base, config), text, base) for name, text in systems]
    name, text = systems[0]
    found += [Context(_name(name, n, config), text, n) for n in turns[1:]]
    if not any(is_own(one, config) for one in found):
        found.insert(0, Context(OWN, config.system, config.turns))
    for language in config.transfer_languages:
        found.append(Context(language, config.system, config.turns, language))
    names, places = [one.name for one in found], [(c.system, c.turns, c.language) for c in found]
    for i, one in enumerate(found):
        harmless_turns(one.turns)  # are there as many?
        if not re.fullmatch(r"[\w+-]+", one.name) or one.name in (BASELINE, RANDOM):
            raise ConfigError(
                f"{one.name!r} cannot name a context. Give a file whose name has letters, digits, "
                "- and _ only."
            )
        if one.name in names[:i] or places[i] in places[:i]:
            raise ConfigError(f"The context {one.name!r} is asked for twice. Leave one out.")
    return tuple(found)


def is_own(context: Context, config: RunConfig) -> bool:
    """Whether it is the context of the run itself."""
    wanted = (config.system, config.turns, None)
    return (context.system, context.turns, context.language) == wanted


@contextmanager
def in_context(model: ChatModel, context: Context) -> Iterator[ChatModel]:
    """Render prompts in a context inside the block.

    Raises:
        ChatTemplateError: the template rejects its system prompt or its turns.
    """
    own = model.chat
    around = Around(harmless_turns(context.turns), own.around.prefill)
    model.chat = find_format(model.tokenizer, context.system, own.day, own.thinking, around)
    try:
        yield model
    finally:
        model.chat = own


def _name(system: str, turns: int, config: RunConfig) -> str:
    plain = turns == (config.turns if system == OWN else 0)
    return system if plain else f"{system}+{turns}"


def _system(name: str) -> tuple[str, str | None]:
    """A system prompt's name and text."""
    if name in SYSTEMS:
        return name, SYSTEMS[name]
    path = Path(name)
    if path.suffix != ".txt":
        raise ConfigError(
            f"There is no system prompt {name!r}. Use {', '.join(SYSTEMS)}, or a file (FILE.txt)."
        )
    text = read_user_text(
        user_path(name, ConfigError), "system prompt", ConfigError, "Check the path."
    ).strip()
    if not text:
        raise ConfigError(f"{name} is empty. Write the system prompt into it, or use none.")
    return path.stem, text
