"""With a base: is the change of a layer's writers a projection, ``dW = -a u u'W``?

``u`` is the top eigenvector of ``sum dW dW' / |W|^2`` over the layer's writers (METHODS section 4).
``a = -<u'dW, u'W> / |u'W|^2``, R^2 the squared cosine of the two rows. A change along every
direction (weight decay) has R^2 = 1 along ``u`` too: only beside random directions it shows. Of
several directions the top eigenvectors span the subspace: in it ``dW = -M W`` with ``M = -(dW W')(W
W')^-1``, whose eigenvectors are the directions and whose eigenvalues their strengths.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from refusal.audits.forensics.frames import frames_of, scale_of
from refusal.audits.forensics.pairs import Block, Change, Changes
from refusal.audits.forensics.records import Frame, Identity, Layer, Part
from refusal.audits.forensics.spectrum import largest
from refusal.audits.forensics.writers import Writer
from refusal.core.errors import NonFiniteError

R2 = 0.5
TIMES_RANDOM = 5.0
SHARE = 0.1
LARGEST = 10.0  # strength: with more the base has next to nothing along the direction
RANDOM = 64
COUNTED = 16  # eigenvalues that are looked at: a change of more is of high rank
MOST = 4  # directions of a layer
SECOND = 0.05  # of |dW|^2: with less it is no direction of its own
SECOND_R2 = 0.9
CLEAR = 0.995  # an R^2 from which no other frame is looked in
HOPELESS = 0.1  # an R^2 below which none would help
NOTHING = 1e-3  # of what the candidate has along u: then the base has nothing


@dataclass
class Moments:
    """Of one writer along ``k`` directions, float64, divided by ``|W|^2``.

    ``dd``, ``dw``, ``ww``: ``U'dW dW'U``, ``U'dW W'U``, ``U'W W'U``; ``total``: ``|dW|^2``;
    ``random``: ``<r'dW, r'W>`` and ``|r'W|^2`` of random directions ``r``.
    """

    dd: Float[Tensor, "k k"]
    dw: Float[Tensor, "k k"]
    ww: Float[Tensor, "k k"]
    total: float
    random: Float[Tensor, "2 r"]

    def __add__(self, other: "Moments") -> "Moments":
        sums = (getattr(self, n) + getattr(other, n) for n in ("dd", "dw", "ww", "total", "random"))
        return Moments(*sums)

    def turned(self, by: Float[Tensor, "k n"]) -> "Moments":
        """Along combinations of the directions."""
        dd, dw, ww = (by.T @ x @ by for x in (self.dd, self.dw, self.ww))
        return Moments(dd, dw, ww, self.total, self.random)


@dataclass(frozen=True)
class Examined:
    """A layer's record with its directions, in the frame in which they were found."""

    layer: Layer
    directions: Float[Tensor, "d_model n"] | None = None


Scale = Float[Tensor, "d_model"] | None
Touched = list[tuple[Writer, Scale, float]]  # with |W|^2


def examine_layer(number: int | None, writers: Sequence[Writer], changes: Changes) -> Examined:
    """Look at one layer in every frame, and keep what is clearest.

    Raises:
        NonFiniteError: a weight is NaN or infinite.
    """
    matrices = [writer for writer in writers if writer.matrix]
    best = Examined(_untouched(number, matrices))
    for frame in frames_of(matrices):
        found = _in_frame(number, matrices, changes, frame)
        if found is None:
            return best
        if best.directions is None or _clear(found) > _clear(best):
            best = found
        if not HOPELESS < _clear(best) < CLEAR:
            break
    return best


def scaled(change: Change, scale: Scale) -> Iterator[Block]:
    """A change in a frame."""
    for base, delta in change.blocks():
        yield (base, delta) if scale is None else (base * scale[:, None], delta * scale[:, None])


def _square(x: Tensor) -> float:
    return float(x.square().sum(dtype=torch.float64))


def _untouched(number: int | None, writers: Sequence[Writer]) -> Layer:
    components = dict.fromkeys(writer.component for writer in writers)
    parts = tuple(Part(name, _count(writers, name), 0, ()) for name in components)
    return Layer(number, len(writers), 0, rank=0, parts=parts)


def _count(writers: Iterable[Writer], component: str) -> int:
    return sum(writer.component == component for writer in writers)


def _clear(found: Examined) -> float:
    """The largest R^2 of a layer, where the rule flags it; else no more than its limit."""
    every = [*found.layer.along, *(one for part in found.layer.parts for one in part.along)]
    return max((one.r2 if one.holds else min(one.r2, R2) for one in every), default=0.0)


