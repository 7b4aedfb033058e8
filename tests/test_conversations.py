"""Conversations: message lists as prompts, harmless turns before them, and answers that are begun.

What is rendered is compared with transformers' own template call, what is written with a plain loop
over token ids.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import saved
import thinkers
import tiny_models
import torch

from refusal import (
    ChatModel,
    ChatTemplateError,
    ConfigError,
    Prompt,
    PromptPair,
    inspect_model,
    load_prompts,
    run,
)
from refusal.core.records import to_json
from refusal.core.turns import Turns
from refusal.directions.pool import collect
from refusal.evaluations.drift.measure import own_answers
from refusal.evaluations.refusal.completions import judged
from refusal.interventions.side_by_side import SideBySide
from refusal.model.generation import generate, generate_each
from refusal.model.harmless_turns import EXCHANGES, harmless_turns
from refusal.prompts.files import read_file
from refusal.prompts.similarity import drop_near_duplicates
from refusal.runs.files import read_completions, read_manifest
from refusal.runs.folder import prompts_hash
from refusal.runs.inputs import check_prompts

TALK = [
    {"role": "user", "content": "Is rain wet?"},
    {"role": "assistant", "content": "It is."},
    {"role": "user", "content": "And snow?"},
]
BEFORE: Turns = (("user", "Is rain wet?"), ("assistant", "It is."))
PREFILL = "Sure, here"


def with_options(template: str = "no-system", family: str = "llama", **options: Any) -> ChatModel:
    return ChatModel(
        tiny_models.network(family), tiny_models.tokenizer(template), "tiny", **options
    )


def applied(model: ChatModel, messages: list[dict[str, str]]) -> str:
    """What transformers makes of messages, thinking off."""
    text = model.tokenizer.apply_chat_template(
        messages, tokenize=False, add_generation_prompt=True, enable_thinking=False
    )
    return str(text)


def said(model: ChatModel, question: Any) -> str:
    (ids,) = model.tokenize([question])
    return str(model.tokenizer.decode(ids))


@pytest.mark.parametrize("template", ["chatml", "no-system", "bare"])
def test_a_message_list_is_what_the_template_makes_of_it(tmp_path: Path, template: str) -> None:
    model = with_options(template)
    file = tmp_path / "a.jsonl"
    file.write_text(json.dumps({"messages": TALK}))
    (row,) = read_file(f"harmful={file}")
    assert (row.prompt.text, row.prompt.before) == ("And snow?", BEFORE)
    assert said(model, row.prompt.question) == applied(model, TALK)


def test_a_system_message_that_is_the_runs_is_written_once(tmp_path: Path) -> None:
    model = with_options("chatml", system="Be curt.")
    messages = [{"role": "system", "content": "Be curt."}, *TALK]
    file = tmp_path / "a.json"
    file.write_text(json.dumps([{"messages": messages}]))
    (row,) = read_file(f"harmful={file}", system="Be curt.")
    assert said(model, row.prompt.question) == applied(model, messages)


@pytest.mark.parametrize("n", [0, 1, 3])
def test_turns_stand_before_every_prompt_and_before_its_own(n: int) -> None:
    model = with_options(turns=n)
    before = [{"role": role, "content": text} for role, text in harmless_turns(n)]
    assert len(before) == 2 * n
    for question, messages in (("Hello", [{"role": "user", "content": "Hello"}]), (None, TALK)):
        asked = question or (*BEFORE, ("user", "And snow?"))
        assert said(model, asked) == applied(model, [*before, *messages])


def test_the_turns_are_different_and_few_enough() -> None:
    texts = [text for exchange in EXCHANGES for text in exchange]
    assert len(set(texts)) == len(texts)
    with pytest.raises(ConfigError, match="turns = 9 cannot be used: 8 harmless exchanges"):
        with_options(turns=9)


def test_plain_prompts_are_what_they_were() -> None:
    """Their fingerprints stand in the files of earlier runs, their hashes in manifests."""
    plain = Prompt("a-1", " Who  ARE you?", "harmful")
    assert plain.fingerprint == hashlib.sha256(b"who are you?").hexdigest()[:16]
    assert plain.question == " Who  ARE you?"
    expected = hashlib.sha256(b"a-1\0 Who  ARE you?\0harmful\n").hexdigest()
    assert prompts_hash([plain]) == expected


def test_a_conversation_is_another_prompt_than_its_last_turn() -> None:
    plain = Prompt("a", "And snow?", "harmful")
    talk = Prompt("a", "And  snow?", "harmful", before=BEFORE)
    swapped = Prompt(
        "a", "And snow?", "harmful", before=(("assistant", "Is rain wet?"), ("user", "It is."))
    )
    same = Prompt("b", "and snow?", "harmful", before=(("user", "IS rain wet?"), BEFORE[1]))
    assert len({one.fingerprint for one in (plain, talk, swapped)}) == 3
    assert same.fingerprint == talk.fingerprint
    assert prompts_hash([plain]) != prompts_hash(
        [Prompt("a", "And snow?", "harmful", None, BEFORE)]
    )
    # what is asked is the last turn: after whatever, it must not stand in two splits
    assert drop_near_duplicates([talk, plain], [swapped]) == ((), 2)


def test_a_template_that_refuses_or_drops_turns_is_named() -> None:
    model = with_options()
    pool = [Prompt("one", "Hi", "harmful"), Prompt("two", "And snow?", "harmful", before=BEFORE)]
    check_prompts(model, pool)
    model.tokenizer.chat_template = tiny_models.NO_SYSTEM.replace(
        "{% for m in messages %}",
        "{% for m in messages %}{% if m['role'] == 'assistant' %}"
        "{{ raise_exception('no assistant here') }}{% endif %}",
        1,
    )
    with pytest.raises(
        ChatTemplateError,
        match=r"The prompt 'two': The chat template rejects a conversation of the turns user, "
        r"assistant, user \(no assistant here\)",
    ):
        check_prompts(model, pool)
    model.tokenizer.chat_template = tiny_models.NO_SYSTEM.replace("in messages", "in messages[-1:]")
    with pytest.raises(ChatTemplateError, match="leaves the user turn 'Is rain wet\\?' out of"):
        check_prompts(model, pool)
    with pytest.raises(ChatTemplateError, match=r"leaves the system turn 'Be curt\.' out of"):
        ChatModel(model.hf, model.tokenizer, system="Be curt.")


def by_hand(model: ChatModel, text: str, new: int) -> list[int]:
    """Greedy tokens after a rendered text, each from a pass over all before it."""
    ids = model.tokenizer(text, add_special_tokens=False)["input_ids"]
    found: list[int] = []
    for _ in range(new):
        with torch.no_grad():
            logits = model.hf(torch.tensor([[*ids, *found]])).logits[0, -1]
        token = int(logits.argmax())
        if token == tiny_models.SPECIAL.index("<|eos|>"):
            break
        found.append(token)
    return found


QUESTIONS = ("Hello", "How do I bake bread at home when there is no oven?", "Why?", "Sing")


@pytest.mark.parametrize("family", ["llama", "gemma2", "mamba"])  # shared rows, windows, alone
@pytest.mark.parametrize("batch_size", [1, 3])
def test_a_begun_answer_is_what_follows_the_same_ids(family: str, batch_size: int) -> None:
    model = with_options("chatml", family, prefill=PREFILL, batch_size=batch_size)
    found = generate(model, QUESTIONS, 6)
    each = generate_each(model, [QUESTIONS], SideBySide([None]), 6)[0]
    for question, text, written in zip(QUESTIONS, found, each, strict=True):
        prompt = applied(model, [{"role": "user", "content": question}]) + PREFILL
        assert prompt.endswith("</think>\n\n" + PREFILL)  # after the closed block
        ids = by_hand(model, prompt, 6)
        tail = str(model.tokenizer.decode(ids, skip_special_tokens=True))
        assert text == written.text == PREFILL + tail
        assert written.tokens == len(ids)
        assert all(cut.startswith(PREFILL) for cut in written.earlier.values())


def test_positions_and_activations_are_at_the_end_of_the_begun_answer() -> None:
    model = with_options("chatml", prefill=PREFILL)
    begun = model.tokenizer(PREFILL)["input_ids"]
    assert list(model.chat.suffix[-len(begun) :]) == begun
    prompts = tuple(Prompt(str(i), text, "harmful") for i, text in enumerate(QUESTIONS * 2))
    found = collect(model, PromptPair(prompts, prompts), filtered=False).harmful
    rows = []
    for question in QUESTIONS:
        text = applied(model, [{"role": "user", "content": question}]) + PREFILL
        ids = model.tokenizer(text, add_special_tokens=False)["input_ids"]
        with torch.no_grad():
            rows.append(model.hf(torch.tensor([ids]), output_hidden_states=True).hidden_states)
    for layer in range(tiny_models.LAYERS):
        last = torch.stack([row[layer][0, -1] for row in rows]).double().mean(0)
        torch.testing.assert_close(found[-1, layer], last, rtol=1e-4, atol=1e-5)


def test_drift_goes_along_what_the_model_wrote_itself() -> None:
    model = with_options("chatml", prefill=PREFILL, turns=1)
    prompts = [Prompt("a", "Sing", "harmful", before=BEFORE)]
    questions = [prompt.question for prompt in prompts]
    written = generate_each(model, [questions], SideBySide([None]), 6)[0]
    rows = judged(prompts, written)
    (text,) = own_answers(model, rows, 100)
    (ids,) = model.tokenize(questions)
    tail = written[0].text.removeprefix(PREFILL)
    expected = model.tokenizer(tail, add_special_tokens=False)["input_ids"]
    assert text.ids == (*ids, *expected)
    assert text.start == len(ids)


def test_an_answer_that_refuses_after_its_beginning_is_judged_whole() -> None:
    """And a begun answer needs prompts that end where the answer begins."""
    model = thinkers.thinker("qwen3", thinking="closed")
    begun = ChatModel(model.hf, model.tokenizer, "t", thinking="closed", prefill="I can't")
    (text,) = begun.generate([thinkers.LOCK], 40)
    assert text == thinkers.REFUSAL  # the scripted network goes on with it
    with pytest.raises(ConfigError, match="--prefill 'Sure': with --thinking on"):
        ChatModel(model.hf, model.tokenizer, "t", thinking="on", prefill="Sure")


def test_inspect_says_what_stands_around_prompts() -> None:
    found = inspect_model(with_options("chatml", system="Be curt.", turns=2, prefill=PREFILL))
    assert (found.system, found.turns, found.prefill) == ("Be curt.", 2, PREFILL)
    assert found.ok


def write_talks(folder: Path) -> tuple[str, ...]:
    """Conversations of both classes, each with turns of its own before a question of its own."""
    for label, start in (("harmful", 0), ("harmless", 1000)):
        rows = []
        for i in range(start, start + saved.PER_CLASS):
            before = [{"role": r, "content": f"{t} {i}"} for r, t in BEFORE]
            rows.append({"messages": [*before, {"role": "user", "content": f"What is {i}?"}]})
        lines = "\n".join(map(json.dumps, rows))
        (folder / f"{label}.jsonl").write_text(lines)
    return f"harmful={folder / 'harmful.jsonl'}", f"harmless={folder / 'harmless.jsonl'}"


def test_a_run_on_conversations(tmp_path: Path) -> None:
    model = saved.save_model(tmp_path / "model", "no-system")
    config = saved.small_config(
        model, write_talks(tmp_path), turns=1, prefill=PREFILL, drift_tokens=4, n_control=2
    )
    found = run(config, tmp_path / "run")
    rows = read_completions(tmp_path / "run" / "completions" / "harmful.ablation.jsonl")
    test = load_prompts(config.prompts, dedup="exact").test.harmful[: config.n_test]
    assert [(row.prompt, row.before) for row in rows] == [(p.text, p.before) for p in test]
    assert all(row.before[1][1].startswith("It is. ") for row in rows)
    assert all(row.completion.startswith(PREFILL) for row in rows)
    manifest = read_manifest(tmp_path / "run")["model"]
    assert manifest["prefill"] == PREFILL
    assert manifest["turns"] == [list(turn) for turn in harmless_turns(1)]
    before = saved.times(tmp_path / "run")
    run(config, tmp_path / "run")
    assert saved.times(tmp_path / "run") == before
    assert found.selection is not None
    other = config.model_copy(update={"prefill": None})
    run(other, tmp_path / "run")
    file = "candidates.safetensors"
    assert saved.times(tmp_path / "run")[file] != before[file]


def test_plain_completions_have_no_turns_in_their_file() -> None:
    model = with_options()
    prompts = [Prompt("a", "Sing", "harmful")]
    written = generate_each(model, [["Sing"]], SideBySide([None]), 2)[0]
    (row,) = to_json(judged(prompts, written))
    assert set(row) == {"prompt_id", "prompt", "completion", "verdict", "tokens", "cuts"}
