"""Both classes and both halves of XSTest in one table: does a condition end false refusals and
leave the true ones? Benchmarks that were run stand beside it.
"""

from collections.abc import Iterator

from refusal.core.records import Metric
from refusal.core.tables import Found, Table, number, p_value, share, table
from refusal.evaluations.capability.rates import PREFIX
from refusal.interventions.conditions import BASELINE, is_plain

SETS = ("harmful", "xstest-unsafe", "harmless", "xstest-safe", "orbench-hard")
NEEDED = ("xstest-safe", "xstest-unsafe")


def four_sets(found: Found) -> Iterator[Table]:
    """A row for each condition: refusal of every set, and McNemar's p of its change."""
    known = {(m.set, m.condition): m for m in found.named("refusal_rate") if is_plain(m.condition)}
    sets = [name for name in SETS if (name, BASELINE) in known]
    if not set(NEEDED) <= set(sets):
        return
    rows = []
    for condition in dict.fromkeys(condition for _, condition in known):
        cells: list[str] = []
        for name in sets:
            change = found.get("refusal_rate_change", name, condition)
            cells += [share(known.get((name, condition))), p_value(change)]
        for task, measure in _tasks(found).items():
            score = found.get(measure, task, condition)
            change = found.get(f"{measure}_change", task, condition)
            cells += [_score(score), p_value(change)]
        rows.append((condition, *cells))
    fires = [share(found.get("fires_rate", name, "monitor")) for name in sets]
    if any(fires):
        cells = [cell for each in fires for cell in (each, "")]
        rows.append(("monitor fires", *cells, *[""] * (2 * len(_tasks(found)))))
    names = [name for each in (*sets, *_tasks(found)) for name in (each, f"p, {each}")]
    note = (
        "Share that is refused, with Wilson's 95% interval; p: McNemar's exact test of the change "
        "from the baseline on the same prompts. Refusals of harmful and xstest-unsafe prompts are "
        "meant to stay, those of the others are false."
    )
    title = "Refusal where it is due and where it is not"
    yield table(title, ("condition",), names, rows, note=note)


def _tasks(found: Found) -> dict[str, str]:
    """The main measure of each benchmark."""
    scores = [m for m in found.named(f"{PREFIX}.*") if not m.name.endswith("_change")]
    return {m.set: m.name for m in reversed(scores)}  # the first of each


def _score(m: Metric | None) -> str:
    return share(m) if m is not None and 0 <= m.low <= m.high <= 1 else number(m)
