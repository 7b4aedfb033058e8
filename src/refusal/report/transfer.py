"""The transfer table as the terminal, the page and the CSV files show it."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from refusal.core.records import Metric
from refusal.core.tables import Cell, Table, share, table
from refusal.core.text import sanitised
from refusal.evaluations.transfer.record import FILE, TransferCell, TransferTable, read_transfer

TITLE = "Transfer between contexts"
TEXT = (
    "A direction was found in each context (system prompt, earlier turns, language) and ablated "
    "in every context, on harmful test prompts that none was found with. Rows: where the direction "
    "is from; columns: where it is used. A random direction of each column stands for any other."
)


def transfer_of(folder: Path) -> tuple[Table, ...]:
    """The tables of a run folder; none where nothing was asked for.

    Raises:
        RunFolderError: ``transfer.json`` is damaged.
    """
    there = (folder / FILE).is_file()
    return tuple(transfer_tables(read_transfer(folder))) if there else ()


def transfer_tables(found: TransferTable) -> Iterator[Table]:
    """The contexts; then judged refusal, metric and cosine for every pair."""
    rows = []
    for one in found.contexts:
        place = "" if one.position is None else f"({one.position}, {one.layer})"
        state = one.why or ("" if one.qualified else "none qualifies: the closest one")
        tokens = ", ".join(map(repr, one.tokens)) + ("" if one.own_tokens else " (the run's)")
        about = (sanitised(one.system or ""), str(one.turns), sanitised(one.prompts))
        rows.append((one.name, *about, place, sanitised(state), sanitised(tokens), one.detector))
    labels = ("context", "system prompt", "turns", "prompts", "direction at", "remark")
    columns = (*labels, "refusal tokens", "detector")
    yield table("Contexts", columns, (), rows)
    n = min((cell.n for cell in found.cells), default=0)
    yield _pairs(found, "Refusal under ablation (judged, 95% Wilson interval)", _share, f"n = {n}.")
    yield _pairs(
        found,
        "Refusal metric under ablation (bypass; mean)",
        lambda cell: "" if cell.bypass is None else f"{cell.bypass:+.2f}",
        "Of each column's refusal tokens: below 0 the model is about to answer.",
    )
    yield _pairs(
        found,
        "Cosine of directions",
        lambda cell: "" if cell.cosine is None else f"{cell.cosine:+.2f}",
    )


def transfer_section(found: TransferTable) -> tuple[Any, ...]:
    """Id, title, text and tables of the page's section, as its fields are."""
    return "transfer", TITLE, TEXT, (), (), "", tuple(transfer_tables(found))


def transfer_rows(found: TransferTable | None) -> Table:
    """Every cell, unrounded, for CSV."""
    columns = ("found_in", "used_in", "bypass", "refusal_rate", "low", "high", "n", "cosine")
    rows: list[tuple[Cell, ...]] = []
    for c in found.cells if found is not None else ():
        rate = (c.refusal_rate, c.low, c.high, c.n)
        rows.append((c.row, c.column, c.bypass, *rate, c.cosine))
    return Table("transfer", columns, tuple(rows))


def _pairs(
    found: TransferTable, title: str, shown: Callable[[TransferCell], str], note: str = ""
) -> Table:
    """A row for each place where a direction is from, a column for each where it is used."""
    names = [context.name for context in found.contexts]
    rows = []
    for row in found.rows:
        cells = [found.cell(row, column) for column in names]
        texts = ["" if cell is None else shown(cell) for cell in cells]
        if any(texts):
            rows.append((row, *texts))
        elif any(context.name == row and context.why for context in found.contexts):
            rows.append((f"{row}: no direction", *texts))
    return table(title, ("found in",), names, rows, note=note)


def _share(c: TransferCell) -> str:
    """A judged rate with its interval."""
    return share(Metric("refusal_rate", c.column, c.row, c.refusal_rate, c.low, c.high, c.n))
