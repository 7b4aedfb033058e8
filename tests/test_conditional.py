"""Conditional interventions against plain loops that run each prompt alone."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import plain
import planted
import pytest
import shrunk
import tiny_models
import torch
from conftest import TEXTS, make_prompts
from torch import Tensor
from torch.nn.functional import pad

from refusal import Ablate, Add, ChatModel, Direction, Monitor, find_sites
from refusal.core.errors import DirectionError, NonFiniteError
from refusal.core.monitor import Position, Reader
from refusal.core.sampling import Sampling
from refusal.interventions.affine import Affine
from refusal.interventions.conditional import Conditional, Conditioned, Gate, beside
from refusal.interventions.side_by_side import SideBySide
from refusal.interventions.stream import StreamEdit
from refusal.model.batch_size import BatchSize
from refusal.model.forward import last_logits
from refusal.model.generation import generate_each, generate_rows
from refusal.model.hooks import Edit, hooked
from refusal.model.writing import Writer

PROMPTS = TEXTS[:6]
NEW, LAYERS, FIRST = 5, (1, 2), 2  # the later reading layer is where edits may begin
Which = StreamEdit | Conditional | None


def unit(width: int, seed: int) -> Tensor:
    draw = torch.randn(width, generator=torch.Generator().manual_seed(seed))
    found: Tensor = draw / draw.norm()
    return found


def monitor_of(
    model: ChatModel, threshold: float = 0.0, layers: tuple[int, int] = LAYERS
) -> Monitor:
    width = model.sites.d_model
    positions: tuple[Position, ...] = (-1, "instruction")
    readers = []
    for i, (layer, position) in enumerate(zip(layers, positions, strict=True)):
        readers.append(Reader(unit(width, 10 + i).numpy(), layer, position, 0.1, 0.5))
    about = ((0.7, -1.1), 0.05, threshold, 0.1, np.zeros(1), "tiny", "", "")
    return Monitor(readers[0], readers[1], *about)


def logits_of(model: ChatModel, monitor: Monitor, texts: Sequence[str]) -> list[float]:
    """Every prompt alone, the readers written out."""
    blocks = [model.hf.get_submodule(name) for name in model.sites.blocks]
    found = []
    for row in model.tokenize(texts):
        seen = plain.block_inputs(model.hf, blocks, row)
        last, instruction = seen[monitor.refusal.layer][-1], None
        instruction = seen[monitor.harmfulness.layer][-len(model.chat.suffix) - 1]
        z = [
            (float(x.double() @ torch.from_numpy(r.vector).double()) - r.mean) / r.sd
            for x, r in zip((last, instruction), monitor.readers, strict=True)
        ]
        found.append(monitor.weights[0] * z[0] + monitor.weights[1] * z[1] + monitor.bias)
    return found


def halved(model: ChatModel, layers: tuple[int, int] = LAYERS) -> tuple[Gate, list[bool]]:
    """A gate whose threshold lies between the prompts' scores, and which of them fire."""
    monitor = monitor_of(model, layers=layers)
    scores = logits_of(model, monitor, PROMPTS)
    ordered = sorted(scores)
    threshold = (ordered[2] + ordered[3]) / 2
    fires = [score > threshold for score in scores]
    assert sum(fires) == 3
    return gate(model, replace(monitor, threshold=threshold)), fires


def gate(model: ChatModel, monitor: Monitor) -> Gate:
    return Gate(monitor, tuple(model.chat.suffix))


def addition(model: ChatModel, layer: int = FIRST, size: float = 40.0) -> Add:
    return Add(Direction(unit(model.sites.d_model, 3), size, -1, layer))


def written(model: ChatModel, texts: Sequence[str], *edits: Any) -> list[list[int]]:
    """Completions, each prompt by itself."""
    found = []
    for row in model.tokenize(texts):
        with model.apply(*edits):
            found += generate_rows(model, [row], NEW)
    return found


def restricted(edit: StreamEdit, start: int = FIRST) -> SideBySide:
    """An unconditional intervention, from a block on."""
    found = SideBySide([edit], [start])
    return found


