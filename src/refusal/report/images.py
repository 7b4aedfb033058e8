"""Figures as files, through matplotlib: for a paper, in black on white."""

from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure as Canvas

from refusal.core.storage import write_through
from refusal.report.kinds import Figure, Grid, Intervals, Lines, Points

COLOURS = {"harmful": "#a63a14", "harmless": "#1a5a9e", "plain": "#1c1e21"}
STYLE: Any = {
    "font.size": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 9,
    "legend.frameon": False,
    "svg.hashsalt": "refusal",  # the same figure always as the same bytes
    "pdf.fonttype": 42,
    "text.parse_math": False,  # a token of the model may be a dollar sign
}


def write_figure(figure: Figure, path: Path) -> None:
    """Write one figure in the format that the path's ending names: svg, png or pdf."""
    with mpl.rc_context(STYLE):
        width, height = _size(figure)
        canvas = Canvas(figsize=(width, height), layout="constrained")
        axes = canvas.add_subplot()
        axes.set_title(figure.title, loc="left")
        _draw(figure, axes)
        kind = path.suffix.removeprefix(".")
        dated = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}.get(kind)
        write_through(path, lambda name: canvas.savefig(name, format=kind, dpi=200, metadata=dated))


def _draw(figure: Figure, axes: Axes) -> None:
    match figure:
        case Grid():
            _grid(figure, axes)
        case Lines():
            _lines(figure, axes)
        case Points():
            _points(figure, axes)
        case Intervals():
            _intervals(figure, axes)


def _size(figure: Figure) -> tuple[float, float]:
    if isinstance(figure, Grid):
        return max(3.5, 0.22 * len(figure.columns) + 1.8), 0.22 * len(figure.rows) + 1.1
    if isinstance(figure, Intervals):
        return 5.5, 0.2 * len(figure.rows) + 0.8
    return 5.0, 2.8


def _grid(figure: Grid, axes: Axes) -> None:
    values = np.array(
        [[np.nan if v is None else v for v in row] for row in figure.values], dtype=float
    )
    known = values[~np.isnan(values)]
    axes.set_facecolor("#eeeeee")
    if known.size:
        norm = LogNorm(max(known.min(), 1e-4), max(known.max(), 2e-4)) if figure.log else None
        image = axes.imshow(
            np.clip(values, 1e-4, None) if figure.log else values,
            cmap="cividis",
            norm=norm,
            aspect="equal",
        )
        bar = axes.figure.colorbar(image, ax=axes, shrink=0.9, pad=0.02)
        if figure.limit is not None and known.min() <= figure.limit <= known.max():
            bar.ax.axhline(figure.limit, color="black", linewidth=1.5)
    else:
        axes.imshow(np.ones_like(values), cmap="Greys", vmin=0, vmax=12, aspect="equal")
    for i, row in enumerate(figure.letters):
        for j, letter in enumerate(row):
            axes.text(j, i, letter.replace("★", "*"), ha="center", va="center", fontsize=7)
    for i, j in figure.marked:
        light = not known.size or values[i, j] < np.median(known)
        axes.plot(j, i, ".", color="white" if light else "black", markersize=3)
    if figure.chosen is not None:
        i, j = figure.chosen
        for colour, size in (("white", 2.6), ("black", 1.3)):
            axes.add_patch(
                mpl.patches.Rectangle(
                    (j - 0.5, i - 0.5), 1, 1, fill=False, edgecolor=colour, linewidth=size
                )
            )
    axes.set_yticks(range(len(figure.rows)), figure.rows)
    every = max(1, len(figure.columns) // 14)
    axes.set_xticks(range(0, len(figure.columns), every), [str(c) for c in figure.columns[::every]])
    axes.set_xlabel("layer")
    axes.set_ylabel("position")


def _lines(figure: Lines, axes: Axes) -> None:
    for line in figure.lines:
        colour = COLOURS[line.style]
        if line.low:
            axes.fill_between(line.x, line.low, line.high, color=colour, alpha=0.18, linewidth=0)
        dash = "--" if line.style == "harmless" else "-"
        axes.plot(
            line.x,
            line.y,
            dash,
            color=colour,
            label=line.label,
            marker="." if len(line.x) == 1 else "",
        )
    if figure.at is not None:
        axes.axvline(figure.at, color="0.4", linestyle=":", linewidth=1)
    if figure.level is not None:
        axes.axhline(figure.level, color="0.4", linestyle=":", linewidth=1)
    _labels(figure, axes, len(figure.lines) > 1)


def _points(figure: Points, axes: Axes) -> None:
    for label, style, group in figure.groups:
        x, y = zip(*group, strict=True)
        marker = "o" if style == "harmful" else "^"
        axes.scatter(x, y, s=16, marker=marker, color=COLOURS[style], alpha=0.6, label=label)
    _labels(figure, axes, True)


def _labels(figure: Lines | Points, axes: Axes, legend: bool) -> None:
    axes.set_xlabel(figure.x_label)
    axes.set_ylabel(figure.y_label)
    if legend:
        axes.legend()


def _intervals(figure: Intervals, axes: Axes) -> None:
    for i, row in enumerate(figure.rows):
        m, colour = row.metric, COLOURS["harmless" if row.set == "harmless" else "harmful"]
        axes.plot([m.low, m.high], [i, i], color=colour, linewidth=1.5)
        axes.plot(m.value, i, "o", color=colour, markersize=4)
    axes.set_yticks(range(len(figure.rows)), [f"{row.set}, {row.label}" for row in figure.rows])
    axes.set_ylim(len(figure.rows) - 0.5, -0.5)
    axes.set_xlim(-0.02, 1.02)
    axes.set_xlabel("refusal rate, 95% interval")
    axes.grid(axis="x", color="0.9")
