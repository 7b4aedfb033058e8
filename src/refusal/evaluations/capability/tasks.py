"""lm-eval's tasks by name: found, with local data where there are, and the items that are run."""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

from refusal.core.errors import ConfigError
from refusal.core.storage import file_sha256
from refusal.evaluations.capability.local import FOLDERS, dataset_of, overlay

# What tasks raise when a package, the network, a file or a column is missing.
LOAD_ERRORS = (
    ImportError,
    OSError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    RuntimeError,
)


@dataclass(frozen=True)
class Spec:
    """A task as it is asked for: ``name``, with ``:N`` for another number of worked examples,
    ``@M`` for M items.

    ``text`` is what its results are called: without the items.
    """

    text: str
    name: str
    shots: int | None = None
    items: int | None = None

    @classmethod
    def parse(cls, text: str) -> "Spec":
        """Raises ConfigError where what follows the colon or the at sign is no number."""
        found = re.fullmatch(r"([^:@]+)(?::(\d+))?(?:@([1-9]\d*))?", text)
        if found is None:
            raise ConfigError(
                f"{text!r} is no task. Give a name of lm-eval, name:N for N worked examples, "
                "name@M for M items."
            )
        name, shots, items = found.groups()
        of = name if shots is None else f"{name}:{shots}"
        return cls(
            of, name, None if shots is None else int(shots), None if items is None else int(items)
        )


@dataclass(frozen=True)
class Benchmark:
    """A task or group, ready to run: lm-eval's task and group objects by name, and the local files'
    sha256.
    """

    spec: Spec
    tasks: dict[str, Any]
    groups: dict[str, Any]
    files: dict[str, str]

    def n_items(self, limit: int | None = None) -> int:
        """How many items are run: all, or those asked for with the task or by ``limit``."""
        there = sum(len(task.eval_docs) for task in self.tasks.values())
        return min(there, self.spec.items or limit or there)


def load_task(spec: Spec, data_dir: Path | None) -> Benchmark:
    """Build lm-eval's tasks, with data from ``data_dir`` where it holds them and from the hub
    elsewhere.

    Raises:
        ConfigError: unknown name, malformed or missing data, or a task that cannot run here.
    """
    manager = _manager(spec.name)
    with _from_files(manager, spec, data_dir) as files:
        try:
            found = manager.load([spec.name])
        except LOAD_ERRORS as error:
            raise ConfigError(_not_loaded(spec, manager, data_dir, error)) from error
    for name, task in found["tasks"].items():
        _set_up(spec, name, task)
    hashes = {name: file_sha256(path) for name, path in sorted(files.items())}
    return Benchmark(spec, found["tasks"], found.get("groups", {}), hashes)


def choose_items(benchmark: Benchmark, limit: int | None, seed: int) -> dict[str, list[int]]:
    """Which items of each task to run: all, or a seeded random ``limit`` of them, spread evenly
    over a group's tasks.

    Tasks that get none are left out. Nothing about the model enters: every condition gets the same
    items, and a smaller ``limit`` some of the same.
    """
    counts = {name: len(task.eval_docs) for name, task in benchmark.tasks.items()}
    return spread(counts, limit, Random(f"{seed} {benchmark.spec.name}"))


def spread(counts: Mapping[str, int], limit: int | None, random: Random) -> dict[str, list[int]]:
    """Sorted random indices below each count, ``limit`` in all, as even over the names as the
    counts allow.

    With the same random numbers the indices of a smaller limit are among those of a larger one.
    """
    left = sum(counts.values()) if limit is None else min(limit, sum(counts.values()))
    names = sorted(counts)
    random.shuffle(names)  # whose turn comes first, so that the last round favours none
    take = dict.fromkeys(names, 0)
    while left:
        for name in [name for name in names if take[name] < counts[name]][:left]:
            take[name] += 1
            left -= 1
    # lm-eval numbers the chosen items in the order of the data: the indices must be sorted.
    orders = {name: random.sample(range(counts[name]), counts[name]) for name in sorted(counts)}
    return {name: sorted(order[: take[name]]) for name, order in orders.items() if take[name]}


