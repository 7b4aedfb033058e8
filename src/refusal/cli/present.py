"""Everything that is printed: what a command found, for a person or as JSON, and single lines.

Results go to stdout, what is said about them to stderr. ``VIEWS`` has a view for each kind of
record, by the name of its class, so that nothing slow is imported for what is not shown.
"""

import json
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table as RichTable
from rich.text import Text

from refusal.cli.console import err, out
from refusal.cli.drawing import drawn
from refusal.cli.present_audit import COMPARED_VIEWS
from refusal.cli.present_monitor import MONITOR_VIEWS
from refusal.cli.present_weights import WEIGHT_VIEWS
from refusal.core.text import sanitised

if TYPE_CHECKING:
    from refusal.audits.self_checks import Inspection
    from refusal.cli.doctor import Finding
    from refusal.core.records import RefusalTokens
    from refusal.directions.records import Selection
    from refusal.pipeline.costs.estimate import Estimate
    from refusal.runs.result import RunResult
    from refusal.weights.save import Exported


def present(record: object, as_json: bool = False, quiet: bool = False) -> None:
    """Print what a command found: for a person, as one JSON value, or (``quiet``) not at all.

    Args:
        record: one of the records of ``VIEWS``, or a tuple of them.
    """
    kind = record[0] if isinstance(record, tuple) else record
    names = [each.__name__ for each in type(kind).__mro__]  # a view is good for subclasses too
    show, to_value = next(VIEWS[name] for name in names if name in VIEWS)
    if as_json:
        from refusal.core.records import finite

        print_text(json.dumps(finite(to_value(record)), indent=2, allow_nan=False))
    elif not quiet:
        show(record)


def _run(result: "RunResult") -> None:
    """The tokens, the direction and the tables, whatever of it the run has."""
    from refusal.report.tables import all_tables
    from refusal.report.transfer import transfer_of

    if result.tokens is not None:
        _tokens(result.tokens)
    if result.selection is not None:
        _selection(result.selection)
    for table in (*all_tables(result.metrics), *transfer_of(result.folder)):
        err.print(drawn(table))
    show_notice(f"Report: {result.folder / 'report.html'}")
    out.print(f"Run folder: {result.folder}", soft_wrap=True)


def _run_value(result: "RunResult") -> dict[str, Any]:
    chosen = result.selection
    return {
        "folder": str(result.folder),
        "model": result.config.model,
        "refusal_tokens": None if result.tokens is None else asdict(result.tokens),
        "selection": None
        if chosen is None
        else {
            **chosen.score.to_row(),
            "qualified": chosen.qualified,
            "norm": chosen.direction.norm,
            "rejected": chosen.rejected,
        },
        "metrics": [asdict(m) for m in result.metrics],
    }


def _tokens(tokens: "RefusalTokens") -> None:
    """The refusal tokens with their probabilities, and how well the metric tells refusals apart."""
    chances = tokens.probabilities or (None,) * len(tokens.ids)
    parts = []
    for ident, text, p in zip(tokens.ids, tokens.texts, chances, strict=True):
        parts.append(f"{text!r} ({ident}{'' if p is None else f', p {p:.2f}'})")
    shown = ", ".join(parts)
    quality = ""
    if tokens.auroc is not None:
        quality = f"; AUROC {tokens.auroc:.2f} on {tokens.judged} judged completions"
    err.print(f"Refusal tokens ({tokens.source}): {shown}{quality}")


def _selection(selection: "Selection") -> None:
    """The chosen direction with its three scores, or what was missed."""
    s = selection.score
    where = f"irection: position {s.position}, layer {s.layer}"
    if selection.qualified:
        err.print(f"D{where}", style="bold")
    else:
        err.print(f"UNQUALIFIED d{where}", style="bold red")
    harmful, harmless = selection.harmful_count.mean_metric, selection.harmless_count.mean_metric
    parts = []
    for name, value, baseline in (("bypass", s.bypass, harmful), ("induce", s.induce, harmless)):
        if value is not None and baseline is not None:
            parts.append(f"{name} {value:+.2f} (baseline {baseline:+.2f})")
    more = (("KL", s.kl), *s.more.items())
    parts += [f"{name} {value:.3f}" for name, value in more if value is not None]
    err.print(f"  {', '.join(parts)}")
    reasons = ", ".join(f"{reason} {count}" for reason, count in sorted(selection.rejected.items()))
    err.print(f"  {len(selection.scores)} candidates; rejected by {reasons or 'nothing'}")
    if selection.risk:
        err.print(
            f"  risk of missing the rule's choice, by the tests that dropped: {selection.risk:g}"
        )
    if selection.stability is not None:
        err.print(f"  {stability_line(selection)}")
    for miss in () if selection.qualified else selection.nearest_misses(3):
        kl = "not scored" if miss.kl is None else f"{miss.kl:.3f}"
        err.print(
            f"  near miss ({miss.position}, {miss.layer}): induce {miss.induce:+.2f}, KL {kl}"
        )


