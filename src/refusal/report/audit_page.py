"""An audit as files: one page, its tables as CSV."""

from pathlib import Path

from refusal.core.storage import check_page, write_text
from refusal.evaluations.audit.result import Audited
from refusal.report.audit_tables import audit_tables, removability
from refusal.report.csv_tables import metric_rows, write_tables
from refusal.report.draw import captioned
from refusal.report.page import render

PAGE = "audit.html"


def write_audit_page(found: Audited) -> Path:
    """Write the page and ``tables/`` into the audit's folder; returns the page.

    Raises:
        ExportError: there is another file of the page's name.
        StorageError: a file cannot be written.
    """
    folder = Path(found.folder)
    check_page(folder / PAGE)
    numbers = {"summary": found.summary, "metrics": found.metrics}
    write_tables(folder, (metric_rows(title, rows) for title, rows in numbers.items()))
    write_text(folder / PAGE, audit_page(found))
    return folder / PAGE


def audit_page(found: Audited) -> str:
    """The page of an audit."""
    return render(
        "audit.html.j2",
        title=f"Audit: {found.model}",
        found=found,
        tables=tuple(audit_tables(found)),
        pictures=captioned(removability(found)),
        tried=tuple(_tried(found)),
    )


def _tried(found: Audited) -> list[str]:
    """What is said of the searches."""
    said = []
    for record in found.attacks:
        steps = []
        for t in record.trials:
            bypass, kl = t.validated.bypass, t.validated.kl
            if bypass is not None and kl is not None:
                steps.append(f"{t.label} (log-odds {bypass:.2f}, KL {kl:.3f})")
        if record.chosen is not None and (steps or record.note):
            said.append(f"{record.name}: {'; '.join((*steps, *filter(None, [record.note])))}.")
    return said
