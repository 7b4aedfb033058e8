"""`refusal chat` as a conversation: what the model reads is the template on the whole list of
messages, replies come as they grow, and projections are of what the block reads.
"""

import io
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import saved
import tiny_models
import torch
from plain import block_inputs

from refusal import Ablate, Add, ChatModel, Direction
from refusal.cli import present as display
from refusal.cli.chat import Talk, converse
from refusal.cli.entry import main
from refusal.core.sampling import GREEDY, Sampling
from refusal.core.text import sanitised
from refusal.core.thinking import split
from refusal.model.reply import Reply, along, reply

LINES = ("Hello", "And then?", "Why?")


@pytest.fixture
def direction() -> Direction:
    torch.manual_seed(5)
    vector = torch.randn(tiny_models.WIDTH)
    return Direction(vector / vector.norm(), 4.0, -2, 2)


@pytest.fixture
def typed(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Lines on a pipe in the place of a terminal."""
    return lambda *lines: monkeypatch.setattr(sys, "stdin", io.StringIO("\n".join(lines)))


def read_by_template(model: ChatModel, messages: list[dict[str, str]]) -> list[int]:
    """Straight from transformers, the whole list at once."""
    text = model.tokenizer.apply_chat_template(
        messages, tokenize=False, add_generation_prompt=True, enable_thinking=False
    )
    return list(model.tokenizer(text, add_special_tokens=False)["input_ids"])


def messages_of(turns: tuple[tuple[str, str], ...], line: str) -> list[dict[str, str]]:
    return [{"role": role, "content": text} for role, text in (*turns, ("user", line))]


def test_every_prompt_is_the_template_on_the_whole_list(
    model: ChatModel, direction: Direction
) -> None:
    talk, made, before = Talk(model, direction, 6), list[Reply](), []
    for line in LINES:
        before.append((talk.turns, line))
        made.append(talk.say(line))
    assert [len(turns) for turns, _ in before] == [0, 2, 4]
    for (turns, line), one in zip(before, made, strict=True):
        assert list(one.prompt) == read_by_template(model, messages_of(turns, line))
    assert [text for role, text in talk.turns if role == "user"] == list(LINES)
    answers = [text for role, text in talk.turns if role == "assistant"]
    assert answers == [split(one.text).answer for one in made]


def test_reset_forgets_and_conditions_do_not(
    model: ChatModel,
    direction: Direction,
    typed: Callable[..., None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    typed("Hello", "/ablate", "And then?", "/reset", "Hello", "/baseline", "/reset", "Hello")
    converse(Talk(model, direction, 6))
    first = model.generate(["Hello"], 6)[0]
    with model.apply(Ablate(direction)):
        question = (("user", "Hello"), ("assistant", split(first).answer), ("user", "And then?"))
        second, third = (reply(model, q, 6, GREEDY).text for q in (question, "Hello"))
    shown = capsys.readouterr()
    for text in (first, second, third, first):
        assert sanitised(text) in shown.out
    assert shown.err.count("projection at layer 2") == 4


@pytest.mark.parametrize("edit", [None, "ablate", "add"])
def test_projections_are_of_what_the_block_reads(
    model: ChatModel, direction: Direction, edit: str | None
) -> None:
    ids = model.tokenize(["Hello there"])[0]
    if edit is None:
        blocks = [model.hf.get_submodule(name) for name in model.sites.blocks]
        expected = block_inputs(model.hf, blocks, ids)[direction.layer] @ direction.vector
        torch.testing.assert_close(along(model, ids, direction), expected, atol=1e-5, rtol=1e-5)
        return
    plain = along(model, ids, direction)
    with model.apply(Ablate(direction) if edit == "ablate" else Add(direction, 1.0)):
        moved = along(model, ids, direction)
    wanted = torch.zeros(len(ids)) if edit == "ablate" else plain + direction.norm
    torch.testing.assert_close(moved, wanted, atol=1e-4, rtol=0)


def test_replies_come_token_by_token_and_add_up(
    model: ChatModel, direction: Direction, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts: list[str] = []
    monkeypatch.setattr(display, "show_part", parts.append)
    talk = Talk(model, direction, 12)
    talk.say("Hello")
    whole = model.generate(["Hello"], 12)[0]
    assert "".join(parts) == f"{whole}\n"
    assert sum(bool(part) for part in parts) > 3


def test_a_temperature_draws_each_question_anew_and_is_repeatable(
    model: ChatModel, direction: Direction
) -> None:
    said = []
    for _ in range(2):
        talk = Talk(model, direction, 8, temperature=1.0)
        for line in ("Hello", "/reset", "Hello"):
            if not talk.command(line):
                talk.say(line)
                said.append(talk.turns[-1][1])
    assert said[0] != said[1]
    assert said[:2] == said[2:]
    assert reply(model, "Hello", 8, Sampling(1.0, 1, 0)).text != model.generate(["Hello"], 8)[0]


def test_what_has_no_room_is_said_and_the_talk_goes_on(
    model: ChatModel,
    direction: Direction,
    typed: Callable[..., None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    typed("Hello", "x" * 600, "/tokens", "And then?")
    converse(talk := Talk(model, direction, 4))
    shown = capsys.readouterr().err
    assert "/reset begins a new conversation" in shown
    assert [text for role, text in talk.turns if role == "user"] == ["Hello", "And then?"]
    assert len([line for line in shown.splitlines() if line[:2] == "  "]) == 4  # a line each token


def test_the_command_reads_a_pipe(
    tmp_path: Path,
    direction: Direction,
    typed: Callable[..., None],
    capfd: pytest.CaptureFixture[str],
) -> None:
    source = saved.save_model(tmp_path / "model", template="chatml")
    direction.save(tmp_path / "d.safetensors")
    typed("Hello", "/add 1", "Hello", "/quit", "never asked")
    more = (
        "--direction",
        str(tmp_path / "d.safetensors"),
        "--max-new-tokens",
        "3",
        "--temperature",
        "1",
    )
    assert main(["chat", str(source), *more]) == 0
    assert capfd.readouterr().err.count("projection at layer 2") == 2
