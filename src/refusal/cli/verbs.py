"""The command line's verbs: parse, call the library, display.

What is slow to import (torch, transformers) is imported by the verb that needs it, so that help, a
report or a comparison do not wait for it.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import App, Parameter
from cyclopts.validators import Number

from refusal.cli import present as display
from refusal.cli.audit_verbs import audit
from refusal.cli.diff_verbs import diff
from refusal.cli.edit_options import EDIT_DEFAULTS, Edit
from refusal.cli.examples import EXAMPLES
from refusal.cli.monitor_verbs import monitor
from refusal.cli.options import (
    MODEL_DEFAULTS,
    RUN_DEFAULTS,
    Json,
    Model,
    ModelGroup,
    Out,
    Quiet,
    Run,
    Verbose,
    default_folder,
)
from refusal.cli.progress_bars import reporting
from refusal.cli.serve_verb import serve
from refusal.cli.weight_verbs import forensics, repair
from refusal.config.commented import commented_toml
from refusal.config.exports import ExportEdit, ExportKind
from refusal.config.run_config import added, make_config, with_contexts
from refusal.core import parallel
from refusal.core.errors import RunFailure


def examples(verb: str) -> str:
    """Commands to start from, shown below a verb's options."""
    return "**Examples**\n\n```\n" + "\n".join(EXAMPLES[verb]) + "\n```"


app = App(
    name="refusal",
    help=(
        "Find the direction that mediates refusal in a chat model, show what it does, measure "
        "how robust it is."
    ),
    default_parameter=Parameter(consume_multiple=True, negative_iterable="", negative_none=""),
    version_flags=["--version"],
    help_epilogue=examples(""),
    suppress_keyboard_interrupt=False,  # handled here, with a word about what is kept
)

VERBS = {
    "run": (
        "evaluate",
        "The whole job: prompts, activations, candidates, selection, interventions, completions, "
        "rates.\n\nFinished stages in the run folder are reused if their inputs are unchanged.",
    ),
    "extract": ("extract", "Only up to the candidates: mean activations and their differences."),
    "select": ("select", "Up to the chosen direction."),
    "transfer": (
        "transfer",
        "Up to the transfer table: a direction found in each of several contexts (system prompts, "
        "earlier turns, languages), ablated in every one of them.\n\n"
        "Without contexts the four built-in system prompts are taken.",
    ),
    "generate": ("generate", "Up to the completions under every condition."),
    "evaluate": (
        "evaluate",
        "Up to the rates; what is missing before them is done too.\n\n"
        "Instead of a model it takes the folder of a run, and adds to it what the options name: "
        "refusal evaluate runs/embedded --over-refusal xstest.",
    ),
}


def _verb(until: str) -> Callable[..., None]:
    """A command that runs the stages up to ``until``; all of them take the same options."""

    def command(
        model: Model = None,
        /,
        *,
        out: Out = None,
        settings: Run = RUN_DEFAULTS,
        json: Json = False,
        quiet: Quiet = False,
        verbose: Verbose = False,
    ) -> None:
        from refusal.pipeline.run import run as run_stages
        from refusal.report.compare import check_completed
        from refusal.runs.files import is_run_folder

        existing = (
            Path(model)
            if until == "evaluate" and model is not None and is_run_folder(Path(model))
            else None
        )
        if existing is not None:
            check_completed(existing)
            config = added(make_config(file=existing / "run.toml"), settings.given)
        else:
            config = settings.make(model)
        if until == "transfer":
            config = with_contexts(config)
        with parallel.joined(split=config.tp_plan is not None):
            with reporting(quiet, verbose):
                folder = out or existing or default_folder(config.model)
                result = run_stages(config, folder, until=until, adding=existing is not None)
            if not parallel.is_writer():
                return
        display.present(result, json, quiet)

    return command


for _name, (_until, _help) in VERBS.items():
    app.command(_verb(_until), name=_name, help=_help, help_epilogue=examples(_name))


@app.command(help_epilogue=examples("report"))
def report(
    run: Annotated[Path, Parameter(help="Run folder, finished or not.")],
    /,
    *,
    out: Annotated[Path | None, Parameter(help="The page; default RUN/report.html.")] = None,
    show_completions: Annotated[
        bool,
        Parameter(negative="", help="Also put the completions of harmful prompts into the page."),
    ] = False,
    figures: Annotated[
        tuple[Literal["svg", "png", "pdf", "none"], ...],
        Parameter(help="Formats of the figures in RUN/figures; png and pdf: refusal[figures]."),
    ] = ("svg", "png"),
    json: Json = False,
) -> None:
    """Write a run's page, its figures as files and its tables as CSV; an unfinished run's page says
    what is missing.
    """
    from refusal.report.write import write_report

    page = write_report(run, out=out, show_completions=show_completions, formats=figures)
    display.present(page, json)


@app.command(help_epilogue=examples("compare"))
def compare(
    *runs: Annotated[Path, Parameter(help="Folders of finished runs, or of audits.")],
    out: Annotated[Path | None, Parameter(help="Also write a page, such as compared.html.")] = None,
    json: Json = False,
) -> None:
    """Runs side by side (models, prompt sets, interventions), or audits (RUN/audit), with paired
    tests where the prompts are the same.
    """
    from refusal.report.audit_compare import are_audits, compare_audits, write_audit_comparison
    from refusal.report.compare import compare as compare_runs
    from refusal.report.compare_page import write_comparison

    if are_audits(runs):
        audits = compare_audits(runs)
        if out is not None:
            write_audit_comparison(audits, out)
        display.present(audits, json)
        return
    found = compare_runs(runs)
    if out is not None:
        write_comparison(runs, out)
    display.present(found, json)


