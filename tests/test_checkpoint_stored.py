"""What a checkpoint stores, against what its config says of it: weights are plain numbers, or said
to be none.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import saved
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from refusal import Completion, ModelLoadError, load
from refusal.config.judges import JudgeOptions
from refusal.evaluations.judges.make import make_judge
from refusal.pipeline.costs.estimate import model_outline
from refusal.weights.checkpoint import open_checkpoint
from refusal.weights.checkpoint_plan import read_config

UP = "model.layers.2.mlp.up_proj.weight"
FP8 = {"quant_method": "fp8", "weight_block_size": [128, 128]}
OWN = {"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model"}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved.save_model(tmp_path_factory.mktemp("model") / "model")


@pytest.fixture
def folder(source: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(source, tmp_path / "copy"))


def configure(folder: Path, **changes: Any) -> None:
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps(config | changes), encoding="utf-8")


def store(folder: Path, change: dict[str, Tensor]) -> None:
    save_file(
        load_file(folder / "model.safetensors") | change,
        folder / "model.safetensors",
        {"format": "pt"},
    )


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int32", "float8_e4m3fn", "float8_e5m2"])
def test_a_weight_in_another_kind_of_number_is_named(folder: Path, dtype: str) -> None:
    weight = load_file(folder / "model.safetensors")[UP]
    store(folder, {UP: (weight * 50).to(getattr(torch, dtype))})
    with pytest.raises(
        ModelLoadError, match=r"1 weight of .*up_proj\.weight \((I8|U8|I32|F8_E4M3|F8_E5M2)\)"
    ):
        load(str(folder), dtype="float32")


@pytest.mark.parametrize("how", ["shards", "bin"])
def test_it_is_named_in_shards_and_in_pickled_weights(folder: Path, how: str) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors[UP] = (tensors[UP] * 50).to(torch.int8)
    (folder / "model.safetensors").unlink()
    if how == "bin":
        torch.save(tensors, folder / "pytorch_model.bin")
    else:
        parts = {"a.safetensors": [UP], "b.safetensors": [name for name in tensors if name != UP]}
        for file, names in parts.items():
            save_file({name: tensors[name] for name in names}, folder / file, {"format": "pt"})
        index = {
            "metadata": {},
            "weight_map": {name: file for file, names in parts.items() for name in names},
        }
        (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    with pytest.raises(ModelLoadError, match=r"1 weight of .*up_proj\.weight \((I8|int8)\)"):
        load(str(folder), dtype="float32")


def test_an_expert_that_the_loader_joins_with_others_is_named_as_it_is_stored(
    tmp_path: Path,
) -> None:
    folder = saved.save_model(tmp_path, "bare", "mixtral")
    name = next(
        each
        for each in load_file(folder / "model.safetensors")
        if each.endswith("experts.2.w1.weight")
    )
    store(folder, {name: (load_file(folder / "model.safetensors")[name] * 50).to(torch.int8)})
    with pytest.raises(ModelLoadError, match=r"experts\.2\.w1\.weight \(I8\)"):
        load(str(folder), dtype="float32")


def test_integers_that_are_no_weights_are_no_fault(tmp_path: Path) -> None:
    folder = saved.save_model(tmp_path, "bare", "gpt2")
    mask = torch.ones(1, 1, 64, 64, dtype=torch.uint8).tril()
    store(folder, {f"transformer.h.{i}.attn.bias": mask.clone() for i in range(5)})
    load(str(folder), dtype="float32")


@pytest.mark.parametrize(
    "claim",
    [
        FP8,
        {"quant_method": "mxfp4"},
        {"quant_method": "bitsandbytes", "load_in_4bit": True},
        {"load_in_8bit": True},
        {"quant_method": "gptq", "bits": 4},
    ],
    ids=["fp8", "mxfp4", "4bit", "8bit", "gptq"],
)
def test_a_quantisation_over_plain_numbers_is_a_disagreement(
    folder: Path, claim: dict[str, Any]
) -> None:
    configure(folder, quantization_config=claim)
    with pytest.raises(
        ModelLoadError, match=r"config and the weights of .* disagree.*plain numbers \(F32\)"
    ):
        load(str(folder), dtype="float32")


@pytest.mark.parametrize("bits", ["4bit", "8bit"])
def test_what_bitsandbytes_saves_loads(source: Path, tmp_path: Path, bits: Any) -> None:
    pytest.importorskip("bitsandbytes")
    first = load(str(source), dtype="float32", quantize=bits)
    first.hf.save_pretrained(tmp_path / "q")
    first.tokenizer.save_pretrained(tmp_path / "q")
    again = load(str(tmp_path / "q"), dtype="float32", device_map="cpu")
    ids = torch.tensor([first.tokenize(["Name a colour."])[0]])
    with torch.no_grad():
        torch.testing.assert_close(again.hf(ids).logits, first.hf(ids).logits)


# --- every loader


def test_no_loader_runs_or_asks_about_a_checkpoint_s_own_code(folder: Path) -> None:
    configure(folder, model_type="own-kind", auto_map=OWN)
    (folder / "own.py").write_text(f"open({str(folder / 'ran')!r}, 'w')", encoding="utf-8")
    judge = f"harmbench={folder}"
    options = JudgeOptions(judge_dtype="float32", judge_device="cpu")
    tries = (
        lambda: load(str(folder)),
        lambda: model_outline(str(folder)),
        lambda: read_config(open_checkpoint(folder)),
        lambda: list(
            make_judge(judge, options).judge([Completion("a", "Why?", "So.", "compliance")])
        ),
    )
    for each in tries:
        with pytest.raises(ModelLoadError, match=r"code of its own .*which is not run"):
            each()
    assert not (folder / "ran").exists()
