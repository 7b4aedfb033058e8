"""The record of a monitor and its files: what is written is what is read, and nothing else is."""

import json
import math
import subprocess
import sys
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from monitors import drawn, reader

from refusal import Monitor, MonitorError
from refusal.core.monitor import CARD, TENSORS, Reader
from refusal.core.storage import write_tensors


def same(one: Any, other: Any) -> bool:
    if isinstance(one, (Monitor, Reader)):
        return all(same(getattr(one, f.name), getattr(other, f.name)) for f in fields(one))
    return np.array_equal(one, other) if isinstance(one, np.ndarray) else bool(one == other)


def test_saved_is_loaded(tmp_path: Path) -> None:
    monitor = drawn()
    monitor.save(tmp_path / "m")
    assert same(Monitor.load(tmp_path / "m"), monitor)
    before = [(tmp_path / "m" / name).read_bytes() for name in (CARD, TENSORS)]
    Monitor.load(str(tmp_path / "m")).save(tmp_path / "m")
    assert [(tmp_path / "m" / name).read_bytes() for name in (CARD, TENSORS)] == before
    assert not same(replace(monitor, bias=0.0), monitor)  # the comparison can fail


def test_reading_needs_no_torch(tmp_path: Path) -> None:
    drawn().save(tmp_path)
    code = (
        "import sys; from refusal.core.monitor import Monitor; "
        f"Monitor.load({str(tmp_path)!r}); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_score_is_the_logistic_of_both_projections() -> None:
    monitor = drawn()
    stream = torch.randn(5, 16, generator=torch.Generator().manual_seed(0))
    z = [one.z(stream) for one in monitor.readers]
    for row in range(5):
        expected = monitor.bias
        for weight, one in zip(monitor.weights, monitor.readers, strict=True):
            along = sum(float(a) * float(b) for a, b in zip(one.vector, stream[row], strict=True))
            expected += weight * (along - one.mean) / one.sd
        assert float(monitor.scores(*z)[row]) == pytest.approx(expected, abs=1e-5)
    assert monitor.scores(*z).dtype == torch.float32
    half = monitor.readers[0].z(stream.bfloat16())
    assert half.dtype == torch.float32  # projections are never in half precision


def test_it_fires_above_the_threshold_and_not_at_it() -> None:
    monitor = drawn(threshold=0.5)
    assert monitor.fires(torch.tensor([0.4, 0.5, 0.6])).tolist() == [False, False, True]
    assert monitor.fires(np.array([0.6, 0.5])).tolist() == [True, False]
    assert replace(monitor, threshold=-math.inf).fires(-1e30)
    assert not replace(monitor, threshold=math.inf).fires(1e30)


def test_places_are_counted_from_the_end() -> None:
    assert reader(0, 4, 0, -1).place(5) == -1
    assert reader(0, 4, 0, "instruction").place(5) == -6


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ({"weights": (math.nan, 1.0)}, "weights, bias and threshold"),
        ({"threshold": math.nan}, "weights, bias and threshold"),
        ({"eps": 0.0}, "eps is 0.0"),
        ({"calibration": np.array([1.0, 0.0])}, "not sorted"),
        ({"calibration": np.array([])}, "calibration scores"),
        ({"calibration": np.array([0.0, math.inf])}, "calibration scores"),
        ({"refusal": reader(0, 8, 1, -1)}, "8 and 16 dimensions"),
    ],
)
def test_what_does_not_fit_together_is_no_monitor(fault: dict[str, Any], said: str) -> None:
    with pytest.raises(MonitorError, match=said):
        replace(drawn(), **fault)


@pytest.mark.parametrize(
    "fault",
    [
        {"vector": np.ones(16, dtype=np.float32)},
        {"vector": np.full(16, math.nan, dtype=np.float32)},
        {"vector": np.ones(1)},  # float64
        {"layer": -1},
        {"position": 0},
        {"mean": math.inf},
        {"sd": 0.0},
    ],
)
def test_what_cannot_be_read_with_is_no_reader(fault: dict[str, Any]) -> None:
    with pytest.raises(MonitorError):
        replace(reader(0, 16, 1, -1), **fault)


def test_an_infinite_threshold_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(MonitorError, match="threshold inf"):
        replace(drawn(), threshold=math.inf).save(tmp_path)
    assert not list(tmp_path.iterdir())


def no_files(folder: Path) -> None:
    (folder / CARD).unlink()


def no_tensors(folder: Path) -> None:
    (folder / TENSORS).unlink()


def cut(folder: Path) -> None:
    (folder / CARD).write_text((folder / CARD).read_text()[:-40])


def noise(folder: Path) -> None:
    (folder / TENSORS).write_bytes(b"no safetensors")


def other_tensors(folder: Path) -> None:
    write_tensors(folder / TENSORS, {"direction": torch.ones(3)})


def a_matrix(folder: Path) -> None:
    names = ("refusal", "harmfulness", "calibration")
    write_tensors(folder / TENSORS, {name: torch.eye(2) for name in names})


def another_count(folder: Path) -> None:
    edit(folder, n_calibration=7)


def a_word_for_a_number(folder: Path) -> None:
    edit(folder, threshold="high")


def unknown_field(folder: Path) -> None:
    edit(folder, more=1)


def a_later_format(folder: Path) -> None:
    edit(folder, format=2)


def unsorted(folder: Path) -> None:
    monitor = drawn()
    vectors = {
        "refusal": monitor.refusal.vector,
        "harmfulness": monitor.harmfulness.vector,
        "calibration": monitor.calibration[::-1].copy(),
    }
    write_tensors(folder / TENSORS, {name: torch.from_numpy(x) for name, x in vectors.items()})


def no_number(folder: Path) -> None:
    (folder / CARD).write_text((folder / CARD).read_text().replace('"bias": -0.75', '"bias": NaN'))


def edit(folder: Path, **values: Any) -> None:
    card = json.loads((folder / CARD).read_text())
    (folder / CARD).write_text(json.dumps({**card, **values}))


DAMAGES = [
    *(no_files, no_tensors, cut, noise, other_tensors, a_matrix, another_count),
    *(a_word_for_a_number, unknown_field, a_later_format, no_number, unsorted),
]


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_a_damaged_folder_is_said_with_its_name(
    damage: Callable[[Path], None], tmp_path: Path
) -> None:
    drawn().save(tmp_path)
    damage(tmp_path)
    with pytest.raises(MonitorError, match=str(tmp_path)) as said:
        Monitor.load(tmp_path)
    assert "refusal monitor fit" in str(said.value)
