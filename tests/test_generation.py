"""Batched completions against a plain loop that runs each prompt alone, without a cache."""

import math
from collections.abc import Sequence
from contextlib import nullcontext
from itertools import combinations, takewhile
from random import Random
from typing import Any

import pytest
import tiny_models
import torch
from plain import Ablated, Added, last_logits

from refusal import Ablate, Add, ChatModel, Direction, DirectionError
from refusal.core.records import Written
from refusal.core.work import Write
from refusal.interventions.side_by_side import SideBySide
from refusal.model.endings import end_tokens
from refusal.model.generation import (
    batching,
    generate,
    generate_and_read,
    generate_each,
    generate_rows,
)
from refusal.model.memory import Room
from refusal.model.prefill import read_prompts
from refusal.model.sizes import size_of
from refusal.pipeline.costs.estimate import _Clock
from refusal.pipeline.costs.speed import Speed

TEXTS = [
    "Hi",
    "Why is the sky blue on most days?",
    "List ten rivers.",
    "Sing!",
    "Name a colour, and say why.",
]


def plain_completion(model: ChatModel, ids: list[int], n: int) -> list[int]:
    ends = end_tokens(model)
    out: list[int] = []
    while len(out) < n:
        token = int(last_logits(model.hf, [*ids, *out]).argmax())
        if token in ends:
            break
        out.append(token)
    return out


def often_ending(model: ChatModel) -> None:
    """Make an end token of one at which rows end at as many different steps as possible."""
    endless = [plain_completion(model, ids, 8) for ids in model.tokenize(TEXTS)]

    def different(token: int) -> int:
        return len({out.index(token) if token in out else 8 for out in endless})

    assert model.hf.generation_config is not None
    model.hf.generation_config.eos_token_id = max(
        {token for out in endless for token in out}, key=different
    )


@pytest.mark.parametrize("family", [*tiny_models.FAMILIES, *tiny_models.SLIDING, "mamba"])
def test_completions_equal_a_plain_loop(family: str) -> None:
    model = tiny_models.chat_model(family)
    often_ending(model)
    expected = [plain_completion(model, ids, 8) for ids in model.tokenize(TEXTS)]
    assert any(len(ids) < 8 for ids in expected)
    for rows in (1, 2, 100):
        model.batch_size.value = rows
        found = generate(model, TEXTS, 8)
        assert found == [model.tokenizer.decode(ids, skip_special_tokens=True) for ids in expected]


@pytest.mark.parametrize("family", tiny_models.UNPADDED)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_where_padding_is_not_neutral_rows_are_as_alone(family: str, dtype: torch.dtype) -> None:
    """PaliGemma's prompts see their padding; GPT-Neo's window shifts behind a shared start. Each
    prompt alone says what is right, by transformers' own generation where the prompt is read in
    both directions.
    """
    hf: Any = tiny_models.network(family)
    model = ChatModel(hf.to(dtype), tiny_models.tokenizer(), name=family)
    rows = model.tokenize(TEXTS)
    assert (
        batching(model) == {"paligemma": "alone", "gpt_neo": "shared"}[family]
    )  # shared up to its window
    found = generate_rows(model, rows, 8)
    for row, new in zip(rows, found, strict=True):
        one = hf.generate(torch.tensor([row]), max_new_tokens=8, do_sample=False, pad_token_id=0)[
            0, len(row) :
        ]
        assert new == [int(token) for token in one if int(token) not in end_tokens(model)]
    if family == "gpt_neo" and dtype == torch.float32:
        assert found == [plain_completion(model, row, 8) for row in rows]


def test_side_by_side_interventions_are_not_measured_with(model: ChatModel) -> None:
    assert model.batching is None
    direction = Direction(torch.eye(tiny_models.WIDTH)[0], 1.0, -1, 1)
    generate_each(model, [TEXTS[:2]] * 2, SideBySide([Ablate(direction), None]), 2)
    assert model.batching == "shared"


