"""What an export writes is read again: whatever is not what was meant is an error, and nothing is
left behind.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gguf
import planted
import pytest
import tiny_models
import torch
from safetensors.torch import load_file, save_file
from saved import save_model
from test_forms import drawn
from test_stream import DIRECTION
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from refusal import (
    ChatModel,
    Direction,
    ExportError,
    export_direction,
    export_lora,
    export_model,
    orthogonalise,
)
from refusal.config.exports import NormRule
from refusal.core import storage
from refusal.core.storage import write_tensors
from refusal.weights import checkpoint_stream as stream
from refusal.weights import gguf_control_vector as control_vector
from refusal.weights import save, verify
from refusal.weights.checkpoint_stream import stream_model
from refusal.weights.gguf_control_vector import write_control_vector
from refusal.weights.projection import Removal, left_over, project_weight, size_before

Fault = Callable[[dict[str, Tensor]], dict[str, Tensor]]
NAME = "model.layers.2.mlp.down_proj.weight"
EMBEDDING = "model.embed_tokens.weight"


def missing(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in tensors.items() if name != NAME}


def unexpected(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {**tensors, "model.layers.2.mlp.up_down_proj.weight": torch.ones(2, 2)}


def misnamed(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.replace("layers.2.", "layers.7."): tensor for name, tensor in tensors.items()}


def misshapen(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {**tensors, NAME: tensors[NAME].T.contiguous()}


def one_value(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    changed = tensors[EMBEDDING].clone()
    changed[3, 5] += 1e-3
    return {**tensors, EMBEDDING: changed}


def another_dtype(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {**tensors, NAME: tensors[NAME].to(torch.bfloat16)}


FAULTS = [missing, unexpected, misnamed, misshapen, one_value, another_dtype]


@pytest.mark.parametrize("fault", FAULTS)
def test_a_model_folder_with_a_fault(
    fault: Fault, model: ChatModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = model.hf.save_pretrained

    def faulty(folder: Path) -> None:
        write(folder)
        save_file(
            fault(load_file(folder / "model.safetensors")),
            folder / "model.safetensors",
            {"format": "pt"},
        )

    monkeypatch.setattr(model.hf, "save_pretrained", faulty)
    direction = torch.nn.functional.normalize(torch.randn(model.sites.d_model), dim=0)
    with pytest.raises(
        ExportError, match=r"What was written is not what was meant: .*It was deleted\."
    ):
        export_model(model, type(DIRECTION)(direction, 1.0, -1, 1), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_an_edit_that_was_not_made_is_noticed(
    model: ChatModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """File and memory agree, but a weight has kept the direction."""
    report = orthogonalise

    def lazy(model: ChatModel, *arguments: Any, **options: Any) -> Any:
        before = model.hf.get_parameter(NAME).detach().clone()
        done = report(model, *arguments, **options)
        with torch.no_grad():
            model.hf.get_parameter(NAME).copy_(before)
        return done

    monkeypatch.setattr(save, "orthogonalise", lazy)
    with pytest.raises(ExportError, match=rf"{NAME} has kept .* of the direction"):
        export_model(model, DIRECTION, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("where", ["edited", "copied", "cut", "config"])
def test_a_streamed_folder_with_a_fault(
    where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = save_model(tmp_path / "base")
    write = storage.write_blocks
    names = {
        "edited": NAME,
        "copied": "model.layers.2.mlp.up_proj.weight",
        "cut": NAME,
        "config": NAME,
    }

    def faulty(path: Path, blocks: Iterator[Any]) -> None:
        write(path, blocks)
        tensors = load_file(path)
        if where == "cut":
            del tensors[NAME]
        elif where != "config":
            tensors[names[where]][1, 1] += 1e-3
        save_file(dict(sorted(tensors.items())), path, {"format": "pt"})

    monkeypatch.setattr(stream, "write_blocks", faulty)
    if where == "config":  # files in order, but the config asks for more blocks than there are
        monkeypatch.setattr(stream, "write_blocks", write)
        write_json = storage.write_json

        def more(path: Path, value: dict[str, Any]) -> None:
            write_json(
                path, {**value, "num_hidden_layers": 6} if path.name == "config.json" else value
            )

        monkeypatch.setattr(stream, "write_json", more)
    with pytest.raises(ExportError, match=r"What was written is not what was meant"):
        stream_model(base, DIRECTION, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["base"]


@pytest.mark.parametrize("fault", [missing, unexpected, one_value])
def test_an_adapter_file_with_a_fault(
    fault: Fault, model: ChatModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = f"base_model.model.{NAME.removesuffix('.weight')}.lora_A.weight"

    def faulty(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
        renamed = {**tensors, NAME: tensors[key], EMBEDDING: torch.ones(9, 9)}
        back = fault(renamed)
        kept = {name: tensor for name, tensor in back.items() if name not in (NAME, EMBEDDING, key)}
        if NAME in back:
            kept[key] = back[NAME] * (1 if fault is unexpected else 1.001)
        write_tensors(path, kept, metadata)

    monkeypatch.setattr(save, "write_tensors", faulty)
    with pytest.raises(ExportError, match="What was written is not what was meant"):
        export_lora(model, DIRECTION, tmp_path / "adapter")
    assert list(tmp_path.iterdir()) == []


def test_an_adapter_that_peft_loads_in_part(tmp_path: Path) -> None:
    """PEFT knows Laguna's experts under names that they do not have, and warns at most."""
    small = {
        "vocab_size": tiny_models.VOCABULARY,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_attention_heads_per_layer": [4, 4, 4],
        "num_key_value_heads": 2,
        "head_dim": 8,
        "moe_intermediate_size": 16,
        "shared_expert_intermediate_size": 16,
        "num_experts_per_tok": 2,
        "num_experts": 4,
        "layer_types": ["full_attention"] * 3,
        "mlp_layer_types": ["dense", "sparse", "sparse"],
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 4,
    }
    torch.manual_seed(0)
    hf = AutoModelForCausalLM.from_config(
        AutoConfig.for_model("laguna", **small), dtype=torch.float32
    )
    model = ChatModel(hf, tiny_models.tokenizer(), name="laguna")
    before, modules = model.weight_hash(), [name for name, _ in hf.named_modules()]
    with pytest.raises(
        ExportError, match=r"PEFT loads \d+ of the adapter's \d+ tensors otherwise .*--as model"
    ):
        export_lora(model, DIRECTION, tmp_path / "adapter")
    assert list(tmp_path.iterdir()) == []
    assert model.weight_hash() == before
    assert [name for name, _ in hf.named_modules()] == modules
    export_model(model, DIRECTION, tmp_path / "edited")  # this way it goes


