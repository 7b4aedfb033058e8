"""Packed rows, padded rows and prompts run alone give the same logits; what cannot be packed is
found out.
"""

from collections.abc import Sequence
from typing import Any

import pytest
import tiny_models
import torch
from plain import last_logits
from transformers import PretrainedConfig

from refusal import ChatModel, OutOfMemoryError
from refusal.model import forward, rows
from refusal.model.forward import packs, plan, read, run_batches
from refusal.model.generation import generate
from refusal.model.hooks import Edit
from refusal.model.rows import Batch
from refusal.model.sizes import narrowest_window

TEXTS = [
    "Hi",
    "Why is the sky blue on most days?",
    "List ten rivers.",
    "Why is the sea salt?",
    "Hi there",
    "Sing!",
]
ALL = [*tiny_models.FAMILIES, *tiny_models.SLIDING]


def layout(model: ChatModel, rows: Sequence[Sequence[int]]) -> list[Batch]:
    """All batches, each as large as was planned."""
    found = []
    for planned in plan(model, rows):
        batch = planned.lay_out()
        assert (planned.prompts, planned.tokens) == (batch.prompts, batch.ids.numel())
        found.append(batch)
    return found


def logits_by_batches(model: ChatModel, rows: Sequence[Sequence[int]]) -> torch.Tensor:
    found: dict[int, torch.Tensor] = {}
    for batch in layout(model, rows):
        found.update(zip(batch.prompts, read(model, batch)[0], strict=True))
    return torch.stack([found[i] for i in range(len(rows))])


def assert_alike(found: torch.Tensor, expected: torch.Tensor) -> None:
    """To 1e-5 of the largest logit: sums are taken in another order. (Mamba's differ by 2e-5 of 6
    with AVX-512.)
    """
    torch.testing.assert_close(found, expected, atol=1e-5 * float(expected.abs().max()), rtol=0)


@pytest.mark.parametrize("family", ALL)
@pytest.mark.parametrize("budget", [1, 120, 10_000])
def test_every_layout_gives_the_logits_of_prompts_run_alone(family: str, budget: int) -> None:
    model = tiny_models.chat_model(family)
    model.token_budget.value = budget
    rows = model.tokenize(TEXTS)
    expected = torch.stack([last_logits(model.hf, row) for row in rows])
    assert_alike(logits_by_batches(model, rows), expected)
    model.packs = False
    assert_alike(logits_by_batches(model, rows), expected)


@pytest.mark.parametrize("family", tiny_models.FAMILIES)
def test_attention_models_pack(family: str) -> None:
    slides = tiny_models.FAMILIES[family].config.get("sliding_window") is not None
    wide: dict[str, Any] = {"sliding_window": 512} if slides else {}
    model = tiny_models.chat_model(family, **wide)
    batches = layout(model, model.tokenize(TEXTS))
    assert model.packs
    assert len(batches) == 1
    assert batches[0].ids.shape[0] == 1


