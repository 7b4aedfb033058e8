"""Several directions as one subspace: orthonormal rows, whatever the order the directions came in.

Projecting correlated directions out one after the other leaves a part of the first behind: taking
out the second puts some of it back, ``cos sin`` of what is across the first, so 41 % at a cosine of
.89. So rows are made orthonormal first.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from refusal.core.direction import Direction
from refusal.core.errors import DirectionError
from refusal.core.valid import INDEPENDENT


def orthonormal(vectors: Float[Tensor, "rank d_model"]) -> Float[Tensor, "rank d_model"]:
    """Orthonormal rows that span what ``vectors`` span, float32, by QR in float64.

    The first row is the first vector at unit length; the projection ``Q' Q`` is the same whatever
    the order.

    Raises:
        DirectionError: the vectors are dependent, zero, or not finite.
    """
    wide = vectors.double()
    lengths = wide.norm(dim=1, keepdim=True)
    if not (torch.isfinite(lengths).all() and (lengths > 0).all()):
        row = int((~(torch.isfinite(lengths) & (lengths > 0)))[:, 0].nonzero()[0, 0])
        raise DirectionError(
            f"Row {row} of a subspace has length {float(lengths[row]):.3g}. Leave it out."
        )
    units = wide / lengths
    least = float(torch.linalg.svdvals(units)[-1]) if len(units) <= units.shape[1] else 0.0
    if not least > INDEPENDENT:
        raise DirectionError(
            f"{len(units)} directions do not span a subspace of {len(units)} dimensions: the least "
            f"singular value of their unit vectors is {least:.2g}, where at least {INDEPENDENT:g} "
            "is needed. Leave one out that is nearly a combination of the others."
        )
    q, r = torch.linalg.qr(units.T)
    rows: Tensor = (q * r.diagonal().sign()).T.float().contiguous()
    return rows


def project_onto(
    vectors: Float[Tensor, "*places d_model"], rows: Float[Tensor, "... rank d_model"]
) -> Float[Tensor, "*places d_model"]:
    """``Q'Q x`` of every vector: its part in the span of the orthonormal rows ``Q``, which may be
    others at every place.
    """
    along: Tensor = (rows * vectors[..., None, :]).sum(-1)
    part: Tensor = (along[..., None] * rows).sum(-2)
    return part


def spanned(directions: Sequence[Direction]) -> Direction:
    """A direction whose subspace all of ``directions`` span.

    Vector, norm, place and harmless mean are those of the first; it has seen what any of them has.

    Raises:
        DirectionError: there is none, they are dependent, or of different widths or models.
    """
    if not directions:
        raise DirectionError("A subspace needs at least one direction.")
    first = directions[0]
    if any(one.model != first.model for one in directions) or any(
        one.vector.shape != first.vector.shape for one in directions
    ):
        raise DirectionError(
            "The directions of a subspace are of different models or widths. Take them from one "
            "model."
        )
    rows = orthonormal(torch.cat([one.rows for one in directions]))
    places = tuple(place for one in directions for place in one.places)
    return replace(
        first,
        basis=rows,
        row_places=places,
        qualified=all(one.qualified for one in directions),
        seen=frozenset[str]().union(*(one.seen for one in directions)),
    )


def random_rows(rank: int, like: Direction, generator: torch.Generator) -> Float[Tensor, "rank d"]:
    """Orthonormal rows of a uniformly drawn subspace, as wide as a direction."""
    draws = torch.randn(rank, len(like.vector), generator=generator, dtype=torch.float64)
    return orthonormal(draws)
