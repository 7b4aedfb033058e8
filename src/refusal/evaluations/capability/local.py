"""Benchmark data from local files: lm-eval's own task configs, with another place to read their
data from.

Nothing of a config changes but that place (and splits that are not there are not asked for), so
prompts, choices, targets, filters and metrics are lm-eval's by construction. Which tasks this
covers follows from the data set that a config names: every task of lm-eval on one of ``DATASETS``
can run from files.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from refusal.core.data_files import find_data_file
from refusal.core.errors import ConfigError
from refusal.evaluations.capability.rows import (
    Arc,
    Gsm8k,
    HellaSwag,
    Mmlu,
    Row,
    TruthfulQA,
    read_rows,
)

Config = dict[str, Any]


@dataclass(frozen=True)
class DataSet:
    """A data set in files.

    ``splits`` gives the names a file may have, by split of the hub's data set; the first that is
    there counts. ``by_subject``: the config's ``dataset_name`` is a value of the column
    ``subject``. ``not_for``: tasks that read columns which the files do not have. ``instead``: a
    task whose worked examples need no file.
    """

    row: type[Row]
    splits: Mapping[str, tuple[str, ...]]
    by_subject: bool = False
    not_for: frozenset[str] = frozenset()
    instead: str = ""


DATASETS: dict[tuple[str, str | None], DataSet] = {  # by the config's dataset_path and dataset_name
    ("allenai/ai2_arc", "ARC-Challenge"): DataSet(
        Arc, {split: (f"arc_challenge_{split}.jsonl",) for split in ("train", "validation", "test")}
    ),
    ("allenai/ai2_arc", "ARC-Easy"): DataSet(
        Arc, {split: (f"arc_easy_{split}.jsonl",) for split in ("train", "validation", "test")}
    ),
    ("cais/mmlu", None): DataSet(
        Mmlu,
        {
            "dev": ("mmlu_dev.jsonl",),
            "test": ("mmlu_test.jsonl", "mmlu_test_2000.jsonl", "mmlu_validation.jsonl"),
        },
        by_subject=True,
    ),
    ("openai/gsm8k", "main"): DataSet(
        Gsm8k, {"train": ("gsm8k_train.jsonl",), "test": ("gsm8k_test.jsonl",)}, instead="gsm8k_cot"
    ),
    ("Rowan/hellaswag", None): DataSet(
        HellaSwag,
        {
            "train": ("hellaswag_train.jsonl",),
            "validation": (
                "hellaswag_val.jsonl",
                "hellaswag_validation.jsonl",
                "hellaswag_val_2000.jsonl",
            ),
        },
    ),
    ("truthfulqa/truthful_qa", "multiple_choice"): DataSet(
        TruthfulQA, {"validation": ("truthfulqa_mc1.jsonl",)}, not_for=frozenset({"truthfulqa_mc2"})
    ),
}
FOLDERS = (
    "arc",
    "gsm8k",
    "hellaswag",
    "mmlu/default",
    "truthfulqa",
)  # of lm-eval's tasks that name these data sets


def dataset_of(config: Config) -> DataSet | None:
    """The data set that a task config names, if it is one that can be read from files."""
    path, name = config.get("dataset_path"), config.get("dataset_name")
    found = DATASETS.get((str(path), name)) or DATASETS.get((str(path), None))
    return None if found is None or config.get("task") in found.not_for else found


def files_of(dataset: DataSet, data_dir: Path) -> dict[str, Path]:
    """The files that are there, by split."""
    found = {}
    for split, names in dataset.splits.items():
        for name in names:
            path = find_data_file(data_dir, name)
            if path is not None:
                found[split] = path
                break
    return found


def localised(
    config: Config, dataset: DataSet, files: Mapping[str, Path], shots: int | None
) -> Config | None:
    """A task config that reads ``files``; ``None`` where they do not hold the split that it
    evaluates.

    Args:
        config: lm-eval's, functions resolved.
        shots: worked examples asked for; ``None`` is what the config says.

    Raises:
        ConfigError: the examples would have to come from a split that is not there.
    """
    keys = ("training_split", "validation_split", "test_split", "fewshot_split")
    here = {key: config[key] if config.get(key) in files else None for key in keys}
    evaluated = here["test_split"] or here["validation_split"]
    if evaluated is None:
        return None
    shots = shots if shots is not None else config.get("num_fewshot") or 0
    built_in = (
        config.get("num_fewshot") == 0
        or (config.get("fewshot_config") or {}).get("samples") is not None
    )
    splits = [here[key] for key in ("fewshot_split", "training_split", "validation_split")]
    apart = [split for split in splits if split != evaluated]
    if shots and not built_in and not any(apart):
        missing = [names[0] for split, names in dataset.splits.items() if split not in files]
        instead = (
            f"{dataset.instead} (its examples are part of the task) or " if dataset.instead else ""
        )
        raise ConfigError(
            f"The worked examples of {config['task']} come from a split that is not among the "
            f"data files. Put {' or '.join(missing)} beside {files[evaluated].name}, or ask for "
            f"{instead}{config['task']}:0."
        )
    subject = config["dataset_name"] if dataset.by_subject else None
    return {**config, **here, "custom_dataset": _reader(dict(files), dataset.row, subject)}


def _reader(files: dict[str, Path], kind: type[Row], subject: str | None) -> Callable[..., Any]:
    """What lm-eval calls for the data: a function without state, since it copies and prints
    configs.
    """

    def read(**metadata: Any) -> Any:
        from datasets import Dataset, DatasetDict

        splits = {split: _rows(path, kind, subject) for split, path in files.items()}
        return DatasetDict({split: Dataset.from_list(rows) for split, rows in splits.items()})

    return read


def _rows(path: Path, kind: type[Row], subject: str | None) -> list[dict[str, Any]]:
    rows = _read(path, path.stat().st_mtime_ns, kind)
    chosen = [row for row in rows if subject is None or row["subject"] == subject]
    if not chosen:
        raise ConfigError(
            f"{path} holds no items of {subject}. Give a file with all subjects, or name others."
        )
    return chosen


@lru_cache(maxsize=8)
def _read(path: Path, changed: int, kind: type[Row]) -> list[dict[str, Any]]:
    """Once for all subjects."""
    return read_rows(path, kind)


def overlay(entry: Any, data_dir: Path, shots: int | None) -> tuple[Any, dict[str, Path]] | None:
    """An entry of lm-eval's task index with its data from files, and those; ``None`` where the hub
    must give them.
    """
    from lm_eval.tasks._yaml_loader import load_yaml

    dataset = dataset_of(entry.cfg or {})
    if dataset is None or entry.yaml_path is None:
        return None
    files = files_of(dataset, data_dir)
    config = localised(load_yaml(entry.yaml_path, resolve_func=True), dataset, files, shots)
    return None if config is None else (replace(entry, yaml_path=None, cfg=config), files)
