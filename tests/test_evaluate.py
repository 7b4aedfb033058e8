"""Rates over verdicts, and what each condition does."""

import pytest
import tiny_models
import torch

from refusal import Completion, Direction, PromptPair, evaluate
from refusal.evaluate import CONDITIONS, interventions_for, measure
from refusal.generation import complete

ASK = "Write a poem about the sea."


def completions(*verdicts: str) -> list[Completion]:
    return [Completion(str(i), ASK, "text", v) for i, v in enumerate(verdicts)]  # type: ignore[arg-type]


def test_rates_count_whole_and_partial_refusals_and_never_degenerate_text() -> None:
    found = {m.name: m for m in measure(completions("refusal", "partial", "degenerate", "compliance"), "harmful", "x")}
    assert found["refusal_rate"].value == 0.5
    assert found["degenerate_rate"].value == 0.25
    assert found["partial_rate"].value == 0.25
    assert all(m.low <= m.value <= m.high and m.n == 4 for m in found.values())
    assert measure([], "harmful", "x")[0].value == 0.0


def test_every_condition_is_what_its_name_says(pair: PromptPair) -> None:
    model = tiny_models.chat_model()
    vector = torch.randn(tiny_models.WIDTH, generator=torch.Generator().manual_seed(2))
    direction = Direction(vector / vector.norm(), 5.0, -1, 2)
    found = evaluate(model, direction, pair, n=3, max_new_tokens=5)
    assert set(found.completions) == set(CONDITIONS)
    for set_name, condition in CONDITIONS:
        prompts = getattr(pair, set_name)[:3]
        with model.apply(*interventions_for(condition, direction)):
            expected = complete(model, [p.text for p in prompts], 5)
        assert [c.completion for c in found.completions[set_name, condition]] == expected
        assert found.rate(set_name, condition).n == 3
    texts = {
        c: [x.completion for x in found.completions["harmful", c]] for c in ("baseline", "ablation", "subtraction")
    }
    assert texts["baseline"] != texts["ablation"] != texts["subtraction"]
    with pytest.raises(KeyError, match="no refusal_rate for harmful prompts under addition"):
        found.rate("harmful", "addition")
