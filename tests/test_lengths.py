"""Rates against length from one generation: they must be what separate generations give, token by
token.
"""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import saved
import tiny_models
import torch
from conftest import make_prompts
from transformers import PreTrainedTokenizerFast

from refusal import (
    ChatModel,
    Completion,
    Direction,
    Prompt,
    PromptPair,
    RunFolderError,
    evaluate,
    load,
    run,
)
from refusal.core.lengths import last_step, reading_lengths
from refusal.core.records import Evaluation, Metric, to_json
from refusal.core.stats import rate_change
from refusal.core.storage import write_jsonl
from refusal.detector.verdict import refusal_verdict
from refusal.evaluations.refusal.completions import (
    Wanted,
    generate_together,
    judged,
    judged_again,
)
from refusal.evaluations.refusal.curves import curve, curves, still_rising, without_lengths
from refusal.interventions.conditions import CONDITIONS
from refusal.model.endings import read_at_lengths, read_outputs
from refusal.report.csv_tables import csv_tables
from refusal.report.data import read_run
from refusal.report.figures import figures
from refusal.report.page import report_page
from refusal.report.tables import all_tables
from refusal.report.verdict import verdict
from refusal.runs.files import read_completions, read_metrics

# 40 tokens that answer, then a refusal of eight, and then more; no token stands twice.
OVERVIEW = (
    "The water cycle describes how rivers , lakes and seas lose moisture to air above them ; there "
    "it cools into clouds which drift inland until rain falls over hills where small streams begin "
    "again . Much remains stored deep"
)
REFUSAL = ("\nSorry", ", but", "  I", " can't", " help", " with", " that", ".\n")
AFTER = "Please ask me something else instead , maybe about gardening or music today"


def spelt(text: str, form: str) -> list[str]:
    """The tokens of a text."""
    return [form.format(word) for word in text.split()]


TEXT = [*spelt(OVERVIEW, " {}"), *REFUSAL, *spelt(AFTER, " {} ")]


def ids_of(tokenizer: PreTrainedTokenizerFast, tokens: Sequence[str]) -> list[int]:
    """The id of each token."""
    return [tokenizer.get_vocab()[token] for token in tokens]


def late_model(folder: Path, template: str = "bare") -> Path:
    """Write a model that answers every prompt with ``TEXT``: an overview, then a refusal.

    Its blocks write next to nothing, so a token's embedding arrives as it began, a coordinate of
    its own, and the head reads off it the token that comes next.
    """
    tokenizer = tiny_models.tokenizer(template)
    tokenizer.add_tokens(TEXT)
    chain = ids_of(tokenizer, TEXT)
    assert len(set(chain)) == len(TEXT)
    hf = tiny_models.network(vocab_size=len(tokenizer), hidden_size=128, head_dim=32)
    last = ChatModel(hf, tokenizer).chat.suffix[-1]
    with torch.no_grad():
        for name, weight in hf.named_parameters():
            if "o_proj" in name or "down_proj" in name:
                weight.mul_(1e-3)
        hf.model.norm.weight.fill_(1.0)
        hf.lm_head.weight.mul_(1e-2)
        for place, before in enumerate([last, *chain]):
            hf.model.embed_tokens.weight[before] = torch.eye(128)[place]
            hf.lm_head.weight[[*chain, tokenizer.eos_token_id][place], place] = 1.0
    hf.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def late(tmp_path_factory: pytest.TempPathFactory) -> ChatModel:
    return load(str(late_model(tmp_path_factory.mktemp("late"))), dtype="float32")


def some_direction(width: int) -> Direction:
    vector = torch.randn(width, generator=torch.Generator().manual_seed(1))
    return Direction(vector / vector.norm(), 0.1, -1, 1)


def test_lengths() -> None:
    assert reading_lengths(512) == (8, 16, 32, 48, 64, 96, 128, 192, 256, 384, 512)
    assert reading_lengths(100) == (8, 16, 32, 48, 64, 96, 100)
    assert reading_lengths(8) == (8,)
    assert [reading_lengths(n) for n in (0, 1, 9)] == [(0,), (1,), (8, 9)]
    assert last_step(reading_lengths(512)) == (384, 512)
    assert last_step(reading_lengths(100)) == (64, 100)  # four tokens say nothing
    assert last_step(reading_lengths(48)) == (32, 48)
    assert last_step(reading_lengths(9)) is None


