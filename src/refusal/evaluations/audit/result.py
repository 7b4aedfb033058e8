"""``audit.json``: all that an audit has found, read back without torch."""

import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from refusal.core.errors import RunFolderError
from refusal.core.frames import NotebookRecord
from refusal.core.records import Metric
from refusal.core.results import SavedMetric, read_result, write_result
from refusal.evaluations.audit.records import AttackRecord

FORMAT = 1
FILE = "audit.json"
BEYOND = ("a50", "k10")  # numbers that are infinite where nothing of the grid reaches them


@dataclass(frozen=True)
class Spent:
    """What finding an attack took: seconds, tokens through the model, money where there is a
    price.
    """

    seconds: float
    forward_tokens: int
    cost: float | None = None


@dataclass(frozen=True)
class Audited(NotebookRecord):
    """An audit.

    Attributes:
        options: those of the audit, and the sizes. spent: by attack.
        summary: the numbers that it is read by. metrics: every rate by arm.
        verdict: what it comes to in a sentence; ``notes`` qualify it.
    """

    folder: str
    model: str
    prompts: str
    options: dict[str, Any]
    attacks: tuple[AttackRecord, ...]
    spent: dict[str, Spent]
    summary: tuple[SavedMetric, ...]
    metrics: tuple[SavedMetric, ...]
    verdict: str
    notes: tuple[str, ...]

    def find(self, name: str, set_name: str, condition: str) -> Metric | None:
        """A metric by its keys."""
        for one in self.metrics:
            if (one.name, one.set, one.condition) == (name, set_name, condition):
                return one
        return None

    def number(self, name: str, condition: str | None = None) -> Metric | None:
        """A number of the summary."""
        for one in self.summary:
            if one.name == name and condition in (None, one.condition):
                return one
        return None


@dataclass(frozen=True, kw_only=True)
class _Saved(Audited):
    folder: str = field(init=False, default="")
    format: int


def write_audit(folder: Path, found: Audited) -> None:
    """Write ``audit.json``; what is infinite is null."""
    write_result(folder / FILE, found, FORMAT)


def is_audit_folder(path: Path) -> bool:
    """Whether an audit has ended there."""
    try:
        return (path / FILE).is_file()
    except (OSError, ValueError):  # a name that is too long, say
        return False


def read_audit(folder: Path) -> Audited:
    """The audit of a folder.

    Raises:
        RunFolderError: there is none, or its file is damaged or of another format.
    """
    path = folder / FILE
    if not is_audit_folder(folder):
        raise RunFolderError(
            f"{folder} holds no {FILE}. Make it first: refusal audit MODEL, which leaves it in "
            "RUN/audit."
        )
    found = Audited(**read_result(path, _Saved, FORMAT))
    summary, metrics = (tuple(map(_beyond, rows)) for rows in (found.summary, found.metrics))
    return replace(found, summary=summary, metrics=metrics)


def _beyond(m: Metric) -> Metric:
    if m.name not in BEYOND:
        return m
    value, low = (x if math.isfinite(x) else math.inf for x in (m.value, m.low))
    return replace(m, value=value, low=low)
