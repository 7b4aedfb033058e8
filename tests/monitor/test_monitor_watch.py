"""The monitor as a hook: what it reads during any pass is what it reads in a pass of its own."""

import math
from collections.abc import Sequence

import pytest
import tiny_models
import torch
from monitors import drawn
from torch import Tensor

from refusal import Ablate, ChatModel, Direction, Monitor, MonitorError
from refusal.core.errors import NonFiniteError
from refusal.directions.monitor.reading import score_prompts
from refusal.directions.monitor.watch import watch
from refusal.interventions.side_by_side import SideBySide
from refusal.model.fingerprint import template_fingerprint
from refusal.model.forward import last_logits, packs, plan
from refusal.model.generation import batching, generate_each, generate_rows
from refusal.model.hooks import Edit, hooked
from refusal.model.prompt_ends import prompt_ends

TEXTS = (
    "Sing a song",
    "How do I bake bread at home when there is no oven?",
    "Why?",
    "Why? And why not?",
    "List ten rivers of Europe.",
    "Why?",
)
NEW = 5
FAMILIES = ("llama", "gemma2", "gpt2", "mamba", "mistral-sliding")


def made(family: str = "llama", template: str = "chatml") -> tuple[ChatModel, Monitor]:
    model = tiny_models.chat_model(family, template)
    hashes = {"model_hash": model.weight_hash(), "template_hash": template_fingerprint(model)}
    return model, drawn(model.sites.d_model, (1, 2), model=model.name, **hashes)


def close(one: Tensor, other: Tensor) -> bool:
    return torch.allclose(one, other, atol=3e-4, rtol=3e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_generation_leaves_the_scores_of_a_pass_of_its_own(family: str) -> None:
    model, monitor = made(family)
    own = score_prompts(model, monitor, TEXTS)
    assert float(own.logits[:5].std()) > 1e-3  # prompts differ
    model.batch_size.value = 3  # rows come and go
    plain = model.generate(TEXTS, NEW)
    with watch(model, monitor) as seen:
        assert model.generate(TEXTS, NEW) == plain
    found = seen.of(TEXTS)
    assert close(found.logits, own.logits)
    assert close(found.z, own.z)
    assert close(seen.of(TEXTS[::-1]).logits, own.logits.flip(0))


def test_no_pass_is_added() -> None:
    model, monitor = made()
    batching(model)
    calls: list[int] = []
    handle = model.hf.register_forward_pre_hook(lambda *_: calls.append(1))
    model.watched = 1  # prompts are read whole
    model.generate(TEXTS, NEW)
    model.watched, before = 0, len(calls)
    calls.clear()
    with watch(model, monitor) as seen:
        model.generate(TEXTS, NEW)
    assert len(calls) == before
    seen.of(TEXTS)
    assert len(calls) == before
    handle.remove()
    assert model.watched == 0


def test_packed_rows_and_padded_rows_give_one_score() -> None:
    model, monitor = made()
    own = score_prompts(model, monitor, TEXTS).logits
    assert packs(model)
    assert len(plan(model, model.tokenize(TEXTS))) == 1  # one row, a tree of six prompts
    with watch(model, monitor) as packed:
        last_logits(model, TEXTS)
    assert close(packed.of(TEXTS).logits, own)
    model.packs = False
    with watch(model, monitor) as padded:
        last_logits(model, TEXTS)
    assert close(padded.of(TEXTS).logits, own)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("mask", [True, False])
def test_whoever_calls_the_model_and_however_it_pads(side: str, mask: bool) -> None:
    model, monitor = made()
    own = score_prompts(model, monitor, TEXTS).logits
    rows = model.tokenize(TEXTS)
    width = max(map(len, rows))
    if not mask:  # rows of one length need none
        rows, width = rows[:1], len(rows[0])
    ids, real = (
        torch.zeros(len(rows), width, dtype=torch.long),
        torch.zeros(len(rows), width, dtype=torch.long),
    )
    for i, row in enumerate(rows):
        columns = slice(0, len(row)) if side == "right" else slice(width - len(row), width)
        ids[i, columns], real[i, columns] = torch.tensor(row), 1
    with watch(model, monitor) as seen, torch.no_grad():
        if mask:
            positions = (real.cumsum(1) - 1).clamp_min(0)
            model.hf(input_ids=ids, attention_mask=real, position_ids=positions)
        else:
            model.hf(ids)
    assert close(seen.of(TEXTS[: len(rows)]).logits, own[: len(rows)])


def test_transformers_own_generation_with_its_cache() -> None:
    model, monitor = made()
    own = score_prompts(model, monitor, TEXTS[:1])
    ids = torch.tensor(model.tokenize(TEXTS[:1]))
    for cache in (True, False):
        with watch(model, monitor) as seen:
            model.hf.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=NEW,
                use_cache=cache,
                do_sample=False,
                pad_token_id=0,
            )  # type: ignore[operator]
        assert close(seen.of(TEXTS[:1]).logits, own.logits)


def test_a_prompt_that_begins_like_another_and_the_turns_of_a_conversation() -> None:
    model, monitor = made()
    first = (("user", "Why?"),)
    longer = (*first, ("assistant", "Because."), ("user", "And then?"))
    own = score_prompts(model, monitor, [first, longer])
    with watch(model, monitor) as seen:
        last_logits(model, [longer])
    assert close(seen.of([longer]).logits, own.logits[1:])
    with watch(model, monitor) as seen:
        last_logits(model, [longer, "Why?"])
    assert close(seen.of(["Why?", longer]).logits, own.logits)


