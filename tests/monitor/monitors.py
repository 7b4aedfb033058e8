"""Monitors for tests: drawn ones, of any width."""

from typing import Any

import numpy as np

from refusal import Monitor
from refusal.core.monitor import Position, Reader


def reader(seed: int, width: int, layer: int, position: Position) -> Reader:
    vector = np.random.default_rng(seed).normal(size=width)
    unit = (vector / np.linalg.norm(vector)).astype(np.float32)
    return Reader(unit, layer, position, mean=0.25, sd=1.5)


def drawn(width: int = 16, layers: tuple[int, int] = (1, 2), **fields: Any) -> Monitor:
    known: dict[str, Any] = {
        "weights": (1.25, -0.5),
        "bias": -0.75,
        "threshold": 0.5,
        "eps": 0.01,
        "calibration": np.sort(np.random.default_rng(3).normal(size=120)),
        "model": "tiny",
        "model_hash": "a" * 64,
        "template_hash": "b" * 64,
        "fitted": frozenset({"f1", "f2"}),
        "calibrated": frozenset({"c1"}),
    }
    refusal, harmfulness = (
        reader(1, width, layers[0], -1),
        reader(2, width, layers[1], "instruction"),
    )
    return Monitor(refusal, harmfulness, **{**known, **fields})
