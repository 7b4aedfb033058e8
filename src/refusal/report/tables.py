"""Metrics as tables for the terminal: every rate with its interval, every condition with its change
from the baseline.

A share of fewer than 30 prompts shows its interval first: that is the result, and the share only
its middle.
"""

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace

from rich import box
from rich.table import Table

from refusal.core.records import Metric
from refusal.evaluations.capability.rates import PREFIX as CAPABILITY
from refusal.interventions.conditions import ACTIONS, BASELINE, CONDITIONS
from refusal.report.compare import Comparison

FEW = 30
_SINGLE_RANDOM = re.compile(r"random-\d")
_SEVERAL = re.compile(r"kl_first_\d+_tokens")
CLASSES = ("harmful", "harmless")
SHARES = (
    "sensitivity",
    "specificity",
    "_rate",
    "_rate_corrected",
    "_safety_score",
    "_safety_score_corrected",
)


def all_tables(metrics: Sequence[Metric]) -> list[Table]:
    """The tables that there is something to show in."""
    found = Found(metrics)
    tables = (
        *(rates(found), controls(found), over_refusal(found), divergence(found)),
        *(*cross_entropies(found), *capabilities(found), seeds(found)),
    )
    return [table for table in tables if table.row_count]


class Found:
    """Metrics by name, set and condition."""

    def __init__(self, metrics: Sequence[Metric]) -> None:
        self.by_key = {(m.name, m.set, m.condition): m for m in metrics}

    def get(self, name: str, set_name: str, condition: str) -> Metric | None:
        """That metric, if it is there."""
        return self.by_key.get((name, set_name, condition))

    def named(self, name: str) -> Iterator[Metric]:
        """All of that name."""
        return (m for m in self.by_key.values() if m.name == name)

    def summed_up(self, name: str) -> Iterator[Metric]:
        """Without the controls, but for what the random directions do together."""
        plain = (BASELINE, "ablation", "subtraction", "addition")
        return (m for m in self.named(name) if m.condition.removeprefix("random-") in plain)


def rates(found: Found) -> Table:
    """Refusal on harmful and harmless prompts by condition."""
    table = _table("Share of completions that refuse (95 % interval)", "prompts", "condition")
    for name in ("refusal rate", "corrected", "change", "degenerate", "n"):
        table.add_column(name, justify="right")
    for set_name, condition in CONDITIONS:
        if (m := found.get("refusal_rate", set_name, condition)) is not None:
            degenerate = found.get("degenerate_rate", set_name, condition)
            change = found.get("refusal_rate_change", set_name, condition)
            corrected = share(found.get("refusal_rate_corrected", set_name, condition))
            broken = f"{degenerate.value:.0%}" if degenerate else ""
            table.add_row(
                set_name, condition, share(m), corrected, points(change), broken, str(m.n)
            )
    return table


def controls(found: Found) -> Table:
    """What the same interventions do with control directions, the random ones together, on the same
    prompts.
    """
    kinds = {
        "this direction": "",
        "random": "random-",
        "shuffled": "shuffled-",
        "matched": "matched-",
    }
    shown = [(set_name, action) for set_name, actions in ACTIONS.items() for action in actions]
    name = "refusal_rate_change"
    n = next(
        (m.n for set_name, action in shown if (m := found.get(name, set_name, f"random-{action}"))),
        0,
    )
    table = _table(
        f"Change of the refusal rate by control directions (points; first {n} prompts)",
        "prompts",
        "action",
    )
    for kind in kinds:
        table.add_column(kind, justify="right")
    for set_name, action in shown if n else ():
        table.add_row(
            set_name,
            action,
            *(points(found.get(name, set_name, kind + action)) for kind in kinds.values()),
        )
    if n:
        cosines = {
            m.condition.partition("-")[0]: m.value
            for m in found.named("cosine")
            if m.set == "direction"
        }
        table.add_section()
        table.add_row(
            "cosine", "", "", "", *(f"{cosines[kind]:+.2f}" for kind in ("shuffled", "matched"))
        )
    return table


def over_refusal(found: Found) -> Table:
    """Refusal on the sets of prompts that only look harmful, side by side with their unsafe
    halves.
    """
    shown = [m for m in found.summed_up("refusal_rate") if m.set not in CLASSES]
    sets = list(dict.fromkeys(m.set for m in shown))
    table = _table("Over-refusal: share that refuses (95 % interval)", "condition")
    for set_name in sets:
        n = next(m.n for m in shown if m.set == set_name)
        table.add_column(f"{set_name} (n {n})", justify="right")
    for condition in dict.fromkeys(m.condition for m in shown):
        for name, suffix in (("refusal_rate", ""), ("refusal_rate_corrected", ", corrected")):
            cells = [share(found.get(name, set_name, condition)) for set_name in sets]
            if any(cells):
                table.add_row(condition + suffix, *cells)
    return table


def cross_entropies(found: Found) -> Iterator[Table]:
    """Cross-entropy on each kind of text, and its change."""
    rows = list(found.summed_up("cross_entropy"))
    for text in dict.fromkeys(m.set for m in rows):
        table = _table(f"Cross-entropy on {text} (nats per token, 95 % interval)", "condition")
        for name in ("cross-entropy", "change", "n"):
            table.add_column(name, justify="right")
        for m in rows:
            if m.set == text:
                change = found.get("cross_entropy_change", text, m.condition)
                table.add_row(m.condition, number(m), signed(change, ".3f"), str(m.n))
        yield table


