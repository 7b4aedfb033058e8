"""Which of several tensors, added up, explain a change of the residual stream: pure functions of
tensors.

The plain sum is tried first; where none explains the change, each tensor may have a multiplier
(Granite, Falcon-H1), found by least squares.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import torch
from jaxtyping import Float
from torch import Tensor

MAX_TENSORS = 12  # 4095 subsets
MOST_WRITES = (
    4  # with multipliers; a block has attention, a second mixer, an MLP and perhaps one more
)
TRIED = 6  # of the subsets nearest in exact arithmetic, summed for real
NO_WRITE = 1e-3  # a multiplier so small means that the tensor is not added at all
EXACT = 1e-6  # relative: nothing but the order of a float32 sum


@dataclass(frozen=True)
class Fit:
    """The tensors that explain a change (by index, in the order given), their multipliers and the
    relative error; the sum of stream and writes is multiplied by ``scale``.
    """

    indices: tuple[int, ...]
    multipliers: tuple[float, ...]
    error: float
    scale: float = 1.0


NOTHING = Fit((), (), float("inf"))


def explain(
    start: Float[Tensor, "*token d_model"],
    end: Float[Tensor, "*token d_model"],
    writes: Sequence[Float[Tensor, "*token d_model"]],
    tolerance: float,
    everything: bool = False,
    apart: Collection[tuple[int, int]] = (),
) -> Fit:
    """The smallest set of ``writes`` that takes ``start`` to ``end``.

    Args:
        start: the stream before.
        end: the stream after.
        writes: what may have been added, in the order in which it was computed; at most
            ``MAX_TENSORS``.
        tolerance: relative error up to which a set explains the change.
        everything: consider only the set of all ``writes``.
        apart: pairs of which a set may hold only one.
    """
    if not writes:
        return NOTHING
    size = end.double().norm(dim=-1, keepdim=True).clamp_min(1e-12)  # every token counts alike
    change = ((end.double() - start.double()) / size).flatten()
    parts = torch.stack([(write.double() / size).flatten() for write in writes])
    gram, inner, total = parts @ parts.T, parts @ change, float(change @ change)
    n = len(writes)
    if everything:
        subsets = [tuple(range(n))]
    else:
        every = (subset for size in range(1, n + 1) for subset in combinations(range(n), size))
        subsets = [
            subset for subset in every if not any(a in subset and b in subset for a, b in apart)
        ]
    plain = min(
        (_plain(start, end, writes, s) for s in _nearest(subsets, gram, inner, total)), key=_rank
    )
    if plain.error <= EXACT:
        return plain
    fitted = _least_squares(
        start, end, writes, [s for s in subsets if everything or len(s) <= MOST_WRITES], gram, inner
    )
    # A rounded sum in half precision may come near by chance: multipliers must be clearly better to
    # be believed.
    return (
        plain
        if plain.error <= tolerance and plain.error <= 3 * fitted.error
        else min(fitted, plain, key=_rank)
    )


def explain_scaled(
    start: Float[Tensor, "*token d_model"],
    end: Float[Tensor, "*token d_model"],
    writes: Sequence[Float[Tensor, "*token d_model"]],
    tolerance: float,
    apart: Collection[tuple[int, int]] = (),
) -> Fit:
    """As ``explain``, where the block multiplies its stream by a number too (Gemma-4's
    ``layer_scalar``): ``end = scale * (start + writes)``, by least squares.
    """
    size = end.double().norm(dim=-1, keepdim=True).clamp_min(1e-12)
    parts = torch.stack([(part.double() / size).flatten() for part in (start, *writes)])
    target = (end.double() / size).flatten()
    gram, inner = parts @ parts.T, parts @ target
    n = len(writes)
    best = NOTHING
    for count in range(1, min(n, MOST_WRITES) + 1):
        fits = []
        for subset in combinations(range(n), count):
            if any(a in subset and b in subset for a, b in apart):
                continue
            index = [0, *(i + 1 for i in subset)]
            solved = torch.linalg.lstsq(gram[index][:, index], inner[index, None]).solution[:, 0]
            fits.append((float(inner[index] @ solved), subset, solved.tolist()))
        for _, subset, (scale, *rest) in sorted(fits, reverse=True)[:TRIED]:
            if abs(scale) <= NO_WRITE or min(map(abs, rest)) <= NO_WRITE:
                continue
            found = _rounded(start, end / scale, writes, subset, [m / scale for m in rest])
            best = min(best, replace(found, scale=scale), key=_rank)
        if best.error <= tolerance:
            return best
    return best


def add_up(
    start: Float[Tensor, "*token d_model"],
    writes: Sequence[Float[Tensor, "*token d_model"]],
    end: Float[Tensor, "*token d_model"],
) -> tuple[Float[Tensor, "*token d_model"], float]:
    """``start`` plus all ``writes``, and its relative error against ``end``.

    Summed in the dtype of ``end`` and in the order that fits best (one after another, or the first
    few to each other before they join the stream, as parallel blocks do), so that both sides round
    alike.
    """
    start, writes = start.to(end.dtype), [write.to(end.dtype) for write in writes]
    sums = []
    for together in range(1, len(writes) + 1):
        joined = sum(writes[1:together], start=writes[0])
        sums.append(sum(writes[together:], start=start + joined))
    if not sums:
        return start, relative_error(start, end)
    errors = [relative_error(total, end) for total in sums]
    best = min(range(len(sums)), key=errors.__getitem__)
    return sums[best], errors[best]


def relative_error(
    found: Float[Tensor, "*token d_model"], true: Float[Tensor, "*token d_model"]
) -> float:
    """Largest ``|found - true| / |true|`` over tokens; infinite if either is not finite."""
    difference = (found.double() - true.double()).norm(dim=-1)
    error = float((difference / true.double().norm(dim=-1).clamp_min(1e-12)).max())
    return error if error == error else float("inf")


def _rank(fit: Fit) -> tuple[float, int]:
    return fit.error, len(fit.indices)


def _nearest(
    subsets: Sequence[tuple[int, ...]], gram: Tensor, inner: Tensor, total: float
) -> list[tuple[int, ...]]:
    """The few subsets whose plain sum leaves the least of the change."""
    masks = torch.zeros(len(subsets), len(inner), dtype=torch.float64)
    for row, subset in enumerate(subsets):
        masks[row, list(subset)] = 1.0
    left = total - 2 * masks @ inner + ((masks @ gram) * masks).sum(-1)
    return [subsets[i] for i in left.argsort()[:TRIED].tolist()]


def _plain(start: Tensor, end: Tensor, writes: Sequence[Tensor], subset: tuple[int, ...]) -> Fit:
    return Fit(subset, (1.0,) * len(subset), add_up(start, [writes[i] for i in subset], end)[1])


def _least_squares(
    start: Tensor,
    end: Tensor,
    writes: Sequence[Tensor],
    subsets: Sequence[tuple[int, ...]],
    gram: Tensor,
    inner: Tensor,
) -> Fit:
    """The smallest subset that explains the change about as well as any does, each tensor with a
    multiplier.
    """
    by_size: dict[int, list[tuple[float, tuple[int, ...], list[float]]]] = {}
    for subset in subsets:
        index = list(subset)
        solved = torch.linalg.lstsq(gram[index][:, index], inner[index, None]).solution[:, 0]
        explained = float(inner[index] @ solved)
        by_size.setdefault(len(subset), []).append((explained, subset, solved.tolist()))
    tried = []
    for fits in by_size.values():  # each for itself: more tensors always fit a little better
        for _, subset, solved in sorted(fits, reverse=True)[:TRIED]:
            if min(map(abs, solved)) > NO_WRITE:
                tried.append(_rounded(start, end, writes, subset, solved))
    best = min((fit.error for fit in tried), default=float("inf"))
    near = [fit for fit in tried if fit.error <= 3 * best + EXACT]
    return min(near, key=lambda fit: (len(fit.indices), fit.error), default=NOTHING)


def _rounded(
    start: Tensor,
    end: Tensor,
    writes: Sequence[Tensor],
    subset: tuple[int, ...],
    solved: Sequence[float],
) -> Fit:
    """The fit with its multipliers at the number of digits that fits best: those of a config are
    short numbers.
    """
    best = NOTHING
    for digits in range(2, 10):
        multipliers = tuple(float(f"{value:.{digits}g}") for value in solved)
        scaled = [writes[i] * multiplier for i, multiplier in zip(subset, multipliers, strict=True)]
        fit = Fit(subset, multipliers, add_up(start, scaled, end)[1])
        best = min(best, fit, key=lambda fit: fit.error)
    return best
