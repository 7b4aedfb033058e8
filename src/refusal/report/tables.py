"""Metrics as tables: every rate with its interval, every condition with its change.

``TABLES`` names who makes tables of metrics, by the section of the page that shows them; the
terminal and a notebook show all but those in detail. A metric that none of them looks at is in the
last table of all.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence

from refusal.core.records import Metric
from refusal.core.tables import (
    Bar,
    Found,
    Style,
    Table,
    bar,
    is_share,
    number,
    p_value,
    percent,
    points,
    share,
    signed,
    table,
)
from refusal.directions import METHODS
from refusal.evaluations.capability.rates import PREFIX as CAPABILITY
from refusal.evaluations.refusal.rates import SAMPLES
from refusal.interventions.conditions import LABELS
from refusal.report.finders import finder_tables
from refusal.report.four_sets import four_sets
from refusal.report.lengths import AT, length_tables
from refusal.report.thoughts import thought_tables

# Sets whose refusals are mistakes, in the colour of harmless prompts.
WRONG = ("harmless", "xstest-safe", "orbench-hard")
CONTROLS = {"random": "random", "shuffled": "shuffled labels", "matched": "matched pairs"}
_CONTROLLED = re.compile(rf"({'|'.join(CONTROLS)})-(?!\d)(.+)")  # random directions together
_ONE_OF_MANY = re.compile(r"random-\d.*|seed-\d.*")
_OF_SAMPLES = SAMPLES.format("(all|some|no)")
_RATE = (
    rf".*(_rate|_score)(_corrected)?|{AT}|{_OF_SAMPLES}|sensitivity|specificity|agreement|"
    rf"{CAPABILITY}.*"
)
# Beside a number that is shown; metrics.json has them.
_ASIDE = "partial_rate|substring_refusal_rate|perplexity|.*_change|position|layer|transfer_.*"


def style_of(set_name: str) -> Style:
    """Return the colour of a set of prompts."""
    return "harmless" if set_name in WRONG else "harmful"


def is_rate(name: str) -> bool:
    """Tell whether metrics of that name are shares, as far as their values allow."""
    return re.fullmatch(_RATE, name) is not None


def rates(found: Found) -> Iterator[Table]:
    """Refusal of harmful and harmless prompts under the direction's own conditions."""
    note = (
        "95% Wilson intervals; changes are from the baseline on the same prompts, in points "
        "(Newcombe)."
    )
    right = [found.get(name, "judges", "detector") for name in ("sensitivity", "specificity")]
    if all(right):
        finds, spares = (f"{share(m)} of {m.n}" for m in right if m is not None)
        note += (
            f" Corrected for the detector's errors (Rogan-Gladen): of refusals it finds {finds}, "
            f"of other completions it leaves alone {spares} that people labelled. It may err "
            "otherwise on this model."
        )
    rows = [m for m in _summed_up(found) if m.set in LABELS and not _control(m)]
    if any(found.get(SAMPLES.format("all"), m.set, m.condition) for m in rows):
        note += " Shares of all samples; the samples of a prompt go together in every interval."
    yield from _rate_table(found, rows, "Share of completions that refuse", note)


def samples(found: Found) -> Iterator[Table]:
    """How many prompts are refused in all, in some and in none of their samples."""
    rows = []
    for m in _summed_up(found, SAMPLES.format("all")):
        names = ("all", "some", "no")
        shares = [found.get(SAMPLES.format(name), m.set, m.condition) for name in names]
        rows.append((m.set, _control(m) or m.condition, *map(share, shares), str(m.n)))
    labels, columns = ("prompts", "condition"), ("in all", "in some", "in none", "n")
    title = "Share of prompts that are refused in all, in some and in none of their samples"
    yield table(title, labels, columns, rows, note="95% Wilson intervals.", grouped=True)


def changes(found: Found) -> Iterator[Table]:
    """How far the direction and the control directions change refusal, side by side."""
    kinds = {"": "this direction"} | {f"{kind}-": kind for kind in CONTROLS}
    rows = []
    for m in _summed_up(found):
        if m.set in LABELS and not _control(m):
            name = "refusal_rate_change"
            cells = [found.get(name, m.set, kind + m.condition) for kind in kinds]
            if any(cells[1:]):
                rows.append((m.set, m.condition, *map(points, cells)))
    cosines = {m.condition: f"{m.value:+.2f}" for m in found.named("cosine")}
    if rows:
        rows.append(("cosine", "", "", *(cosines.get(kind, "") for kind in CONTROLS)))
    random = (m for m in found.named("refusal_rate_change") if m.condition.startswith("random-"))
    n = next((m.n for m in random), 0)
    title = f"Change of the refusal rate by control directions (points; first {n} prompts)"
    yield table(title, ("prompts", "condition"), tuple(kinds.values()), rows)


