"""What candidates do beside their base as tables: all of them in one, by length, in the stream."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

from refusal.core.records import Metric
from refusal.core.tables import (
    Cell,
    Found,
    Table,
    bar,
    minus,
    number,
    p_value,
    points,
    share,
    signed,
    table,
)
from refusal.evaluations.diff.result import Compared, Diffed
from refusal.interventions.conditions import BASELINE
from refusal.report.kinds import Line, Lines
from refusal.report.lengths import length_tables

BASE = "the base"
RULE = (
    "95% Wilson intervals; changes from the base in points, paired by prompt (Newcombe's interval, "
    "McNemar's exact p). KL: mean over tokens along the base's own answers, nats, with a bootstrap "
    "interval over prompts. Direction left: of the base's difference between harmful and harmless "
    "prompts along its refusal direction, where that was found, with a bootstrap interval too."
)
PREDICTED = (
    "KL from the base in nats, harmless prompts but where it says harmful. CE: change of "
    "cross-entropy along the base's own answers, nats a token. Left everywhere: of the base's "
    "direction over all places, each weighing as much as the base has there. Own direction: cosine "
    "of the two models' differences where the base's direction was found."
)


def diff_tables(found: Diffed) -> Iterator[Table]:
    """All tables, the one of the candidates first."""
    yield candidate_table(found)
    yield _predicted_table(found)
    yield from _further_tables(found)
    notes = _notes(found)
    if notes:
        yield table("Not compared, and notes", ("model", "what"), (), notes, grouped=True)
    texts = _texts(found)
    if texts:
        yield _text_table(found, texts)
    every = [replace(m, condition=BASE) if m.condition == BASELINE else m for m in found.metrics]
    every += [m for one in found.candidates for m in one.metrics]
    yield from length_tables(Found(every))
    yield from stream_tables(found)


def candidate_table(found: Diffed) -> Table:
    """A row for the base and for each candidate."""
    base = {(m.name, m.set): m for m in found.metrics}
    refusal = base.get(("refusal_rate", "harmful"))
    rows: list[Sequence[Cell]] = []
    first: list[Cell] = [BASE, "" if refusal is None else bar(refusal, "harmful")]
    first += [share(refusal), "", "", share(base.get(("refusal_rate", "harmless")))]
    rows.append([*first, share(base.get(("degenerate_rate", "harmful"))), "", ""])
    for one in found.candidates:
        refusal, change = one.number("refusal"), one.number("refusal_change")
        row: list[Cell] = [one.label, "" if refusal is None else bar(refusal, "harmful")]
        row += [share(refusal), points(change), p_value(change)]
        row += [share(one.number("harmless_refusal")), share(one.number("degenerate"))]
        rows.append([*row, _nats(one.number("kl")), _left(one, "direction_left")])
    numbers = ("refusal", "change", "p", "harmless refused", "degenerate", "KL", "direction left")
    return table("Candidates", ("model", "0 to 100%"), numbers, rows, note=RULE)


def _predicted_table(found: Diffed) -> Table:
    rows = []
    for one in found.candidates:
        named = ("kl_first_token", "kl_first_token_harmful", "kl_median", "kl_max")
        row = [one.label, *(_nats(one.number(name)) for name in named)]
        row.append(signed(one.number("cross_entropy_change"), ".3f"))
        row.append(_left(one, "direction_left_everywhere"))
        rows.append([*row, number(one.number("direction_cosine"))])
    numbers = ("KL first", "KL first, harmful", "KL median", "KL largest", "CE")
    own = ("left everywhere", "own direction")
    return table("Predictions and stream", ("model",), (*numbers, *own), rows, note=PREDICTED)


def _further_tables(found: Diffed) -> Iterator[Table]:
    """Over-refusal sets and benchmarks, a row for each model and set."""
    base = {(m.name, m.set): m for m in found.metrics}
    rows = []
    for name in _sets(found):
        if name in ("harmful", "harmless"):
            continue
        rows.append((name, BASE, share(base.get(("refusal_rate", name))), "", ""))
        for one in found.candidates:
            change = one.number(f"{name}_refusal_change")
            refused = share(one.number(f"{name}_refusal"))
            rows.append((name, one.label, refused, points(change), p_value(change)))
    if rows:
        numbers = ("refusal", "change", "p")
        yield table("Over-refusal sets", ("set", "model"), numbers, rows, grouped=True)
    rows = []
    for task in _tasks(found):
        rows.append((task, BASE, share(_main(found.metrics, task)), "", ""))
        for one in found.candidates:
            change = one.number(f"{task}_change")
            value = share(_main(one.metrics, task))
            rows.append((task, one.label, value, points(change), p_value(change)))
    if rows:
        numbers = ("value", "change", "p")
        yield table("Benchmarks", ("task", "model"), numbers, rows, grouped=True)


def _left(one: Compared, name: str) -> str:
    left = one.number(name)
    said = _share(None if left is None else left.value)
    if left is None or math.isinf(left.low):
        return said
    return minus(f"{said} ({100 * left.low:.1f}–{100 * left.high:.1f})")


def _nats(m: Metric | None) -> str:
    """Three places: a thousandth of a nat is something."""
    if m is None:
        return ""
    value, low, high = (f"{round(x, 3) + 0.0:.3f}" for x in (m.value, m.low, m.high))
    return value if math.isinf(m.low) else f"{value} ({low}–{high})"


def _main(metrics: Sequence[Metric], task: str) -> Metric | None:
    """A benchmark's main number, which comes first."""
    own = [m for m in metrics if m.set == task and m.name.startswith("capability_")]
    return next((m for m in own if not m.name.endswith("_change")), None)


