"""The refusal tokens: presets by family, given ones, and the choice from completions."""

from collections.abc import Callable

import pytest
import tiny_models
import torch

from refusal import ChatModel, ConfigError, PromptPair, TooFewPromptsError, tokens_for
from refusal.core.stats import auroc, wilson_interval
from refusal.directions import refusal_tokens
from refusal.directions.refusal_tokens import (
    PRESETS,
    choose_tokens,
    given_tokens,
    preset_tokens,
    rank_tokens,
)


def test_tokens_are_ranked_by_the_difference_and_cut_at_the_covered_mass() -> None:
    on_refusal = torch.tensor([0.60, 0.25, 0.10, 0.01, 0.04], dtype=torch.float64)
    on_compliance = torch.tensor([0.05, 0.02, 0.60, 0.009, 0.321], dtype=torch.float64)
    assert rank_tokens(on_refusal, on_compliance) == [0, 1]
    assert rank_tokens(on_compliance, on_refusal) == [2, 4]


def test_given_tokens_are_words_or_ids(model: ChatModel) -> None:
    found = given_tokens(model, ["a", "7", 9])
    assert found.ids == (model.tokenizer.convert_tokens_to_ids("a"), 7, 9)
    with pytest.raises(ConfigError, match="'no' is 2 tokens"):
        given_tokens(model, ["no"])
    with pytest.raises(ConfigError, match="Token id 900 is outside the vocabulary of 272"):
        given_tokens(model, ["900"])


@pytest.mark.parametrize("preset", PRESETS, ids=lambda p: p.family)
def test_presets_are_resolved_by_the_models_own_tokenizer(
    preset: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A family's tokens are used only if type, template and token ids all agree."""
    assert isinstance(preset, refusal_tokens.Preset)
    model = tiny_models.chat_model()
    model.hf.config.model_type = preset.model_types[0]  # type: ignore[misc]
    model.tokenizer.chat_template = preset.marker
    ids = dict(zip(preset.words, preset.ids, strict=True))
    monkeypatch.setattr(model.tokenizer, "encode", lambda word, **_: [ids[word]])
    found = preset_tokens(model)
    assert found is not None
    assert found.ids == preset.ids
    assert preset.family in found.source
    monkeypatch.setattr(model.tokenizer, "encode", lambda word, **_: [ids[word] + 1])
    assert preset_tokens(model) is None
    monkeypatch.undo()
    model.hf.config.model_type = "other"  # type: ignore[misc]
    assert preset_tokens(model) is None


def say(
    monkeypatch: pytest.MonkeyPatch,
    refuse: set[str],
    logits: Callable[[list[str]], torch.Tensor] = lambda texts: torch.randn(len(texts), 272),
) -> None:
    """Completions of a model that refuses the prompts in ``refuse``."""

    def generate(
        model: object, texts: list[str], *args: object, **kwargs: object
    ) -> tuple[list[str], torch.Tensor]:
        written = [
            "I'm sorry, but I can't help with that." if t in refuse else "Here is a song for you."
            for t in texts
        ]
        return written, logits(texts)

    monkeypatch.setattr(refusal_tokens, "generate_and_read", generate)


def test_choice_follows_what_the_model_does(
    model: ChatModel,
    pair: PromptPair,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    refused = {p.text for p in pair.harmful}

    def logits(texts: list[str]) -> torch.Tensor:
        out = torch.zeros(len(texts), tiny_models.VOCABULARY)
        out[:, 10] = 3.0
        for row, text in zip(out, texts, strict=True):
            row[30 if text in refused else 50] = 6.0
        return out

    say(monkeypatch, refused, logits)
    found = tokens_for(model, pair)
    assert found.ids == (30,)
    assert found.auroc == 1.0
    assert (found.judged_refusals, found.judged) == (10, 20)
    assert found.probabilities is not None
    assert found.probabilities[0] == pytest.approx(
        float(logits([pair.harmful[0].text]).double().softmax(-1)[0, 30])
    )
    assert not caplog.text
    # A model whose first token says nothing about refusal: a warning with the number.
    say(monkeypatch, refused)
    assert (choose_tokens(model, pair).auroc or 0) <= 1
    half = {p.text for p in (*pair.harmful[:5], *pair.harmless[:5])}
    say(monkeypatch, half, logits)
    found = choose_tokens(model, pair)
    assert found.auroc == pytest.approx(0.5)
    assert "AUROC 0.50 (below 0.9)" in caplog.text


def test_a_model_that_never_refuses_is_an_error_with_counts(
    model: ChatModel, pair: PromptPair, monkeypatch: pytest.MonkeyPatch
) -> None:
    say(monkeypatch, set())
    with pytest.raises(TooFewPromptsError, match=r"refused 0 and answered 20; .*--refusal-tokens"):
        choose_tokens(model, pair)


def test_auroc_is_the_share_of_ordered_pairs() -> None:
    a, b = [0.1, 0.5, 0.5, 2.0], [0.5, 0.0, -1.0]
    pairs = [1.0 if x > y else 0.5 if x == y else 0.0 for x in a for y in b]
    assert auroc(a, b) == pytest.approx(sum(pairs) / len(pairs))
    assert auroc([], b) is None


def test_wilson_interval_is_the_published_one() -> None:
    """3 of 100 is 1 to 8.5 %."""
    low, high = wilson_interval(3, 100)
    assert low == pytest.approx(0.0103, abs=1e-4)
    assert high == pytest.approx(0.0845, abs=1e-4)
    assert wilson_interval(0, 0) == (0.0, 1.0)
