"""The user's own prompt files: txt (one a line), csv, json or jsonl.

A class can be named in front of the path (``harmful=mine.txt``); otherwise every row must carry a ``label``. Rows may
carry a ``category`` and a ``split`` (train, val, test).
"""

import csv
import io
import json
from collections.abc import Sequence
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
    """Read one ``[harmful=|harmless=]PATH``; duplicates within the file are dropped.

    Raises:
        PromptError: missing, empty, not UTF-8, no such column, no label, or an unknown split.
    """
    label, path = _label_and_path(spec)
    rows = _rows(path, column)
    seen: set[str] = set()
    out = []
    for number, (text, fields) in enumerate(rows, start=1):
        if text in seen or not text:
            continue
        seen.add(text)
        own = label or _label(fields, path, number)
        split = fields.get("split")
        if split is not None and split not in SPLITS:
            raise PromptError(f"{path}, row {number}: unknown split {split!r}. Use train, val or test.")
        prompt_id = str(fields.get("id") or f"{path.stem}-{number}")
        out.append(FileRow(Prompt(prompt_id, text, own, fields.get("category")), split))
    if not out:
        raise PromptError(f"{path} holds no prompts. Give one prompt per line or row.")
    return out


def _label_and_path(spec: str) -> tuple[Label | None, Path]:
    name, separator, rest = spec.partition("=")
    if separator and name in LABELS:
        return LABELS[name], Path(rest).expanduser()
    return None, Path(spec).expanduser()


def _rows(path: Path, column: str | None) -> Sequence[tuple[str, dict[str, Any]]]:
    """``(text, all fields)`` of every row."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise PromptError(f"There is no prompt file {path}. Check the path, or use builtin or paper.") from error
    except UnicodeDecodeError as error:
        raise PromptError(f"{path} is not UTF-8 (byte {error.start}). Save it as UTF-8.") from error
    except OSError as error:
        raise PromptError(f"{path} cannot be read ({error.strerror}). Check the path and its permissions.") from error
    try:
        match path.suffix.lower():
            case ".txt":
                return [(line.strip(), {}) for line in text.splitlines()]
            case ".csv":
                rows: list[Any] = list(csv.DictReader(io.StringIO(text)))
            case ".json":
                rows = json.loads(text)
            case ".jsonl":
                rows = [json.loads(line) for line in text.splitlines() if line.strip()]
            case other:
                raise PromptError(f"{path}: unknown kind of file {other!r}. Use .txt, .csv, .json or .jsonl.")
    except (json.JSONDecodeError, csv.Error) as error:
        raise PromptError(f"{path} is not valid {path.suffix[1:]} ({error}). Mend the file.") from error
    if not isinstance(rows, list):
        raise PromptError(f"{path} holds a {type(rows).__name__}, not a list. Give a list of strings or of objects.")
    return [_text_of(row, column, path) for row in rows]


def _text_of(row: Any, column: str | None, path: Path) -> tuple[str, dict[str, Any]]:
    if isinstance(row, str):
        return row.strip(), {}
    if not isinstance(row, dict):
        raise PromptError(f"{path} holds {row!r}. Give a list of strings or of objects.")
    fields = {str(key).lower(): value for key, value in row.items()}
    wanted = (column.lower(),) if column is not None else TEXT_COLUMNS
    for name in wanted:
        if isinstance(fields.get(name), str):
            return fields[name].strip(), fields
    raise PromptError(
        f"{path} has no column {' or '.join(wanted)}; it has {', '.join(map(str, row))}. Name one with --column."
    )


def _label(fields: dict[str, Any], path: Path, number: int) -> Label:
    value = str(fields.get("label", "")).lower()
    if value not in LABELS:
        raise PromptError(
            f"{path}, row {number}: {'no label' if not value else f'unknown label {value!r}'}. "
            f"Say which class the file is, as in harmful={path}, or add a column `label` (harmful, harmless)."
        )
    return LABELS[value]
