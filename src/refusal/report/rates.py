"""Shares with intervals as rows: refusal by condition, with control directions, by category, on
other sets.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from refusal.core.records import Completion, Metric
from refusal.core.stats import rate
from refusal.evaluations.refusal.rates import metric
from refusal.interventions.conditions import ACTIONS, BASELINE, CONDITIONS

CONTROLS = {"random": "random", "shuffled": "shuffled labels", "matched": "matched pairs"}
PLAIN = (BASELINE, "ablation", "subtraction", "addition")


@dataclass(frozen=True)
class Row:
    """A share under a name; where there are such, the corrected one, its change, and the share of
    degenerate text.
    """

    set: str
    label: str
    metric: Metric
    change: Metric | None = None
    degenerate: Metric | None = None
    corrected: Metric | None = None


def rate_rows(metrics: Sequence[Metric]) -> tuple[Row, ...]:
    """Refusal of harmful and harmless prompts under the direction's own conditions."""
    found = _by_key(metrics)
    return tuple(
        _row(found, set_name, condition, condition)
        for set_name, condition in CONDITIONS
        if ("refusal_rate", set_name, condition) in found
    )


def controlled_rows(metrics: Sequence[Metric]) -> tuple[Row, ...]:
    """The same with control directions, the random ones together."""
    found = _by_key(metrics)
    return tuple(
        _row(found, set_name, f"{kind}-{action}", f"{action}, {words}")
        for set_name, actions in ACTIONS.items()
        for action in actions
        for kind, words in CONTROLS.items()
        if ("refusal_rate", set_name, f"{kind}-{action}") in found
    )


def other_rows(metrics: Sequence[Metric]) -> tuple[Row, ...]:
    """Refusal on the over-refusal sets, with the random directions together."""
    found = _by_key(metrics)
    sets = dict.fromkeys(
        m.set for m in metrics if m.name == "refusal_rate" and m.set not in ACTIONS
    )
    conditions = (*PLAIN, *(f"random-{action}" for action in PLAIN))
    return tuple(
        _row(found, set_name, condition, condition.replace("random-", "random "))
        for set_name in sets
        for condition in conditions
        if ("refusal_rate", set_name, condition) in found
    )


def category_rows(
    completions: Mapping[tuple[str, str], Sequence[Completion]],
    categories: Mapping[str, str],
    set_name: str,
) -> Iterator[tuple[str, dict[str, Metric]]]:
    """Per category of a set, refusal by condition; prompts without a category are one of their
    own.
    """
    conditions = [c for s, c in completions if s == set_name]
    names = dict.fromkeys(
        categories.get(c.prompt_id, "")
        for condition in conditions
        for c in completions[set_name, condition]
    )
    for name in sorted(names, key=lambda name: (not name, name.casefold())):
        found = {}
        for condition in conditions:
            rows = [
                c
                for c in completions[set_name, condition]
                if categories.get(c.prompt_id, "") == name
            ]
            hits = [c.verdict in ("refusal", "partial") for c in rows]
            found[condition] = metric("refusal_rate", set_name, condition, rate(hits), len(rows))
        yield name or "no category", found


def _by_key(metrics: Sequence[Metric]) -> dict[tuple[str, str, str], Metric]:
    return {(m.name, m.set, m.condition): m for m in metrics}


def _row(
    found: Mapping[tuple[str, str, str], Metric], set_name: str, condition: str, label: str
) -> Row:
    return Row(
        set_name,
        label,
        found["refusal_rate", set_name, condition],
        found.get(("refusal_rate_change", set_name, condition)),
        found.get(("degenerate_rate", set_name, condition)),
        found.get(("refusal_rate_corrected", set_name, condition)),
    )
