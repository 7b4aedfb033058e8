"""Everything that is printed: tables and progress to stderr, results to stdout."""

import json
import logging
import math
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import transformers
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from refusal.audits.self_checks import Inspection
from refusal.cli.console import err, out
from refusal.cli.doctor import Finding, duration, gib
from refusal.core import parallel
from refusal.core.progress import Advance, Listener, listening
from refusal.core.records import RefusalTokens, finite, to_json
from refusal.core.text import visible
from refusal.directions.records import Selection
from refusal.pipeline.costs.estimate import Estimate
from refusal.report.compare import Comparison
from refusal.report.tables import all_tables, comparison
from refusal.runs.result import RunResult
from refusal.weights.save import Exported


class _Rate(ProgressColumn):
    """Steps per second, or seconds per step when slow."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        if not speed:
            return Text("")
        shown = f"{speed:.1f} {task.fields['unit']}/s" if speed >= 1 else f"{1 / speed:.1f} s each"
        return Text(shown, style="cyan")


class _Lines(logging.Handler):
    """Log records as lines on stderr, for a person to read."""

    def emit(self, record: logging.LogRecord) -> None:
        """One record, one line, above the progress if there is any."""
        style = {logging.WARNING: "yellow", logging.ERROR: "bold red"}.get(record.levelno, "dim")
        label = (f"{record.levelname.lower()}: ", style)
        err.print(Text.assemble(label, record.getMessage()), soft_wrap=True)


@contextmanager
def reporting(quiet: bool = False, verbose: bool = False) -> Iterator[None]:
    """Show progress, warnings (and with ``verbose`` notes) on stderr; progress only on a
    terminal.
    """
    quiet = quiet or not parallel.is_writer()
    level = logging.ERROR if quiet else logging.INFO if verbose else logging.WARNING
    handler = _Lines()
    logger = logging.getLogger("refusal")
    before = logger.level
    logger.addHandler(handler)
    logger.setLevel(level)
    transformers.logging.set_verbosity_error()
    logging.getLogger("huggingface_hub").setLevel(
        logging.INFO if verbose else logging.ERROR
    )  # its retries, a line each
    # loading is reported as a task, like everything else
    transformers.logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            if not verbose:  # of libraries, to their callers
                warnings.simplefilter("ignore")
            if quiet or not err.is_terminal or not parallel.is_writer():
                yield
            else:
                with show_progress():
                    yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before)


@contextmanager
def show_progress() -> Iterator[None]:
    """Progress bars for everything slow inside the block, in a terminal or a notebook.

    The library shows nothing by itself. In a notebook this needs ``refusal[notebook]``.
    """
    with _progress() as progress, listening(_listener(progress)):
        yield


def _progress() -> Progress:
    columns = (
        TextColumn("{task.description}", style="bold", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[unit]}", markup=False),
        _Rate(),
        TimeRemainingColumn(compact=True, elapsed_when_finished=True),
    )
    return Progress(*columns, console=err)


def _listener(progress: Progress) -> Listener:
    @contextmanager
    def listener(name: str, total: int, unit: str) -> Iterator[Advance]:
        shown = progress.add_task(name, total=total or None, unit=unit)
        done = 0

        def advance(n: int) -> None:
            nonlocal done
            done += n
            progress.advance(shown, n)

        try:
            yield advance
        finally:
            if total:
                progress.update(
                    shown, total=done
                )  # also when it took fewer steps than it might have
            else:
                progress.remove_task(shown)

    return listener


def show_result(result: RunResult) -> None:
    """The tokens, the direction and the table of rates, whatever of it the run has."""
    show_tokens(result.tokens)
    if result.selection is not None:
        show_selection(result.selection)
    for table in all_tables(result.metrics):
        err.print(table)
    show_notice(f"Report: {result.folder / 'report.html'}")
    out.print(f"Run folder: {result.folder}", soft_wrap=True)


def show_report(page: Path) -> None:
    """Where the page is."""
    out.print(f"Report: {page}", soft_wrap=True)


def print_report(page: Path) -> None:
    """The same as JSON on stdout."""
    _write_json({"report": str(page)})


def show_comparison(found: Comparison) -> None:
    """Which runs, and the table of their rates."""
    for i, (run, cosine) in enumerate(zip(found.runs, found.cosines, strict=True), start=1):
        against = "" if i == 1 or cosine is None else f", cosine with run 1 {cosine:.2f}"
        flag = "" if run.qualified else " UNQUALIFIED"
        show_notice(
            f"{i}: {run.folder}: {run.model}, prompts {run.prompts}, seed {run.seed}, "
            f"direction ({run.position}, {run.layer}){flag}{against}"
        )
    out.print(comparison(found))


def print_comparison(found: Comparison) -> None:
    """The same as JSON on stdout."""
    _write_json(finite(to_json(found)))


def show_tokens(tokens: RefusalTokens) -> None:
    """The refusal tokens with their probabilities, and how well the metric tells refusals apart."""
    chances = tokens.probabilities or (None,) * len(tokens.ids)
    shown = ", ".join(
        f"{text!r} ({ident}{'' if p is None else f', p {p:.2f}'})"
        for ident, text, p in zip(tokens.ids, tokens.texts, chances, strict=True)
    )
    quality = (
        ""
        if tokens.auroc is None
        else f"; AUROC {tokens.auroc:.2f} on {tokens.judged} judged completions"
    )
    err.print(f"Refusal tokens ({tokens.source}): {shown}{quality}")


def show_selection(selection: Selection) -> None:
    """The chosen direction with its three scores, or what was missed."""
    s = selection.score
    if selection.qualified:
        err.print(f"Direction: position {s.position}, layer {s.layer}", style="bold")
    else:
        err.print(
            f"UNQUALIFIED direction: position {s.position}, layer {s.layer}", style="bold red"
        )
    baseline = selection.harmful_count.mean_metric, selection.harmless_count.mean_metric
    err.print(
        f"  bypass {s.bypass:+.2f} (baseline {baseline[0]:+.2f}), "
        f"induce {s.induce:+.2f} (baseline {baseline[1]:+.2f}), KL {s.kl:.3f}",
    )
    reasons = ", ".join(f"{reason} {count}" for reason, count in sorted(selection.rejected.items()))
    err.print(f"  {len(selection.scores)} candidates; rejected by {reasons or 'nothing'}")
    if selection.stability is not None:
        err.print(f"  {stability_line(selection)}")
    if not selection.qualified:
        for miss in selection.nearest_misses(3):
            kl = "not scored" if miss.kl is None else f"{miss.kl:.3f}"
            err.print(
                f"  near miss ({miss.position}, {miss.layer}): induce {miss.induce:+.2f}, KL {kl}"
            )


def stability_line(selection: Selection) -> str:
    """How often the chosen candidate wins when the validation prompts are resampled, and its
    nearest rival.
    """
    stability = selection.stability
    assert stability is not None
    where = [(win.position, win.layer) for win in stability.winners]
    place = selection.score.position, selection.score.layer
    if place not in where:
        return f"({place[0]}, {place[1]}) is not among the {len(where)} that win most resamples"
    chosen = where.index(place)
    text = (
        f"({where[chosen][0]}, {where[chosen][1]}) wins {stability.winners[chosen].share:.0%} "
        "of resamples"
    )
    rivals = [i for i in range(len(where)) if i != chosen]
    if rivals:
        rival = rivals[0]
        text += (
            f"; runner-up ({where[rival][0]}, {where[rival][1]}) "
            f"{stability.winners[rival].share:.0%}, cosine {stability.cosines[chosen][rival]:.2f}"
        )
    if stability.none_qualifies > 0:
        text += f"; in {stability.none_qualifies:.0%} none qualifies"
    return text


def show_inspection(inspection: Inspection) -> None:
    """What was found in a model, line by line, and a table of the self-checks."""
    i = inspection
    revision = f" at {i.revision}" if i.revision else ""
    quantised = f", quantised ({i.quantisation})" if i.quantisation else ""
    tokens = " ".join(
        f"{text!r} ({ident})" for ident, text in zip(i.suffix_ids, i.suffix_tokens, strict=True)
    )
    written = {0: "none written by the template", 1: "written once, by the template"}
    bos = written.get(i.bos_written, f"written {i.bos_written} times")
    lines = [
        (
            "model",
            f"{i.model}{revision}: {i.architecture}, {i.parameters:,} parameters, "
            f"{i.dtype}{quantised} on {i.device}",
        ),
        ("blocks", f"{len(i.blocks)}, {i.blocks[0]} … {i.blocks[-1]}, d_model {i.d_model}"),
    ]
    for kind in i.kinds:
        shown = " + ".join(
            f"{name} (post-norm)" if name in kind.post_norms else name for name in kind.writers
        )
        lines.append(("writers", f"{shown} in {kind.count} blocks"))
    lines += [
        ("embedding", f"{i.embedding}{', tied to the head' if i.tied else ''}"),
        ("head", i.head),
        ("after prompt", tokens),
        ("BOS", f"{bos}{'; another one by the tokenizer is kept off' if i.bos_doubled else ''}"),
        (
            "thinking",
            "switched off in the template" if i.thinking_switch else "no switch in the template",
        ),
        ("rows", "prompts share rows" if i.shares_rows else "one prompt a row"),
    ]
    grid = Table.grid(padding=(0, 2))
    for name, text in lines:
        grid.add_row(Text(name, style="bold"), Text(text))
    out.print(grid)
    table = Table("check", "measured", "limit", "", title="Self-checks", title_justify="left")
    for check in i.checks:
        verdict = Text("ok", style="green") if check.ok else Text("FAILED", style="bold red")
        table.add_row(check.name, f"{check.value:.1e}", f"{check.limit:.0e}", verdict)
    out.print(table)


def print_inspection_json(inspection: Inspection) -> None:
    """The inspection as one JSON value on stdout; a measured value that is not finite is null."""
    checks = [
        {
            **to_json(check),
            "value": check.value if math.isfinite(check.value) else None,
            "ok": check.ok,
        }
        for check in inspection.checks
    ]
    _write_json({**to_json(inspection), "ok": inspection.ok, "checks": checks})


def print_json(result: RunResult) -> None:
    """The result as one JSON value on stdout."""
    selection = result.selection
    value = {
        "folder": str(result.folder),
        "model": result.config.model,
        "refusal_tokens": to_json(result.tokens),
        "selection": None
        if selection is None
        else {
            **to_json(selection.score),
            "qualified": selection.qualified,
            "norm": selection.direction.norm,
            "rejected": selection.rejected,
        },
        "metrics": finite(to_json(result.metrics)),
    }
    _write_json(value)


def _write_json(value: object) -> None:
    sys.stdout.write(json.dumps(value, indent=2, allow_nan=False) + "\n")


def show_export(result: Exported) -> None:
    """What was done to the weights, how well it agrees with the hooks, and where it is."""
    report = result.report
    if report is not None:
        behind = f", {report.behind_norm} of them behind a post-norm" if report.behind_norm else ""
        err.print(f"Projected out of {len(report.parameters)} parameters{behind}")
        if report.untied:
            err.print("  the output head was tied to the embedding and keeps the original weight")
        if report.text_only:
            err.print("  images and sounds enter the stream past these weights: measured on text")
        if report.gap is not None:
            gap = report.gap
            err.print(
                f"  against ablation by hooks on {gap.prompts} prompts: largest logit difference "
                f"{gap.logits:.2g}, mean KL {gap.kl:.2g}, same next token {gap.same_argmax:.0%}",
            )
    out.print(f"Exported ({result.kind}): {result.path}", soft_wrap=True)


def print_export(result: Exported) -> None:
    """The same as JSON on stdout."""
    report = None if result.report is None else to_json(result.report)
    value = {"kind": result.kind, "path": str(result.path), "report": report}
    sys.stdout.write(json.dumps(value, indent=2, allow_nan=False) + "\n")


def print_text(text: str) -> None:
    """A text as it is on stdout, for a file."""
    sys.stdout.write(text if text.endswith("\n") else text + "\n")


def show_findings(found: Sequence[Finding]) -> None:
    """What was looked at, line by line."""
    grid = Table.grid(padding=(0, 2))
    style = {"ok": "green", "note": "yellow", "problem": "bold red"}
    for finding in found:
        grid.add_row(
            Text(finding.level, style=style[finding.level]),
            Text(finding.name, style="bold"),
            finding.text,
        )
    out.print(grid)


def print_findings(found: Sequence[Finding]) -> None:
    """The same as JSON on stdout."""
    _write_json(to_json(tuple(found)))


def show_estimate(found: Estimate) -> None:
    """Seconds by stage, memory, and money where there is a price."""
    table = Table("stage", "time", title="What a run should take", title_justify="left")
    for name, seconds in found.seconds.items():
        table.add_row(name, duration(seconds))
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
    if found.cost is not None:
        out.print(f"Cost: {found.cost:.2f}")


def print_estimate(found: Estimate) -> None:
    """The same as JSON on stdout."""
    _write_json({**to_json(found), "total_seconds": found.total_seconds})


def show_error(message: object) -> None:
    """One message, no traceback."""
    err.print(Text.assemble(("error: ", "bold red"), str(message)), soft_wrap=True)


def show_notice(text: str) -> None:
    """A line on stderr."""
    err.print(text, soft_wrap=True)


def show_reply(text: str) -> None:
    """A model's reply in the chat, control characters made visible."""
    out.print(visible(text))  # before rich drops some of them
