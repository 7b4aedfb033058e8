"""Several runs on one page: every measure with all runs on the same axis, and what is paired."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from markupsafe import Markup

from refusal.core.records import Metric
from refusal.core.storage import check_page, write_text
from refusal.core.text import visible
from refusal.evaluations.capability.rates import PREFIX
from refusal.report import plots, svg
from refusal.report.compare import ComparedRow, Comparison, compare
from refusal.report.content import PageTable
from refusal.report.data import ReportData, read_run
from refusal.report.kinds import Line, Lines
from refusal.report.page import render
from refusal.report.tables import number, points, share
from refusal.report.words import minus


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
        runs=_runs(found),
        pictures=((depth.title, depth.caption, plots.lines(depth)),) if depth.lines else (),
        tables=tuple(_tables(found)),
        note="Intervals are at 95%. A change is from run 1, in points, on the prompts that both "
        "runs share, paired; p is McNemar's exact one. Where nothing is shared, there is no change "
        "to give.",
    )


def _runs(found: Comparison) -> PageTable:
    columns = ("run", "folder", "model", "prompts", "seed", "direction", "cosine with run 1")
    rows = [
        (
            str(i),
            visible(run.folder),
            visible(run.model),
            visible(run.prompts),
            str(run.seed),
            minus(f"({run.position}, {run.layer})") + ("" if run.qualified else " UNQUALIFIED"),
            "" if cosine is None else minus(f"{cosine:.2f}"),
        )
        for i, (run, cosine) in enumerate(zip(found.runs, found.cosines, strict=True), start=1)
    ]
    return PageTable("Runs", columns, tuple(rows), frozenset({4, 6}))


def _tables(found: Comparison) -> Iterator[PageTable]:
    """A table for each name of a measure, its sets and conditions below one another."""
    for name in dict.fromkeys(row.name for row in found.rows):
        rows = [row for row in found.rows if row.name == name]
        shares = name.endswith(
            ("_rate", "_score", "_corrected", "sensitivity", "specificity")
        ) or all(_share_like(m) for row in rows for m in row.values)
        widest = max(
            (m.high for row in rows for m in row.values if m is not None and m.high < float("inf")),
            default=1.0,
        )
        scale = 1.0 if shares else max(widest, 1e-9)
        lines = tuple(line for row in rows for line in _lines(row, shares, scale))
        axis = "0 to 100%" if shares else f"0 to {svg.short_number(scale)}"
        columns = ("prompts", "condition", "run", axis, "value", "change", "p", "n")
        title = name.removeprefix(PREFIX).replace("_", " ").replace(",", ", ")
        yield PageTable(title, columns, lines, frozenset(range(4, 8)), grouped=True)


def _lines(row: ComparedRow, shares: bool, scale: float) -> Iterator[tuple[str | Markup, ...]]:
    first = True
    for i, (m, change) in enumerate(zip(row.values, row.changes, strict=True), start=1):
        if m is None:
            continue
        drawn = Metric(
            m.name, m.set, m.condition, m.value / scale, m.low / scale, m.high / scale, m.n
        )
        p = "" if change is None or change.p_value is None else f"{change.p_value:.2g}"
        value = share(m) if shares else number(m)
        where = (row.set, row.condition) if first else ("", "")
        yield (
            *where,
            str(i),
            svg.interval_bar(drawn, "plain"),
            minus(value),
            minus(points(change)),
            p,
            str(m.n),
        )
        first = False


def _share_like(m: Metric | None) -> bool:
    return m is None or 0 <= m.low <= m.high <= 1


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