def _manager(name: str) -> Any:
    """An index of lm-eval's tasks that knows ``name``; the whole one takes seconds, so the usual
    folders come first.

    Not for tags: tasks anywhere may carry one.
    """
    manager = _index(whole=False)
    if name in manager.task_index and manager.task_index[name].kind.name != "TAG":
        return manager
    manager = _index(whole=True)
    if name in manager.task_index:
        return manager
    near = get_close_matches(name, manager.all_tasks, n=4)
    hint = f"Did you mean {', '.join(near)}?" if near else "`lm-eval ls tasks` lists all."
    raise ConfigError(f"lm-eval has no task {name!r}. {hint}")


@cache
def _index(whole: bool) -> Any:
    import lm_eval.tasks
    from lm_eval.tasks import TaskManager

    if whole:
        return TaskManager()
    root = Path(str(lm_eval.tasks.__file__)).parent
    return TaskManager(include_defaults=False, include_path=[root / folder for folder in FOLDERS])


@contextmanager
def _from_files(manager: Any, spec: Spec, data_dir: Path | None) -> Iterator[dict[str, Path]]:
    """Inside the block the tasks of ``spec`` read from ``data_dir`` where it holds their data;
    yields those files.
    """
    index = manager.task_index
    before = dict(index)
    files: dict[str, Path] = {}
    try:
        for name in _members(index, spec.name):
            if (
                data_dir is not None
                and (found := overlay(index[name], data_dir, spec.shots)) is not None
            ):
                index[name], paths = found
                files.update({path.name: path for path in paths.values()})
        yield files
    finally:
        index.clear()
        index.update(before)


def _members(index: Mapping[str, Any], name: str) -> list[str]:
    """The tasks behind a name: itself, or those of the group or tag, at every depth."""
    entry = index.get(name)
    if entry is None:
        return []
    match entry.kind.name:
        case "TAG":
            children = sorted(entry.tags)
        case "GROUP":
            listed = (
                entry.cfg["task"] if isinstance(entry.cfg["task"], list) else [entry.cfg["task"]]
            )
            children = []
            for child in listed:
                named = isinstance(child, dict)
                children.append(child.get("task", child.get("group")) if named else child)
        case _:
            return [name]
    return [
        member for child in children if isinstance(child, str) for member in _members(index, child)
    ]


def _set_up(spec: Spec, name: str, task: Any) -> None:
    """Make sure that a task can run here, and set its number of worked examples.

    As lm-eval does, none where neither the config nor the caller says how many. Where a config says
    0 (its prompt brings its own examples) lm-eval goes on with 0; here that is an error.
    """
    if getattr(task, "UNSAFE_CODE", False) or getattr(task, "MULTIMODAL", False):
        why = (
            "runs code that the model wrote"
            if getattr(task, "UNSAFE_CODE", False)
            else "is not text alone"
        )
        raise ConfigError(f"{name} {why}, which refusal does not do. Use lm-eval itself for it.")
    configured = task.get_config("num_fewshot")
    if spec.shots and configured == 0:
        raise ConfigError(
            f"{name} takes no worked examples besides those in its prompt. Ask for {spec.name}."
        )
    task.set_config("num_fewshot", spec.shots if spec.shots is not None else configured or 0)
    wanted, pool = (
        task.get_config("num_fewshot"),
        getattr(getattr(task, "sampler", None), "df", None),
    )
    there = len(pool or ())
    if pool is not None and wanted > there:
        raise ConfigError(
            f"{name} has {there} worked examples, not {wanted}. Ask for {spec.name}:{there}."
        )


def _not_loaded(spec: Spec, manager: Any, data_dir: Path | None, error: Exception) -> str:
    """The first line of what went wrong, and which files would do instead."""
    first = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".: ")
    configs = [
        manager.task_index[name].cfg or {} for name in _members(manager.task_index, spec.name)
    ]
    wanted: set[str] = set()
    for config in configs:
        data = dataset_of(config)
        if data:
            wanted.update(*data.splits.values())
    files = (
        f" or put {' / '.join(sorted(wanted))} into {data_dir or '--data-dir'}" if wanted else ""
    )
    return f"The task {spec.name!r} could not be loaded: {first}. Check the network{files}."
