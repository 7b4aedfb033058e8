"""A direction in the residual stream, as it is kept in memory and in a file."""

import json
from dataclasses import dataclass
from pathlib import Path

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

    def save(self, path: str | Path) -> None:
        """Write safetensors: tensor ``direction`` (unit, float32), ``harmless_mean`` where it is
        known, and the provenance as metadata.
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
        tensors = {"direction": self.vector.float().cpu()}
        if self.harmless_mean is not None:
            tensors["harmless_mean"] = self.harmless_mean.float().cpu()
        write_tensors(Path(path), tensors, metadata)

    @classmethod
    def load(cls, path: str | Path) -> "Direction":
        """Read what ``save`` wrote.

        Raises:
            DirectionError: the file is missing, no safetensors, or holds no direction.
        """
        saved = read_direction(Path(path))
        arrays = {"vector": saved.vector, "harmless_mean": saved.harmless_mean}
        tensors = {name: torch.from_numpy(x) for name, x in arrays.items() if x is not None}
        return cls(**{**vars(saved), **tensors})
