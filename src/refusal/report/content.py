"""What stands on the page beside the figures: tables as rows of texts, completions side by side,
what was run.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import tomli_w
from markupsafe import Markup
from rich.table import Table

from refusal.core.records import Completion, Metric
from refusal.core.text import visible
from refusal.report import svg
from refusal.report.data import ReportData
from refusal.report.rates import Row, category_rows, controlled_rows, other_rows, rate_rows
from refusal.report.tables import points, share
from refusal.report.words import minus

EXAMPLES = 12  # prompts of a class that are shown
LONG = 1200  # characters from which on a completion is folded
SHOWN = 300  # of a folded one
OPEN_SETS = ("harmless",)  # whose completions are shown without being asked for


@dataclass(frozen=True)
class PageTable:
    """A table as the page shows it; columns whose index is in ``numeric`` are set to the right."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str | Markup, ...], ...]
    numeric: frozenset[int] = frozenset()
    note: str = ""
    grouped: bool = False  # a line above each row that names a new thing in its first column


@dataclass(frozen=True)
class Answer:
    """One completion: ``text`` is ``None`` where it is hidden, ``folded`` what shows of a long
    one.
    """

    condition: str
    verdict: str
    text: str | None
    folded: str | None = None
    length: int = 0


@dataclass(frozen=True)
class Example:
    """A prompt and what the model wrote under each condition."""

    prompt: str
    answers: tuple[Answer, ...]


def rate_table(rows: Sequence[Row], title: str, note: str = "") -> PageTable | None:
    """Shares with their intervals drawn."""
    if not rows:
        return None
    changes, broken = any(row.change for row in rows), any(row.degenerate for row in rows)
    corrected = any(row.corrected for row in rows)
    shown = []
    for row, same in zip(
        rows, [False, *(a.set == b.set for a, b in zip(rows[1:], rows, strict=False))], strict=True
    ):
        bar = svg.interval_bar(row.metric, _style(row.set))
        cells: list[str | Markup] = ["" if same else row.set, row.label, share(row.metric), bar]
        cells += [share(row.corrected)] if corrected else []
        cells += [points(row.change)] if changes else []
        cells += ["" if row.degenerate is None else f"{row.degenerate.value:.0%}"] if broken else []
        shown.append((*cells, str(row.metric.n)))
    columns = (
        "prompts",
        "condition",
        "refused",
        "0 to 100%",
        *(["corrected"] if corrected else []),
    )
    columns += (*(["change, points"] if changes else []), *(["degenerate"] if broken else []), "n")
    return PageTable(
        title, columns, _typeset(shown), frozenset({2, *range(4, len(columns))}), note, grouped=True
    )


def _style(set_name: str) -> str:
    return "harmless" if set_name in ("harmless", "xstest-safe", "orbench-hard") else "harmful"


def main_rates(data: ReportData) -> PageTable | None:
    """Refusal by condition."""
    note = (
        "95% Wilson intervals; changes are from the baseline on the same prompts, in points "
        "(Newcombe)."
    )
    note += "".join(_corrected_by(data))
    return rate_table(rate_rows(data.metrics), "Share of completions that refuse", note)


def _corrected_by(data: ReportData) -> Iterator[str]:
    """What the corrected rates rest on."""
    right = [data.find(name, "judges", "detector") for name in ("sensitivity", "specificity")]
    for m, words in zip(
        right,
        (
            " Corrected for the detector's errors (Rogan-Gladen): of refusals it finds ",
            ", of other completions it leaves alone ",
        ),
        strict=True,
    ):
        yield "" if m is None else f"{words}{share(m)} of {m.n}"
    if all(right):
        yield " that people labelled. It may err otherwise on this model."


def control_rates(data: ReportData) -> PageTable | None:
    """The same with control directions."""
    rows = controlled_rows(data.metrics)
    cosines = {
        m.condition: m.value for m in data.metrics if (m.name, m.set) == ("cosine", "direction")
    }
    alike = [
        f"{words} {cosines[name]:+.2f}"
        for name, words in (("shuffled", "shuffled labels"), ("matched", "matched pairs"))
        if name in cosines
    ]
    note = "Random directions of the same norm are taken together. "
    note += f"Cosine with the direction: {', '.join(alike)}." if alike else ""
    return rate_table(rows, "The same with control directions", minus(note))


def other_rates(data: ReportData) -> PageTable | None:
    """Refusal of prompts that only look harmful."""
    return rate_table(other_rows(data.metrics), "Refusal on over-refusal sets")


