"""An adapter loaded by PEFT on the unedited model gives the edited model's logits; what PEFT cannot
hold is refused.
"""

import json
import warnings
from collections.abc import Sequence
from pathlib import Path

import peft
import pytest
import tiny_models
import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from refusal import (
    Ablate,
    ChatModel,
    Direction,
    ExportError,
    export_lora,
    find_parameters,
    orthogonalised,
)
from refusal.core.storage import write_json, write_tensors
from refusal.weights.edit import WeightEdit
from refusal.weights.lora import adapter_of
from refusal.weights.parameters import StreamParameter, removal_for

REFUSED = ("mamba", "mamba2", "falcon_h1")
FAMILIES = [*tiny_models.FAMILIES, *tiny_models.OTHERS]


class Bare(PreTrainedModel):
    """A model of nothing but what a test puts into it."""

    config_class = PretrainedConfig


def direction_for(model: ChatModel) -> Direction:
    vector = torch.randn(model.sites.d_model, generator=torch.Generator().manual_seed(3))
    return Direction(vector / vector.norm(), 2.0, -1, 1, model=model.name)


def whole(
    hf: PreTrainedModel, parameters: Sequence[StreamParameter], direction: Direction
) -> WeightEdit:
    """The whole direction out of parameters of a model that has no blocks."""
    removals = {p.name: removal_for(hf, p, direction.rows) for p in parameters}
    return WeightEdit(Ablate(direction), tuple(parameters), removals)


def logits(hf: nn.Module, model: ChatModel) -> Tensor:
    ids = torch.tensor([model.tokenize(["Name three rivers of Europe."])[0]])
    with torch.no_grad():
        out: Tensor = hf(input_ids=ids, use_cache=False).logits
    return out


def with_adapter(base: PreTrainedModel, folder: Path) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return peft.PeftModel.from_pretrained(base, folder).eval()


@pytest.mark.parametrize("family", [family for family in FAMILIES if family not in REFUSED])
def test_peft_gives_the_logits_of_the_edited_model(family: str, tmp_path: Path) -> None:
    model = tiny_models.chat_model(family)
    direction = direction_for(model)
    hash_before = model.weight_hash()
    exported = export_lora(model, direction, tmp_path / "adapter", ["Why?"])
    assert model.weight_hash() == hash_before
    assert exported.report is not None
    assert exported.report.gap is not None
    before = logits(model.hf, model)
    with orthogonalised(model, direction):
        expected = logits(model.hf, model)
    found = logits(with_adapter(tiny_models.network(family), tmp_path / "adapter"), model)
    assert (found - expected).abs().max() < 1e-3
    assert (before - expected).abs().max() > 0.1  # the adapter does something


@pytest.mark.parametrize("family", REFUSED)
def test_what_peft_will_not_load_is_not_written(family: str, tmp_path: Path) -> None:
    model = tiny_models.chat_model(family)
    with pytest.raises(ExportError, match="PEFT allows no adapter on the out_proj layers"):
        export_lora(model, direction_for(model), tmp_path / "adapter")
    assert list(tmp_path.iterdir()) == []
    layers = [
        p.name.removesuffix(".weight")
        for p in find_parameters(model.hf, model.sites)
        if "out_proj" in p.name
    ]
    with pytest.raises(ValueError, match="out_proj"):  # once PEFT takes them, so can we
        peft.get_peft_model(model.hf, peft.LoraConfig(target_modules=layers))


def test_the_folder_names_the_model_and_a_rank_of_one(tmp_path: Path) -> None:
    model = tiny_models.chat_model("qwen2")
    export_lora(model, direction_for(model), tmp_path / "adapter")
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text(encoding="utf-8"))
    assert config["base_model_name_or_path"] == "tiny-qwen2"
    assert (config["r"], config["lora_alpha"], config["peft_type"]) == (1, 1, "LORA")
    assert "not measured" in (tmp_path / "adapter" / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("axis", [1, 2])
def test_fused_experts_in_either_orientation(axis: int, transposed: bool, tmp_path: Path) -> None:
    """The stream may be on either side of a fused weight, whatever PEFT takes that side for."""

    class Experts(nn.Module):
        is_transposed = transposed

        def __init__(self) -> None:
            super().__init__()
            shape = (3, 8, 5) if axis == 1 else (3, 5, 8)
            self.down_proj = nn.Parameter(
                torch.randn(shape, generator=torch.Generator().manual_seed(0))
            )

        def forward(self, x: Tensor) -> Tensor:
            return torch.einsum("edi,ei->d" if axis == 1 else "eid,ei->d", self.down_proj, x)

    class Model(Bare):
        def __init__(self) -> None:
            super().__init__(PretrainedConfig())
            self.experts = Experts()

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.experts(x)
            return out

    unit = torch.randn(8, generator=torch.Generator().manual_seed(1))
    direction = Direction(unit / unit.norm(), 1.0, -1, 0)
    parameters = [StreamParameter("experts.down_proj", axis)]
    base = Model()
    x = torch.randn(3, 5, generator=torch.Generator().manual_seed(2))
    out = base(x).detach()
    adapter = adapter_of(base, whole(base, parameters, direction), "base", None)
    write_json(tmp_path / "adapter_config.json", {**adapter.config, "task_type": None})
    write_tensors(tmp_path / "adapter_model.safetensors", adapter.tensors)
    found = with_adapter(base, tmp_path)(x)
    assert (found - (out - direction.vector * (direction.vector @ out))).abs().max() < 1e-5


def test_a_layer_that_peft_does_not_know_is_refused() -> None:
    class Shifted(nn.Embedding):
        def forward(self, ids: Tensor) -> Tensor:
            return super().forward(ids + 1)

    model = Bare(PretrainedConfig())
    model.conv, model.embed = nn.Conv2d(3, 8, 2), Shifted(4, 8)
    direction = Direction(torch.ones(8) / 8**0.5, 1.0, -1, 0)
    edit = whole(model, [StreamParameter("conv.weight", 0)], direction)
    with pytest.raises(ExportError, match=r"conv\.weight \(Conv2d.*--as model"):
        adapter_of(model, edit, "base", None)
