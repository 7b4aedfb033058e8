"""Did an edit keep norms beside projecting: of each column (what an input writes), or of each row?

What projecting alone does to the norms is known. They were kept where the candidate's differ from
the base's by far less. Where rows were kept, the strength is fitted to that: rows as they are made
so, ``normalised(R_i - a u_i q)`` with ``R_i`` the rows brought to length one and ``q = u'R``,
against the candidate's. Without the fit a strength of .5 reads .47 in 32 dimensions.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from refusal.audits.forensics.frames import scale_of
from refusal.audits.forensics.pairs import Changes
from refusal.audits.forensics.records import Kept
from refusal.audits.forensics.writers import Writer

KEPT = 0.25  # of what projecting does to the norms, as a root mean square: below, they were kept
VISIBLE = 1e-4  # of the norms: what projecting must do to them for this to be told
REACH, STEP = 0.3, 1e-3  # strengths that are tried around the first reading


def norms_kept(
    writers: Sequence[Writer],
    changes: Changes,
    directions: Float[Tensor, "d_model n"],
    strengths: Sequence[float],
) -> Kept | None:
    """Which norms the edit of these writers kept; ``None`` for none, or where it cannot be told.

    Args:
        writers: those in which the identity holds.
        changes: what was done to them.
        directions: found in them, unit vectors.
        strengths: of each direction.
    """
    columns, rows = torch.zeros(3, dtype=torch.float64), torch.zeros(3, dtype=torch.float64)
    unit, by = directions.float(), torch.tensor(strengths)[:, None]
    for writer in writers:
        squares = torch.zeros(3, len(unit), dtype=torch.float64)
        for base, delta in changes.load(writer).blocks():
            norms = [base, base - unit @ (by * (unit.T @ base)), base + delta]
            squared = [x.square() for x in norms]
            columns += _deviations(*(x.sum(0, dtype=torch.float64).sqrt() for x in squared))
            squares += torch.stack([x.sum(1, dtype=torch.float64) for x in squared])
        rows += _deviations(*squares.sqrt())
    for kept, (size, expected, found) in (("column", columns.tolist()), ("row", rows.tolist())):
        if expected > VISIBLE**2 * size and found < KEPT**2 * expected:
            return "column" if kept == "column" else "row"
    return None


def fitted_strength(
    writers: Sequence[Writer],
    changes: Changes,
    direction: Float[Tensor, "d_model"],
    strength: float,
) -> float:
    """The strength of an edit that kept the norms of rows, near what was read first."""
    unit = direction.float()
    tried = strength + torch.arange(-REACH, REACH + STEP / 2, STEP, dtype=torch.float64)
    agreement = torch.zeros_like(tried)
    for writer in writers:
        change = changes.load(writer)
        scale = scale_of("rows of length one", writer, change)
        assert scale is not None
        # Of each row: R.q, C.q and C.R, with the base's rows R and the candidate's C.
        dots, size = torch.zeros(3, len(unit), dtype=torch.float64), 0.0
        for base, delta in change.blocks():
            ours, theirs = base * scale[:, None], (base + delta) * scale[:, None]
            q = unit @ ours
            size += float(q.double().square().sum())
            dots += torch.stack([ours @ q, theirs @ q, (theirs * ours).sum(1)]).double()
        steps = tried[:, None] * unit.double()
        lengths = (1 - 2 * steps * dots[0] + steps.square() * size).clamp_min(1e-12).sqrt()
        agreement += ((dots[2] - steps * dots[1]) / lengths).sum(1)
    return float(tried[agreement.argmax()])


def _deviations(
    base: Float[Tensor, "n"], expected: Float[Tensor, "n"], found: Float[Tensor, "n"]
) -> Float[Tensor, "3"]:
    """Sums of squares: of the norms, of what projecting does to them, of what was done to them."""
    return torch.stack([x.square().sum() for x in (base, expected - base, found - base)])
