"""Several interventions in one batch, each row under its own."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedModel

from refusal.core.errors import DirectionError
from refusal.core.valid import check_width
from refusal.interventions.ablate_add import Ablate, Add, _everywhere, _Placed, project_out
from refusal.model.hooks import Edit
from refusal.model.sites import Sites


class SideBySide:
    """Interventions of one kind on the rows of one batch, each row under its own.

    Whoever lays out the batch says with ``rows`` which intervention each row of the coming calls is
    under. All are ablations, or all are additions at one layer.
    """

    def __init__(self, interventions: Sequence[Ablate | Add]) -> None:
        self.directions = [intervention.direction for intervention in interventions]
        first = interventions[0]
        self.layer: int | None = None
        if isinstance(first, Add):
            layers = {
                i.direction.layer if i.layer is None else i.layer
                for i in interventions
                if isinstance(i, Add)
            }
            vectors = [i.step for i in interventions if isinstance(i, Add)]
            self.layer = min(layers)
        else:
            layers = set()
            vectors = [i.direction.vector.float() for i in interventions if isinstance(i, Ablate)]
        if len(vectors) != len(interventions) or len(layers) > 1:
            raise DirectionError(
                "Ablations and additions, or additions at several layers, cannot run side by "
                "side. Run them in turn."
            )
        self.all = _Placed(torch.stack(vectors))
        self.rows([])

    def rows(self, which: Sequence[int]) -> None:
        """Row ``i`` of the coming calls is under intervention ``which[i]``."""
        self.which: Int[Tensor, " row"] = torch.tensor(list(which), dtype=torch.long)
        self._mine: dict[
            torch.device, Float[Tensor, "row 1 d_model"]
        ] = {}  # picked once a device, not at every call

    def edits(self, model: PreTrainedModel, sites: Sites) -> list[Edit]:
        """As each intervention by itself, on its rows."""
        for direction in self.directions:
            check_width(direction.vector, sites.d_model)

        def mine(x: Tensor) -> Float[Tensor, "row 1 d_model"]:
            if x.device not in self._mine:
                self._mine[x.device] = self.all.beside(x)[self.which.to(x.device)][:, None]
            return self._mine[x.device]

        if self.layer is None:
            return _everywhere(model, sites, lambda x: project_out(x, mine(x)))
        block = model.get_submodule(sites.blocks[self.layer])
        return [Edit(block, "input", lambda x: (x.float() + mine(x)).to(x.dtype))]
