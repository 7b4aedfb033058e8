"""A comparison of checkpoints as files: one page, its tables as CSV."""

from pathlib import Path

from refusal.core.storage import check_page, write_text
from refusal.evaluations.diff.result import Diffed
from refusal.report.csv_tables import metric_rows, write_tables
from refusal.report.diff_tables import diff_tables, stream_figures, stream_rows
from refusal.report.draw import captioned
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
    numbers = (metric_rows("summary", summary), metric_rows("metrics", metrics))
    write_tables(folder, (*numbers, stream_rows(found)))
    write_text(folder / PAGE, diff_page(found))
    return folder / PAGE


def diff_page(found: Diffed) -> str:
    """The page of a comparison."""
    return render(
        "diff.html.j2",
        title=f"Compared with {found.base}",
        found=found,
        tables=tuple(diff_tables(found)),
        pictures=captioned(stream_figures(found)),
    )