@pytest.mark.parametrize("family", [*tiny_models.FAMILIES, *tiny_models.SLIDING])
def test_padding_on_the_left_changes_no_logit(family: str) -> None:
    """Right padding and packed rows are compared with prompts run alone in test_forward.py.

    To 1e-5 of the largest logit: sums are taken in another order. (Phi-3's differ by 2e-5 of 6 on
    processors without AVX-512, and by 2e-15 in float64.)
    """
    model = tiny_models.chat_model(family)
    rows = model.tokenize(TEXTS)
    with torch.inference_mode():
        found = read_prompts(model, rows, 8).logits
    alone = torch.stack([last_logits(model.hf, row) for row in rows])
    torch.testing.assert_close(found, alone, atol=1e-5 * float(alone.abs().max()), rtol=0)


def test_interventions_act_at_every_step(model: ChatModel) -> None:
    torch.manual_seed(5)
    vector = torch.randn(tiny_models.WIDTH)
    direction = Direction(vector / vector.norm(), 4.0, -1, 2)
    for intervention in (Ablate(direction), Add(direction, -1.0)):
        with model.apply(intervention):
            expected = [plain_completion(model, ids, 6) for ids in model.tokenize(TEXTS)]
            found = generate(model, TEXTS, 6)
        assert found == [model.tokenizer.decode(ids, skip_special_tokens=True) for ids in expected]
        assert found != generate(model, TEXTS, 6)


def test_rows_that_ended_leave_the_batch(model: ChatModel) -> None:
    often_ending(model)
    lengths = [len(plain_completion(model, ids, 8)) for ids in model.tokenize(TEXTS)]
    generate(model, TEXTS, 8)
    shared = len(model.chat.prefix)
    longest = max(len(ids) for ids in model.tokenize(TEXTS)) - shared
    steps = sum(min(length, 7) for length in lengths)  # the last of 8 tokens is never fed back
    assert model.forward_tokens == shared + len(TEXTS) * longest + steps


@pytest.mark.parametrize("family", ["llama", "mamba"])
def test_rows_end_where_the_caller_says(family: str) -> None:
    model = tiny_models.chat_model(family)
    rows = model.tokenize(TEXTS)
    whole = generate_rows(model, rows, 8)
    stop = whole[0][3]
    before = model.forward_tokens
    found = generate_rows(model, rows, 8, ended=lambda tokens: stop in tokens)
    assert found == [out[: out.index(stop) + 1] if stop in out else out for out in whole]
    assert model.forward_tokens - before < before


@pytest.mark.parametrize("family", ["llama", "mamba"])
def test_what_a_checkpoint_asks_of_generation_does_not_bend_the_argmax(family: str) -> None:
    model = tiny_models.chat_model(family)
    expected = generate(model, TEXTS, 8)
    config = model.hf.generation_config
    assert config is not None
    config.repetition_penalty, config.no_repeat_ngram_size = 5.0, 1
    assert generate(model, TEXTS, 8) == expected
    assert model.hf.generation_config is config


def test_what_prompts_begin_with_in_common_is_read_once(model: ChatModel) -> None:
    shared = model.tokenizer.encode("Question: ", add_special_tokens=False)
    tails = [model.tokenizer.encode(text, add_special_tokens=False) for text in TEXTS]
    rows = [[*shared, *tail] for tail in tails]
    assert generate_rows(model, rows, 1) == [plain_completion(model, row, 1) for row in rows]
    assert model.forward_tokens == len(shared) + len(rows) * max(len(tail) for tail in tails)
    assert generate_rows(model, [shared, shared], 3) == [plain_completion(model, shared, 3)] * 2


@pytest.mark.parametrize("family", ["llama", "gemma2", "mamba"])
def test_completions_come_with_what_followed_their_prompts(family: str) -> None:
    """From the same pass over the prompts, unless the model takes them one by one."""
    model = tiny_models.chat_model(family)
    often_ending(model)
    expected = generate(model, TEXTS, 4)
    for rows in (2, 100):
        model.batch_size.value = rows
        before = model.forward_tokens
        found, logits = generate_and_read(model, TEXTS, 4)
        spent = model.forward_tokens - before
        assert found == expected
        plain = torch.stack([last_logits(model.hf, ids) for ids in model.tokenize(TEXTS)])
        close = 1e-5 * float(plain.abs().max())
        torch.testing.assert_close(logits, plain, atol=close, rtol=0)
        before = model.forward_tokens
        generate(model, TEXTS, 4)
        again = model.forward_tokens - before
        assert (spent == again) == (family != "mamba")


