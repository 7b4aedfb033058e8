"""The one place that writes files: whole or not at all.

Everything is written under a temporary name in the target folder and renamed, so that an
interruption or a full disk never leaves half a file behind. Of several processes of a run only the
first writes (``parallel``).
"""

import hashlib
import json
import os
import re
import secrets
import shutil
import socket
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import tomli_w
from platformdirs import user_cache_path
from safetensors import SafetensorError

from refusal.core import parallel
from refusal.core.errors import ExportError, StorageError

if TYPE_CHECKING:
    import torch

PAGE_MARK = b'<meta name="generator" content="refusal '  # report/base.html.j2
# Of temporary files and folders: the name they will get, and the process that is writing them.
_TEMPORARY = re.compile(r"\.(?P<name>.+)\.(?P<pid>\d+)-(?P<host>[0-9a-f]{8})\.\w+")
_ABANDONED = (
    24 * 3600
)  # seconds; after so long what another machine's process has begun is taken for left


def check_page(path: Path) -> None:
    """Make sure that a page may be written to ``path``: it is free, or holds a page that this
    program wrote.

    Raises:
        ExportError: it is a folder, or another file.
    """
    if not path.exists():
        return
    if not path.is_file():
        raise ExportError(f"{path} is no file. Give the name of a page with --out.")
    with path.open("rb") as file:
        if PAGE_MARK not in file.read(2000):
            raise ExportError(
                f"{path} exists and is no page of this program. Give another --out, or delete it."
            )


def write_tensors(
    path: Path, tensors: Mapping[str, "torch.Tensor"], metadata: Mapping[str, str] | None = None
) -> None:
    """Write safetensors, the same content always as the same bytes."""
    from safetensors.torch import save  # brings torch, which reading a run does without
    from torch import contiguous_format

    # Copies, since two names may stand for one memory (a direction, and the first row of its
    # basis), which the library refuses.
    apart = {name: x.clone(memory_format=contiguous_format) for name, x in tensors.items()}
    data = save(apart, dict(metadata or {}))
    # The library writes metadata in random order; stages tell by the hash of a file whether it
    # changed.
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.dumps(
        json.loads(data[8:start]), sort_keys=True, ensure_ascii=False, separators=(",", ":")
    ).encode()
    header += b" " * (-len(header) % 8)  # the tensors stay aligned
    whole = len(header).to_bytes(8, "little") + header + data[start:]
    _replace(path, lambda temporary: Path(temporary).write_bytes(whole))


def write_json(path: Path, value: Any) -> None:
    """Write indented JSON, keys in the order given; NaN is refused, since JSON has none."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def write_jsonl(path: Path, rows: Iterable[Any]) -> None:
    """Write one JSON value a line; NaN is refused."""
    write_text(
        path, "".join(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows)
    )


def append_jsonl(path: Path, row: Any) -> None:
    """Add one line to a file of JSON lines, for work that is to be kept item by item."""
    if not parallel.is_writer():
        return
    try:
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n")
    except OSError as error:
        raise StorageError(
            f"{path} could not be written ({error}). Free some space or give another folder with "
            "--out."
        ) from error


def write_toml(path: Path, value: Mapping[str, Any]) -> None:
    """Write TOML; ``None`` values are left out, since TOML has none."""
    write_text(path, tomli_w.dumps({key: item for key, item in value.items() if item is not None}))


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text."""
    _replace(path, lambda temporary: Path(temporary).write_text(text, encoding="utf-8"))


@contextmanager
def new_folder(path: Path, needed: int) -> Iterator[Path]:
    """A temporary folder beside ``path`` that takes its name at the end of the block: all of it or
    nothing.

    Args:
        path: must not exist, or be an empty folder.
        needed: bytes that will be written; checked against what is free.

    Raises:
        ExportError: there is something at ``path``.
        StorageError: not enough room, or the folder cannot be written.
    """
    check_room(path, needed)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        for left in left_by_dead(path.parent, of=path.name, below=False):
            shutil.rmtree(left, ignore_errors=True)
        with tempfile.TemporaryDirectory(
            dir=path.parent, prefix=temporary_prefix(path.name)
        ) as temporary:
            filled = Path(temporary) / "folder"
            filled.mkdir()
            yield filled
            if path.is_dir():
                path.rmdir()
            filled.replace(path)
    except (OSError, SafetensorError) as error:
        raise StorageError(
            f"{path} could not be written ({error}). Free some space or give another folder with "
            "--out."
        ) from error


