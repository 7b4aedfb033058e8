"""A monitor's evaluation: tables, curves, a page and its JSON."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

from refusal.core.records import finite
from refusal.core.stats import Estimate
from refusal.core.storage import check_page, write_json, write_text
from refusal.core.tables import Cell, Table, minus, table
from refusal.evaluations.monitor.records import Contrast, Evaluated, LeftOut
from refusal.report.draw import captioned
from refusal.report.kinds import Line, Lines
from refusal.report.page import render

PAGE, RECORD = "evaluation.html", "evaluation.json"
FIRES = (
    "Fires: the share above the monitor's threshold, with Wilson's interval. Of harmless prompts "
    "like those it was calibrated on at most {eps:.1%} should."
)
RECALLS = (
    "At 1 % and 5 %: the share of harmful prompts above the threshold that at most so many "
    "of the harmless ones beside them exceed, with a bootstrap interval over both."
)
LEFT_OUT = (
    "Each source told from the other class by directions and weights fitted without it, and by "
    "ones fitted with its other half. What is lost from right to left is what a split of one "
    "source flatters by."
)
RELIABLE = (
    "What the monitor said on average, and which share was harmful, of the test sets as they are "
    "mixed. Brier score {brier:.3f} ({low:.2f}–{high:.2f}), expected calibration error {error:.3f}."
)


def write_evaluation(record: Evaluated, out: Path) -> Path:
    """Write the page and the record as JSON into a folder; returns the page.

    Raises:
        ExportError: there is another file of the page's name.
        StorageError: a file cannot be written.
    """
    check_page(out / PAGE)
    write_json(out / RECORD, finite(asdict(record)))
    page = render(
        "monitor.html.j2",
        title=f"Monitor: {record.model}",
        record=record,
        tables=tuple(monitor_tables(record)),
        pictures=captioned(curves(record)),
    )
    write_text(out / PAGE, page)
    return out / PAGE


def monitor_tables(record: Evaluated) -> Iterator[Table]:
    """What fires, what is told apart, sources left out, reliability."""
    rows: list[tuple[Cell, ...]] = []
    for one in record.sets:
        spread = "" if one.sd is None else f" ± {one.sd:.2f}"
        mean = minus(f"{one.mean:+.2f}{spread}")
        rows.append((one.name, one.kind, one.label, share(one.fired), mean, str(one.n)))
    note = FIRES.format(eps=record.eps)
    yield table("Sets", ("set", "kind", "class"), ("fires", "logit", "prompts"), rows, note=note)
    numbers = ("AUROC", "at 1 %", "at 5 %", "prompts")
    found = [(one.harmful, one.harmless, *_numbers(one)) for one in record.contrasts]
    yield table("Told apart", ("harmful", "harmless"), numbers, found, note=RECALLS)
    if record.left_out:
        yield from _left_out(record.left_out)
    if record.reliability is not None:
        known = record.reliability
        bins = []
        for b in known.bins:
            said, so = f"{b.low:.1f}–{b.high:.1f}", share(b.observed)
            bins.append((said, f"{b.predicted:.2f}", so, str(b.n)))
        brier = known.brier
        note = RELIABLE.format(brier=brier.value, low=brier.low, high=brier.high, error=known.error)
        heads = ("said", "harmful", "prompts")
        yield table("Reliability", ("probability",), heads, bins, note=note)


def curves(record: Evaluated) -> Iterator[Lines]:
    """What is said against what is so."""
    if record.reliability is None:
        return
    bins = record.reliability.bins
    lines = (
        Line("perfect", (0.0, 1.0), (0.0, 1.0)),
        Line(
            "this monitor",
            tuple(b.predicted for b in bins),
            tuple(b.observed.value for b in bins),
            tuple(b.observed.low for b in bins),
            tuple(b.observed.high for b in bins),
            "harmful",
        ),
    )
    yield Lines(
        "reliability",
        "Reliability",
        "probability that was said",
        "share that is harmful",
        lines,
        caption="The band is Wilson's interval of each share.",
    )


def share(one: Estimate) -> str:
    """A share with its interval, in percent."""
    return f"{one.value:.1%} ({100 * one.low:.0f}–{100 * one.high:.0f})"


def area(one: Estimate) -> str:
    """An AUROC with its interval."""
    return f"{one.value:.3f} ({one.low:.2f}–{one.high:.2f})"


def _numbers(one: Contrast) -> tuple[str, ...]:
    counts = f"{one.n_harmful} + {one.n_harmless}"
    return (area(one.auroc), *(share(recall.tpr) for recall in one.recalls), counts)


def _left_out(found: Sequence[LeftOut]) -> Iterator[Table]:
    """How each source is told apart, in one table, and how much of it is found, in another."""
    areas: list[tuple[Cell, ...]] = []
    recalls: list[tuple[Cell, ...]] = []
    for one in found:
        without, same = one.without, one.same
        about = (one.source, one.label)
        counts = f"{same.n_harmful} + {same.n_harmless}"
        areas.append((*about, area(without.auroc), area(same.auroc), counts))
        shares = [share(each.recalls[-1].tpr) for each in (without, same)]
        recalls.append((*about, *shares, counts))
    labels, numbers = ("source", "class"), ("without it", "with its half", "prompts")
    yield table("Sources left out: AUROC", labels, numbers, areas, note=LEFT_OUT)
    title = "Sources left out: found at 5 % false alarms"
    yield table(title, labels, numbers, recalls)
