"""The direction along thoughts: where they are among tokens, projections that are known by
construction, and a run that thinks.
"""

import json
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import thinkers
import tiny_models
import torch
from saved import small_config, write_prompts
from thinkers import ANSWER, LOCK, REFUSAL, STYLES, WONT, WOULD, ids_of
from transformers import PreTrainedModel, PreTrainedTokenizerFast

import refusal
from refusal import ChatModel, Completion, Direction, RunFolderError
from refusal.evaluations.thoughts import (
    AlongThought,
    ThoughtText,
    in_tenths,
    project,
    read_along,
    thought_metrics,
    thought_texts,
)
from refusal.model.endings import read_outputs
from refusal.model.thinking_spans import thought_span, written_thought
from refusal.report.data import read_run
from refusal.report.page import report_page

EVERY = [(name, special) for name in STYLES for special in (True, False)]


def random_model(name: str, special: bool) -> ChatModel:
    """A network that writes nothing of use, with a style's tokenizer and template."""
    tok = thinkers.tokenizer(STYLES[name], special)
    return ChatModel(tiny_models.network(vocab_size=len(tok)), tok, thinking="on")


# --- where a thought is


@pytest.mark.parametrize(("name", "special"), EVERY)
def test_the_thought_and_the_answer_are_found_among_the_tokens(name: str, special: bool) -> None:
    model, style = random_model(name, special), STYLES[name]
    tok: Any = model.tokenizer
    for thought, answer in ((WOULD, REFUSAL), (WONT, ANSWER), ("日本", "é")):
        ids = ids_of(tok, f"{style.open}{thought}{style.close}{answer}")
        (text,) = read_outputs(model, [ids], freely=True)
        found = written_thought(model, text)
        assert found is not None
        written, span = found
        assert written == ids
        assert tok.decode(written[span.begin : span.end]) == thought
        assert tok.decode(written[span.answer :]) == answer


def test_without_a_thought_an_end_or_an_answer_there_is_none() -> None:
    model = random_model("qwen3", True)
    for text in ("Sure.", "<think>Hm", "<think>\n\n</think>\n\nYes.", "<think>\nHm\n</think>\n\n"):
        assert written_thought(model, text) is None
    closed = random_model("r1", True)
    assert thought_span(closed, ids_of(closed.tokenizer, "Hm\n</think>\n\nYes.")) == (0, 2, 6)  # type: ignore[arg-type]


# --- tenths


@pytest.mark.parametrize("n", [1, 3, 7, 10, 11, 25, 40])
def test_tenths_are_means_by_the_shares_that_tokens_have_in_them(n: int) -> None:
    values = np.random.default_rng(n).normal(size=n)
    expected = []
    for tenth in range(10):
        low, high = Fraction(tenth * n, 10), Fraction((tenth + 1) * n, 10)
        total = 0.0
        for i, value in enumerate(values):
            inside = min(high, Fraction(i + 1)) - max(low, Fraction(i))
            total += float(max(Fraction(0), inside)) * value
        expected.append(total / (n / 10))
    assert in_tenths(values).tolist() == pytest.approx(expected, abs=1e-12)


# --- projections


def test_projections_at_the_first_block_are_those_of_the_embeddings() -> None:
    """A thought of letters whose embeddings lie 3 along the direction, then 1, then marks at -2:
    it falls from 3 to the newline before the answer.
    """
    model = random_model("qwen3", True)
    tok: Any = model.tokenizer
    unit = torch.zeros(tiny_models.WIDTH)
    unit[5] = 1.0
    along = {"h": 3.0, "l": 1.0, "\n": -2.0}
    weight: Any = model.hf.get_input_embeddings().weight
    for letter, value in along.items():
        (token,) = ids_of(tok, letter)
        weight.data[token, 5] = value
    completion = "<think>\n" + "h" * 18 + "ll" + "\n</think>\n\nSure."
    texts = thought_texts(model, [Completion("a", LOCK, completion, "compliance")])
    (found,) = project(model, texts, {"direction": unit}, 0, "test")
    assert found.tenths == pytest.approx([3.0] * 9 + [1.0], abs=1e-6)
    assert (found.prompt_id, found.tokens) == ("a", 20)
    assert found.before_answer == pytest.approx(-2.0, abs=1e-6)
    assert found.cliff == pytest.approx(5.0, abs=1e-6)


