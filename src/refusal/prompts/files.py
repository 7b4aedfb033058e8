"""The user's own prompt files: txt (one a line), csv, json or jsonl.

A class can be named in front of the path (``harmful=mine.txt``); otherwise every row must carry a ``label``. Rows may
carry a ``category``, an ``id`` and a ``split`` (train, val, test).
"""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from refusal.errors import PromptError
from refusal.records import Label, Prompt

TEXT_COLUMNS = ("prompt", "text", "instruction", "goal", "behavior", "question")
LABELS: dict[str, Label] = {"harmful": "harmful", "harmless": "harmless", "unsafe": "harmful", "safe": "harmless"}
SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class FileRow:
    """One prompt of a file, and the split that the file puts it in."""

    prompt: Prompt
    split: str | None


def read_file(spec: str, column: str | None = None) -> list[FileRow]:
    """Read one ``[harmful=|harmless=]PATH``; blank rows are skipped, duplicates kept.

    Raises:
        PromptError: missing, empty, not UTF-8, no such column, no label or a contradicting one, or an unknown split.
    """
    label, path = _label_and_path(spec)
    out = []
    for number, row in enumerate(_rows(path), start=1):
        where = f"{path}, row {number}"
        text, fields = _text_and_fields(row, column, where)
        if not text:
            continue
        split = _cell(fields, "split")
        if split is not None and split.lower() not in SPLITS:
            raise PromptError(f"{where}: unknown split {split!r}. Use train, val or test.")
        prompt_id = _cell(fields, "id") or f"{path.stem}-{number}"
        prompt = Prompt(prompt_id, text, _label(label, fields, where, path), _cell(fields, "category"))
        out.append(FileRow(prompt, split.lower() if split else None))
    if not out:
        raise PromptError(f"{path} holds no prompts. Give one prompt per line or row.")
    return out


def _label_and_path(spec: str) -> tuple[Label | None, Path]:
    name, separator, rest = spec.partition("=")
    if separator and name in LABELS:
        return LABELS[name], Path(rest).expanduser()
    return None, Path(spec).expanduser()


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")  # a byte-order mark is no part of the first prompt
    except FileNotFoundError as error:
        raise PromptError(f"There is no prompt file {path}. Check the path, or use builtin or paper.") from error
    except IsADirectoryError as error:
        raise PromptError(f"{path} is a folder, not a prompt file. Give the files in it.") from error
    except UnicodeDecodeError as error:
        raise PromptError(f"{path} is not UTF-8 (byte {error.start}). Save it as UTF-8.") from error
    except OSError as error:
        raise PromptError(f"{path} cannot be read ({error.strerror}). Check the path and its permissions.") from error


def _rows(path: Path) -> Sequence[Any]:
    """Strings or mappings, one per row."""
    kind = path.suffix.lower()
    text = _read(path)
    # Not splitlines: that also splits at the rarer separators of Unicode, which may stand inside a prompt.
    lines = text.split("\n")
    try:
        match kind:
            case ".txt":
                return lines
            case ".csv":
                return list(csv.DictReader(io.StringIO(text)))
            case ".json":
                rows = json.loads(text) if text.strip() else []
            case ".jsonl":
                rows = [_json_line(line, number) for number, line in enumerate(lines, start=1) if line.strip()]
            case _:
                raise PromptError(f"{path}: unknown kind of file {kind!r}. Use .txt, .csv, .json or .jsonl.")
    except (ValueError, csv.Error) as error:
        raise PromptError(f"{path} is not valid {kind[1:]} ({error}). Mend the file.") from error
    if not isinstance(rows, list):
        raise PromptError(f"{path} holds a {type(rows).__name__}, not a list. Give a list of strings or of objects.")
    return rows


def _json_line(line: str, number: int) -> Any:
    try:
        return json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"{error.msg}: line {number} column {error.colno}") from error


def _text_and_fields(row: Any, column: str | None, where: str) -> tuple[str, dict[str, Any]]:
    """The prompt of a row, empty if the cell is, and all fields by lower-case name."""
    if isinstance(row, str):
        return row.strip(), {}
    if not isinstance(row, Mapping):
        raise PromptError(f"{where} is {row!r}. Give a string or an object with a `prompt`.")
    if None in row:  # how the csv module marks cells beyond the header
        raise PromptError(f"{where} has more cells than the header. Put text that holds a comma in quotes.")
    fields = {str(key).strip().lower(): value for key, value in row.items()}
    wanted = (column.strip().lower(),) if column is not None else TEXT_COLUMNS
    name = next((name for name in wanted if name in fields), None)
    if name is None:
        raise PromptError(
            f"{where}: no column {' or '.join(wanted)}, only {', '.join(map(str, row))}. Name one with --column."
        )
    text = fields[name]
    if text is None:
        return "", fields
    if not isinstance(text, str):
        raise PromptError(f"{where}: {name} is {text!r}, not a text. Give the prompt as a string.")
    return text.strip(), fields


def _cell(fields: Mapping[str, Any], name: str) -> str | None:
    """A field as text; ``None`` where it is missing or blank."""
    value = fields.get(name)
    return None if value is None else str(value).strip() or None


def _label(named: Label | None, fields: Mapping[str, Any], where: str, path: Path) -> Label:
    """The class of a row: named in front of the path, or in its own ``label``; the two must not contradict."""
    value = _cell(fields, "label")
    own = LABELS.get(value.lower()) if value else None
    if named and own and named != own:
        raise PromptError(f"{where} is labelled {value}, but the file was given as {named}. Drop {named}= or the row.")
    found = named or own
    if found is None:
        raise PromptError(
            f"{where}: {'no label' if value is None else f'unknown label {value!r}'}. "
            f"Say which class the file is, as in harmful={path}, or add a column `label` (harmful, harmless)."
        )
    return found
