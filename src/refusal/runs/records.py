"""What a run folder holds as tensors, read back as the records that stages work with."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from refusal.core.direction import Direction
from refusal.core.records import RefusalTokens
from refusal.core.strict_files import Saved, damaged, read_arrays, read_metadata
from refusal.directions.records import Candidates, Selection
from refusal.runs.files import read_choice, read_vectors
from refusal.runs.manifest import Amount

PARTS = ("basis", "by_layer")  # of a control, in its file as NAME.PART


class _Control(Saved):
    norm: Amount
    seen: frozenset[str]


def read_candidates(
    folder: Path, tokens: RefusalTokens | None, model: str, seed: int | None
) -> Candidates:
    """The candidates, with the fingerprints of the prompts that took part; NaN for layers that were
    not read.

    Raises:
        RunFolderError: the file cannot be read, or holds something else.
    """
    saved = read_vectors(folder)
    vectors, means = torch.from_numpy(saved.vectors), saved.harmless_means
    known = None if means is None else torch.from_numpy(means)
    several = None if saved.several is None else torch.from_numpy(saved.several)
    return Candidates(vectors, tokens, model, seed, saved.seen, known, several=several)


def read_selection(folder: Path) -> Selection:
    """The chosen direction and all that was said of it.

    Raises:
        RunFolderError: a file cannot be read, or holds something else.
        DirectionError: ``direction.safetensors`` holds no direction.
    """
    direction = Direction.load(folder / "direction.safetensors")
    return Selection(**vars(read_choice(folder)), direction=direction)


def read_controls(path: Path, direction: Direction) -> dict[str, Direction]:
    """The controls of a direction by name, the random ones first.

    Raises:
        RunFolderError: the file cannot be read, or holds something else than directions of that
            width.
    """
    arrays, metadata = read_arrays(path)
    found = {}
    names = [name for name in arrays if name.partition(".")[2] not in PARTS]
    for name in sorted(names, key=lambda name: (not name.startswith("random"), len(name), name)):
        array = arrays[name]
        about: _Control = read_metadata(path, metadata, name, _Control)
        fits = array.shape == tuple(direction.vector.shape) and array.dtype.kind == "f"
        if not fits or not np.isfinite(array).all():
            raise damaged(path, f"{name}: no direction of {len(direction.vector)} finite numbers")
        vector = torch.from_numpy(array)
        control = replace(direction, vector=vector, norm=about.norm, seen=about.seen)
        basis, by_layer = (_part(path, arrays, name, part, direction) for part in PARTS)
        found[name] = replace(control, basis=basis, by_layer=by_layer)
    return found


def _part(
    path: Path, arrays: Mapping[str, np.ndarray], control: str, part: str, direction: Direction
) -> torch.Tensor | None:
    """Rows of a control's subspace or its layers, as many as the direction has."""
    name = f"{control}.{part}"
    array, wanted = arrays.get(name), getattr(direction, part)
    if array is None and (wanted is None or part == "by_layer"):
        return None
    if array is None or wanted is None or array.shape != tuple(wanted.shape):
        raise damaged(path, f"{name}: not {part} of the size that the direction has")
    if array.dtype.kind != "f" or not np.isfinite(array).all():
        raise damaged(path, f"{name}: not finite numbers")
    return torch.from_numpy(array)
