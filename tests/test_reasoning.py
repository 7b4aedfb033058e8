"""``--thinking``: which part is the answer, what it is judged as, where is read, of every style and
for off, closed and on.
"""

from functools import cache

import pytest
import thinkers
import tiny_models
from _pytest.mark.structures import ParameterSet
from thinkers import ANSWER, BREAD, LOCK, REFUSAL, STYLES, TEXTS, WONT, ids_of, prompt

from refusal import ChatModel, Completion, ConfigError, inspect_model, refusal_verdict
from refusal.core.thinking import split
from refusal.directions.refusal_metric import refusal_metric
from refusal.evaluations.drift.measure import own_answers
from refusal.evaluations.refusal.rates import measure
from refusal.model.chat_template import find_format
from refusal.model.forward import last_logits
from refusal.model.thinking_form import find_switch, find_thinking
from refusal.runs.identity import model_identity

# Each way in which marks stand in tokens, in every run of the tests; the other styles in long ones.
QUICK = (("qwen3", True), ("r1", True), ("gpt-oss", True), ("gpt-oss", False))


def case(name: str, special: bool, *more: str) -> ParameterSet:
    """A style's case, slow unless the style is one of ``QUICK``."""
    marks = () if (name, special) in QUICK else (pytest.mark.slow,)
    return pytest.param(name, special, *more, marks=marks)


STYLED = [(name, special) for name in STYLES for special in (True, False)]
EVERY = [case(name, special) for name, special in STYLED]
MODES = [
    case(name, special, mode)
    for name, special in STYLED
    for mode in ("off", "closed", "on")
    if mode != "off" or STYLES[name].switch
]


@cache
def built(name: str, special: bool) -> ChatModel:
    return thinkers.thinker(name, special, thinking="on", thinking_tokens=100)


def again(name: str, special: bool, mode: str | None, thought: int = 100) -> ChatModel:
    """The built network with another option."""
    model = built(name, special)
    wanted: dict[str, object] = {"thinking": mode, "thinking_tokens": thought}
    return ChatModel(model.hf, model.tokenizer, model.name, sites=model.sites, **wanted)  # type: ignore[arg-type]


@pytest.mark.parametrize(("name", "special", "mode"), MODES)
def test_the_answer_and_its_verdict(name: str, special: bool, mode: str) -> None:
    model = again(name, special, mode)
    for (asked, (thought, answer)), refused in zip(TEXTS.items(), (True, False), strict=True):
        (text,) = model.generate([asked], 60)
        found = split(text)
        assert found.answer == answer
        assert found.thought == (thought if mode == "on" else "")
        assert refusal_verdict(asked, text).refused is refused


@pytest.mark.parametrize(("name", "special", "mode"), MODES)
def test_everything_is_read_at_the_first_token_of_the_answer(
    name: str, special: bool, mode: str
) -> None:
    model, style, tok = again(name, special, mode), STYLES[name], built(name, special).tokenizer
    told = {style.switch: mode != "off"} if style.switch else {}
    begin = prompt(tok, LOCK, **told)  # type: ignore[arg-type]
    end = "" if mode == "off" else style.closed
    assert model.tokenize([LOCK]) == [ids_of(tok, begin + end)]  # type: ignore[arg-type]
    if mode != "off":  # the positions hold the closed block
        assert str(tok.decode(list(model.chat.suffix))).endswith(style.closed)
    freely = ids_of(tok, begin) if mode == "on" else model.tokenize([LOCK])[0]  # type: ignore[arg-type]
    assert model.tokenize([LOCK], freely=True) == [freely]
    logits = last_logits(model, [LOCK, BREAD])
    first = [ids_of(tok, answer)[0] for answer in (REFUSAL, ANSWER)]  # type: ignore[arg-type]
    assert logits.argmax(-1).tolist() == first
    refusing, helping = refusal_metric(logits, first[:1]).tolist()
    assert refusing > 5
    assert helping < -5


@pytest.mark.parametrize(("name", "special"), EVERY)
def test_by_default_the_switch_and_else_the_closed_block(name: str, special: bool) -> None:
    model, style = again(name, special, None), STYLES[name]
    assert model.chat.thinking.mode == ("off" if style.switch else "closed")
    assert model.chat.thinking.block == ("" if style.switch else style.closed)
    assert [split(text).answer for text in model.generate([LOCK, BREAD], 60)] == [REFUSAL, ANSWER]
    assert not any(split(text).thought for text in model.generate([LOCK, BREAD], 60))


@pytest.mark.parametrize(("name", "special"), EVERY)
def test_a_thought_that_does_not_end_is_a_verdict_of_its_own(name: str, special: bool) -> None:
    begin = len(ids_of(built(name, special).tokenizer, STYLES[name].open))  # type: ignore[arg-type]
    model = again(name, special, "on", thought=begin + 12)
    rows = []
    for asked, text in zip((LOCK, BREAD), model.generate([LOCK, BREAD], 60), strict=True):
        verdict = refusal_verdict(asked, text)
        assert (verdict.label, verdict.refused) == ("unfinished", False)
        assert not split(text).finished
        rows.append(Completion(asked, asked, text, verdict.label))
    values = {m.name: m.value for m in measure(rows, "harmful", "baseline")}
    assert (values["refusal_rate"], values["degenerate_rate"]) == (0, 0)
    assert values["unfinished_rate"] == 1
    assert own_answers(model, rows, 10) == []


