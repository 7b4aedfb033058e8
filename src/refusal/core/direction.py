"""A direction in the residual stream, as it is kept in memory and in a file."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from refusal.core.frames import NotebookRecord
from refusal.core.storage import write_tensors
from refusal.core.valid import read_direction


@dataclass(frozen=True)
class Direction(NotebookRecord):
    """A refusal direction: unit vector, the norm it had as a difference in means, and its
    provenance.

    ``seen``: fingerprints of the prompts that it was found and chosen with; it is never evaluated
    on those. ``harmless_mean`` is the mean residual stream of harmless prompts at its place.
    ``basis``: orthonormal rows of a subspace (`core/subspace.py`), the first of them ``vector``,
    each found at its place in ``row_places`` (position, layer); without one the direction stands
    alone. ``by_layer``: what was found at its position in layer 0, 1, …, as unit vectors, or zero
    where there was nothing to find.
    """

    vector: Float[Tensor, "d_model"]
    norm: float
    position: int
    layer: int
    qualified: bool = True
    model: str = ""
    seed: int | None = None
    seen: frozenset[str] = frozenset()
    harmless_mean: Float[Tensor, "d_model"] | None = None
    basis: Float[Tensor, "rank d_model"] | None = None
    row_places: tuple[tuple[int, int], ...] = ()
    by_layer: Float[Tensor, "layer d_model"] | None = None

    @property
    def rows(self) -> Float[Tensor, "rank d_model"]:
        """What an ablation takes out, as orthonormal rows (the vector, or the subspace)."""
        return self.vector[None] if self.basis is None else self.basis

    @property
    def rank(self) -> int:
        """How many dimensions an ablation takes out."""
        return 1 if self.basis is None else len(self.basis)

    @property
    def places(self) -> tuple[tuple[int, int], ...]:
        """Position and layer of each row."""
        return self.row_places if self.basis is not None else ((self.position, self.layer),)

    @property
    def tensors(self) -> dict[str, Tensor]:
        """All that is known of it as vectors, by the names that they have in a file."""
        known = {
            "direction": self.vector,
            "harmless_mean": self.harmless_mean,
            "basis": self.basis,
            "by_layer": self.by_layer,
        }
        return {name: x.float().cpu() for name, x in known.items() if x is not None}

    def save(self, path: str | Path) -> None:
        """Write safetensors: tensor ``direction`` (unit, float32), ``harmless_mean``, ``basis`` and
        ``by_layer`` where they are known, and the provenance as metadata.
        """
        metadata = {
            "position": str(self.position),
            "layer": str(self.layer),
            "norm": repr(self.norm),
            "qualified": json.dumps(self.qualified),
            "model": self.model,
            "seed": json.dumps(self.seed),
            "seen": json.dumps(sorted(self.seen)),
        }
        if self.basis is not None:
            metadata["row_places"] = json.dumps(self.row_places)
        write_tensors(Path(path), self.tensors, metadata)

    @classmethod
    def load(cls, path: str | Path) -> "Direction":
        """Read what ``save`` wrote.

        Raises:
            DirectionError: the file is missing, no safetensors, or holds no direction.
        """
        saved = read_direction(Path(path))
        found: dict[str, Any] = {}
        for name, value in vars(saved).items():
            array = isinstance(value, np.ndarray)
            found[name] = torch.from_numpy(value) if array else value
        return cls(**found)
