"""Weights in 4 and 8 bits, by bitsandbytes: the method runs on them as on the numbers that they
stand for.
"""

from pathlib import Path
from typing import Any

import pytest
import saved
import torch
from torch import nn

import refusal
from refusal import ChatModel, ConfigError, PromptPair, QuantisedModelError, RefusalTokens, load
from refusal.directions.selection.select import HowToSearch
from refusal.model.memory import weights_of
from refusal.model.sizes import size_of
from refusal.weights.save import export_model

TEXTS = ("Name a colour.", "Why is the sea salty, and since when?", "Sing")
TOKENS = RefusalTokens((72,), ("H",), "given")

pytest.importorskip("bitsandbytes")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved.save_model(tmp_path_factory.mktemp("quantise") / "model")


def unpacked(quantised: ChatModel, folder: Path) -> ChatModel:
    """The same model in float32, its weights the numbers that the 4 bits stand for."""
    from bitsandbytes.functional import dequantize_4bit

    plain = load(str(folder), dtype="float32")
    for name, module in quantised.hf.named_modules():
        weight: Any = getattr(module, "weight", None)
        if getattr(weight, "quant_state", None) is not None:
            target = plain.hf.get_submodule(name)
            assert isinstance(target, nn.Linear)
            target.weight.data = dequantize_4bit(weight.data, weight.quant_state).float()
    return plain


def test_the_whole_method_on_four_bits_is_that_on_the_numbers_they_stand_for(
    folder: Path, pair: PromptPair
) -> None:
    quantised = load(str(folder), dtype="float32", quantize="4bit")
    plain = unpacked(quantised, folder)
    found = []
    for model in (quantised, plain):
        candidates = refusal.difference_in_means(
            refusal.collect(model, pair, n=8, tokens=TOKENS, filtered=False)
        )
        selection = refusal.select(
            model,
            candidates,
            pair,
            n=6,
            filtered=False,
            how=HowToSearch(full_map=True, resamples=0),
            rule=refusal.Rule(-1000.0, 1000.0),
        )
        with model.apply(refusal.Ablate(selection.direction)):
            found.append((candidates, selection, model.generate(TEXTS, max_new_tokens=6)))
    (first, chosen, texts), (second, again, others) = found
    torch.testing.assert_close(first.vectors, second.vectors, rtol=0, atol=1e-4)
    for one, other in zip(chosen.scores, again.scores, strict=True):
        for name in ("bypass", "induce", "kl"):
            assert getattr(one, name) == pytest.approx(getattr(other, name), abs=1e-3)
    assert texts == others


@pytest.mark.parametrize("quantize", ["4bit", "8bit"])
def test_sizes_count_numbers_and_memory_counts_bytes(folder: Path, quantize: Any) -> None:
    plain, model = (
        load(str(folder), dtype="float32"),
        load(str(folder), dtype="float32", quantize=quantize),
    )
    size = size_of(model.hf, model.hf.config)
    assert size == size_of(plain.hf, plain.hf.config)
    held = sum(p.numel() * p.element_size() for p in model.hf.parameters())
    scales = sum(
        state.absmax.numel() * state.absmax.element_size()
        for p in model.hf.parameters()
        if (state := getattr(p, "quant_state", None)) is not None
    )
    assert weights_of(size, 4, quantize) == held + scales
    assert weights_of(size, 4) == sum(p.numel() * 4 for p in plain.hf.parameters())


def test_eight_bits_complete_and_are_measured(folder: Path) -> None:
    model = load(str(folder), dtype="float32", quantize="8bit")
    assert len(model.generate(TEXTS, max_new_tokens=4)) == 3
    assert len(model.weight_hash()) == 64


@pytest.mark.parametrize("quantize", ["4bit", "8bit"])
def test_quantised_weights_are_not_edited(folder: Path, quantize: Any, tmp_path: Path) -> None:
    model = load(str(folder), dtype="float32", quantize=quantize)
    vector = torch.nn.functional.normalize(torch.ones(model.sites.d_model), dim=0)
    direction = refusal.Direction(vector, 1.0, -1, 2)
    with pytest.raises(QuantisedModelError):
        export_model(model, direction, tmp_path / "out")


def test_without_bitsandbytes(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("refusal.model.placement.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'refusal\[quantize\]'"):
        load(str(folder), quantize="4bit")
