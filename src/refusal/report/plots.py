"""Lines, points and intervals as SVG, with axes; nothing is told by colour alone."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace

from markupsafe import Markup

from refusal.report.kinds import Intervals, Line, Lines, Points
from refusal.report.svg import element, image, interval_parts, line, short_number, text

WIDTH, HEIGHT = 640, 300  # of lines and points
LEFT, RIGHT, TOP, BOTTOM = 52, 132, 14, 44
ROW = 20  # of intervals
DASHES = ("", "7 3", "2 3", "9 3 2 3")  # of lines without a class of their own


def lines(figure: Lines) -> Markup:
    """Draw lines with bands; each is named at its end, so that no colour has to be looked up."""
    shown = tuple(_doubling(one) for one in figure.lines) if figure.doubling else figure.lines
    xs = [x for one in shown for x in one.x]
    ys = [y for one in figure.lines for y in (*one.y, *one.low, *one.high)]
    frame = _Frame(xs, ys if figure.level is None else [*ys, figure.level])
    whole = figure.doubling or all(x == int(x) for x in xs)
    parts = [frame.axes(figure.x_label, figure.y_label, whole=whole, doubling=figure.doubling)]
    if figure.level is not None:
        y = frame.y(figure.level)
        parts.append(line((LEFT, y), (WIDTH - RIGHT, y), "level"))
    if figure.at is not None:
        x = frame.x(figure.at)
        parts.append(line((x, TOP), (x, HEIGHT - BOTTOM), "level"))
    for k, one in enumerate(shown):
        if one.low:
            there, back = zip(one.x, one.low, strict=True), zip(one.x, one.high, strict=True)
            outline = frame.path([*there, *reversed([*back])])
            parts.append(element("path", d=outline + "z", class_=f"band {one.style}"))
        dashes = DASHES[k % len(DASHES)] if one.style == "plain" and k else None
        way = frame.path(zip(one.x, one.y, strict=True))
        parts.append(element("path", d=way, class_=f"line {one.style}", stroke_dasharray=dashes))
        if len(one.x) == 1:
            place = {"cx": frame.x(one.x[0]), "cy": frame.y(one.y[0]), "r": 3}
            parts.append(element("circle", **place, class_=f"dot {one.style}"))
    below = -math.inf
    for one in sorted(shown, key=lambda one: frame.y(one.y[-1])):
        below = max(frame.y(one.y[-1]) + 4, below + 15)
        parts.append(text(one.label, WIDTH - RIGHT + 8, below, class_=f"name {one.style}"))
    return _plot(parts, figure)


def _doubling(one: Line) -> Line:
    return replace(one, x=tuple(math.log2(x) for x in one.x))


def points(figure: Points) -> Markup:
    """Draw circles for harmful, triangles for harmless prompts."""
    every = [point for _, _, group in figure.groups for point in group]
    frame = _Frame([x for x, _ in every], [y for _, y in every])
    parts = [frame.axes(figure.x_label, figure.y_label, whole=False)]
    for k, (label, style, group) in enumerate(figure.groups):
        legend = (WIDTH - RIGHT + 16, TOP + 14 + 18 * k)
        for x, y in (*((frame.x(a), frame.y(b)) for a, b in group), legend):
            if style == "harmful":
                parts.append(element("circle", cx=x, cy=y, r=4, class_=f"point {style}"))
            else:
                way = f"M{x} {y - 5} l4.5 8 h-9 z"
                parts.append(element("path", d=way, class_=f"point {style}"))
        parts.append(text(label, legend[0] + 12, legend[1] + 4, class_=f"name {style}"))
    return _plot(parts, figure)


def intervals(figure: Intervals) -> Markup:
    """Draw shares with their intervals, a row each, on an axis from 0 to 100%."""
    left = 16 + round(6.2 * max(len(label) for label, _ in figure.rows))
    width, bottom = 300, TOP + ROW * len(figure.rows)
    axis: list[Markup] = []
    bars: list[Markup] = []
    for tick in range(0, 101, 20):
        x = left + width * tick / 100
        axis += [
            line((x, TOP), (x, bottom), "gridline"),
            text(f"{tick}%", x, bottom + 16, "middle"),
        ]
    for i, (label, bar) in enumerate(figure.rows):
        y = TOP + ROW * (i + 0.5)
        axis.append(text(label, left - 8, y + 4, "end"))
        bars += interval_parts(bar, left, width, y)
    axis.append(text("95% interval", left + width / 2, bottom + 34, "middle"))
    parts = [element("g", *axis, class_="axis"), *bars]
    return image(
        parts, left + width + 20, bottom + 42, class_="plot", role="img", aria_label=figure.title
    )


def _plot(parts: Sequence[Markup], figure: Lines | Points) -> Markup:
    said = f"{figure.title}. {figure.caption}"
    return image(parts, WIDTH, HEIGHT, class_="plot", role="img", aria_label=said)


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

    def axes(self, x_label: str, y_label: str, *, whole: bool, doubling: bool = False) -> Markup:
        right, bottom = WIDTH - RIGHT, HEIGHT - BOTTOM
        parts = [line((LEFT, bottom), (right, bottom), "frame")]
        for tick in ticks(*self.y_range):
            y = self.y(tick)
            parts.append(line((LEFT, y), (right, y), "gridline"))
            parts.append(text(short_number(tick), LEFT - 8, y + 4, "end"))
        for tick in ticks(*self.x_range, about=16 if doubling else 6):
            if not whole or tick == int(tick):
                label = short_number(2**tick if doubling else tick)
                parts.append(text(label, self.x(tick), bottom + 16, "middle"))
        parts.append(text(x_label, (LEFT + right) / 2, HEIGHT - 8, "middle"))
        turned = f"translate(12 {(bottom + TOP) / 2}) rotate(-90)"
        parts.append(element("text", y_label, transform=turned, text_anchor="middle"))
        return element("g", *parts, class_="axis")


def _range(values: Sequence[float], margin: float = 0.02) -> tuple[float, float]:
    low, high = (min(values), max(values)) if values else (0.0, 1.0)
    pad = (high - low) * margin or max(abs(low), 1.0) * 0.05
    return low - pad, high + pad


def ticks(low: float, high: float, about: int = 6) -> list[float]:
    """Return round numbers between ``low`` and ``high``."""
    rough = (high - low) / about
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * m for m in (1, 2, 5, 10) if power * m >= rough)
    return [round(k * step, 12) for k in range(math.ceil(low / step), math.floor(high / step) + 1)]
