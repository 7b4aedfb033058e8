"""The report's tables as CSV, with plain numbers: for a spreadsheet, for pandas, for LaTeX."""

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import asdict, fields

from refusal.core.records import CandidateScore, Metric, finite
from refusal.core.text import visible
from refusal.report.data import ReportData
from refusal.report.figures import cosine_grids
from refusal.report.rates import category_rows

NAMES = ("metrics", "scores", "stability", "categories", "projections", "cosines", "stages")

FORMULA = ("=", "+", "-", "@", "\t", "\n")  # what a cell begins with that a spreadsheet computes

STAGE_KEYS = (
    "seconds",
    "forward_tokens",
    "flops",
    "device_seconds",
    "cost",
    "needed_memory_bytes",
    "peak_memory_bytes",
)


def csv_tables(data: ReportData) -> dict[str, str]:
    """File contents by name (one of ``NAMES``), those that there is something in."""
    found = {
        "metrics": (_names(Metric), [_values(m) for m in data.metrics]),
        "scores": (_names(CandidateScore), [_values(s) for s in data.scores]),
        "stability": (("position", "layer", "share"), _winners(data)),
        "categories": (
            ("set", "category", "condition", "refusal_rate", "low", "high", "n"),
            _categories(data),
        ),
        "projections": (("layer", "auroc", "class", "prompt", "projection"), _projections(data)),
        "cosines": (
            ("position", "layer", *(grid.name for grid in cosine_grids(data))),
            _cosines(data),
        ),
        "stages": (
            ("stage", *STAGE_KEYS),
            _stages(data),
        ),
    }
    return {name: _csv(header, rows) for name, (header, rows) in found.items() if rows}


def _names(kind: type) -> tuple[str, ...]:
    return tuple(f.name for f in fields(kind))


def _values(record: Metric | CandidateScore) -> list[object]:
    return list(finite(asdict(record)).values())


def _winners(data: ReportData) -> list[list[object]]:
    stability = data.selection.stability if data.selection is not None else None
    return [] if stability is None else [[w.position, w.layer, w.share] for w in stability.winners]


def _categories(data: ReportData) -> list[list[object]]:
    return [
        [set_name, name, condition, m.value, m.low, m.high, m.n]
        for set_name, categories in data.categories.items()
        if categories
        for name, found in category_rows(data.completions, categories, set_name)
        for condition, m in found.items()
    ]


def _projections(data: ReportData) -> list[list[object]]:
    if data.projections is None:
        return []
    separation = data.projections.auroc
    return [
        [layer, separation[layer], label, i, value]
        for label, rows in data.projections.along.items()
        for i, row in enumerate(rows)
        for layer, value in enumerate(row)
    ]


def _cosines(data: ReportData) -> list[list[object]]:
    grids = cosine_grids(data)
    if not grids:
        return []
    rows, columns = len(grids[0].rows), len(grids[0].columns)
    return [
        [-i - 1, j, *(grid.values[i][j] for grid in grids)]
        for i in range(rows)
        for j in range(columns)
    ]


def _stages(data: ReportData) -> list[list[object]]:
    return [
        [name, *(stage.get(key) for key in STAGE_KEYS)]
        for name, stage in data.manifest["stages"].items()
    ]


def _csv(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows([_harmless(cell) for cell in row] for row in rows)
    return text.getvalue()


def _harmless(cell: object) -> object:
    """A text that a spreadsheet would take for a formula gets an apostrophe before it; numbers stay
    numbers.
    """
    if not isinstance(cell, str):
        return cell
    text = visible(cell)  # a carriage return alone would end the row
    return f"'{text}" if text.startswith(FORMULA) else text