def test_scores_are_those_under_the_interventions_around_the_block() -> None:
    model, monitor = made()
    vector = torch.from_numpy(monitor.refusal.vector)
    ablate = Ablate(Direction(vector, 1.0, -1, 1))
    with model.apply(ablate):
        own = score_prompts(model, monitor, TEXTS)
        with watch(model, monitor) as seen:
            model.generate(TEXTS, NEW)
    assert close(seen.of(TEXTS).logits, own.logits)
    centre = -monitor.refusal.mean / monitor.refusal.sd
    assert close(
        own.z[:, 0], torch.full((len(TEXTS),), centre)
    )  # ablated: nothing along it is left
    assert not close(own.logits, score_prompts(model, monitor, TEXTS).logits)


def test_rows_side_by_side_are_watched_too() -> None:
    model, monitor = made()
    directions = [Direction(x / x.norm(), 1.0, -1, 1) for x in torch.randn(2, model.sites.d_model)]
    beside = SideBySide([Ablate(one) for one in directions])
    with watch(model, monitor) as seen:
        generate_each(model, [TEXTS[:2], TEXTS[2:3]], beside, NEW)
    with model.apply(Ablate(directions[1])):
        own = score_prompts(model, monitor, TEXTS[2:3])
    assert close(seen.of(TEXTS[2:3]).logits, own.logits)


def test_what_was_not_read_is_said() -> None:
    model, monitor = made()
    with watch(model, monitor) as seen:
        model.generate(TEXTS[:1], NEW)
    with pytest.raises(MonitorError, match=r"1 of 2 prompts were not read whole .* 'List ten"):
        seen.of([TEXTS[0], TEXTS[4]])
    assert seen.of([]).logits.shape == (0,)
    seen.forget()
    with pytest.raises(MonitorError):
        seen.of(TEXTS[:1])


def test_what_is_not_finite_is_no_score() -> None:
    """NaN lies above no threshold: without a word it would be a prompt that does not fire."""
    model, monitor = made()
    block = model.hf.get_submodule(model.sites.blocks[0])
    broken = hooked([Edit(block, "input", lambda x: x * math.nan)])
    with watch(model, monitor) as seen, broken, torch.no_grad():
        model.hf(input_ids=torch.tensor(model.tokenize(TEXTS[:1])))
    with pytest.raises(NonFiniteError, match="float32"):
        seen.of(TEXTS[:1])


def test_another_model_is_not_watched_and_nothing_stays_behind() -> None:
    model, monitor = made()
    other = tiny_models.chat_model(seed=1)
    with pytest.raises(MonitorError, match="weights"), watch(other, monitor):
        pass
    with pytest.raises(ZeroDivisionError), watch(model, monitor):
        _ = 1 / 0
    assert model.watched == 0
    assert not any(module._forward_pre_hooks for module in model.hf.modules())


def test_a_continued_prompt_is_read_where_the_prompt_ends() -> None:
    """Prompt and answer in one pass, as when an answer's likelihood is asked for."""
    model, monitor = made()
    own = score_prompts(model, monitor, TEXTS[:1])
    row = model.tokenize(TEXTS[:1])[0] + [7, 8, 9]
    with watch(model, monitor) as seen, torch.no_grad():
        model.hf(input_ids=torch.tensor([row]))
    assert close(seen.of(TEXTS[:1]).logits, own.logits)


SUFFIX = (8, 9)


def ends(
    ids: Sequence[Sequence[int]], mask: object = None, **more: object
) -> list[tuple[int, tuple[int, ...]]]:
    found = prompt_ends(
        (), {"input_ids": torch.tensor(ids), "attention_mask": mask, **more}, SUFFIX
    )
    return [(end.row, end.path) for end in found]


def test_where_prompts_end_by_hand() -> None:
    right = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])
    assert ends([[5, 8, 9, 8, 9], [5, 6, 7, 8, 9]], right) == [(0, (0, 1, 2)), (1, (0, 1, 2, 3, 4))]
    left = torch.tensor([[0, 0, 1, 1, 1]])
    assert ends([[8, 9, 5, 8, 9]], left) == [(0, (2, 3, 4))]
    assert ends([[8, 9]]) == []  # no instruction before it
    assert ends([[5, 8, 9]], torch.ones(1, 7)) == []  # four tokens are in a cache already
    assert ends([[5, 8, 9, 5, 8, 9]]) == [(0, (0, 1, 2)), (0, (0, 1, 2, 3, 4, 5))]
    # a tree: 5 with two continuations, 8 9 and 6 8 9
    sees = torch.tensor(
        [
            [1, 0, 0, 0, 0, 0],
            [1, 1, 0, 0, 0, 0],
            [1, 1, 1, 0, 0, 0],
            [1, 0, 0, 1, 0, 0],
            [1, 0, 0, 1, 1, 0],
            [1, 0, 0, 1, 1, 1],
        ]
    ).bool()
    additive = torch.zeros(1, 1, 6, 6).masked_fill(~sees, -1e9)
    tree = [[5, 8, 9, 6, 8, 9]]
    for mask in (sees[None, None], additive):
        assert ends(tree, mask) == [(0, (0, 1, 2)), (0, (0, 3, 4, 5))]
    assert prompt_ends((), {"inputs_embeds": torch.ones(1, 3, 4)}, SUFFIX) == []
    assert prompt_ends((torch.tensor([[5, 8, 9]]),), {}, SUFFIX)[0].ids == (5, 8, 9)


def test_rows_that_share_a_start_are_read_whole_only_while_watched() -> None:
    model, monitor = made()
    rows = model.tokenize(TEXTS)
    batching(model)
    before = model.forward_tokens
    generate_rows(model, rows, 1)
    shared, before = model.forward_tokens - before, model.forward_tokens
    with watch(model, monitor):
        generate_rows(model, rows, 1)
    assert model.forward_tokens - before > shared
