"""Cross-entropy and KL along texts, against a plain loop over prefixes of one text at a time."""

import json
import math
from pathlib import Path

import pytest
import tiny_models
import torch
from plain import last_logits

from refusal import Ablate, Add, ChatModel, Completion, Direction, PromptError, kl_divergence
from refusal.evaluations.drift.measure import (
    ForcedText,
    answers,
    drift_metrics,
    measure_drift,
    own_answers,
    running_text,
)
from refusal.evaluations.drift.texts import read_corpus

TEXTS = {"a": "The sea is wide, and the moon pulls at it.", "b": "Why?", "c": "Ten rivers run " * 4}


def direction_of(model: ChatModel) -> Direction:
    vector = torch.randn(model.sites.d_model, generator=torch.Generator().manual_seed(3))
    return Direction(vector / vector.norm(), 4.0, -1, 1)


@pytest.mark.parametrize("family", ["llama", "gemma2", "falcon", "mamba"])
def test_nats_and_kl_equal_a_plain_loop(family: str) -> None:
    model = tiny_models.chat_model(family)
    direction = direction_of(model)
    edits = {
        "ablation": Ablate(direction),
        "subtraction": Add(direction, -1.0),
        "addition": Add(direction, layer=3),
        "first": Add(direction, layer=0),
    }
    texts = running_text(model, TEXTS, 40) + answers(
        model, [("d", "Sing!", "La la la."), ("e", "Why?", "So.")], 5
    )
    found = measure_drift(model, texts, {name: [edit] for name, edit in edits.items()}, "test")
    for i, text in enumerate(texts):
        base = found["baseline"][i]
        assert len(base.nats) == len(text.ids) - text.start
        assert set(base.kl) == {0.0}
        for k, target in enumerate(text.ids[text.start :]):
            prefix = list(text.ids[: text.start + k])
            plain = last_logits(model.hf, prefix)
            assert base.nats[k] == pytest.approx(
                -float(plain.double().log_softmax(-1)[target]), abs=1e-4
            )
            for name, edit in edits.items():
                with model.apply(edit):
                    changed = last_logits(model.hf, prefix)
                nats = -float(changed.double().log_softmax(-1)[target])
                kl = float(kl_divergence(plain[None], changed[None]))
                assert found[name][i].nats[k] == pytest.approx(nats, abs=1e-4)
                assert found[name][i].kl[k] == pytest.approx(kl, abs=1e-4)


def test_blocks_before_an_addition_are_not_run() -> None:
    model = tiny_models.chat_model()
    texts = running_text(model, TEXTS, 40)
    spent = []
    for edits in ({}, {"addition": [Add(direction_of(model), layer=4)]}):
        before = model.forward_tokens
        measure_drift(model, texts, edits, "test")
        spent.append(model.forward_tokens - before)
    assert spent[1] == spent[0] + spent[0] - spent[0] * 4 // tiny_models.LAYERS


def test_answers_count_only_the_answer_and_running_text_all_but_its_first_token() -> None:
    model = tiny_models.chat_model()
    (pair,) = answers(model, [("x", "Sing!", "La la la la.")], 3)
    prompt = model.tokenize(["Sing!"])[0]
    assert (list(pair.ids[: pair.start]), len(pair.ids) - pair.start) == (prompt, 3)
    assert answers(model, [("x", "Sing!", "")], 3) == []
    texts = running_text(model, {"a": TEXTS["a"], "empty": ""}, 7)
    assert [(t.id, t.start, len(t.ids)) for t in texts] == [("a", 1, 7)]
    own = own_answers(model, [Completion("7", "Sing!", "La la la la.", "compliance")], 3)
    assert own[0].ids == pair.ids


def test_metrics_weigh_tokens_and_pair_texts() -> None:
    model = tiny_models.chat_model()
    texts = running_text(model, TEXTS, 40)
    drifts = measure_drift(model, texts, {"ablation": [Ablate(direction_of(model))]}, "test")
    found = {(m.name, m.condition): m for m in drift_metrics(drifts, "some-text", k=4)}
    total = sum(sum(d.nats) for d in drifts["ablation"]) / sum(
        len(d.nats) for d in drifts["ablation"]
    )
    assert found["cross_entropy", "ablation"].value == pytest.approx(total)
    assert found["perplexity", "ablation"].value == pytest.approx(math.exp(total))
    change = found["cross_entropy_change", "ablation"].value
    assert change == pytest.approx(total - found["cross_entropy", "baseline"].value)
    first = [d.kl[0] for d in drifts["ablation"]]
    assert found["kl_first_token", "ablation"].value == pytest.approx(sum(first) / len(first))
    several = [value for d in drifts["ablation"] for value in d.kl[:4]]
    assert found["kl_first_4_tokens", "ablation"].value == pytest.approx(
        sum(several) / len(several)
    )
    assert all(m.low <= m.value <= m.high and m.n == len(texts) for m in found.values())


