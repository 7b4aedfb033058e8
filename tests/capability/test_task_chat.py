"""``--task-chat``: lm-eval writes conversations as the model's own prompts are written, thoughts
switched off or closed.
"""

import pytest
import thinkers
import tiny_models
from thinkers import LOCK, STYLES, ids_of

from refusal import ChatModel
from refusal.evaluations.capability.shared import _ending, make_harness

MODES = [
    (name, mode)
    for name in STYLES
    for mode in ("off", "closed", "on")
    if mode != "off" or STYLES[name].switch
]


def model_of(name: str, mode: str) -> ChatModel:
    tok = thinkers.tokenizer(STYLES[name])
    return ChatModel(tiny_models.network(vocab_size=len(tok)), tok, thinking=mode)  # type: ignore[arg-type]


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize(("name", "mode"), MODES)
def test_a_question_is_the_runs_own_prompt(name: str, mode: str, exact: bool) -> None:
    model = model_of(name, mode)
    before = model.tokenizer.chat_template
    harness = make_harness(model, "test", exact, None)
    text = harness.apply_chat_template([{"role": "user", "content": LOCK}])
    assert [ids_of(model.tokenizer, text)] == model.tokenize([LOCK])  # type: ignore[arg-type]
    assert model.tokenizer.chat_template == before


def test_worked_examples_have_no_closed_thought_but_the_question_has() -> None:
    model = model_of("granite", "closed")
    harness = make_harness(model, "test", False, None)
    turns = [
        {"role": "user", "content": "1 + 1?"},
        {"role": "assistant", "content": "2"},
        {"role": "user", "content": "1 + 2?"},
    ]
    text = harness.apply_chat_template(turns)
    assert text.endswith(STYLES["granite"].closed)
    assert text.count("</think>") == 2  # one of them in this template's own words
    begun = harness.apply_chat_template(turns[:2], add_generation_prompt=False)
    assert not begun.endswith(STYLES["granite"].closed)


def test_whatever_a_block_holds_is_written_as_it_is() -> None:
    tok = tiny_models.tokenizer("chatml")
    plain = thinkers.prompt(tok, LOCK)
    template = str(tok.chat_template)
    for block in ("<think>\n\n</think>\n\n", "it's {{ odd }} \\n 日本 😀{% x %}\n"):
        tok.chat_template = _ending(template + "\n", block)
        assert thinkers.prompt(tok, LOCK) == plain + block
    assert _ending(template, "") == template
