"""The direction along what a model thinks before it answers: as a table, as lines."""

import re
from collections.abc import Iterator, Sequence

from refusal.core.records import Metric
from refusal.core.tables import Cell, Found, Style, Table, signed, table
from refusal.interventions.conditions import LABELS
from refusal.report.kinds import Line, Lines

TENTH = r"thought_projection_tenth_(\d+)"
ANSWER, CLIFF = "thought_projection_before_answer", "thought_cliff"
ALONG = {"direction": "this direction", "random": "a random direction"}
PLACE = "the last token before the answer's first word"
DEFINED = (
    f"The fall is the mean of the eighth and ninth tenth of the thought less the value at {PLACE}."
)


def thought_tables(found: Found) -> Iterator[Table]:
    """A row for each tenth of the thought, for the end, and for the fall."""
    tenths = sorted({int(m.name.rpartition("_")[2]) for m in found.named(TENTH)})
    columns = [(label, along) for label in LABELS for along in ALONG]
    names = [(f"tenth {i}", f"thought_projection_tenth_{i}") for i in tenths]
    names += [("before the answer", ANSWER), ("the fall", CLIFF)]
    rows: list[tuple[Cell, ...]] = []
    for words, name in names:
        cells = [found.get(name, label, along) for label, along in columns]
        if any(cells):
            rows.append((words, *(signed(m, ".2f") for m in cells)))
    counts = [found.get(CLIFF, label, "direction") for label in LABELS]
    said = ", ".join(f"{m.n} {m.set}" for m in counts if m is not None)
    yield table(
        "The direction along the thought (component along the unit vector, 95% interval)",
        ("place",),
        tuple(f"{label}, {ALONG[along]}" for label, along in columns),
        rows,
        note=f"Of baseline completions with a thought that ended ({said}), read once more as they "
        f"were written. {DEFINED} The random direction has the same norm.",
    )


def thought_figures(metrics: Sequence[Metric]) -> Iterator[Lines]:
    """The projection in each tenth of the thought and at its end, for each set and direction."""
    lines = []
    for label in LABELS:
        for along in ALONG:
            some = {m.name: m for m in metrics if (m.set, m.condition) == (label, along)}
            tenths = sorted(
                (int(match[1]), name) for name in some if (match := re.fullmatch(TENTH, name))
            )
            if tenths:
                style: Style = label if along == "direction" else "plain"
                ordered = [some[name] for _, name in tenths] + [some[ANSWER]]
                name = label if along == "direction" else f"random, {label}"
                lines.append(_line(name, ordered, style))
    if lines:
        yield Lines(
            "thoughts",
            "Projection on the direction along the thought",
            "tenth of the thought; then before the answer",
            "component along the unit direction",
            tuple(lines),
            caption=f"Means over prompts, bands are 95% intervals; random: a direction of equal "
            f"norm. The last point is {PLACE}. {DEFINED}",
        )


def _line(label: str, metrics: Sequence[Metric], style: Style) -> Line:
    """A line; without the band where one prompt alone has no interval."""
    several = metrics[0].n > 1
    return Line(
        f"{label} (n {metrics[0].n})",
        tuple(map(float, range(1, len(metrics) + 1))),
        tuple(m.value for m in metrics),
        tuple(m.low for m in metrics) if several else (),
        tuple(m.high for m in metrics) if several else (),
        style,
    )
