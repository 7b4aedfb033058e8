"""``audit.json``: all that an audit has found, read back without torch."""

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from refusal.core.errors import RunFolderError
from refusal.core.frames import NotebookRecord
from refusal.core.records import Metric, finite, to_json
from refusal.core.storage import write_json
from refusal.core.strict_files import damaged, read_one
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
    summary: tuple[Metric, ...]
    metrics: tuple[Metric, ...]
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


@dataclass(frozen=True)
class _SavedMetric(Metric):
    value: float | None  # type: ignore[assignment]
    low: float | None  # type: ignore[assignment]
    high: float | None  # type: ignore[assignment]


@dataclass(frozen=True)
class _Saved:
    format: int
    model: str
    prompts: str
    options: dict[str, Any]
    attacks: tuple[AttackRecord, ...]
    spent: dict[str, Spent]
    summary: tuple[_SavedMetric, ...]
    metrics: tuple[_SavedMetric, ...]
    verdict: str
    notes: tuple[str, ...]


def write_audit(folder: Path, found: Audited) -> None:
    """Write ``audit.json``; what is infinite is null."""
    about = {key: value for key, value in to_json(found).items() if key != "folder"}
    write_json(folder / FILE, finite({"format": FORMAT, **about}))


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
    saved: _Saved = read_one(path, _Saved)
    if saved.format != FORMAT:
        raise damaged(path, f"format {saved.format}, where this version has {FORMAT}")
    about = {key: value for key, value in vars(saved).items() if key != "format"}
    about["summary"] = tuple(map(_known, saved.summary))
    about["metrics"] = tuple(map(_known, saved.metrics))
    return Audited(str(folder), **about)


def _known(row: _SavedMetric) -> Metric:
    unknown = math.inf if row.name in BEYOND else math.nan
    given = {key: value for key, value in asdict(row).items() if value is not None}
    high = {"value": unknown, "low": unknown if row.name in BEYOND else -math.inf, "high": math.inf}
    return Metric(**{"p_value": None, **high, **given})
