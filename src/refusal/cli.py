"""The command line: parse, call the library, display. Exit codes: 0 done, 1 documented failure, 2 wrong usage."""

import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import cyclopts
from cyclopts import App, Parameter

from refusal import display
from refusal.config import RunOptions, make_config
from refusal.errors import Error
from refusal.evaluate import interventions_for
from refusal.interventions import Add
from refusal.model import load
from refusal.records import Direction
from refusal.run import run as run_stages

INTERRUPTED = 130

app = App(
    name="refusal",
    help="Find the direction that mediates refusal in a chat model, show what it does, measure how robust it is.",
    default_parameter=Parameter(consume_multiple=True, negative_iterable="", negative_none=""),
    version_flags=["--version"],
)

Model = Annotated[str, Parameter(help="Hub id, folder, .gguf file, or `embedded`.")]
Out = Annotated[Path | None, Parameter(help="Run folder; default runs/MODEL.")]
Preset = Annotated[str | None, Parameter(help="quick (minutes on a laptop) or paper (the paper's sizes, the default).")]
Config = Annotated[Path | None, Parameter(help="TOML file with options, such as a run folder's run.toml.")]
Options = Annotated[RunOptions, Parameter(name="*")]
Json = Annotated[bool, Parameter(name="--json", negative="", help="Print the result as JSON on stdout.")]
Quiet = Annotated[bool, Parameter(name=["--quiet", "-q"], negative="", help="Only errors.")]
Verbose = Annotated[bool, Parameter(name=["--verbose", "-v"], negative="", help="Also notes, such as reused stages.")]

NO_OPTIONS = RunOptions()


VERBS = {
    "run": (
        "evaluate",
        "The whole job: prompts, activations, candidates, selection, interventions, completions, rates.\n\n"
        "Finished stages in the run folder are reused if their inputs are unchanged.",
    ),
    "extract": ("extract", "Only up to the candidates: mean activations and their differences."),
    "select": ("select", "Up to the chosen direction."),
    "generate": ("generate", "Up to the completions under every condition."),
    "evaluate": ("evaluate", "Up to the rates; what is missing before them is done too."),
}


def _verb(until: str) -> Callable[..., None]:
    """A command that runs the stages up to ``until``; all of them take the same options."""

    def command(
        model: Model = "embedded",
        /,
        *,
        out: Out = None,
        preset: Preset = None,
        config: Config = None,
        options: Options = NO_OPTIONS,
        json: Json = False,
        quiet: Quiet = False,
        verbose: Verbose = False,
    ) -> None:
        given = {name: getattr(options, name) for name in options.model_fields_set}
        settings = make_config(preset, config, model=model, **given)
        with display.reporting(quiet, verbose):
            result = run_stages(settings, out or _default_folder(settings.model), until=until)
        if json:
            display.print_json(result)
        elif not quiet:
            display.show_result(result)

    return command


for _name, (_until, _help) in VERBS.items():
    app.command(_verb(_until), name=_name, help=_help)


@app.command
def chat(
    model: Model = "embedded",
    /,
    *,
    out: Out = None,
    direction: Annotated[Path | None, Parameter(help="A direction.safetensors; default: the run folder's.")] = None,
    max_new_tokens: Annotated[int, Parameter(help="Length of a reply.")] = 256,
    revision: str | None = None,
    dtype: str = "bfloat16",
    device: str = "auto",
    system: str | None = None,
) -> None:
    """Talk to the model; /baseline, /ablate and /add 1.0 switch between conditions, /quit ends."""
    file = direction or (out or _default_folder(model)) / "direction.safetensors"
    found = Direction.load(file)
    with display.reporting():
        chat_model = load(model, revision=revision, dtype=dtype, device=device, system=system)
    if found.model and found.model != chat_model.name:
        display.show_notice(f"Note: this direction was found on {found.model}.")
    display.show_notice("Each line is one question by itself. /baseline  /ablate  /add ALPHA  /quit")
    interventions: tuple[Any, ...] = ()
    condition = "baseline"
    while (line := _ask(condition)) is not None:
        if line.startswith("/"):
            changed = _switch(line, found)
            if changed is None:
                display.show_notice("Commands: /baseline  /ablate  /add ALPHA  /quit")
            else:
                condition, interventions = changed
        elif line:
            with chat_model.apply(*interventions):
                display.show_reply(chat_model.generate([line], max_new_tokens)[0])


def _ask(condition: str) -> str | None:
    """The next line, or ``None`` at the end."""
    try:
        line = input(f"[{condition}] > ").strip()
    except EOFError:
        return None
    return None if line == "/quit" else line


def _switch(line: str, direction: Direction) -> tuple[str, tuple[Any, ...]] | None:
    """The condition that a chat command asks for; ``None`` if it is no command."""
    match line.split():
        case ["/baseline"]:
            return "baseline", ()
        case ["/ablate"]:
            return "ablation", interventions_for("ablation", direction)
        case ["/add", alpha] if re.fullmatch(r"[+-]?\d*\.?\d+", alpha):
            return f"add {float(alpha):g}", (Add(direction, float(alpha)),)
        case _:
            return None


def _default_folder(model: str) -> Path:
    return Path("runs") / re.sub(r"[^\w.-]+", "-", model.rstrip("/")).strip("-.")


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    return _guarded(lambda: app(arguments, exit_on_error=False, print_error=False, result_action="return_value"))


def _guarded(call: Callable[[], object]) -> int:
    """Every expected end as one message and an exit code."""
    try:
        call()
    except Error as error:
        display.show_error(error)
        return error.exit_code
    except cyclopts.CycloptsError as error:
        display.show_error(error)
        return 2
    except KeyboardInterrupt:
        display.show_notice("Interrupted. Finished stages are kept: run the same command again to go on.")
        return INTERRUPTED
    return 0


def entry() -> None:
    """The console script."""
    sys.exit(main())
