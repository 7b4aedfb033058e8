"""benchmarks/same_run.py: what is equal is called equal, and every kind of difference is found."""

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "same_run.py"


@pytest.fixture(scope="module")
def compare() -> Callable[[Path, Path, float], int]:
    spec = importlib.util.spec_from_file_location("same_run", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    found: Callable[[Path, Path, float], int] = module.compare
    return found


def write(folder: Path, value: Any = 0.5, row: Any = "yes", vector: Any = (1.0, np.nan)) -> Path:
    (folder / "completions").mkdir(parents=True)
    (folder / "metrics.json").write_text(json.dumps([{"value": value, "p_value": None, "n": 3}]))
    (folder / "completions" / "a.jsonl").write_text(json.dumps({"completion": row}) + "\n")
    save_file({"v": np.array(vector, dtype=np.float32)}, folder / "direction.safetensors")
    (folder / "manifest.json").write_text(json.dumps({"started": str(folder)}))
    return folder


def test_equal_runs_and_rounding(compare: Any, tmp_path: Path) -> None:
    first = write(tmp_path / "a")
    assert compare(first, write(tmp_path / "b"), 1e-6) == 0
    assert compare(first, write(tmp_path / "c", 0.5 + 5e-7), 1e-6) == 0
    assert compare(first, write(tmp_path / "d", vector=(1.0 + 2e-7, np.nan)), 1e-6) == 0


@pytest.mark.parametrize(
    "changes",
    [
        {"value": 0.5 + 2e-6},
        {"value": None},
        {"value": True},
        {"row": "no"},
        {"row": ["yes"]},
        {"vector": (1.0, 1.0)},
        {"vector": (1.0 + 1e-5, np.nan)},
        {"vector": (1.0,)},
    ],
)
def test_a_difference_is_found(compare: Any, tmp_path: Path, changes: dict[str, Any]) -> None:
    assert compare(write(tmp_path / "a"), write(tmp_path / "b", **changes), 1e-6) == 1


def test_a_file_of_one_alone_is_a_difference(compare: Any, tmp_path: Path) -> None:
    first, other = write(tmp_path / "a"), write(tmp_path / "b")
    (other / "scores.json").write_text("[]")
    assert compare(first, other, 1e-6) == 1
    assert compare(first, tmp_path / "nothing", 1e-6) == 2