def check_room(path: Path, needed: int) -> None:
    """Make sure that a folder of ``needed`` bytes can be made at ``path``. Raises as ``new_folder``
    does.
    """
    if path.exists() and not (path.is_dir() and not any(path.iterdir())):
        raise ExportError(
            f"{path} exists and is not an empty folder. Give another --out, or delete it."
        )
    check_free(path, needed)


def check_free(path: Path, needed: int) -> None:
    """Make sure that ``needed`` bytes are free where ``path`` is or will be.

    Raises:
        ExportError: that place is inside a file.
        StorageError: not enough room.
    """
    nearest = next(parent for parent in path.absolute().parents if parent.exists())
    if not nearest.is_dir():
        raise ExportError(f"{nearest} is a file. Give another --out.")
    free = shutil.disk_usage(nearest).free
    if free < needed:
        raise StorageError(
            f"{path} needs {needed / 1e9:.2f} GB, and {free / 1e9:.2f} GB are free in {nearest}. "
            "Free some space or give a folder on another disk with --out."
        )


def write_blocks(path: Path, blocks: Iterable[bytes | memoryview]) -> None:
    """Write pieces of bytes one after the other: a file larger than memory."""

    def write(temporary: str) -> None:
        with Path(temporary).open("wb") as file:
            for block in blocks:
                file.write(block)

    _replace(path, write)


def write_through(path: Path, write: Callable[[str], object]) -> None:
    """Let a library write its own format: ``write`` gets a temporary name, which becomes
    ``path``.
    """
    _replace(path, write)


def copy_file(source: Path, path: Path) -> None:
    """Copy a file's content."""
    _replace(path, lambda temporary: shutil.copyfile(source, temporary))


def remove(path: Path) -> None:
    """Delete a file, or a folder with all that is in it, that may be there."""
    if not parallel.is_writer():
        return
    try:
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink(
            missing_ok=True
        )
    except OSError as error:
        raise StorageError(
            f"{path} could not be deleted ({error}). Delete it, or give another --out."
        ) from error


def file_sha256(path: Path) -> str:
    """Hexadecimal sha256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def temporary_prefix(name: str) -> str:
    """How a temporary file or folder begins that will be called ``name``: hidden, with this
    process's number.
    """
    return f".{name}.{os.getpid()}-{_host()}."


def left_by_dead(folder: Path, of: str | None = None, below: bool = True) -> list[Path]:
    """Temporary files and folders of processes that have ended, in a folder and, if ``below``, in
    those under it.

    Args:
        of: only those that were to get this name.
    """
    found = []
    for path in folder.rglob(".*") if below else folder.glob(".*"):
        match = _TEMPORARY.fullmatch(path.name)
        if (
            match is not None
            and of in (None, match["name"])
            and _is_left(path, int(match["pid"]), match["host"])
        ):
            found.append(path)
    return found


def _is_left(path: Path, pid: int, host: str) -> bool:
    """Whether nobody writes a temporary file any more."""
    try:
        written = path.stat().st_mtime
        if host != _host():
            return time.time() - written > _ABANDONED
        return bool(
            written < psutil.Process(pid).create_time()
        )  # the number belongs to another process now
    except psutil.NoSuchProcess:
        return True
    except (psutil.Error, OSError):
        return False


def _host() -> str:
    return hashlib.sha256(socket.gethostname().encode()).hexdigest()[:8]


def cache_root() -> Path:
    """Folder for converted models and downloads: ``$REFUSAL_CACHE``, else the platform's user
    cache.
    """
    return Path(os.environ.get("REFUSAL_CACHE") or user_cache_path("refusal"))


def _replace(path: Path, write: Callable[[str], object]) -> None:
    """Call ``write`` with a temporary name beside ``path``, then rename it over ``path``; in one
    process of a run.
    """
    if not parallel.is_writer():
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists() and not path.is_file():
            raise OSError("it is no file")
        temporary = path.parent / f"{temporary_prefix(path.name)}{secrets.token_hex(4)}"
        temporary.touch(exist_ok=False)  # with the rights that the umask leaves
        try:
            write(str(temporary))
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise StorageError(
            f"{path} could not be written ({error}). Free some space or give another folder with "
            "--out."
        ) from error
