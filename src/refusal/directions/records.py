"""The records of a search for a direction that hold tensors: means, candidates, the choice.

Dimensions: ``position`` counts post-instruction tokens (first is the earliest, last is -1),
``layer`` decoder blocks (the value at ``layer`` is the *input* of that block), ``d_model`` the
width of the residual stream.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from refusal.core.direction import Direction
from refusal.core.errors import DirectionError
from refusal.core.frames import NotebookRecord, dataframe
from refusal.core.records import Choice, ClassCount, Label, RefusalTokens

if TYPE_CHECKING:
    import pandas


@dataclass(frozen=True)
class Activations:
    """Means of the residual stream over the prompts that passed the filter, float64."""

    harmful: Float[Tensor, "position layer d_model"]
    harmless: Float[Tensor, "position layer d_model"]
    tokens: RefusalTokens | None
    harmful_count: ClassCount
    harmless_count: ClassCount
    model: str
    seed: int | None = None
    seen: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Candidates(NotebookRecord):
    """One vector per (position, layer) that may become the direction, float32; by default the
    differences in means ``mean_harmful - mean_harmless``.

    Attributes:
        tokens: the refusal tokens; ``None`` where the method needs none.
        seen: fingerprints of the prompts that took part, here and in the other records.
        harmless_means: mean residual stream of the harmless prompts, where it is known.
        counts: prompts by class, where they are known.
        several: where a method finds several vectors at a place, all of them, unscaled; the
            candidate is made of one of them.

    Positions beyond the post-instruction tokens, where there are some, are those before them: the
    first is then the last token of the instruction. A position at which no layer was read is NaN
    and holds no candidates.
    """

    vectors: Float[Tensor, "position layer d_model"]
    tokens: RefusalTokens | None
    model: str
    seed: int | None = None
    seen: frozenset[str] = frozenset()
    harmless_means: Float[Tensor, "position layer d_model"] | None = None
    counts: Mapping[Label, ClassCount] = field(default_factory=dict)
    several: Float[Tensor, "position layer vector d_model"] | None = None

    @property
    def n_positions(self) -> int:
        """Number of positions, of post-instruction tokens as a rule."""
        return self.vectors.shape[0]

    @property
    def positions(self) -> tuple[int, ...]:
        """The positions at which there are candidates, the earliest first."""
        read = (~self.vectors.isnan()).flatten(1).any(1).tolist()
        return tuple(i - len(read) for i, there in enumerate(read) if there)

    @property
    def n_layers(self) -> int:
        """Number of decoder blocks."""
        return self.vectors.shape[1]

    def at(self, position: int, layer: int) -> Direction:
        """The candidate at a negative ``position`` and a ``layer``, as a direction (unit vector and
        norm).
        """
        if not -self.n_positions <= position <= -1 or not 0 <= layer < self.n_layers:
            raise DirectionError(
                f"There is no candidate at position {position}, layer {layer}. "
                f"Positions run from {-self.n_positions} to -1 and layers from 0 to "
                f"{self.n_layers - 1}."
            )
        vector = self.vectors[position, layer].float()
        norm = float(vector.norm())
        means = self.harmless_means
        return Direction(
            vector=vector / norm if norm > 0 else vector,
            norm=norm,
            position=position,
            layer=layer,
            model=self.model,
            seed=self.seed,
            seen=self.seen,
            harmless_mean=None if means is None else means[position, layer].float(),
        )

    def by_layer(self, position: int) -> Float[Tensor, "layer d_model"]:
        """Unit vectors at a position of layer 0, 1, … as far as layers were read; zero where a
        candidate is.
        """
        vectors = self.vectors[position].double()
        unread = (~torch.isfinite(vectors).all(-1)).nonzero()
        vectors = vectors[: int(unread[0]) if len(unread) else None]
        return torch.nan_to_num(vectors / vectors.norm(dim=-1, keepdim=True), 0.0).float()


@dataclass(frozen=True)
class Selection(Choice, NotebookRecord):
    """The chosen direction, every score, and what each criterion rejected.

    ``qualified`` is False when no candidate satisfied the rule and the lowest bypass inside the KL
    and layer limits stands in. The counts hold the unmodified model's mean metrics on the
    validation prompts that passed the filter.
    """

    direction: Direction = field(kw_only=True)

    def to_dataframe(self) -> "pandas.DataFrame":
        """All candidates' scores, one a row.

        Raises:
            UsageError: pandas is not installed.
        """
        columns = dict.fromkeys(name for score in self.scores for name in score.to_row())
        return dataframe((score.to_row() for score in self.scores), list(columns))