def test_a_direction_and_a_control_vector_with_a_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def other(path: str | Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
        write_tensors(Path(path), {"direction": tensors["direction"].roll(1)}, metadata)

    with (
        monkeypatch.context() as patch,
        pytest.raises(ExportError, match="direction is not what was written"),
    ):
        patch.setattr("refusal.core.direction.write_tensors", other)
        export_direction(DIRECTION, tmp_path / "direction.safetensors")
    add = gguf.GGUFWriter.add_tensor
    with (
        monkeypatch.context() as patch,
        pytest.raises(ExportError, match=r"direction\.1 is not what was written"),
    ):
        patch.setattr(
            gguf.GGUFWriter, "add_tensor", lambda self, name, data: add(self, name, data * 2)
        )
        write_control_vector(DIRECTION, tmp_path / "vector.gguf", 5)
    assert list(tmp_path.iterdir()) == []
    write_control_vector(DIRECTION, tmp_path / "vector.gguf", 5)
    assert DIRECTION.layer == control_vector.FIRST_LAYER


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    ("shape", "axis"), [((64, 500), 0), ((500, 64), 1), ((3, 64, 40), 1), ((64,), 0)]
)
def test_rounding_is_told_from_a_direction_that_is_still_there(
    dtype: torch.dtype, shape: tuple[int, ...], axis: int
) -> None:
    for seed in range(20):
        random = torch.Generator().manual_seed(seed)
        unit = torch.nn.functional.normalize(torch.randn(64, generator=random), dim=0)
        removal, weight = Removal.of(unit), torch.randn(shape, generator=random).to(dtype)
        size = size_before(weight, axis, removal)
        left, limit = left_over(project_weight(weight, axis, removal), axis, removal, size)
        assert left <= limit
        left, limit = left_over(weight, axis, removal, size)
        assert left == pytest.approx(
            float((weight.float().movedim(axis, -1) @ unit).norm()), rel=1e-3, abs=1e-4
        )
        assert len(shape) == 1 or left > 10 * limit
        tenth = (weight.float() + 9 * project_weight(weight, axis, removal).float()) / 10
        assert len(shape) == 1 or left_over(tenth.to(dtype), axis, removal, size)[0] > limit


def test_a_weight_that_has_kept_the_direction_is_named() -> None:
    with pytest.raises(ExportError, match=r"x has kept .* of the direction"):
        verify.check_lost("x", torch.eye(4), 0, Removal.of(torch.tensor([1.0, 0, 0, 0])), 2.0)


@pytest.mark.parametrize("norm", [None, "column"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_weight_that_is_almost_all_direction_is_exported(
    dtype: torch.dtype, norm: NormRule | None, tmp_path: Path
) -> None:
    """All that the planted model's first attention writes is the direction and a hundredth: what
    rounding leaves of it is large beside what is left of the weight.
    """
    found = planted.planted(1)
    found.model.hf.to(dtype)  # type: ignore[arg-type]
    direction = Direction(found.rows[0], 1.0, -1, 1)
    export_model(found.model, direction, tmp_path / "out", norm=norm)
    (layer,) = [m for n, m in found.model.hf.named_parameters() if "0.self_attn.o_proj" in n]
    assert float(layer.detach().norm()) < 1 < planted.GAIN


@pytest.mark.parametrize("norm", [None, "column"])
@pytest.mark.parametrize("most", [0.0, 0.02, 1.0, 100.0])
def test_what_is_not_rounding_is_named_however_much_lies_along_the_direction(
    most: float, norm: NormRule | None
) -> None:
    """A strength that is off by a thousandth or a direction by a hundredth (of what lies along the
    direction that leaves a ten-thousandth), in float32.
    """
    width, along = 1024, drawn(2, 300)
    unit = torch.nn.functional.normalize(drawn(1, width), dim=0)
    weight = drawn(3, width, 300) / width**0.5 + most * unit[:, None] * along
    removal = Removal.of(unit)
    size = size_before(weight, 0, removal, norm)
    verify.check_lost("x", project_weight(weight, 0, removal, norm), 0, removal, size, norm)
    other = torch.nn.functional.normalize(unit + 1e-2 * drawn(4, width) / width**0.5, dim=0)
    for wrong in (Removal.of(unit, 0.999), Removal.of(unit, 1.001), Removal.of(other)):
        edited = project_weight(weight, 0, wrong, norm)
        with pytest.raises(ExportError, match=r"x has kept .* of the direction"):
            verify.check_lost("x", edited, 0, removal, size, norm)