def plain_along(hf: PreTrainedModel, text: ThoughtText, layer: int, unit: torch.Tensor) -> Any:
    """The stream at one layer, prompt by prompt: transformers' own hidden states."""
    with torch.no_grad():
        states = hf(input_ids=torch.tensor([text.ids]), output_hidden_states=True).hidden_states
    values = [float(x) for x in states[layer][0].double() @ unit.double()]
    thought = values[text.begin : text.end]
    tenths = [sum(part) / len(thought) for part in parts(thought)]
    return tenths, values[-1]


def parts(thought: list[float]) -> list[list[float]]:
    each = [value for value in thought for _ in range(10)]
    return [each[i * len(thought) : (i + 1) * len(thought)] for i in range(10)]


def test_many_at_once_are_as_one_by_one_at_any_layer() -> None:
    model = random_model("magistral", True)
    rows = []
    for i, length in enumerate((3, 10, 41, 17)):
        thought = "".join(chr(97 + (i + 7 * j) % 26) for j in range(length))
        written = f"<think>{thought}</think>Fine {i}."
        rows.append(Completion(str(i), f"Question {i}?" * (i + 1), written, "compliance"))
    rows.append(Completion("none", "Why?", "No thought.", "compliance"))
    texts = thought_texts(model, rows)
    assert [text.id for text in texts] == ["0", "1", "2", "3"]
    units = torch.nn.functional.normalize(torch.randn(2, tiny_models.WIDTH), dim=1)
    for layer in (0, 2, tiny_models.LAYERS - 1):
        vectors = {"direction": units[0], "random": units[1]}
        found = project(model, texts, vectors, layer, "test")  # type: ignore[arg-type]
        assert len(found) == 8
        for i, text in enumerate(texts):
            for j, along in enumerate(("direction", "random")):
                one = found[2 * i + j]
                tenths, last = plain_along(model.hf, text, layer, units[j])
                assert (one.prompt_id, one.along) == (text.id, along)
                assert one.tenths == pytest.approx(tenths, abs=2e-5)
                assert one.before_answer == pytest.approx(last, abs=2e-5)


def test_metrics_are_means_over_prompts() -> None:
    rows = [
        AlongThought("a", "direction", 9, (1.0,) * 7 + (4.0, 6.0, 0.0), 1.0),
        AlongThought("b", "direction", 5, (3.0,) * 7 + (2.0, 4.0, 0.0), 3.0),
        AlongThought("a", "random", 9, (0.5,) * 10, 0.5),
    ]
    found = {(m.name, m.condition): m for m in thought_metrics(rows, "harmful")}
    assert found["thought_projection_tenth_1", "direction"].value == 2
    assert found["thought_projection_before_answer", "direction"].value == 2
    cliff = found["thought_cliff", "direction"]
    assert (cliff.value, cliff.n, cliff.set) == (2.0, 2, "harmful")  # 5 - 1 and 3 - 3
    assert cliff.low < 2 < cliff.high
    assert found["thought_cliff", "random"].value == 0


# --- a run


