"""How the terminal shows an audit, and audits, runs or checkpoints side by side."""

from collections.abc import Callable
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from refusal.cli.console import err, out
from refusal.cli.drawing import drawn

if TYPE_CHECKING:
    from refusal.evaluations.audit.result import Audited
    from refusal.evaluations.diff.result import Diffed
    from refusal.report.audit_compare import AuditComparison
    from refusal.report.compare import Comparison


def show_audit(found: "Audited") -> None:
    """The attacks and the numbers as tables, what qualifies them, and the verdict."""
    from refusal.report.audit_tables import attack_table, cost_table, number_table

    for table in (attack_table(found), cost_table(found), number_table(found)):
        out.print(drawn(table))
    for line in found.notes:
        err.print(f"  {line}")
    out.print(found.verdict, style="bold", soft_wrap=True)


def show_audits(found: "AuditComparison") -> None:
    """Which audits, and a table for the numbers and each set."""
    from refusal.report.audit_compare import comparison_tables

    for table in comparison_tables(found):
        out.print(drawn(table))


def show_comparison(found: "Comparison") -> None:
    """Which runs, and a table for each measure."""
    from refusal.report.compare_page import NOTE, comparison_tables, run_table

    for table in (run_table(found), *comparison_tables(found)):
        out.print(drawn(table))
    err.print(NOTE, soft_wrap=True)


def show_diff(found: "Diffed") -> None:
    """The candidates in one table, what was not compared, refusal by length."""
    from refusal.report.diff_tables import diff_tables

    for table in diff_tables(found):
        if not table.detail:
            out.print(drawn(table))


COMPARED_VIEWS: dict[str, tuple[Callable[[Any], None], Callable[[Any], Any]]] = {
    "Comparison": (show_comparison, asdict),
    "Diffed": (show_diff, asdict),
    "Audited": (show_audit, asdict),
    "AuditComparison": (show_audits, asdict),
}
