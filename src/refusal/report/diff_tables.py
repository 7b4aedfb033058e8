"""What candidates do beside their base as tables: all of them in one, by length, in the stream."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

from refusal.core.records import Metric
from refusal.core.tables import (
    Cell,
    Found,
    Table,
    bar,
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
    "Rates with 95% Wilson intervals; changes from the base in points, paired by prompt "
    "(Newcombe's interval, McNemar's exact p). KL in nats from the base: first token, then along "
    "the base's own answers: mean over tokens with a bootstrap interval over prompts, median, "
    "largest. CE: change of cross-entropy along these answers, nats a token. Direction left: share "
    "of the base's difference between harmful and harmless prompts along its refusal direction, "
    "where that was found, and over all places; own: cosine of the two models' differences there."
)


def diff_tables(found: Diffed) -> Iterator[Table]:
    """All tables, the one of the candidates first."""
    yield candidate_table(found)
    if any(one.missing or one.notes for one in found.candidates):
        yield notes_table(found)
    texts = _texts(found)
    if texts:
        yield _text_table(found, texts)
    every = [replace(m, condition=BASE) if m.condition == BASELINE else m for m in found.metrics]
    every += [m for one in found.candidates for m in one.metrics]
    yield from length_tables(Found(every))
    yield from stream_tables(found)


def candidate_table(found: Diffed) -> Table:
    """A row for the base and for each candidate."""
    over = [s for s in _sets(found) if s not in ("harmful", "harmless")]
    tasks = _tasks(found)
    base = {(m.name, m.set): m for m in found.metrics}
    rows: list[Sequence[Cell]] = []
    refusal = base.get(("refusal_rate", "harmful"))
    first: list[Cell] = [BASE, found.base, "" if refusal is None else bar(refusal, "harmful")]
    first += [share(refusal), "", "", share(base.get(("refusal_rate", "harmless"))), ""]
    for name in over:
        first += [share(base.get(("refusal_rate", name))), ""]
    first += [share(base.get(("degenerate_rate", "harmful"))), *[""] * 9]
    first += [share(_main(found.metrics, task)) for task in tasks]
    rows.append(first)
    rows += [_row(one, over, tasks) for one in found.candidates]
    measured = ["refusal", "change", "p", "harmless refused", "its change"]
    for name in over:
        measured += [f"{name} refused", f"{name}, change"]
    measured += ["degenerate", "KL first", "KL first, harmful", "KL", "KL median", "KL largest"]
    measured += ["CE", "direction left", "everywhere", "own", *tasks]
    return table("Candidates", ("model", "name", "0 to 100%"), measured, rows, note=RULE)


def _row(one: Compared, over: Sequence[str], tasks: Sequence[str]) -> list[Cell]:
    refusal, change = one.number("refusal"), one.number("refusal_change")
    row: list[Cell] = [one.label, one.name, "" if refusal is None else bar(refusal, "harmful")]
    row += [share(refusal), points(change), p_value(change)]
    row += [share(one.number("harmless_refusal")), points(one.number("harmless_refusal_change"))]
    for name in over:
        row += [share(one.number(f"{name}_refusal")), points(one.number(f"{name}_refusal_change"))]
    row.append(share(one.number("degenerate")))
    for name in ("kl_first_token", "kl_first_token_harmful", "kl", "kl_median", "kl_max"):
        row.append(_nats(one.number(name)))
    row.append(signed(one.number("cross_entropy_change"), ".3f"))
    for name in ("direction_left", "direction_left_everywhere"):
        left = one.number(name)
        row.append("" if left is None else f"{left.value:.1%}")
    row.append(number(one.number("direction_cosine")))
    row += [_ability(one, task) for task in tasks]
    return row


def _nats(m: Metric | None) -> str:
    """Three places: a thousandth of a nat is something."""
    if m is None:
        return ""
    if m.low == -float("inf"):
        return f"{m.value:.3f}"
    return f"{m.value:.3f} ({m.low:.3f}–{m.high:.3f})"


def _ability(one: Compared, task: str) -> str:
    change = one.number(f"{task}_change")
    return f"{share(_main(one.metrics, task))}, {points(change)} points" if change else ""


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


def notes_table(found: Diffed) -> Table:
    """What was not compared, and why; what one must know of a candidate."""
    rows = []
    for one in found.candidates:
        rows += [(one.label, f"No {what}: {why}.") for what, why in one.missing.items()]
        rows += [(one.label, note) for note in one.notes]
    return table("Not compared, and notes", ("model", "what"), (), rows, grouped=True)


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
            cells += ["" if left is None else f"{left:.1%}", _cosine(cosine)]
        rows.append(cells)
    note = (
        f"At position {place.position}, at the input of every block. Left: the difference between "
        "harmful and harmless validation prompts along the base's direction, as a share of the "
        "base's own. Own: cosine of the two models' differences on training prompts."
    )
    yield table("In the stream", ("layer",), columns, rows, note=note, detail=True)


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
