"""The user's own prompt files: txt (one a line), csv or tsv, json or jsonl.

A class can be named in front of the path (``harmful=mine.txt``); otherwise every row must carry a
``label``. Rows may carry a ``category``, an ``id`` and a ``split`` (train, val, test). What else
belongs to a prompt is in ``columns``.
"""

import logging
import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from refusal.core.csv_files import read_table
from refusal.core.errors import PromptError
from refusal.core.records import Label, Prompt
from refusal.core.text_files import json_lines, parse_json, read_user_text, user_path
from refusal.prompts.columns import (
    KNOWN,
    Fields,
    blank,
    checked,
    prompt_column,
    read_prompt,
    what_is_read,
)
from refusal.prompts.messages import Conversation

log = logging.getLogger(__name__)

LABELS: dict[str, Label] = {
    "harmful": "harmful",
    "harmless": "harmless",
    "unsafe": "harmful",
    "safe": "harmless",
}
TABLES = (".csv", ".tsv")
SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class FileRow:
    """One prompt of a file, the split that the file puts it in, and whether its id is the
    file's.
    """

    prompt: Prompt
    split: str | None
    named: bool = False


def read_asked(
    given: Sequence[str], column: str | None = None, system: str | None = None
) -> list[Prompt]:
    """Prompts of no known class: what ends like a prompt file is one, everything else a text
    itself. A row that names no class is taken for harmless.

    Raises:
        PromptError: none are given, or a file cannot be read.
    """
    found: list[Prompt] = []
    for number, text in enumerate(given, start=1):
        if Path(text).suffix.lower() in (*TABLES, ".txt", ".json", ".jsonl"):
            rows = read_file(text, column, system, otherwise="harmless")
            found += [row.prompt for row in rows]
        elif not blank(text):
            found.append(Prompt(f"text-{number}", text.strip(), "harmless"))
    if not found:
        raise PromptError("No prompts were given. Give texts, or files of prompts.")
    return found


def read_file(
    spec: str,
    column: str | None = None,
    system: str | None = None,
    otherwise: Label | None = None,
) -> list[FileRow]:
    """Read one ``[harmful=|harmless=]PATH``; rows without a prompt are skipped and counted,
    duplicates kept.

    Args:
        spec: the file, perhaps with a class in front.
        column: the text column.
        system: the system prompt of all prompts, which a row's own must equal.
        otherwise: the class of rows that name none, where the file does not either.

    Raises:
        PromptError: missing, empty, not UTF-8, damaged, no such column or several, an unclear
            conversation, another system prompt, no label or a contradicting one, or an unknown
            split.
    """
    label, path = _label_and_path(spec)
    classes = (label, otherwise)
    rows = _rows(path)
    if all(isinstance(row, str) for row in rows):
        column = None  # there are no columns to choose from
    table = [_fields(row, f"{path}, row {number}") for number, row in enumerate(rows, start=1)]
    name = prompt_column(table, column, path) if table else ""
    found: list[FileRow] = []
    systems: list[tuple[str, str | None]] = []
    skipped = 0
    for number, fields in enumerate(table, start=1):
        where = f"{path}, row {number}"
        read = read_prompt(fields, name, where)
        if not read.text:
            skipped += not all(map(blank, fields.values()))
            continue
        if path.suffix.lower() in TABLES and None in fields.values():
            raise PromptError(
                f"{where} has fewer cells than the header. Separate cells as the header does; "
                "fill it up."
            )
        found.append(_file_row(read, fields, classes, path, number))
        systems.append((where, read.system))
    if not found:
        raise PromptError(f"{path} holds no prompts. Give one prompt per line or row.")
    _check_system(systems, system)
    if skipped:
        log.warning("%s: %d row(s) without a prompt skipped", path, skipped)
    used, unread = what_is_read(table, name)
    if unread:
        log.warning(
            "%s: prompts are read from %s; not read: %s",
            path,
            " and ".join(used),
            ", ".join(unread),
        )
    return found


def _label_and_path(spec: str) -> tuple[Label | None, Path]:
    name, separator, rest = spec.partition("=")
    if separator and name in LABELS:
        return LABELS[name], user_path(rest, PromptError)
    return None, user_path(spec, PromptError)


