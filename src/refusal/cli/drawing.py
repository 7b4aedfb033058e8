"""A table in the terminal."""

from typing import Literal

from rich import box
from rich.cells import cell_len
from rich.console import Group
from rich.table import Table as RichTable
from rich.text import Text

from refusal.core.tables import Bar, Table

LONGEST = 20  # characters of a name that is not broken


def drawn(table: Table) -> Group:
    """Return a table for the terminal: without bars, its title above and its note below."""
    bars = {i for row in table.rows for i, cell in enumerate(row) if isinstance(cell, Bar)}
    kept = table.keep([i not in bars for i in range(len(table.columns))])
    shown = RichTable(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for i, name in enumerate(kept.columns):
        number = name in kept.numeric
        justify: Literal["left", "right"] = "right" if number else "left"
        # Where it gets narrow numbers go over two lines, not the names of what they are of.
        whole = not number and all(cell_len(str(row[i])) <= LONGEST for row in kept.rows)
        shown.add_column(name, justify=justify, overflow="fold", no_wrap=whole)
    for row in kept.rows:
        shown.add_row(*map(str, row))
    below = [Text(table.note, style="dim"), Text("")] if table.note else []
    return Group(Text(table.title, style="italic"), shown, *below)
