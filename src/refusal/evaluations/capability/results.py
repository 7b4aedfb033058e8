"""What a benchmark run gives: one row an item and metric, and lm-eval's own aggregate."""

from dataclasses import dataclass, replace
from pathlib import Path

from refusal.core.strict_files import read_lines, read_one


@dataclass(frozen=True)
class ItemResult:
    """One item's value of one metric.

    ``id`` is lm-eval's task, the item's index in it and the beginning of its content's hash: equal
    ids are the same item, also between runs. ``metric`` is named as lm-eval names it, with the
    filter where a task has several (``exact_match,strict-match``).
    """

    id: str
    value: float
    metric: str


@dataclass(frozen=True)
class TaskRun:
    """One task on one model under one condition.

    Attributes:
        task: as it was asked for, e.g. ``mmlu:5``.
        metric: the main metric: ``acc_norm`` where the task has it, else lm-eval's first.
        items: every number that lm-eval computes per item, the main metric's first. Empty where a
            task has none (perplexities): then there is the aggregate only.
        aggregate: lm-eval's own results, by task and group; standard errors are left out, NaN is
            ``None``.
        shots: worked examples before each item, by lm-eval's task.
        files: sha256 of the local files that were read, by name; empty where lm-eval fetched the
            data.
    """

    task: str
    metric: str
    items: tuple[ItemResult, ...]
    aggregate: dict[str, dict[str, float | None]]
    shots: dict[str, int]
    files: dict[str, str]

    @property
    def main(self) -> tuple[ItemResult, ...]:
        """The items' values of the main metric."""
        return tuple(item for item in self.items if item.metric == self.metric)

    @property
    def mean(self) -> float:
        """Mean of the main metric over the items; NaN without items."""
        values = [item.value for item in self.main]
        return sum(values) / len(values) if values else float("nan")


def file_name(task: str) -> str:
    """``mmlu:5`` has no place in a file name everywhere."""
    return task.replace(":", "-shots-")


def read_task_run(rows: Path, about: Path) -> TaskRun:
    """One task under one condition, as it was written.

    Raises:
        RunFolderError: a file cannot be read, or holds something else.
    """
    found: TaskRun = read_one(about, TaskRun)
    return replace(found, items=read_lines(rows, ItemResult))
