"""A run folder as one record: everything that the report shows, and what is not there yet."""

import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from refusal.config.rule import Rule
from refusal.config.run_config import RunConfig, make_config
from refusal.core.filters import Calibration, FilterChoice
from refusal.core.records import CandidateScore, Choice, Completion, Metric, RefusalTokens
from refusal.core.storage import file_sha256
from refusal.core.strict_files import damaged, read_list
from refusal.core.valid import read_direction
from refusal.evaluations.judges.agreement import Agreement
from refusal.evaluations.refusal.curves import curves
from refusal.evaluations.refusal.rates import measure_all
from refusal.evaluations.transfer.record import FILE as TRANSFER
from refusal.evaluations.transfer.record import TransferTable, read_transfer
from refusal.interventions.conditions import (
    BASELINE,
    LABELS,
    conditions,
    in_order,
    is_plain,
    stopping,
)
from refusal.prompts.over_refusal import SETS
from refusal.runs.files import (
    SavedCandidates,
    read_categories,
    read_choice,
    read_completions,
    read_manifest,
    read_metrics,
    read_scores,
    read_tokens,
    read_vectors,
)
from refusal.runs.filtered import (
    UNFITTED,
    calibration_file,
    filter_file,
    read_calibration,
    read_filter,
)
from refusal.runs.projections import Projections, read_projections

Key = tuple[str, str]  # set, condition
AGREEMENT = "judgements/agreement.json"


@dataclass(frozen=True)
class ReportData:
    """What a run has so far; a part that is not there is ``None`` or empty, and named in
    ``missing``.

    Attributes:
        direction: the chosen unit vector.
        scores: of all candidates, there also where none qualifies under ``--strict``.
        completions: without those of the control directions, by set and condition.
        metrics: of ``metrics.json``; while that is missing, the rates of the completions that are
            there.
        categories: of prompts by set and id, where they are known.
        agreement: of every two judges, as ``judgements/agreement.json`` has it.
        missing: what this run has not done yet, in order; empty for a finished run.
        filter: which prompts the direction is found with, and why; older versions kept nothing.
        calibration: the refusal metric's threshold, and whose score chooses.
        transfer: directions of several contexts, each used in all, where that was asked for.
    """

    path: Path
    manifest: Mapping[str, Any]
    config: RunConfig
    tokens: RefusalTokens | None
    candidates: SavedCandidates | None
    scores: tuple[CandidateScore, ...]
    selection: Choice | None
    direction: Float[np.ndarray, "d_model"] | None
    projections: Projections | None
    completions: Mapping[Key, tuple[Completion, ...]]
    metrics: tuple[Metric, ...]
    categories: Mapping[str, Mapping[str, str]]
    agreement: tuple[Agreement, ...]
    missing: tuple[str, ...]
    filter: FilterChoice | None = None
    calibration: Calibration = UNFITTED
    transfer: TransferTable | None = None

    @property
    def rule(self) -> Rule:
        """The selection rule as it was applied: induce counts from the metric's threshold."""
        rule = self.config.rule
        induce = rule.induce_threshold + self.calibration.threshold
        return replace(rule, induce_threshold=induce)

    @property
    def model(self) -> str:
        """The model's name."""
        return str(self.manifest["model"]["name"])

    @property
    def finished(self) -> bool:
        """Whether the run came to its numbers."""
        return (self.path / "metrics.json").is_file()

    @property
    def n_layers(self) -> int:
        """Decoder blocks; 0 where nothing is known yet."""
        if self.candidates is not None:
            return int(self.candidates.vectors.shape[1])
        return 1 + max((s.layer for s in self.scores), default=-1)

    @property
    def suffix(self) -> tuple[str, ...]:
        """Texts of the post-instruction tokens, the earliest first; empty where not known."""
        return self.candidates.suffix if self.candidates is not None else ()

    @property
    def eligible(self) -> int:
        """Layers ``0 .. value - 1`` may be chosen."""
        return self.config.rule.eligible_layers(self.n_layers)

    @property
    def command(self) -> str:
        """Goes on with the run, or adds what an older version left out."""
        return (
            f"refusal run --config {shlex.quote(str(self.path / 'run.toml'))} --out "
            f"{shlex.quote(str(self.path))}"
        )

    def find(self, name: str, set_name: str, condition: str) -> Metric | None:
        """The metric of that name, if it is there."""
        wanted = (name, set_name, condition)
        return next((m for m in self.metrics if (m.name, m.set, m.condition) == wanted), None)