def controls(found: Found) -> Iterator[Table]:
    """Refusal under the same interventions with control directions, the random ones together."""
    rows = [m for m in _summed_up(found) if m.set in LABELS and _control(m)]
    kinds = list(CONTROLS.values())
    order = list(dict.fromkeys(_control(m).partition(", ")[0] for m in rows))

    def place(m: Metric) -> tuple[int, int]:
        action, _, kind = _control(m).partition(", ")
        return order.index(action), kinds.index(kind)

    title = "The same with control directions"
    note = "Random directions of the same norm are taken together."
    yield from _rate_table(found, sorted(rows, key=place), title, note, detail=True)


def over_refusal(found: Found) -> Iterator[Table]:
    """Refusal of prompts that only look harmful, and of their unsafe halves."""
    rows = [m for m in _summed_up(found) if m.set not in LABELS]
    yield from _rate_table(found, rows, "Refusal on over-refusal sets")


def _summed_up(found: Found, name: str = "refusal_rate") -> list[Metric]:
    """Without single random directions and other seeds."""
    return [m for m in found.named(name) if not _ONE_OF_MANY.match(m.condition)]


def _control(m: Metric) -> str:
    """The action and the kind of control direction in words; empty for the direction itself."""
    match = _CONTROLLED.fullmatch(m.condition)
    return f"{match[2]}, {CONTROLS[match[1]]}" if match else ""


def _rate_table(
    found: Found, metrics: Sequence[Metric], title: str, note: str = "", detail: bool = False
) -> Iterator[Table]:
    order = list(dict.fromkeys(m.set for m in metrics))
    some = [found.get("unfinished_rate", m.set, m.condition) for m in metrics]
    more = ("unfinished",) if any(some) else ()

    def unfinished(m: Metric) -> tuple[str, ...]:
        rate = found.get("unfinished_rate", m.set, m.condition)
        return (f"{0.0 if rate is None else rate.value:.0%}",) * len(more)

    rows: list[Sequence[str | float | Bar | None]] = []
    for m in sorted(metrics, key=lambda m: order.index(m.set)):
        names = ("refusal_rate_corrected", "refusal_rate_change", "degenerate_rate")
        corrected, change, degenerate = (found.get(name, m.set, m.condition) for name in names)
        label = _control(m) or m.condition
        shown = (share(m), bar(m, style_of(m.set)), share(corrected), points(change))
        rows.append((m.set, label, *shown, percent(degenerate), *unfinished(m), str(m.n)))
    labels = ("prompts", "condition")
    columns = ("refused", "0 to 100%", "corrected", "change, points", "degenerate", *more, "n")
    yield table(title, labels, columns, rows, note=note, grouped=True, detail=detail)


def cross_entropies(found: Found) -> Iterator[Table]:
    """Cross-entropy on each kind of text, and its change."""
    metrics = _summed_up(found, "cross_entropy")
    for text in dict.fromkeys(m.set for m in metrics):
        rows = []
        for m in metrics:
            if m.set == text:
                change = found.get("cross_entropy_change", text, m.condition)
                rows.append((_words(m), number(m), signed(change, ".3f"), str(m.n)))
        title = f"Cross-entropy on {text} (nats per token, 95% interval)"
        yield table(title, ("condition",), ("cross-entropy", "change", "n"), rows)


def divergence(found: Found) -> Iterator[Table]:
    """KL from the unmodified model along its own answers to harmless prompts."""
    several = found.named(r"kl_first_\d+_tokens")
    name = several[0].name if several else "kl_first_0_tokens"
    rows = []
    for m in _summed_up(found, "kl_first_token"):
        later = found.get(name, m.set, m.condition)
        rows.append((_words(m), number(m), number(later), str(m.n)))
    columns = ("token 1", f"tokens 1–{name.split('_')[2]}", "n")
    title = "KL along the model's own answers (nats per token, 95% interval)"
    yield table(title, ("condition",), columns, rows)


def _words(m: Metric) -> str:
    return _control(m) or m.condition


def capabilities(found: Found) -> Iterator[Table]:
    """The main metric of each benchmark, and its change from the baseline on the same items."""
    scores = [m for m in found.named(f"{CAPABILITY}.*") if not m.name.endswith("_change")]
    for task, name in {m.set: m.name for m in reversed(scores)}.items():  # the first of each task
        rows = []
        for m in scores:
            if (m.set, m.name) == (task, name) and not _ONE_OF_MANY.match(m.condition):
                change = found.get(f"{name}_change", task, m.condition)
                shown = (number(m), signed(change, ".3f"))
                if is_share([m]):
                    shown = (share(m), points(change))
                rows.append((_words(m), *shown, p_value(change), str(m.n)))
        metric = name.removeprefix(CAPABILITY).replace(",", ", ")
        title = f"Capability: {task}, {metric} (95% interval, change paired)"
        yield table(title, ("condition",), ("score", "change", "p", "n"), rows)


