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
    """Interventions on the rows of one batch, each row under its own; ``None`` leaves a row as it
    is.

    Whoever lays out the batch says with ``rows`` which intervention each row of the coming calls is
    under.
    """

    def __init__(self, interventions: Sequence[StreamEdit | None]) -> None:
        """Of any kinds and at any places; what is alike goes through one product."""
        self.interventions = tuple(interventions)
        alike: dict[tuple[type[StreamEdit], int | None], list[int]] = {}
        for i, one in enumerate(self.interventions):
            if one is not None:
                alike.setdefault((type(one), one.block), []).append(i)
        self._groups = [_Group(self.interventions, members) for members in alike.values()]

    def __len__(self) -> int:
        return len(self.interventions)

    def rows(self, which: Sequence[int]) -> None:
        """Row ``i`` of the coming calls is under intervention ``which[i]``."""
        for group in self._groups:
            group.rows(which)

    def edits(self, model: PreTrainedModel, sites: Sites) -> list[Edit]:
        """What each intervention does by itself, on its rows.

        Raises:
            DirectionError: a direction has another width than the model, or the model no such
                block.
        """
        return [edit for group in self._groups for edit in group.edits(model, sites)]


class _Group:
    """Interventions of one kind and at one place."""

    def __init__(self, interventions: Sequence[StreamEdit | None], members: Sequence[int]) -> None:
        self.members = [one for i in members if (one := interventions[i]) is not None]
        self.place = {i: place for place, i in enumerate(members)}
        stacked = torch.stack([one.vectors for one in self.members], dim=1)
        self.all = Placed(stacked)  # (vector, intervention, d_model)
        self.which: list[int] = []
        self.rows([])

    def rows(self, which: Sequence[int]) -> None:
        """Which rows of the coming calls are under one of these, and under which."""
        if list(which) == self.which != []:
            return
        self.which = list(which)
        self.mine = [row for row, i in enumerate(which) if i in self.place]
        # picked once a device, not at every call
        self._picked: dict[torch.device, tuple[Int[Tensor, " mine"], Tensor]] = {}

    def edits(self, model: PreTrainedModel, sites: Sites) -> list[Edit]:
        """What they do, on their rows."""
        for one in self.members:
            check_width(one.direction.vector, sites.d_model)
        return edits_at(model, sites, self.members[0].block, self._change)

    def _change(self, x: Tensor) -> Tensor | None:
        """The stream of a batch, changed in the rows that are under one of these.

        Raises:
            DirectionError: it is of other rows than was said.
        """
        n = len(self.which)
        fits = x.shape[0] == n if x.dim() > 2 else n and x.shape[0] % n == 0
        if not fits:
            raise DirectionError(
                f"{x.shape[0]} rows run side by side where {n} were laid out: say with rows() "
                "which intervention each is under."
            )
        if not self.mine:
            return None
        stream = x if x.dim() > 2 else x.unflatten(0, (n, -1))  # experts see all tokens as one row
        change = self.members[0].change
        rows, vectors = self._vectors(x)
        if len(self.mine) == n:
            return change(stream, vectors).view_as(x)
        some = change(stream.index_select(0, rows), vectors)
        return stream.index_copy(0, rows, some).view_as(x)

    def _vectors(
        self, x: Tensor
    ) -> tuple[Int[Tensor, " mine"], Float[Tensor, "vector mine 1 d_model"]]:
        """The rows, and what is done to each of them."""
        if x.device not in self._picked:
            rows = torch.tensor(self.mine, device=x.device)
            places = [self.place[which] for which in self.which if which in self.place]
            vectors = self.all.beside(x)[:, torch.tensor(places, device=x.device)]
            self._picked[x.device] = rows, vectors[:, :, None]
        return self._picked[x.device]
