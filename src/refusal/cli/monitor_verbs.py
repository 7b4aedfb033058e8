"""The verbs of monitors: fit, score, evaluate."""

from dataclasses import dataclass, field
from json import dumps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import App, Group, Parameter

from refusal.cli import present as display
from refusal.cli.options import (
    MODEL_DEFAULTS,
    Json,
    Model,
    ModelGroup,
    Quiet,
    Verbose,
)
from refusal.cli.progress_bars import reporting
from refusal.config.monitor import MonitorFit, MonitorPrompts, MonitorSets
from refusal.config.options import ModelOptions
from refusal.config.run_config import RunConfig, make_config

if TYPE_CHECKING:
    from refusal.core.monitor import Monitor
    from refusal.model.chat_model import ChatModel

FitGroup = Annotated[MonitorFit, Parameter(name="*", group=Group("Monitor", sort_key=0))]
SetsGroup = Annotated[MonitorSets, Parameter(name="*", group=Group("Monitor", sort_key=0))]
PromptsGroup = Annotated[MonitorPrompts, Parameter(name="*", group=Group("Prompts", sort_key=2))]
Folder = Annotated[Path, Parameter(help="Folder of a monitor.")]
Watched = Annotated[
    str | None, Parameter(help="The model, where it lies elsewhere than when it was fitted.")
]


@dataclass(frozen=True)
class Fitting:
    """All that a fit goes by, but for the model's name."""

    monitor: FitGroup = field(default_factory=MonitorFit)
    prompting: PromptsGroup = field(default_factory=MonitorPrompts)
    loading: ModelGroup = field(default_factory=ModelOptions)


@dataclass(frozen=True)
class Measuring:
    """All that an evaluation goes by, but for the monitor and its model."""

    sets: SetsGroup = field(default_factory=MonitorSets)
    prompting: PromptsGroup = field(default_factory=MonitorPrompts)
    loading: ModelGroup = field(default_factory=ModelOptions)


FIT, SETS, PROMPTS = Fitting(), Measuring(), MonitorPrompts()

monitor = App(
    name="monitor",
    help=(
        "A monitor of prompts: how far each lies along a refusal and a harmfulness direction, a "
        "logistic of both, and a threshold that a share --eps of harmless prompts exceeds, at most."
    ),
)


def _given(*groups: Any) -> dict[str, Any]:
    """The options that were typed."""
    return {name: getattr(group, name) for group in groups for name in group.model_fields_set}


@monitor.command
def fit(
    model: Model = None,
    /,
    *,
    out: Annotated[Path, Parameter(help="Folder of the monitor.")],
    settings: Annotated[Fitting, Parameter(name="*")] = FIT,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Fit a monitor to a model, and calibrate it.

    Instead of a model it takes the folder of a run: its model, prompts, and the layer of its
    direction.
    """
    from refusal.pipeline.monitor import fit_for, run_options
    from refusal.runs.files import is_run_folder

    fitting, given = settings.monitor, _given(settings.prompting, settings.loading)
    if model is not None and is_run_folder(Path(model)):
        config, layer = run_options(Path(model), given)
        if fitting.layer is None:
            fitting = fitting.model_copy(update={"layer": layer})
    else:
        named = {} if model is None else {"model": model}
        config = make_config(**{**PROMPTS.model_dump(exclude_none=True), **given, **named})
    with reporting(quiet, verbose):
        found = fit_for(config, fitting, out)
    display.present(found, json, quiet)
    if not json:
        display.show_notice(f"Monitor: {out}")


@monitor.command
def score(
    folder: Folder,
    /,
    *prompts: Annotated[str, Parameter(help="Texts, or files of prompts.")],
    model: Watched = None,
    column: Annotated[str | None, Parameter(help="Text column of csv or json files.")] = None,
    options: ModelGroup = MODEL_DEFAULTS,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Score prompts: a line of JSON for each on stdout, on stderr whether scores have drifted."""
    from refusal.directions.monitor.logistic import probability
    from refusal.directions.monitor.reading import score_prompts
    from refusal.evaluations.monitor.drift import drift
    from refusal.prompts.files import read_asked

    asked = read_asked(prompts, column, options.system)
    with reporting(quiet, verbose):
        watched, loaded = _loaded(folder, model, options)
        found = score_prompts(loaded, watched, [prompt.question for prompt in asked])
    logits = found.logits.double().numpy()
    chances, fires = probability(logits).tolist(), watched.fires(logits).tolist()
    for i, prompt in enumerate(asked):
        line = {
            "id": prompt.id,
            "prompt": prompt.text,
            "score": float(logits[i]),
            "threshold": watched.threshold,
            "fires": fires[i],
            "probability": chances[i],
            "z_refusal": float(found.z[i, 0]),
            "z_harmfulness": float(found.z[i, 1]),
        }
        display.print_text(dumps(line, ensure_ascii=False, allow_nan=False))
    if not quiet:
        display.show_notice(drift(watched, logits).line)


@monitor.command
def evaluate(
    folder: Folder,
    /,
    *,
    model: Watched = None,
    out: Annotated[
        Path | None, Parameter(help="Folder for the page and its JSON; default the monitor's.")
    ] = None,
    settings: Annotated[Measuring, Parameter(name="*")] = SETS,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Evaluate a monitor on prompts that it was not made with.

    Recall at 1 % and 5 % false alarms, AUROC, false alarms on sets that only look harmful, every
    source left out in turn, reliability.
    """
    from refusal.pipeline.monitor import evaluate_for
    from refusal.report.monitor_page import write_evaluation

    given = _given(settings.prompting, settings.loading)
    config: RunConfig = make_config(**{**PROMPTS.model_dump(exclude_none=True), **given})
    with reporting(quiet, verbose):
        watched, loaded = _loaded(folder, model, settings.loading)
        found = evaluate_for(loaded, watched, config, settings.sets)
        page = write_evaluation(found, out or folder)
    display.present(found, json, quiet)
    if not json:
        display.show_notice(f"Page: {page}")


def _loaded(folder: Path, name: str | None, options: ModelOptions) -> "tuple[Monitor, ChatModel]":
    """The monitor, and the model that it watches."""
    from refusal.core.monitor import Monitor
    from refusal.model.load import load

    found = Monitor.load(folder)
    return found, load(name or found.model, **options.model_dump(exclude_defaults=True))