def chain(tok: PreTrainedTokenizerFast, text: str) -> PreTrainedModel:
    """A network that goes on from each token of a text, none of which stands in it twice, with the
    next one, whatever came before; small random writes tell prompts apart.
    """
    ids = [*ids_of(tok, text), thinkers.END]
    assert len(set(ids)) == len(ids)
    hf = tiny_models.network(vocab_size=len(tok), hidden_size=128, num_hidden_layers=4, head_dim=32)
    generator = torch.Generator().manual_seed(0)
    units = torch.nn.functional.normalize(torch.randn(len(tok), 128, generator=generator), dim=1)
    hf.get_input_embeddings().weight.data = units.clone()
    head = 0.1 * torch.randn(len(tok), 128, generator=generator)
    for now, after in pairwise(ids):
        head[after] += units[now]
    hf.get_output_embeddings().weight.data = head
    for name, p in hf.named_parameters():
        if "o_proj" in name or "down_proj" in name:
            p.data *= 0.01
        if "norm" in name:
            p.data.fill_(1.0)
    return hf


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("thoughts")
    tok = thinkers.tokenizer(STYLES["magistral"])
    chain(tok, "[/INST][THINK]abcdefghijklmn[/THINK]Oops.").save_pretrained(folder / "model")
    tok.save_pretrained(folder / "model")
    config = small_config(
        folder / "model",
        write_prompts(folder),
        thinking="on",
        thinking_tokens=30,
        max_new_tokens=8,
        n_test=4,
        figures=("svg",),
    )
    refusal.run(config, folder / "run")
    refusal.run(config.model_copy(update={"thinking": "closed"}), folder / "closed")
    return folder


def test_a_run_that_thinks_measures_the_direction_along_its_thoughts(ran: Path) -> None:
    run = ran / "run"
    model = refusal.load(str(ran / "model"), dtype="float32", thinking="on", thinking_tokens=30)
    direction = Direction.load(run / "direction.safetensors")
    metrics = json.loads((run / "metrics.json").read_text())
    assert not [m for m in metrics if "thought" in m["name"] and m["n"] != 4]
    for label in ("harmful", "harmless"):
        rows = read_along(run / "thoughts" / f"{label}.jsonl")
        own = [row for row in rows if row.along == "direction"]
        lines = (run / "completions" / f"{label}.baseline.jsonl").read_text().splitlines()
        assert [row.tokens for row in own] == [14] * 4
        expected = []
        for row, line in zip(own, map(json.loads, lines), strict=True):
            assert line["completion"] == "<think>abcdefghijklmn</think>Oops."
            (prompt,) = model.tokenize([line["prompt"]], freely=True)
            ids = ids_of(model.tokenizer, "[THINK]abcdefghijklmn[/THINK]")  # type: ignore[arg-type]
            text = ThoughtText("x", (*prompt, *ids), len(prompt) + 1, len(prompt) + 15)
            tenths, last = plain_along(model.hf, text, direction.layer, direction.vector)
            assert row.tenths == pytest.approx(tenths, abs=1e-5)
            assert row.before_answer == pytest.approx(last, abs=1e-5)
            expected.append((tenths[7] + tenths[8]) / 2 - last)
        (cliff,) = (
            m
            for m in metrics
            if (m["name"], m["set"], m["condition"]) == ("thought_cliff", label, "direction")
        )
        assert cliff["value"] == pytest.approx(sum(expected) / 4, abs=1e-5)
    page = report_page(read_run(run))
    assert "The direction along the thought" in page
    assert (run / "figures" / "thoughts.svg").is_file()
    assert "less the value at the last token before the answer" in page


def test_a_run_with_thoughts_closed_has_nothing_of_it(ran: Path) -> None:
    run = ran / "closed"
    assert not (run / "thoughts").exists()
    assert "thought" not in (run / "metrics.json").read_text()
    assert "along the thought" not in report_page(read_run(run))


def test_a_damaged_file_is_said(tmp_path: Path) -> None:
    path = tmp_path / "harmful.jsonl"
    row = {"prompt_id": "a", "along": "direction", "tokens": 3, "before_answer": 1.0}
    path.write_text(json.dumps({**row, "tenths": [1.0] * 9}) + "\n")
    with pytest.raises(RunFolderError, match="line 1, tenths: 9 of them, not 10"):
        read_along(path)
