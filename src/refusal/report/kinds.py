"""The kinds of figure, as data: a grid over layer and position, lines, points in a plane, intervals
in rows.
"""

from dataclasses import dataclass

from refusal.core.tables import Bar, Style

Values = tuple[tuple[float | None, ...], ...]


@dataclass(frozen=True)
class Grid:
    """Values over position and layer.

    Attributes:
        rows: labels of the positions, ``columns`` the layers; ``values[row][column]``, ``None``
            where there is none.
        letters: drawn into the cells, so that nothing rests on colour; ``marked`` cells get a dot.
        chosen: (row, column) of the chosen candidate.
        log: colours by the logarithm. ``limit`` is drawn into the colour bar.
    """

    name: str
    title: str
    rows: tuple[str, ...]
    columns: tuple[int, ...]
    values: Values
    letters: tuple[tuple[str, ...], ...] = ()
    marked: frozenset[tuple[int, int]] = frozenset()
    chosen: tuple[int, int] | None = None
    log: bool = False
    limit: float | None = None
    caption: str = ""


@dataclass(frozen=True)
class Line:
    """One line over layers, with a band from ``low`` to ``high`` where those are given."""

    label: str
    x: tuple[float, ...]
    y: tuple[float, ...]
    low: tuple[float, ...] = ()
    high: tuple[float, ...] = ()
    style: Style = "plain"


@dataclass(frozen=True)
class Lines:
    """Lines on the same axes; ``at`` is marked by a vertical line, ``level`` by a horizontal
    one. ``doubling``: x is drawn by its logarithm to base 2.
    """

    name: str
    title: str
    x_label: str
    y_label: str
    lines: tuple[Line, ...]
    at: float | None = None
    level: float | None = None
    caption: str = ""
    doubling: bool = False


@dataclass(frozen=True)
class Points:
    """Groups of points in a plane."""

    name: str
    title: str
    x_label: str
    y_label: str
    groups: tuple[tuple[str, Style, tuple[tuple[float, float], ...]], ...]
    caption: str = ""


@dataclass(frozen=True)
class Intervals:
    """Shares with their intervals, a row each under its name."""

    name: str
    title: str
    rows: tuple[tuple[str, Bar], ...]


Figure = Grid | Lines | Points | Intervals
