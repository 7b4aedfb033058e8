"""Configs that belong to a whole vision-language model and to its text part: the checkpoint says
which it holds.
"""

import json
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch
from safetensors.torch import load_file, save_file
from saved import save_model
from test_stream import DIRECTION
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    AutoConfig,
)
from transformers import AutoModelForImageTextToText as Whole
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
)

import refusal
from refusal import export_model
from refusal.model.load import auto_class
from refusal.weights.checkpoint_stream import stream_model
from refusal.weights.proxy_model import build

BOTH = sorted(
    set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES) & set(MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES)
)
EXTRA = {
    "mtp.fc.weight": torch.ones(3, 5, dtype=torch.bfloat16),
    "mtp.norm.weight": torch.arange(5.0),
}


@pytest.mark.parametrize("kind", [kind for kind in BOTH if kind not in ("evolla", "fast_vlm")])
def test_the_class_is_the_one_that_wrote_the_checkpoint(kind: str) -> None:
    whole, text = (
        MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES[kind],
        MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[kind],
    )
    config = AutoConfig.for_model(kind)
    for architectures, expected in (
        ([whole], whole),
        ([text], text),
        (None, whole),
        (["Unknown"], whole),
    ):
        config.architectures = architectures
        auto = auto_class(config)
        mapping = (
            MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING if auto is Whole else MODEL_FOR_CAUSAL_LM_MAPPING
        )
        chosen: Any = mapping[type(config)]
        assert chosen.__name__ == expected, architectures


@pytest.mark.parametrize("family", ["qwen3_5", "llama4", "step3p7"])
def test_the_whole_model_is_loaded_and_exported(family: str, tmp_path: Path) -> None:
    base = save_model(tmp_path / "base", family=family)
    source = load_file(base / "model.safetensors")
    model = refusal.load(str(base), dtype="float32")
    assert type(model.hf).__name__.endswith("ForConditionalGeneration")
    assert type(build(AutoConfig.from_pretrained(base))) is type(model.hf)
    export_model(model, DIRECTION, tmp_path / "edited")
    stream_model(base, DIRECTION, tmp_path / "streamed")
    for out in ("edited", "streamed"):
        found = load_file(tmp_path / out / "model.safetensors")
        assert found.keys() == source.keys()
        vision = [name for name in source if "vis" in name]
        assert vision
        assert all(torch.equal(found[name], source[name]) for name in vision)
        config = json.loads((tmp_path / out / "config.json").read_text(encoding="utf-8"))
        assert config["architectures"] == [type(model.hf).__name__]
        loaded: Any = Whole.from_pretrained(tmp_path / out, output_loading_info=True)
        assert not any(loaded[1].values()), loaded[1]


def test_tensors_that_the_model_does_not_use_are_copied(tmp_path: Path) -> None:
    """Qwen3.5 carries layers that predict further tokens, for servers; transformers leaves them
    alone.
    """
    base = save_model(tmp_path / "base", family="qwen3_5")
    source = {**load_file(base / "model.safetensors"), **EXTRA}
    save_file(source, base / "model.safetensors", {"format": "pt"})
    result = stream_model(base, DIRECTION, tmp_path / "streamed")
    assert result.unclaimed == tuple(EXTRA)
    found = load_file(tmp_path / "streamed" / "model.safetensors")
    assert found.keys() == source.keys()
    for name, tensor in EXTRA.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor)


def test_a_text_only_checkpoint_stays_one(tmp_path: Path) -> None:
    """Its own config names the text class, or the wrapper's config does."""
    config = tiny_models.network("qwen3_5").config
    config.architectures = ["Qwen3_5ForCausalLM"]
    assert type(build(config)).__name__ == "Qwen3_5ForCausalLM"
    config.get_text_config().architectures = None
    assert type(build(config.get_text_config())).__name__ == "Qwen3_5ForCausalLM"
