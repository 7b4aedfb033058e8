"""Runs side by side: models, prompt sets, interventions; with paired tests where the prompts are
the same.

Everything is read from the run folders; nothing is measured again.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING

from refusal.core.clusters import corrected_change, grouped, rate_change
from refusal.core.errors import RunFolderError
from refusal.core.frames import NotebookRecord, dataframe
from refusal.core.records import Completion, Metric
from refusal.core.turns import fingerprint
from refusal.core.valid import SavedDirection, read_direction
from refusal.evaluations.capability.rates import PREFIX, is_binary
from refusal.evaluations.capability.results import file_name, read_task_run
from refusal.evaluations.refusal.rates import CORRECTED, HITS, metric
from refusal.interventions.conditions import EVERY, random_group
from refusal.report.lengths import AT
from refusal.runs.files import read_completions, read_manifest, read_metrics

if TYPE_CHECKING:
    import pandas

COMPARED = ("refusal_rate", "degenerate_rate")
Key = tuple[str, str, str]  # name, set, condition


@dataclass(frozen=True)
class RunSummary:
    """What was run, and the direction that was found."""

    folder: str
    model: str
    prompts: str
    seed: int
    position: int
    layer: int
    qualified: bool


@dataclass(frozen=True)
class ComparedRow:
    """One metric in every run (``None`` where a run has it not), and its change from the first run.

    A change is given where both runs share prompts; it is over those only, paired.
    """

    name: str
    set: str
    condition: str
    values: tuple[Metric | None, ...]
    changes: tuple[Metric | None, ...]


@dataclass(frozen=True)
class Comparison(NotebookRecord):
    """Runs and what they have in common; ``cosines`` are with the first run's direction, where the
    widths agree.
    """

    runs: tuple[RunSummary, ...]
    rows: tuple[ComparedRow, ...]
    cosines: tuple[float | None, ...]

    def to_dataframe(self) -> "pandas.DataFrame":
        """The rows, one metric of one run a row; ``run`` counts from 1.

        Raises:
            UsageError: pandas is not installed.
        """
        columns = ("run", *(field.name for field in fields(Metric)))
        found = [
            (i, m) for row in self.rows for i, m in enumerate(row.values, start=1) if m is not None
        ]
        return dataframe(({"run": i, **asdict(m)} for i, m in found), columns)


def compare(folders: Sequence[str | Path]) -> Comparison:
    """Compare finished runs with the first of them.

    Raises:
        RunFolderError: fewer than two folders, or one that holds no finished run.
    """
    paths = [Path(folder) for folder in folders]
    if len(paths) < 2:
        raise RunFolderError(f"{len(paths)} run folder is nothing to compare. Give two or more.")
    for path in paths:
        check_finished(path)
    metrics = []
    for path in paths:
        read = read_metrics(path / "metrics.json")
        metrics.append({(m.name, m.set, m.condition): m for m in read})
    answers = [_right_or_wrong(path) for path in paths]
    keys = dict.fromkeys(key for found in metrics for key in found if _shown(*key))
    rows = []
    for key in keys:
        values = tuple(found.get(key) for found in metrics)
        if sum(value is not None for value in values) > 1:
            changes = tuple(_change(key, answers[0], other) for other in answers[1:])
            rows.append(ComparedRow(*key, values, (None, *changes)))
    directions = [read_direction(path / "direction.safetensors") for path in paths]
    return Comparison(
        tuple(_summary(path, direction) for path, direction in zip(paths, directions, strict=True)),
        tuple(rows),
        tuple(_cosine(directions[0], direction) for direction in directions),
    )


def check_finished(path: Path) -> None:
    """Raise RunFolderError unless a run with completions and metrics, of this format, is in the
    folder.
    """
    read_manifest(path)
    check_completed(path)
    if not (path / "metrics.json").is_file():
        raise RunFolderError(
            f"{path} holds no metrics.json: the run is not finished. Run the same command again."
        )


def check_completed(path: Path) -> None:
    """Raise RunFolderError unless the folder has completions."""
    files = [f"{set_name}.{condition}.jsonl" for set_name, condition in EVERY]
    if not any((path / "completions" / file).is_file() for file in files):
        raise RunFolderError(
            f"{path} holds no completions. Make them first: refusal generate MODEL --out {path}."
        )


def _summary(path: Path, direction: SavedDirection) -> RunSummary:
    manifest = read_manifest(path)
    return RunSummary(
        str(path),
        manifest["model"]["name"],
        manifest["prompts"]["name"],
        manifest["seed"],
        direction.position,
        direction.layer,
        direction.qualified,
    )


def _shown(name: str, set_name: str, condition: str) -> bool:
    """Rates and drift; of the controls only what the random ones do together, and no changes or
    lengths within a run.
    """
    pooled = random_group(condition)
    return (
        not name.endswith(("_change", "_rise"))
        and re.fullmatch(AT, name) is None
        and set_name not in ("direction", "finders")
        and (pooled is None or pooled == condition)
    )


def _right_or_wrong(path: Path) -> dict[Key, dict[str, list[bool]]]:
    """What each sample of a prompt or each item gave, by (name, set, condition) and the prompt's
    fingerprint or the item's id.
    """
    found: dict[Key, dict[str, list[bool]]] = {}
    for file in sorted((path / "completions").glob("*.jsonl")):
        set_name, _, condition = file.stem.partition(".")
        rows = read_completions(file)
        for name in COMPARED:
            hits = (HITS[name](c) for c in rows)
            found[name, set_name, condition] = grouped(map(_asked, rows), hits)
            if name in CORRECTED:
                found[f"{name}_corrected", set_name, condition] = found[name, set_name, condition]
    for file in sorted((path / "capability").glob("*.jsonl")):
        run = read_task_run(file, file.with_suffix(".json"))
        condition = file.stem.removeprefix(f"{file_name(run.task)}.")
        for name in {item.metric for item in run.items}:
            values = {item.id: item.value for item in run.items if item.metric == name}
            if is_binary(list(values.values())):
                found[PREFIX + name, run.task, condition] = {
                    ident: [value == 1.0] for ident, value in values.items()
                }
    return found


def _asked(row: Completion) -> str:
    return fingerprint(row.prompt, row.before)


def _change(
    key: Key,
    first: Mapping[Key, Mapping[str, list[bool]]],
    other: Mapping[Key, Mapping[str, list[bool]]],
) -> Metric | None:
    before, after = first.get(key, {}), other.get(key, {})
    shared = [one for one in before if one in after]
    if not shared:
        return None
    name, set_name, condition = key
    hits = ([before[one] for one in shared], [after[one] for one in shared])
    accuracy = (
        CORRECTED.get(name.removesuffix("_corrected")) if name.endswith("_corrected") else None
    )
    change = rate_change(*hits) if accuracy is None else corrected_change(*hits, accuracy)
    return (
        None
        if change is None
        else metric(f"{name}_change", set_name, condition, change, len(shared))
    )


def _cosine(first: SavedDirection, other: SavedDirection) -> float | None:
    return float(first.vector @ other.vector) if first.vector.shape == other.vector.shape else None
