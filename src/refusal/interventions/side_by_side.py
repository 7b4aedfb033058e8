"""Several interventions in one batch, each row under its own."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import pad
from transformers import PreTrainedModel

from refusal.core.errors import DirectionError
from refusal.core.valid import check_width
from refusal.interventions.stream import (
    Place,
    Placed,
    StreamEdit,
    edits_at,
    edits_everywhere,
)
from refusal.model.hooks import Edit
from refusal.model.sites import Sites


class SideBySide:
    """Interventions on the rows of one batch, each row under its own; ``None`` leaves a row as it
    is.

    Whoever lays out the batch says with ``rows`` which intervention each row of the coming calls is
    under.
    """

    def __init__(
        self, interventions: Sequence[StreamEdit | None], starts: Sequence[int | None] | None = None
    ) -> None:
        """Of any kinds and at any places; what is alike goes through one product.

        Args:
            starts: the block from which on each acts, and not before; by default, and where it is
                ``None``, each acts everywhere that it does by itself.
        """
        self.interventions = tuple(interventions)
        alike: dict[tuple[type[StreamEdit], int | None, bool, int | None], list[int]] = {}
        for i, one in enumerate(self.interventions):
            if one is not None and not one.idle:
                start = None if starts is None else starts[i]
                alike.setdefault((type(one), one.block, one.repeats, start), []).append(i)
        self._groups = [
            _Group(self.interventions, members, start) for (*_, start), members in alike.items()
        ]

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
    """Interventions of one kind and at one place, or of one kind everywhere."""

    def __init__(
        self, interventions: Sequence[StreamEdit | None], members: Sequence[int], start: int | None
    ) -> None:
        self.start = start
        self.members = [one for i in members if (one := interventions[i]) is not None]
        self.place = {i: place for place, i in enumerate(members)}
        self.which: list[int] = []
        self.mine: list[int] = []
        self.picked: dict[torch.device, tuple[Int[Tensor, " mine"], Int[Tensor, " mine"]]] = {}
        self.version = 0

    def rows(self, which: Sequence[int]) -> None:
        """Which rows of the coming calls are under one of these, and under which."""
        if list(which) == self.which != []:
            return
        self.which = list(which)
        self.mine = [row for row, i in enumerate(which) if i in self.place]
        self.picked = {}  # once a device, not at every call
        self.version += 1

    def edits(self, model: PreTrainedModel, sites: Sites) -> list[Edit]:
        """What they do, on their rows."""
        for one in self.members:
            check_width(one.direction.vector, sites.d_model)
        first = self.members[0]
        if first.block is None and any(one.varies for one in self.members):
            return edits_everywhere(model, sites, self._change_at, first.repeats, self.start)
        stacked = _stacked([one.vectors for one in self.members])
        change = _Change(self, stacked)
        return edits_at(model, sites, first.block, change, first.repeats, self.start)

    def _change_at(self, place: Place) -> "_Change | None":
        vectors = [one.vectors_at(place) for one in self.members]
        known = [x for x in vectors if x is not None]
        if not known:
            return None
        nothing = torch.zeros_like(known[0][:1])
        return _Change(self, _stacked([nothing if x is None else x for x in vectors]))

    def indices(self, device: torch.device) -> tuple[Int[Tensor, " mine"], Int[Tensor, " mine"]]:
        """The rows, and which intervention each of them is under."""
        if device not in self.picked:
            places = [self.place[which] for which in self.which if which in self.place]
            rows = torch.tensor(self.mine, device=device)
            self.picked[device] = rows, torch.tensor(places, device=device)
        return self.picked[device]


def _stacked(
    each: Sequence[Float[Tensor, "_ d_model"]],
) -> Float[Tensor, "vector intervention d_model"]:
    """Vectors of several interventions, with zero vectors at the end of those that have fewer."""
    most = max(len(vectors) for vectors in each)
    return torch.stack([pad(vectors, (0, 0, 0, most - len(vectors))) for vectors in each], dim=1)


class _Change:
    """What a group does at one place."""

    def __init__(
        self, group: _Group, stacked: Float[Tensor, "vector intervention d_model"]
    ) -> None:
        self.group, self.all = group, Placed(stacked)
        self.version = -1
        self.picked: dict[torch.device, Tensor] = {}

    def __call__(self, x: Tensor) -> Tensor | None:
        """The stream of a batch, changed in the rows that are under one of the group.

        Raises:
            DirectionError: it is of other rows than was said.
        """
        group = self.group
        n = len(group.which)
        fits = x.shape[0] == n if x.dim() > 2 else n and x.shape[0] % n == 0
        if not fits:
            raise DirectionError(
                f"{x.shape[0]} rows run side by side where {n} were laid out: say with rows() "
                "which intervention each is under."
            )
        if not group.mine:
            return None
        stream = x if x.dim() > 2 else x.unflatten(0, (n, -1))  # experts see all tokens as one row
        change = group.members[0].change
        rows, vectors = self._vectors(x)
        if len(group.mine) == n:
            return change(stream, vectors).view_as(x)
        some = change(stream.index_select(0, rows), vectors)
        return stream.index_copy(0, rows, some).view_as(x)

    def _vectors(
        self, x: Tensor
    ) -> tuple[Int[Tensor, " mine"], Float[Tensor, "vector mine 1 d_model"]]:
        """The rows, and what is done to each of them."""
        if self.version != self.group.version:
            self.version, self.picked = self.group.version, {}
        rows, places = self.group.indices(x.device)
        if x.device not in self.picked:
            self.picked[x.device] = self.all.beside(x)[:, places, None]
        return rows, self.picked[x.device]
