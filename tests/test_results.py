"""A command's result as JSON: what is not finite is null there, and nothing else may be odd."""

import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from refusal.core.errors import RunFolderError
from refusal.core.records import Metric, finite
from refusal.core.storage import write_json
from refusal.evaluations.audit.result import Audited, read_audit, write_audit
from refusal.evaluations.diff.result import Compared, Diffed, StreamDiff, read_diff, write_diff
from refusal.runs.files import read_metrics

OPEN = Metric("kl", "diff", "candidate", 0.25, -math.inf, math.inf, 3)
RATE = Metric("refusal_rate", "harmful", "baseline", 0.5, 0.25, 0.75, 8, p_value=0.125)
NOTHING = Metric("kl", "texts", "candidate", math.nan, -math.inf, math.inf, 0)


def compared(folder: Path) -> Diffed:
    stream = StreamDiff(((None, 0.5),), ((1.0, None),), -1, 1, None, 4)
    one = Compared("a", "./a", "there", (OPEN,), (RATE, OPEN), stream, {"KL": "why"}, ("note",))
    about = {"n_test": 4, "texts": ["x"]}
    return Diffed(str(folder), "base", "run", "prompts", about, (RATE,), (one,))


def test_a_comparison_is_read_as_it_was_written(tmp_path: Path) -> None:
    found = compared(tmp_path)
    write_diff(tmp_path, found)
    written = json.loads((tmp_path / "diff.json").read_text())
    assert written["candidates"][0]["summary"] == [finite(asdict(OPEN))]
    assert read_diff(tmp_path) == found


def test_an_audits_numbers_beyond_the_grid_are_infinite(tmp_path: Path) -> None:
    beyond = Metric("a50", "audit", "ablation", math.inf, math.inf, math.inf, 8)
    reached = Metric("k10", "audit", "ablation", 2.0, 1.0, math.inf, 8)
    found = Audited(str(tmp_path), "m", "p", {}, (), {}, (beyond, reached), (OPEN,), "said", ())
    write_audit(tmp_path, found)
    assert read_audit(tmp_path) == found


def test_a_runs_metrics_have_the_bounds_that_they_had(tmp_path: Path) -> None:
    write_json(tmp_path / "metrics.json", finite([asdict(RATE), asdict(NOTHING)]))
    rate, nothing = read_metrics(tmp_path / "metrics.json")
    assert rate == RATE
    assert math.isnan(nothing.value)
    assert (nothing.low, nothing.high, nothing.n) == (-math.inf, math.inf, 0)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"format": 2}, "format 2, where this version has 1"),
        ({"folder": "elsewhere"}, "folder"),
        ({"base": None}, "base: "),
        ({"metrics": [{**finite(asdict(OPEN)), "n": None}]}, "row 1, n: "),
        ({"metrics": [{**finite(asdict(OPEN)), "low": "0"}]}, "row 1, low: "),
        ({"metrics": [{"name": "kl", "value": None}]}, "row 1, set: "),
        ({"metrics": [None]}, "row 1: "),
    ],
)
def test_what_is_something_else_is_named(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    write_diff(tmp_path, compared(tmp_path))
    path = tmp_path / "diff.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(RunFolderError, match=said) as caught:
        read_diff(tmp_path)
    assert "diff.json: " in str(caught.value)