@app.command(help_epilogue=examples("inspect"))
def inspect(
    model: Model = None,
    /,
    *,
    options: ModelGroup = MODEL_DEFAULTS,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """What a model is like, and self-checks with their measured errors; needs no prompts.

    Exit code 1 if a check fails, 2 if the model cannot be handled.
    """
    from refusal.audits.self_checks import inspect_model
    from refusal.model.load import load

    with reporting(quiet, verbose):
        found = inspect_model(
            load(model or "embedded", **options.model_dump(exclude_defaults=True))
        )
    display.present(found, json, quiet)
    if failed := [check for check in found.checks if not check.ok]:
        worst = ", ".join(
            f"{check.name} ({check.value:.1e}, limit {check.limit:.0e})" for check in failed
        )
        raise RunFailure(
            f"{len(failed)} of {len(found.checks)} self-checks failed: {worst}. Do not trust "
            "results on this model; try --dtype float32, or name the layout with --blocks and "
            "--writers."
        )


@app.command(help_epilogue=examples("chat"))
def chat(
    model: Model = None,
    /,
    *,
    out: Out = None,
    direction: Annotated[
        Path | None, Parameter(help="A direction.safetensors; default: the run folder's.")
    ] = None,
    max_new_tokens: Annotated[
        int, Parameter(help="Length of a reply.", validator=Number(gte=1))
    ] = 256,
    temperature: Annotated[
        float, Parameter(help="Draw replies at this temperature.", validator=Number(gte=0))
    ] = 0.0,
    options: ModelGroup = MODEL_DEFAULTS,
) -> None:
    """Talk to the model, which remembers the conversation until /reset.

    /baseline, /ablate and /add 1.0 switch between conditions, /tokens shows every token's
    projection on the direction, /quit ends.
    """
    from refusal.cli.chat import start

    start(model or "embedded", out, direction, max_new_tokens, options, temperature)


@app.command(help_epilogue=examples("export"))
def export(
    run: Annotated[Path, Parameter(help="Run folder with a direction.safetensors and a run.toml.")],
    /,
    *,
    as_: Annotated[ExportKind, Parameter(name="--as", help="What to write.")],
    out: Annotated[
        Path | None, Parameter(help="New or empty folder; default RUN/export/KIND.")
    ] = None,
    edit: Annotated[Edit, Parameter(name="*")] = EDIT_DEFAULTS,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Write what a run has found: an edited model, a LoRA adapter for the unedited one, the bare
    direction, or llama.cpp's control vector for adding it.

    A model's or adapter's agreement with ablation by hooks is measured on the run's test prompts
    and stored with it. With --stream nothing is measured: the model is never loaded, its files keep
    their dtype, and the same command goes on after an interruption.
    """
    from refusal.pipeline.export import export_run

    with reporting(quiet, verbose):
        asked = ExportEdit(edit.intervention, edit.strength, edit.rank, edit.norm)
        result = export_run(
            run,
            as_,
            out or run / "export" / as_,
            n_prompts=edit.n_prompts,
            edit=asked,
            stream=edit.stream,
            model=edit.model,
        )
    display.present(result, json, quiet)


app.command(audit, help_epilogue=examples("audit"))
app.command(forensics, help_epilogue=examples("forensics"))
app.command(diff, help_epilogue=examples("diff"))
app.command(repair, help_epilogue=examples("repair"))
app.command(serve, help_epilogue=examples("serve"))
monitor.help_epilogue = examples("monitor")
app.command(monitor)


@app.command(help_epilogue=examples("config"))
def config(model: Model = None, /, *, settings: Run = RUN_DEFAULTS) -> None:
    """Print a whole configuration as TOML, every option with what it does; `refusal run --config
    FILE` uses it.
    """
    display.print_text(commented_toml(settings.make(model)))


@app.command(help_epilogue=examples("doctor"))
def doctor(
    model: Model = None, /, *, options: ModelGroup = MODEL_DEFAULTS, json: Json = False
) -> None:
    """What this machine has and lacks; with a model what it will need here in memory and time, by
    its config alone.

    Exit code 1 if something is in the way of a run.
    """
    from refusal.cli.doctor import examine

    with reporting():
        found = examine(model, options)
    display.present(found, json)
    if problems := [finding for finding in found if finding.level == "problem"]:
        raise RunFailure(f"{problems[0].name}: {problems[0].text}.")


@app.command(help_epilogue=examples("estimate"))
def estimate(
    model: Model = None,
    /,
    *,
    count: Annotated[int, Parameter(help="Devices.", validator=Number(gte=1))] = 1,
    settings: Run = RUN_DEFAULTS,
    json: Json = False,
) -> None:
    """Time, memory and money that a run should take, by the model's config alone.

    --device names a kind (a100, h100, h200, b200, l40s, mi300x), by data sheet; without it this
    machine is measured.
    """
    from refusal.pipeline.costs.planning import estimate_run

    with reporting():
        found = estimate_run(settings.make(model), count)
    display.present(found, json)


@app.command(help_epilogue=examples("completion"))
def completion(
    shell: Annotated[Literal["bash", "zsh", "fish", "powershell"], Parameter(help="Which shell.")],
    /,
) -> None:
    """Print a shell's completion script, for its start-up file or completion folder."""
    display.print_text(app.generate_completion(shell=shell))
