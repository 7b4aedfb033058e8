"""The report's numbers as CSV, unrounded: for a spreadsheet, for pandas, for LaTeX."""

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from refusal.core.records import Metric, finite
from refusal.core.storage import write_text
from refusal.core.tables import Table
from refusal.core.text import sanitised
from refusal.report.data import ReportData
from refusal.report.figures import cosine_grids
from refusal.report.finders import finder_rows
from refusal.report.lengths import read_curves
from refusal.report.run_tables import category_rates
from refusal.report.transfer import transfer_rows

NAMES = (
    *("metrics", "scores", "stability", "lengths", "categories"),
    *("projections", "cosines", "transfer", "stages", "finders"),
)

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
    scores = [finite(score.to_row()) for score in data.scores]
    stability = data.selection.stability if data.selection is not None else None
    stages = data.manifest["stages"].items()
    made = (
        metric_rows("metrics", data.metrics),
        _records("scores", scores),
        _records("stability", [asdict(w) for w in stability.winners] if stability else []),
        _lengths(data),
        _categories(data),
        _projections(data),
        _cosines(data),
        _records("finders", finder_rows(data.metrics)),
        transfer_rows(data.transfer),
        _records(
            "stages", [{"stage": name} | {k: s.get(k) for k in STAGE_KEYS} for name, s in stages]
        ),
    )
    return {table.title: to_csv(table) for table in made if table.rows}


def write_tables(folder: Path, tables: Iterable[Table]) -> None:
    """Write each as ``tables/<title>.csv``.

    Raises:
        StorageError: a file cannot be written.
    """
    for table in tables:
        write_text(folder / "tables" / f"{table.title}.csv", to_csv(table))


def metric_rows(title: str, metrics: Iterable[Metric]) -> Table:
    """A row for each metric, unrounded; what is infinite is empty."""
    return _records(title, [finite(asdict(m)) for m in metrics])


def _records(title: str, records: Sequence[Mapping[str, Any]]) -> Table:
    """A row for each record, a column for each of their fields."""
    columns = tuple(dict.fromkeys(name for record in records for name in record))
    rows = tuple(tuple(record.get(name) for name in columns) for record in records)
    return Table(title, columns, rows)


def _lengths(data: ReportData) -> Table:
    rows = []
    for (set_name, condition), curve in read_curves(data.metrics).items():
        for length, m in curve.items():
            rows.append((set_name, condition, length, m.value, m.low, m.high, m.n))
    columns = ("set", "condition", "tokens", "refusal_rate", "low", "high", "n")
    return Table("lengths", columns, tuple(rows))


def _categories(data: ReportData) -> Table:
    rows = []
    for set_name in data.categories:
        for name, rates in category_rates(data, set_name):
            for condition, m in rates.items():
                rows.append((set_name, name, condition, m.value, m.low, m.high, m.n))
    columns = ("set", "category", "condition", "refusal_rate", "low", "high", "n")
    return Table("categories", columns, tuple(rows))


def _projections(data: ReportData) -> Table:
    rows = []
    auroc = data.projections.auroc if data.projections is not None else []
    for label, prompts in data.projections.along.items() if data.projections is not None else ():
        for i, prompt in enumerate(prompts):
            for layer, value in enumerate(prompt):
                rows.append((layer, auroc[layer], label, i, value))
    columns = ("layer", "auroc", "class", "prompt", "projection")
    return Table("projections", columns, tuple(rows))


def _cosines(data: ReportData) -> Table:
    grids = cosine_grids(data)
    rows = []
    for i, line in enumerate(grids[0].values if grids else ()):
        for j in range(len(line)):
            rows.append((-i - 1, j, *(grid.values[i][j] for grid in grids)))
    return Table("cosines", ("position", "layer", *(grid.name for grid in grids)), tuple(rows))


def to_csv(table: Table) -> str:
    """Write a table as CSV, its numbers unrounded; no text of it is a formula."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(table.columns)
    writer.writerows([_harmless(cell) for cell in row] for row in table.rows)
    return text.getvalue()


def _harmless(cell: object) -> object:
    """Put an apostrophe before a text that a spreadsheet would compute; numbers stay numbers."""
    if not isinstance(cell, str):
        return cell
    text = sanitised(cell)  # a carriage return alone would end the row
    return f"'{text}" if text.startswith(FORMULA) else text
