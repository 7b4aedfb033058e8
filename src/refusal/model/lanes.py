"""Streams of several lanes: a token has several vectors between blocks (hyper-connections, AltUp),
and a block reads a mixture of them.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from refusal.model.hooks import EditFunction

Layout = Literal["before", "after", "within"]


@dataclass(frozen=True)
class Lanes:
    """How a stream of several lanes lies in the tensor that blocks hand on, and what they read.

    Attributes:
        count: lanes of a token.
        d_model: width of one.
        layout: ``before``: ``(lane, row, token, d_model)``; ``after``: ``(row, token, lane,
            d_model)``; ``within``: ``(row, token, lane * d_model)``.
        reads: by block, the module at whose input one vector a token is read: the mixture.
        gains: by block, how far the mixture moves along a direction where every lane is moved by 1
            along it; measured, a mean over tokens (the weights of a mixture depend on the token).
        straight: by block, the share of that movement that is along the direction.
    """

    count: int
    d_model: int
    layout: Layout
    reads: tuple[str, ...] = ()
    gains: tuple[float, ...] = ()
    straight: tuple[float, ...] = ()

    @classmethod
    def of(cls, shape: torch.Size, d_model: int) -> "Lanes | None":
        """The lanes of a tensor of one row; ``None`` where there is one, or it is something else.

        Raises:
            ValueError: the tensor is of no shape that is known.
        """
        if len(shape) == 3 and shape[-1] == d_model:
            return None
        if len(shape) == 3 and shape[-1] % d_model == 0:
            return cls(shape[-1] // d_model, d_model, "within")
        if len(shape) == 4 and shape[-1] == d_model:
            if shape[0] == 1:
                return cls(shape[2], d_model, "after")
            if shape[1] == 1:
                return cls(shape[0], d_model, "before")
        raise ValueError(f"no lanes in {tuple(shape)}")

    def holds(self, x: Tensor) -> bool:
        """Whether ``x`` has all lanes, and is not the output of a sublayer, which has one."""
        wide = self.layout == "within"
        return x.shape[-1] == self.count * self.d_model if wide else x.dim() == 4

    def fold(self, x: Float[Tensor, "..."]) -> Float[Tensor, "row vector d_model"]:
        """Every lane of every token as a vector of its row."""
        if self.layout == "within":
            x = x.unflatten(-1, (self.count, self.d_model))
        folded: Tensor = (x.movedim(0, 1) if self.layout == "before" else x).flatten(1, 2)
        return folded

    def unfold(self, x: Float[Tensor, "row vector d_model"]) -> Float[Tensor, "..."]:
        """The tensor that ``fold`` was given."""
        if self.layout == "before":
            first: Tensor = x.unflatten(1, (self.count, -1)).movedim(1, 0)
            return first
        lanes: Tensor = x.unflatten(1, (-1, self.count))
        return lanes.flatten(2, 3) if self.layout == "within" else lanes

    def each(self, change: EditFunction, gain: float = 1.0) -> EditFunction:
        """``change`` of vectors as a change of all lanes; with a gain, of what blocks read of them:
        ``change(gain * x) / gain``, so that the mixture is changed as ``change`` says.
        """

        def over_lanes(x: Tensor) -> Tensor | None:
            lanes = self.fold(x) if self.holds(x) else x
            new = change(lanes if gain == 1.0 else lanes.float() * gain)
            if new is None:
                return None
            new = new if gain == 1.0 else (new.float() / gain).to(x.dtype)
            return self.unfold(new) if self.holds(x) else new

        return over_lanes
