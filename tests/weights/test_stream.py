"""Streaming against the in-memory way: load, orthogonalise, save. The tensors must be the same, bit
for bit.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, PreTrainedModel

from refusal import ChatModel, DirectionError, ModelLoadError, StorageError, UnsupportedModelError
from refusal.config.options import ModelOptions
from refusal.core import storage
from refusal.core.direction import Direction
from refusal.core.errors import ExportError, QuantisedModelError
from refusal.weights import checkpoint_stream as stream
from refusal.weights.checkpoint import INDEX, open_checkpoint
from refusal.weights.checkpoint_journal import JOURNAL
from refusal.weights.checkpoint_stream import stream_model
from refusal.weights.save import export_model

VECTOR = torch.nn.functional.normalize(
    torch.randn(tiny_models.WIDTH, generator=torch.Generator().manual_seed(3)), dim=0
)
DIRECTION = Direction(VECTOR, norm=1.5, position=-1, layer=2)
SHARDED = "40KB"  # several shards of a few tensors each


def checkpoint(
    folder: Path, family: str, dtype: torch.dtype = torch.float32, shard: str = SHARDED
) -> Path:
    """A tiny model's folder as transformers writes it, tokenizer included."""
    network: Any = tiny_models.network(family)
    network.to(dtype).save_pretrained(folder, max_shard_size=shard)
    tiny_models.tokenizer("chatml").save_pretrained(folder)
    return folder


def reload(folder: Path, family: str) -> PreTrainedModel:
    wrapped = tiny_models.family(family).wrapper is not None
    auto: Any = AutoModelForImageTextToText if wrapped else AutoModelForCausalLM
    model: PreTrainedModel = auto.from_pretrained(folder, dtype="auto")
    return model


def in_memory(source: Path, out: Path, family: str, **edit: Any) -> Path:
    """What the streamed folder is compared with."""
    model = ChatModel(reload(source, family), tiny_models.tokenizer("chatml"), name=str(source))
    export_model(model, edit.pop("ablation", DIRECTION), out, **edit)
    return out


def tensors(folder: Path) -> dict[str, Tensor]:
    return {
        name: tensor
        for file in sorted(folder.glob("*.safetensors"))
        for name, tensor in load_file(file).items()
    }


def assert_same(found: Path, expected: Path) -> None:
    one, other = tensors(found), tensors(expected)
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert tensor.dtype == other[name].dtype, name
        assert torch.equal(tensor, other[name]), name


@pytest.mark.parametrize("family", [*tiny_models.FAMILIES, *tiny_models.OTHERS])
def test_the_same_bits_as_in_memory(tmp_path: Path, family: str) -> None:
    source = checkpoint(tmp_path / "source", family)
    result = stream_model(source, DIRECTION, tmp_path / "streamed")
    assert_same(tmp_path / "streamed", in_memory(source, tmp_path / "expected", family))
    changed = {
        name
        for name, tensor in tensors(source).items()
        if not torch.equal(tensor, tensors(result.path)[name])
    }
    assert changed == set(result.edited)
    assert result.report is not None
    assert result.report.untied == tiny_models.family(family).tied
    ids = torch.arange(1, 13)[None]
    with torch.inference_mode():
        logits = [
            reload(tmp_path / name, family)(input_ids=ids).logits
            for name in ("streamed", "expected")
        ]
    assert torch.equal(*logits)
    assert not list(result.path.glob(".*"))


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2", "mixtral"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_keeps_its_dtype(tmp_path: Path, family: str, dtype: torch.dtype) -> None:
    source = checkpoint(tmp_path / "source", family, dtype)
    stream_model(source, DIRECTION, tmp_path / "streamed")
    assert_same(tmp_path / "streamed", in_memory(source, tmp_path / "expected", family))
    assert {tensor.dtype for tensor in tensors(tmp_path / "streamed").values()} == {dtype}