def _sets(found: Diffed) -> list[str]:
    return list(dict.fromkeys(m.set for m in found.metrics if m.name == "refusal_rate"))


def _tasks(found: Diffed) -> list[str]:
    names = [m.set for m in found.metrics if m.name.startswith("capability_")]
    return list(dict.fromkeys(names))


def _texts(found: Diffed) -> list[str]:
    every = (m for one in found.candidates for m in one.metrics if m.name == "cross_entropy")
    return [name for name in dict.fromkeys(m.set for m in every) if name != "own-answers"]


def _text_table(found: Diffed, texts: Sequence[str]) -> Table:
    rows = []
    for one in found.candidates:
        for text in texts:
            entropy, change = (one.find(f"cross_entropy{x}", text) for x in ("", "_change"))
            if entropy is not None:
                rows.append((one.label, text, number(entropy), signed(change, ".3f")))
    note = "Nats a token, every model on the base's tokens; bootstrap intervals over texts."
    return table("Cross-entropy on texts", ("model", "text"), ("CE", "change"), rows, note=note)


def _notes(found: Diffed) -> list[tuple[str, str]]:
    """What was not compared, and why; what one must know of a candidate."""
    rows = []
    for one in found.candidates:
        rows += [(one.label, f"No {what}: {why}.") for what, why in one.missing.items()]
        rows += [(one.label, note) for note in one.notes]
    return rows


def stream_tables(found: Diffed) -> Iterator[Table]:
    """Layer by layer at the position of the base's direction; all positions are in the CSV."""
    known = [(one, one.stream) for one in found.candidates if one.stream is not None]
    if not known:
        return
    columns, rows = [], []
    for one, _ in known:
        columns += [f"{one.label}: left", f"{one.label}: own"]
    place = known[0][1]
    for layer in range(len(place.left[0])):
        cells: list[Cell] = [f"{layer}, the direction's" if layer == place.layer else str(layer)]
        for _, stream in known:
            left = stream.left[stream.position][layer]
            cosine = stream.cosine[stream.position][layer]
            cells += [_share(left), _cosine(cosine)]
        rows.append(cells)
    note = (
        f"At position {place.position}, at the input of every block. Left: the difference between "
        "harmful and harmless validation prompts along the base's direction, as a share of the "
        "base's own. Own: cosine of the two models' differences on training prompts."
    )
    yield table("In the stream", ("layer",), columns, rows, note=note, detail=True)


def _share(value: float | None) -> str:
    return "" if value is None else f"{round(value, 3) + 0.0:.1%}"


def _cosine(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def stream_figures(found: Diffed) -> Iterator[Lines]:
    """The share that is left, and the cosine, by layer, a line for each candidate."""
    for name, title, y in (
        ("left", "What is left of the base's direction", "share of the base's"),
        ("cosine", "The two models' own directions", "cosine"),
    ):
        lines = []
        for one in found.candidates:
            if one.stream is None:
                continue
            row = getattr(one.stream, name)[one.stream.position]
            known = [(float(i), value) for i, value in enumerate(row) if value is not None]
            if known:
                xs, ys = zip(*known, strict=True)
                lines.append(Line(one.label, xs, ys))
        if lines:
            place = next(one.stream for one in found.candidates if one.stream is not None)
            yield Lines(
                f"stream-{name}",
                title,
                "layer",
                y,
                tuple(lines),
                at=float(place.layer),
                level=1.0,
                caption=f"At position {place.position}; the vertical line is where the base's "
                "direction was found.",
            )


def stream_rows(found: Diffed) -> Table:
    """Every position and layer of every candidate, unrounded, for CSV."""
    rows: list[tuple[Cell, ...]] = []
    for one in found.candidates:
        if one.stream is None:
            continue
        n = len(one.stream.left)
        for p in range(n):
            pairs = zip(one.stream.left[p], one.stream.cosine[p], strict=True)
            rows += [(one.label, p - n, i, left, cosine) for i, (left, cosine) in enumerate(pairs)]
    return Table("stream", ("candidate", "position", "layer", "left", "cosine"), tuple(rows))
