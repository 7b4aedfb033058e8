"""Metrics as tables for the terminal: every rate with its interval, every condition with its change from the baseline.

A share of fewer than 30 prompts shows its interval first: that is the result, and the share only its middle.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace

from rich import box
from rich.table import Table

from refusal.compare import Comparison
from refusal.evaluate.conditions import ACTIONS, BASELINE, CONDITIONS
from refusal.records import Metric

FEW = 30
_SEVERAL = re.compile(r"kl_first_\d+_tokens")
CLASSES = ("harmful", "harmless")


def all_tables(metrics: Sequence[Metric]) -> list[Table]:
    """The tables that there is something to show in."""
    found = _Found(metrics)
    tables = (rates(found), controls(found), over_refusal(found), drift(found), seeds(found))
    return [table for table in tables if table.row_count]


class _Found:
    """Metrics by name, set and condition."""

    def __init__(self, metrics: Sequence[Metric]) -> None:
        self.by_key = {(m.name, m.set, m.condition): m for m in metrics}

    def get(self, name: str, set: str, condition: str) -> Metric | None:
        return self.by_key.get((name, set, condition))

    def named(self, name: str) -> Iterator[Metric]:
        return (m for m in self.by_key.values() if m.name == name)

    def summed_up(self, name: str) -> Iterator[Metric]:
        """Without the controls, but for what the random directions do together."""
        plain = (BASELINE, "ablation", "subtraction", "addition")
        return (m for m in self.named(name) if m.condition.removeprefix("random-") in plain)


def rates(found: _Found) -> Table:
    """Refusal on harmful and harmless prompts by condition."""
    table = _table("Share of completions that refuse (95 % interval)", "prompts", "condition")
    for name in ("refusal rate", "change", "degenerate", "n"):
        table.add_column(name, justify="right")
    for set, condition in CONDITIONS:
        if (m := found.get("refusal_rate", set, condition)) is not None:
            degenerate = found.get("degenerate_rate", set, condition)
            change = found.get("refusal_rate_change", set, condition)
            table.add_row(
                set, condition, share(m), points(change), f"{degenerate.value:.0%}" if degenerate else "", str(m.n)
            )
    return table


def controls(found: _Found) -> Table:
    """The same interventions with control directions, the random ones together, beside the direction itself."""
    kinds = {"this direction": "", "random": "random-", "shuffled": "shuffled-", "matched": "matched-"}
    shown = [(set, action) for set, actions in ACTIONS.items() for action in actions]
    n = next((m.n for set, action in shown if (m := found.get("refusal_rate", set, f"random-{action}"))), 0)
    table = _table(f"Refusal with control directions (first {n} prompts)", "prompts", "action")
    for name in kinds:
        table.add_column(name, justify="right")
    for set, action in shown if n else ():
        table.add_row(set, action, *(share(found.get("refusal_rate", set, kind + action)) for kind in kinds.values()))
    if n:
        cosines = {m.condition.partition("-")[0]: m.value for m in found.named("cosine") if m.set == "direction"}
        table.add_section()
        table.add_row("cosine", "", "", "", *(f"{cosines[name]:+.2f}" for name in ("shuffled", "matched")))
    return table


def over_refusal(found: _Found) -> Table:
    """Refusal on the sets of prompts that only look harmful, side by side with their unsafe halves."""
    shown = [m for m in found.summed_up("refusal_rate") if m.set not in CLASSES]
    sets = list(dict.fromkeys(m.set for m in shown))
    table = _table("Over-refusal: share that refuses (95 % interval)", "condition")
    for set in sets:
        n = next(m.n for m in shown if m.set == set)
        table.add_column(f"{set} (n {n})", justify="right")
    for condition in dict.fromkeys(m.condition for m in shown):
        table.add_row(condition, *(share(found.get("refusal_rate", set, condition)) for set in sets))
    return table


def drift(found: _Found) -> Table:
    """Cross-entropy on texts, its change, and KL along the model's own answers."""
    table = _table("Drift on other text (nats per token, 95 % interval)", "texts", "condition")
    several = next((m.name for m in found.by_key.values() if _SEVERAL.fullmatch(m.name)), "kl_first_0_tokens")
    k = several.split("_")[2]
    for name in ("cross-entropy", "change", "KL, token 1", f"KL, tokens 1–{k}", "n"):
        table.add_column(name, justify="right")
    for m in found.summed_up("cross_entropy"):
        change = found.get("cross_entropy_change", m.set, m.condition)
        kl = (found.get(name, m.set, m.condition) for name in ("kl_first_token", several))
        table.add_row(m.set, m.condition, number(m), signed(change, ".3f"), *map(number, kl), str(m.n))
    return table


def seeds(found: _Found) -> Table:
    """The choice with other seeds: scores, cosine with the direction, refusal under its ablation."""
    table = _table("Other seeds", "seed")
    for name in ("bypass", "induce", "KL", "cosine", "refusal under ablation"):
        table.add_column(name, justify="right")
    for m in found.named("bypass"):
        others = [found.get(name, "direction", m.condition) for name in ("induce", "kl", "cosine")]
        rate = found.get("refusal_rate", "harmful", f"{m.condition}-ablation")
        plain = [f"{x.value:+.2f}" if x else "" for x in (m, *others)]
        table.add_row(m.condition.removeprefix("seed-"), *plain, share(rate))
    return table


def comparison(found: Comparison) -> Table:
    """The runs' rates and drift side by side; the change from the first run where both share prompts."""
    table = _table("Runs compared (95 % interval; change from run 1 in points, paired)", "measure", "set", "condition")
    for i in range(1, len(found.runs) + 1):
        table.add_column(f"run {i}", justify="right")
        if i > 1:
            table.add_column("change", justify="right")
            table.add_column("p", justify="right")
    for row in found.rows:
        cells = []
        for i, (value, change) in enumerate(zip(row.values, row.changes, strict=True)):
            cells.append(share(value) if row.name.endswith("_rate") else number(value))
            if i > 0:
                p = None if change is None else change.p_value
                cells += [points(change), "" if p is None else f"{p:.2g}"]
        table.add_row(row.name.replace("_", " "), row.set, row.condition, *cells)
    return table


def share(m: Metric | None) -> str:
    """A share and its interval, the interval first where the prompts are few."""
    if m is None:
        return ""
    return _ordered(m, f"{m.value:.0%}", f"{100 * m.low:.0f}–{100 * m.high:.0f}")


def points(m: Metric | None) -> str:
    """A change of a share and its interval, in percentage points."""
    return signed(None if m is None else replace(m, value=100 * m.value, low=100 * m.low, high=100 * m.high), ".0f")


def signed(m: Metric | None, form: str) -> str:
    """A change and its interval."""
    return "" if m is None else _ordered(m, f"{m.value:+{form}}", f"{m.low:+{form}} to {m.high:+{form}}")


def number(m: Metric | None) -> str:
    """A mean and its interval."""
    return "" if m is None else _ordered(m, f"{m.value:.2f}", f"{m.low:.2f}–{m.high:.2f}")


def _ordered(m: Metric, value: str, interval: str) -> str:
    return f"{interval} ({value})" if m.n < FEW else f"{value} ({interval})"


def _table(title: str, *names: str) -> Table:
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for name in names:
        table.add_column(name)
    return table
