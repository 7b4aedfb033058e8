"""Records as a notebook shows them: a selection with its score maps, results with their tables.

Every text is escaped; nothing needs a script.
"""

from collections.abc import Sequence

from markupsafe import Markup

from refusal.core.direction import Direction
from refusal.core.frames import drawn_by
from refusal.core.records import CandidateScore, Evaluation, Metric
from refusal.core.tables import minus
from refusal.core.text import sanitised
from refusal.directions.records import Candidates, Selection
from refusal.report import svg
from refusal.report.compare import Comparison
from refusal.report.compare_page import comparison_tables, run_table
from refusal.report.figures import score_grid
from refusal.report.page import table_html
from refusal.report.tables import all_tables
from refusal.runs.result import RunResult

NAMELESS = "a model without a name"
STYLE = Markup("""<style>
.refusal { --line: color-mix(in srgb, currentColor 22%, transparent); font-size: 13px; }
.refusal table { border-collapse: collapse; margin: .3em 0 1em;
  font-variant-numeric: tabular-nums; }
.refusal caption { text-align: left; font-weight: 600; padding-bottom: .2em; }
.refusal th, .refusal td { text-align: left; padding: .15em .9em .15em 0;
  border-bottom: 1px solid var(--line); }
.refusal .number { text-align: right; }
.refusal figure { margin: 0; } .refusal figcaption { max-width: 60em; margin-bottom: 1em; }
.refusal svg .track { stroke: var(--line); }
.refusal svg .whisker { stroke: currentColor; stroke-width: 2; }
.refusal svg .dot { fill: currentColor; }
.refusal svg { display: block; } .refusal svg text { font-size: 11px; fill: currentColor; }
.refusal svg .none { fill: none; stroke: var(--line); }
.refusal svg .pass-light { fill: #fff; } .refusal svg .pass-dark { fill: #000; }
.refusal svg .ring-out { stroke: currentColor; stroke-width: 3; }
.refusal svg .ring-in { stroke: #fff; stroke-width: 1; }
</style>""")


def selection_html(selection: Selection) -> str:
    """The choice in a line, and a map of each score; a cell's numbers show where the pointer is."""
    s = selection.score
    words = (
        f"Direction at ({s.position}, {s.layer})"
        if selection.qualified
        else (f"No candidate qualifies; ({s.position}, {s.layer}) stands in")
    )
    line = (
        f"{words}: {_scores(s)}. Norm {selection.direction.norm:.3g}, model "
        f"{selection.direction.model or 'not named'}."
    )
    maps = MAPS | {name: f"{name}: the method's own score" for name in s.more}
    return _page(_line(line), *(_map(selection, name, title) for name, title in maps.items()))


MAPS = {
    "bypass": "Bypass: log-odds of refusal on harmful prompts under ablation, lower is better",
    "induce": "Induce: log-odds of refusal on harmless prompts under addition, must be high enough",
    "kl": "KL: change of the next token on harmless prompts under ablation, must be low",
}


def metrics_html(metrics: Sequence[Metric], *lines: str) -> str:
    """The tables that the terminal shows."""
    return _page(*map(_line, lines), *map(table_html, all_tables(metrics)))


def result_html(result: RunResult) -> str:
    """A run's choice and its tables."""
    where = f"Run folder {result.folder}, with report.html."
    chosen = selection_html(result.selection) if result.selection is not None else ""
    return chosen + metrics_html(result.metrics, where)


def direction_html(direction: Direction) -> str:
    """Where a direction is from, in a line."""
    where = (
        f"Direction at ({direction.position}, {direction.layer}) of {direction.model or NAMELESS}"
    )
    flag = "" if direction.qualified else ", unqualified"
    return _page(
        _line(
            f"{where}: unit vector of width {len(direction.vector)}, norm "
            f"{direction.norm:.3g}{flag}."
        )
    )


def candidates_html(candidates: Candidates) -> str:
    """How many there are, in a line."""
    size = (
        f"{candidates.n_positions} positions, {candidates.n_layers} layers, width "
        f"{candidates.vectors.shape[2]}"
    )
    return _page(_line(f"Candidates of {candidates.model or NAMELESS}: {size}."))


def comparison_html(found: Comparison) -> str:
    """Which runs are compared, and a table for each measure."""
    return _page(*map(table_html, (run_table(found), *comparison_tables(found))))


def _map(selection: Selection, name: str, title: str) -> Markup:
    figure = score_grid(selection.scores, name, selection.score, title=title)
    at = {(str(s.position), s.layer): _label(s) for s in selection.scores}
    labels = [[at.get((row, layer), "") for layer in figure.columns] for row in figure.rows]
    return Markup("<div><b>{}</b>{}</div>").format(title, svg.grid(figure, labels, tips=True))


def _label(s: CandidateScore) -> str:
    out = f"; rejected by {s.rejected_because}" if s.rejected_because else ""
    return minus(f"({s.position}, {s.layer}): {_scores(s)}{out}")


def _scores(s: CandidateScore) -> str:
    forms = [("bypass", s.bypass, "+.2f"), ("induce", s.induce, "+.2f"), ("KL", s.kl, ".3f")]
    forms += [(name, value, "+.3f") for name, value in s.more.items()]
    return (
        ", ".join(f"{name} {value:{form}}" for name, value, form in forms if value is not None)
        or "not scored"
    )


def _line(text: str) -> Markup:
    return Markup("<p>{}</p>").format(minus(sanitised(text)))


def _page(*parts: Markup) -> str:
    return str(Markup('<div class="refusal">{}{}</div>').format(STYLE, Markup("").join(parts)))


drawn_by(Selection, selection_html)
drawn_by(Direction, direction_html)
drawn_by(Candidates, candidates_html)
drawn_by(Evaluation, lambda evaluation: metrics_html(evaluation.metrics))
drawn_by(RunResult, result_html)
drawn_by(Comparison, comparison_html)