@pytest.mark.parametrize("family", ["llama", "gemma2", "qwen3_moe", "gpt2", "mamba"])
def test_it_acts_on_the_prompts_that_fire_and_on_no_others(family: str) -> None:
    model = tiny_models.chat_model(family)
    decided, fires = halved(model)
    add = addition(model)
    changed, unchanged = written(model, PROMPTS, add), written(model, PROMPTS)
    expected = [a if fire else b for a, b, fire in zip(changed, unchanged, fires, strict=True)]
    assert sum(a != b for a, b in zip(changed, unchanged, strict=True)) >= 5
    rows = model.tokenize(PROMPTS)
    with model.apply(Conditional(add, decided)):
        assert generate_rows(model, rows, NEW) == expected
    with model.apply(Conditional(add, decided, unless=True)):
        other = [b if fire else a for a, b, fire in zip(changed, unchanged, fires, strict=True)]
        assert generate_rows(model, rows, NEW) == other
    assert (model.apart, model.watched) == (0, 0)


def both_sides(model: ChatModel, texts: Sequence[str], left: bool) -> dict[str, Tensor]:
    rows = [torch.tensor(row) for row in model.tokenize(texts)]
    width = max(map(len, rows))

    def padded(x: Tensor) -> Tensor:
        more = width - len(x)
        return pad(x, (more, 0) if left else (0, more))

    return {
        "input_ids": torch.stack([padded(row) for row in rows]),
        "attention_mask": torch.stack([padded(torch.ones_like(row)) for row in rows]),
        "position_ids": torch.stack([padded(torch.arange(len(row))) for row in rows]),
    }


def run(model: ChatModel, given: dict[str, Tensor], *edits: Any) -> Tensor:
    with torch.no_grad(), model.apply(*edits):
        logits: Tensor = model.hf(**given).logits
    return logits


@pytest.mark.parametrize("left", [True, False])
def test_always_and_never_are_the_plain_ones_to_the_bit(model: ChatModel, left: bool) -> None:
    given = both_sides(model, PROMPTS, left)
    base, n = run(model, given), len(PROMPTS)
    direction = addition(model).direction
    always, never = (
        gate(model, monitor_of(model, threshold)) for threshold in (-math.inf, math.inf)
    )
    kinds = (Add(direction), Ablate(direction), Ablate(direction, 0.5))
    for edit in (*kinds, Affine(direction, unit(model.sites.d_model, 5))):
        alone = restricted(edit)
        alone.rows([0] * n)
        changed = run(model, given, alone)
        assert not torch.equal(changed, base)
        assert torch.equal(run(model, given, Conditional(edit, always)), changed)
        assert torch.equal(run(model, given, Conditional(edit, never)), base)
        assert torch.equal(run(model, given, Conditional(edit, never, unless=True)), changed)
    add = Add(direction)  # where it acts above the reading layers anyway
    assert torch.equal(run(model, given, Conditional(add, always)), run(model, given, add))


def test_the_side_of_padding_does_not_matter(model: ChatModel) -> None:
    decided, _ = halved(model)
    edit = Conditional(addition(model), decided)
    left, right = (both_sides(model, PROMPTS, side) for side in (True, False))
    ends = right["attention_mask"].sum(1) - 1
    one = run(model, left, edit)[:, -1]
    other = run(model, right, edit)[torch.arange(len(PROMPTS)), ends]
    torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)


def test_a_restricted_ablation_is_the_one_written_out(model: ChatModel) -> None:
    direction = addition(model).direction
    names = list(model.sites.blocks[FIRST:])
    rows = model.tokenize(PROMPTS)
    always = gate(model, monitor_of(model, -math.inf))
    with model.apply(Conditional(Ablate(direction), always)):
        found = last_logits(model, PROMPTS)
    with plain.Ablated(model.hf, names, model.sites.writers[FIRST:], direction.vector):
        expected = torch.stack([plain.last_logits(model.hf, row) for row in rows])
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_with_a_cache_as_without(model: ChatModel) -> None:
    decided, fires = halved(model)
    edit = Conditional(addition(model), decided)
    rows = model.tokenize(PROMPTS)
    with model.apply(edit):
        found = generate_rows(model, rows, NEW)
        for row, tokens in zip(rows, found, strict=True):
            for i, token in enumerate(tokens):  # the prompt's end lies inside what is read
                logits = plain.last_logits(model.hf, [*row, *tokens[:i]])
                assert int(logits.argmax()) == token
    assert any(fires)


