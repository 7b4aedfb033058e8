"""Whether a model is the one that a run was made on: by its weights, not by its name.

The manifest keeps two hashes. ``weight_hash`` is of the model as it was loaded: a loaded model in
the same dtype is compared with it. ``files_hash`` is of the checkpoint's tensors as they lie on the
disk: of another dtype, and of files that are edited without being loaded.
"""

import hashlib
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download

from refusal.core.errors import DirectionError, Error
from refusal.core.progress import task
from refusal.model.chat_model import ChatModel
from refusal.model.load import LOAD_ERRORS, resolve
from refusal.weights.checkpoint import Entry, open_checkpoint, read_pieces

MEGABYTE = 2**20
AT_ONCE = 8  # tensors: hashing one keeps a core busy


def files_hash(folder: Path) -> str:
    """Sha256 over every tensor's name, dtype, shape and bytes, however they are spread over files.

    Raises:
        ModelLoadError: no safetensors, or damaged ones.
    """
    checkpoint = open_checkpoint(folder)
    places = [(shard.path, entry) for shard in checkpoint.shards for entry in shard.entries]
    whole = hashlib.sha256()
    with task(
        "hash the model's files", sum(entry.nbytes for _, entry in places) // MEGABYTE, "MB"
    ) as advance:

        def one(place: tuple[Path, Entry]) -> str:
            path, entry = place
            digest = hashlib.sha256(f"{entry.name} {entry.dtype} {entry.shape}".encode())
            with path.open("rb") as file:
                for piece in read_pieces(file, entry):
                    digest.update(piece)
            return digest.hexdigest()

        with ThreadPoolExecutor(AT_ONCE) as pool:
            ordered = sorted(places, key=lambda place: place[1].name)
            for (_, entry), found in zip(ordered, pool.map(one, ordered), strict=True):
                whole.update(found.encode())
                advance(entry.nbytes // MEGABYTE)
    return whole.hexdigest()


def files_hash_of(name: str, revision: str | None) -> str | None:
    """``files_hash`` of the model that was loaded by that name; ``None`` where it has no
    safetensors on this disk.
    """
    try:
        source = resolve(name)
        if not Path(source).is_dir():
            source = snapshot_download(source, revision=revision, local_files_only=True)
        return files_hash(Path(source))
    except (Error, *LOAD_ERRORS):
        return None


def check_loaded(run: Path, manifest: Mapping[str, Any], model: ChatModel) -> None:
    """Make sure that a loaded model is the one of a run.

    Raises:
        DirectionError: its weights are others.
    """
    if model.weight_hash() == manifest["model"].get("weight_hash"):
        return
    recorded = manifest.get("files_hash")
    if recorded is None or files_hash_of(model.name, model.revision) != recorded:
        raise _others(run, manifest, model.name)


def check_files(run: Path, manifest: Mapping[str, Any], folder: Path, name: str) -> None:
    """Make sure that the checkpoint in a folder is the one of a run, without loading it.

    Raises:
        DirectionError: its weights are others, or the run does not say which it had.
        ModelLoadError: no safetensors, or damaged ones.
    """
    recorded = manifest.get("files_hash")
    if recorded is None:
        raise DirectionError(
            f"The run in {run} does not say what the files of its model were, so they cannot be "
            f"compared with {name}. Leave --stream out, or have it written down: refusal select "
            f"{name} --out {run}."
        )
    if files_hash(folder) != recorded:
        raise _others(run, manifest, name)


def _others(run: Path, manifest: Mapping[str, Any], name: str) -> DirectionError:
    return DirectionError(
        f"The direction in {run} was found on {manifest['model'].get('name')}, and {name} has "
        "other weights than that had. Give the model as it was, or find the direction of this one "
        "in another folder."
    )
