"""A recovered direction tried on the base: what is scored is along it, and nothing else."""

import pytest
import tiny_models
import torch
from conftest import make_prompts
from weight_edits import unit

from refusal import PromptPair
from refusal.audits.forensics.prove import along, prove
from refusal.core.direction import Direction
from refusal.core.records import PromptSplits
from refusal.directions.difference_in_means import difference_in_means
from refusal.directions.pool import collect
from refusal.directions.refusal_metric import refusal_metric
from refusal.interventions.ablate_add import Ablate
from refusal.model.forward import last_logits


def pools() -> PromptSplits:
    """Ten prompts a class and split."""
    pairs = []
    for split in range(3):
        harmful = make_prompts("harmful", 10, 1000 * split)
        harmless = make_prompts("harmless", 10, 1000 * split + 500)
        pairs.append(PromptPair(harmful, harmless))
    train, val, test = pairs
    return PromptSplits("made here", train, val, test)


def test_a_direction_is_scored_as_its_ablation_scores() -> None:
    model, prompts, u = tiny_models.chat_model(), pools(), unit(32, 3)
    (proof,) = prove(model, u[None].double(), prompts, n=8, tokens=("I",), filtered=False)
    token = model.tokenizer.encode("I", add_special_tokens=False)[-1]
    texts = [prompt.text for prompt in prompts.val.harmful[:8]]
    plain = refusal_metric(last_logits(model, texts), (token,)).mean()
    with model.apply(Ablate(Direction(u, 1.0, -1, 0))):
        ablated = refusal_metric(last_logits(model, texts), (token,)).mean()
    assert proof.harmful == pytest.approx(float(plain), abs=1e-3)
    assert proof.bypass == pytest.approx(float(ablated), abs=1e-3)
    assert proof.prompts == 8
    own = difference_in_means(collect(model, prompts.train, n=8, filtered=False))
    vector = own.vectors[-1, proof.layer]
    assert proof.amount == pytest.approx(float(vector @ u), abs=1e-4)
    assert proof.cosine == pytest.approx(float(vector @ u / vector.norm()), abs=1e-4)


def test_candidates_are_what_is_along_the_direction() -> None:
    model, u = tiny_models.chat_model(), unit(32, 4)
    own = difference_in_means(collect(model, pools().train, n=8, filtered=False))
    found = along(own, u)
    assert found.n_positions == 1
    for layer in range(own.n_layers):
        meant = (own.vectors[-1, layer] @ u) * u
        torch.testing.assert_close(found.vectors[0, layer], meant, atol=1e-5, rtol=1e-4)