def category_tables(data: ReportData, sets: Iterable[str]) -> Iterator[PageTable]:
    """Refusal per category, baseline and ablation, of those sets whose categories are known."""
    for set_name in sets:
        categories = data.categories.get(set_name, {})
        rows = list(category_rows(data.completions, categories, set_name)) if categories else []
        if len(rows) < 2:
            continue
        conditions = [c for c in ("baseline", "ablation") if all(c in found for _, found in rows)]
        if not conditions:
            continue
        shown = []
        for name, found in rows:
            drawn = [
                cell
                for c in conditions
                for cell in (share(found[c]), svg.interval_bar(found[c], _style(set_name)))
            ]
            shown.append((visible(name.replace("_", " ")), *drawn, str(found[conditions[0]].n)))
        columns = ("category", *(cell for c in conditions for cell in (c, "0 to 100%")), "n")
        numeric = frozenset(i for i in range(len(columns)) if i % 2 == 1)
        few = max(found[conditions[0]].n for _, found in rows)
        note = "Few prompts each: the interval comes first, and is the result." if few < 30 else ""
        yield PageTable(
            f"Refusal by category, {set_name} prompts", columns, _typeset(shown), numeric, note
        )


def from_terminal(table: Table) -> PageTable:
    """A table of the command line, as it is."""
    columns = tuple(str(column.header) for column in table.columns)
    rows = zip(*(list(column.cells) for column in table.columns), strict=True)
    numeric = frozenset(i for i, column in enumerate(table.columns) if column.justify == "right")
    return PageTable(
        str(table.title).replace(" %", "%"),
        columns,
        _typeset([tuple(map(str, row)) for row in rows]),
        numeric,
    )


def stability_table(data: ReportData) -> PageTable | None:
    """Which candidates win when the validation prompts are resampled."""
    stability = data.selection.stability if data.selection is not None else None
    if stability is None or data.selection is None:
        return None
    where = [(win.position, win.layer) for win in stability.winners]
    chosen = (data.selection.score.position, data.selection.score.layer)
    base = where.index(chosen) if chosen in where else None
    rows = [
        (
            f"({win.position}, {win.layer})",
            f"{win.share:.1%}",
            "" if base is None else f"{stability.cosines[base][i]:+.2f}",
        )
        for i, win in enumerate(stability.winners)
    ]
    if stability.none_qualifies > 0:
        rows.append(("none qualifies", f"{stability.none_qualifies:.1%}", ""))
    note = f"{stability.resamples} resamples; {stability.contenders} candidates can win at all."
    columns = ("candidate", "chosen in", "cosine with the chosen one")
    return PageTable("How firm the choice is", columns, _typeset(rows), frozenset({1, 2}), note)


def agreement_table(data: ReportData) -> PageTable | None:
    """How far every two judges agree."""
    rows = []
    for pair in data.agreement:
        if pair.share is not None:
            m = Metric("agreement", "judges", "", pair.share, pair.low, pair.high, pair.n)
            kappa = "" if pair.kappa is None else f"{pair.kappa:.2f}"
            rows.append((f"{pair.first} and {pair.second}", share(m), kappa, str(pair.n)))
    columns = ("judges", "agree", "kappa", "n")
    return (
        PageTable("Agreement of judges", columns, _typeset(rows), frozenset({1, 2, 3}))
        if rows
        else None
    )


def examples(data: ReportData, set_name: str, show_hidden: bool) -> tuple[Example, ...]:
    """The first prompts of a set, in the drawing order that the seed gave: not picked."""
    conditions = [c for s, c in data.completions if s == set_name]
    if not conditions:
        return ()
    by_id = [{row.prompt_id: row for row in data.completions[set_name, c]} for c in conditions]
    shown = data.completions[set_name, conditions[0]][:EXAMPLES]
    hidden = set_name not in OPEN_SETS and not show_hidden
    found = []
    for row in shown:
        written = [
            (c, rows[row.prompt_id])
            for c, rows in zip(conditions, by_id, strict=True)
            if row.prompt_id in rows
        ]
        found.append(
            Example(visible(row.prompt), tuple(_answer(c, one, hidden) for c, one in written))
        )
    return tuple(found)


