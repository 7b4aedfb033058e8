"""`refusal export`: from a run folder to a model, an adapter or a direction, and every wrong way to
ask.
"""

import dataclasses
import json
import shutil
from pathlib import Path

import gguf
import pytest
import torch
from safetensors.torch import load
from saved import save_model, small_config, write_prompts

import refusal
from refusal.cli.entry import main


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run up to its direction."""
    root = tmp_path_factory.mktemp("export")
    model = save_model(root / "model", template="chatml")
    refusal.run(small_config(model, write_prompts(root)), root / "run", until="select")
    return root / "run"


def test_a_model_can_be_run_again(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert (
        main(
            ["export", str(finished), "--as", "model", "--out", str(tmp_path / "edited"), "--json"]
        )
        == 0
    )
    value = json.loads(capsys.readouterr().out)
    assert value["kind"] == "model"
    assert value["report"]["gap"]["prompts"] == 16
    assert value["report"]["gap"]["logits"] < 1e-3
    model = refusal.load(str(tmp_path / "edited"), dtype="float32")
    vector = refusal.Direction.load(finished / "direction.safetensors").vector
    assert (
        model.hf.get_parameter("model.embed_tokens.weight").detach() @ vector
    ).abs().max() < 1e-4


def test_an_adapter_goes_into_the_run_folder_by_default(
    finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", str(finished), "--as", "lora", "--n-prompts", "2"]) == 0
    captured = capsys.readouterr()
    assert "same next token 100%" in captured.err
    assert (finished / "export" / "lora" / "adapter_model.safetensors").is_file()
    assert main(["export", str(finished), "--as", "lora"]) == 2
    assert "exists" in capsys.readouterr().err


def test_a_direction_alone(finished: Path, tmp_path: Path) -> None:
    assert (
        main(
            ["export", str(finished), "--as", "direction", "--out", str(tmp_path / "d.safetensors")]
        )
        == 0
    )
    assert (tmp_path / "d.safetensors").read_bytes() == (
        finished / "direction.safetensors"
    ).read_bytes()


def test_what_a_split_run_found_is_exported_by_one_process(finished: Path, tmp_path: Path) -> None:
    """Its run.toml says how the run was split over a launcher's processes; here there is no
    launcher.
    """
    run = tmp_path / "run"
    shutil.copytree(finished, run, ignore=shutil.ignore_patterns("export"))
    options = (run / "run.toml").read_text(encoding="utf-8")
    (run / "run.toml").write_text(
        options.replace("[model]\n", '[model]\ntp_plan = "auto"\n'), encoding="utf-8"
    )
    assert main(["export", str(run), "--as", "lora", "--n-prompts", "2"]) == 0


def test_wrong_ways_to_ask(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def says(words: str, *arguments: str) -> None:
        assert main(["export", *arguments]) == 2
        assert words in capsys.readouterr().err

    says("holds no run.toml", str(tmp_path), "--as", "model")
    (tmp_path / "run.toml").write_bytes((finished / "run.toml").read_bytes())
    says("has no direction yet", str(tmp_path), "--as", "model")
    says(
        "no adapter holds",
        str(finished),
        "--as",
        "lora",
        "--norm",
        "row",
        "--out",
        str(tmp_path / "x"),
    )
    says("--as", str(finished))
    says("onnx", str(finished), "--as", "onnx")


def test_a_streamed_model_is_the_same_model(
    finished: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert main(["export", str(finished), "--as", "model", "--out", str(tmp_path / "loaded")]) == 0
    monkeypatch.setattr("refusal.pipeline.export.load_for", None)  # the model is not loaded
    arguments = [
        "export",
        str(finished),
        "--as",
        "model",
        "--stream",
        "--out",
        str(tmp_path / "streamed"),
        "--json",
    ]
    capsys.readouterr()
    assert main(arguments) == 0
    value = json.loads(capsys.readouterr().out)
    assert value["report"]["gap"] is None
    one, other = (
        (tmp_path / name / "model.safetensors").read_bytes() for name in ("streamed", "loaded")
    )
    assert load(one).keys() == load(other).keys()
    assert all(torch.equal(tensor, load(other)[name]) for name, tensor in load(one).items())
    assert main(arguments) == 2  # the folder is full now
    assert "not empty" in capsys.readouterr().err


def test_a_control_vector_for_llama_cpp(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    direction = refusal.Direction.load(finished / "direction.safetensors")
    direction = dataclasses.replace(
        direction, layer=2
    )  # layers 0 and 1 have no place in the format
    run = tmp_path / "run"
    run.mkdir()
    (run / "run.toml").write_bytes((finished / "run.toml").read_bytes())
    direction.save(run / "direction.safetensors")
    arguments = ["export", str(run), "--as", "gguf-control-vector"]
    assert main(arguments) == 0
    path = run / "export" / "gguf-control-vector" / "control-vector.gguf"
    reader = gguf.GGUFReader(path)
    assert [tensor.name for tensor in reader.tensors] == ["direction.1"]
    assert reader.fields["controlvector.model_hint"].contents() == "llama"
    assert reader.fields["controlvector.layer_count"].contents() == 4
    capsys.readouterr()
    assert main(arguments) == 2
    assert "exists" in capsys.readouterr().err
    dataclasses.replace(direction, layer=0).save(run / "direction.safetensors")
    assert main([*arguments, "--out", str(tmp_path / "v.gguf")]) == 2
    assert "llama.cpp adds only to the outputs of block 1 and later" in capsys.readouterr().err
    assert main([*arguments, "--stream"]) == 2
    assert "Leave --stream out" in capsys.readouterr().err
