"""Lines and points as SVG for the page, with axes; every text escaped, nothing told by colour
alone.
"""

import math
from collections.abc import Iterable, Sequence

from markupsafe import Markup

from refusal.report.kinds import Lines, Points
from refusal.report.svg import element, short_number

WIDTH, HEIGHT = 640, 300  # of lines and points
LEFT, RIGHT, TOP, BOTTOM = 52, 132, 14, 44
DASHES = ("", "7 3", "2 3", "9 3 2 3")  # of lines without a class of their own


def lines(figure: Lines) -> Markup:
    """Lines with bands; each line is named at its end, so that no colour has to be looked up."""
    xs = [x for line in figure.lines for x in line.x]
    ys = [y for line in figure.lines for y in (*line.y, *line.low, *line.high)]
    frame = _Frame(xs, [*ys, *([figure.level] if figure.level is not None else [])])
    parts = [frame.axes(figure.x_label, figure.y_label, whole=all(x == int(x) for x in xs))]
    if figure.level is not None:
        parts.append(
            element(
                "line",
                x1=LEFT,
                x2=WIDTH - RIGHT,
                y1=frame.y(figure.level),
                y2=frame.y(figure.level),
                class_="level",
            )
        )
    if figure.at is not None:
        parts.append(
            element(
                "line",
                x1=frame.x(figure.at),
                x2=frame.x(figure.at),
                y1=TOP,
                y2=HEIGHT - BOTTOM,
                class_="level",
            )
        )
    names = []
    for k, line in enumerate(figure.lines):
        if line.low:
            outline = [
                *zip(line.x, line.low, strict=True),
                *reversed([*zip(line.x, line.high, strict=True)]),
            ]
            parts.append(element("path", d=frame.path(outline) + "z", class_=f"band {line.style}"))
        parts.append(
            element(
                "path",
                d=frame.path(zip(line.x, line.y, strict=True)),
                class_=f"line {line.style}",
                stroke_dasharray=DASHES[k % len(DASHES)] if line.style == "plain" and k else None,
            )
        )
        if len(line.x) == 1:
            parts.append(
                element(
                    "circle",
                    cx=frame.x(line.x[0]),
                    cy=frame.y(line.y[0]),
                    r=3,
                    class_=f"dot {line.style}",
                )
            )
        names.append((frame.y(line.y[-1]), line))
    below = -math.inf
    for y, line in sorted(names, key=lambda item: item[0]):
        below = max(y + 4, below + 15)
        parts.append(
            element(
                "text",
                line.label,
                x=WIDTH - RIGHT + 8,
                y=round(below, 1),
                class_=f"name {line.style}",
            )
        )
    return _plot(parts, f"{figure.title}. {figure.caption}")


def points(figure: Points) -> Markup:
    """Circles for harmful, triangles for harmless prompts."""
    every = [point for _, _, group in figure.groups for point in group]
    frame = _Frame([x for x, _ in every], [y for _, y in every])
    parts = [frame.axes(figure.x_label, figure.y_label, whole=False)]
    for k, (label, style, group) in enumerate(figure.groups):
        legend = (WIDTH - RIGHT + 16, TOP + 14 + 18 * k)
        for x, y in (*((frame.x(a), frame.y(b)) for a, b in group), legend):
            parts.append(
                element("circle", cx=x, cy=y, r=4, class_=f"point {style}")
                if style == "harmful"
                else element("path", d=f"M{x} {y - 5} l4.5 8 h-9 z", class_=f"point {style}")
            )
        parts.append(
            element("text", label, x=legend[0] + 12, y=legend[1] + 4, class_=f"name {style}")
        )
    return _plot(parts, f"{figure.title}. {figure.caption}")


def _plot(parts: Iterable[Markup], description: str) -> Markup:
    return element(
        "svg",
        *parts,
        viewBox=f"0 0 {WIDTH} {HEIGHT}",
        width=WIDTH,
        height=HEIGHT,
        class_="plot",
        role="img",
        aria_label=description,
    )


class _Frame:
    """The axes of a plot: from values to places, with round ticks."""

    def __init__(self, xs: Sequence[float], ys: Sequence[float]) -> None:
        self.x_range, self.y_range = _range(xs), _range(ys, 0.04)

    def x(self, value: float) -> float:
        low, high = self.x_range
        return round(LEFT + (WIDTH - LEFT - RIGHT) * (value - low) / (high - low), 1)

    def y(self, value: float) -> float:
        low, high = self.y_range
        return round(HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * (value - low) / (high - low), 1)

    def path(self, places: Iterable[tuple[float, float]]) -> str:
        return "M" + " L".join(f"{self.x(x)} {self.y(y)}" for x, y in places)

    def axes(self, x_label: str, y_label: str, *, whole: bool) -> Markup:
        parts = [
            element(
                "line",
                x1=LEFT,
                x2=WIDTH - RIGHT,
                y1=HEIGHT - BOTTOM,
                y2=HEIGHT - BOTTOM,
                class_="frame",
            )
        ]
        for tick in ticks(*self.y_range):
            parts.append(
                element(
                    "line",
                    x1=LEFT,
                    x2=WIDTH - RIGHT,
                    y1=self.y(tick),
                    y2=self.y(tick),
                    class_="gridline",
                )
            )
            parts.append(
                element(
                    "text", short_number(tick), x=LEFT - 8, y=self.y(tick) + 4, text_anchor="end"
                )
            )
        for tick in ticks(*self.x_range):
            if not whole or tick == int(tick):
                parts.append(
                    element(
                        "text",
                        short_number(tick),
                        x=self.x(tick),
                        y=HEIGHT - BOTTOM + 16,
                        text_anchor="middle",
                    )
                )
        middle = (LEFT + WIDTH - RIGHT) / 2
        parts.append(element("text", x_label, x=middle, y=HEIGHT - 8, text_anchor="middle"))
        parts.append(
            element(
                "text",
                y_label,
                transform=(f"translate(12 {(HEIGHT - BOTTOM + TOP) / 2}) rotate(-90)"),
                text_anchor="middle",
            )
        )
        return element("g", *parts, class_="axis")


def _range(values: Sequence[float], margin: float = 0.02) -> tuple[float, float]:
    low, high = (min(values), max(values)) if values else (0.0, 1.0)
    pad = (high - low) * margin or max(abs(low), 1.0) * 0.05
    return low - pad, high + pad


def ticks(low: float, high: float, about: int = 6) -> list[float]:
    """Round numbers between ``low`` and ``high``."""
    rough = (high - low) / about
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * m for m in (1, 2, 5, 10) if power * m >= rough)
    return [round(k * step, 12) for k in range(math.ceil(low / step), math.floor(high / step) + 1)]
