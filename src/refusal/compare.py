"""Runs side by side: models, prompt sets, interventions; with paired tests where the prompts are the same.

Everything is read from the run folders; nothing is measured again.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from refusal.errors import RunFolderError
from refusal.evaluate.conditions import CONDITIONS, random_group
from refusal.evaluate.rates import HITS, metric
from refusal.records import Completion, Direction, Metric, Prompt
from refusal.run_evaluation import read_completions
from refusal.run_folder import FORMAT, read_json, read_metrics
from refusal.stats import rate_change

COMPARED = ("refusal_rate", "degenerate_rate")


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
class Comparison:
    """Runs and what they have in common; ``cosines`` are with the first run's direction, where the widths agree."""

    runs: tuple[RunSummary, ...]
    rows: tuple[ComparedRow, ...]
    cosines: tuple[float | None, ...]


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
    metrics = [{(m.name, m.set, m.condition): m for m in read_metrics(path / "metrics.json")} for path in paths]
    completions = [_completions(path) for path in paths]
    keys = dict.fromkeys(key for found in metrics for key in found if _shown(*key))
    rows = []
    for key in keys:
        values = tuple(found.get(key) for found in metrics)
        if sum(value is not None for value in values) > 1:
            changes = tuple(_change(key, completions[0], other) for other in completions[1:])
            rows.append(ComparedRow(*key, values, (None, *changes)))
    directions = [Direction.load(path / "direction.safetensors") for path in paths]
    return Comparison(
        tuple(_summary(path, direction) for path, direction in zip(paths, directions, strict=True)),
        tuple(rows),
        tuple(_cosine(directions[0], direction) for direction in directions),
    )


def check_finished(path: Path) -> None:
    """Raise RunFolderError unless a run with completions and metrics, of this format, is in the folder."""
    if not (path / "manifest.json").is_file():
        raise RunFolderError(f"{path} is no run folder: it has no manifest.json. Give a folder that refusal run made.")
    found = read_json(path / "manifest.json").get("format")
    if found != FORMAT:
        raise RunFolderError(f"{path} holds a run of format {found}, this version reads {FORMAT}. Run it again.")
    check_completed(path)
    if not (path / "metrics.json").is_file():
        raise RunFolderError(f"{path} holds no metrics.json: the run is not finished. Run the same command again.")


def check_completed(path: Path) -> None:
    """Raise RunFolderError unless the folder has completions."""
    if not any((path / "completions" / f"{set}.{condition}.jsonl").is_file() for set, condition in CONDITIONS):
        raise RunFolderError(f"{path} holds no completions. Make them first: refusal generate MODEL --out {path}.")


def _summary(path: Path, direction: Direction) -> RunSummary:
    manifest: dict[str, Any] = read_json(path / "manifest.json")
    return RunSummary(
        str(path),
        manifest["model"]["name"],
        manifest["prompts"]["name"],
        manifest["seed"],
        direction.position,
        direction.layer,
        direction.qualified,
    )


def _shown(name: str, set: str, condition: str) -> bool:
    """Rates and drift; of the controls only what the random ones do together, and no changes within a run."""
    pooled = random_group(condition)
    return not name.endswith("_change") and set != "direction" and (pooled is None or pooled == condition)


def _completions(path: Path) -> dict[tuple[str, str], dict[str, Completion]]:
    """By (set, condition) and the prompt's fingerprint."""
    found = {}
    for file in sorted((path / "completions").glob("*.jsonl")):
        set, _, condition = file.stem.partition(".")
        rows = read_completions(file)
        found[set, condition] = {Prompt(c.prompt_id, c.prompt, "harmful").fingerprint: c for c in rows}
    return found


def _change(
    key: tuple[str, str, str],
    first: Mapping[tuple[str, str], Mapping[str, Completion]],
    other: Mapping[tuple[str, str], Mapping[str, Completion]],
) -> Metric | None:
    name, set, condition = key
    before, after = first.get((set, condition), {}), other.get((set, condition), {})
    shared = [fingerprint for fingerprint in before if fingerprint in after]
    if name not in COMPARED or not shared:
        return None
    hit = HITS[name]
    change = rate_change([hit(before[f]) for f in shared], [hit(after[f]) for f in shared])
    return metric(f"{name}_change", set, condition, change, len(shared))


def _cosine(first: Direction, other: Direction) -> float | None:
    return float(first.vector @ other.vector) if first.vector.shape == other.vector.shape else None