def _in_frame(
    number: int | None, writers: Sequence[Writer], changes: Changes, frame: Frame
) -> Examined | None:
    """``None`` where nothing is changed."""
    touched: Touched = []
    gram = torch.zeros(0, 0, dtype=torch.float64)
    for writer in writers:
        change = changes.load(writer)
        if change.unchanged:
            continue
        scale = scale_of(frame, writer, change)
        size = sum(_square(base) for base, _ in scaled(change, scale))
        if size == 0:
            continue
        touched.append((writer, scale, size))
        for _, delta in scaled(change, scale):
            gram = torch.zeros(2 * delta.shape[:1], dtype=torch.float64) if not len(gram) else gram
            gram.add_(delta @ delta.T, alpha=1 / size)  # added in float64, without a copy
        del change
    if not touched:
        return None
    total = float(gram.trace())
    if not total < float("inf"):
        raise NonFiniteError(
            f"A weight of layer {number} is NaN or infinite, in the candidate or in the base. "
            "Fetch them again."
        )
    values, basis = largest(gram, COUNTED)
    del gram
    count = max(1, int((values[:MOST] > SECOND * total).sum()))
    moments: dict[str, Moments] = {}
    for writer, scale, size in touched:
        found = _moments(changes.load(writer), scale, size, basis[:, :count])
        name = writer.component
        moments[name] = moments[name] + found if name in moments else found
    turn = _turn(moments)
    turned = {name: found.turned(turn) for name, found in moments.items()}
    layer = _layer(_untouched(number, writers), [writer for writer, _, _ in touched], turned)
    layer = replace(layer, frame=frame, rank=_rank(values, total))
    return Examined(layer, basis[:, :count] @ turn)


def _moments(
    change: Change, scale: Scale, size: float, basis: Float[Tensor, "d_model k"]
) -> Moments:
    narrow, count = basis.float(), basis.shape[1]
    noise = torch.randn(len(basis), RANDOM, generator=torch.Generator().manual_seed(1))
    noise = noise / noise.norm(dim=0)
    dd, dw, ww = (torch.zeros(count, count, dtype=torch.float64) for _ in range(3))
    total, random = 0.0, torch.zeros(2, RANDOM, dtype=torch.float64)
    for base, delta in scaled(change, scale):
        d, w = (narrow.T @ delta).double(), (narrow.T @ base).double()
        dd, dw, ww = dd + d @ d.T, dw + d @ w.T, ww + w @ w.T
        total += _square(delta)
        rd, rw = noise.T @ delta, noise.T @ base
        random += torch.stack([(rd * rw).double().sum(1), rw.double().square().sum(1)])
    return Moments(dd / size, dw / size, ww / size, total / size, random / size)


def _sum(moments: Iterable[Moments]) -> Moments:
    first, *rest = moments
    for one in rest:
        first = first + one
    return first


def _turn(moments: dict[str, Moments]) -> Float[Tensor, "k n"]:
    """From the eigenvectors to the directions: the top one alone, or the principal axes of ``M``
    where more of them hold.
    """
    pooled = _sum(moments.values())
    count = len(pooled.ww)
    alone = torch.eye(count, dtype=torch.float64)[:, :1]
    if count == 1:
        return alone
    matrix = -pooled.dw @ torch.linalg.pinv(pooled.ww, rtol=1e-6)
    axes = torch.linalg.eigh((matrix + matrix.T) / 2).eigenvectors
    every = identities(pooled.turned(axes))
    order = sorted(range(count), key=lambda i: -every[i].share)
    holding = [i for i in order if every[i].holds]
    return axes[:, holding] if len(holding) > 1 else alone


def identities(moments: Moments) -> tuple[Identity, ...]:
    """The identity along each direction. The first to be flagged needs more of the change than
    those beside it.
    """
    random = float((moments.random[0] / moments.random[1].clamp_min(1e-300)).abs().median())
    found = []
    for i in range(len(moments.ww)):
        dd, dw, ww = (float(x[i, i]) for x in (moments.dd, moments.dw, moments.ww))
        strength = -dw / max(ww, 1e-300)
        r2 = dw * dw / max(dd * ww, 1e-300)
        clear = r2 > R2 and LARGEST > abs(strength) > TIMES_RANDOM * random
        found.append(Identity(strength, r2, random, dd / max(moments.total, 1e-300), clear))
    best = max(range(len(found)), key=lambda i: found[i].share if found[i].holds else 0.0)
    first = found[best].holds and found[best].share > SHARE
    for i, one in enumerate(found):
        # What renormalised rows leave beside the direction has the other sign, and is small.
        alike = one.strength * found[best].strength > 0 or one.share > SHARE
        beside = one.share > SECOND and one.r2 > SECOND_R2 and alike
        found[i] = replace(one, holds=one.holds and first and (i == best or beside))
    return tuple(found)


def _layer(empty: Layer, touched: Sequence[Writer], moments: dict[str, Moments]) -> Layer:
    """The record of a layer: of each component, and of those together in which the identity
    holds.
    """
    parts = []
    for part in empty.parts:
        along = identities(moments[part.component]) if part.component in moments else ()
        parts.append(replace(part, changed=_count(touched, part.component), along=along))
    holding = [moments[part.component] for part in parts if part.holds]
    pooled = _sum(holding or moments.values())
    dd, dw, ww = (float(x[0, 0]) for x in (pooled.dd, pooled.dw, pooled.ww))
    lacking = dd > SHARE * pooled.total and ww < NOTHING * (ww + 2 * dw + dd)
    return replace(
        empty,
        changed=len(touched),
        parts=tuple(parts),
        along=identities(pooled),
        lacking=lacking,
    )


def _rank(values: Float[Tensor, "k"], total: float) -> int | None:
    """Eigenvalues to 99% of their sum."""
    enough = (values.cumsum(0) >= 0.99 * total).nonzero()
    return int(enough[0]) + 1 if len(enough) else None