@pytest.mark.parametrize(("name", "special"), EVERY)
def test_the_limits_count_thought_and_answer_apart(name: str, special: bool) -> None:
    model = again(name, special, "on")
    for asked, text in zip((LOCK, BREAD), model.generate([LOCK, BREAD], 12), strict=True):
        thought, answer = TEXTS[asked]
        blank = len(STYLES[name].close) - len(STYLES[name].close.rstrip("\n"))
        assert split(text) == (thought, answer[: 12 - blank].strip(), True)


def test_drift_goes_along_the_answer_after_the_models_own_thought() -> None:
    model, tok = again("gpt-oss", True, "on"), built("gpt-oss", True).tokenizer
    (text,) = model.generate([BREAD], 60)
    (forced,) = own_answers(model, [Completion("a", BREAD, text, "compliance")], 5)
    style = STYLES["gpt-oss"]
    assert tok.decode(list(forced.ids[forced.start :])) == ANSWER[:5]
    assert str(tok.decode(list(forced.ids[: forced.start]))).endswith(
        style.open + WONT + style.close
    )


# --- models that do not think


@pytest.mark.parametrize("name", ["gpt-oss", pytest.param("magistral", marks=pytest.mark.slow)])
def test_a_model_that_knows_marks_and_does_not_use_them_stays_as_it_is(name: str) -> None:
    model = thinkers.thinker(name, thinks=False)
    thinking = model.chat.thinking
    assert (thinking.mode, thinking.block) == (None, "")
    assert "first tokens" in thinking.source
    assert model.tokenize([LOCK]) == [ids_of(model.tokenizer, prompt(model.tokenizer, LOCK))]  # type: ignore[arg-type]
    assert model.generate([LOCK], 60) == [REFUSAL]


def test_a_model_without_marks_is_not_asked_and_nothing_changes() -> None:
    for template in ("no-system", "bare"):
        tok = tiny_models.tokenizer(template)
        assert find_thinking(tok) == find_format(tok).thinking
        model = ChatModel(tiny_models.network(), tok)
        assert model.chat == find_format(tok)
        assert model.batching is None  # nothing was generated
        assert "thinking" not in model_identity(model)
    with pytest.raises(ConfigError, match=r"--thinking closed: neither .* have marks of thinking"):
        ChatModel(tiny_models.network(), tiny_models.tokenizer("bare"), thinking="closed")
    with pytest.raises(ConfigError, match="no switch"):
        ChatModel(tiny_models.network(), tiny_models.tokenizer("bare"), thinking="off")


def test_on_is_part_of_what_a_run_depends_on() -> None:
    closed, on = (model_identity(again("r1", True, mode)) for mode in ("closed", "on"))
    assert (closed.get("thinking"), on.get("thinking")) == (None, "on")
    assert closed["rendered_hash"] == on["rendered_hash"]


# --- what is found, and what is said of it


@pytest.mark.parametrize("name", STYLES)
def test_the_switch_is_what_changes_prompts(name: str) -> None:
    style = STYLES[name]
    found = find_switch(thinkers.tokenizer(style))
    assert found == (({style.switch: False}, {style.switch: True}) if style.switch else None)


def test_a_switch_by_words_and_one_that_is_only_written() -> None:
    tok = thinkers.tokenizer(STYLES["r1"])
    turns = (
        "{% for m in messages %}<|start|>{{ m['role'] }}\n{{ m['content'] }}<|end|>\n{% endfor %}"
    )
    tok.chat_template = (
        turns + "<|start|>assistant\n{% if reasoning_effort == 'none' %}<think>\n\n</think>\n\n"
        "{% else %}<think>\n{% endif %}"
    )
    assert find_switch(tok) == ({"reasoning_effort": "none"}, {})
    tok.chat_template = "Reasoning: {{ reasoning_effort }}\n" + turns + "<|start|>assistant\n"
    assert find_switch(tok) is None
    tok.chat_template = turns + "<|start|>assistant\n{% if not skip_thinking %}<think>\n{% endif %}"
    assert find_switch(tok) == ({"skip_thinking": True}, {"skip_thinking": False})


def test_the_models_first_tokens_where_nothing_else_says() -> None:
    tok = tiny_models.tokenizer("no-system")
    found = find_thinking(tok, "closed", ask=lambda: ["<reasoning>\nOkay", "<reasoning>Hm", "x"])
    assert found.block == "<reasoning>\n\n</reasoning>\n\n"
    assert found.source == "the model's first tokens"
    assert find_thinking(tok, ask=lambda: ["<reasoning>x"] * 3).mode is None  # no marks: not asked


def test_inspect_says_what_was_found() -> None:
    found = inspect_model(again("gpt-oss", True, None))
    assert found.thinking.block == STYLES["gpt-oss"].closed
    assert found.thinking.found == (
        ("<|channel|>analysis<|message|>", "<|channel|>final<|message|>"),
    )
    assert found.thinking.source == "the template"


def test_a_first_token_that_is_the_same_for_every_prompt_is_structural() -> None:
    model = tiny_models.chat_model(template="no-system")
    assert inspect_model(model).structural is None
    model.hf.get_output_embeddings().weight.data.zero_()
    assert inspect_model(model).structural is not None
