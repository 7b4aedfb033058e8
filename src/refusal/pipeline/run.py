"""A whole run in a folder: stages with recorded inputs, so that finished ones are reused and
nothing else is.

    prompts -> tokens -> extract -> select -> (run_projections) -> (run_evaluation) controls ->
    generate -> drift -> (run_capability, run_seeds, run_judges) -> evaluate -> (report)

A stage is reused if and only if the hash of its inputs (options, model, prompts, files of earlier
stages) is the one it was made with and its files are there as it wrote them. Only this module and
the ``run_*`` ones write into the folder.
"""

import json
from dataclasses import asdict, replace
from datetime import date
from pathlib import Path
from typing import Any

from refusal.config.engines import EngineOptions
from refusal.config.run_config import RunConfig
from refusal.core import parallel
from refusal.core.day import day_of
from refusal.core.errors import Error, NoCandidateError, RunFolderError
from refusal.core.lock import locked
from refusal.core.records import PromptSplits, RefusalTokens, finite, to_json
from refusal.core.storage import file_sha256, write_json, write_tensors
from refusal.core.valid import check_place, check_width
from refusal.directions.difference_in_means import difference_in_means
from refusal.directions.pool import collect
from refusal.directions.records import Candidates, Selection
from refusal.directions.refusal_tokens import tokens_for
from refusal.directions.selection.rule import explain
from refusal.directions.selection.select import select
from refusal.engines.make import make_engine
from refusal.engines.protocol import Engine
from refusal.evaluations.capability.stage import Capability, benchmarks_for
from refusal.evaluations.capability.tasks import Benchmark
from refusal.evaluations.judges.protocol import Judge
from refusal.evaluations.judges.stage import Judging, check_judged, judges_for
from refusal.evaluations.refusal.stages import Measured, check_completions_of
from refusal.evaluations.seeds import repeat_seeds
from refusal.evaluations.separation import project
from refusal.evaluations.sets import Sets, check_inputs, load_sets
from refusal.model.chat_model import ChatModel
from refusal.model.load import load
from refusal.prompts.load import load_prompts
from refusal.report.draw import check_formats
from refusal.report.write import write_report
from refusal.runs.files import read_tokens
from refusal.runs.folder import RunFolder, prompts_hash
from refusal.runs.records import read_candidates, read_selection
from refusal.runs.result import RunResult

STAGES = ("extract", "select", "generate", "evaluate")


def run(
    config: RunConfig,
    out: str | Path,
    *,
    until: str = "evaluate",
    model: ChatModel | None = None,
    adding: bool = False,
) -> RunResult:
    """Run the stages up to ``until`` (one of ``STAGES``) in the folder ``out``, reusing what is
    finished there.

    In a program that torchrun or accelerate has started, all its processes share the work, and all
    must call this.

    Args:
        model: an already loaded model; default: what the config names.
        adding: to completions that are there: they must be of the config's prompts, and are not
            replaced silently.

    Raises:
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
    check_formats(config.figures)
    folder.check()  # before anything slow, and again: another run may just have ended here
    prompts = load_prompts(
        config.prompts,
        seed=config.seed,
        dedup=config.dedup,
        data_dir=config.data_dir,
        column=config.column,
        system=config.system,
    )
    if adding:
        check_completions_of(folder, config, prompts)
    sets = load_sets(config, prompts)
    judges, benchmarks = judges_for(config), benchmarks_for(config)
    engine = engine_for(config, folder.path)
    given, model = model, model or load_for(config)
    _fix_day(folder, config, model)
    check_inputs(config, model, prompts, sets)
    folder.begin(config, model, prompts, loaded=given is None)
    write_json(folder.path / "categories.json", _categories(config, prompts, sets))
    try:
        result = _stages(folder, config, model, prompts, sets, (engine, judges, benchmarks), until)
    except Error as error:
        if (
            adding and error.exit_code == 2
        ):  # wrong input must not stand in the way of the next command
            folder.take_back_options()
        raise
    parallel.only_writer(lambda: write_report(folder.path, formats=config.figures))
    if result.metrics:
        parallel.only_writer(lambda: check_judged(folder, judges))
    return result


def _stages(
    folder: RunFolder,
    config: RunConfig,
    model: ChatModel,
    prompts: PromptSplits,
    sets: Sets,
    more: tuple[Engine, dict[str, Judge], tuple[Benchmark, ...]],
    until: str,
) -> RunResult:
    tokens = _tokens(folder, config, model, prompts)
    candidates = _extract(folder, config, model, prompts, tokens)
    result = RunResult(folder.path, config, tokens, candidates)
    if until == "extract":
        return result
    selection = _select(folder, config, model, prompts, candidates)
    result = replace(result, selection=selection)
    project(folder, config, model, prompts.val, tokens, selection.direction)
    if until == "select":
        return result
    engine, judges, benchmarks = more
    measured = Measured(folder, config, model, prompts, tokens, selection.direction, sets, engine)
    measured.complete()
    if until == "generate":
        return result
    extra = (
        *Capability(
            folder, config, model, selection.direction, measured.controls, benchmarks
        ).metrics(),
        *repeat_seeds(folder, config, model, prompts, tokens, selection),
        *Judging(folder, config, judges).metrics(measured.uncontrolled()),
    )
    return replace(result, metrics=measured.metrics(extra))


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
        begun = (
            date.fromordinal(parallel.smallest(date.today().toordinal()))
            if first is None
            else date.fromisoformat(first)
        )
    except (ValueError, TypeError) as error:
        raise RunFolderError(
            f"{folder.path / 'manifest.json'}: date is {first!r}, not YYYY-MM-DD. Mend it, or "
            "give another --out."
        ) from error
    model.set_day(day_of(config.date, begun))


def engine_for(config: RunConfig, out: Path) -> Engine:
    """Who writes the completions of a run in the folder ``out``.

    Raises:
        ConfigError: a name, a package or a key is missing.
    """
    return make_engine(
        EngineOptions(**{name: getattr(config, name) for name in EngineOptions.model_fields}), out
    )


def load_for(config: RunConfig) -> ChatModel:
    """The model that a run's configuration names."""
    return load(
        config.model,
        date=config.date,
        revision=config.revision,
        dtype=config.dtype,
        device=config.device,
        device_map=config.device_map,
        max_memory=config.max_memory,
        quantize=config.quantize,
        tp_plan=config.tp_plan,
        system=config.system,
        blocks=config.blocks,
        writers=config.writers or None,
        batch_size=config.batch_size,
    )


