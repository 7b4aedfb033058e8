"""Means against a per-prompt loop in float64; padding, batch size and the shared prefix change
nothing.
"""

from collections.abc import Callable

import pytest
import tiny_models
import torch
from plain import block_inputs, last_logits, metric

from refusal import (
    Activations,
    ChatModel,
    NonFiniteError,
    Prompt,
    PromptPair,
    RefusalTokens,
    TooFewPromptsError,
    collect,
    difference_in_means,
)
from refusal.core.records import Label
from refusal.directions.pool import draw_passing

TOKENS = RefusalTokens((40, 41), ("a", "b"), source="test")
Make = Callable[[Label, int], tuple[Prompt, ...]]


def plain_mean(model: ChatModel, texts: list[str]) -> torch.Tensor:
    """Mean of every block's input at the post-instruction tokens, ``(position, layer,
    d_model)``.
    """
    blocks = [model.hf.get_submodule(name) for name in model.sites.blocks]
    n = len(model.chat.suffix)
    total = torch.zeros(n, len(blocks), tiny_models.WIDTH, dtype=torch.float64)
    for ids in model.tokenize(texts):
        stream = block_inputs(model.hf, blocks, ids)[
            :-1
        ]  # the last is the end of the stream, no block's input
        total += torch.stack([x[-n:] for x in stream], dim=1).double()
    return total / len(texts)


@pytest.mark.parametrize("family", [*tiny_models.FAMILIES, *tiny_models.SLIDING])
def test_means_equal_a_per_prompt_loop(family: str, pair: PromptPair) -> None:
    model = tiny_models.chat_model(family)
    model.token_budget.value = 200
    found = collect(model, pair, tokens=TOKENS, filtered=False)
    for label in ("harmful", "harmless"):
        mean = getattr(found, label)
        assert mean.dtype == torch.float64
        expected = plain_mean(model, [prompt.text for prompt in getattr(pair, label)])
        torch.testing.assert_close(mean, expected, atol=1e-5, rtol=1e-5)
    candidates = difference_in_means(found)
    assert candidates.vectors.dtype == torch.float32
    torch.testing.assert_close(candidates.vectors, (found.harmful - found.harmless).float())


@pytest.mark.parametrize("template", tiny_models.TEMPLATES)
@pytest.mark.parametrize("budget", [1, 150, 10_000])
@pytest.mark.parametrize("packs", [True, False])
def test_batch_size_and_packing_change_nothing(
    template: str, budget: int, packs: bool, pair: PromptPair
) -> None:
    model = tiny_models.chat_model("qwen2", template)
    model.token_budget.value, model.packs = budget, packs
    found = collect(model, pair, tokens=TOKENS, filtered=False)
    expected = plain_mean(model, [prompt.text for prompt in pair.harmful])
    torch.testing.assert_close(found.harmful, expected, atol=1e-5, rtol=1e-5)


def signs(model: ChatModel, prompts: tuple[Prompt, ...], tokens: tuple[int, ...]) -> list[float]:
    return [
        metric(last_logits(model.hf, ids), tokens)
        for ids in model.tokenize([p.text for p in prompts])
    ]


def some_tokens(model: ChatModel, prompts: tuple[Prompt, ...]) -> RefusalTokens:
    """A token set whose metric is positive for some of the prompts and negative for others."""
    logits = [last_logits(model.hf, ids) for ids in model.tokenize([p.text for p in prompts])]
    for size in range(1, 260):
        tokens = tuple(range(5, 5 + size))
        positive = sum(metric(each, tokens) > 0 for each in logits)
        if 12 <= positive <= len(prompts) - 4:
            return RefusalTokens(tokens, ("",) * size, source="test")
    raise AssertionError("no mixed token set")


def test_filter_draws_on_until_n_have_passed(model: ChatModel, prompts_of: Make) -> None:
    pool = prompts_of("harmful", 40)
    tokens = some_tokens(model, pool)
    values = signs(model, pool, tokens.ids)
    expected = [p for p, value in zip(pool, values, strict=True) if value > 0][:10]
    model.token_budget.value = 200
    found = draw_passing(model, pool, "harmful", tokens, n=10)
    assert list(found.prompts) == expected
    assert found.count.passed == 10
    assert found.count.drawn == pool.index(expected[-1]) + 1
    assert found.count.mean_metric == pytest.approx(
        sum(values[pool.index(p)] for p in expected) / 10, abs=1e-4
    )


