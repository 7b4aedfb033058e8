"""How the terminal shows what was found in weights."""

from collections.abc import Callable
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from rich.text import Text

from refusal.cli.console import err, out
from refusal.cli.drawing import drawn

if TYPE_CHECKING:
    from refusal.audits.forensics.records import Forensics
    from refusal.audits.forensics.repair import Repaired

STYLES = {"edited by projection": "bold red", "unchanged": "bold green"}


def show_forensics(found: "Forensics") -> None:
    """The verdict, what the edit resembles, the layers, and what cannot be said."""
    from refusal.core.tables import minus
    from refusal.report.forensics_page import beside, forensics_tables

    for each in forensics_tables(found):
        err.print(drawn(each))
    for line in found.cannot:
        err.print(f"  {line}")
    err.print()
    for line in (*found.recipe, *found.notes):
        out.print(f"  {minus(line)}")
    words = (found.verdict, STYLES.get(found.verdict, "bold"))
    out.print(Text.assemble(f"{found.candidate}: ", words, f" ({beside(found)})"), soft_wrap=True)


def forensics_value(found: "Forensics") -> dict[str, Any]:
    """The record as JSON."""
    return asdict(found)


def show_repaired(done: "Repaired") -> None:
    """What was put back, what could not be, and where it is."""
    err.print(f"Put back in {done.tensors} tensors of {done.layers} layers.")
    for line in done.lost:
        err.print(f"  {line}")
    out.print(f"Repaired: {done.path}", soft_wrap=True)


def repaired_value(done: "Repaired") -> dict[str, Any]:
    """The record as JSON."""
    return {**asdict(done), "path": str(done.path)}


# By the name of a record's class: how it is shown, and its JSON.
WEIGHT_VIEWS: dict[str, tuple[Callable[[Any], None], Callable[[Any], Any]]] = {
    "Forensics": (show_forensics, forensics_value),
    "Repaired": (show_repaired, repaired_value),
}