def equal_apart(model: ChatModel, prompts: PromptPair, most: int, lengths: Sequence[int]) -> None:
    """One generation of ``most`` tokens against one of each length, by the same code."""
    direction = some_direction(model.sites.d_model)
    whole = evaluate(model, direction, prompts, max_new_tokens=most)
    for length in lengths:
        apart = evaluate(model, direction, prompts, max_new_tokens=length)
        for key in CONDITIONS:
            for row, other in zip(whole.completions[key], apart.completions[key], strict=True):
                cuts = {cut.tokens: cut for cut in row.cuts}
                text = row.text_at(cuts[length]) if length in cuts else row.completion
                assert text == other.completion
                assert row.verdict_after(length) == other.verdict
            assert same_numbers(whole, apart, key, length)


def same_numbers(whole: Evaluation, apart: Evaluation, key: tuple[str, str], length: int) -> bool:
    found = whole.rate(*key, f"refusal_rate_at_{length}_tokens")
    expected = apart.rate(*key)
    return dataclasses.replace(found, name="refusal_rate") == expected


def test_the_curve_is_that_of_separate_generations(late: ChatModel) -> None:
    prompts = PromptPair(make_prompts("harmful", 2), make_prompts("harmless", 2, 100))
    equal_apart(late, prompts, 96, (8, 32, 48, 96))


def test_also_where_tokens_are_parts_of_characters(pair: PromptPair) -> None:
    """Random bytes: what stands after some tokens is not the beginning of the whole."""
    model = tiny_models.chat_model()
    few = PromptPair(pair.harmful[:3], pair.harmless[:3])
    equal_apart(model, few, 48, (8, 16, 48))


def test_what_stood_earlier_is_kept_exactly() -> None:
    tok = tiny_models.tokenizer()
    tok.add_special_tokens({"additional_special_tokens": ["<think>", "</think>"]})
    model = ChatModel(tiny_models.network(vocab_size=300), tok)
    generator = torch.Generator().manual_seed(0)
    marks = ids_of(tok, ["<think>", "</think>", "<|end|>"])
    rows = []
    for n in (0, 1, 7, 8, 9, 31, 50, 70):
        row = torch.randint(5, 261, (n,), generator=generator).tolist()
        for place, mark in zip((3, 12, 20, 40), (*marks, marks[1]), strict=True):
            if place < n:
                row[place] = mark
        rows.append(row)
    assert [one.text for one in read_at_lengths(model, rows)] == read_outputs(model, rows)
    for row, one in zip(rows, read_at_lengths(model, rows), strict=True):
        assert tuple(one.earlier) == reading_lengths(len(row))[:-1]
        assert list(one.earlier.values()) == read_outputs(
            model, [row[:length] for length in one.earlier]
        )


def test_a_thought_is_no_answer_at_any_length() -> None:
    tok = tiny_models.tokenizer()
    tok.add_special_tokens({"additional_special_tokens": ["<think>", "</think>"]})
    model = ChatModel(tiny_models.network(vocab_size=300), tok)
    wont = "I'm sorry, but I can't help with that request."
    will = "Bread is baked from flour, water, salt and yeast, slowly and with care."
    prompt = Prompt("a", "How do I bake bread?", "harmless")
    for thought, answer, label in ((wont, will, "compliance"), (will, wont, "refusal")):
        ids = tok(f"<think>{thought}</think>{answer}", add_special_tokens=False).input_ids
        (row,) = judged([prompt], read_at_lengths(model, [ids]))
        assert row.verdict == label
        inside = [cut for cut in row.cuts if cut.tokens < len(thought) + 2]
        assert len(inside) > 2
        assert {cut.verdict for cut in inside} == {"unfinished"}


@pytest.fixture(scope="module")
def completions(late: ChatModel) -> dict[int, tuple[Completion, ...]]:
    """Of the late model, by length."""
    wanted = Wanted("harmful", "baseline", some_direction(128), tuple(make_prompts("harmful", 6)))
    found: dict[int, tuple[Completion, ...]] = {}
    for most in (32, 48, 96):
        generate_together(late, [wanted], most, lambda _, rows, n=most: found.update({n: rows}))  # type: ignore[misc]
    return found


def by_name(rows: Sequence[Completion], most: int) -> dict[str, Metric]:
    return {m.name: m for m in curve(rows, "harmful", "baseline", most)}


def test_a_late_refusal_is_seen_where_it_comes(
    completions: dict[int, tuple[Completion, ...]],
) -> None:
    found = by_name(completions[96], 96)
    at = {n: found[f"refusal_rate_at_{n}_tokens"].value for n in reading_lengths(96)}
    assert at == {8: 0, 16: 0, 32: 0, 48: 1, 64: 1, 96: 1}
    assert not still_rising(found["refusal_rate_rise"])
    assert found["delayed_refusal_rate"].value == 1
    assert found["cut_off_rate"].value == 0
    short = by_name(completions[32], 32)
    assert short["cut_off_rate"].value == 1
    assert "delayed_refusal_rate" not in short


