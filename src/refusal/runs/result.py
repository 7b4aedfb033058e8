"""What a run has come to, as the caller of ``refusal.run`` gets it."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from refusal.config.run_config import RunConfig
from refusal.core.frames import NotebookRecord, records_dataframe
from refusal.core.records import Metric, RefusalTokens
from refusal.directions.records import Candidates, Selection
from refusal.runs.stage import Finding

if TYPE_CHECKING:
    import pandas


@dataclass(frozen=True)
class RunResult(NotebookRecord):
    """What a run has so far; stages that were not asked for are ``None`` or empty."""

    folder: Path
    config: RunConfig
    tokens: RefusalTokens | None
    candidates: Candidates
    selection: Selection | None = None
    metrics: tuple[Metric, ...] = ()
    found_with: Finding | None = None

    def to_dataframe(self) -> "pandas.DataFrame":
        """Return the metrics, one a row.

        Raises:
            UsageError: pandas is not installed.
        """
        return records_dataframe(self.metrics, Metric)
