"""Refusal against length: as tables, as curves, as the words of the verdict."""

import re
from collections.abc import Iterator, Mapping, Sequence

from refusal.core.lengths import EARLY, last_step
from refusal.core.records import Metric
from refusal.core.tables import Cell, Found, Style, Table, percent, points, share, table
from refusal.evaluations.refusal.curves import still_rising
from refusal.interventions.conditions import BASELINE, LABELS
from refusal.report.kinds import Line, Lines

AT = r"refusal_rate_at_(\d+)_tokens"
RISING = "still rising"
MATTER = ((LABELS[0], BASELINE), (LABELS[0], "ablation"))  # of which the verdict speaks
Curve = dict[int, Metric]  # by length


def read_curves(metrics: Sequence[Metric]) -> dict[tuple[str, str], Curve]:
    """The rates after each length, by set and condition."""
    found: dict[tuple[str, str], Curve] = {}
    for m in metrics:
        if match := re.fullmatch(AT, m.name):
            found.setdefault((m.set, m.condition), {})[int(match[1])] = m
    return {key: dict(sorted(curve.items())) for key, curve in found.items()}


def length_tables(found: Found) -> Iterator[Table]:
    """A table for each set: a row for each length, a column for each condition."""
    every = read_curves(found.named(AT))
    for set_name in dict.fromkeys(name for name, _ in every):
        curves = {c: curve for (name, c), curve in every.items() if name == set_name}
        yield _table(found, set_name, curves)


def _table(found: Found, set_name: str, curves: Mapping[str, Curve]) -> Table:
    lengths = sorted({length for curve in curves.values() for length in curve})
    rows: list[tuple[Cell, ...]] = []
    for length in lengths:
        rows.append((f"{length} tokens", *(share(curve.get(length)) for curve in curves.values())))
    if (step := last_step(lengths)) is not None:
        rises = [found.get("refusal_rate_rise", set_name, c) for c in curves]
        rows.append((f"{step[0]} to {step[1]}, points", *map(_rise, rises)))
    for name, words in (
        ("delayed_refusal_rate", f"of refusals: first sign after token {EARLY}"),
        ("cut_off_rate", "not ended by then"),
    ):
        cells = [found.get(name, set_name, c) for c in curves]
        if any(cells):
            rows.append((words, *map(percent, cells)))
    note = (
        "The same texts, judged as they stood after so many tokens (95% Wilson intervals). "
        f"“{RISING}”: more texts became refusals over the last step than stopped being some, by "
        "McNemar's one-sided test at 5%."
    )
    title = f"Refusal by length, {set_name} prompts"
    detail = set_name not in LABELS
    return table(title, ("after",), tuple(curves), rows, note=note, detail=detail)


def _rise(rise: Metric | None) -> str:
    return points(rise) + (f", {RISING}" if rise is not None and still_rising(rise) else "")


def length_figures(metrics: Sequence[Metric], style: Style, set_name: str) -> Iterator[Lines]:
    """A curve for each condition of a set, where there is more than one length."""
    lines = []
    for (name, condition), curve in read_curves(metrics).items():
        if name == set_name and len(curve) > 1:
            rates = curve.values()
            drawn = (tuple(m.value for m in rates), *_bounds(curve))
            own = style if condition == BASELINE else "plain"
            lines.append(Line(condition, tuple(map(float, curve)), *drawn, own))
    if lines:
        yield Lines(
            f"lengths-{set_name}",
            f"Refusal by length, {set_name} prompts",
            "tokens, logarithmic",
            "share that refuses",
            tuple(lines),
            doubling=True,
            caption="The same completions, judged as they stood after so many tokens. Bands are "
            "95% intervals.",
        )


def _bounds(curve: Curve) -> tuple[tuple[float, ...], tuple[float, ...]]:
    return tuple(m.low for m in curve.values()), tuple(m.high for m in curve.values())


def rising_words(metrics: Sequence[Metric]) -> str:
    """What the verdict says where refusal of harmful prompts still rises at the last length; empty
    where it does not, or nobody knows.
    """
    by_key = {(m.set, m.condition): m for m in metrics if m.name == "refusal_rate_rise"}
    rising = [m for key in MATTER if (m := by_key.get(key)) is not None and still_rising(m)]
    if not rising:
        return ""
    first = rising[0]
    step = last_step(list(read_curves(metrics).get((first.set, first.condition), ())))
    if step is None:
        return ""
    each = " and ".join(f"{100 * m.value:+.0f} points under {m.condition}" for m in rising)
    return (
        f"refusal of harmful prompts still rises with length ({each} from token {step[0]} to "
        f"{step[1]}, where completions end), so longer ones may refuse more"
    )