def read_run(path: Path) -> ReportData:
    """Everything of a run folder that there is.

    Raises:
        RunFolderError: no run folder, one of another format, or a damaged file in it.
        ConfigError: its ``run.toml`` is not one of this version.
    """
    manifest = read_manifest(path)
    config = make_config(file=path / "run.toml")

    def there(*names: str) -> bool:
        return all((path / name).is_file() for name in names)

    chosen = there("selection.json", "direction.safetensors", "scores.json", "stability.json")
    selection = read_choice(path) if chosen else None
    direction = path / "direction.safetensors"
    current = _Current(manifest, file_sha256(direction) if chosen else None)
    completions = {}
    for file in _plain_completions(path):
        set_name, _, condition = file.stem.partition(".")
        if current(f"generate {set_name}.{condition}"):
            completions[set_name, condition] = read_completions(file)
    projected = there("projections.json") and chosen and current("projections")
    metrics = path / "metrics.json"
    if metrics.is_file():
        measured = read_metrics(metrics)
    else:
        most = config.max_new_tokens
        measured = (*measure_all(_paired(completions)), *curves(completions, most))
        finders = path / "finders.json"
        if finders.is_file() and chosen and current("finders table"):
            measured = (*read_metrics(finders), *measured)
    choice = read_filter(path) if filter_file(path).is_file() else None
    calibrated = choice is not None and calibration_file(path).is_file()
    data = ReportData(
        path=path,
        manifest=manifest,
        config=config,
        tokens=read_tokens(path) if there("refusal_tokens.json") else None,
        candidates=read_vectors(path) if there("candidates.safetensors") else None,
        scores=read_scores(path) if there("scores.json") else (),
        selection=selection,
        direction=read_direction(direction).vector if chosen else None,
        projections=read_projections(path / "projections.json") if projected else None,
        completions=completions,
        metrics=measured,
        categories=read_categories(path / "categories.json") if there("categories.json") else {},
        agreement=read_list(path / AGREEMENT, Agreement) if there(AGREEMENT) else (),
        missing=(),
        filter=choice,
        calibration=read_calibration(path, choice) if choice and calibrated else UNFITTED,
        transfer=read_transfer(path) if there(TRANSFER) and current("transfer table") else None,
    )
    _check_fit(data)
    return _with_missing(data)


def _check_fit(data: ReportData) -> None:
    """Raise RunFolderError unless scores, direction and projections are of the candidates that are
    there.
    """
    if data.candidates is None:
        return
    positions, layers, width = data.candidates.vectors.shape
    if any(-score.position > positions or score.layer >= layers for score in data.scores):
        raise damaged(
            data.path / "scores.json",
            f"beyond the candidates' {positions} positions and {layers} layers",
        )
    if len(data.suffix) not in (0, positions):
        raise damaged(
            data.path / "candidates.safetensors", f"metadata, suffix: not {positions} tokens"
        )
    if data.direction is not None and data.direction.shape != (width,):
        raise damaged(
            data.path / "direction.safetensors",
            f"direction: not {width} numbers, as the candidates are",
        )
    if data.projections is not None and any(
        len(row) != layers for row in data.projections.along["harmful"]
    ):
        raise damaged(
            data.path / "projections.json", f"along: not {layers} layers, as the candidates have"
        )


@dataclass(frozen=True)
class _Current:
    """Whether a stage's files are of the direction that is in the folder; older runs do not say,
    and are believed.
    """

    manifest: Mapping[str, Any]
    direction: str | None

    def __call__(self, stage: str) -> bool:
        made_with = self.manifest["stages"].get(stage, {}).get("direction")
        return made_with is None or made_with == self.direction


def _plain_completions(path: Path) -> Iterator[Path]:
    """Those under the direction itself and without any, in the order of the conditions."""
    over = [half for name in SETS for half in SETS[name]]
    for set_name in (*LABELS, *over):
        found = {}
        for file in (path / "completions").glob(f"{set_name}.*.jsonl"):
            condition = file.stem.partition(".")[2]
            if is_plain(condition):
                found[in_order(condition)] = file
        yield from (found[place] for place in sorted(found))


def _paired(completions: Mapping[Key, tuple[Completion, ...]]) -> dict[Key, tuple[Completion, ...]]:
    """Without the baselines that lack prompts of another condition (left from other options):
    nothing to pair there.
    """
    found = dict(completions)
    for (set_name, _), rows in completions.items():
        baseline = {c.prompt_id for c in completions.get((set_name, BASELINE), ())}
        if not {c.prompt_id for c in rows} <= baseline:
            found.pop((set_name, BASELINE), None)
    return found


def _with_missing(data: ReportData) -> ReportData:
    return replace(data, missing=tuple(_missing(data)))


def _missing(data: ReportData) -> Iterator[str]:
    """In words, in the order of the stages."""
    if not (data.path / "refusal_tokens.json").is_file():
        yield "the refusal tokens"
    if data.candidates is None:
        yield "the candidate directions"
    if data.selection is None:
        strict = data.config.strict and any(s.rejected_because for s in data.scores)
        yield "the choice of a direction" + (
            " (no candidate qualifies under --strict)" if strict else ""
        )
    if data.projections is None:
        yield "the projections of prompts on the direction"
    over = []
    for name in data.config.over_refusal:
        for half in SETS[name]:
            over += [(half, c) for c in (BASELINE, *stopping(data.config.interventions))]
    lacking: dict[str, list[str]] = {}
    for set_name, condition in (*conditions(data.config.interventions), *over):
        if (set_name, condition) not in data.completions:
            lacking.setdefault(set_name, []).append(condition)
    for set_name, names in lacking.items():
        yield f"completions of {set_name} prompts under {', '.join(names)}"
    given = data.config
    asked = (given.transfer_systems, given.transfer_turns, given.transfer_languages)
    if any(asked) and data.transfer is None:
        yield "the transfer table"
    if data.finished:
        return
    stages, config = data.manifest["stages"], data.config
    if config.controls and not (data.path / "controls.safetensors").is_file():
        yield "the control directions"
    if config.drift_tokens and "drift own-answers" not in stages:
        yield "drift on other text"
    for task in config.tasks:
        if f"capability {task}.baseline" not in stages:
            yield f"the benchmark {task}"
    for seed in range(config.seed + 1, config.seed + config.seeds):
        if f"seed {seed}" not in stages:
            yield f"the repetition with seed {seed}"
    for judge in config.judges:
        yield f"the judge {judge}"
    yield "the final numbers (metrics.json)"
