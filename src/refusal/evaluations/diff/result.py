"""``diff.json``: all that a comparison has found, read back without torch."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from refusal.core.errors import RunFolderError
from refusal.core.frames import NotebookRecord
from refusal.core.records import Metric
from refusal.core.results import SavedMetric, read_result, write_result

FORMAT = 1
FILE = "diff.json"


@dataclass(frozen=True)
class StreamDiff:
    """Of every position (the last is -1) and layer; ``None`` where the base's means are not apart.

    Attributes:
        left: share of the base's own difference along its direction.
        cosine: of the two models' differences in means.
        position, layer: where the base's direction was found.
        everywhere: the share over all places, each weighing as much as the base has there.
        prompts: validation prompts of each class.
    """

    left: tuple[tuple[float | None, ...], ...]
    cosine: tuple[tuple[float | None, ...], ...]
    position: int
    layer: int
    everywhere: float | None
    prompts: int

    @property
    def at_place(self) -> tuple[float | None, float | None]:
        """Share and cosine where the base's direction was found."""
        return self.left[self.position][self.layer], self.cosine[self.position][self.layer]


@dataclass(frozen=True)
class Compared:
    """One candidate.

    Attributes:
        label: as tables have it. name: as it was given. folder: of its results.
        summary: the numbers that it is read by. metrics: all of them, under the label.
        missing: what was not compared, and why. notes: what one must know to read it.
    """

    label: str
    name: str
    folder: str
    summary: tuple[SavedMetric, ...]
    metrics: tuple[SavedMetric, ...]
    stream: StreamDiff | None
    missing: dict[str, str]
    notes: tuple[str, ...]

    def number(self, name: str) -> Metric | None:
        """A number of the summary."""
        return next((m for m in self.summary if m.name == name), None)

    def find(self, name: str, set_name: str) -> Metric | None:
        """A metric by its keys."""
        for m in self.metrics:
            if (m.name, m.set) == (name, set_name):
                return m
        return None


@dataclass(frozen=True)
class Diffed(NotebookRecord):
    """A base and its candidates.

    Attributes:
        run: folder of the run whose direction is looked for.
        options: sizes and what was asked for. metrics: of the base.
    """

    folder: str
    base: str
    run: str
    prompts: str
    options: dict[str, Any]
    metrics: tuple[SavedMetric, ...]
    candidates: tuple[Compared, ...]

    def candidate(self, label: str) -> Compared:
        """A candidate by its label.

        Raises:
            KeyError: there is none.
        """
        for one in self.candidates:
            if label in (one.label, one.name):
                return one
        raise KeyError(label)


@dataclass(frozen=True, kw_only=True)
class _Saved(Diffed):
    folder: str = field(init=False, default="")
    format: int


def write_diff(folder: Path, found: Diffed) -> None:
    """Write ``diff.json``; what is infinite is null."""
    write_result(folder / FILE, found, FORMAT)


def read_diff(folder: Path) -> Diffed:
    """The comparison of a folder.

    Raises:
        RunFolderError: there is none, or its file is damaged or of another format.
    """
    path = folder / FILE
    if not path.is_file():
        raise RunFolderError(
            f"{folder} holds no {FILE}. Make it first: refusal diff BASE CANDIDATE --out {folder}."
        )
    return Diffed(**read_result(path, _Saved, FORMAT))
