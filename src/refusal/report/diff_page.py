"""A comparison of checkpoints as files: one page, its tables as CSV."""

from dataclasses import asdict
from pathlib import Path

from refusal.core.records import finite
from refusal.core.storage import check_page, write_text
from refusal.core.tables import Table
from refusal.evaluations.diff.result import Diffed
from refusal.report.csv_tables import to_csv
from refusal.report.diff_tables import diff_tables, stream_figures, stream_rows
from refusal.report.draw import draw
from refusal.report.page import render

PAGE = "diff.html"


def write_diff_page(found: Diffed) -> Path:
    """Write the page and ``tables/`` into the folder of a comparison; returns the page.

    Raises:
        ExportError: there is another file of the page's name.
        StorageError: a file cannot be written.
    """
    folder = Path(found.folder)
    check_page(folder / PAGE)
    summary = [m for one in found.candidates for m in one.summary]
    metrics = [*found.metrics, *(m for one in found.candidates for m in one.metrics)]
    for title, some in (("summary", summary), ("metrics", metrics)):
        records = [finite(asdict(row)) for row in some]
        columns = tuple(records[0]) if records else ()
        cells = tuple(tuple(record.values()) for record in records)
        write_text(folder / "tables" / f"{title}.csv", to_csv(Table(title, columns, cells)))
    write_text(folder / "tables" / "stream.csv", to_csv(stream_rows(found)))
    write_text(folder / PAGE, diff_page(found))
    return folder / PAGE


def diff_page(found: Diffed) -> str:
    """The page of a comparison."""
    return render(
        "diff.html.j2",
        title=f"Compared with {found.base}",
        found=found,
        tables=tuple(diff_tables(found)),
        pictures=[(f.title, f.caption, draw(f)) for f in stream_figures(found)],
    )
