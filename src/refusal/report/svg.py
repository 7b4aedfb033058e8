"""Bars and grids as SVG: the style sheet's colours, texts escaped, cells to be pointed at."""

import math
from collections.abc import Sequence

from markupsafe import Markup, escape

from refusal.core.tables import Bar
from refusal.report.kinds import Grid

# Nine stops of cividis, which people with any colour vision read in the same order.
CIVIDIS = (
    "#00224e",
    "#123570",
    "#3b496c",
    "#575d6d",
    "#707173",
    "#8a8678",
    "#a59c74",
    "#c3b369",
    "#e1cc55",
    "#fee838",
)
TOP = 14  # of grids


def element(name: str, *children: str | Markup, **attributes: object) -> Markup:
    """Make an element; texts are escaped, ``_`` in names becomes ``-``, ``None`` is left out."""
    given = []
    for key, value in attributes.items():
        if value is not None:
            given.append(f' {key.rstrip("_").replace("_", "-")}="{escape(value)}"')
    start = "".join(given)
    return Markup(f"<{name}{start}>{''.join(map(escape, children))}</{name}>")


def line(start: tuple[float, float], end: tuple[float, float], class_: str) -> Markup:
    """Draw a straight line."""
    return element("line", x1=start[0], y1=start[1], x2=end[0], y2=end[1], class_=class_)


def text(words: str, x: float, y: float, anchor: str | None = None, **more: object) -> Markup:
    """Write words that begin at ``x``, or have it as their ``middle`` or ``end``."""
    return element("text", words, x=round(x, 1), y=round(y, 1), text_anchor=anchor, **more)


def image(parts: Sequence[Markup], width: float, height: float, **attributes: object) -> Markup:
    """Put a drawing together."""
    size = {"viewBox": f"0 0 {width} {height}", "width": width, "height": height}
    return element("svg", *parts, **size, **attributes)


def colour(share: float) -> str:
    """Return the colour at a share of the way from low to high."""
    place = min(max(share, 0.0), 1.0) * (len(CIVIDIS) - 1)
    i = min(int(place), len(CIVIDIS) - 2)
    low, high = (tuple(int(stop[k : k + 2], 16) for k in (1, 3, 5)) for stop in CIVIDIS[i : i + 2])
    mixed = (round(a + (b - a) * (place - i)) for a, b in zip(low, high, strict=True))
    return "#" + "".join(f"{part:02x}" for part in mixed)


def interval_parts(bar: Bar, left: float, width: float, y: float) -> tuple[Markup, Markup]:
    """Draw the interval and the value of a bar whose axis begins at ``left``."""

    def x(value: float) -> float:
        return round(left + width * min(max(value, 0.0), 1.0), 1)

    whisker = line((x(bar.low), y), (x(bar.high), y), f"whisker {bar.style}")
    return whisker, element("circle", cx=x(bar.value), cy=y, r=4, class_=f"dot {bar.style}")


def interval_bar(bar: Bar) -> Markup:
    """Draw a bar for a table's cell; the numbers are in the next one."""
    left, width, y = 4, 142, 9
    track = [line((left, y), (left + width, y), "track")]
    for x in (left, left + width / 2, left + width):
        track.append(line((x, y - 3), (x, y + 3), "track"))
    parts = [*track, *interval_parts(bar, left, width, y)]
    return image(parts, 150, 18, class_="bar", aria_hidden="true", focusable="false")


