"""What a run folder says of its filter.

    filter.json                    which filter, why, and how well the refusal metric fits a sample
    filter/sample.jsonl            the sample's completions, where whole answers were read
    filter/<split>.<class>.jsonl   completions of the prompts that were drawn, where they decide
    filter/calibration.json        the metric's threshold, and whose score chooses

The completions are of harmful prompts too, and shown nowhere.
"""

from pathlib import Path

from refusal.config.run_config import RunConfig
from refusal.core.filters import Calibration, FilterChoice, Judged
from refusal.core.strict_files import damaged, read_lines, read_one

SPLITS = ("train", "val")
UNFITTED = Calibration("metric", 0.0, "")


def filter_file(folder: Path) -> Path:
    """The decision."""
    return folder / "filter.json"


def judged_file(folder: Path, name: str) -> Path:
    """Completions of a pool (``train.harmful``), or of the ``sample``."""
    return folder / "filter" / f"{name}.jsonl"


def calibration_file(folder: Path) -> Path:
    """What those completions say of the metric."""
    return folder / "filter" / "calibration.json"


def read_filter(folder: Path) -> FilterChoice:
    """Which filter the run has.

    Raises:
        RunFolderError: the file cannot be read, or holds something else; so do the others.
    """
    found: FilterChoice = read_one(filter_file(folder), FilterChoice)
    return found


def read_calibration(folder: Path, choice: FilterChoice) -> Calibration:
    """The threshold and the rule; the published ones where completions do not decide."""
    if choice.kind != "completions":
        return UNFITTED
    found: Calibration = read_one(calibration_file(folder), Calibration)
    return found


def read_judged(path: Path) -> tuple[Judged, ...]:
    """The completions of a file."""
    rows = read_lines(path, Judged)
    if len({row.prompt_id for row in rows}) < len(rows):
        raise damaged(path, "two lines are of one prompt")
    return rows


def applied(config: RunConfig, choice: FilterChoice, calibration: Calibration) -> RunConfig:
    """The configuration as the direction is found with it: the filter that there is, and induce's
    threshold counted from the metric's.
    """
    induce = config.induce_threshold + calibration.threshold
    return config.model_copy(update={"filter": choice.kind, "induce_threshold": induce})
