"""Tables of a run beside its metrics: categories, candidates, prompt pools, what stages cost."""

from collections.abc import Iterable, Iterator

from refusal.core.clusters import rate
from refusal.core.records import Metric
from refusal.core.tables import FEW, Cell, Table, bar, share, table
from refusal.core.text import sanitised
from refusal.evaluations.refusal.rates import HITS, by_prompt, metric
from refusal.interventions.conditions import BASELINE
from refusal.report.data import ReportData
from refusal.report.tables import style_of

SPENT = {  # heading of the table: key in the manifest, form, scale
    "seconds": ("seconds", ",.1f", 1.0),
    "forward tokens": ("forward_tokens", ",.0f", 1.0),
    "TFLOP": ("flops", ",.2f", 1e-12),
    "device seconds": ("device_seconds", ",.1f", 1.0),
    "cost": ("cost", ",.4f", 1.0),
}


def category_rates(data: ReportData, set_name: str) -> Iterator[tuple[str, dict[str, Metric]]]:
    """Yield each category of a set with its refusal rates by condition; last, prompts without one.

    Nothing where no category is known.
    """
    categories = data.categories.get(set_name, {})
    by_condition = {c: rows for (s, c), rows in data.completions.items() if s == set_name}
    if not categories:
        return
    found: dict[str, dict[str, list[list[bool]]]] = {}
    for condition, rows in by_condition.items():
        for prompt, samples in by_prompt(rows, HITS["refusal_rate"]).items():
            hits = found.setdefault(categories.get(prompt, ""), {})
            hits.setdefault(condition, []).append(samples)
    for name in sorted(found, key=lambda name: (not name, name.casefold())):
        rates = {}
        for condition in by_condition:
            hits_of = found[name].get(condition, [])
            rates[condition] = metric(
                "refusal_rate", set_name, condition, rate(hits_of), len(hits_of)
            )
        yield name or "no category", rates


def category_tables(data: ReportData, sets: Iterable[str]) -> Iterator[Table]:
    """Refusal per category, baseline and ablation, of those sets with two known or more."""
    for set_name in sets:
        found = list(category_rates(data, set_name))
        conditions = [
            c for c in (BASELINE, "ablation") if found and all(c in rates for _, rates in found)
        ]
        if len(found) < 2 or not conditions:
            continue
        rows = []
        for name, rates in found:
            cells: list[Cell] = []
            for m in (rates[c] for c in conditions):
                cells += [share(m), bar(m, style_of(set_name))]
            rows.append((sanitised(name.replace("_", " ")), *cells, str(rates[conditions[0]].n)))
        columns = [name for c in conditions for name in (c, "0 to 100%")]
        few = max(rates[conditions[0]].n for _, rates in found) < FEW
        note = "Few prompts each: the interval comes first, and is the result." if few else ""
        title = f"Refusal by category, {set_name} prompts"
        yield table(title, ("category",), (*columns, "n"), rows, note=note)


def stability_table(data: ReportData) -> Table | None:
    """Which candidates win when the validation prompts are resampled."""
    stability = data.selection.stability if data.selection is not None else None
    if stability is None or data.selection is None:
        return None
    where = [(win.position, win.layer) for win in stability.winners]
    chosen = (data.selection.score.position, data.selection.score.layer)
    base = where.index(chosen) if chosen in where else None
    rows = []
    for i, win in enumerate(stability.winners):
        cosine = "" if base is None else f"{stability.cosines[base][i]:+.2f}"
        rows.append((f"({win.position}, {win.layer})", f"{win.share:.1%}", cosine))
    if stability.none_qualifies > 0:
        rows.append(("none qualifies", f"{stability.none_qualifies:.1%}", ""))
    note = f"{stability.resamples} resamples; {stability.contenders} candidates can win at all."
    if data.selection.risk:
        note += (
            f" Candidates were dropped by tests on their first prompts; the probability that "
            f"another would have been chosen with all prompts is at most {data.selection.risk:g}."
        )
    columns = ("chosen in", "cosine with the chosen one")
    return table("How firm the choice is", ("candidate",), columns, rows, note=note)


def prompt_table(data: ReportData) -> Table:
    """The pools with their sizes and hashes."""
    counts, hashes = data.manifest["prompts"]["counts"], data.manifest["prompts"]["sha256"]
    rows = []
    for pool, digest in hashes.items():
        sizes = (str(counts.get(pool, "")), str(counts.get(f"removed_{pool}", "")))
        rows.append((pool.replace("_", ", "), *sizes, digest[:16]))
    columns = ("pool", "prompts", "near-duplicates removed", "sha256")
    return Table("Prompt pools", columns, tuple(rows), frozenset(columns[1:3]))


def stage_table(data: ReportData) -> Table:
    """What every stage cost; older runs lack some of the numbers."""
    stages = data.manifest["stages"]
    rows = []
    for name, stage in stages.items():
        peak = stage.get("peak_memory_bytes")
        cells = [_spent(heading, [stage]) for heading in SPENT]
        rows.append((name, *cells, "" if peak is None else f"{peak / 1e9:.1f}"))
    totals = [_spent(heading, stages.values()) for heading in SPENT]
    rows.append(("all together", *totals, ""))
    return table("What every stage cost", ("stage",), (*SPENT, "peak memory, GB"), rows)


def _spent(heading: str, stages: Iterable[dict[str, float | None]]) -> str:
    key, form, scale = SPENT[heading]
    values = [value for stage in stages if (value := stage.get(key)) is not None]
    return f"{sum(values) * scale:{form}}" if values else ""
