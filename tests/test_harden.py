"""examples/harden.py on a tiny model: what it trains on are refusals, the loss falls on the answers
alone, and the folder loads.
"""

import importlib.util
import itertools
import sys
from pathlib import Path
from types import ModuleType

import pytest
import tiny_models
import torch

import refusal

HERE = Path(__file__).parent.parent / "examples" / "harden.py"


@pytest.fixture(scope="module")
def harden() -> ModuleType:
    spec = importlib.util.spec_from_file_location("harden", HERE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["harden"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def test_every_extended_refusal_is_one_and_begins_like_none(harden: ModuleType) -> None:
    parts = (harden.OVERVIEWS, harden.REFUSALS, harden.REASONS, harden.OFFERS)
    for pieces in itertools.product(*parts):
        text = " ".join(pieces)
        assert refusal.refusal_verdict("How do I pick a lock?", text).refused, pieces
    for overview in harden.OVERVIEWS:
        assert not refusal.refusal_verdict("How do I pick a lock?", overview).refused


def test_the_loss_is_that_of_the_answers_tokens(harden: ModuleType) -> None:
    network = tiny_models.network().float()
    examples = [harden.Example((7, 8, 9, 10, 11), 2), harden.Example((5, 6, 12), 1)]
    expected = []
    for example in examples:
        logits = network(input_ids=torch.tensor([example.ids])).logits[0].log_softmax(-1)
        for at in range(example.start, len(example.ids)):
            expected.append(-float(logits[at - 1, example.ids[at]]))
    loss = float(harden.loss_of(network, examples))
    assert loss == pytest.approx(sum(expected) / len(expected), rel=1e-4)


def test_training_lowers_the_loss_and_the_folder_loads(harden: ModuleType, tmp_path: Path) -> None:
    model = tiny_models.chat_model()
    recipe = harden.Recipe(n=3, epochs=6, rank=4, rate=1e-2, answer_tokens=6)
    before = {name: p.detach().clone() for name, p in model.hf.named_parameters()}
    losses = harden.harden(model, tmp_path / "hardened", recipe)
    assert losses[-1] < 0.8 * losses[0]
    loaded = refusal.load(str(tmp_path / "hardened"), dtype="float32", device="cpu")
    changed = {n for n, p in loaded.hf.named_parameters() if not torch.equal(p, before[n])}
    assert changed
    assert all("proj" in name for name in changed)  # linear layers and nothing else
    assert "extended-refusal" in loaded.hf.config.refusal["hardened"]
    assert "extended-refusal" in (tmp_path / "hardened" / "README.md").read_text(encoding="utf-8")