def test_while_it_comes_the_rate_is_still_rising(late: ChatModel) -> None:
    wanted = Wanted("harmful", "baseline", some_direction(128), tuple(make_prompts("harmful", 6)))
    found: list[Completion] = []
    generate_together(late, [wanted], 48, lambda _, rows: found.extend(rows))
    numbers = by_name(found, 48)
    assert still_rising(numbers["refusal_rate_rise"])
    assert numbers["refusal_rate_rise"].value == 1


WORDS = {"r": "refusal", "c": "compliance", "p": "partial", "d": "degenerate"}


def planted(*verdicts: str) -> list[dict[str, Any]]:
    """Rows of a file: their verdicts after 8, 16, 32, 48 and 64 tokens are given by letters, and
    one with fewer letters had ended by then.
    """
    lengths, rows = (8, 16, 32, 48, 64), []
    for i, letters in enumerate(verdicts):
        cuts = []
        for tokens, letter in zip(lengths, letters[:-1], strict=False):
            verdict = WORDS[letter]
            cuts.append({"tokens": tokens, "characters": 0, "rest": "", "verdict": verdict})
        about = {
            "prompt_id": str(i),
            "prompt": "?",
            "completion": "",
            "verdict": WORDS[letters[-1]],
        }
        rows.append({**about, "tokens": lengths[len(letters) - 1], "cuts": cuts})
    return rows


def read_back(rows: Sequence[object], folder: Path) -> tuple[Completion, ...]:
    write_jsonl(folder / "rows.jsonl", rows)
    return read_completions(folder / "rows.jsonl")


def test_numbers_of_a_curve(tmp_path: Path) -> None:
    rows = read_back(planted("ccccr", "cccpp", "rcccr", "cr", "crcc", "ddddd", "c"), tmp_path)
    found = by_name(rows, 64)
    counts = [found[f"refusal_rate_at_{n}_tokens"].value * 7 for n in (8, 16, 32, 48, 64)]
    assert counts == pytest.approx([1, 2, 1, 2, 4])
    assert found["refusal_rate_rise"].value == pytest.approx(2 / 7)  # since token 48
    late = found["delayed_refusal_rate"]
    assert (late.value, late.n) == (2 / 4, 4)  # the first two; the third showed a sign at once
    assert found["cut_off_rate"].value == pytest.approx(4 / 7)


def test_the_rule_for_rising_raises_few_false_alarms() -> None:
    def rise(gained: int, lost: int, n: int = 100) -> Metric:
        before = [True] * lost + [False] * (n - lost)
        after = [False] * lost + [True] * gained + [False] * (n - lost - gained)
        estimate = rate_change(before, after)
        values = (estimate.value, estimate.low, estimate.high, n, estimate.p_value)
        return Metric("refusal_rate_rise", "harmful", "baseline", *values)

    assert still_rising(rise(5, 0))
    assert still_rising(rise(5, 0, n=5))
    assert not still_rising(rise(4, 0))
    assert not still_rising(rise(0, 9))
    assert still_rising(rise(9, 2))
    assert not still_rising(rise(8, 2))
    rng = np.random.default_rng(0)
    for changed in (1, 5, 8, 13, 30):  # verdicts that only waver: either way alike
        gained = rng.binomial(changed, 0.5, 2000)
        alarm = {g: still_rising(rise(g, changed - g)) for g in set(gained.tolist())}
        assert np.mean([alarm[g] for g in gained.tolist()]) < 0.06


