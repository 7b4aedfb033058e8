"""What the report draws, as data; four kinds (kinds.py) are enough."""

import statistics
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from refusal.core.records import CandidateScore
from refusal.core.tables import Bar, Style, minus
from refusal.core.text import sanitised
from refusal.directions import METHODS
from refusal.report.data import ReportData
from refusal.report.kinds import Figure, Grid, Intervals, Line, Lines, Points, Values
from refusal.report.lengths import length_figures, read_curves
from refusal.report.tables import style_of, tables_by_section
from refusal.report.thoughts import thought_figures

LOWEST = ("false-refusal",)  # methods whose score is best where it is lowest
# What stands in the map of outcomes for each, the chosen candidate first.
SIGNS = {
    "chosen": "★",
    "bypass": "b",
    "induce": "i",
    "kl": "k",
    "refusal": "r",
    "layer": "l",
    "step": "s",
    "nan": "n",
    None: "·",
}


def figures(data: ReportData) -> tuple[Figure, ...]:
    """All that there is something to draw of."""
    found: list[Figure] = [*rate_intervals(data), *curves(data), *score_grids(data)]
    return (*found, *separation(data), *cosine_grids(data))


def rate_intervals(data: ReportData) -> Iterator[Intervals]:
    """The tables of refusal rates, their bars below one another."""
    rows = []
    for table in tables_by_section(data.metrics)["rates"]:
        for row in table.rows:
            rows += [(f"{row[0]}, {row[1]}", cell) for cell in row if isinstance(cell, Bar)]
    if rows:
        yield Intervals("refusal-rates", "Share of completions that refuse", tuple(rows))


def curves(data: ReportData) -> Iterator[Lines]:
    """Refusal against length, a figure for each set."""
    for set_name in dict.fromkeys(name for name, _ in read_curves(data.metrics)):
        yield from length_figures(data.metrics, style_of(set_name), set_name)


def score_grid(
    scores: Sequence[CandidateScore], name: str, chosen: CandidateScore | None, **more: Any
) -> Grid:
    """One of the scores of every candidate; without a score of that ``name``, no values."""
    rows = sorted({s.position for s in scores}, reverse=True)
    columns = sorted({s.layer for s in scores})
    at = {(s.position, s.layer): s.by_name.get(name) for s in scores}
    values = tuple(tuple(at.get((p, layer)) for layer in columns) for p in rows)
    filled = {"rows": tuple(map(str, rows)), "title": name, "log": name == "kl", **more}
    place = _cell(chosen, rows, columns)
    return Grid(name=f"map-{name}", columns=tuple(columns), values=values, chosen=place, **filled)


OWN = "The method's own score: of those inside the limits the highest is chosen."


def score_grids(data: ReportData) -> tuple[Grid, ...]:
    """The outcome of every candidate, and its three scores."""
    if not data.scores:
        return ()
    rule = data.rule
    at = {(s.position, s.layer): SIGNS[outcome(data, s)] for s in data.scores}
    layers = sorted({s.layer for s in data.scores})
    signs = tuple(tuple(at.get((p, layer), "") for layer in layers) for p in positions(data))
    return (
        _map(data, "outcome", "Outcome", _legend(data), letters=signs),
        _map(
            data,
            "bypass",
            "Bypass",
            "Mean log-odds of refusal on harmful prompts under ablation: lower is better. No "
            "limit: the lowest that meets the others is chosen.",
        ),
        _map(
            data,
            "induce",
            "Induce",
            "Mean log-odds of refusal on harmless prompts under addition. A dot: at least "
            f"{rule.induce_threshold:g}, as the rule asks.",
            limit=rule.induce_threshold,
            passing=lambda value: value >= rule.induce_threshold,
        ),
        _map(
            data,
            "kl",
            "KL",
            "Change of the next token on harmless prompts under ablation, nats, logarithmic. A "
            f"dot: at most {rule.kl_threshold:g}, as the rule asks.",
            limit=rule.kl_threshold,
            passing=lambda value: value <= rule.kl_threshold,
        ),
        *(_map(data, name, name, OWN) for name in own_scores(data)),
    )


def own_scores(data: ReportData) -> tuple[str, ...]:
    """Name the scores that only the run's method has."""
    names = dict.fromkeys(name for score in data.scores for name in score.more)
    return tuple(name for name in names if name in METHODS)


def _map(
    data: ReportData,
    name: str,
    title: str,
    caption: str,
    *,
    passing: Callable[[float], bool] = lambda value: False,
    **more: Any,
) -> Grid:
    """A score's grid with the positions' tokens; a dot where the value is ``passing``."""
    at = {(s.position, s.layer): s.by_name.get(name) for s in data.scores}
    layers = sorted({s.layer for s in data.scores})
    marked = set()
    for i, position in enumerate(positions(data)):
        for j, layer in enumerate(layers):
            value = at.get((position, layer))
            if value is not None and passing(value):
                marked.add((i, j))
    rows = tuple(position_label(data, p) for p in positions(data))
    chosen = data.selection.score if data.selection is not None else None
    more |= {"title": title, "caption": minus(caption), "rows": rows, "marked": frozenset(marked)}
    return score_grid(data.scores, name, chosen, **more)


