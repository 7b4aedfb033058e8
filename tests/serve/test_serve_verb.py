"""The verb: what it serves of a run's folder or a model, and what it refuses before it listens."""

from pathlib import Path

import pytest
import saved
import tiny_models
import torch
from test_conditional import monitor_of

from refusal import Direction, DirectionError, RunFolderError, load, run
from refusal.cli.entry import main
from refusal.cli.serve_verb import _loaded, _name
from refusal.config.serve import ServeOptions
from refusal.engines.serve.service import Service


def test_a_runs_folder_is_its_model_and_its_direction(tmp_path: Path) -> None:
    folder = saved.save_model(tmp_path / "tiny", template="chatml")
    config = saved.small_config(folder, saved.write_prompts(tmp_path))
    run(config, tmp_path / "found", until="select")
    model, along = _loaded(str(tmp_path / "found"), None, {"batch_size": 3})
    assert model.hf.dtype == torch.float32  # as the run's
    assert model.batch_size.value == 3
    assert along is not None
    kept = Direction.load(tmp_path / "found" / "direction.safetensors")
    assert torch.equal(along.vector, kept.vector)
    service = Service(model, along, _name(str(tmp_path / "found")), ServeOptions())
    assert service.models()[1]["id"] == "found:ablation"
    (tmp_path / "found" / "direction.safetensors").unlink()
    with pytest.raises(RunFolderError, match="refusal select"):
        _loaded(str(tmp_path / "found"), None, {})


def test_a_model_is_served_as_it_is_or_with_a_direction_that_fits(tmp_path: Path) -> None:
    folder = saved.save_model(tmp_path / "tiny", template="chatml")
    assert _loaded(str(folder), None, {})[1] is None
    for width, layer, good in (
        (tiny_models.WIDTH, 2, True),
        (8, 2, False),
        (tiny_models.WIDTH, 99, False),
    ):
        file = tmp_path / f"{width}-{layer}.safetensors"
        Direction(torch.eye(width)[0], 1.0, -1, layer).save(file)
        if good:
            assert _loaded(str(folder), file, {})[1] is not None
        else:
            with pytest.raises(DirectionError):
                _loaded(str(folder), file, {})


def test_names_hold_no_colon_and_no_space(tmp_path: Path) -> None:
    (tmp_path / "my run: 2").mkdir()
    assert _name(str(tmp_path / "my run: 2")) == "my-run-2"
    assert _name("owner/model") == "owner/model"
    assert _name("embedded") == "embedded"


def test_what_cannot_be_served_is_said_before_anything_is_loaded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("REFUSAL_API_KEY", raising=False)
    assert main(["serve", "no such model", "--host", "0.0.0.0"]) == 2
    assert "REFUSAL_API_KEY" in capsys.readouterr().err
    assert main(["serve", "no such model", "--port", "70000"]) == 2
    assert "port" in capsys.readouterr().err
    assert main(["serve", "no such model", "--name", "a:b"]) == 2


def test_a_monitor_of_another_model_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = saved.save_model(tmp_path / "tiny", template="chatml")
    monitor_of(load(str(folder))).save(tmp_path / "monitor")
    assert main(["serve", str(folder), "--monitor", str(tmp_path / "monitor")]) == 2
    assert "fitted on" in capsys.readouterr().err
