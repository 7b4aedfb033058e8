"""Write the report of a run: the page, its figures as files and its tables as CSV."""

from collections.abc import Sequence
from pathlib import Path

from refusal.core.storage import check_page, remove, write_text
from refusal.report.csv_tables import NAMES, csv_tables
from refusal.report.data import ReportData, read_run
from refusal.report.draw import FORMATS, check_formats, write_figure
from refusal.report.figures import figures
from refusal.report.page import report_page

# Names of our figures; a method may have scores, and so maps, of its own.
DRAWN = ("refusal-rates", "map-*", "projections", "separation", "plane", "cosine-*")


def write_report(
    run: str | Path,
    *,
    out: str | Path | None = None,
    show_completions: bool = False,
    formats: Sequence[str] = ("svg",),
) -> Path:
    """Write ``report.html``, ``figures/`` and ``tables/`` into a run folder.

    An unfinished run gets a report too: it says what is missing and which command goes on. Returns
    the page's path.

    Args:
        out: another place for the page.
        show_completions: also put the completions of harmful prompts into the page.
        formats: of the figures: svg, png, pdf; others (none) are left out.

    Raises:
        ConfigError: png and pdf need the package of ``refusal[figures]``.
        RunFolderError: no run folder, one of another format, or a damaged file in it.
        ExportError: ``out`` is something else than a page of this program.
        StorageError: something could not be written.
    """
    folder = Path(run)
    check_formats(formats)
    if out is not None:
        check_page(Path(out))
    data = read_run(folder)
    page = Path(out) if out is not None else folder / "report.html"
    write_text(page, report_page(data, show_completions=show_completions))
    _write_tables(data)
    _write_figures(data, formats)
    return page


def _write_tables(data: ReportData) -> None:
    """What there is nothing of any more does not stay either; other people's files do."""
    tables = csv_tables(data)
    for name in NAMES:
        path = data.path / "tables" / f"{name}.csv"
        if name in tables:
            write_text(path, tables[name])
        else:
            remove(path)


def _write_figures(data: ReportData, formats: Sequence[str]) -> None:
    """Write all figures in those formats; those of ours that are drawn no more go."""
    folder = data.path / "figures"
    drawn = figures(data)
    names = {figure.name for figure in drawn}
    for pattern in DRAWN:
        for form in FORMATS:
            for path in folder.glob(f"{pattern}.{form}"):
                if path.stem not in names:
                    remove(path)
    for figure in drawn:
        for form in FORMATS:
            if form in formats:
                write_figure(figure, folder / f"{figure.name}.{form}")
