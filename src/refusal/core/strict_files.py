"""Files of a run folder, read strictly: each is what its type says was written there, or one
message.

A field that is missing, of another type, unknown, or no number where one is due is an error that
names the file, the row and the field. Only the manifest may hold further fields, which other
versions write.
"""

from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError
from safetensors import SafetensorError, safe_open

from refusal.core.arrays import read_array
from refusal.core.errors import RunFolderError
from refusal.core.text_files import parse_json

T = TypeVar("T")
AGAIN = "Delete it; the same command makes it again."
STRICT = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)


class Saved(BaseModel):
    """What a file holds, where that is no record of its own."""

    model_config = STRICT


def damaged(path: Path, what: str, mend: str = AGAIN) -> RunFolderError:
    """The one message of a file that cannot be used: ``what`` begins with the place in it."""
    return RunFolderError(f"{path}: {what.rstrip('. ')}. {mend}")


def read_json(path: Path, mend: str = AGAIN) -> Any:
    """A file of which nothing is known but that it is JSON.

    Raises:
        RunFolderError: it cannot be read, or is no JSON.
    """
    try:
        return parse_json(_bytes(path, mend).decode("utf-8"))
    except ValueError as error:
        raise damaged(path, f"cannot be read as JSON ({error})", mend) from error


def read_one(path: Path, kind: Any, mend: str = AGAIN) -> Any:
    """A file that holds one value of a type.

    Raises:
        RunFolderError: it cannot be read, or holds something else.
    """
    read_json(path, mend)  # pydantic lets pass a key that stands twice
    return _validated(path, kind, b"[" + _bytes(path, mend) + b"]", "", mend, skip=1)[0]


def read_list(path: Path, kind: type[T]) -> tuple[T, ...]:
    """Read a file that holds one list of records.

    Raises:
        RunFolderError: it cannot be read, or holds something else.
    """
    read_json(path)
    return _validated(path, kind, _bytes(path), "", AGAIN)


def read_lines(path: Path, kind: type[T]) -> tuple[T, ...]:
    """Read a file of JSON lines, one record a line.

    Raises:
        RunFolderError: it cannot be read, or holds something else.
    """
    lines = _bytes(path).split(b"\n")  # splitlines would split inside of completions
    if lines[-1]:
        raise damaged(path, f"line {len(lines)} is cut off: it has no end")
    found: list[T] = []
    for number, line in enumerate(lines[:-1], start=1):
        try:
            parse_json(line.decode("utf-8"))
        except ValueError as error:
            raise damaged(path, f"line {number} cannot be read ({error})") from error
        found += _validated(path, kind, b"[" + line + b"]", f"line {number}", AGAIN, skip=1)
    return tuple(found)


def read_arrays(path: Path, mend: str = AGAIN) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Tensors and metadata of a safetensors file.

    Raises:
        RunFolderError: it cannot be read.
    """
    try:
        with safe_open(str(path), framework="np") as file:
            found = {name: read_array(file, path, name) for name in file.keys()}  # noqa: SIM118
            return found, dict(file.metadata() or {})
    except (
        OSError,
        SafetensorError,
        LookupError,
        AttributeError,
        ValueError,
        RuntimeError,
        TypeError,
        MemoryError,
    ) as error:
        raise damaged(path, f"cannot be read as safetensors ({error})", mend) from error


def read_metadata(path: Path, metadata: dict[str, str], name: str, kind: Any) -> Any:
    """One entry of a safetensors file's metadata, which is JSON.

    Raises:
        RunFolderError: it is not there, or holds something else.
    """
    if name not in metadata:
        raise damaged(path, f"its metadata lacks {name}")
    where = f"metadata, {name}"
    found = _validated(path, kind, f"[{metadata[name]}]".encode(), where, AGAIN, skip=1)
    if len(found) != 1:
        raise damaged(path, f"{where}: not one value")
    return found[0]


def _bytes(path: Path, mend: str = AGAIN) -> bytes:
    try:
        return path.read_bytes()
    except (OSError, ValueError) as error:
        raise damaged(
            path, f"cannot be read ({getattr(error, 'strerror', None) or error})", mend
        ) from error


@cache
def _rows_of(kind: Any) -> Any:
    """What reads rows of a type; records take the strictness from here."""
    return TypeAdapter(tuple[kind, ...], config=STRICT)


def _validated(
    path: Path, kind: Any, data: bytes, where: str, mend: str, skip: int = 0
) -> tuple[Any, ...]:
    """Rows; the first thing that is wrong with them, and where: ``row 3, bypass: …``."""
    try:
        found: tuple[Any, ...] = _rows_of(kind).validate_json(data)
        return found
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = []
        for part in first["loc"][skip:]:
            place.append(f"row {part + 1}" if isinstance(part, int) else str(part)[:60])
        named = ", ".join([where, *place] if where else place)
        said = str(first["msg"]).removeprefix("Value error, ")
        raise damaged(path, f"{named}: {said}" if named else said, mend) from error
