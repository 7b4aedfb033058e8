"""What `refusal export` can write, and how it can edit weights."""

from dataclasses import dataclass
from typing import Literal

ExportKind = Literal["model", "lora", "direction", "gguf-control-vector"]
# Whose norms an edit keeps: of what each input writes (a column of ``W``), or of what all
# inputs write to each dimension of the stream (a row).
NormRule = Literal["column", "row"]


@dataclass(frozen=True)
class ExportEdit:
    """What is done to weights.

    Attributes:
        intervention: an ablation by its name as a condition, ``projected``, say.
        strength: of it, where none stands behind its name; 1 takes everything.
        rank: how many rows of the direction's subspace; all by default.
        norm: whose norms are kept, see ``orthogonalise``.
    """

    intervention: str = "ablation"
    strength: float | None = None
    rank: int | None = None
    norm: NormRule | None = None
