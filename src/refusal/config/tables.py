"""Options in tables, as a TOML file has them, and flat, as the command line has them.

A table is a group of help. In it an option is called as on the command line, without the word that
the table says already: ``--judge-url`` is ``url`` in ``[judges]``, ``--n-test`` is ``n_test`` in
``[prompts]``.
"""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from refusal.config.engines import EngineOptions
from refusal.config.judges import JudgeOptions
from refusal.config.options import (
    CapabilityOptions,
    DriftOptions,
    MeasureOptions,
    ModelOptions,
    PromptOptions,
    ReportOptions,
    SelectionOptions,
    TransferOptions,
)
from refusal.core.errors import ConfigError
from refusal.core.text_files import read_user_text, user_path


@dataclass(frozen=True)
class Section:
    """A table: the options in it, and the word that their flat names begin with there."""

    options: type[BaseModel]
    word: str = ""

    @property
    def keys(self) -> dict[str, str]:
        """Flat names by what they are in the table."""
        return {name.removeprefix(self.word): name for name in self.options.model_fields}


SECTIONS = {
    "model": Section(ModelOptions),
    "prompts": Section(PromptOptions),
    "selection": Section(SelectionOptions),
    "measurements": Section(MeasureOptions),
    "drift": Section(DriftOptions, "drift_"),
    "capability": Section(CapabilityOptions, "task_"),
    "engine": Section(EngineOptions, "engine_"),
    "judges": Section(JudgeOptions, "judge_"),
    "transfer": Section(TransferOptions, "transfer_"),
    "report": Section(ReportOptions),
}


# By table its keys, each with the flat name. The model's name is no option of loading it.
KEYS = {table: section.keys for table, section in SECTIONS.items()}
KEYS["model"] = {"model": "model", **KEYS["model"]}
PLACES = {name: (table, key) for table, names in KEYS.items() for key, name in names.items()}


def in_tables(values: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Flat options by table and key; those that are ``None`` are left out, as TOML has none."""
    found: dict[str, dict[str, Any]] = {}
    for table, names in KEYS.items():
        given = {key: values[name] for key, name in names.items() if values.get(name) is not None}
        if given:
            found[table] = given
    return found


def read_options(path: Path) -> dict[str, Any]:
    """The options of a TOML file by their flat names: in tables, or all of them outside of any.

    Raises:
        ConfigError: no such file, no TOML, both ways in one file, or an option that is not known
            there.
    """
    found = _read_toml(path)
    tables = {name: part for name, part in found.items() if isinstance(part, dict)}
    bare = [name for name in found if name not in tables]
    if tables and bare:
        raise ConfigError(
            f"{path} has options in tables ([{next(iter(tables))}]) and outside of them "
            f"({bare[0]}). Put all of them into tables, as `refusal config` does."
        )
    flat = {}
    for table, part in tables.items():
        if table not in KEYS:
            raise ConfigError(
                f"There is no table [{table}] for {path}. The tables are {', '.join(KEYS)}."
            )
        for key, value in part.items():
            if key not in KEYS[table]:
                raise ConfigError(f"There is no option {key!r} in [{table}]. {_where(table, key)}")
            flat[KEYS[table][key]] = value
    return flat if tables else found


def _where(table: str, key: str) -> str:
    """What there is instead of an unknown key: its right place, or the keys of the table."""
    place = PLACES.get(key) or PLACES.get(SECTIONS[table].word + key)
    if place is not None:
        return f"It is {place[1]} in [{place[0]}]."
    return f"The options there are {', '.join(KEYS[table])}."


def _read_toml(path: Path) -> dict[str, Any]:
    text = read_user_text(user_path(path, ConfigError), "configuration", ConfigError)
    try:
        return tomllib.loads(text)
    except RecursionError as error:
        raise ConfigError(
            f"{path} cannot be read as TOML (nested too deeply). Check the file."
        ) from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(
            f"{path} cannot be read as TOML ({error}). Check the path and the file."
        ) from error
