"""The one place that writes files: whole or not at all.

Everything is written under a temporary name in the target folder and renamed, so that an interruption or a full disk
never leaves half a file behind.
"""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import tomli_w
from platformdirs import user_cache_path
from safetensors.torch import save
from torch import Tensor

from refusal.errors import StorageError


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write safetensors, the same content always as the same bytes."""
    data = save({name: tensor.contiguous() for name, tensor in tensors.items()}, dict(metadata or {}))
    # The library writes metadata in random order; stages tell by the hash of a file whether it changed.
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.dumps(json.loads(data[8:start]), sort_keys=True, ensure_ascii=False, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)  # the tensors stay aligned
    whole = len(header).to_bytes(8, "little") + header + data[start:]
    _replace(path, lambda temporary: Path(temporary).write_bytes(whole))


def write_json(path: Path, value: Any) -> None:
    """Write indented JSON, keys in the order given; NaN is refused, since JSON has none."""
    _write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def write_jsonl(path: Path, rows: Iterable[Any]) -> None:
    """Write one JSON value a line; NaN is refused."""
    _write_text(path, "".join(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows))


def write_toml(path: Path, value: Mapping[str, Any]) -> None:
    """Write TOML; ``None`` values are left out, since TOML has none."""
    _write_text(path, tomli_w.dumps({key: item for key, item in value.items() if item is not None}))


def write_blocks(path: Path, blocks: Iterable[bytes | memoryview]) -> None:
    """Write pieces of bytes one after the other: a file larger than memory."""

    def write(temporary: str) -> None:
        with Path(temporary).open("wb") as file:
            for block in blocks:
                file.write(block)

    _replace(path, write)


def write_through(path: Path, write: Callable[[str], object]) -> None:
    """Let a library write its own format: ``write`` gets a temporary name, which becomes ``path``."""
    _replace(path, write)


def copy_file(source: Path, path: Path) -> None:
    """Copy a file's content."""
    _replace(path, lambda temporary: shutil.copyfile(source, temporary))


def free_bytes(folder: Path) -> int:
    """Free space where ``folder`` is or will be."""
    nearest = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    return shutil.disk_usage(nearest).free


def remove(path: Path) -> None:
    """Delete a file that may be there."""
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise StorageError(f"{path} could not be deleted ({error}). Delete it, or give another --out.") from error


def file_sha256(path: Path) -> str:
    """Hexadecimal sha256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def cache_root() -> Path:
    """Folder for converted models and downloads: ``$REFUSAL_CACHE``, else the platform's user cache."""
    return Path(os.environ.get("REFUSAL_CACHE") or user_cache_path("refusal"))


def _write_text(path: Path, text: str) -> None:
    _replace(path, lambda temporary: Path(temporary).write_text(text, encoding="utf-8"))


def _replace(path: Path, write: Callable[[str], object]) -> None:
    """Call ``write`` with a temporary name beside ``path``, then rename it over ``path``."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        os.close(handle)
        try:
            write(temporary)
            Path(temporary).chmod(0o644)
            Path(temporary).replace(path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise StorageError(
            f"{path} could not be written ({error}). Free some space or give another folder with --out."
        ) from error