@pytest.mark.parametrize("size", [1, 2, 4])
def test_rows_that_come_and_go_keep_their_decision(
    model: ChatModel, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    decided, _ = halved(model)
    edit = Conditional(addition(model), decided)
    alone = written(model, PROMPTS, edit)
    texts = [*PROMPTS, *reversed(PROMPTS)]
    model.batch_size = BatchSize(size)
    lengths = {0: 1, 3: 2, 4: 3}

    def ended(tokens: Sequence[int]) -> bool:  # at different steps
        return len(tokens) >= lengths.get(sum(tokens) % 5, NEW)

    def cut(tokens: list[int]) -> list[int]:
        for n in range(1, len(tokens) + 1):
            if ended(tokens[:n]):
                return tokens[:n]
        return tokens

    kept = []
    own = Writer._kept

    def keeping(self: Writer, rows: Sequence[int], batch: Any) -> list[int]:
        going = own(self, rows, batch)
        kept.append(len(going) < len(rows))
        return going

    monkeypatch.setattr(Writer, "_kept", keeping)
    with model.apply(edit):
        found = generate_rows(model, model.tokenize(texts), NEW, ended=ended)
    assert found == [cut(tokens) for tokens in [*alone, *reversed(alone)]]
    assert any(kept)


def test_side_by_side_each_is_as_alone(model: ChatModel) -> None:
    decided, _ = halved(model)
    add, ablate = addition(model), Ablate(addition(model).direction)
    never = gate(model, monitor_of(model, math.inf, (0, 1)))
    each: list[Which] = [
        None,
        add,
        Conditional(add, decided),
        Conditional(ablate, decided, unless=True),
        ablate,
        Conditional(add, never),
        Conditional(Ablate(add.direction, 2.0), gate(model, monitor_of(model, 0.1, (1, 0)))),
    ]
    expected = []
    for one in each:
        expected.append(written(model, PROMPTS, *([] if one is None else [one])))
    model.batch_size = BatchSize(5)
    found = generate_each(model, [PROMPTS] * len(each), beside(each), NEW)
    texts = [[c.text for c in some] for some in found]
    again = []
    for some in expected:
        again.append([str(model.tokenizer.decode(ids, skip_special_tokens=True)) for ids in some])
    assert [[t.strip() for t in some] for some in texts] == [[t.strip() for t in s] for s in again]
    assert len({str(some) for some in texts}) >= 5
    assert isinstance(beside([None, add]), SideBySide)


def test_samples_of_a_prompt_share_its_decision(model: ChatModel) -> None:
    decided, fires = halved(model)
    add, sampling = addition(model), Sampling(1.0, 3, 7)

    def drawn(one: Which) -> list[str]:
        (some,) = generate_each(model, [PROMPTS], beside([one]), NEW, sampling=sampling)
        return [c.text for c in some]

    changed, unchanged, found = drawn(add), drawn(None), drawn(Conditional(add, decided))
    expected = []
    for i, fire in enumerate(fires):
        expected += (changed if fire else unchanged)[3 * i : 3 * i + 3]
    assert found == expected


def test_passes_have_one_prompt_a_row_meanwhile(model: ChatModel) -> None:
    decided, fires = halved(model)
    add = addition(model)
    rows = model.tokenize(PROMPTS)
    with plain.Added(model.hf.get_submodule(model.sites.blocks[FIRST]), unit_step(add)):
        changed = [plain.last_logits(model.hf, row) for row in rows]
    expected = []
    for row, other, fire in zip(rows, changed, fires, strict=True):
        expected.append(other if fire else plain.last_logits(model.hf, row))
    before = last_logits(model, PROMPTS)
    with model.apply(Conditional(add, decided)):
        found = last_logits(model, PROMPTS)
    torch.testing.assert_close(found, torch.stack(expected), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(last_logits(model, PROMPTS), before)


def unit_step(add: Add) -> Tensor:
    return add.direction.vector * add.direction.norm


def test_what_cannot_be_decided_is_refused(model: ChatModel) -> None:
    decided, _ = halved(model)
    edit = Conditional(addition(model), decided)
    with model.apply(edit), pytest.raises(DirectionError, match="task-chat"):
        model.hf(input_ids=torch.tensor([[5, 6, 7, 8, 9, 10]]))
    with model.apply(edit), pytest.raises(DirectionError, match="token ids"):
        model.hf(inputs_embeds=torch.zeros(1, 3, model.sites.d_model))
    below = Conditional(addition(model, layer=1), decided)
    with pytest.raises(DirectionError, match=r"layer 1.*known from layer 2"), model.apply(below):
        pass
    beyond = Conditional(edit.edit, gate(model, monitor_of(model, 0.0, (1, 99))))
    with pytest.raises(DirectionError, match="layer 99"), model.apply(beyond):
        pass
    with pytest.raises(DirectionError, match="several chat templates"):
        Conditioned([edit, replace(edit, gate=Gate(decided.monitor, (1, 2)))])
    several = Conditioned([edit, None])
    with pytest.raises(DirectionError, match="which intervention"), model.apply(several):
        last_logits(model, PROMPTS)
    (row,) = model.tokenize(PROMPTS[:1])
    with torch.no_grad():
        model.hf.get_parameter("model.embed_tokens.weight")[row[-1]] = torch.nan
    with model.apply(edit), pytest.raises(NonFiniteError):
        plain.last_logits(model.hf, row)


def test_prompts_of_any_length_decide_as_when_alone(model: ChatModel) -> None:
    texts = [p.text for p in make_prompts("harmful", 23)]
    monitor = monitor_of(model)
    scores = logits_of(model, monitor, texts)
    middle = sorted(scores)
    threshold = (middle[11] + middle[12]) / 2
    edit = Conditional(addition(model), gate(model, replace(monitor, threshold=threshold)))
    base = last_logits(model, texts)
    with model.apply(edit):
        found = last_logits(model, texts)
    changed = ((found - base).abs().amax(1) > 1e-3).tolist()
    assert changed == [score > threshold for score in scores]


@pytest.mark.parametrize("family", ["deepseek_v4", "gemma3n_text"])
def test_in_a_stream_of_several_lanes_it_acts_a_block_later(family: str) -> None:
    hf = shrunk.tiny(family)
    sites = find_sites(hf)
    assert sites.lanes is not None
    ids = torch.arange(20).view(2, 10) * 37 % 200 + 5
    ids[:, -2:] = torch.tensor([11, 12])
    readers = (
        Reader(unit(sites.d_model, 4).numpy(), 0, -1, 0.0, 1.0),
        Reader(unit(sites.d_model, 5).numpy(), 0, "instruction", 0.0, 1.0),
    )
    monitor = Monitor(*readers, (1.0, 1.0), 0.0, 0.0, 0.1, np.zeros(1), "", "", "")
    seen: list[Tensor] = []

    def logits(*edits: Any) -> Tensor:
        with torch.no_grad(), hooked([e for one in edits for e in one.edits(hf, sites)]):
            found: Tensor = hf(input_ids=ids, use_cache=False).logits
        return found

    with hooked([Edit(hf.get_submodule(sites.reading(0)), "input", seen.append)]):
        base = logits()
    z = seen[0][:, -1] @ unit(sites.d_model, 4) + seen[0][:, -3] @ unit(sites.d_model, 5)
    assert abs(float(z[0] - z[1])) > 1e-3
    decided = Gate(replace(monitor, threshold=float(z.mean())), (11, 12))
    edit = Ablate(Direction(unit(sites.d_model, 6), 1.0, -1, 1))
    plain_one = SideBySide([edit], [1])
    plain_one.rows([0, 0])
    changed = logits(plain_one)
    assert not torch.equal(changed, base)
    found = logits(Conditional(edit, decided))
    fires = int(z.argmax())
    torch.testing.assert_close(found[fires], changed[fires])
    torch.testing.assert_close(found[1 - fires], base[1 - fires])


def test_a_model_that_refuses_too_much_keeps_the_refusals_at_which_the_monitor_fires() -> None:
    two = planted.planted(2)  # one mark in harmful prompts, another in those that look harmful
    readers = (
        Reader(two.rows[0].numpy(), 1, -1, 0.0, 1.0),
        Reader(two.rows[0].numpy(), 1, "instruction", 0.0, 1.0),
    )
    monitor = Monitor(*readers, (1.0, 1.0), 0.0, 0.5, 0.1, np.zeros(1), "", "", "")
    topics = planted.TOPICS[:4]
    harmful, pseudo, harmless = (
        [f"Describe {topic} {mark}" for topic in topics] for mark in ("@@@@", "####", "....")
    )
    along = [float(two.components(text)[0]) for text in (*harmful, *pseudo)]
    assert min(along[:4]) > 0.5 > max(along[4:])
    direction = Direction(two.rows[0], 1.0, -1, 1, basis=two.rows, row_places=((-1, 1),) * 2)
    edit = Conditional(Ablate(direction), gate(two.model, monitor), unless=True)
    texts = [*harmful, *pseudo, *harmless]
    assert two.model.generate(texts, 3) == [planted.REFUSAL] * 8 + [planted.ANSWER] * 4
    with two.model.apply(edit):
        assert two.model.generate(texts, 3) == [planted.REFUSAL] * 4 + [planted.ANSWER] * 8
    with two.model.apply(Ablate(direction)):
        assert two.model.generate(texts, 3) == [planted.ANSWER] * 12