def _legend(data: ReportData) -> str:
    """What the signs in the map of outcomes stand for, with how many candidates have each."""
    found = [outcome(data, s) for s in data.scores]
    words = []
    for key, sign in SIGNS.items():
        if key in found:
            words.append(f"{sign} {outcome_words(data, key)} ({found.count(key)})")
    return "; ".join(words) + "."


def outcome(data: ReportData, score: CandidateScore) -> str | None:
    """The key of ``SIGNS`` for a candidate."""
    chosen = data.selection.score if data.selection is not None else None
    if chosen is not None and (score.position, score.layer) == (chosen.position, chosen.layer):
        return "chosen"
    return score.rejected_because if score.rejected_because in SIGNS else None


def outcome_words(data: ReportData, key: str | None) -> str:
    """What became of a candidate."""
    rule = data.rule
    qualified = data.selection is not None and data.selection.qualified
    words = {
        "chosen": "chosen" if qualified else "stands in, unqualified",
        "bypass": "bypass not the lowest, other scores not needed",
        "induce": f"induce below {rule.induce_threshold:g}",
        "kl": f"KL above {rule.kl_threshold:g}",
        "refusal": "loses refusals of harmful prompts",
        "layer": f"layer {data.eligible} or later",
        "step": "layer left out",
        "nan": "not a number",
    }
    own = own_scores(data)
    other = "meets every limit, bypass not the lowest"
    if own:
        other = f"{own[0]} score not the {'lowest' if own[0] in LOWEST else 'highest'}"
    return words.get(key or "", other)


def positions(data: ReportData) -> tuple[int, ...]:
    """The post-instruction positions, the last token first."""
    return tuple(sorted({s.position for s in data.scores}, reverse=True))


def position_label(data: ReportData, position: int) -> str:
    """``-2 assistant``: the position and its token, where that is known."""
    if len(data.suffix) < -position:
        return f"{position}"
    text = data.suffix[position].replace("Ċ", "\\n").replace("Ġ", " ").replace("\n", "\\n")
    return f"{position} {sanitised(text.strip()) or repr(text)}"


def _cell(
    score: CandidateScore | None, rows: Sequence[int], columns: Sequence[int]
) -> tuple[int, int] | None:
    """Where a candidate is in a grid."""
    if score is None or score.position not in rows or score.layer not in columns:
        return None
    return rows.index(score.position), columns.index(score.layer)


def separation(data: ReportData) -> Iterator[Lines | Points]:
    """Projections through the layers, their AUROC, the plane of the two largest components; then
    those along thoughts.
    """
    found = data.projections
    if found is None:
        return
    styles: tuple[Style, Style] = ("harmful", "harmless")
    yield Lines(
        "projections",
        minus(f"Projection on the direction, position {found.position}"),
        "layer",
        "component along the unit direction",
        tuple(_deciles(label, found.along[label]) for label in styles),
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
    yield from thought_figures(data.metrics)


def _deciles(label: Style, prompts: Sequence[Sequence[float]]) -> Line:
    """The median of the prompts' projections at each layer, with the first and the last decile."""
    by_layer = list(zip(*prompts, strict=True))
    cuts = [statistics.quantiles(v, n=10) if len(v) > 1 else [v[0]] * 9 for v in by_layer]
    return Line(
        f"{label} (n {len(prompts)})",
        tuple(map(float, range(len(by_layer)))),
        tuple(statistics.median(values) for values in by_layer),
        tuple(cut[0] for cut in cuts),
        tuple(cut[-1] for cut in cuts),
        label,
    )


def cosine_grids(data: ReportData) -> tuple[Grid, ...]:
    """How alike neighbouring candidates are, and each with the chosen direction."""
    if data.candidates is None:
        return ()
    vectors = data.candidates.vectors[::-1].astype(np.float64)  # the last position first
    with np.errstate(invalid="ignore"):  # NaN where both classes are the same: layer 0, as a rule
        unit = vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)
    rows = range(-1, -unit.shape[0] - 1, -1)
    of_layers, of_positions = (unit[:, :-1] * unit[:, 1:]).sum(-1), (unit[1:] * unit[:-1]).sum(-1)
    wanted = {
        "cosine-layer": ("With the next layer's, same position", of_layers, (0, 1)),
        "cosine-position": ("With the next position's, same layer", of_positions, (1, 0)),
    }
    if data.direction is not None and data.direction.shape == unit.shape[-1:]:
        with_chosen = unit @ data.direction.astype(np.float64)
        wanted["cosine-chosen"] = ("With the chosen direction", with_chosen, (0, 0))
    labels = tuple(position_label(data, p) for p in rows)
    layers = range(unit.shape[1])
    chosen = _cell(data.selection.score if data.selection is not None else None, rows, layers)
    grids = []
    for name, (title, cosines, shift) in wanted.items():
        values = _filled(cosines, *shift)
        grids.append(Grid(name, title, labels, tuple(layers), values, chosen=chosen))
    return tuple(grids)


def _filled(cosines: Float[np.ndarray, "position layer"], down: int, right: int) -> Values:
    """Rows of a whole grid: ``None`` for the first ``down`` rows and the last ``right`` columns,
    which have no neighbour, and for layers that were not read.
    """
    width = cosines.shape[1] + right
    empty: list[tuple[float | None, ...]] = [(None,) * width] * down
    rows = ([None if v != v else v for v in row] + [None] * right for row in cosines.tolist())
    return (*empty, *map(tuple, rows))