def stability_line(selection: "Selection") -> str:
    """Say how often the chosen candidate wins on resampled prompts, and name its nearest rival."""
    stability = selection.stability
    assert stability is not None
    where = [(win.position, win.layer) for win in stability.winners]
    place = selection.score.position, selection.score.layer
    if place not in where:
        return f"({place[0]}, {place[1]}) is not among the {len(where)} that win most resamples"
    chosen = where.index(place)
    share = stability.winners[chosen].share
    text = f"({place[0]}, {place[1]}) wins {share:.0%} of resamples"
    if len(where) > 1:
        rival = 1 if chosen == 0 else 0
        text += (
            f"; runner-up ({where[rival][0]}, {where[rival][1]}) "
            f"{stability.winners[rival].share:.0%}, cosine {stability.cosines[chosen][rival]:.2f}"
        )
    if stability.none_qualifies > 0:
        text += f"; in {stability.none_qualifies:.0%} none qualifies"
    return text


def _page(page: Path) -> None:
    out.print(f"Report: {page}", soft_wrap=True)


def _inspection(found: "Inspection") -> None:
    """What was found in a model, line by line, and a table of the self-checks."""
    revision = f" at {found.revision}" if found.revision else ""
    quantised = f", quantised ({found.quantisation})" if found.quantisation else ""
    pairs = zip(found.suffix_ids, found.suffix_tokens, strict=True)
    tokens = " ".join(f"{text!r} ({ident})" for ident, text in pairs)
    written = {0: "none written by the template", 1: "written once, by the template"}
    bos = written.get(found.bos_written, f"written {found.bos_written} times")
    bos += "; another one by the tokenizer is kept off" if found.bos_doubled else ""
    model = (
        f"{found.model}{revision}: {found.architecture}, {found.parameters:,} parameters, "
        f"{found.dtype}{quantised} on {found.device}"
    )
    blocks = f"{len(found.blocks)}, {found.blocks[0]} … {found.blocks[-1]}, d_model {found.d_model}"
    lines = [("model", model), ("blocks", blocks)]
    for kind in found.kinds:
        names = [
            f"{name} (post-norm)" if name in kind.post_norms else name for name in kind.writers
        ]
        lines.append(("writers", f"{' + '.join(names)} in {kind.count} blocks"))
    lines += [
        ("embedding", f"{found.embedding}{', tied to the head' if found.tied else ''}"),
        ("head", found.head),
        ("after prompt", tokens),
        ("BOS", bos),
        *_around(found),
        *_thoughts(found),
        ("rows", "prompts share rows" if found.shares_rows else "one prompt a row"),
    ]
    _lines((Text(name, style="bold"), Text(text)) for name, text in lines)
    table = RichTable("check", "measured", "limit", "", title="Self-checks", title_justify="left")
    for check in found.checks:
        verdict = Text("ok", style="green") if check.ok else Text("FAILED", style="bold red")
        table.add_row(check.name, f"{check.value:.1e}", f"{check.limit:.0e}", verdict)
    out.print(table)


def _around(found: "Inspection") -> list[tuple[str, str]]:
    """What stands around every prompt, as far as something was asked for."""
    turns = f"{found.turns} harmless exchange(s)" if found.turns else ""
    shown = (("system", found.system), ("before prompt", turns), ("answer begins", found.prefill))
    return [(name, repr(text) if name != "before prompt" else text) for name, text in shown if text]


def _thoughts(found: "Inspection") -> list[tuple[str, str]]:
    """What prompts do about thoughts, which marks were found, and how answers begin."""
    thinking = found.thinking
    switch = "a switch in the template" if found.thinking_switch else "no switch in the template"
    what = {
        "off": "switched off in the template",
        "closed": f"closed before the answer by {thinking.block!r} (from {thinking.source})",
        "on": f"on, at most {thinking.tokens} tokens; read after {thinking.block!r} "
        f"(from {thinking.source})",
        None: switch,
    }[thinking.mode]
    marks = ", ".join(f"{begin} … {end}" for begin, end in thinking.found) or "none found"
    if thinking.mode is None and thinking.found and thinking.source:
        marks += f"; not used (from {thinking.source})"
    first = (
        "differs between prompts"
        if found.structural is None
        else (f"{found.structural!r} for every prompt: structural, it says nothing about refusal")
    )
    return [("thinking", what), ("marks", marks), ("first token", first)]


