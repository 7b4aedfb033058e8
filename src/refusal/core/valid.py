"""What makes a direction: checked where one is made or read, and where it meets a model."""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float
from safetensors import SafetensorError, safe_open

from refusal.core.arrays import read_array
from refusal.core.errors import DirectionError

if TYPE_CHECKING:
    import torch

UNIT = 1e-3  # how far from 1 a length may be: the rounding of a vector that was kept in bfloat16
EXACT = 1e-5  # how far from 1 it may be where it is used: an ablation leaves twice that
INDEPENDENT = 1e-3  # least singular value of unit vectors that span a subspace


@dataclass(frozen=True)
class SavedDirection:
    """What the file of a direction holds; the fields are those of ``Direction``."""

    vector: Float[np.ndarray, "d_model"]
    norm: float
    position: int
    layer: int
    qualified: bool
    model: str
    seed: int | None
    seen: frozenset[str]
    harmless_mean: Float[np.ndarray, "d_model"] | None = None
    basis: Float[np.ndarray, "rank d_model"] | None = None
    row_places: tuple[tuple[int, int], ...] = ()
    by_layer: Float[np.ndarray, "layer d_model"] | None = None


def read_direction(path: Path) -> SavedDirection:
    """The direction in a file, read without torch.

    Raises:
        DirectionError: the file is missing, no safetensors, or holds no direction.
    """
    try:
        with safe_open(str(path), framework="np") as file:
            meta = file.metadata() or {}
            known = {"harmless_mean", "basis", "by_layer"} & set(file.keys())
            more: dict[str, Any] = {name: read_array(file, path, name) for name in known}
            parts: dict[str, Any] = {
                "vector": read_array(file, path, "direction"),
                "norm": float(meta["norm"]),
                "position": int(meta["position"]),
                "layer": int(meta["layer"]),
                "qualified": json.loads(meta["qualified"]),
            }
        seed, seen = json.loads(meta.get("seed", "null")), json.loads(meta.get("seen", "[]"))
        fault = direction_fault(**parts) or _provenance_fault(seed, seen)
        places = json.loads(meta.get("row_places", "[]"))
        fault = fault or _mean_fault(more.get("harmless_mean"), parts["vector"])
        fault = fault or _basis_fault(more.get("basis"), places, parts["vector"])
        if fault := fault or _by_layer_fault(more.get("by_layer"), parts["vector"]):
            raise ValueError(fault)
        about = {"model": meta.get("model", ""), "seed": seed, "seen": frozenset(seen)}
        about["row_places"] = tuple((position, layer) for position, layer in places)
        return SavedDirection(**_exact(parts | more), **about)
    except (OSError, SafetensorError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise DirectionError(
            f"{path} holds no refusal direction ({error}). Give a direction.safetensors that "
            "refusal wrote."
        ) from error


def _exact(known: dict[str, Any]) -> dict[str, Any]:
    """The vectors with the lengths and right angles that rounding took from them, where it took
    more than float32 does.
    """
    exact = dict(known)
    exact["vector"] = _unit(known["vector"][None])[0]
    if (by_layer := known.get("by_layer")) is not None:
        exact["by_layer"] = _unit(by_layer)
    if (basis := known.get("basis")) is not None:
        exact["basis"] = _orthonormal(basis)
        if not np.array_equal(exact["basis"], basis):
            exact["vector"] = exact["basis"][0]
    return exact


def _unit(rows: Float[np.ndarray, "row d_model"]) -> Float[np.ndarray, "row d_model"]:
    lengths = np.linalg.norm(rows.astype(np.float64), axis=1, keepdims=True)
    far = (np.abs(lengths - 1) > EXACT) & (lengths > 0)
    if not far.any():
        return rows
    return (rows / np.where(far, lengths, 1.0)).astype(np.result_type(rows, np.float32))


def _orthonormal(rows: Float[np.ndarray, "rank d_model"]) -> Float[np.ndarray, "rank d_model"]:
    wide = rows.astype(np.float64)
    if np.abs(wide @ wide.T - np.eye(len(rows))).max() <= EXACT:
        return rows
    columns, triangle = np.linalg.qr(wide.T)
    exact = (columns * np.sign(np.diag(triangle))).T
    return exact.astype(np.result_type(rows, np.float32))


def direction_fault(
    vector: Any, norm: Any, position: Any, layer: Any, qualified: Any
) -> str | None:
    """The first thing that is wrong with what a direction is made of; ``None`` if it is one."""
    if not isinstance(vector, np.ndarray):
        return f"its tensor is {type(vector).__name__}, not one vector of floating-point numbers"
    if vector.ndim != 1 or vector.size == 0 or vector.dtype.kind != "f":
        return f"its tensor is {vector.shape}, not one vector of floating-point numbers"
    length = float(np.linalg.norm(vector.astype(np.float64)))
    if not math.isfinite(length):
        return "its vector holds NaN or infinity"
    if abs(length - 1) > UNIT:
        return f"its vector has length {length:.4g}, not 1"
    if (
        isinstance(norm, bool)
        or not isinstance(norm, (int, float))
        or not (math.isfinite(norm) and norm > 0)
    ):
        return f"its norm is {norm!r}, not a positive number"
    if not _is_whole(position) or position >= 0:
        return f"its position is {position!r}, and positions are counted from the end: -1, -2, …"
    if not _is_whole(layer) or layer < 0:
        return f"its layer is {layer!r}, not a number from 0"
    if not isinstance(qualified, bool):
        return f"qualified is {qualified!r}, not true or false"
    return None


def _mean_fault(mean: Any, vector: Any) -> str | None:
    """What is wrong with the harmless mean beside a direction."""
    if mean is None:
        return None
    if mean.shape != vector.shape or mean.dtype.kind != "f" or not np.isfinite(mean).all():
        return f"its harmless mean is not {len(vector)} finite numbers"
    return None


def _basis_fault(basis: Any, places: Any, vector: Any) -> str | None:
    """What is wrong with the rows of a subspace."""
    if basis is None:
        return None if places == [] else "it has places of rows, and no rows"
    if basis.ndim != 2 or basis.shape[1:] != vector.shape or basis.dtype.kind != "f":
        return f"its basis is {basis.shape}, not rows of {len(vector)} numbers"
    gram = basis.astype(np.float64) @ basis.astype(np.float64).T
    if not len(basis) or not np.abs(gram - np.eye(len(basis))).max() < UNIT:
        return "the rows of its basis are not orthonormal"
    if not abs(float(basis[0].astype(np.float64) @ vector.astype(np.float64)) - 1) < UNIT:
        return "the first row of its basis is not its vector"
    pairs = [place for place in places if isinstance(place, list) and len(place) == 2]
    if len(pairs) != len(places) or not all(_is_whole(x) for pair in pairs for x in pair):
        return "the places of its rows are no pairs of whole numbers"
    if len(places) != len(basis):
        return f"it has {len(basis)} rows and {len(places)} places"
    return None


def _by_layer_fault(by_layer: Any, vector: Any) -> str | None:
    """What is wrong with the vectors of the layers."""
    if by_layer is None:
        return None
    if by_layer.ndim != 2 or by_layer.shape[1:] != vector.shape or by_layer.dtype.kind != "f":
        return f"its vectors by layer are {by_layer.shape}, not rows of {len(vector)} numbers"
    lengths = np.linalg.norm(by_layer.astype(np.float64), axis=1)
    if not ((np.abs(lengths - 1) < UNIT) | (lengths == 0)).all():
        return "its vectors by layer are not of length 1 or 0"
    return None


def _provenance_fault(seed: Any, seen: Any) -> str | None:
    """What is wrong with where a direction says it comes from."""
    if seed is not None and not _is_whole(seed):
        return f"its seed is {seed!r}, not a whole number"
    if not isinstance(seen, list) or not all(isinstance(item, str) for item in seen):
        return "what it has seen is no list of fingerprints"
    return None


def check_width(vector: "torch.Tensor", d_model: int) -> None:
    """Raise DirectionError unless a direction's vector is as wide as the residual stream."""
    width = vector.shape[-1]
    if width != d_model:
        raise DirectionError(
            f"The direction has {width} dimensions but the model's residual stream {d_model}. "
            "Use a direction that was found on this model."
        )


def check_place(position: int, layer: int, n_positions: int, n_layers: int) -> None:
    """Raise DirectionError unless a model of so many blocks and post-instruction tokens has that
    place.
    """
    if not 0 <= layer < n_layers:
        raise DirectionError(
            f"The direction is of layer {layer}, but the model has layers 0 to {n_layers - 1}. "
            "Use a direction that was found on this model."
        )
    if not -n_positions <= position <= -1:
        raise DirectionError(
            f"The direction is of position {position}, but the model's template has positions "
            f"{-n_positions} to -1. Use a direction that was found on this model."
        )


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
