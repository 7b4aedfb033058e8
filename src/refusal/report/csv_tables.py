"""The report's numbers as CSV, unrounded: for a spreadsheet, for pandas, for LaTeX."""

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import asdict, fields

from refusal.core.records import Metric, finite
from refusal.core.text import visible
from refusal.report.data import ReportData
from refusal.report.figures import cosine_grids
from refusal.report.run_tables import category_rates

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
Rows = list[Sequence[object]]


def csv_tables(data: ReportData) -> dict[str, str]:
    """File contents by name (one of ``NAMES``), those that there is something in."""
    grids = cosine_grids(data)
    stability = data.selection.stability if data.selection is not None else None
    winners = stability.winners if stability is not None else ()
    categories = ("set", "category", "condition", "refusal_rate", "low", "high", "n")
    stages = data.manifest["stages"].items()
    found: dict[str, tuple[Sequence[str], Rows]] = {
        "metrics": (_names(Metric), [_values(m) for m in data.metrics]),
        "scores": _scores(data),
        "stability": (
            ("position", "layer", "share"),
            [(w.position, w.layer, w.share) for w in winners],
        ),
        "categories": (categories, _categories(data)),
        "projections": (("layer", "auroc", "class", "prompt", "projection"), _projections(data)),
        "cosines": (("position", "layer", *(grid.name for grid in grids)), _cosines(data)),
        "stages": (
            ("stage", *STAGE_KEYS),
            [(name, *(stage.get(key) for key in STAGE_KEYS)) for name, stage in stages],
        ),
    }
    return {name: to_csv(header, rows) for name, (header, rows) in found.items() if rows}


def _names(kind: type) -> tuple[str, ...]:
    return tuple(f.name for f in fields(kind))


def _values(record: Metric) -> list[object]:
    return list(finite(asdict(record)).values())


def _scores(data: ReportData) -> tuple[Sequence[str], Rows]:
    rows = [finite(score.to_row()) for score in data.scores]
    columns = list(dict.fromkeys(name for row in rows for name in row))
    return columns, [[row.get(name) for name in columns] for row in rows]


def _categories(data: ReportData) -> Rows:
    rows: Rows = []
    for set_name in data.categories:
        for name, rates in category_rates(data, set_name):
            for condition, m in rates.items():
                rows.append((set_name, name, condition, m.value, m.low, m.high, m.n))
    return rows


def _projections(data: ReportData) -> Rows:
    if data.projections is None:
        return []
    rows: Rows = []
    for label, prompts in data.projections.along.items():
        for i, prompt in enumerate(prompts):
            for layer, value in enumerate(prompt):
                rows.append((layer, data.projections.auroc[layer], label, i, value))
    return rows


def _cosines(data: ReportData) -> Rows:
    grids = cosine_grids(data)
    rows: Rows = []
    for i, line in enumerate(grids[0].values if grids else ()):
        for j in range(len(line)):
            rows.append((-i - 1, j, *(grid.values[i][j] for grid in grids)))
    return rows


def to_csv(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Write rows as CSV; no text of them is a formula."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows([_harmless(cell) for cell in row] for row in rows)
    return text.getvalue()


def _harmless(cell: object) -> object:
    """Put an apostrophe before a text that a spreadsheet would compute; numbers stay numbers."""
    if not isinstance(cell, str):
        return cell
    text = visible(cell)  # a carriage return alone would end the row
    return f"'{text}" if text.startswith(FORMULA) else text
