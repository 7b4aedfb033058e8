"""What the report draws, as data: the same for the page (SVG) and for files (matplotlib).

Four kinds are enough: a grid over layer and position, lines over layers, points in a plane,
intervals in rows.
"""

import statistics
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from jaxtyping import Float

from refusal.core.records import CandidateScore
from refusal.core.text import visible
from refusal.report.data import ReportData
from refusal.report.kinds import Figure, Grid, Intervals, Line, Lines, Points, Style, Values
from refusal.report.rates import controlled_rows, rate_rows
from refusal.report.words import minus

# What stands in the map of outcomes for each, the chosen candidate first.
SIGNS = {
    "chosen": "★",
    "bypass": "b",
    "induce": "i",
    "kl": "k",
    "layer": "l",
    "step": "s",
    "nan": "n",
    None: "·",
}


def figures(data: ReportData) -> tuple[Figure, ...]:
    """All that there is something to draw of."""
    found: list[Figure] = []
    if rows := (*rate_rows(data.metrics), *controlled_rows(data.metrics)):
        found.append(Intervals("refusal-rates", "Share of completions that refuse", rows))
    return (*found, *score_grids(data), *separation(data), *cosine_grids(data))


def score_grids(data: ReportData) -> tuple[Grid, ...]:
    """The outcome of every candidate, and its three scores."""
    if not data.scores:
        return ()
    rule = data.config.rule
    kept = {
        "outcome": ("Outcome", None, None, _legend(data)),
        "bypass": (
            "Bypass",
            None,
            _score("bypass"),
            "Mean log-odds of refusal on harmful prompts "
            "under ablation: "
            "lower is better. No limit: the lowest that meets the others is chosen.",
        ),
        "induce": (
            "Induce",
            rule.induce_threshold,
            _score("induce"),
            "Mean log-odds of refusal "
            "on harmless prompts "
            f"under addition. A dot: at least {rule.induce_threshold:g}, as the rule asks.",
        ),
        "kl": (
            "KL",
            rule.kl_threshold,
            _score("kl"),
            "Change of the next token on harmless "
            "prompts under ablation, "
            f"nats, logarithmic. A dot: at most {rule.kl_threshold:g}, as the rule asks.",
        ),
    }
    grids = []
    for name, (title, limit, value, caption) in kept.items():
        passing = {
            "induce": lambda v: v >= rule.induce_threshold,
            "kl": lambda v: v <= rule.kl_threshold,
        }.get(name)
        grids.append(_grid(data, name, title, value, limit, passing, caption))
    return tuple(grids)


def _legend(data: ReportData) -> str:
    """What the signs in the map of outcomes stand for, with how many candidates have each."""
    found = [outcome(data, s) for s in data.scores]
    known = [
        (sign, outcome_words(data, key), found.count(key))
        for key, sign in SIGNS.items()
        if key in found
    ]
    return "; ".join(f"{sign} {words} ({n})".strip() for sign, words, n in known) + "."


def _score(name: str) -> Callable[[CandidateScore], float | None]:
    return lambda score: getattr(score, name)


def _grid(
    data: ReportData,
    name: str,
    title: str,
    value: Callable[[CandidateScore], float | None] | None,
    limit: float | None,
    passing: Callable[[float], bool] | None,
    caption: str,
) -> Grid:
    rows, columns = positions(data), tuple(sorted({s.layer for s in data.scores}))
    at = {(s.position, s.layer): s for s in data.scores}
    cells = [[at.get((p, layer)) for layer in columns] for p in rows]
    values = tuple(
        tuple(value(s) if s is not None and value is not None else None for s in row)
        for row in cells
    )
    marked = {
        (i, j)
        for i, row in enumerate(values)
        for j, v in enumerate(row)
        if v is not None and passing and passing(v)
    }
    letters = tuple(tuple(SIGNS[outcome(data, s)] if s else "" for s in row) for row in cells)
    return Grid(
        name=f"map-{name}",
        title=title,
        rows=tuple(position_label(data, p) for p in rows),
        columns=columns,
        values=values,
        letters=letters if value is None else (),
        marked=frozenset(marked),
        chosen=chosen_cell(data, rows, columns),
        log=name == "kl",
        limit=limit,
        caption=minus(caption),
    )


def outcome(data: ReportData, score: CandidateScore) -> str | None:
    """The key of ``SIGNS`` for a candidate."""
    chosen = data.selection.score if data.selection is not None else None
    if chosen is not None and (score.position, score.layer) == (chosen.position, chosen.layer):
        return "chosen"
    return score.rejected_because if score.rejected_because in SIGNS else None


def outcome_words(data: ReportData, key: str | None) -> str:
    """What became of a candidate."""
    rule = data.config.rule
    words = {
        "chosen": "chosen"
        if data.selection is not None and data.selection.qualified
        else "stands in, unqualified",
        "bypass": "bypass not the lowest, other scores not needed",
        "induce": f"induce below {rule.induce_threshold:g}",
        "kl": f"KL above {rule.kl_threshold:g}",
        "layer": f"layer {data.eligible} or later",
        "step": "layer left out",
        "nan": "not a number",
    }
    return words.get(key or "", "meets every limit, bypass not the lowest")