def test_preserved_norms(tmp_path: Path) -> None:
    source = checkpoint(tmp_path / "source", "qwen3_moe")
    stream_model(source, DIRECTION, tmp_path / "streamed", norm="column")
    assert_same(
        tmp_path / "streamed",
        in_memory(source, tmp_path / "expected", "qwen3_moe", norm="column"),
    )


def test_single_experts_are_edited_as_they_are_in_the_checkpoint(tmp_path: Path) -> None:
    source = checkpoint(tmp_path / "source", "mixtral")
    result = stream_model(source, DIRECTION, tmp_path / "streamed")
    experts = [name for name in result.edited if ".experts." in name]
    assert (
        len(experts) == tiny_models.LAYERS * 4
    )  # the model itself holds one fused parameter a layer
    for name in experts:
        left = VECTOR @ tensors(tmp_path / "streamed")[name]
        assert left.abs().max() < 1e-5, name


def test_the_folder_mirrors_the_source(tmp_path: Path) -> None:
    source = checkpoint(tmp_path / "source", "gemma")
    (source / "pytorch_model.bin").write_bytes(b"another copy of the weights")
    result = stream_model(
        source,
        DIRECTION,
        tmp_path / "streamed",
        name="owner/model",
        options=ModelOptions(revision="abc"),
    )
    assert result.written == tuple(path.name for path in sorted(source.glob("*.safetensors")))
    for name in ("tokenizer.json", "chat_template.jinja", "generation_config.json"):
        assert (result.path / name).read_bytes() == (source / name).read_bytes()
    assert not (result.path / "pytorch_model.bin").exists()
    index = json.loads((result.path / INDEX).read_text())
    assert index["weight_map"]["lm_head.weight"] == index["weight_map"]["model.embed_tokens.weight"]
    assert index["metadata"]["total_size"] == sum(t.nbytes for t in tensors(result.path).values())
    config = json.loads((result.path / "config.json").read_text())
    assert config["tie_word_embeddings"] is False
    assert config["refusal"]["base_model"] == "owner/model"
    assert config["refusal"]["edited_parameters"] == len(result.edited)
    assert "owner/model" in (result.path / "README.md").read_text()
    original = tensors(source)["model.embed_tokens.weight"]
    assert torch.equal(tensors(result.path)["lm_head.weight"], original)


def test_one_file_without_an_index(tmp_path: Path) -> None:
    source = checkpoint(tmp_path / "source", "llama", shard="1GB")
    stream_model(source, DIRECTION, tmp_path / "streamed")
    assert not (tmp_path / "streamed" / INDEX).exists()
    assert_same(tmp_path / "streamed", in_memory(source, tmp_path / "expected", "llama"))


def test_checkpoint_names_without_the_models_prefix(tmp_path: Path) -> None:
    """GPT-2's own checkpoint has ``wte.weight``, not ``transformer.wte.weight``, and masks that no
    model has now.
    """
    source = checkpoint(tmp_path / "source", "gpt2", shard="1GB")
    old = {name.removeprefix("transformer."): tensor for name, tensor in tensors(source).items()}
    old["h.0.attn.bias"] = torch.ones(1, 1, 4, 4)
    save_file(old, source / "model.safetensors", {"format": "pt"})
    result = stream_model(source, DIRECTION, tmp_path / "streamed")
    assert result.unclaimed == ("h.0.attn.bias",)
    expected = tensors(in_memory(source, tmp_path / "expected", "gpt2"))
    found = {
        f"transformer.{name}".replace("transformer.lm_head", "lm_head"): t
        for name, t in tensors(result.path).items()
    }
    assert torch.equal(
        found.pop("transformer.h.0.attn.bias"), old["h.0.attn.bias"]
    )  # copied as it was
    assert found.keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in found.items())


class Interrupted(Exception):
    """Stands for Ctrl-C or a kill."""


