"""Files that are damaged, of another model, adapters; and the verbs, what they write and print."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import weight_edits as edits
from edited import Tiny
from safetensors.torch import load_file, save_file
from weight_edits import Tensors, everywhere, projection

import refusal
from refusal import ModelLoadError, NonFiniteError, QuantisedModelError, UnsupportedModelError
from refusal.audits.forensics import pairs
from refusal.audits.forensics.alone import examine_weights
from refusal.audits.forensics.examine import compare_weights
from refusal.cli.entry import main
from refusal.core.direction import Direction
from refusal.core.errors import ConfigError
from refusal.weights.save import export_lora


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    return Tiny(tmp_path_factory.mktemp("tiny"), "llama")


@pytest.fixture
def whole(tiny: Tiny) -> str:
    """A candidate with the direction projected out."""
    return str(tiny.candidate(projection(tiny.u, everywhere(1.0))))


def test_the_base_as_the_candidate(tiny: Tiny, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="as the candidate and as its base"):
        compare_weights(str(tiny.folder), str(tiny.folder))
    shutil.copytree(tiny.folder, tmp_path / "copy")
    record = compare_weights(str(tmp_path / "copy"), str(tiny.folder)).record
    assert record.verdict == "unchanged"


def test_an_embedding_is_read_in_rows_and_comes_whole(
    tiny: Tiny, whole: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pairs, "CHUNK", 5 * 32)
    changes = pairs.Folders(
        pairs.open_candidate(tiny.folder), pairs.open_candidate(Path(whole)), tiny.writers
    )
    writer = next(one for one in tiny.writers if one.layer is None)
    base, delta = zip(*changes.load(writer).blocks(), strict=True)
    before, after = (
        load_file(Path(folder) / "model.safetensors")[writer.name].float()
        for folder in (tiny.folder, whole)
    )
    assert len(base) == -(-len(before) // 5)
    assert torch.equal(torch.cat(base, 1), before.T)
    assert torch.equal(torch.cat(delta, 1), (after - before).T)
    assert not changes.load(writer).unchanged


@pytest.mark.parametrize(
    ("family", "changes", "what"),
    [
        ("qwen2", {}, "architecture qwen2"),
        ("llama", {"hidden_size": 48}, "width 48"),
        ("llama", {"num_hidden_layers": 4}, "number of layers 4"),
        ("llama", {"intermediate_size": 64}, "down_proj.weight has the shape"),
    ],
)
def test_another_model(
    tiny: Tiny, tmp_path: Path, family: str, changes: dict[str, Any], what: str
) -> None:
    other = Tiny(tmp_path, family, **changes)
    with pytest.raises(UnsupportedModelError, match=what):
        compare_weights(str(other.folder), str(tiny.folder), writers=tiny.writers)


def test_half_of_a_download(tiny: Tiny, whole: str) -> None:
    file = Path(whole) / "model.safetensors"
    data = file.read_bytes()
    file.write_bytes(data[: len(data) // 2])
    for examine in (examine_weights, lambda name: compare_weights(name, str(tiny.folder))):
        with pytest.raises(ModelLoadError, match="cut off"):
            examine(whole)
    tensors = dict(tiny.tensors)
    del tensors["model.layers.3.mlp.down_proj.weight"]
    with pytest.raises(ModelLoadError, match=r"lacks 1 tensors .* such as model.layers.3.mlp"):
        compare_weights(str(tiny.write(tensors)), str(tiny.folder), writers=tiny.writers)
    file.unlink()
    with pytest.raises(ModelLoadError, match=r"holds no model.safetensors"):
        compare_weights(whole, str(tiny.folder), writers=tiny.writers)


def test_quantised_and_broken_weights(tiny: Tiny) -> None:
    packed = {n: t.to(torch.int8) if t.dim() > 1 else t for n, t in tiny.tensors.items()}
    with pytest.raises(QuantisedModelError, match="stored as I8"):
        compare_weights(str(tiny.write(packed)), str(tiny.folder), writers=tiny.writers)
    out = tiny.write(tiny.tensors)
    config = json.loads((out / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "gptq", "bits": 4}
    (out / "config.json").write_text(json.dumps(config))
    with pytest.raises(QuantisedModelError, match="quantised"):
        examine_weights(str(out))
    broken = {n: t.clone() for n, t in tiny.tensors.items()}
    broken["model.layers.2.mlp.down_proj.weight"][3, 4] = torch.nan
    folder = str(tiny.write(broken))
    for examine in (examine_weights, lambda name: compare_weights(name, str(tiny.folder))):
        with pytest.raises(NonFiniteError, match="layer 2 is NaN"):
            examine(folder)


def test_names_without_the_models_prefix(tmp_path: Path) -> None:
    """GPT-2's own checkpoint has ``wte.weight``, what transformers saves ``transformer.wte``."""
    tiny = Tiny(tmp_path, "gpt2")
    new = projection(tiny.u, everywhere(1.0))(tiny.tensors, tiny.places)
    renamed: Tensors = {name.removeprefix("transformer."): t for name, t in new.items()}
    found = compare_weights(str(tiny.write(renamed)), str(tiny.folder))
    assert len(found.record.edited) == len(found.record.layers)
    assert abs(float(found.directions[0].float() @ tiny.u)) > 0.999


