"""The built-in set: sizes, splits, no leakage between splits, and no form that gives the class
away.
"""

import inspect
import json
import random
import re
from collections import Counter
from importlib import resources
from itertools import combinations
from statistics import mean
from typing import Any

import pytest
from plain_similarity import Words, jaccard, near, near_pairs

import refusal

Row = dict[str, Any]
ROWS: list[Row] = [
    json.loads(line)
    for line in resources.files("refusal.prompts")
    .joinpath("builtin.jsonl")
    .read_text("utf-8")
    .split("\n")
    if line
]
KINDS, SPLITS = ("harmful", "harmless", "matched"), ("train", "val", "test")


def of(kind: str, split: str | None = None) -> list[Row]:
    return [row for row in ROWS if row["label"] == kind and split in (None, row["split"])]


def word_set(text: str) -> Words:
    return frozenset(re.findall(r"[a-z0-9']+", text.lower()))


def ending(text: str) -> str:
    return text[-1] if text[-1] in ".?" else "none"


def endings(rows: list[Row]) -> dict[str, float]:
    found = Counter(ending(row["text"]) for row in rows)
    return {end: found[end] / len(rows) for end in (".", "?", "none")}


def test_sizes_and_fixed_splits() -> None:
    sizes = Counter((row["label"], row["split"]) for row in ROWS)
    assert [[sizes[kind, split] for split in SPLITS] for kind in KINDS] == [
        [128, 48, 80],
        [128, 48, 80],
        [64, 32, 32],
    ]
    assert sizes.total() == 640


def test_ids_and_texts_are_unique_and_texts_are_one_tidy_line() -> None:
    assert len({row["id"] for row in ROWS}) == len({row["text"].casefold() for row in ROWS}) == 640
    for row in ROWS:
        assert re.fullmatch(r"[A-Z][ -~]*[A-Za-z0-9.?]", row["text"]), row
        assert "  " not in row["text"], row
        assert 8 <= len(row["text"].split()) <= 24, row


def test_every_category_is_in_every_split_equally_often() -> None:
    for kind, n_categories in (("harmful", 16), ("matched", 16), ("harmless", 16)):
        for split in SPLITS:
            sizes = Counter(row["category"] for row in of(kind, split))
            assert len(sizes) == n_categories, (kind, split)
            assert set(sizes.values()) == {len(of(kind, split)) // n_categories}, (kind, split)
    assert {row["category"] for row in of("harmful")} == {row["category"] for row in of("matched")}


@pytest.mark.parametrize(
    ("kind", "other"), [(kind, kind) for kind in KINDS] + [("matched", "harmless")]
)
def test_no_near_duplicates(kind: str, other: str) -> None:
    """Across splits, as promised; and within a split too, where a repeated prompt would weigh
    double.
    """
    one, two = ([(row["id"], word_set(row["text"])) for row in of(k)] for k in (kind, other))
    assert near_pairs(one, two) == []


def test_a_harmful_prompt_resembles_a_matched_one_of_its_own_split_only() -> None:
    for harmful in of("harmful"):
        for matched in of("matched"):
            if harmful["split"] != matched["split"]:
                assert not near(word_set(harmful["text"]), word_set(matched["text"])), (
                    harmful,
                    matched,
                )


@pytest.mark.parametrize("split", SPLITS)
def test_final_punctuation_does_not_give_the_class_away(split: str) -> None:
    for one, other in combinations(KINDS, 2):
        shares, other_shares = endings(of(one, split)), endings(of(other, split))
        assert all(abs(shares[end] - other_shares[end]) <= 0.03 for end in shares), (
            one,
            shares,
            other,
            other_shares,
        )
    assert min(endings(of("harmful", split)).values()) >= 0.2  # each form is there


@pytest.mark.parametrize("split", SPLITS)
def test_length_and_first_word_do_not_give_the_class_away(split: str) -> None:
    for one, other in combinations(KINDS, 2):
        lengths, other_lengths = (
            [len(row["text"].split()) for row in of(kind, split)] for kind in (one, other)
        )
        assert abs(mean(lengths) - mean(other_lengths)) <= 1.1, (one, other)
    first, other_first = (
        Counter(row["text"].split()[0] for row in of(k, split)) for k in ("harmful", "harmless")
    )
    assert (first - other_first).total() <= 0.05 * first.total(), first - other_first


def test_each_matched_prompt_has_a_harmful_twin_of_its_own() -> None:
    """The most similar harmful prompt of the category and split: same first word and ending,
    similar length.
    """
    twins: dict[str, str] = {}
    for row in of("matched"):
        same = [h for h in of("harmful", row["split"]) if h["category"] == row["category"]]
        similarity = [jaccard(word_set(row["text"]), word_set(h["text"])) for h in same]
        twin = same[similarity.index(max(similarity))]
        assert max(similarity) >= 0.25, (row, twin)
        assert row["pair"] == twin["id"], (row, twin)
        assert ending(row["text"]) == ending(twin["text"]), (row, twin)
        assert row["text"].split()[0] == twin["text"].split()[0], (row, twin)
        assert abs(len(row["text"].split()) - len(twin["text"].split())) <= 2, (row, twin)
        assert twin["id"] not in twins.values(), (row, twin)
        twins[row["id"]] = twin["id"]
    assert len(twins) == 128


def test_loading_gives_the_file_and_removes_nothing() -> None:
    loaded = refusal.load_prompts()
    for split in SPLITS:
        for label in ("harmful", "harmless"):
            pool = getattr(getattr(loaded, split), label)
            expected = {(row["id"], row["text"], row["category"]) for row in of(label, split)}
            assert {(p.id, p.text, p.category) for p in pool} == expected
            assert {p.label for p in pool} == {label}
            assert loaded.counts[f"{label}_{split}"] == len(pool) == len(expected)
    assert {name: n for name, n in loaded.counts.items() if name.startswith("removed") and n} == {}
    assert {(p.id, p.text) for p in loaded.matched} == {
        (row["id"], row["text"]) for row in of("matched")
    }
    assert {p.label for p in loaded.matched} == {"harmless"}


def test_the_seed_alone_decides_the_order() -> None:
    first = refusal.load_prompts("builtin", seed=7)
    random.seed(123)
    assert refusal.load_prompts("builtin", seed=7, dedup="exact") == first
    other = refusal.load_prompts("builtin", seed=8)
    for split in SPLITS:
        one, two = getattr(first, split).harmful, getattr(other, split).harmful
        assert one != two
        assert set(one) == set(two)
    # Pinned: every earlier run's order must stay reproducible.
    assert [p.id for p in refusal.load_prompts(seed=42).train.harmful[:4]] == [
        "harmful-018",
        "harmful-181",
        "harmful-199",
        "harmful-149",
    ]
    assert [p.id for p in first.train.harmful] != [
        row["id"] for row in of("harmful", "train")
    ]  # shuffled at all


def test_unknown_dedup_is_refused() -> None:
    with pytest.raises(refusal.ConfigError, match=r"Unknown dedup 'fuzzy'\. Use near or exact\."):
        inspect.unwrap(refusal.load_prompts)(
            "builtin", dedup="fuzzy"
        )  # past the tests' own type checks


@pytest.mark.parametrize("names", [[], ["builtin", "mine.txt"], ["paper", "builtin"]])
def test_sets_and_files_do_not_mix(names: list[str]) -> None:
    with pytest.raises(
        refusal.PromptError,
        match=r"No prompts were given\. Use|cannot be combined with files .*\. Give",
    ):
        refusal.load_prompts(names)
