"""Bars and grids as SVG for the page: its style sheet's colours, every text escaped, cells that can
be pointed at.
"""

import math
from collections.abc import Sequence

from markupsafe import Markup, escape

from refusal.core.records import Metric
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
    """An element; attribute values and children that are not markup are escaped, ``_`` becomes
    ``-``.
    """
    given = {
        key.rstrip("_").replace("_", "-"): value
        for key, value in attributes.items()
        if value is not None
    }
    start = "".join(f' {key}="{escape(value)}"' for key, value in given.items())
    return Markup(f"<{name}{start}>{''.join(map(escape, children))}</{name}>")


def colour(share: float) -> str:
    """The colour at a share of the way from low to high."""
    place = min(max(share, 0.0), 1.0) * (len(CIVIDIS) - 1)
    i = min(int(place), len(CIVIDIS) - 2)
    low, high = (tuple(int(stop[k : k + 2], 16) for k in (1, 3, 5)) for stop in CIVIDIS[i : i + 2])
    return "#" + "".join(
        f"{round(a + (b - a) * (place - i)):02x}" for a, b in zip(low, high, strict=True)
    )


def interval_bar(m: Metric, style: str) -> Markup:
    """A share on an axis from 0 to 1 with its interval, for a table's cell; the numbers are in the
    next one.
    """
    width, middle = 150, 9

    def x(value: float) -> float:
        return round(4 + (width - 8) * min(max(value, 0.0), 1.0), 1)

    return element(
        "svg",
        element("line", x1=x(0.0), x2=x(1.0), y1=middle, y2=middle, class_="track"),
        *(
            element("line", x1=x(t), x2=x(t), y1=middle - 3, y2=middle + 3, class_="track")
            for t in (0.0, 0.5, 1.0)
        ),
        element("line", x1=x(m.low), x2=x(m.high), y1=middle, y2=middle, class_=f"whisker {style}"),
        element("circle", cx=x(m.value), cy=middle, r=4, class_=f"dot {style}"),
        viewBox=f"0 0 {width} {2 * middle}",
        width=width,
        height=2 * middle,
        class_="bar",
        aria_hidden="true",
        focusable="false",
    )


def grid(figure: Grid, labels: Sequence[Sequence[str]], *, tips: bool = False) -> Markup:
    """A grid whose cells can be pointed at, reached with the arrow keys and kept; ``labels`` are
    read out.

    Args:
        tips: also show a cell's label where the pointer is, for places without the page's script.
    """
    n = len(figure.columns)
    cell = min(max(720 // max(n, 1), 14), 26)
    left = 16 + round(6.6 * min(max(map(len, figure.rows), default=0), 18))
    scale = _Scale(figure)
    rows = [
        element(
            "g",
            *(_cell(figure, scale, i, j, cell, left, labels[i][j], tips) for j in range(n)),
            role="row",
        )
        for i in range(len(figure.rows))
    ]
    bottom = TOP + cell * len(figure.rows)
    every = next(step for step in (1, 2, 5, 10, 20) if n * 20 / step <= n * cell or step == 20)
    texts = [
        *(
            element(
                "text", _short(label), x=left - 6, y=TOP + cell * (i + 0.5) + 4, text_anchor="end"
            )
            for i, label in enumerate(figure.rows)
        ),
        *(
            element(
                "text", str(layer), x=left + cell * (j + 0.5), y=bottom + 15, text_anchor="middle"
            )
            for j, layer in enumerate(figure.columns)
            if layer % every == 0
        ),
        element("text", "layer", x=left, y=bottom + 32),
    ]
    width, height = left + max(cell * n + 8, 230), bottom + 38  # room for the colour bar
    bar = _colour_bar(scale, float(width), float(bottom + 24)) if scale.known else Markup("")
    return element(
        "svg",
        element("g", *texts, bar, aria_hidden="true", class_="axis"),
        element("g", *rows, role="grid", aria_label=f"{figure.title}, positions by layers"),
        *(_mark_chosen(figure, cell, left)),
        viewBox=f"0 0 {width} {height}",
        width=width,
        height=height,
        class_="map",
    )


def _cell(
    figure: Grid, scale: "_Scale", i: int, j: int, cell: int, left: int, label: str, tips: bool
) -> Markup:
    value, letter = figure.values[i][j], figure.letters[i][j] if figure.letters else ""
    x, y = left + cell * j, TOP + cell * i
    fill = colour(scale.share(value)) if value is not None else None
    kind = (
        "none"
        if value is None and not letter
        else f"outcome is-{'chosen' if letter == '★' else letter or 'open'}"
    )
    parts = [
        element(
            "rect",
            x=x + 0.5,
            y=y + 0.5,
            width=cell - 1,
            height=cell - 1,
            fill=fill,
            class_="value" if fill else kind,
        )
    ]
    if tips:
        parts.append(element("title", label))
    if letter:
        parts.append(
            element(
                "text",
                letter,
                x=x + cell / 2,
                y=y + cell / 2 + 4,
                text_anchor="middle",
                class_="letter",
            )
        )
    if (i, j) in figure.marked:
        light = scale.share(value or 0.0) < 0.55
        parts.append(
            element(
                "circle",
                cx=x + cell / 2,
                cy=y + cell / 2,
                r=2.4,
                class_="pass-light" if light else "pass-dark",
            )
        )
    first = (i, j) == (figure.chosen or (0, 0))
    return element(
        "g",
        *parts,
        role="gridcell",
        tabindex="0" if first else "-1",
        class_="cell",
        data_at=f"{i},{j}",
        aria_label=label,
    )


def _mark_chosen(figure: Grid, cell: int, left: int) -> list[Markup]:
    """A double ring that stands out from every colour."""
    if figure.chosen is None:
        return []
    i, j = figure.chosen
    box = {"x": left + cell * j, "y": TOP + cell * i, "width": cell, "height": cell, "fill": "none"}
    return [
        element(
            "g",
            element("rect", **box, class_="ring-out"),
            element("rect", **box, class_="ring-in"),
            aria_hidden="true",
            pointer_events="none",
        )
    ]


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

    def end(self, which: str) -> str:
        value = self.low if which == "low" else self.high
        return short_number(10**value if self.log else value)


def _colour_bar(scale: _Scale, right: float, y: float) -> Markup:
    """The range of the colours and, in it, the rule's limit."""
    width, steps = 120, 30
    x = right - width - 46
    parts = [
        element(
            "rect",
            x=round(x + width * k / steps, 1),
            y=y,
            width=width / steps + 0.3,
            height=8,
            fill=colour((k + 0.5) / steps),
        )
        for k in range(steps)
    ]
    if scale.limit is not None and 0 <= scale.share(scale.limit) <= 1:
        at = round(x + width * scale.share(scale.limit), 1)
        parts.append(element("path", d=f"M{at} {y - 1} l-4 -6 h8 z", class_="limit"))
    ends = (
        element("text", scale.end("low"), x=x - 5, y=y + 8, text_anchor="end"),
        element("text", scale.end("high"), x=x + width + 5, y=y + 8),
    )
    return element("g", *parts, *ends)


def short_number(value: float) -> str:
    """Three significant digits with a real minus sign."""
    return f"{value:.3g}".replace("-", "−") if value else "0"


def _short(label: str) -> str:
    return (label if len(label) <= 18 else label[:17] + "…").replace("-", "−", 1)