def test_completions_without_lengths_have_no_curve(tmp_path: Path) -> None:
    row = {"prompt_id": "a", "prompt": "?", "completion": "Yes.", "verdict": "compliance"}
    old = read_back([row], tmp_path)
    key = ("harmful", "baseline")
    assert (old[0].tokens, old[0].cuts) == (None, ())
    assert curves({key: old}, 64) == ()
    assert without_lengths({key: old}) == [key]
    assert without_lengths({("harmful", "random-1-ablation"): old}) == []
    with pytest.raises(ValueError, match="not known"):
        old[0].verdict_after(8)
    known = read_back(planted("ccccr"), tmp_path)
    assert curves({key: known}, 48) == ()  # left from a run with longer completions
    with pytest.raises(ValueError, match="not read after 40 tokens"):
        known[0].verdict_after(40)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"tokens": 200}, r"after \[8, 16, 32, 48\] tokens, not \[8, 16, 32, 48, 64, 96, 128, 192\]"),
        ({"tokens": None}, r"after \[8, 16, 32, 48\] tokens, not \[\]"),
        ({"tokens": -1}, "-1 tokens"),
        ({"cuts": []}, r"after \[\] tokens"),
        ({"characters": 9}, "no 9 characters in a completion of 0"),
        ({"characters": "9"}, "characters: Input should be a valid integer"),
        ({"verdict": "maybe"}, "cuts, row 2, verdict"),
        ({"extra": 1}, "cuts, row 2, extra"),
    ],
)  # fmt: skip
def test_damaged_lengths_are_one_message(
    change: dict[str, object], said: str, tmp_path: Path
) -> None:
    (row,) = json.loads(json.dumps(planted("ccccr")))
    if set(change) <= {"tokens", "cuts"}:
        row.update(change)
    else:
        row["cuts"][1].update(change)
    with pytest.raises(RunFolderError, match=f"line 1, .*{said}"):
        read_back([row], tmp_path)


def test_lengths_are_judged_again_with_the_whole(
    completions: dict[int, tuple[Completion, ...]], tmp_path: Path
) -> None:
    rows = completions[96]
    assert read_back(to_json(rows), tmp_path) == rows == judged_again(rows)
    wrong = dataclasses.replace(rows[0].cuts[-1], verdict="degenerate")
    spoilt = dataclasses.replace(rows[0], cuts=(*rows[0].cuts[:-1], wrong))
    assert judged_again([spoilt]) == (rows[0],)
    for cut in rows[0].cuts:
        assert cut.verdict == refusal_verdict(rows[0].prompt, rows[0].text_at(cut)).label


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """Finished runs of the late model, by the length of completions."""
    base = tmp_path_factory.mktemp("runs")
    source, prompts = late_model(base / "model"), saved.write_prompts(base)
    for most in (48, 96):
        config = saved.small_config(
            source,
            prompts,
            max_new_tokens=most,
            n_test=6,
            controls=1,
            n_control=2,
            refusal_tokens=(TEXT[0],),  # its first token: what the direction may act on
        )
        run(config, base / str(most))
    return {most: base / str(most) for most in (48, 96)}


def test_a_run_says_that_it_still_rises(runs: dict[int, Path]) -> None:
    said = {most: verdict(read_run(path)) for most, path in runs.items()}
    words = "still rises with length (+100 points under baseline"
    assert words in said[48].sentence
    assert "from token 32 to 48" in said[48].sentence
    assert said[48].tone != "clear"
    assert "rises" not in said[96].sentence


def test_a_run_shows_its_curves(runs: dict[int, Path]) -> None:
    metrics = read_metrics(runs[48] / "metrics.json")
    with_curve = {(m.set, m.condition) for m in metrics if m.name == "refusal_rate_at_32_tokens"}
    assert with_curve == set(CONDITIONS)  # none of the controls
    tables = {table.title: table for table in all_tables(metrics)}
    table = tables["Refusal by length, harmful prompts"]
    assert table.columns == ("after", "baseline", "ablation", "subtraction")
    rows = {row[0]: row[1] for row in table.rows}
    assert rows["32 tokens"] == "0–39 (0%)"
    assert rows["48 tokens"] == "61–100 (100%)"
    assert str(rows["32 to 48, points"]).endswith("still rising")
    assert rows["of refusals: first sign after token 32"] == "100%"
    assert rows["not ended by then"] == "100%"
    data = read_run(runs[48])
    drawn = {figure.name: figure for figure in figures(data)}
    assert [line.label for line in drawn["lengths-harmful"].lines] == list(table.columns[1:])  # type: ignore[union-attr]
    assert "Refusal by length" in report_page(data)
    lines = csv_tables(data)["lengths"].splitlines()
    assert lines[0] == "set,condition,tokens,refusal_rate,low,high,n"
    assert len(lines) == 1 + len(CONDITIONS) * len(reading_lengths(48))


def test_a_run_of_an_older_version_says_that_it_has_none(
    runs: dict[int, Path], tmp_path: Path
) -> None:
    data = read_run(runs[48])
    old = {
        key: tuple(dataclasses.replace(row, tokens=None, cuts=()) for row in rows)
        for key, rows in data.completions.items()
    }
    kept = tuple(m for m in data.metrics if "_tokens" not in m.name)
    page = report_page(dataclasses.replace(data, completions=old, metrics=kept))
    assert "Not known of harmful, baseline; harmful, ablation" in page