def _rows(path: Path) -> Sequence[Any]:
    """Strings or mappings, one per row."""
    kind = path.suffix.lower()
    text = read_user_text(
        path, "prompt file", PromptError, "Check the path, or use builtin or paper."
    )
    try:
        match kind:
            case ".txt":
                return text.split(
                    "\n"
                )  # not splitlines: rarer separators of Unicode may stand inside a prompt
            case ".csv" | ".tsv":
                return read_table(text, KNOWN, "\t" if kind == ".tsv" else None)
            case ".json":
                rows = parse_json(text) if text.strip() else []
            case ".jsonl":
                rows = [row for _, row in json_lines(text)]
            case _:
                raise PromptError(
                    f"{path}: unknown kind of file {kind!r}. Use .txt, .csv, .tsv, .json or .jsonl."
                )
    except ValueError as error:
        if kind in TABLES:
            raise PromptError(f"{path}: {error}.") from error
        lines = (
            ", or call it .jsonl if it has one value a line"
            if kind == ".json" and "Extra data" in str(error)
            else ""
        )
        raise PromptError(
            f"{path} is not valid {kind[1:]} ({error}). Mend the file{lines}."
        ) from error
    if not isinstance(rows, list):
        raise PromptError(
            f"{path} holds a {type(rows).__name__}, not a list. Give a list of strings or of "
            "objects."
        )
    return rows


def _fields(row: Any, where: str) -> Fields:
    """The cells of a row by lower-case name; a bare string is a prompt."""
    if isinstance(row, str):
        return {"prompt": row}
    if not isinstance(row, Mapping):
        raise PromptError(
            f"{where} is {reprlib.repr(row)}. Give a string or an object with a `prompt`."
        )
    fields = {str(key).strip().lower(): value for key, value in row.items()}
    if len(fields) < len(row):
        raise PromptError(
            f"{where} has two columns whose names differ only in case or spaces. Rename one of "
            "them."
        )
    return fields


def _file_row(
    read: Conversation,
    fields: Fields,
    classes: tuple[Label | None, Label | None],
    path: Path,
    number: int,
) -> FileRow:
    where = f"{path}, row {number}"
    split = _cell(fields, "split", where)
    if split is not None and split.lower() not in SPLITS:
        raise PromptError(f"{where}: unknown split {split!r}. Use train, val or test.")
    own_id = _cell(fields, "id", where)
    category = _cell(fields, "category", where)
    label = _label(classes, fields, where, path)
    name = own_id or f"{path.stem}-{number}"
    prompt = Prompt(name, read.text, label, category, read.before)
    return FileRow(prompt, split.lower() if split else None, own_id is not None)


def _cell(fields: Fields, name: str, where: str) -> str | None:
    """A field as text; ``None`` where it is missing or blank."""
    value = fields.get(name)
    if isinstance(value, (list, dict)):
        raise PromptError(f"{where}: {name} is {reprlib.repr(value)}, not a text. Give one value.")
    return None if value is None else checked(str(value), name, where).strip() or None


def _label(
    classes: tuple[Label | None, Label | None], fields: Fields, where: str, path: Path
) -> Label:
    """The class of a row: named in front of the path, or in its own ``label``; the two must not
    contradict. The second of ``classes`` is that of rows without one.
    """
    named, otherwise = classes
    value = _cell(fields, "label", where)
    own = LABELS.get(value.lower()) if value else None
    if value is not None and own is None:
        raise PromptError(
            f"{where}: unknown label {value!r}. Use harmful or harmless (unsafe, safe); where "
            "`label` means something else, give the column another name."
        )
    if named and own and named != own:
        raise PromptError(
            f"{where} is labelled {value}, but the file was given as {named}. Drop {named}= or "
            "the row."
        )
    found = named or own or otherwise
    if found is None:
        raise PromptError(
            f"{where}: no label. Say which class the file is, as in harmful={path}, or add a "
            "column `label` (harmful, harmless)."
        )
    return found


def _check_system(rows: Sequence[tuple[str, str | None]], system: str | None) -> None:
    """The system prompts of rows must be the one that the run gives to every prompt of both
    classes.

    Another one for some of the prompts would be part of what tells the classes apart.
    """
    if all(own is None for _, own in rows):
        return
    for where, own in rows:
        if own == (system.strip() if system is not None else None):
            continue
        if own is None:
            raise PromptError(
                f"{where} has no system prompt, other rows have one. A run has one for all: give "
                "it to all."
            )
        if system is not None:
            raise PromptError(
                f"{where} has the system prompt {own!r}, and --system is {system!r}. Give only one."
            )
        raise PromptError(
            f"{where} has a system prompt. A run has one for every prompt of both classes: if "
            f"that is what you want, give it with --system {own!r}; else leave it out of the file."
        )
