"""Tensors of safetensors files as numpy arrays, bfloat16 among them: no torch."""

from pathlib import Path
from typing import Any

import numpy as np
from safetensors import deserialize


def read_array(file: Any, path: Path, name: str) -> np.ndarray:
    """One tensor of an open file (``safe_open`` with the framework ``np``).

    numpy has no bfloat16: such numbers are given as float32, of which they are the upper half.

    Raises:
        SafetensorError: there is no such tensor.
    """
    if file.get_slice(name).get_dtype() != "BF16":
        found: np.ndarray = file.get_tensor(name)
        return found
    stored = dict(deserialize(path.read_bytes()))[name]  # type: ignore[no-untyped-call]
    halves = np.frombuffer(stored["data"], dtype="<u2").astype("<u4")
    return (halves << 16).view("<f4").reshape(stored["shape"])