def test_doing_nothing_drifts_nowhere() -> None:
    model = tiny_models.chat_model()
    nothing = Direction(torch.zeros(model.sites.d_model), 0.0, -1, 1)
    texts = [ForcedText("a", tuple(range(3, 12)), 1)]
    drifts = measure_drift(model, texts, {"ablation": [Ablate(nothing)]}, "test")
    assert drifts["ablation"][0].nats == drifts["baseline"][0].nats
    assert max(map(abs, drifts["ablation"][0].kl)) < 1e-6


def test_files_of_both_kinds_are_read_and_drawn_by_the_seed(tmp_path: Path) -> None:
    plain = tmp_path / "text" / "book.txt"
    plain.parent.mkdir()
    plain.write_text(
        "\n".join("a line of fifty characters or so, and some more" for _ in range(200))
    )
    book = read_corpus("book.txt", 3, seed=1, data_dir=tmp_path)
    assert (len(book.running), book.pairs) == (3, ())
    assert book == read_corpus(str(plain), 3, seed=1)
    assert book != read_corpus(str(plain), 3, seed=2)
    pairs = tmp_path / "pairs.jsonl"
    rows = [
        {"instruction": "Add", "input": "1 2", "output": "3"},
        {"instruction": "Sing", "output": "La"},
    ]
    rows += [{"instruction": "When?", "context": "In 1937.", "output": "1937"}]
    pairs.write_text("\n".join(map(json.dumps, rows)))
    assert {p[1:] for p in read_corpus(str(pairs), 9).pairs} == {
        ("Add\n\n1 2", "3"),
        ("Sing", "La"),
        ("When?\n\nIn 1937.", "1937"),
    }


def test_texts_of_another_kind_are_refused_and_names_are_no_patterns(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("text\nA b\n")
    with pytest.raises(
        PromptError, match=r"rows\.csv cannot be read as texts: unknown kind of file '\.csv'"
    ):
        read_corpus(str(tmp_path / "rows.csv"), 3)
    for name in ("/nowhere/a.txt", "x" * 5000, "**"):
        with pytest.raises(PromptError, match="There is no text file"):
            read_corpus(name, 3, data_dir=tmp_path)
    (tmp_path / "below").mkdir()
    (tmp_path / "below" / "a[1].txt").write_text("A b")
    assert read_corpus("a[1].txt", 3, data_dir=tmp_path).running == {"a[1]-0": "A b"}


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (None, "no text file"),
        ("", "holds no texts"),
        ("{}", "neither"),
        ("[1", "cannot be read"),
        ("3", "no object"),
        ('{"text": "A", "score": NaN}', "NaN is no JSON number: line 1"),
        ('{"text": "A", "text": "B"}', "'text' stands twice"),
        ('{"text": "A \\ud800"}', "line 1: text holds half of a surrogate pair"),
        ('{"instruction": "A", "system": "B", "output": "C"}', "line 1 has a system prompt"),
        ('{"instruction": "A", "input": ["B"], "output": "C"}', "line 1: input is .* not a text"),
        ("[" * 100_000, "nested too deeply"),
    ],
)
def test_files_that_cannot_be_used_say_why(tmp_path: Path, content: str | None, match: str) -> None:
    path = tmp_path / "rows.jsonl"
    if content is not None:
        path.write_text(content)
    with pytest.raises(PromptError, match=match):
        read_corpus(str(path), 3)


def test_controls_on_some_of_the_texts_are_compared_on_those() -> None:
    model = tiny_models.chat_model()
    texts = running_text(model, TEXTS, 40)
    base = measure_drift(model, texts, {}, "test")
    some = measure_drift(
        model, texts[1:], {"random-1-ablation": [Ablate(direction_of(model))]}, "test"
    )
    drifts = {**base, "random-1-ablation": some["random-1-ablation"]}
    found = {(m.name, m.condition): m for m in drift_metrics(drifts, "some-text")}
    tokens = sum(len(d.nats) for d in base["baseline"][1:])
    after, before = (
        sum(sum(d.nats) for d in rows) for rows in (some["random-1-ablation"], base["baseline"][1:])
    )
    change = found["cross_entropy_change", "random-1-ablation"]
    assert change.value == pytest.approx((after - before) / tokens)
    assert change.n == 2
    assert found["cross_entropy_change", "random-ablation"].value == change.value
