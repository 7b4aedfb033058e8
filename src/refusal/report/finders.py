"""Several finders of a direction side by side, as tables."""

from collections.abc import Iterator, Sequence
from typing import Any

from refusal.core.records import Metric, finite
from refusal.core.tables import Found, Table, bar, minus, number, percent, points, share, table
from refusal.interventions.conditions import BASELINE

SET = "finders"
NUMBERS = ("position", "layer", "qualified", "bypass", "induce", "kl", "auroc")
SCORES = ("at", "bypass", "induce", "KL")
EFFECTS = ("reads (AUROC)", "refused", "0 to 100%", "change, points", "degenerate")
RATES = ("refusal_rate", "refusal_rate_change", "degenerate_rate")


def finder_tables(found: Found) -> Iterator[Table]:
    """Place and scores of each finder; what it reads and writes; the cosines of every two.

    Two tables, since one is wider than a terminal.
    """
    places, effects = [], []
    for name in _names(found):
        of = {key: found.get(f"finder_{key}", SET, name) for key in (*NUMBERS, *RATES)}
        if of["layer"] is not None:
            places.append((name, _place(of), *_scores(of)))
        refused, change, degenerate = (of[key] for key in RATES)
        shown = "" if refused is None else bar(refused, "harmful")
        rates = (share(refused), shown, points(change), percent(degenerate))
        effects.append((name, number(of["auroc"]), *rates))
    note = "On validation prompts. *: no candidate qualified, the closest stands in."
    yield table("Finders: what they choose", ("method",), SCORES, places, note=note)
    note = (
        "Reads: harmful against harmless test prompts of the unmodified model, by the component "
        "along the direction at its place (Newcombe's interval). Refused: harmful test prompts "
        "under its ablation (Wilson; the change is paired). 95% intervals. A random direction "
        "reads by chance to either side of 0.5."
    )
    yield table("Finders: what they read and write", ("method",), EFFECTS, effects, note=note)
    yield _cosines(found)


def finder_rows(metrics: Sequence[Metric]) -> list[dict[str, Any]]:
    """A row for each finder with all that was measured, and the bounds where it is an estimate."""
    found: dict[str, dict[str, Any]] = {}
    for m in metrics:
        if m.set == SET and m.name != "finder_cosine":
            name, row = m.name.removeprefix("finder_"), found.setdefault(m.condition, {})
            row |= {"method": m.condition, name: m.value}
            if m.n > 1:
                row |= {f"{name}_low": m.low, f"{name}_high": m.high, f"{name}_n": m.n}
        elif m.set == SET:
            one, _, other = m.condition.partition("/")
            row = found.setdefault(one, {"method": one})
            row[f"cosine_{other}"] = m.value
    return [finite(row) for row in found.values()]


def _names(found: Found) -> list[str]:
    """The methods, the random direction and the baseline."""
    metrics = (*found.named("finder_layer"), *found.named("finder_refusal_rate"))
    names = dict.fromkeys(m.condition for m in metrics)
    return sorted(names, key=lambda name: name == BASELINE)


def _place(of: dict[str, Metric | None]) -> str:
    position, layer, qualified = (of[key] for key in ("position", "layer", "qualified"))
    if position is None or layer is None:
        return ""
    star = "*" if qualified is not None and not qualified.value else ""
    return minus(f"({position.value:.0f}, {layer.value:.0f}){star}")


def _scores(of: dict[str, Metric | None]) -> list[str]:
    """Bypass, induce and KL."""
    forms = {"bypass": "+.2f", "induce": "+.2f", "kl": ".3f"}
    shown = []
    for name, form in forms.items():
        m = of[name]
        shown.append("" if m is None else minus(f"{m.value:{form}}"))
    return shown


def _cosines(found: Found) -> Table:
    values = {m.condition: m.value for m in found.named("finder_cosine")}
    names = list(dict.fromkeys(pair.partition("/")[0] for pair in values))
    rows = [(a, *(minus(f"{values[f'{a}/{b}']:+.2f}") for b in names)) for a in names]
    return table("Cosines of the chosen directions", ("method",), names, rows)
