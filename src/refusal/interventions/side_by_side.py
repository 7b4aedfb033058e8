"""Several interventions in one batch, each row under its own."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedModel

from refusal.core.errors import DirectionError
from refusal.core.valid import check_width
from refusal.interventions.stream import Placed, StreamEdit, edits_at
from refusal.model.hooks import Edit
from refusal.model.sites import Sites


class SideBySide:
    """Interventions of one kind and at one place on the rows of one batch, each row under its own.

    Whoever lays out the batch says with ``rows`` which intervention each row of the coming calls is
    under.
    """

    def __init__(self, interventions: Sequence[StreamEdit]) -> None:
        """One intervention or more.

        Raises:
            DirectionError: they are of several kinds, or act at several places.
        """
        if len({(type(one), one.block) for one in interventions}) != 1:
            raise DirectionError(
                "Interventions of several kinds, or at several layers, cannot run side by side. "
                "Run them in turn."
            )
        self.interventions = tuple(interventions)
        stacked = torch.stack([one.vectors for one in interventions], dim=1)
        self._all: Placed = Placed(stacked)  # (vector, intervention, d_model)
        self.rows([])

    def __len__(self) -> int:
        return len(self.interventions)

    def rows(self, which: Sequence[int]) -> None:
        """Row ``i`` of the coming calls is under intervention ``which[i]``."""
        self.which: Int[Tensor, " row"] = torch.tensor(list(which), dtype=torch.long)
        # picked once a device, not at every call
        self._mine: dict[torch.device, Float[Tensor, "vector row 1 d_model"]] = {}

    def edits(self, model: PreTrainedModel, sites: Sites) -> list[Edit]:
        """What each intervention does by itself, on its rows."""
        for one in self.interventions:
            check_width(one.direction.vector, sites.d_model)
        first = self.interventions[0]

        def change(x: Tensor) -> Tensor:
            if x.device not in self._mine:
                mine = self._all.beside(x)[:, self.which.to(x.device)]
                self._mine[x.device] = mine[:, :, None]
            return first.change(x, self._mine[x.device])

        return edits_at(model, sites, first.block, change)