def interrupted_after(monkeypatch: pytest.MonkeyPatch, shards: int) -> list[Path]:
    """Let ``shards`` shards be written and break off in the middle of the next; returns what is
    begun.
    """
    begun: list[Path] = []
    write = storage.write_blocks

    def failing(path: Path, blocks: Iterator[Any]) -> None:
        begun.append(path)

        def some() -> Iterator[Any]:
            yield next(blocks)
            if len(begun) > shards:
                raise Interrupted
            yield from blocks

        write(path, some())

    monkeypatch.setattr(stream, "write_blocks", failing)
    return begun


@pytest.mark.parametrize("finished", [0, 1, 2])
def test_an_interruption_costs_only_the_unfinished_shard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, finished: int
) -> None:
    source, out = checkpoint(tmp_path / "source", "mixtral"), tmp_path / "out"
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        interrupted_after(patch, finished)
        stream_model(source, DIRECTION, out)
    assert len(list(out.glob("*.safetensors"))) == finished
    assert not (out / "config.json").exists()  # no model yet
    times = {path.name: path.stat().st_mtime_ns for path in out.glob("*.safetensors")}
    (out / ".model-00009-of-00009.safetensors.x7").write_bytes(b"left by a kill")
    result = stream_model(source, DIRECTION, out)
    assert len(result.kept) == finished
    assert set(result.kept) == set(times)
    assert all((out / name).stat().st_mtime_ns == before for name, before in times.items())
    assert not list(out.glob(".*"))
    stream_model(source, DIRECTION, tmp_path / "at once")
    for path in (tmp_path / "at once").iterdir():
        assert (out / path.name).read_bytes() == path.read_bytes(), path.name


def test_a_half_finished_folder_of_another_job_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, out = checkpoint(tmp_path / "source", "llama"), tmp_path / "out"
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        interrupted_after(patch, 1)
        stream_model(source, DIRECTION, out)
    other = Direction(-VECTOR.roll(1), norm=1.0, position=-1, layer=2)
    with pytest.raises(ExportError, match="unfinished export of another"):
        stream_model(source, other, out)
    with pytest.raises(ExportError, match="unfinished export of another"):
        stream_model(source, DIRECTION, out, norm="column")
    (out / JOURNAL).write_text("{")
    with pytest.raises(ExportError, match="cannot be read"):
        stream_model(source, DIRECTION, out)


def test_folders_that_are_in_use_are_refused(tmp_path: Path) -> None:
    source = checkpoint(tmp_path / "source", "llama")
    with pytest.raises(ExportError, match="own folder"):
        stream_model(source, DIRECTION, source)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("mine")
    with pytest.raises(ExportError, match="not empty"):
        stream_model(source, DIRECTION, tmp_path / "full")
    with pytest.raises(ExportError, match="is a file"):
        stream_model(source, DIRECTION, tmp_path / "full" / "thesis.txt")
    stream_model(source, DIRECTION, tmp_path / "out")
    with pytest.raises(ExportError, match="not empty"):  # a finished export too
        stream_model(source, DIRECTION, tmp_path / "out")