@pytest.mark.parametrize("family", tiny_models.UNPADDED)
def test_what_padding_would_change_is_read_one_by_one(
    family: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Without the measurement PaliGemma's logits are off by half of themselves, GPT-Neo's past its
    window.
    """
    model = tiny_models.chat_model(family)
    rows = model.tokenize(TEXTS)
    expected = torch.stack([last_logits(model.hf, row) for row in rows])
    assert_alike(logits_by_batches(model, rows), expected)
    assert model.pads == (family == "gpt_neo")
    assert ("padding changes what this model says" in caplog.text) == (family == "paligemma")
    if family == "paligemma":
        model.pads = True
        assert (logits_by_batches(model, rows) - expected).abs().max() > 0.1


def test_every_window_of_a_config_counts() -> None:
    def narrowest(**values: Any) -> float:
        return narrowest_window(PretrainedConfig(**values))

    assert narrowest(window_size=256, hidden_size=8) == 256
    assert narrowest(sliding_window=None, attention_chunk_size=32) == 32
    assert narrowest(attention_window=[512, 64], sliding_window=0) == 64
    assert narrowest(
        sliding_window_pattern=6, max_window_layers=3, use_sliding_window=True
    ) == float("inf")


def test_packed_rows_hold_every_shared_beginning_once_and_no_padding(model: ChatModel) -> None:
    rows = model.tokenize(TEXTS)
    (batch,) = layout(model, rows)
    beginnings = {tuple(row[: i + 1]) for row in rows for i in range(len(row))}
    assert batch.ids.numel() == len(beginnings)
    before = model.forward_tokens
    read(model, batch)
    assert model.forward_tokens - before == batch.ids.numel()


@pytest.mark.parametrize("family", ["llama", "mamba", *tiny_models.UNPADDED])
def test_what_is_measured_of_a_model_at_first_use_is_no_stages_work(family: str) -> None:
    """Else a stage would cost more in the run that began with it than in the one that came to it
    later.
    """
    model = ChatModel(tiny_models.network(family), tiny_models.tokenizer(), name=family)
    spent = []
    for _ in range(2):
        before = model.forward_tokens
        logits_by_batches(model, model.tokenize(TEXTS))
        generate(model, TEXTS, 4)
        spent.append(model.forward_tokens - before)
    assert spent[0] == spent[1] > 0


def test_a_window_shorter_than_a_prompt_rules_packing_out() -> None:
    model = tiny_models.chat_model("mistral-sliding")
    (batch,) = layout(model, model.tokenize(TEXTS))
    assert batch.ids.shape[0] == len(TEXTS)


def test_a_model_that_cannot_be_packed_is_found_out_and_said_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Mamba carries a state from token to token, also from one prompt of a row to the next."""
    model = tiny_models.chat_model("mamba")
    rows = model.tokenize(TEXTS)
    expected = torch.stack([last_logits(model.hf, row) for row in rows])
    assert_alike(logits_by_batches(model, rows), expected)
    logits_by_batches(model, rows)
    assert model.packs is False
    assert caplog.text.count("cannot share a row") == 1


def test_prompts_without_a_common_start_are_packed_all_the_same(model: ChatModel) -> None:
    suffix = list(model.chat.suffix)
    rows = [[10, 11, *suffix], [20, *suffix], [30, 31, 32, *suffix]]
    assert layout(model, rows)[0].ids.numel() == sum(map(len, rows))
    expected = torch.stack([last_logits(model.hf, row) for row in rows])
    assert_alike(logits_by_batches(model, rows), expected)


def test_one_prompt_and_the_same_prompt_twice(model: ChatModel) -> None:
    for texts in (["Hi"], ["Hi", "Hi"]):
        rows = model.tokenize(texts)
        expected = torch.stack([last_logits(model.hf, row) for row in rows])
        assert_alike(logits_by_batches(model, rows), expected)


def test_copies_run_side_by_side(model: ChatModel) -> None:
    model.token_budget.value = 150
    batch = layout(model, model.tokenize(TEXTS))[0]
    step = torch.randn(tiny_models.WIDTH)
    block = model.hf.get_submodule(model.sites.blocks[1])
    n = batch.ids.shape[0]
    shift = torch.cat([torch.zeros(n, 1, tiny_models.WIDTH), step.expand(n, 1, -1)])
    both = read(model, batch, [Edit(block, "input", lambda x: x + shift)], copies=2)
    torch.testing.assert_close(both[0], read(model, batch)[0], atol=1e-5, rtol=1e-5)
    alone = read(model, batch, [Edit(block, "input", lambda x: x + step)])[0]
    torch.testing.assert_close(both[1], alone, atol=1e-5, rtol=1e-5)


def test_out_of_memory_halves_the_budget_and_goes_on(
    model: ChatModel, caplog: pytest.LogCaptureFixture
) -> None:
    rows = model.tokenize(TEXTS * 4)
    limit = 150

    def run(batch: Batch) -> int:
        if batch.ids.numel() > limit:
            raise RuntimeError(
                "[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory"
            )
        return batch.ids.numel()

    done = [i for batch, _ in run_batches(model, rows, run) for i in batch.prompts]
    assert sorted(done) == list(range(len(rows)))
    assert model.token_budget.value <= limit
    assert "Out of memory" in caplog.text


def test_a_batch_is_laid_out_when_its_turn_comes(
    model: ChatModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its mask is as wide as it is long: laid out beforehand, those of 10,000 prompts would be
    gigabytes.
    """
    assert packs(model)
    model.token_budget.value = 40
    events = []
    lay_out = rows.packed

    def laid_out(*arguments: Any) -> Batch:
        events.append("laid out")
        return lay_out(*arguments)

    monkeypatch.setattr(forward, "packed", laid_out)
    n = len(list(run_batches(model, model.tokenize(TEXTS * 4), lambda batch: events.append("run"))))
    assert n > 4
    assert events == ["laid out", "run"] * n


def test_a_process_with_a_part_of_the_model_does_not_go_on_with_less_by_itself(
    model: ChatModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The others would wait for the rest of a batch that never comes."""
    monkeypatch.setattr("refusal.core.parallel.split", lambda: True)

    def run(batch: Batch) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(OutOfMemoryError, match=r"holds a part of the model.*--batch-size"):
        list(run_batches(model, model.tokenize(TEXTS), run))


@pytest.mark.parametrize("family", tiny_models.OTHERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_no_recurrent_family_shares_rows(family: str, dtype: torch.dtype) -> None:
    """LFM2's short convolution reaches only the first tokens of the next prompt; rounding must not
    hide it.
    """
    hf = tiny_models.network(family)
    hf.to(dtype)  # type: ignore[arg-type]
    assert not packs(ChatModel(hf, tiny_models.tokenizer(), name=family))
