"""Templates, BOS, thinking switch, and the post-instruction tokens found by tokenising."""

import pytest
import tiny_models

from refusal import ChatModel, ChatTemplateError
from refusal.model.chat_template import find_format, render, tokenize


def test_suffix_is_what_the_template_writes_after_the_instruction() -> None:
    tok = tiny_models.tokenizer("no-system")
    assert tok.decode(list(find_format(tok).suffix)) == "<|end|>\n<|start|>model\n"


def test_every_prompt_starts_with_the_prefix_and_ends_with_the_suffix() -> None:
    for template in tiny_models.TEMPLATES:
        tok = tiny_models.tokenizer(template)
        found = find_format(tok)
        for instruction in ("x", "Two words.", "[/INST] <|end|>", "ends in a\nnewline?", "…"):
            ids = tokenize(tok, render(tok, instruction))
            assert tuple(ids[: len(found.prefix)]) == found.prefix
            assert tuple(ids[-len(found.suffix) :]) == found.suffix


def test_bos_is_written_once() -> None:
    tok = tiny_models.tokenizer("no-system")
    assert tokenize(tok, render(tok, "Hello")).count(tok.bos_token_id) == 1
    assert find_format(tok).starts_with_bos
    assert not find_format(tiny_models.tokenizer("chatml")).starts_with_bos


def test_thinking_is_switched_off_where_the_template_can() -> None:
    tok = tiny_models.tokenizer("chatml")
    found = find_format(tok)
    assert found.thinking_switch
    assert str(tok.decode(list(found.suffix))).endswith("<think>\n\n</think>\n\n")
    assert not find_format(tiny_models.tokenizer("bare")).thinking_switch


def test_system_prompt_is_the_templates_own_unless_given() -> None:
    tok = tiny_models.tokenizer("chatml")
    assert "Be of help." in render(tok, "Hello")
    assert "Be of help." not in render(tok, "Hello", "Be curt.")
    assert "Be curt." in tok.decode(list(find_format(tok, "Be curt.").prefix))


def test_template_that_rejects_a_system_role_is_named() -> None:
    with pytest.raises(
        ChatTemplateError, match=r"rejects a system prompt .*System role not supported.*--system"
    ):
        find_format(tiny_models.tokenizer("no-system"), system="Be curt.")


def test_base_model_without_template_is_refused() -> None:
    with pytest.raises(ChatTemplateError, match="no chat template"):
        ChatModel(tiny_models.network(), tiny_models.tokenizer(None))


def test_template_with_nothing_after_the_instruction_is_refused() -> None:
    tok = tiny_models.tokenizer("bare")
    tok.chat_template = "{% for m in messages %}User: {{ m['content'] }}{% endfor %}"
    with pytest.raises(ChatTemplateError, match="No post-instruction tokens"):
        find_format(tok)


PARTS = (
    "{% for m in messages %}<|start|>{{ m['role'] }}\n"
    "{% for part in m['content'] | selectattr('type', 'equalto', 'text') %}{{ part['text'] }}{% "
    "endfor %}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
)


def test_a_template_that_wants_content_in_parts_gets_it() -> None:
    """A vision-language model's: of a plain string it would keep nothing, and say nothing."""
    tok = tiny_models.tokenizer("chatml")
    tok.chat_template = PARTS
    assert render(tok, "Hello", "Be curt.") == (
        "<|start|>system\nBe curt.<|end|>\n<|start|>user\nHello<|end|>\n<|start|>assistant\n"
    )
    assert tok.decode(list(find_format(tok).suffix)) == "<|end|>\n<|start|>assistant\n"


def test_a_template_that_changes_the_instruction_is_left_to_it() -> None:
    tok = tiny_models.tokenizer("bare")
    tok.chat_template = "{% for m in messages %}[{{ m['content'] | string | upper }}]{% endfor %}"
    assert render(tok, "Hello") == "[HELLO]"