def _categories(config: RunConfig, prompts: PromptSplits, sets: Sets) -> dict[str, dict[str, str]]:
    """The category of every prompt that is measured and has one, by set and id."""
    test = prompts.test
    measured = {
        "harmful": test.harmful[: config.n_test],
        "harmless": test.harmless[: config.n_test],
    }
    return {
        set_name: {prompt.id: prompt.category for prompt in pool if prompt.category}
        for set_name, pool in {**measured, **sets.over_refusal}.items()
    }


def _tokens(
    folder: RunFolder, config: RunConfig, model: ChatModel, prompts: PromptSplits
) -> RefusalTokens:
    path = folder.path / "refusal_tokens.json"
    inputs = {
        "train": prompts_hash([*prompts.train.harmful, *prompts.train.harmless]),
        "given": config.refusal_tokens,
        "seed": config.seed,
    }

    def work() -> None:
        write_json(path, to_json(tokens_for(model, prompts.train, config.refusal_tokens)))

    folder.stage("tokens", inputs, [path], work)
    return read_tokens(folder.path)


def _extract(
    folder: RunFolder,
    config: RunConfig,
    model: ChatModel,
    prompts: PromptSplits,
    tokens: RefusalTokens,
) -> Candidates:
    path = folder.path / "candidates.safetensors"
    needs_all = config.filter or config.full_map  # the filter looks at the model's output
    layers = None if needs_all else config.rule.eligible_layers(model.sites.n_layers)
    inputs = {
        "train": prompts_hash([*prompts.train.harmful, *prompts.train.harmless]),
        "tokens": tokens.ids,
        "n": config.n_train,
        "filter": config.filter,
        "layers": layers,
        "seed": config.seed,
    }

    def work() -> None:
        activations = collect(
            model,
            prompts.train,
            n=config.n_train,
            tokens=tokens,
            filtered=config.filter,
            layers=layers,
            seed=config.seed,
        )
        counts = {
            "harmful": asdict(activations.harmful_count),
            "harmless": asdict(activations.harmless_count),
        }
        metadata = {
            "counts": json.dumps(finite(counts)),
            "model": model.name,
            "suffix": json.dumps(model.chat.suffix_tokens),
            "seen": json.dumps(sorted(activations.seen)),
        }
        write_tensors(path, {"candidates": difference_in_means(activations).vectors}, metadata)

    folder.stage("extract", inputs, [path], work)
    return read_candidates(folder.path, tokens, model.name, config.seed)


def _select(
    folder: RunFolder,
    config: RunConfig,
    model: ChatModel,
    prompts: PromptSplits,
    candidates: Candidates,
) -> Selection:
    names = ("scores.json", "direction.safetensors", "selection.json", "stability.json")
    scores, direction, summary, stability = (folder.path / name for name in names)
    inputs = {
        "candidates": file_sha256(folder.path / "candidates.safetensors"),
        "tokens": candidates.tokens.ids,
        "val": prompts_hash([*prompts.val.harmful, *prompts.val.harmless]),
        "n": config.n_val,
        "filter": config.filter,
        "rule": asdict(config.rule),
        "layer_step": config.layer_step,
        "full_map": config.full_map,
        "resamples": config.resamples,
        "seed": config.seed,
    }

    def work() -> None:
        try:
            selection = select(
                model,
                candidates,
                prompts.val,
                n=config.n_val,
                filtered=config.filter,
                rule=config.rule,
                layer_step=config.layer_step,
                full_map=config.full_map,
                resamples=config.resamples,
                strict=config.strict,
            )
            if (
                selection.direction.norm == 0
            ):  # the rule may choose it; nothing can be measured of it
                raise NoCandidateError(
                    f"The best candidate ({selection.score.position}, {selection.score.layer}) is "
                    "the zero vector: no candidate does more to the refusal metric than nothing. "
                    "Look at the refusal tokens (--refusal-tokens).",
                    selection.scores,
                )
        except NoCandidateError as error:
            write_json(scores, finite(to_json(error.scores)))  # so that one can see what was missed
            raise
        write_json(scores, finite(to_json(selection.scores)))
        selection.direction.save(direction)
        write_json(stability, _plain(selection.stability))
        kept = ("score", "qualified", "rejected", "harmful_count", "harmless_count")
        write_json(summary, finite({name: _plain(getattr(selection, name)) for name in kept}))

    folder.stage("select", inputs, [scores, direction, summary, stability], work)
    selection = read_selection(folder.path)
    found = selection.direction
    check_width(found.vector, model.sites.d_model)
    check_place(found.position, found.layer, candidates.n_positions, candidates.n_layers)
    selection = replace(
        selection, direction=replace(found, model=model.name)
    )  # the weights are the same
    if config.strict and not selection.qualified:
        why = explain(selection.scores, config.rule)
        raise NoCandidateError(
            f"{why} Run without --strict to go on with the closest one, marked unqualified."
        )
    return selection


def _plain(value: Any) -> Any:
    return to_json(value) if hasattr(value, "__dataclass_fields__") else value
