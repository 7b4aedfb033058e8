"""A configuration as a TOML file to read and change: every option with what it does, those that are
not set too.
"""

import textwrap
from collections.abc import Iterator
from typing import Literal, get_args, get_origin

import tomli_w
from pydantic.fields import FieldInfo

from refusal.config.run_config import SECTIONS, RunConfig
from refusal.core.text import visible

WIDTH = 110


def commented_toml(config: RunConfig) -> str:
    """The whole configuration as commented TOML; reading it gives the same configuration again."""
    lines = [
        "# A configuration of refusal. Use it with: refusal run --config FILE",
        "# What is given on the command line wins over it. A line that starts with # is not set.",
        "",
        *_option("model", RunConfig.model_fields["model"], config.model),
    ]
    for title, section in SECTIONS.items():
        lines += [f"# ---- {title} ----", ""]
        for name in section.model_fields:
            lines += _option(name, RunConfig.model_fields[name], getattr(config, name))
    return "".join(map(_escaped, "\n".join(lines).rstrip())) + "\n"


def _escaped(character: str) -> str:
    """A character as a terminal may show it; what cannot be seen as TOML writes it in a string."""
    return character if visible(character) == character else f"\\U{ord(character):08X}"


def _option(name: str, field: FieldInfo, value: object) -> Iterator[str]:
    choices = _choices(field.annotation)
    words = (field.description or "").replace("\n", " ") + (
        f" One of: {', '.join(choices)}." if choices else ""
    )
    yield from textwrap.wrap(words, WIDTH, initial_indent="# ", subsequent_indent="# ")
    if value is None:
        yield f"# {name} ="
    elif isinstance(value, tuple):
        items = [tomli_w.dumps({"x": item}).removeprefix("x = ").rstrip("\n") for item in value]
        yield f"{name} = [{', '.join(items)}]"
    else:
        yield tomli_w.dumps({name: value}).rstrip("\n")
    yield ""


def _choices(annotation: object) -> tuple[str, ...]:
    """The values that a ``Literal`` allows, also inside a tuple."""
    if get_origin(annotation) is Literal:
        return tuple(map(str, get_args(annotation)))
    return next((found for inner in get_args(annotation) if (found := _choices(inner))), ())