def adapter(tiny: Tiny, out: Path) -> Path:
    """The project's own export of the projection as an adapter."""
    model = refusal.load(str(tiny.folder), dtype="float32", device="cpu")
    export_lora(model, Direction(tiny.u, 1.0, -1, 2), out)
    return out


def test_an_adapter_beside_its_base(tiny: Tiny, tmp_path: Path) -> None:
    folder = adapter(tiny, tmp_path / "adapter")
    found = compare_weights(str(folder), str(tiny.folder), writers=tiny.writers)
    assert found.record.verdict == "edited by projection"
    assert all(layer.holds for layer in found.record.layers)
    assert all(abs(layer.along[0].strength - 1) < 1e-4 for layer in found.record.layers)
    assert abs(float(found.directions[0].float() @ tiny.u)) > 0.999
    assert "LoRA adapter" in found.record.recipe[-1]
    with pytest.raises(ConfigError, match="without its base"):
        examine_weights(str(folder))
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**config, "lora_alpha": 0.5}))
    half = compare_weights(str(folder), str(tiny.folder), writers=tiny.writers).record
    assert all(abs(layer.along[0].strength - 0.5) < 1e-4 for layer in half.layers)


def test_a_random_adapter_is_no_projection(tiny: Tiny, tmp_path: Path) -> None:
    folder = adapter(tiny, tmp_path / "adapter")
    random = torch.Generator().manual_seed(0)
    file = folder / "adapter_model.safetensors"
    tensors = {n: torch.randn(t.shape, generator=random) for n, t in load_file(file).items()}
    save_file(tensors, file, {"format": "pt"})
    record = compare_weights(str(folder), str(tiny.folder), writers=tiny.writers).record
    assert record.verdict == "changed, not by projection"
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**config, "peft_type": "IA3"}))
    with pytest.raises(UnsupportedModelError, match="kind IA3"):
        compare_weights(str(folder), str(tiny.folder), writers=tiny.writers)


def test_the_verb_prints_and_writes(
    tiny: Tiny, whole: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "examined"
    assert main(["forensics", whole, "--base", str(tiny.folder), "--out", str(out)]) == 0
    said = capsys.readouterr()
    assert "edited by projection" in said.out
    assert "no safety score" in said.err
    record = json.loads((out / "forensics.json").read_text())
    assert record["verdict"] == "edited by projection"
    assert len(record["layers"]) == 6
    page = (out / "forensics.html").read_text()
    assert "edited by projection" in page
    assert "<strong>This is no safety score" in page
    assert "<svg" in page
    assert (out / "depth-kernel.svg").is_file()
    assert Direction.load(out / "direction.safetensors").vector.shape == (32,)
    assert main(["forensics", whole, "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["verdict"] == "edited by projection"
    assert "CANNOT be seen" in printed["cannot"][0]
    assert main(["forensics", str(tmp_path)]) == 2


def test_another_tools_edit_of_one_component(tiny: Tiny) -> None:
    edit = projection(tiny.u, lambda place: float(place.component == "MLP"), "row")
    record = compare_weights(
        str(tiny.candidate(edit)), str(tiny.folder), writers=tiny.writers
    ).record
    assert all(layer.kept == "row" for layer in record.edited)
    assert any("as Heretic does" in line for line in record.recipe)
    assert record.verdict == "edited by projection"
    assert edits.unit(32, 3).shape == (32,)
