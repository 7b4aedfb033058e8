"""The planted model does what its formula says, with the model's own hooks and completions."""

from pathlib import Path

import planted
import pytest
import torch

from refusal import Ablate, Direction, load, refusal_verdict
from refusal.core.subspace import spanned
from refusal.model.forward import last_logits


def refuses(found: planted.Planted, texts: list[str]) -> list[bool]:
    tokens = found.model.tokenizer.convert_tokens_to_ids([planted.REFUSAL, planted.ANSWER])
    refusal, answer = last_logits(found.model, texts)[:, tokens].T
    return [bool(refused) for refused in refusal > answer]


def out_of(rows: torch.Tensor, alpha: float = 1.0) -> Ablate:
    return Ablate(spanned([Direction(row, 1.0, -1, 1) for row in rows]), alpha)


@pytest.mark.parametrize("m", [1, 2, 3, 4])
def test_all_but_one_direction_leave_refusal_and_all_remove_it(m: int) -> None:
    found = planted.planted(m)
    harmful, harmless = planted.prompts(m, 12)
    assert refuses(found, harmful) == [True] * 12
    assert refuses(found, harmless) == [False] * 12
    for left in range(m):
        others = [i for i in range(m) if i != left]
        if others:
            with found.model.apply(out_of(found.rows[others])):
                assert refuses(found, harmful) == [True] * 12
    with found.model.apply(out_of(found.rows)):
        assert refuses(found, harmful) == [False] * 12


@pytest.mark.parametrize(("m", "additive"), [(1, False), (2, True), (4, True)])
def test_the_strength_at_which_it_complies_is_the_formula(m: int, additive: bool) -> None:
    found = planted.planted(m, additive)
    harmful, _ = planted.prompts(m, 12)
    assert refuses(found, harmful) == [True] * 12
    for text in harmful[:4]:
        alpha = found.crossing(text)
        assert 0.05 < alpha < 0.95
        for near, expected in ((alpha - 0.02, True), (alpha + 0.02, False)):
            with found.model.apply(out_of(found.rows, near)):
                assert refuses(found, [text]) == [expected]
            assert (found.excess(text, found.rows, near) > 0) == expected


def test_it_is_a_chat_model_on_disk(tmp_path: Path) -> None:
    folder = planted.save(planted.planted(2), tmp_path / "model")
    model = load(str(folder), dtype="float32")
    harmful, harmless = planted.prompts(2, 3)
    for texts, sentence, label in (
        (harmful, planted.REFUSAL, "refusal"),
        (harmless, planted.ANSWER, "compliance"),
    ):
        for text, written in zip(texts, model.generate(texts, 8), strict=True):
            assert written.strip() == sentence
            assert refusal_verdict(text, written).label == label