def seeds(found: Found) -> Iterator[Table]:
    """The choice with other seeds: place, scores, cosine, refusal under ablation; the spread."""
    runs = [m.condition for m in found.named("layer")]
    own = {name: "+.3f" for name in METHODS if any(found.named(name))}
    forms = {"bypass": "+.2f", "induce": "+.2f", "kl": ".3f", **own, "cosine": "+.2f"}
    kept: dict[str, list[Metric]] = {name: [] for name in (*forms, "refusal_rate")}
    rows = []
    for i, run in enumerate(runs):
        place = [found.get(name, "direction", run) for name in ("position", "layer")]
        at = f"({place[0].value:.0f}, {place[1].value:.0f})" if place[0] and place[1] else ""
        cells = []
        for name, form in forms.items():
            m = found.get(name, "direction", run)
            cells.append(f"{m.value:{form}}" if m else "")
            kept[name] += [m] if m else []
        # the first is the run's own
        m = found.get("refusal_rate", "harmful", f"{run}-ablation" if i else "ablation")
        kept["refusal_rate"] += [m] if m else []
        rows.append((run.removeprefix("seed-"), at, *cells, share(m)))
    if len(runs) > 1:
        spread = []
        for name, metrics in kept.items():
            values = [m.value for m in metrics]
            form = forms.get(name, ".0%")
            spread.append(f"{min(values):{form}} to {max(values):{form}}" if values else "")
        rows.append(("all", "", *spread))
    columns = ("bypass", "induce", "KL", *own, "cosine", "refusal under ablation")
    yield table("Other seeds", ("seed", "at"), columns, rows)


def judged(found: Found) -> Iterator[Table]:
    """What further judges say, by set and condition, and how often they had no valid answer."""
    measures = ("refusal_rate", "refusal_rate_corrected", "safety_score", "safety_score_corrected")
    rows = []
    failures = [m.name.removesuffix("_failed_rate") for m in found.named(".+_failed_rate")]
    for judge in dict.fromkeys(failures):
        for measure in (*measures, "score"):
            for m in found.named(re.escape(f"{judge}_{measure}")):
                failed = found.get(f"{judge}_failed_rate", m.set, m.condition)
                value = number(m) if measure == "score" else share(m)
                about = (judge, m.set, m.condition, measure.replace("_", " "), value)
                if failed is not None:  # the detector's own rules have names like a judge's
                    rows.append((*about, percent(failed), str(m.n)))
    labels = ("judge", "prompts", "condition", "measure")
    yield table("Further judges (95% interval)", labels, ("value", "failed", "n"), rows)


def agreement(found: Found) -> Iterator[Table]:
    """How far every two judges agree."""
    rows = []
    for m in found.named("agreement"):
        kappa = found.get("kappa", m.set, m.condition)
        pair = m.condition.replace("/", " and ", 1)
        rows.append((pair, share(m), f"{kappa.value:.2f}" if kappa else "", str(m.n)))
    yield table("Agreement of judges", ("judges",), ("agree", "kappa", "n"), rows)


def others(found: Found) -> Iterator[Table]:
    """Whatever no table above has looked at."""
    found.named(_ASIDE)
    rows = []
    for m in found.rest():
        value = share(m) if is_rate(m.name) and is_share([m]) else number(m)
        rows.append((m.name.replace("_", " "), m.set, m.condition, value, str(m.n)))
    labels = ("measure", "prompts", "condition")
    yield table("Other measures (95% interval)", labels, ("value", "n"), rows, grouped=True)


# By section of the page, in its order; ``others`` stays last of all.
TABLES: dict[str, tuple[Callable[[Found], Iterable[Table]], ...]] = {
    "rates": (rates, samples, changes, controls),
    "lengths": (length_tables,),
    "choice": (seeds, finder_tables),
    "separation": (thought_tables,),
    "judges": (judged, agreement),
    "side-effects": (four_sets, over_refusal, divergence, cross_entropies, capabilities, others),
}


def tables_by_section(metrics: Sequence[Metric]) -> dict[str, tuple[Table, ...]]:
    """Return all tables that there is something in, by section of the page."""
    found = Found(metrics)
    made = {}
    for section, makers in TABLES.items():
        made[section] = tuple(t for make in makers for t in make(found) if t.rows)
    return made


def all_tables(metrics: Sequence[Metric]) -> list[Table]:
    """Return the tables that there is something in, but for those in ``detail``."""
    every = tables_by_section(metrics).values()
    return [t for tables in every for t in tables if not t.detail]
