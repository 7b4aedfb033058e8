"""Edits of a checkpoint's tensors in plain code: what the examination of weights is tried on.

An edit is a function of the base's tensors and which of them write to the stream, to new tensors.
Nothing here shares code with the package: every formula is written out.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class Place:
    """A tensor that writes to the stream: its dimension of the stream's width, its layer (``None``:
    embeddings), and its component.
    """

    name: str
    axis: int
    layer: int | None
    component: str


Edit = Callable[[Mapping[str, Tensor], Sequence[Place]], Tensors]


def unit(width: int, seed: int) -> Tensor:
    """An arbitrary direction."""
    noise = torch.randn(width, generator=torch.Generator().manual_seed(seed))
    found: Tensor = noise / noise.norm()
    return found


def matrix(weight: Tensor, axis: int) -> Tensor:
    """The stream first, all inputs as columns, in float64."""
    return weight.double().movedim(axis, 0).reshape(weight.shape[axis], -1)


def back(columns: Tensor, like: Tensor, axis: int) -> Tensor:
    """The inverse of ``matrix``."""
    moved = like.movedim(axis, 0).shape
    return columns.reshape(moved).movedim(0, axis).to(like.dtype).contiguous()


def each(
    tensors: Mapping[str, Tensor],
    places: Sequence[Place],
    change: Callable[[Tensor, Place], Tensor | None],
) -> Tensors:
    """Change the matrices of the writers; ``None`` leaves one as it is."""
    new = dict(tensors)
    for place in places:
        old = tensors[place.name]
        if old.dim() > 1:
            found = change(matrix(old, place.axis), place)
            if found is not None:
                new[place.name] = back(found, old, place.axis)
    return new


# --- edits by projection


def projection(
    u: Tensor,
    strength: Callable[[Place], float],
    keep: str = "",
) -> Edit:
    """``W - a u u'W``, with the norms of columns or rows kept, or of rows as Heretic does it: in
    rows of length one.
    """
    v = u.double()[:, None]

    def change(w: Tensor, place: Place) -> Tensor | None:
        a = strength(place)
        if a == 0:
            return None
        if keep == "row":
            lengths = w.norm(dim=1, keepdim=True)
            rows = w / lengths
            rows = rows - a * v @ (v.T @ rows)
            kept: Tensor = rows / rows.norm(dim=1, keepdim=True) * lengths
            return kept
        new = w - a * v @ (v.T @ w)
        if keep == "column":
            new = new * (w.norm(dim=0) / new.norm(dim=0))
        return new

    return lambda tensors, places: each(tensors, places, change)


def two_directions(u: Tensor, v: Tensor, a: float, b: float) -> Edit:
    """Two orthonormal directions, each with its strength."""
    one, other = u.double()[:, None], v.double()[:, None]

    def change(w: Tensor, place: Place) -> Tensor:
        return w - a * one @ (one.T @ w) - b * other @ (other.T @ w)

    return lambda tensors, places: each(tensors, places, change)


def tent(peak: float, low: float, centre: float, reach: float) -> Callable[[Place], float]:
    """A kernel over the layers: ``peak`` at the centre, falling to ``low``, nothing beyond."""

    def strength(place: Place) -> float:
        if place.layer is None or abs(place.layer - centre) > reach:
            return 0.0
        return peak + abs(place.layer - centre) / reach * (low - peak)

    return strength


def everywhere(a: float) -> Callable[[Place], float]:
    """One strength."""
    return lambda place: a


# --- what is no edit by projection


def lora(rank: int, size: float, seed: int, every: bool = True) -> Edit:
    """A merged adapter with random factors, ``size`` as large as the weights."""
    random = torch.Generator().manual_seed(seed)

    def change(w: Tensor, place: Place) -> Tensor | None:
        if not every and place.layer is None:
            return None
        up = torch.randn(w.shape[0], rank, generator=random, dtype=torch.float64)
        down = torch.randn(rank, w.shape[1], generator=random, dtype=torch.float64)
        delta = up @ down
        new: Tensor = w + delta * (size * w.norm() / delta.norm())
        return new

    return lambda tensors, places: each(tensors, places, change)


def decay(by: float) -> Edit:
    """Weight decay alone."""
    return lambda tensors, places: {
        n: (t.double() * (1 - by)).to(t.dtype) for n, t in tensors.items()
    }


def noise(size: float, seed: int) -> Edit:
    """As much noise as ``size`` of each weight."""
    random = torch.Generator().manual_seed(seed)

    def noisy(t: Tensor) -> Tensor:
        if t.dim() < 2:
            return t
        add = torch.randn(t.shape, generator=random)
        return (t.float() + add * (size * float(t.float().norm()) / float(add.norm()))).to(t.dtype)

    return lambda tensors, places: {name: noisy(t) for name, t in tensors.items()}


def merged(other: Mapping[str, Tensor], share: float) -> Edit:
    """A linear merge with another model of this kind."""

    def mixed(name: str, t: Tensor) -> Tensor:
        return ((1 - share) * t.double() + share * other[name].double()).to(t.dtype)

    return lambda tensors, places: {name: mixed(name, t) for name, t in tensors.items()}


def quantised(bits: int, group: int = 16) -> Edit:
    """Rounded to a grid of so many bits a group, and read back."""

    def rounded(t: Tensor) -> Tensor:
        if t.dim() < 2 or t.shape[-1] % group:
            return t
        parts = t.float().reshape(-1, group)
        top = 2 ** (bits - 1) - 1
        step = parts.abs().amax(1, keepdim=True).clamp_min(1e-12) / top
        read: Tensor = ((parts / step).round() * step).reshape(t.shape).to(t.dtype)
        return read

    return lambda tensors, places: {name: rounded(t) for name, t in tensors.items()}


def then(*edits: Edit) -> Edit:
    """One after the other."""

    def all_of_them(tensors: Mapping[str, Tensor], places: Sequence[Place]) -> Tensors:
        new = dict(tensors)
        for edit in edits:
            new = edit(new, places)
        return new

    return all_of_them
