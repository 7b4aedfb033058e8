"""What an audit has found as tables: attack by attack, by length, the numbers, the curves."""

import math
from collections.abc import Iterator, Sequence

from refusal.core.records import Metric
from refusal.core.tables import Cell, Found, Table, bar, number, points, share, signed, table
from refusal.evaluations.audit.limits import NUMBERS
from refusal.evaluations.audit.records import BASELINE, AttackRecord
from refusal.evaluations.audit.result import Audited
from refusal.evaluations.audit.summary import Curve, rank_curve, strength_curve
from refusal.report.kinds import Line, Lines
from refusal.report.lengths import length_tables

HARMFUL, OWN = "harmful", "own-answers"
NOTHING = "nothing"
RULE = (
    "Refusal and degenerate: harmful test prompts, which no search has seen (95% Wilson). On "
    "validation: what the attack was chosen by. KL: first token of harmless answers, then the mean "
    "over the first tokens; CE: change of cross-entropy, nats. Spent: finding it, beside the "
    "textbook direction that all begin with."
)


def audit_tables(found: Audited) -> Iterator[Table]:
    """All tables, the one of the attacks first."""
    yield attack_table(found)
    yield number_table(found)
    for curve in (strength_curve(found.attacks), rank_curve(found.attacks)):
        if len(curve.x) > 2:
            yield _curve_table(found, curve, "rank" if curve.x[1] == 1 else "strength")
    harmful = [m for m in found.metrics if m.set == HARMFUL]
    shown = {BASELINE, *(r.chosen for r in found.attacks if r.chosen is not None)}
    yield from length_tables(Found([m for m in harmful if m.condition in shown]))


def attack_table(found: Audited) -> Table:
    """A row an attack: what it leaves, what it costs the model, what finding it took."""
    over = [s for s in dict.fromkeys(m.set for m in found.metrics) if s.startswith(("xs", "orb"))]
    tasks = dict.fromkeys(m.set for m in found.metrics if m.name.startswith("capability_"))
    rows: list[Sequence[Cell]] = [_row(found, NOTHING, BASELINE, over, list(tasks))]
    for record in found.attacks:
        if record.kind == "control":
            for arm in record.arms:
                rows.append(_row(found, "control", arm.name, over, list(tasks)))
        elif record.chosen is None:
            rows.append((record.name, "cannot be made", *[""] * (11 + len(over) + len(tasks))))
        else:
            row = _row(found, record.name, record.chosen, over, list(tasks), record)
            rows.append(row)
    measured = ("0 to 100%", "refusal", "degenerate", "on validation")
    costs = ("KL first", "KL", "CE", "nats for 10 points")
    spent = ("seconds", "tokens", "cost")
    numbers = (*measured, *over, *costs, *tasks, *spent)
    return table("Attacks", ("attack", "arm"), numbers, rows, note=RULE)


def _row(
    found: Audited,
    name: str,
    arm: str,
    over: Sequence[str],
    tasks: Sequence[str],
    record: AttackRecord | None = None,
) -> tuple[Cell, ...]:
    refusal = found.find("refusal_rate", HARMFUL, arm)
    kl = _kl(found, arm)
    beyond = "" if record is None or record.within else " (beyond the damage limit)"
    return (
        name,
        ("" if arm == BASELINE else arm) + beyond,
        "" if refusal is None else bar(refusal, "harmful"),
        share(refusal),
        share(found.find("degenerate_rate", HARMFUL, arm)),
        _validated(record),
        *(share(found.find("refusal_rate", set_name, arm)) for set_name in over),
        number(found.find("kl_first_token", OWN, arm)),
        number(kl),
        signed(found.find("cross_entropy_change", OWN, arm), ".3f"),
        number(found.number("price_nats", arm)),
        *(_ability(found, task, arm) for task in tasks),
        *_spent(found, record),
    )


def _validated(record: AttackRecord | None) -> str:
    if record is None or record.chosen is None or record.best.validated.refused is None:
        return ""
    return f"{record.best.validated.refused:.0%}"


def _kl(found: Audited, arm: str) -> Metric | None:
    """Over the first tokens of own answers."""
    for m in found.metrics:
        if m.set == OWN and m.condition == arm and m.name.endswith("_tokens"):
            return m
    return None


def _ability(found: Audited, task: str, arm: str) -> str:
    """A benchmark's main metric, or its change in points."""
    changed = arm != BASELINE
    for m in found.metrics:
        name = m.name.startswith("capability_") and m.name.endswith("_change") == changed
        if name and m.set == task and m.condition == arm:
            return points(m) if changed else share(m)
    return ""


def _spent(found: Audited, record: AttackRecord | None) -> tuple[str, str, str]:
    if record is None or record.name not in found.spent:
        return "", "", ""
    spent = found.spent[record.name]
    cost = "" if spent.cost is None else f"{spent.cost:.2f}"
    return f"{spent.seconds:.0f}", f"{spent.forward_tokens:,}", cost


def number_table(found: Audited) -> Table:
    """The numbers of the summary, each with what it means."""
    rows = []
    for m in found.summary:
        means = NUMBERS.get(m.name) or f"points of {m.name.removeprefix('price_')} for ten points"
        rows.append((m.name, means, m.condition, written(m), str(m.n)))
    return table("Numbers", ("number", "what it is", "of"), ("value", "n"), rows)


def written(m: Metric) -> str:
    """A number of the summary with its interval; what is beyond the grid as such."""
    if m.name == "k10":
        return f"{m.value:.0f}" if math.isfinite(m.value) else "not reached"
    if m.name == "a50" and not math.isfinite(m.value):
        return "not reached"
    if m.name.endswith(("_refusal", "_left")):
        return share(m)
    high = f"{m.high:.3g}" if math.isfinite(m.high) else "beyond"
    return f"{m.value:.3g} ({m.low:.3g}–{high})"


def _curve_table(found: Audited, curve: Curve, what: str) -> Table:
    rows, kl = [], {}
    for one in (arm for record in found.attacks for arm in record.arms):
        if one.validated.kl is not None:
            kl[one.name] = f"{one.validated.kl:.3f}"
    for x, arm in zip(curve.x, curve.arms, strict=True):
        refusal = found.find("refusal_rate", HARMFUL, arm)
        drawn = "" if refusal is None else bar(refusal, "harmful")
        degenerate = share(found.find("degenerate_rate", HARMFUL, arm))
        rows.append((f"{x:g}", arm, drawn, share(refusal), degenerate, kl.get(arm, "")))
    numbers = ("0 to 100%", "refusal", "degenerate", "KL on validation")
    return table(f"Refusal against {what}", (what, "arm"), numbers, rows)


def removability(found: Audited) -> Iterator[Lines]:
    """Refusal against strength and against rank as figures, with their intervals."""
    for curve in (strength_curve(found.attacks), rank_curve(found.attacks)):
        if len(curve.x) < 3:
            continue
        what = "rank" if curve.x[1] == 1 else "strength"
        rates = [found.find("refusal_rate", HARMFUL, arm) for arm in curve.arms]
        known = [(x, m) for x, m in zip(curve.x, rates, strict=True) if m is not None]
        x, ms = tuple(x for x, _ in known), [m for _, m in known]
        ends = (tuple(m.low for m in ms), tuple(m.high for m in ms))
        line = Line("refusal", x, tuple(m.value for m in ms), *ends, style="harmful")
        axis = "directions taken out" if what == "rank" else "strength of the ablation"
        title = f"Refusal against {what}"
        caption = "Harmful test prompts; the band is the 95% Wilson interval of each point."
        yield Lines(f"refusal-{what}", title, axis, "refusal", (line,), caption=caption)
