"""A table as a record: built once from numbers, shown by the terminal, the page and a notebook.

``Found`` is what tables are built from: the metrics of a run by name, set and condition. A share of
fewer than 30 prompts shows its interval first: that is the result, and the share only its middle.
"""

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from refusal.core.records import Metric

FEW = 30
Style = Literal["harmful", "harmless", "plain"]


@dataclass(frozen=True)
class Bar:
    """A value with its interval on an axis from 0 to 1, to be drawn; a terminal leaves it out."""

    value: float
    low: float
    high: float
    style: Style = "plain"


Cell = str | float | None | Bar  # numbers, and nothing, for CSV: elsewhere they are written out


@dataclass(frozen=True)
class Table:
    """Rows of cells under a title.

    Attributes:
        numeric: names of the columns that are set to the right.
        note: what one must know to read it.
        grouped: rows with one first cell belong together: a page shows it once.
        detail: for the page only.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    numeric: frozenset[str] = frozenset()
    note: str = ""
    grouped: bool = False
    detail: bool = False

    def keep(self, wanted: Sequence[bool]) -> "Table":
        """Return the table with those of its columns that are ``wanted``."""
        rows = (tuple(c for c, w in zip(row, wanted, strict=True) if w) for row in self.rows)
        columns = tuple(c for c, w in zip(self.columns, wanted, strict=True) if w)
        return replace(self, columns=columns, rows=tuple(rows))

    def repeated(self, i: int) -> int:
        """Count the first cells of row ``i`` that only repeat the row above; 0 where ungrouped."""
        if not self.grouped or i == 0:
            return 0
        pairs = zip(self.rows[i], self.rows[i - 1], strict=True)
        return next((k for k, (cell, above) in enumerate(pairs) if cell != above), 0)


def table(
    title: str,
    labels: Sequence[str],
    numbers: Sequence[str],
    rows: Iterable[Sequence[Cell]],
    *,
    note: str = "",
    grouped: bool = False,
    detail: bool = False,
) -> Table:
    """Build a table of ``labels``, then ``numbers``; a column without anything in it is left out.

    Each row has a cell for every label and every number.
    """
    columns, found = (*labels, *numbers), tuple(tuple(row) for row in rows)
    filled = [[row[i] for row in found if row[i] != ""] for i in range(len(columns))]
    drawn = {
        c for c, cells in zip(columns, filled, strict=True) if cells and isinstance(cells[0], Bar)
    }
    made = Table(title, columns, found, frozenset(numbers) - drawn, note, grouped, detail)
    return made.keep([bool(cells) for cells in filled])


class Found:
    """Metrics by name, set and condition; it keeps in mind which names were looked at."""

    def __init__(self, metrics: "Sequence[Metric]") -> None:
        self.by_key = {(m.name, m.set, m.condition): m for m in metrics}
        self._looked_at: set[str] = set()

    def get(self, name: str, set_name: str, condition: str) -> "Metric | None":
        """Return that metric, if it is there."""
        self._looked_at.add(name)
        return self.by_key.get((name, set_name, condition))

    def named(self, pattern: str) -> "list[Metric]":
        """Return all whose whole name the regular expression ``pattern`` matches."""
        found = [m for m in self.by_key.values() if re.fullmatch(pattern, m.name)]
        self._looked_at.update(m.name for m in found)
        return found

    def rest(self) -> "list[Metric]":
        """Return those whose name nobody has looked at."""
        return [m for m in self.by_key.values() if m.name not in self._looked_at]


def bar(m: "Metric", style: Style = "plain", scale: float = 1.0) -> Bar:
    """Draw a metric on an axis from 0 to ``scale``."""
    return Bar(m.value / scale, m.low / scale, m.high / scale, style)


def is_share(metrics: "Iterable[Metric | None]") -> bool:
    """Tell whether metrics are all shares: between 0 and 1, their intervals too."""
    return all(m is None or 0 <= m.low <= m.high <= 1 for m in metrics)


def share(m: "Metric | None") -> str:
    """Write a share and its interval, the interval first where the prompts are few."""
    if m is None:
        return ""
    return _ordered(m, f"{m.value:.0%}", f"{100 * m.low:.0f}–{100 * m.high:.0f}")


def points(m: "Metric | None") -> str:
    """Write a change of a share and its interval, in percentage points."""
    if m is None:
        return ""
    return signed(replace(m, value=100 * m.value, low=100 * m.low, high=100 * m.high), ".0f")


def signed(m: "Metric | None", form: str) -> str:
    """Write a change and its interval, where it has one."""
    if m is None or math.isinf(m.low):
        return "" if m is None else f"{m.value:+{form}}"
    return _ordered(m, f"{m.value:+{form}}", f"{m.low:+{form}} to {m.high:+{form}}")


def number(m: "Metric | None", digits: int = 2) -> str:
    """Write a mean and its interval, where it has one."""
    if m is None or math.isinf(m.low):
        return "" if m is None else f"{m.value:.{digits}f}"
    return _ordered(m, f"{m.value:.{digits}f}", f"{m.low:.{digits}f}–{m.high:.{digits}f}")


def p_value(m: "Metric | None") -> str:
    """Write the p-value of a change, where a test was made."""
    return "" if m is None or m.p_value is None else f"{m.p_value:.2g}"


def percent(m: "Metric | None") -> str:
    """Write a share without its interval."""
    return "" if m is None else f"{m.value:.0%}"


def _ordered(m: "Metric", value: str, interval: str) -> str:
    return f"{interval} ({value})" if m.n < FEW else f"{value} ({interval})"


def minus(text: str) -> str:
    """Put real minus signs before numbers."""
    return re.sub(r"(?<![\w-])-(?=[\d.])", "−", text)