def divergence(found: Found) -> Table:
    """KL from the unmodified model along its own answers to harmless prompts."""
    several = next(
        (m.name for m in found.by_key.values() if _SEVERAL.fullmatch(m.name)), "kl_first_0_tokens"
    )
    table = _table("KL along the model's own answers (nats per token, 95 % interval)", "condition")
    for name in ("token 1", f"tokens 1–{several.split('_')[2]}", "n"):
        table.add_column(name, justify="right")
    for m in found.summed_up("kl_first_token"):
        table.add_row(
            m.condition, number(m), number(found.get(several, m.set, m.condition)), str(m.n)
        )
    return table


def capabilities(found: Found) -> Iterator[Table]:
    """The main metric of each benchmark, and its change from the baseline on the same items; random
    ones together.
    """
    scores = [
        m
        for m in found.by_key.values()
        if m.name.startswith(CAPABILITY) and not m.name.endswith("_change")
    ]
    for task, name in {m.set: m.name for m in reversed(scores)}.items():  # the first of each task
        metric = name.removeprefix(CAPABILITY).replace(",", ", ")
        table = _table(f"Capability: {task}, {metric} (95 % interval, change paired)", "condition")
        for column in ("score", "change", "p", "n"):
            table.add_column(column, justify="right")
        for m in scores:
            if (m.set, m.name) == (task, name) and _SINGLE_RANDOM.match(m.condition) is None:
                change = found.get(f"{name}_change", task, m.condition)
                p = "" if change is None or change.p_value is None else f"{change.p_value:.2g}"
                share_like = 0 <= m.low <= m.high <= 1
                row = (
                    (share(m), points(change)) if share_like else (number(m), signed(change, ".3f"))
                )
                table.add_row(m.condition, *row, p, str(m.n))
        yield table


def seeds(found: Found) -> Table:
    """The choice with other seeds: place, scores, cosine with the direction, refusal under its
    ablation; the spread.
    """
    table = _table("Other seeds", "seed", "at")
    for name in ("bypass", "induce", "KL", "cosine", "refusal under ablation"):
        table.add_column(name, justify="right")
    runs = [m.condition for m in found.named("bypass")]
    forms = {"bypass": "+.2f", "induce": "+.2f", "kl": ".3f", "cosine": "+.2f"}
    columns = [
        ([found.get(name, "direction", run) for run in runs], form) for name, form in forms.items()
    ]
    rates = [
        found.get("refusal_rate", "harmful", f"{run}-ablation" if i else "ablation")
        for i, run in enumerate(runs)
    ]  # the first is the run's own
    for i, run in enumerate(runs):
        place = [found.get(name, "direction", run) for name in ("position", "layer")]
        at = f"({place[0].value:.0f}, {place[1].value:.0f})" if place[0] and place[1] else ""
        scores = [f"{m.value:{form}}" if (m := column[i]) else "" for column, form in columns]
        table.add_row(run.removeprefix("seed-"), at, *scores, share(rates[i]))
    if len(runs) > 1:
        table.add_section()
        ranges = [
            f"{min(values):{form}} to {max(values):{form}}"
            if (values := [m.value for m in column if m])
            else ""
            for column, form in columns
        ]
        shares = [m.value for m in rates if m]
        table.add_row(
            "all", "", *ranges, f"{min(shares):.0%} to {max(shares):.0%}" if shares else ""
        )
    return table


def judged(found: Found, names: Sequence[str]) -> Table:
    """What further judges say, by set and condition, and how often they had no valid answer."""
    table = _table("Further judges (95 % interval)", "judge", "prompts", "condition", "measure")
    for name in ("value", "failed", "n"):
        table.add_column(name, justify="right")
    for judge in names:
        for measure in (
            "refusal_rate",
            "refusal_rate_corrected",
            "safety_score",
            "safety_score_corrected",
            "score",
        ):
            for m in found.named(f"{judge}_{measure}"):
                failed = found.get(f"{judge}_failed_rate", m.set, m.condition)
                value = number(m) if measure == "score" else share(m)
                lost = "" if failed is None else f"{failed.value:.0%}"
                table.add_row(
                    judge, m.set, m.condition, measure.replace("_", " "), value, lost, str(m.n)
                )
    return table


def comparison(found: Comparison) -> Table:
    """The runs' rates and drift side by side; the change from the first run where both share
    prompts.
    """
    table = _table(
        "Runs compared (95 % interval; change from run 1 in points, paired)",
        "measure",
        "set",
        "condition",
    )
    for i in range(1, len(found.runs) + 1):
        table.add_column(f"run {i}", justify="right")
        if i > 1:
            table.add_column("change", justify="right")
            table.add_column("p", justify="right")
    for row in found.rows:
        cells = []
        for i, (value, change) in enumerate(zip(row.values, row.changes, strict=True)):
            cells.append(
                share(value)
                if row.name.endswith(SHARES) or row.name.startswith(CAPABILITY)
                else number(value)
            )
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
    return signed(
        None if m is None else replace(m, value=100 * m.value, low=100 * m.low, high=100 * m.high),
        ".0f",
    )


def signed(m: Metric | None, form: str) -> str:
    """A change and its interval."""
    if m is None or math.isinf(m.low):
        return "" if m is None else f"{m.value:+{form}}"
    return _ordered(m, f"{m.value:+{form}}", f"{m.low:+{form}} to {m.high:+{form}}")


def number(m: Metric | None) -> str:
    """A mean and its interval, where it has one."""
    if m is None or math.isinf(m.low):
        return "" if m is None else f"{m.value:.2f}"
    return _ordered(m, f"{m.value:.2f}", f"{m.low:.2f}–{m.high:.2f}")


def _ordered(m: Metric, value: str, interval: str) -> str:
    return f"{interval} ({value})" if m.n < FEW else f"{value} ({interval})"


def _table(title: str, *names: str) -> Table:
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for name in names:
        table.add_column(name)
    return table
