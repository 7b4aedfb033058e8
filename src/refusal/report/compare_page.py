"""Several runs on one page: every measure with all runs on the same axis, and what is paired."""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path

from refusal.core.storage import check_page, write_text
from refusal.core.tables import (
    Bar,
    Table,
    bar,
    is_share,
    number,
    p_value,
    points,
    share,
    table,
)
from refusal.evaluations.capability.rates import PREFIX
from refusal.report import plots
from refusal.report.compare import ComparedRow, Comparison, compare
from refusal.report.data import ReportData, read_run
from refusal.report.kinds import Line, Lines
from refusal.report.page import render
from refusal.report.svg import short_number
from refusal.report.tables import is_rate

NOTE = (
    "Intervals are at 95%. A change is from run 1, in points, on the prompts that both runs share, "
    "paired; p is McNemar's exact one. Where nothing is shared, there is no change to give."
)


def write_comparison(folders: Sequence[str | Path], out: str | Path) -> Path:
    """Write the comparison of finished runs with the first of them as one HTML file.

    Raises:
        RunFolderError: fewer than two folders, or one that holds no finished run.
        ExportError: ``out`` is something else than a page of this program.
        StorageError: the file could not be written.
    """
    check_page(Path(out))
    found = compare(folders)
    write_text(Path(out), comparison_page(found, [read_run(Path(folder)) for folder in folders]))
    return Path(out)


def comparison_page(found: Comparison, runs: Sequence[ReportData]) -> str:
    """The page of a comparison; ``runs`` are its runs, in order."""
    depth = _depth(runs)
    return render(
        "compare.html.j2",
        title=f"Refusal: {len(runs)} runs compared",
        heading=f"{len(runs)} runs compared",
        runs=run_table(found),
        pictures=((depth.title, depth.caption, plots.lines(depth)),) if depth.lines else (),
        tables=tuple(comparison_tables(found)),
        note=NOTE,
    )


def run_table(found: Comparison) -> Table:
    """Which runs are compared."""
    rows = []
    for i, (run, cosine) in enumerate(zip(found.runs, found.cosines, strict=True), start=1):
        where = f"({run.position}, {run.layer})" + ("" if run.qualified else " UNQUALIFIED")
        about = (str(i), run.folder, run.model, run.prompts, str(run.seed), where)
        rows.append((*about, "" if cosine is None else f"{cosine:.2f}"))
    columns = ("run", "folder", "model", "prompts", "seed", "direction", "cosine with run 1")
    return Table("Runs", columns, tuple(rows), frozenset({"seed", "cosine with run 1"}))


def comparison_tables(found: Comparison) -> Iterator[Table]:
    """A table for each name of a measure, its sets and conditions below one another."""
    for name in dict.fromkeys(row.name for row in found.rows):
        rows = [row for row in found.rows if row.name == name]
        ends = [m.high for row in rows for m in row.values if m is not None and m.high < math.inf]
        shares = is_rate(name) and all(is_share(row.values) for row in rows)
        scale = 1.0 if shares else max([*ends, 1e-9])
        axis = "0 to 100%" if shares else f"0 to {short_number(scale)}"
        lines = [line for row in rows for line in _lines(row, shares, scale)]
        title = name.removeprefix(PREFIX).replace("_", " ").replace(",", ", ")
        labels, numbers = ("prompts", "condition", "run"), (axis, "value", "change", "p", "n")
        yield table(title, labels, numbers, lines, grouped=True)


def _lines(row: ComparedRow, shares: bool, scale: float) -> Iterator[tuple[str | Bar, ...]]:
    for i, (m, change) in enumerate(zip(row.values, row.changes, strict=True), start=1):
        if m is not None:
            value = share(m) if shares else number(m)
            paired = (points(change), p_value(change), str(m.n))
            yield (row.set, row.condition, str(i), bar(m, scale=scale), value, *paired)


def _depth(runs: Sequence[ReportData]) -> Lines:
    """Separation by relative depth, so that models of different sizes share the axis."""
    lines = []
    for i, run in enumerate(runs, start=1):
        if run.projections is not None:
            values = run.projections.auroc
            x = tuple(layer / max(len(values) - 1, 1) for layer in range(len(values)))
            lines.append(Line(f"run {i}", x, tuple(values)))
    return Lines(
        "depth",
        "Separation of harmful and harmless prompts by depth (AUROC)",
        "layer, as a share of the depth",
        "AUROC",
        tuple(lines),
        level=0.5,
        caption="Validation prompts projected on each run's own direction, at its position.",
    )