def _inspection_value(found: "Inspection") -> dict[str, Any]:
    checks = [{**asdict(check), "ok": check.ok} for check in found.checks]
    return {**asdict(found), "ok": found.ok, "checks": checks}


def _exported(result: "Exported") -> None:
    """What was done to the weights, how well it agrees with the hooks, and where it is."""
    report = result.report
    if report is not None:
        behind = f", {report.behind_norm} of them behind a post-norm" if report.behind_norm else ""
        err.print(f"Projected out of {len(report.parameters)} parameters{behind}")
        if report.untied:
            err.print("  the output head was tied to the embedding and keeps the original weight")
        if report.text_only:
            err.print("  images and sounds enter the stream past these weights: measured on text")
        if report.norm is not None:
            err.print(f"  norms kept: by {report.norm}")
        if report.left is not None:
            err.print(f"  left of what the direction reads in them: {report.left:.2%}")
        if report.gap is not None:
            gap = report.gap
            err.print(
                f"  against ablation by hooks on {gap.prompts} prompts: largest logit difference "
                f"{gap.logits:.2g}, mean KL {gap.kl:.2g}, same next token {gap.same_argmax:.0%}",
            )
    out.print(f"Exported ({result.kind}): {result.path}", soft_wrap=True)


def _exported_value(result: "Exported") -> dict[str, Any]:
    report = None if result.report is None else asdict(result.report)
    return {"kind": result.kind, "path": str(result.path), "report": report}


def _findings(found: "Sequence[Finding]") -> None:
    """What was looked at, line by line."""
    style = {"ok": "green", "note": "yellow", "problem": "bold red"}
    rows = []
    for one in found:
        level = Text(one.level, style=style[one.level])
        rows.append((level, Text(one.name, style="bold"), Text(one.text)))
    _lines(rows)


def _lines(rows: Iterable[tuple[Text, ...]]) -> None:
    grid = RichTable.grid(padding=(0, 2))
    for row in rows:
        grid.add_row(*row)
    out.print(grid)


def _estimate(found: "Estimate") -> None:
    """Seconds by stage, memory, questions to others, and money where there is a price."""
    from refusal.cli.doctor import duration, gib

    table = RichTable("stage", "time", title="What a run should take", title_justify="left")
    for name, seconds in found.seconds.items():
        table.add_row(name, duration(seconds) if seconds else "not counted")
    table.add_row("all together", duration(found.total_seconds))
    out.print(table)
    weights, memory = gib(found.weights_bytes), gib(found.memory_bytes)
    each = "a part of every weight" if found.split else "a copy"
    shared = f"{found.processes} processes, {each} each" if found.processes > 1 else "one process"
    if found.devices > found.processes:
        shared += f", its model over {found.devices} devices that work one at a time"
    out.print(f"{memory} of memory a process, {weights} of it weights; {shared}")
    if not found.fits:
        out.print(
            "It does not fit: --quantize, --tp-plan auto, or more or larger devices.",
            style="bold red",
        )
    if found.asked:
        asked = ", ".join(f"{name} {count:,}" for name, count in found.asked.items())
        out.print(f"Questions to servers and other models, their time not counted: {asked}")
    if found.cost is not None:
        out.print(f"Cost: {found.cost:.2f}")
    for line in found.said:
        out.print(line)


# By the name of a record's class: how it is shown, and its JSON.
VIEWS: dict[str, tuple[Callable[[Any], None], Callable[[Any], Any]]] = {
    "RunResult": (_run, _run_value),
    "Path": (_page, lambda page: {"report": str(page)}),
    "Inspection": (_inspection, _inspection_value),
    **COMPARED_VIEWS,
    **WEIGHT_VIEWS,
    **MONITOR_VIEWS,
    "Exported": (_exported, _exported_value),
    "Finding": (_findings, lambda found: [asdict(one) for one in found]),
    "Estimate": (_estimate, lambda found: {**asdict(found), "total_seconds": found.total_seconds}),
}


def print_text(text: str) -> None:
    """Print a text as it is on stdout, for a file."""
    sys.stdout.write(text if text.endswith("\n") else text + "\n")


def show_error(message: object) -> None:
    """Print one message, no traceback."""
    err.print(Text.assemble(("error: ", "bold red"), str(message)), soft_wrap=True)


def show_notice(text: str) -> None:
    """Print a line on stderr."""
    err.print(text, soft_wrap=True)


def show_part(text: str) -> None:
    """Print the next part of a model's reply at once, control characters made visible."""
    sys.stdout.write(sanitised(text))
    sys.stdout.flush()
