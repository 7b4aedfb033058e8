"""What an audit has found as tables: attack by attack, by length, the numbers, the curves."""

import math
from collections.abc import Iterator

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
    "Harmful test prompts, which no search has seen (95% Wilson). On validation: what the attack "
    "was chosen by. Seconds, tokens: of finding it, beside the textbook direction that all begin "
    "with."
)
COSTS = (
    "Refusal of the over-refusal sets; KL from the unmodified model at the first token of harmless "
    "answers, and its mean over the first tokens; CE: change of cross-entropy along them; all in "
    "nats a token."
)


def audit_tables(found: Audited) -> Iterator[Table]:
    """All tables, the one of the attacks first."""
    yield attack_table(found)
    yield cost_table(found)
    yield number_table(found)
    for curve in (strength_curve(found.attacks), rank_curve(found.attacks)):
        if len(curve.x) > 2:
            yield _curve_table(found, curve, "rank" if curve.x[1] == 1 else "strength")
    harmful = [m for m in found.metrics if m.set == HARMFUL]
    shown = {BASELINE, *(r.chosen for r in found.attacks if r.chosen is not None)}
    yield from length_tables(Found([m for m in harmful if m.condition in shown]))


def attack_table(found: Audited) -> Table:
    """A row an attack: what it leaves, and what finding it took."""
    rows = []
    for name, arm, record in _tried(found):
        refusal = found.find("refusal_rate", HARMFUL, arm)
        left: list[Cell] = [_arm(name, arm, record)]
        left.append("" if refusal is None else bar(refusal, "harmful"))
        left += [share(refusal), share(found.find("degenerate_rate", HARMFUL, arm))]
        rows.append((name, *left, _validated(record), *_spent(found, record)))
    numbers = ("0 to 100%", "refusal", "degenerate", "on validation", "seconds", "tokens", "cost")
    return table("Attacks", ("attack", "arm"), numbers, rows, note=RULE)


def cost_table(found: Audited) -> Table:
    """A row an attack: over-refusal, drift and benchmarks under it."""
    over = [s for s in dict.fromkeys(m.set for m in found.metrics) if s.startswith(("xs", "orb"))]
    tasks = dict.fromkeys(m.set for m in found.metrics if m.name.startswith("capability_"))
    rows = []
    for name, arm, record in _tried(found):
        if record is not None and record.chosen is None:
            continue
        row: list[Cell] = [name, _arm(name, arm, record)]
        row += [share(found.find("refusal_rate", set_name, arm)) for set_name in over]
        row += [number(found.find("kl_first_token", OWN, arm), 3), number(_kl(found, arm), 3)]
        row.append(signed(found.find("cross_entropy_change", OWN, arm), ".3f"))
        rows.append((*row, *(_ability(found, task, arm) for task in tasks)))
    numbers = (*over, "KL first", "KL", "CE", *tasks)
    return table("What they cost the model", ("attack", "arm"), numbers, rows, note=COSTS)


def _tried(found: Audited) -> Iterator[tuple[str, str, AttackRecord | None]]:
    """Every row's attack, arm and record: nothing first, then the attacks, a control's arms each;
    the arm of one that cannot be made is empty.
    """
    yield NOTHING, BASELINE, None
    for record in found.attacks:
        if record.kind == "control":
            for arm in record.arms:
                yield "control", arm.name, None
        else:
            yield record.name, record.chosen or "", record


def _arm(name: str, arm: str, record: AttackRecord | None) -> str:
    """The arm where it is not called as the attack is, and whether it breaks the model."""
    if record is not None and record.chosen is None:
        return "cannot be made"
    shown = "" if arm in (BASELINE, name) else arm.removeprefix("control-")
    beyond = record is not None and not record.within
    return f"{shown} (beyond the damage limit)".strip() if beyond else shown


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
