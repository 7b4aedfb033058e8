"""Exported folders load elsewhere, whole or not at all, and say what was changed."""

import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import tiny_models
import torch
from fresh import reload
from saved import save_model
from transformers import AutoConfig

import refusal
from refusal import (
    ChatModel,
    Direction,
    ExportError,
    StorageError,
    export_direction,
    export_lora,
    export_model,
)

PROMPTS = ("Why?", "Name three rivers of Europe, please.")


def direction_for(model: ChatModel) -> Direction:
    vector = torch.randn(model.sites.d_model, generator=torch.Generator().manual_seed(3))
    return Direction(vector / vector.norm(), 2.0, -1, 1, qualified=False, model=model.name)


@pytest.mark.parametrize("family", ["gemma2", pytest.param("gpt_oss", marks=pytest.mark.slow)])
def test_a_fresh_process_completes_the_same(family: str, tmp_path: Path) -> None:
    base = save_model(tmp_path / "base", family=family)
    model = refusal.load(str(base), dtype="float32")
    direction = direction_for(model)
    adapter = export_lora(model, direction, tmp_path / "adapter", PROMPTS)
    exported = export_model(model, direction, tmp_path / "edited", PROMPTS)
    assert exported.report is not None
    assert adapter.report is not None
    assert exported.report.gap == adapter.report.gap
    expected = model.generate(PROMPTS, 16)
    assert reload(tmp_path / "edited", None, "float32", PROMPTS) == expected
    assert reload(base, tmp_path / "adapter", "float32", PROMPTS) == expected
    assert expected != refusal.load(str(base), dtype="float32").generate(PROMPTS, 16)


def test_a_model_folder_is_complete_and_says_what_was_changed(tmp_path: Path) -> None:
    base = save_model(tmp_path / "some-model", family="gemma2")
    (base / "processor_config.json").write_text('{"of": "a wrapper"}', encoding="utf-8")
    model = refusal.load(str(base), dtype="float32")
    export_model(model, direction_for(model), tmp_path / "edited", PROMPTS)
    written = {path.name for path in (tmp_path / "edited").iterdir()}
    assert written >= {
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
        "chat_template.jinja",
        "processor_config.json",
        "README.md",
    }
    config = AutoConfig.from_pretrained(tmp_path / "edited")
    assert not config.tie_word_embeddings
    assert (config.refusal["position"], config.refusal["layer"], config.refusal["qualified"]) == (
        -1,
        1,
        False,
    )
    assert config.refusal["base_model"] == "some-model"
    assert config.refusal["gap_to_ablation"]["prompts"] == 2
    card = (tmp_path / "edited" / "README.md").read_text(encoding="utf-8")
    for words in (
        "some-model",
        "position -1, layer 1",
        "NO: no candidate did",
        "behind a post-norm",
        "2 prompts",
    ):
        assert words in card
    for path in (tmp_path / "edited").glob("*.json"):
        assert str(tmp_path) not in path.read_text(encoding="utf-8")
    assert str(tmp_path) not in card
    assert not hasattr(model.hf.config, "refusal")


def test_reloaded_weights_are_those_in_memory(tmp_path: Path) -> None:
    for family in ("llama", "qwen3_moe", "jamba", "gemma3"):
        base = save_model(tmp_path / family, family=family)
        model = refusal.load(str(base), dtype="float32")
        export_model(model, direction_for(model), tmp_path / f"{family}-edited")
        again = refusal.load(str(tmp_path / f"{family}-edited"), dtype="float32")
        assert again.weight_hash() == model.weight_hash()


def test_what_is_there_is_left_alone(model: ChatModel, tmp_path: Path) -> None:
    direction, out = direction_for(model), tmp_path / "out"
    out.mkdir()
    (out / "precious").touch()
    before = model.weight_hash()
    for export in (export_model, export_lora):
        with pytest.raises(ExportError, match="exists and is not an empty folder"):
            export(model, direction, out)
        with pytest.raises(ExportError, match="is a file"):
            export(model, direction, out / "precious" / "below")
    assert model.weight_hash() == before  # nothing was edited for nothing
    assert [path.name for path in out.iterdir()] == ["precious"]
    file = tmp_path / "direction.safetensors"
    assert export_direction(direction, file).path == file
    with pytest.raises(ExportError, match="exists"):
        export_direction(direction, file)
    assert torch.equal(Direction.load(file).vector, direction.vector)
    assert (
        export_direction(direction, tmp_path / "folder").path
        == tmp_path / "folder" / "direction.safetensors"
    )


def test_room_is_checked_before_the_work(
    model: ChatModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=5_000_000))
    before = model.weight_hash()
    with pytest.raises(StorageError, match=r"needs 0\.07 GB, and 0\.01 GB are free"):
        export_model(model, direction_for(model), tmp_path / "out")
    assert model.weight_hash() == before
    assert list(tmp_path.iterdir()) == []


def test_a_failure_leaves_no_folder(
    model: ChatModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(folder: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(model.tokenizer, "save_pretrained", full)
    with pytest.raises(StorageError, match="No space left"):
        export_model(model, direction_for(model), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_an_empty_folder_is_taken(tmp_path: Path) -> None:
    model = tiny_models.chat_model("qwen2")
    (tmp_path / "out").mkdir()
    export_lora(model, direction_for(model), tmp_path / "out")
    assert (tmp_path / "out" / "adapter_config.json").is_file()