def test_too_little_room_is_found_before_writing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = checkpoint(tmp_path / "source", "llama")
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 1_000_000}))
    with pytest.raises(StorageError, match=r"needs 0\.07 GB, and 0\.00 GB are free"):
        stream_model(source, DIRECTION, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (
            {"quantization_config": {"quant_method": "gptq", "bits": 4}},
            QuantisedModelError,
            "quantised .gptq.",
        ),
        ({"model_type": "of-tomorrow"}, ModelLoadError, "Update transformers"),
    ],
)
def test_configs_that_cannot_be_used(
    tmp_path: Path, change: dict[str, Any], error: type, message: str
) -> None:
    source = checkpoint(tmp_path / "source", "llama")
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps({**config, **change}))
    with pytest.raises(error, match=message):
        stream_model(source, DIRECTION, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_quantised_tensors_without_a_word_in_the_config(tmp_path: Path) -> None:
    source = checkpoint(tmp_path / "source", "llama", shard="1GB")
    found = tensors(source)
    name = "model.layers.3.mlp.down_proj.weight"
    save_file({**found, name: found[name].to(torch.int8)}, source / "model.safetensors")
    with pytest.raises(QuantisedModelError, match=f"{name} is stored as I8"):
        stream_model(source, DIRECTION, tmp_path / "out")


@pytest.mark.parametrize(
    "name", ["model.layers.3.mlp.down_proj.weight", "model.layers.4.self_attn.o_proj.bias"]
)
def test_a_block_without_one_of_its_tensors_is_refused(tmp_path: Path, name: str) -> None:
    source = checkpoint(tmp_path / "source", "llama", shard="1GB")
    found = tensors(source)
    del found[name]
    save_file(found, source / "model.safetensors")
    with pytest.raises(UnsupportedModelError, match=f"{name}.*holds 0 elements"):
        stream_model(source, DIRECTION, tmp_path / "out")


def test_a_missing_expert_is_noticed(tmp_path: Path) -> None:
    source = checkpoint(tmp_path / "source", "mixtral", shard="1GB")
    found = tensors(source)
    del found["model.layers.2.block_sparse_moe.experts.3.w2.weight"]
    save_file(found, source / "model.safetensors")
    with pytest.raises(
        UnsupportedModelError, match=r"layers\.2\.mlp\.experts\.down_proj.*in 3 tensors"
    ):
        stream_model(source, DIRECTION, tmp_path / "out")


def test_a_tensor_that_belongs_nowhere_is_refused(tmp_path: Path) -> None:
    source = checkpoint(tmp_path / "source", "llama", shard="1GB")
    save_file(
        {**tensors(source), "model.layers.1.second_mlp.weight": torch.ones(32, 32)},
        source / "model.safetensors",
    )
    with pytest.raises(
        UnsupportedModelError,
        match=r"belong to no parameter .* model\.layers\.1\.second_mlp\.weight",
    ):
        stream_model(source, DIRECTION, tmp_path / "out")


def test_directions_that_do_not_fit(tmp_path: Path) -> None:
    source = checkpoint(tmp_path / "source", "llama")
    with pytest.raises(DirectionError, match="16 dimensions"):
        stream_model(source, Direction(torch.eye(16)[0], 1.0, -1, 2), tmp_path / "out")
    with pytest.raises(DirectionError, match="found on another"):
        stream_model(
            source, Direction(VECTOR, 1.0, -1, 2, model="another"), tmp_path / "out", name="this"
        )
    with pytest.raises(DirectionError, match="length 2"):
        stream_model(source, Direction(2 * VECTOR, 1.0, -1, 2), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("damage", ["cut", "header", "lost shard", "no safetensors", "no config"])
def test_damaged_checkpoints(tmp_path: Path, damage: str) -> None:
    source = checkpoint(tmp_path / "source", "llama")
    shard = sorted(source.glob("*.safetensors"))[1]
    match damage:
        case "cut":
            shard.write_bytes(shard.read_bytes()[:-100])
        case "header":
            shard.write_bytes(b"\xff" * 64)
        case "lost shard":
            shard.unlink()
        case "no safetensors":
            (source / INDEX).unlink()
        case "no config":
            (source / "config.json").unlink()
    with pytest.raises(ModelLoadError):
        stream_model(source, DIRECTION, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_shards_are_read_in_the_order_of_their_data(tmp_path: Path) -> None:
    source = checkpoint(tmp_path / "source", "llama")
    found = open_checkpoint(source)
    expected = tensors(source)
    assert set(found.entries) == set(expected)
    for shard in found.shards:
        starts = [entry.start for entry in shard.entries]
        assert starts == sorted(starts)
    assert all(torch.equal(found.read(name), tensor) for name, tensor in expected.items())
