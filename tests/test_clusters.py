"""Rates over samples: with one sample a prompt, or with samples that all agree, they are the plain
ones; intervals cover what they say, and naive ones do not.
"""

from itertools import product

import numpy as np
import pytest

from refusal.core import clusters, stats
from refusal.core.stats import Accuracy

ACCURACY = Accuracy(90, 10, 80, 20)
Side = list[list[bool]]


def drawn(chances: np.ndarray, samples: int, rng: np.random.Generator) -> Side:
    """So many answers of each prompt, which refuses with its own chance."""
    return [(rng.random(samples) < chance).tolist() for chance in chances]


@pytest.mark.parametrize("samples", [1, 2, 5])
@pytest.mark.parametrize("seed", range(6))
def test_samples_that_agree_count_as_one(samples: int, seed: int) -> None:
    """What is said five times says nothing more: value, bounds and p-value are those of `stats`."""
    rng = np.random.default_rng(seed)
    before = (rng.random(23) < 0.7).tolist()
    after = [bool(b and rng.random() < 0.6) or bool(rng.random() < 0.1) for b in before]
    first, second = ([[hit] * samples for hit in side] for side in (before, after))
    pairs = (
        (clusters.rate(first), stats.rate(before)),
        (clusters.rate_change(first, second), stats.rate_change(before, after)),
        (clusters.corrected_rate(first, ACCURACY), stats.corrected_rate(sum(before), 23, ACCURACY)),
        (
            clusters.corrected_change(first, second, ACCURACY),
            stats.corrected_change(before, after, ACCURACY),
        ),
    )
    for found, expected in pairs:
        assert found is not None
        assert expected is not None
        for name in ("value", "low", "high", "p_value"):
            one, other = getattr(found, name), getattr(expected, name)
            assert one == (other if samples == 1 else pytest.approx(other, abs=1e-12)), name


@pytest.mark.parametrize("hit", [False, True])
def test_where_nothing_differs_the_interval_is_that_of_the_prompts(hit: bool) -> None:
    found, expected = clusters.rate([[hit] * 8] * 20), stats.rate([hit] * 20)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))
    unchanged = clusters.rate_change([[hit] * 8] * 20, [[hit] * 8] * 20)
    assert unchanged.p_value == 1
    assert unchanged.high == pytest.approx(stats.rate_change([hit] * 20, [hit] * 20).high)


def test_a_first_hit_hardly_shrinks_the_interval() -> None:
    """Of one hit alone nobody knows how far samples agree."""
    none, one = [[False] * 10] * 40, [[True] + [False] * 9] + [[False] * 10] * 39
    assert clusters.rate(one).high > 0.95 * clusters.rate(none).high


def coverage(alpha: float, beta: float, samples: int, prompts: int = 40) -> tuple[float, float]:
    """How often the clustered and the naive interval hold the true share."""
    rng, truth, runs = np.random.default_rng(0), alpha / (alpha + beta), 600
    held = np.zeros(2)
    for _ in range(runs):
        side = drawn(rng.beta(alpha, beta, prompts), samples, rng)
        naive = stats.rate([hit for answers in side for hit in answers])
        held += [e.low <= truth <= e.high for e in (clusters.rate(side), naive)]
    clustered, plain = held / runs
    return float(clustered), float(plain)


@pytest.mark.parametrize(("alpha", "beta"), [(0.3, 0.3), (1.0, 3.0), (0.2, 1.8)])
def test_clustered_intervals_cover_and_naive_ones_do_not(alpha: float, beta: float) -> None:
    clustered, naive = coverage(alpha, beta, samples=8)
    assert clustered >= 0.92
    assert naive < 0.85


def test_samples_that_have_nothing_in_common_count_each() -> None:
    rng = np.random.default_rng(1)
    side = drawn(np.full(200, 0.3), 5, rng)
    share, plain = clusters.rate(side), stats.rate([hit for answers in side for hit in answers])
    assert 1 <= (share.high - share.low) / (plain.high - plain.low) < 1.12


def test_clustered_changes_cover_and_naive_ones_do_not() -> None:
    """Prompts differ in what a condition does to them; the mean change is what is asked for."""
    rng, runs = np.random.default_rng(2), 500
    held = np.zeros(2)
    for _ in range(runs):
        easy = rng.random(40) < 0.5  # of half the prompts refusal falls from 0.9 to 0.1
        before = drawn(np.where(easy, 0.9, 0.8), 6, rng)
        after = drawn(np.where(easy, 0.1, 0.8), 6, rng)
        flat = [[hit for answers in side for hit in answers] for side in (before, after)]
        found = clusters.rate_change(before, after), stats.rate_change(*flat)
        held += [each.low <= -0.4 <= each.high for each in found]
    clustered, naive = held / runs
    assert clustered >= 0.92
    assert naive < 0.9


def test_the_p_value_counts_every_swap() -> None:
    rng = np.random.default_rng(3)
    before, after = (drawn(rng.random(9), n, rng) for n in (3, 2))
    apart = [sum(a) / len(a) - sum(b) / len(b) for b, a in zip(before, after, strict=True)]
    sums = [
        abs(sum(s * d for s, d in zip(signs, apart, strict=True)))
        for signs in product((-1, 1), repeat=9)
    ]
    expected = np.mean([each >= abs(sum(apart)) - 1e-12 for each in sums])
    assert clusters.rate_change(before, after).p_value == pytest.approx(expected)


def test_a_change_may_be_between_one_answer_and_several() -> None:
    """A greedy run beside one with samples: each side counts with its own number."""
    before, after = [[True]] * 10, [[True, False, False]] * 10
    change = clusters.rate_change(before, after)
    assert change.value == pytest.approx(-2 / 3)
    assert change.high < 0
    with pytest.raises(ValueError, match="cannot be paired"):
        clusters.rate_change(before, after[1:])


def test_shares_of_prompts_by_how_far_samples_agree() -> None:
    sides = {"a": [True, True], "b": [True, False], "c": [False, False], "d": [False, True]}
    found = {name: e.value for name, e in clusters.agreement_of_samples(sides).items()}
    assert found == {"all": 0.25, "some": 0.5, "no": 0.25}
