"""A configuration as a TOML file to read and change: every option with what it does, those that are
not set too.
"""

import textwrap
from collections.abc import Iterator
from typing import Literal, get_args, get_origin

import tomli_w

from refusal.config.run_config import RunConfig
from refusal.config.sizes import SIZES
from refusal.config.tables import KEYS
from refusal.core.text import sanitised

WIDTH = 110


def commented_toml(config: RunConfig) -> str:
    """The whole configuration as commented TOML; reading it gives the same configuration again."""
    lines = [
        "# A configuration of refusal. Use it with: refusal run --config FILE",
        "# What is given on the command line wins over it. A line that starts with # is not set.",
        "",
    ]
    for table, keys in KEYS.items():
        lines += [f"[{table}]", ""]
        for key, name in keys.items():
            fitted = config.minutes is not None and name not in config.model_fields_set
            lines += _option(key, name, getattr(config, name), fitted and name in SIZES)
    return "".join(map(_escaped, "\n".join(lines).rstrip())) + "\n"


def _escaped(character: str) -> str:
    """A character as a terminal may show it; what cannot be seen as TOML writes it in a string."""
    return character if sanitised(character) == character else f"\\U{ord(character):08X}"


def _option(key: str, name: str, value: object, fitted: bool = False) -> Iterator[str]:
    """Its words and its value; ``fitted``: the run chooses it to fit its minutes."""
    field = RunConfig.model_fields[name]
    choices = _choices(field.annotation)
    words = (field.description or "").replace("\n", " ") + (
        f" One of: {', '.join(choices)}." if choices else ""
    )
    if key != name:
        words += f" (--{name.replace('_', '-')})"
    if fitted:
        words += " At most what stands here, as minutes allow; set, it stays."
    yield from textwrap.wrap(words, WIDTH, initial_indent="# ", subsequent_indent="# ")
    if value is None:
        yield f"# {key} ="
    elif isinstance(value, tuple):
        items = [tomli_w.dumps({"x": item}).removeprefix("x = ").rstrip("\n") for item in value]
        yield f"{key} = [{', '.join(items)}]"
    else:
        yield ("# " if fitted else "") + tomli_w.dumps({key: value}).rstrip("\n")
    yield ""


def _choices(annotation: object) -> tuple[str, ...]:
    """The values that a ``Literal`` allows, also inside a tuple."""
    if get_origin(annotation) is Literal:
        return tuple(map(str, get_args(annotation)))
    return next((found for inner in get_args(annotation) if (found := _choices(inner))), ())
