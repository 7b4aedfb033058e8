"""Prompts that only look harmful: which halves there are, and that none was trained on."""

from pathlib import Path

import pytest

from refusal import ConfigError, Prompt, PromptError
from refusal.prompts.load import load_prompts, matched_pairs, redealt
from refusal.prompts.over_refusal import load_over_refusal
from refusal.prompts.similarity import words


def test_the_halves_of_the_sets(data: Path) -> None:
    xstest = load_over_refusal("xstest", data_dir=data)
    assert {half: len(prompts) for half, prompts in xstest.items()} == {
        "xstest-safe": 250,
        "xstest-unsafe": 200,
    }
    assert {p.label for p in xstest["xstest-safe"]} == {"harmless"}
    assert {p.label for p in xstest["xstest-unsafe"]} == {"harmful"}
    orbench = load_over_refusal("orbench-hard", n=5, seed=1, data_dir=data)
    assert [len(prompts) for prompts in orbench.values()] == [5]
    assert orbench == load_over_refusal("orbench-hard", n=5, seed=1, data_dir=data)
    assert orbench != load_over_refusal("orbench-hard", n=5, seed=2, data_dir=data)


def test_what_was_trained_on_is_left_out(data: Path) -> None:
    first = load_over_refusal("xstest", data_dir=data)["xstest-safe"][0]
    again = load_over_refusal(
        "xstest", data_dir=data, apart_from=[Prompt("x", first.text.upper(), "harmful")]
    )
    assert len(again["xstest-safe"]) < 250
    assert first.id not in {p.id for p in again["xstest-safe"]}


def test_what_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"Unknown over-refusal set 'xtest'. Use xstest or orbench-hard"
    ):
        load_over_refusal("xtest")
    with pytest.raises(
        PromptError, match=r"orbench_hard.jsonl does not exist. Put .* \(from its authors\)"
    ):
        load_over_refusal("orbench-hard", data_dir=tmp_path)
    with pytest.raises(PromptError, match=r"no pinned address. Give a folder"):
        load_over_refusal("orbench-hard")


def test_other_seeds_deal_train_and_val_anew_and_leave_test_alone() -> None:
    prompts = load_prompts("builtin")
    dealt = redealt(prompts, 1)
    assert dealt.test == prompts.test
    for label in ("harmful", "harmless"):
        before = [*getattr(prompts.train, label), *getattr(prompts.val, label)]
        after = [*getattr(dealt.train, label), *getattr(dealt.val, label)]
        assert sorted(p.id for p in before) == sorted(p.id for p in after)
        assert len(getattr(dealt.train, label)) == len(getattr(prompts.train, label))
        assert set(getattr(dealt.train, label)) != set(getattr(prompts.train, label))
    assert redealt(prompts, 1) == dealt


def test_a_pair_that_is_tested_on_is_left_out_whole() -> None:
    pairs = matched_pairs()
    for tested in (pairs.harmful[3], pairs.harmless[3]):
        left = matched_pairs(apart_from=[tested])
        assert left.harmful == (*pairs.harmful[:3], *pairs.harmful[4:])
        assert left.harmless == (*pairs.harmless[:3], *pairs.harmless[4:])


def test_matched_pairs_share_words_and_differ_in_class() -> None:
    pairs = matched_pairs()
    assert len(pairs.harmful) == len(pairs.harmless) == 96
    assert {p.label for p in pairs.harmful} == {"harmful"}
    overlap = [
        len(words(a.text) & words(b.text)) / len(words(a.text) | words(b.text))
        for a, b in zip(pairs.harmful, pairs.harmless, strict=True)
    ]
    crossed = [
        len(words(a.text) & words(b.text)) / len(words(a.text) | words(b.text))
        for a, b in zip(pairs.harmful, (*pairs.harmless[1:], pairs.harmless[0]), strict=True)
    ]
    assert sum(overlap) > 3 * sum(crossed)