def positions(data: ReportData) -> tuple[int, ...]:
    """The post-instruction positions, the last token first."""
    return tuple(sorted({s.position for s in data.scores}, reverse=True))


def position_label(data: ReportData, position: int) -> str:
    """``-2 assistant``: the position and its token, where that is known."""
    if len(data.suffix) < -position:
        return f"{position}"
    text = data.suffix[position].replace("Ċ", "\\n").replace("Ġ", " ").replace("\n", "\\n")
    return f"{position} {visible(text.strip()) or repr(text)}"


def chosen_cell(
    data: ReportData, rows: Sequence[int], columns: Sequence[int]
) -> tuple[int, int] | None:
    """Where the chosen candidate is in a grid."""
    if data.selection is None:
        return None
    score = data.selection.score
    if score.position not in rows or score.layer not in columns:
        return None
    return rows.index(score.position), columns.index(score.layer)


def separation(data: ReportData) -> Iterator[Lines | Points]:
    """Projections through the layers with their AUROC, and the plane of the two largest
    components.
    """
    found = data.projections
    if found is None:
        return
    lines = []
    styles: tuple[Style, Style] = ("harmful", "harmless")
    for label in styles:
        by_layer = list(zip(*found.along[label], strict=True))
        deciles = [
            statistics.quantiles(values, n=10) if len(values) > 1 else [values[0]] * 9
            for values in by_layer
        ]
        lines.append(
            Line(
                f"{label} (n {len(found.along[label])})",
                tuple(map(float, range(len(by_layer)))),
                tuple(statistics.median(values) for values in by_layer),
                tuple(d[0] for d in deciles),
                tuple(d[-1] for d in deciles),
                label,
            )
        )
    yield Lines(
        "projections",
        minus(f"Projection on the direction, position {found.position}"),
        "layer",
        "component along the unit direction",
        tuple(lines),
        at=float(found.layer),
        caption=(
            "Lines are medians, bands the middle 80% of the prompts. The vertical line is the "
            "direction's layer."
        ),
    )
    layers = tuple(map(float, range(len(found.auroc))))
    yield Lines(
        "separation",
        "Separation of the two classes (AUROC)",
        "layer",
        "AUROC",
        (Line("AUROC", layers, tuple(found.auroc)),),
        at=float(found.layer),
        level=0.5,
        caption=(
            "The chance that a harmful prompt projects further than a harmless one; 0.5 is "
            "none, 1 is complete."
        ),
    )
    yield Points(
        "plane",
        minus(f"The two largest principal components at ({found.position}, {found.layer})"),
        f"component 1 ({found.explained[0]:.0%} of the variance)",
        f"component 2 ({found.explained[1]:.0%})",
        tuple((label, label, found.plane[label]) for label in styles),
        caption=(
            f"The direction's cosine with them is {found.cosines[0]:.2f} and "
            f"{found.cosines[1]:.2f}."
        ),
    )


def cosine_grids(data: ReportData) -> tuple[Grid, ...]:
    """How alike the candidates of neighbouring layers and positions are, and each with the chosen
    one.
    """
    if data.candidates is None:
        return ()
    vectors = data.candidates.vectors[::-1].astype(np.float64)  # the last position first
    with np.errstate(invalid="ignore"):  # NaN where both classes are the same: layer 0, as a rule
        unit = vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)
    n_positions, n_layers = unit.shape[:2]
    rows = tuple(range(-1, -n_positions - 1, -1))
    wanted = [
        (
            "cosine-layer",
            "With the next layer's, same position",
            (unit[:, :-1] * unit[:, 1:]).sum(-1),
            (0, 1),
        ),
        (
            "cosine-position",
            "With the next position's, same layer",
            (unit[1:] * unit[:-1]).sum(-1),
            (1, 0),
        ),
    ]
    if data.direction is not None and data.direction.shape == unit.shape[-1:]:
        with_chosen = unit @ data.direction.astype(np.float64)
        wanted.append(("cosine-chosen", "With the chosen direction", with_chosen, (0, 0)))
    return tuple(
        Grid(
            name=name,
            title=title,
            rows=tuple(position_label(data, p) for p in rows),
            columns=tuple(range(n_layers)),
            values=_filled(cosines, n_positions, n_layers, shift),
            chosen=chosen_cell(data, rows, range(n_layers)),
        )
        for name, title, cosines, shift in wanted
    )


def _filled(
    cosines: Float[np.ndarray, "row column"],
    n_positions: int,
    n_layers: int,
    shift: tuple[int, int],
) -> Values:
    """As rows of a whole grid; cells without a neighbour, and layers that were not read, have no
    value.
    """
    whole = np.full((n_positions, n_layers), np.nan)
    whole[shift[0] :, : n_layers - shift[1]] = cosines
    return tuple(tuple(None if v != v else v for v in row) for row in whole.tolist())
