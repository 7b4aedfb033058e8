"""The paper's set: the published splits as a reference, and what near-duplicate removal takes out
of them.
"""

import json
import random
from collections.abc import Iterable
from functools import cache
from pathlib import Path

import pytest
from plain_similarity import has_near

import refusal
from refusal import Prompt, PromptSplits
from refusal.prompts.load import Dedup
from refusal.prompts.similarity import words
from refusal.prompts.sources import read_source

LABELS = ("harmful", "harmless")
HARMFUL_TEST = ("jailbreakbench", "harmbench_test", "strongreject")


@cache
def paper(folder: Path, dedup: Dedup, seed: int = 42) -> PromptSplits:
    return refusal.load_prompts("paper", data_dir=folder, dedup=dedup, seed=seed)


def published(data: Path, label: str, split: str) -> set[str]:
    path = data / "reference_splits" / f"{label}_{split}.json"
    return {row["instruction"] for row in json.loads(path.read_text("utf-8"))}


def texts(prompts: Iterable[Prompt]) -> set[str]:
    return {prompt.text for prompt in prompts}


def test_exact_deduplication_gives_the_published_splits(data: Path) -> None:
    loaded = paper(data / "prompts", "exact")
    sizes = [
        [loaded.counts[f"{label}_{split}"] for split in ("train", "val", "test")]
        for label in LABELS
    ]
    assert sizes == [[260, 39, 572], [18793, 6264, 6266]]
    assert texts(loaded.train.harmful) == published(data, "harmful", "train")
    assert texts(loaded.val.harmful) == published(data, "harmful", "val")
    assert texts(loaded.train.harmless) == published(data, "harmless", "train")
    assert texts(loaded.val.harmless) == published(data, "harmless", "val")
    assert texts(loaded.test.harmless) == published(data, "harmless", "test")
    rows = [row for name in HARMFUL_TEST for row in read_source(name, data / "prompts")]
    assert len(rows) == 572
    assert {text for text, _ in rows} == published(data, "harmful", "test")


@pytest.mark.parametrize("dedup", ["near", "exact"])
def test_the_harmful_test_pool_is_jailbreakbench(data: Path, dedup: Dedup) -> None:
    loaded = paper(data / "prompts", dedup)
    assert texts(loaded.test.harmful) == {
        text for text, _ in read_source("jailbreakbench", data / "prompts")
    }
    assert len(texts(loaded.test.harmful)) == len(loaded.test.harmful) == 100
    assert loaded.counts["drawn_from_harmful_test"] == 100
    assert len({p.category for p in loaded.test.harmful}) == 10


def test_harmful_near_duplicates_are_all_removed_and_all_counted(data: Path) -> None:
    """Every pair compared, against all three test benchmarks."""
    exact, loaded = paper(data / "prompts", "exact"), paper(data / "prompts", "near")
    test = {words(text) for name in HARMFUL_TEST for text, _ in read_source(name, data / "prompts")}
    val = {words(text) for text, _ in read_source("harmbench_val", data / "prompts")}
    kept_train = {p for p in exact.train.harmful if not has_near(words(p.text), val | test)}
    kept_val = {p for p in exact.val.harmful if not has_near(words(p.text), test)}
    assert set(loaded.train.harmful) == kept_train
    assert set(loaded.val.harmful) == kept_val
    # What exact duplicates removed already is part of what near-duplicates remove.
    assert (
        loaded.counts["removed_harmful_train"]
        == exact.counts["removed_harmful_train"] + 260 - len(kept_train)
        > 57
    )
    assert (
        loaded.counts["removed_harmful_val"]
        == exact.counts["removed_harmful_val"] + 39 - len(kept_val)
        > 2
    )
    assert (loaded.counts["harmful_train"], loaded.counts["harmful_val"]) == (
        len(kept_train),
        len(kept_val),
    )


def test_harmless_near_duplicates_on_a_sample(data: Path) -> None:
    """A hundred kept prompts have no near-duplicate in a later split; a hundred removed ones each
    have one.
    """
    exact, loaded = paper(data / "prompts", "exact"), paper(data / "prompts", "near")
    test, val = (
        [words(p.text) for p in pool] for pool in (exact.test.harmless, exact.val.harmless)
    )
    for before, after, later in (
        (exact.train.harmless, loaded.train.harmless, [*val, *test]),
        (exact.val.harmless, loaded.val.harmless, test),
    ):
        kept = set(after)
        removed = [p for p in before if p not in kept]
        assert kept < set(before)
        for prompt in random.Random(0).sample(after, 100):
            assert not has_near(words(prompt.text), later), prompt
        for prompt in removed[:100]:
            assert has_near(words(prompt.text), later), prompt
    counts = loaded.counts
    assert counts["removed_harmless_train"] == 18793 - len(loaded.train.harmless) > 0
    assert counts["removed_harmless_val"] == 6264 - len(loaded.val.harmless) > 0
    assert counts["harmless_test"] == len(loaded.test.harmless) == 6266


def test_the_seed_changes_the_order_and_nothing_else(data: Path) -> None:
    loaded, other = paper(data / "prompts", "exact"), paper(data / "prompts", "exact", seed=1)
    assert refusal.load_prompts("paper", data_dir=data / "prompts", dedup="exact") == loaded
    for split in ("train", "val", "test"):
        for label in LABELS:
            one, two = (getattr(getattr(splits, split), label) for splits in (loaded, other))
            assert one != two
            assert set(one) == set(two)
            assert len({p.id for p in one}) == len(one)
