"""The prefix filter finds exactly what comparing every pair finds."""

import random
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from plain_similarity import has_near, jaccard

from refusal import Prompt
from refusal.core.progress import Advance, listening
from refusal.prompts import similarity
from refusal.prompts.similarity import (
    drop_exact_duplicates,
    drop_identical_texts,
    drop_near_duplicates,
    words,
)

# Few letters, so that similar sets are common; up to 24, so that sizes occur at which a product
# rounds.
word_sets = st.lists(
    st.frozensets(st.sampled_from("abcdefghijklmnopqrstuvwx"), min_size=1), max_size=8
)
# Every threshold is one that some pair of sets meets exactly.
thresholds = st.integers(1, 24).flatmap(
    lambda union: st.integers(1, union).map(lambda shared: shared / union)
)


def as_prompts(groups: list[frozenset[str]]) -> list[Prompt]:
    return [Prompt(str(i), " ".join(sorted(group)), "harmless") for i, group in enumerate(groups)]


@pytest.fixture(params=["by rarest words", "by signatures"], scope="module", autouse=True)
def way(request: pytest.FixtureRequest) -> Iterator[None]:
    """Both ways of looking must find the same: the second takes over where the first has too much
    to compare.
    """
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "by signatures":
            patch.setattr(similarity, "FEW", -1_000_000)
        yield


@given(word_sets, word_sets, thresholds)
@example(
    [frozenset("abcdefghijklmnopqrst")], [frozenset("klmnopqrstj")], 0.55
)  # 0.55 * 20 rounds above 11
@example([frozenset("abcde")], [frozenset("abc")], 0.6)
def test_the_filter_equals_comparing_every_pair(
    groups: list[frozenset[str]], others: list[frozenset[str]], threshold: float
) -> None:
    prompts = as_prompts(groups)
    expected = tuple(
        p
        for p, group in zip(prompts, groups, strict=True)
        if not has_near(group, others, threshold)
    )
    kept, removed = drop_near_duplicates(prompts, as_prompts(others), threshold)
    assert kept == expected
    assert removed == len(prompts) - len(expected)


def test_a_pair_exactly_at_the_threshold_is_a_near_duplicate() -> None:
    at, below = (
        Prompt("a", "one two three four five", "harmless"),
        Prompt("b", "one two six seven", "harmless"),
    )
    other = Prompt("c", "one two three", "harmless")
    assert jaccard(words(at.text), words(other.text)) == 0.6
    assert drop_near_duplicates([at, below], [other]) == ((below,), 1)


def test_every_size_at_every_exact_threshold() -> None:
    """Subsets of one set: the similarity is a quotient of two sizes, and equal to the threshold."""
    letters = [f"w{i}" for i in range(40)]
    for union in range(1, 41):
        for shared in range(1, union + 1):
            whole, part = (Prompt("p", " ".join(letters[:n]), "harmless") for n in (union, shared))
            for one, other in ((whole, part), (part, whole)):
                assert drop_near_duplicates([one], [other], shared / union) == ((), 1), (
                    union,
                    shared,
                )


def test_words_ignore_case_and_punctuation_and_keep_contractions() -> None:
    assert words("Don't STOP, don't 'stop'!") == {"don't", "stop"}
    assert words("snake_case É1") == {"snake", "case", "é1"}
    assert words("???") == {"???"}
    assert words("???") != words("!!!")


def test_exact_duplicates_are_the_same_whatever_their_case_and_identical_ones_are_not() -> None:
    prompts = [
        Prompt(i, text, "harmless") for i, text in (("a", "Sing."), ("b", "sing."), ("c", "sing"))
    ]
    other = [Prompt("d", "Sing.", "harmless")]
    assert drop_identical_texts(prompts, other) == ((prompts[1], prompts[2]), 1)
    assert drop_exact_duplicates(prompts, other) == ((prompts[2],), 2)
    assert drop_near_duplicates(prompts, other) == ((), 3)


def test_many_prompts_of_few_words() -> None:
    """Both ways take turns, and more words than a signature has bits fall onto each other."""
    draw = random.Random(0)
    groups = [
        frozenset(f"w{n}" for n in draw.sample(range(250), draw.randint(1, 30))) for _ in range(300)
    ]
    groups += [
        frozenset(f"w{n}" for n in draw.sample(range(12), draw.randint(1, 9))) for _ in range(300)
    ]
    groups += [group - {min(group)} | {"other"} for group in groups[:100]]
    draw.shuffle(groups)
    first, second = groups[:400], groups[400:]
    kept, removed = drop_near_duplicates(as_prompts(first), as_prompts(second))
    expected = [str(i) for i, group in enumerate(first) if not has_near(group, second)]
    assert [p.id for p in kept] == expected
    assert 0 < removed < 400


def test_progress_adds_up() -> None:
    steps: list[int] = []

    @contextmanager
    def listener(name: str, total: int, unit: str) -> Iterator[Advance]:
        steps.append(-total)
        yield steps.append

    with listening(listener):
        drop_near_duplicates(as_prompts([frozenset("ab")] * 1234), as_prompts([frozenset("cd")]))
    assert sum(steps) == 0
    assert len(steps) > 3
