"""Text files that a user names, read in one way: whole and as they are, or refused with what is
wrong with them.
"""

import json
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from refusal.core.errors import Error


def user_path(name: str | Path, error: type[Error]) -> Path:
    """A path as the user gave it, with ``~`` for a home folder.

    Raises:
        Error: of the given type, if there is no such home, or no path can have that name.
    """
    if "\0" in str(name):
        raise error(f"{str(name)!r} is no path: it holds a NUL character. Check the path.")
    try:
        return Path(name).expanduser()
    except RuntimeError as problem:  # ~nobody
        raise error(f"{name} has no home folder to start from. Write the path out.") from problem


def is_folder(path: Path) -> bool:
    """Whether it is one; a name that is too long, say, is none."""
    try:
        return path.is_dir()
    except OSError:
        return False


def is_file(path: Path) -> bool:
    """Whether it is a regular file; a name that is too long, say, is none."""
    try:
        return path.is_file()
    except OSError:
        return False


def read_user_text(path: Path, what: str, error: type[Error], mend: str = "Check the path.") -> str:
    """The text of a file in UTF-8, without a byte-order mark and with ``\\n`` at the ends of lines.

    Args:
        what: kind of file, for messages ("prompt file").
        error: type of what is raised.
        mend: what to do where there is no such file.

    Raises:
        Error: of the given type: no file, no regular file (a pipe never ends), unreadable, or not
            UTF-8.
    """
    try:
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            raise error(f"{path} is a folder, not a {what}. Give the files in it.")
        if not stat.S_ISREG(mode):
            raise error(
                f"{path} is a pipe or a device, not a {what}. Save the text in a file and give "
                "that."
            )
        data = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError) as problem:
        raise error(f"There is no {what} {path}. {mend}") from problem
    except OSError as problem:
        raise error(
            f"{path} cannot be read ({problem.strerror}). Check the path and its permissions."
        ) from problem
    except ValueError as problem:  # a NUL character in the path
        raise error(f"{str(path)!r} is no path ({problem}). {mend}") from problem
    return _decoded(data, path, error).replace("\r\n", "\n").replace("\r", "\n")


def _decoded(data: bytes, path: Path, error: type[Error]) -> str:
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise error(f"{path} is not UTF-8 but UTF-16, by its first two bytes. Save it as UTF-8.")
    if b"\0" in data:  # Latin letters in UTF-16 are valid UTF-8, every second character NUL
        line = data[: data.index(b"\0")].count(b"\n") + 1
        raise error(
            f"{path} holds NUL characters (the first in line {line}): it is no text, or text in "
            "UTF-16 without a mark. Save it as UTF-8."
        )
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as problem:
        line = data[: problem.start].count(b"\n") + 1
        raise error(
            f"{path} is not UTF-8 (byte {problem.start}, line {line}). Save it as UTF-8."
        ) from problem


def parse_json(text: str) -> Any:
    """The value of a JSON text.

    Raises:
        ValueError: no JSON; that includes NaN and infinities, a key twice in one object, and
            nesting without end.
    """
    try:
        return json.loads(text, parse_constant=_no_number, object_pairs_hook=_object)
    except RecursionError as problem:
        raise ValueError("nested too deeply") from problem


def json_lines(text: str) -> list[tuple[int, Any]]:
    """The values of JSON Lines with their line numbers; blank lines are skipped.

    Raises:
        ValueError: a line is no JSON, holds NaN, a key twice, or nests without end; names the line.
    """
    found = []
    # Not splitlines: that also splits at the rarer separators of Unicode, which may stand inside a
    # string.
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            found.append((number, parse_json(line)))
        except json.JSONDecodeError as problem:
            raise ValueError(f"{problem.msg}: line {number} column {problem.colno}") from problem
        except ValueError as problem:
            raise ValueError(f"{problem}: line {number}") from problem
    return found


def _no_number(name: str) -> None:
    raise ValueError(f"{name} is no JSON number")


def _object(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(
            f"the key {next(n for n in names if names.count(n) > 1)!r} stands twice in one object"
        )
    return found
