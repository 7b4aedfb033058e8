"""Intervals: published values, coverage by simulation, and what must hold of any of them."""

import math

import numpy as np
import pytest

from refusal import stats


def pairs(both: int, lost: int, gained: int, neither: int) -> tuple[list[bool], list[bool]]:
    before = [True] * (both + lost) + [False] * (gained + neither)
    after = [True] * both + [False] * lost + [True] * gained + [False] * neither
    return before, after


def test_wilson_gives_the_known_interval_of_three_in_a_hundred() -> None:
    low, high = stats.wilson_interval(3, 100)
    assert (round(low, 4), round(high, 4)) == (0.0103, 0.0845)  # "3 of 100 is 1-8.5 %"
    assert stats.wilson_interval(0, 0) == (0.0, 1.0)


def test_mcnemar_is_the_binomial_sum_over_discordant_pairs() -> None:
    change = stats.rate_change(*pairs(20, 8, 2, 10))
    expected = 2 * sum(math.comb(10, k) for k in range(3)) / 2**10
    assert change.p_value == pytest.approx(expected)
    assert change.value == pytest.approx(-6 / 40)
    assert stats.rate_change(*pairs(5, 0, 0, 5)).p_value == 1.0


def test_no_change_at_all_is_not_certain_to_be_none() -> None:
    change = stats.rate_change(*pairs(90, 0, 0, 10))
    assert change.value == 0.0
    assert -0.1 < change.low < 0 < change.high < 0.1
    assert stats.rate_change([False] * 30, [True] * 30).low > 0.7


@pytest.mark.parametrize("shares", [(0.7, 0.15, 0.05, 0.1), (0.02, 0.9, 0.0, 0.08), (0.3, 0.2, 0.2, 0.3)])
def test_the_interval_of_a_change_covers_the_truth_as_often_as_it_says(shares: tuple[float, ...]) -> None:
    truth = shares[2] - shares[1]
    random = np.random.default_rng(1)
    covered = 0
    for counts in random.multinomial(60, shares, size=400):
        found = stats.rate_change(*pairs(*map(int, counts)))
        assert found.low <= found.value <= found.high
        covered += found.low <= truth <= found.high
    assert covered / 400 >= 0.92  # 95 % less three standard errors


def test_the_bootstrap_of_a_mean_covers_the_truth_and_repeats_itself() -> None:
    random = np.random.default_rng(2)
    covered = 0
    for values in random.exponential(1.0, size=(100, 60)):
        found = stats.mean(values.tolist())
        assert found == stats.mean(values.tolist())
        covered += found.low <= 1.0 <= found.high
    assert covered >= 86  # about 93 % for a skewed mean of 60, less three standard errors


def test_a_ratio_weighs_texts_by_their_tokens() -> None:
    found = stats.ratio([10.0, 2.0, 3.0], [10.0, 1.0, 1.0])
    assert found.value == pytest.approx(15 / 12)
    change = stats.ratio_change([10.0, 2.0, 3.0], [12.0, 3.0, 3.0], [10.0, 1.0, 1.0])
    assert change.value == pytest.approx(3 / 12)
    assert change.low >= 0


def test_pairing_tightens_the_interval_of_a_change() -> None:
    random = np.random.default_rng(3)
    base = random.normal(5, 3, 80)
    after = base + 0.1 + random.normal(0, 0.05, 80)
    found = stats.ratio_change(base.tolist(), after.tolist(), [1.0] * 80)
    assert 0.08 < found.low < found.value < found.high < 0.13


def test_several_runs_of_the_same_prompts_are_no_more_prompts() -> None:
    one = stats.rate([True] * 9 + [False])
    assert stats.together([one] * 8) == one
    mixed = stats.together([one, stats.rate([True] * 10)])
    assert mixed.value == 0.95
    assert one.low < mixed.low < mixed.value < mixed.high <= 1.0


def test_unequal_lists_cannot_be_paired() -> None:
    with pytest.raises(ValueError, match="cannot be paired"):
        stats.rate_change([True], [True, False])
    with pytest.raises(ValueError, match="cannot be paired"):
        stats.ratio_change([1.0], [1.0, 2.0], [1.0])


def test_one_value_has_no_interval() -> None:
    assert stats.mean([2.0]) == stats.Estimate(2.0, -math.inf, math.inf)
    assert math.isnan(stats.mean([]).value)