def test_collect_uses_only_what_passes(model: ChatModel, prompts_of: Make) -> None:
    pool = prompts_of("harmful", 40)
    tokens = some_tokens(model, pool)
    kept = [p for p, value in zip(pool, signs(model, pool, tokens.ids), strict=True) if value > 0]
    other = [Prompt(p.id, p.text, "harmless") for p in pool if p not in kept]
    if len(other) < 8:
        pytest.skip("too few on the other side")
    found = collect(model, PromptPair(pool, tuple(other)), n=8, tokens=tokens)
    torch.testing.assert_close(
        found.harmful, plain_mean(model, [p.text for p in kept[:8]]), atol=1e-5, rtol=1e-5
    )
    assert isinstance(found, Activations)
    assert found.harmful_count.passed == 8


def test_too_few_passing_prompts_name_the_counts_and_the_real_first_tokens(
    model: ChatModel, pair: PromptPair
) -> None:
    never = RefusalTokens((4,), ("<|eos|>",), source="test")
    with pytest.raises(
        TooFewPromptsError,
        match=r"Only \d of 10 harmful prompts pass.*first tokens.*--refusal-tokens",
    ):
        collect(model, pair, n=10, tokens=never)


def test_a_class_without_prompts_is_not_blamed_on_the_filter(
    model: ChatModel, pair: PromptPair
) -> None:
    with pytest.raises(TooFewPromptsError, match=r"There are no harmless prompts\. Give some"):
        collect(model, PromptPair(pair.harmful, ()), tokens=TOKENS, filtered=False)


def test_a_non_finite_activation_names_the_layer(pair: PromptPair) -> None:
    model = tiny_models.chat_model()
    with torch.no_grad():
        model.hf.get_submodule("model.layers.1.mlp.down_proj").weight.fill_(float("inf"))  # type: ignore[operator]
    with pytest.raises(
        NonFiniteError, match=r"layer 2 are .* runs in float32: its weights are damaged"
    ):
        collect(model, pair, tokens=TOKENS, filtered=False)
    with pytest.raises(NonFiniteError, match="layer 2 "):  # not: too few pass the filter
        collect(model, pair, tokens=TOKENS)
    with pytest.raises(NonFiniteError, match="logits are not finite"):
        draw_passing(model, pair.harmful, "harmful", TOKENS, n=4)


def test_blocks_that_are_not_read_are_not_run_without_the_filter(
    model: ChatModel, pair: PromptPair
) -> None:
    full = collect(model, pair, tokens=TOKENS, filtered=False)
    with torch.no_grad():
        model.hf.get_submodule("model.layers.3.mlp.down_proj").weight.fill_(float("nan"))  # type: ignore[operator]
    cut = collect(model, pair, tokens=TOKENS, filtered=False, layers=3)
    assert torch.equal(cut.harmful[:, :3], full.harmful[:, :3])
    assert cut.harmful[:, 3:].isnan().all()
    filtered = collect(tiny_models.chat_model(), pair, n=1, tokens=TOKENS, filtered=False, layers=2)
    assert filtered.harmful[:, :2].isfinite().all()


@pytest.mark.parametrize("family", [*tiny_models.FAMILIES, *tiny_models.OTHERS])
def test_skipping_the_rest_of_the_blocks_changes_no_mean_in_any_family(
    family: str, pair: PromptPair
) -> None:
    model = tiny_models.chat_model(family)
    few = PromptPair(pair.harmful[:2], pair.harmless[:2])
    found = collect(model, few, tokens=TOKENS, filtered=False, layers=3)
    expected = plain_mean(model, [prompt.text for prompt in few.harmful])
    torch.testing.assert_close(found.harmful[:, :3], expected[:, :3], atol=1e-5, rtol=1e-5)