def _answer(condition: str, row: Completion, hidden: bool) -> Answer:
    if hidden:
        return Answer(condition, row.verdict, None)
    text = visible(row.completion).strip("\n")
    folded = text[:SHOWN].rstrip() + " …" if len(text) > LONG else None
    return Answer(condition, row.verdict, text, folded, len(row.completion))


def facts(data: ReportData) -> tuple[tuple[str, str], ...]:
    """What was run, as name and value."""
    manifest = data.manifest
    model, prompts, hardware = manifest["model"], manifest["prompts"], manifest["hardware"]
    found = [
        ("Model", model["name"]),
        ("Revision", model.get("revision")),
        ("Weights, sha256", model["weight_hash"]),
    ]
    found += [("Precision", model["dtype"]), ("Chat template, sha256", model["template_hash"])]
    found += [
        ("System prompt", model.get("system")),
        ("Prompts", prompts["name"]),
        ("Seed", str(manifest["seed"])),
    ]
    if data.tokens is not None:
        quality = (
            ""
            if data.tokens.auroc is None
            else f"; AUROC {data.tokens.auroc:.2f} on {data.tokens.judged} completions"
        )
        found.append(
            (
                "Refusal tokens",
                ", ".join(map(repr, data.tokens.texts)) + f" ({data.tokens.source}){quality}",
            )
        )
    found.append(
        (
            "Hardware",
            ", ".join(f"{k.replace('_', ' ')} {v}" for k, v in hardware.items() if v is not None),
        )
    )
    found.append(("Versions", ", ".join(f"{name} {v}" for name, v in manifest["versions"].items())))
    found.append(("Started", manifest["started"].replace("T", " ")))
    if manifest.get("command"):
        found.append(("Command", " ".join(["refusal", *manifest["command"]])))
    return tuple((name, visible(str(value))) for name, value in found if value)


def prompt_table(data: ReportData) -> PageTable:
    """The pools with their sizes and hashes."""
    counts, hashes = data.manifest["prompts"]["counts"], data.manifest["prompts"]["sha256"]
    rows = [
        (
            pool.replace("_", ", "),
            str(counts.get(pool, "")),
            str(counts.get(f"removed_{pool}", "")),
            digest[:16],
        )
        for pool, digest in hashes.items()
    ]
    columns = ("pool", "prompts", "near-duplicates removed", "sha256")
    return PageTable("Prompt pools", columns, tuple(rows), frozenset({1, 2}))


def stage_table(data: ReportData) -> PageTable:
    """What every stage cost."""
    stages = data.manifest["stages"]
    rows = [
        (name, *_spent(s.get(key) for key in SPENT), _gigabytes(s.get("peak_memory_bytes")))
        for name, s in stages.items()
    ]
    totals = [[s[key] for s in stages.values() if s.get(key) is not None] for key in SPENT]
    rows.append(("all together", *_spent(sum(known) if known else None for known in totals), ""))
    columns = (
        "stage",
        "seconds",
        "forward tokens",
        "TFLOP",
        "device seconds",
        "cost",
        "peak memory, GB",
    )
    keep = [
        i for i, column in enumerate(columns) if column != "cost" or any(row[i] for row in rows)
    ]
    shown = tuple(tuple(row[i] for i in keep) for row in rows)
    return PageTable(
        "What every stage cost",
        tuple(columns[i] for i in keep),
        shown,
        frozenset(range(1, len(keep))),
    )


SPENT = ("seconds", "forward_tokens", "flops", "device_seconds", "cost")


def _spent(values: Iterable[float | None]) -> tuple[str, ...]:
    """A stage's numbers in the order of ``SPENT``; older runs lack some."""
    forms = ("{:,.1f}", "{:,}", "{:,.2f}", "{:,.1f}", "{:,.4f}")
    scales = (1, 1, 1e-12, 1, 1)
    return tuple(
        "" if value is None else form.format(value if scale == 1 else value * scale)
        for value, form, scale in zip(values, forms, scales, strict=True)
    )


def configuration(data: ReportData) -> str:
    """``run.toml``, as it is."""
    return visible(tomli_w.dumps(json.loads(data.config.model_dump_json(exclude_none=True))))


def _gigabytes(size: int | None) -> str:
    return "" if size is None else f"{size / 1e9:.1f}"


def _typeset(rows: Iterable[tuple[str | Markup, ...]]) -> tuple[tuple[str | Markup, ...], ...]:
    """With real minus signs."""
    return tuple(
        tuple(cell if isinstance(cell, Markup) else minus(cell) for cell in row) for row in rows
    )