def grid(figure: Grid, labels: Sequence[Sequence[str]], *, tips: bool = False) -> Markup:
    """Draw a grid whose cells can be pointed at, reached with the arrow keys and kept.

    Args:
        labels: what is read out for each cell.
        tips: also show a cell's label where the pointer is, for places without the page's script.
    """
    n = len(figure.columns)
    cell = min(max(720 // max(n, 1), 14), 26)
    left = 16 + round(6.6 * min(max(map(len, figure.rows), default=0), 18))
    scale = _Scale(figure)
    bottom = TOP + cell * len(figure.rows)
    width, height = left + max(cell * n + 8, 264), bottom + 38  # room for the colour bar
    every = next(step for step in (1, 2, 5, 10, 20) if n * 20 / step <= n * cell or step == 20)
    axis = [text("layer", left, bottom + 32)]
    for i, label in enumerate(figure.rows):
        axis.append(text(_short(label), left - 6, TOP + cell * (i + 0.5) + 4, "end"))
    for j, layer in enumerate(figure.columns):
        if layer % every == 0:
            axis.append(text(str(layer), left + cell * (j + 0.5), bottom + 15, "middle"))
    if scale.known:
        axis.append(_colour_bar(scale, width, bottom + 24))
    rows = []
    for i in range(len(figure.rows)):
        cells = []
        for j in range(n):
            box = (left + cell * j, TOP + cell * i, cell)
            cells.append(_cell(figure, scale, (i, j), box, labels[i][j], tips))
        rows.append(element("g", *cells, role="row"))
    parts = [
        element("g", *axis, aria_hidden="true", class_="axis"),
        element("g", *rows, role="grid", aria_label=f"{figure.title}, positions by layers"),
    ]
    if figure.chosen is not None:  # a double ring that stands out from every colour
        x, y = left + cell * figure.chosen[1], TOP + cell * figure.chosen[0]
        place = {"x": x, "y": y, "width": cell, "height": cell, "fill": "none"}
        rings = [element("rect", **place, class_=ring) for ring in ("ring-out", "ring-in")]
        parts.append(element("g", *rings, aria_hidden="true", pointer_events="none"))
    return image(parts, width, height, class_="map")


def _cell(
    figure: Grid,
    scale: "_Scale",
    at: tuple[int, int],
    box: tuple[int, int, int],
    label: str,
    tips: bool,
) -> Markup:
    """Draw the cell ``at`` (row, column) in ``box`` (x, y, size)."""
    (i, j), (x, y, size) = at, box
    value, letter = figure.values[i][j], figure.letters[i][j] if figure.letters else ""
    kind, fill, middle = "value", None, {"cx": x + size / 2, "cy": y + size / 2}
    if value is not None:
        fill = colour(scale.share(value))
    elif letter:
        kind = f"outcome is-{'chosen' if letter == '★' else letter}"
    else:
        kind = "none"
    place = {"x": x + 0.5, "y": y + 0.5, "width": size - 1, "height": size - 1}
    parts = [element("rect", **place, fill=fill, class_=kind)]
    if tips:
        parts.append(element("title", label))
    if letter:
        parts.append(text(letter, x + size / 2, y + size / 2 + 4, "middle", class_="letter"))
    if at in figure.marked:
        light = scale.share(value or 0.0) < 0.55
        parts.append(
            element("circle", **middle, r=2.4, class_=f"pass-{'light' if light else 'dark'}")
        )
    return element(
        "g",
        *parts,
        role="gridcell",
        tabindex="0" if at == (figure.chosen or (0, 0)) else "-1",
        class_="cell",
        data_at=f"{i},{j}",
        aria_label=label,
    )


class _Scale:
    """From a value to a share of the colour range."""

    def __init__(self, figure: Grid) -> None:
        self.log, self.limit = figure.log, figure.limit
        known = [self._map(v) for row in figure.values for v in row if v is not None]
        self.known = bool(known)
        self.low, self.high = (min(known), max(known)) if known else (0.0, 1.0)

    def _map(self, value: float) -> float:
        return math.log10(max(value, 1e-4)) if self.log else value

    def share(self, value: float) -> float:
        width = self.high - self.low
        return (self._map(value) - self.low) / width if width else 0.5

    def ends(self) -> tuple[str, str]:
        low, high = (10**v if self.log else v for v in (self.low, self.high))
        return short_number(low), short_number(high)


def _colour_bar(scale: _Scale, right: float, y: float) -> Markup:
    """Draw the range of the colours and, in it, the rule's limit."""
    width, steps = 120, 30
    x = right - width - 46
    parts = []
    for k in range(steps):
        place = {"x": round(x + width * k / steps, 1), "y": y, "width": width / steps + 0.3}
        parts.append(element("rect", **place, height=8, fill=colour((k + 0.5) / steps)))
    if scale.limit is not None and 0 <= scale.share(scale.limit) <= 1:
        at = round(x + width * scale.share(scale.limit), 1)
        parts.append(element("path", d=f"M{at} {y - 1} l-4 -6 h8 z", class_="limit"))
    low, high = scale.ends()
    return element("g", *parts, text(low, x - 5, y + 8, "end"), text(high, x + width + 5, y + 8))


def short_number(value: float) -> str:
    """Write three significant digits with a real minus sign."""
    return f"{value:.3g}".replace("-", "−") if value else "0"


def _short(label: str) -> str:
    return (label if len(label) <= 18 else label[:17] + "…").replace("-", "−", 1)
