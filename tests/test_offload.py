"""A model whose weights are partly on the disk or spread by accelerate: the same scores and
completions.
"""

import json
from pathlib import Path

import pytest
import saved
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import refusal
from refusal import ChatModel, PromptPair, RefusalTokens
from refusal.directions.selection.select import HowToSearch

TEXTS = ("Name a colour.", "Why is the sea salty, and since when?", "Sing")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved.save_model(tmp_path_factory.mktemp("offload") / "model")


def offloaded(folder: Path, where: Path, device: str, embedding: str = "cpu") -> ChatModel:
    """Every second block's weights on the disk (or only handed over when they are needed)."""
    places = {
        "model.embed_tokens": embedding,
        "model.norm": "cpu",
        "lm_head": "cpu",
        "model.rotary_emb": "cpu",
    }
    places |= {f"model.layers.{i}": device if i % 2 else "cpu" for i in range(5)}
    hf = AutoModelForCausalLM.from_pretrained(
        folder,
        dtype=torch.float32,
        device_map=places,
        offload_folder=str(where),
        offload_buffers=True,
    )
    assert any(parameter.is_meta for parameter in hf.parameters())  # its weights are not in memory
    return ChatModel(hf, AutoTokenizer.from_pretrained(folder), name=str(folder))


@pytest.mark.parametrize("embedding", ["cpu", "disk"])
def test_weights_on_the_disk_change_nothing(
    folder: Path, tmp_path: Path, pair: PromptPair, embedding: str
) -> None:
    plain = refusal.load(str(folder), dtype="float32")
    spread = offloaded(folder, tmp_path, "disk", embedding)
    assert spread.weight_hash() == plain.weight_hash()
    tokens = RefusalTokens((72,), ("H",), "given")
    found = []
    for model in (plain, spread):
        means = refusal.collect(model, pair, n=8, tokens=tokens, filtered=False)
        candidates = refusal.difference_in_means(means)
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
    torch.testing.assert_close(first.vectors, second.vectors, rtol=0, atol=1e-5)
    assert (chosen.score.position, chosen.score.layer) == (again.score.position, again.score.layer)
    for one, other in zip(chosen.scores, again.scores, strict=True):
        for name in ("bypass", "induce", "kl"):
            assert getattr(one, name) == pytest.approx(getattr(other, name), abs=1e-4)
    assert texts == others


def test_a_disk_is_not_paid_as_a_device(folder: Path, tmp_path: Path) -> None:
    config = saved.small_config(folder, saved.write_prompts(tmp_path))
    model = offloaded(folder, tmp_path / "weights", "disk")
    refusal.run(config, tmp_path / "run", until="extract", model=model)
    stage = json.loads((tmp_path / "run" / "manifest.json").read_text(encoding="utf-8"))["stages"][
        "extract"
    ]
    assert stage["device_seconds"] == stage["seconds"]
