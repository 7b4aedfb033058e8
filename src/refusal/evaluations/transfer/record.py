"""The transfer table as a record: contexts, and a cell for every pair of them. No tensor in it."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from refusal.core.records import Metric, finite
from refusal.core.storage import write_json
from refusal.core.strict_files import read_one
from refusal.interventions.conditions import BASELINE

FILE = "transfer.json"
RANDOM = "random"  # a row: another direction of equal size


@dataclass(frozen=True)
class ContextRow:
    """A context, and what was found in it.

    Attributes:
        name: of its row and column. system: the system prompt; ``turns`` before every prompt.
        language: of the prompts, where they are not the run's own. prompts: where those are from.
        position, layer, qualified: of the direction found here; ``None`` where there is none, and
            ``why``.
        tokens: refusal tokens that the metric of the column is of, as texts; ``own_tokens``: they
            were found in this context, not in the run's own.
        detector: how often the detector is right on such answers, or that nobody knows.
    """

    name: str
    system: str | None
    turns: int
    language: str | None
    prompts: str
    position: int | None
    layer: int | None
    qualified: bool | None
    why: str | None
    tokens: tuple[str, ...]
    own_tokens: bool
    detector: str


@dataclass(frozen=True)
class TransferCell:
    """What a direction does in a context.

    Attributes:
        row: where it was found; ``baseline``: nothing is done, ``random``: a random direction.
        column: where it is used. bypass: mean refusal metric under its ablation.
        refusal_rate, low, high: judged, with Wilson's interval, over ``n`` completions.
        cosine: of the directions of the two contexts.
    """

    row: str
    column: str
    bypass: float | None
    refusal_rate: float
    low: float
    high: float
    n: int
    cosine: float | None


@dataclass(frozen=True)
class TransferTable:
    """All contexts, in order, and the cells that there are."""

    contexts: tuple[ContextRow, ...]
    cells: tuple[TransferCell, ...]

    def cell(self, row: str, column: str) -> TransferCell | None:
        """The cell of a pair, if it is there."""
        return next((c for c in self.cells if (c.row, c.column) == (row, column)), None)

    @property
    def rows(self) -> tuple[str, ...]:
        """Names of the rows: nothing done, every context, a random direction."""
        return (BASELINE, *(context.name for context in self.contexts), RANDOM)

    def metrics(self) -> list[Metric]:
        """Every number: the column as ``set``, the row as ``condition``."""
        found = []
        for c in self.cells:
            about, x = (c.column, c.row), c.refusal_rate
            found.append(Metric("transfer_refusal_rate", *about, x, c.low, c.high, c.n))
            for name, value, n in (("bypass", c.bypass, c.n), ("cosine", c.cosine, 1)):
                if value is not None:
                    found.append(Metric(f"transfer_{name}", *about, value, value, value, n))
        return found

    def save(self, folder: Path) -> None:
        """Write ``transfer.json``."""
        value: Any = {
            "contexts": [asdict(one) for one in self.contexts],
            "cells": [asdict(one) for one in self.cells],
        }
        write_json(folder / FILE, finite(value))


def read_transfer(folder: Path) -> TransferTable:
    """The transfer table of a run folder.

    Raises:
        RunFolderError: it cannot be read, or holds something else.
    """
    table: TransferTable = read_one(folder / FILE, TransferTable)
    return table
