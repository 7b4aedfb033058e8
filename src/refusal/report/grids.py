"""The numbers behind a group of grids: a row per candidate, read out, shown when pointed at, and
kept on a click.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from refusal.core.tables import minus
from refusal.report import svg
from refusal.report.data import ReportData
from refusal.report.figures import (
    cosine_grids,
    outcome,
    outcome_words,
    own_scores,
    positions,
    score_grids,
)
from refusal.report.kinds import Grid


@dataclass(frozen=True)
class GridGroup:
    """Grids over the same candidates, and the table that follows the pointer.

    Attributes:
        drawn: (title, caption, SVG) of every grid.
        columns: of the table; ``cells["row,column"]`` is a candidate's line in it.
        start: the candidate that is shown first: the chosen one.
    """

    name: str
    drawn: tuple[tuple[str, str, Markup], ...]
    columns: tuple[str, ...]
    cells: Mapping[str, tuple[str, ...]]
    start: str


def score_group(data: ReportData) -> GridGroup | None:
    """The outcome and every score."""
    at = {(s.position, s.layer): s for s in data.scores}
    grids = score_grids(data)
    rows, own = positions(data), [(name, "+.3f") for name in own_scores(data)]
    names = ("bypass", "induce", "KL", *(name for name, _ in own))
    cells = {}
    for i, p in enumerate(rows):
        for j, layer in enumerate(grids[0].columns if grids else ()):
            score = at.get((p, layer))
            if score is not None:
                values = (_number(score.by_name.get(n), d) for n, d in (*SCORES, *own))
                words = outcome_words(data, outcome(data, score))
                cells[i, j] = (minus(str(p)), str(layer), *values, words)
    return _group("scores", grids, ("position", "layer", *names, "outcome"), cells)


SCORES = (("bypass", "+.2f"), ("induce", "+.2f"), ("kl", ".3f"))


def cosine_group(data: ReportData) -> GridGroup | None:
    """Cosines with the neighbours and with the chosen direction."""
    grids = cosine_grids(data)
    if not grids:
        return None
    names = ("next layer", "next position", "chosen direction")[: len(grids)]
    rows, columns = range(len(grids[0].rows)), range(len(grids[0].columns))
    cells = {}
    for i in rows:
        for j in columns:
            values = (_number(grid.values[i][j], "+.2f", "") for grid in grids)
            cells[i, j] = (minus(str(-i - 1)), str(j), *values)
    return _group("cosines", grids, ("position", "layer", *names), cells)


def _group(
    name: str,
    grids: Sequence[Grid],
    columns: tuple[str, ...],
    cells: Mapping[tuple[int, int], tuple[str, ...]],
) -> GridGroup | None:
    if not grids:
        return None
    first = grids[0]
    empty = ("",) * len(columns)

    def label(i: int, j: int) -> str:
        line = cells.get((i, j), empty)
        return ", ".join(
            f"{column} {value}" for column, value in zip(columns, line, strict=True) if value
        )

    labels = [[label(i, j) for j in range(len(first.columns))] for i in range(len(first.rows))]
    start = first.chosen or (0, 0)
    return GridGroup(
        name,
        tuple((grid.title, grid.caption, svg.grid(grid, labels)) for grid in grids),
        columns,
        {f"{i},{j}": line for (i, j), line in cells.items()},
        f"{start[0]},{start[1]}",
    )


def _number(value: float | None, form: str, without: str = "not scored") -> str:
    return without if value is None else minus(f"{value:{form}}")
