"""A whole run in a folder: stages with recorded inputs, so that finished ones are reused and
nothing else is.

A step is reused if and only if the hash of its inputs (options, model, prompts, files of earlier
steps) is the one it was made with and its files are there as it wrote them.
"""

import logging
import time
from collections.abc import Iterator, Sequence
from datetime import date
from pathlib import Path

from refusal.config.run_config import RunConfig, model_options
from refusal.core import parallel
from refusal.core.day import day_of
from refusal.core.errors import ConfigError, Error, RunFolderError
from refusal.core.lock import locked
from refusal.core.progress import NOTE
from refusal.core.records import Metric, finite, to_json
from refusal.core.storage import write_json
from refusal.evaluations.judges.stage import Judging, check_judged
from refusal.evaluations.refusal.generate import check_completions_of
from refusal.model.chat_model import ChatModel
from refusal.model.load import load
from refusal.pipeline.asking import ask
from refusal.pipeline.costs.fit import read_back, sizes, to_record
from refusal.pipeline.costs.planning import fit_loaded
from refusal.pipeline.lengths import lengths_of
from refusal.pipeline.stages import ALL, STAGES
from refusal.report.draw import check_formats
from refusal.report.write import write_report
from refusal.runs.files import read_metrics
from refusal.runs.folder import RunFolder, Step
from refusal.runs.identity import program
from refusal.runs.result import RunResult
from refusal.runs.stage import Asked, Plan, Run, Stage

log = logging.getLogger(__name__)


def run(
    config: RunConfig,
    out: str | Path,
    *,
    until: str = "evaluate",
    model: ChatModel | None = None,
    adding: bool = False,
) -> RunResult:
    """Run the stages up to ``until`` in the folder ``out``, reusing what is finished there.

    In a program that torchrun or accelerate has started, all its processes share the work, and all
    must call this.

    Args:
        until: ``extract``, ``select``, ``transfer``, ``generate`` or ``evaluate``.
        model: an already loaded model; default: what the config names.
        adding: to completions that are there: they must be of the config's prompts, and are not
            replaced silently.

    Raises:
        ConfigError: the sizes that are given do not fit ``config.minutes``.
        RunFolderError: the folder holds a run of another model or format, is in use, or cannot be
            used.
        RunFailure: every judgement of a judge failed; all else is in the folder.
        NoCandidateError: no candidate qualifies and ``config.strict``; the scores are in the folder
            all the same.
        refusal.Error: whatever a stage raises.
    """
    with parallel.joined(split=config.tp_plan is not None):
        folder = RunFolder(Path(out))
        folder.check()
        with locked(folder.path):
            return _run(folder, config, until, model, adding)


def _run(
    folder: RunFolder, config: RunConfig, until: str, model: ChatModel | None, adding: bool
) -> RunResult:
    start = time.perf_counter()
    check_formats(config.figures)
    folder.check()  # before anything slow, and again: another run may just have ended here
    asked = ask(config, folder.path)
    if adding:
        if config.minutes is not None:
            raise ConfigError(
                "--minutes is for a whole run: what is added to a run has its sizes. Leave it out."
            )
        check_completions_of(folder, config, asked.prompts)
    stages = _stages(asked)  # what cannot be done ends here
    given, model = model, model or load_for(config)
    _fix_day(folder, config, model)
    config = _fitted(folder, asked, model, start)
    if config is not asked.config:  # stages are made of the sizes that they have
        asked = ask(config, folder.path, asked.prompts)
        stages = _stages(asked)
    for stage in stages.values():
        stage.check(model)
    folder.begin(config, model, asked.prompts, loaded=given is None)
    write_json(folder.path / "categories.json", _categories(asked))
    run = Run(asked, folder, model, plan_of(asked, model))
    verbs = list(STAGES)[: list(STAGES).index(until) + 1]
    try:
        metrics = [m for verb in verbs for m in _work(run, [stages[s] for s in STAGES[verb]])]
        found = _evaluated(run, metrics) if until == "evaluate" else tuple(metrics)
    except Error as error:
        if adding and error.exit_code == 2:  # wrong input must not stand in the way of the next
            folder.take_back_options()
        raise
    parallel.only_writer(lambda: write_report(folder.path, formats=config.figures))
    if found and until == "evaluate":
        judging = stages[Judging]
        assert isinstance(judging, Judging)
        parallel.only_writer(lambda: check_judged(folder, judging.judges))
    assert run.candidates is not None
    got = (run.tokens, run.candidates, run.selection)
    return RunResult(folder.path, config, *got, found, run.found_with)


