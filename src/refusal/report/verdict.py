"""What a run comes to: one sentence, as honest as the numbers, and the row of numbers under it."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from refusal.core.records import Metric
from refusal.core.tables import minus
from refusal.interventions.conditions import BASELINE
from refusal.report.data import ReportData
from refusal.report.lengths import rising_words

Tone = Literal["clear", "doubtful", "unfinished"]
NOTABLE_DEGENERATE = (
    0.05  # a share of completions that are no language, from which on the verdict says so
)
HARDLY = 0.1  # a model that refuses fewer harmful prompts has no refusal to take away


@dataclass(frozen=True)
class Verdict:
    """The sentence, what qualifies it, and whether the run shows what the method claims."""

    sentence: str
    notes: tuple[str, ...]
    tone: Tone


@dataclass(frozen=True)
class Number:
    """One of the first numbers; ``metric`` has its interval where it is an estimate."""

    label: str
    value: str
    interval: str
    n: str
    metric: Metric | None = None


def verdict(data: ReportData) -> Verdict:
    """What the run says about ablation and addition of its direction, and what it does not."""
    if data.selection is None:
        if data.config.strict and data.scores:
            return Verdict(
                "No direction was chosen: no candidate meets the selection rule.", (), "doubtful"
            )
        return Verdict("This run has not chosen a direction yet.", (), "unfinished")
    before, after = (data.find("refusal_rate", "harmful", c) for c in (BASELINE, "ablation"))
    added = data.find("refusal_rate", "harmless", "addition")
    if before is None or after is None:
        place = minus(f"({data.selection.score.position}, {data.selection.score.layer})")
        return Verdict(
            f"A direction was chosen at {place}; what it does is not measured yet.",
            _unqualified(data),
            "unfinished",
        )
    fell = _moved(data, "harmful", "ablation", down=True)
    rose = added is not None and _moved(data, "harmless", "addition", down=False)
    parts = [_ablation(data, before, after, fell), _drift(data)]
    parts += [_addition(added, rose)] if added is not None else []
    parts.append(rising := rising_words(data.metrics))
    notes = tuple(_notes(data, before))
    clear = data.selection.qualified and fell and rose and data.finished and before.value >= HARDLY
    clear = clear and not rising
    tone: Tone = "unfinished" if not data.finished else "clear" if clear else "doubtful"
    return Verdict("; ".join(part for part in parts if part) + ".", notes, tone)


def _unqualified(data: ReportData) -> tuple[str, ...]:
    if data.selection is None or data.selection.qualified:
        return ()
    return (
        "No candidate met the selection rule. The closest one stands in, so that one can see what "
        "was missed; its numbers are not a result about refusal.",
    )


def _moved(data: ReportData, set_name: str, condition: str, *, down: bool) -> bool:
    """Whether the change from the baseline is in that direction, with its whole interval."""
    change = data.find("refusal_rate_change", set_name, condition)
    return change is not None and (change.high < 0 if down else change.low > 0)


def _ablation(data: ReportData, before: Metric, after: Metric, fell: bool) -> str:
    assert data.selection is not None
    score = data.selection.score
    what = "one direction" if data.selection.qualified else "a direction that does not qualify,"
    where = f"{what} at {minus(f'({score.position}, {score.layer})')}"
    comma = "" if data.selection.qualified else ","
    if fell:
        return (
            f"Ablating {where}{comma} takes refusal of harmful prompts from {before.value:.0%} "
            f"to {after.value:.0%}"
        )
    return (
        f"Ablating {where}{comma} does not measurably lower refusal of harmful prompts: "
        f"{before.value:.0%} without, {after.value:.0%} with it"
    )


def _drift(data: ReportData) -> str:
    assert data.selection is not None
    kl, limit = data.selection.score.kl, data.config.kl_threshold
    if kl is None:
        return ""
    return f"harmless behaviour drifts by KL {kl:.2f}" + (
        f", above the limit of {limit:g}" if kl > limit else ""
    )


def _addition(added: Metric, rose: bool) -> str:
    if rose:
        return f"adding it makes {added.value:.0%} of harmless prompts refused"
    return (
        f"adding it does not measurably raise refusal of harmless prompts ({added.value:.0%} "
        "refused)"
    )


def _notes(data: ReportData, before: Metric) -> Iterator[str]:
    """What a reader must know before quoting the sentence."""
    assert data.selection is not None
    yield from _unqualified(data)
    if data.filter is not None and data.filter.automatic and data.filter.kind == "completions":
        yield f"{data.filter.why} {data.calibration.why}".strip()
    elif data.calibration.rule == "cosmic":
        yield data.calibration.why
    if data.config.temperature:
        yield (
            f"Rates are over {data.config.samples} samples of each prompt at temperature "
            f"{data.config.temperature:g}; intervals count prompts, not samples."
        )
    if before.value < HARDLY:
        share = f"{before.value:.0%}"
        yield f"The model refuses {share} of these prompts to begin with: hardly any to remove."
    for set_name, condition in (
        ("harmful", "ablation"),
        ("harmless", "addition"),
        ("harmless", "ablation"),
    ):
        m = data.find("degenerate_rate", set_name, condition)
        if m is not None and m.value >= NOTABLE_DEGENERATE:
            of = f"the completions of {set_name} prompts under {condition}"
            yield f"{m.value:.0%} of {of} are degenerate text."
    for set_name, condition in (("harmful", BASELINE), ("harmful", "ablation")):
        m = data.find("unfinished_rate", set_name, condition)
        if m is not None and m.value >= NOTABLE_DEGENERATE:
            of = f"{set_name} prompts under {condition}"
            yield f"{m.value:.0%} of the completions of {of} are thoughts that did not end."
    control = data.find("refusal_rate_change", "harmful", "random-ablation")
    if control is not None:
        value, low, high = (f"{100 * x:+.0f}" for x in (control.value, control.low, control.high))
        yield minus(
            f"Ablating random directions instead changes refusal by {value} points ({low} to "
            f"{high}, first {control.n} prompts)."
        )
    aside = data.find("refusal_rate_change", "harmless", "ablation")
    if aside is not None and aside.high < 0:
        base, with_it = (data.find("refusal_rate", "harmless", c) for c in (BASELINE, "ablation"))
        if base is not None and with_it is not None:
            yield (
                "Ablation also ends refusals of harmless prompts: "
                f"{base.value:.0%} without it, {with_it.value:.0%} with it."
            )


def numbers(data: ReportData) -> tuple[Number, ...]:
    """The first numbers, those that there are."""
    shown = (
        ("Harmful prompts refused", "harmful", BASELINE),
        ("… under ablation", "harmful", "ablation"),
        ("Harmless prompts refused", "harmless", BASELINE),
        ("… under addition", "harmless", "addition"),
    )
    found = []
    for label, set_name, c in shown:
        m = data.find("refusal_rate", set_name, c)
        if m is not None:
            found.append(_rate(label, m))
    kl = data.find("kl_first_token", "own-answers", "ablation")
    if kl is not None:
        found.append(
            Number(
                "Drift, KL (nats)", f"{kl.value:.2f}", f"{kl.low:.2f}–{kl.high:.2f}", f"n {kl.n}"
            )
        )
    elif data.selection is not None and data.selection.score.kl is not None:
        n = data.selection.harmless_count.passed
        found.append(Number("Drift, KL (nats)", f"{data.selection.score.kl:.3f}", "mean", f"n {n}"))
    if data.projections is not None:
        separation = data.projections.auroc[data.projections.layer]
        n = sum(len(rows) for rows in data.projections.along.values())
        found.append(Number("Separation, AUROC", f"{separation:.2f}", "validation", f"n {n}"))
    return tuple(found)


def _rate(label: str, m: Metric) -> Number:
    return Number(label, f"{m.value:.0%}", f"{100 * m.low:.0f}–{100 * m.high:.0f}%", f"n {m.n}", m)