def test_no_prompts_and_model_generate(model: ChatModel) -> None:
    assert generate(model, [], 5) == []
    assert model.generate(TEXTS, 4) == generate(model, TEXTS, 4)
    assert model.generate(TEXTS[:1], 4) == generate(model, TEXTS, 4)[:1]


def test_out_of_memory_halves_the_rows(model: ChatModel, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = generate(model, TEXTS, 4)
    forward = model.hf.forward

    def tight(**arguments: torch.Tensor) -> object:
        if arguments["input_ids"].shape[0] > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(**arguments)

    monkeypatch.setattr(model.hf, "forward", tight)
    assert generate(model, TEXTS, 4) == expected
    assert model.batch_size.value <= 2


def test_out_of_memory_begins_anew_what_was_running(
    model: ChatModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each intervention is told once, with what it would have been told."""
    often_ending(model)
    interventions, _ = sides(model)
    prompts = [TEXTS] * len(interventions)
    expected = generate_each(model, prompts, SideBySide(interventions), 6)
    forward, calls = model.hf.forward, 0

    def tight(**arguments: torch.Tensor) -> object:
        nonlocal calls
        calls += 1
        if calls > 12 and arguments["input_ids"].shape[0] > 3:  # when some have ended already
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(**arguments)

    monkeypatch.setattr(model.hf, "forward", tight)
    model.batch_size.value = 8
    told: dict[int, list[Written]] = {}

    def finished(which: int, texts: list[Written]) -> None:
        assert which not in told
        told[which] = texts

    assert generate_each(model, prompts, SideBySide(interventions), 6, "x", finished) == expected
    assert [told[which] for which in sorted(told)] == expected
    assert model.batch_size.value <= 3


SIDES = ["llama", "gemma2", "gemma3_text", "qwen2_moe", "llama4", "gpt_neo", "mamba"]


def sides(model: ChatModel) -> tuple[list[Ablate | Add | None], list[Any]]:
    """Some of every kind, and each as the oracle does it."""
    random = torch.Generator().manual_seed(5)
    vectors = torch.randn(3, model.sites.d_model, generator=random)
    one, two, three = (Direction(v / v.norm(), 4.0, -1, 1) for v in vectors)
    blocks, writers = model.sites.blocks, model.sites.writers
    written = [*writers, [model.sites.embedding]] if model.sites.embedding_elsewhere else writers

    def added(direction: Direction, norm: float, layer: int = 1) -> Added:
        return Added(model.hf.get_submodule(blocks[layer]), norm * direction.vector)

    return (
        [None, Ablate(one), Add(one, -1.0), Add(two), Ablate(two), Add(three, layer=0)],
        [
            nullcontext,
            lambda: Ablated(model.hf, blocks, written, one.vector),
            lambda: added(one, -4.0),
            lambda: added(two, 4.0),
            lambda: Ablated(model.hf, blocks, written, two.vector),
            lambda: added(three, 4.0, 0),
        ],
    )


@pytest.mark.parametrize("family", SIDES)
def test_rows_side_by_side_are_written_as_each_alone(family: str) -> None:
    """Whatever enters beside whatever, whenever: prompts of many lengths under every kind of
    intervention, in batches of any size, against a plain loop of one prompt at a time.
    """
    model = tiny_models.chat_model(family)
    interventions, plainly = sides(model)
    prompts = [TEXTS, TEXTS[:3], TEXTS[1:], TEXTS[:1], [], TEXTS[2:4]]
    endless = []
    for texts, around in zip(prompts, plainly, strict=True):
        with around():
            endless.append([plain_completion(model, ids, 8) for ids in model.tokenize(texts)])
    assert endless[1] != endless[0][:3]
    tokens = sorted({token for rows in endless for ids in rows for token in ids})

    def cut(ids: list[int], ends: tuple[int, ...]) -> list[int]:
        return list(takewhile(lambda token: token not in ends, ids))

    def different(ends: tuple[int, ...]) -> tuple[bool, int]:
        lengths = {len(cut(ids, ends)) for rows in endless for ids in rows}
        return {0, 8} <= lengths, len(lengths)

    # ends at which rows leave at as many steps as possible, some at once and some never
    ends = max(combinations(tokens, 2), key=different)
    assert different(ends)[0]
    model.hf.generation_config.eos_token_id = list(ends)
    expected = [[cut(ids, ends) for ids in rows] for rows in endless]
    for rows, new in [(1, 8), (2, 8), (3, 8), (5, 8), (100, 8), (4, 1), (4, 2)]:
        model.batch_size.value = rows
        told: list[int] = []
        found = generate_each(
            model,
            prompts,
            SideBySide(interventions),
            new,
            finished=lambda which, texts, told=told: told.append(which),  # type: ignore[misc]
        )
        assert [[one.text for one in some] for some in found] == [
            [model.tokenizer.decode(ids[:new], skip_special_tokens=True) for ids in some]
            for some in expected
        ], rows
        assert sorted(told) == list(range(len(prompts)))


def test_the_batch_stays_full_while_work_is_left(model: ChatModel) -> None:
    """Of the rows that there is room for, at least four of five are taken, and what all prompts
    begin with is read once under each intervention.
    """
    often_ending(model)
    interventions, _ = sides(model)
    texts = [f"{text} {i}" for i in range(20) for text in TEXTS]
    model.batch_size.value = room = 16
    steps: list[int] = []
    starts: list[int] = []
    shared = len(model.chat.prefix)
    forward = model.hf.forward

    def counting(**arguments: Any) -> object:
        rows, width = arguments["input_ids"].shape
        cached = arguments["past_key_values"].get_seq_length()
        if cached == 0:
            starts.append(rows * width)
        elif width == 1:
            steps.append(rows)
        return forward(**arguments)

    batching(model)
    model.hf.forward = counting
    generate_each(model, [texts] * len(interventions), SideBySide(interventions), 8)
    assert sum(starts) == len(interventions) * shared
    full = steps[:-8]  # after the last rows have entered the batch can only thin out
    assert len(full) > 100
    assert sum(full) >= 0.8 * room * len(full)
    assert max(steps) == room


def test_rows_that_were_not_laid_out_are_refused(model: ChatModel) -> None:
    direction = Direction(torch.eye(tiny_models.WIDTH)[0], 1.0, -1, 1)
    side = SideBySide([Ablate(direction), None])
    side.rows([0, 1, 1])
    ids = torch.tensor(model.tokenize(["Hi"]) * 2)
    with (
        pytest.raises(DirectionError, match="2 rows run side by side where 3 were laid out"),
        model.apply(side),
        torch.no_grad(),
    ):
        model.hf(input_ids=ids)


def test_passes_and_steps_are_about_as_many_as_an_estimate_counts(model: ChatModel) -> None:
    """On a device on which every block takes a second, however much it has to do."""
    rows = [
        [1, *row] for row in model.tokenize([f"{text} {i}" for i in range(60) for text in TEXTS])
    ]
    n, new, together = len(rows), 20, 40
    random = Random(0)
    lasts = {i: random.choice([8, new, 12, new, 10]) for i in range(n)}  # 0.7 of new on average
    size = size_of(model.hf, model.hf.config)
    room = Room(size, 0, 4, tokens=768, rows=lambda length: together, keeps=True)
    speed = Speed(math.inf, math.inf, steps=((1, 0.0), (2, 0.0)), block=1.0)
    length = sum(map(len, rows)) / n
    said = _Clock(size, speed, room, 0).seconds(Write(n, new, length)) / size.layers
    calls = 0
    forward = model.hf.forward

    def counting(**arguments: Any) -> object:
        nonlocal calls
        calls += 1
        return forward(**arguments)

    batching(model)
    model.token_budget.value, model.batch_size.value = 768, together
    model.hf.forward = counting
    started: dict[int, tuple[int, Sequence[int]]] = {}

    def ended(tokens: Sequence[int]) -> bool:
        number, _ = started.setdefault(id(tokens), (len(started), tokens))
        return len(tokens) >= lasts[number]

    generate_rows(model, rows, new, ended=ended)
    assert calls == pytest.approx(said, rel=0.1)