def _stages(asked: Asked) -> dict[type[Stage], Stage]:
    """One of every stage, the judges last: they may ask for most."""
    return {kind: kind(asked) for kind in sorted(ALL, key=lambda kind: kind is Judging)}


def _fitted(folder: RunFolder, asked: Asked, model: ChatModel, start: float) -> RunConfig:
    """The configuration with the sizes that fit its minutes; the folder gets to know of them.

    A folder's sizes are chosen once: the same request gets them again, unmeasured.
    """
    config, earlier = asked.config, folder.manifest.get("fitted")
    if config.minutes is None:
        if earlier and earlier["sizes"] != sizes(config):  # they are others now
            folder.manifest["fitted"] = None
        return config
    again = read_back(earlier, config) if earlier else None
    if again is None:
        took = time.perf_counter() - start
        found = fit_loaded(model, plan_of(asked, model), asked, took)
        again, folder.manifest["fitted"] = found.config, to_record(config, found)
    for line in folder.manifest["fitted"]["said"]:
        log.log(NOTE, "%s", line)
    return again


def load_for(config: RunConfig) -> ChatModel:
    """The model that a run's configuration names."""
    return load(config.model, **vars(model_options(config)))


def _work(run: Run, stages: Sequence[Stage]) -> Iterator[Metric]:
    for stage in stages:
        yield from stage.work(run)


def _evaluated(run: Run, metrics: Sequence[Metric]) -> tuple[Metric, ...]:
    """All that was measured, as it stands in ``metrics.json``."""
    path = run.folder.path / "metrics.json"
    rows = finite(to_json(tuple(dict.fromkeys(metrics))))  # a judge may repeat a rate
    inputs = {"direction": run.direction_hash, "metrics": rows}
    step = Step("evaluate", program(), inputs, [path])
    run.folder.do(step, lambda: write_json(path, rows))
    return read_metrics(path)


def plan_of(asked: Asked, model: ChatModel) -> Plan:
    """What the stages of a run count with: its options, layers and how long its prompts are."""
    chat = model.chat
    about = (asked.prompts, len(chat.prefix), chat.day, chat.thinking, chat.around)
    lengths = lengths_of(model.tokenizer, chat.system, *about)
    return Plan(asked.config, model.sites.n_layers, lengths)


def _fix_day(folder: RunFolder, config: RunConfig, model: ChatModel) -> None:
    """Give the model the run's date: the one asked for, else that of the run's first day, else
    today.

    Raises:
        RunFolderError: the manifest's date is none.
    """
    if config.date is None and model.chat.day.given:
        return
    first = folder.manifest.get("date")
    try:
        today = parallel.smallest(date.today().toordinal())
        begun = date.fromordinal(today) if first is None else date.fromisoformat(first)
    except (ValueError, TypeError) as error:
        raise RunFolderError(
            f"{folder.path / 'manifest.json'}: date is {first!r}, not YYYY-MM-DD. Mend it, or give "
            "another --out."
        ) from error
    model.set_day(day_of(config.date, begun))


def _categories(asked: Asked) -> dict[str, dict[str, str]]:
    """The category of every prompt that is measured and has one, by set and id."""
    found = {}
    for name, pool in asked.measured.items():
        found[name] = {prompt.id: prompt.category for prompt in pool if prompt.category}
    return found
