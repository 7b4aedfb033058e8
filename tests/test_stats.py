"""Intervals: published values, coverage by simulation, and what must hold of any of them."""

import math

import numpy as np
import pytest

from refusal.core import stats


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


@pytest.mark.parametrize(
    "shares", [(0.7, 0.15, 0.05, 0.1), (0.02, 0.9, 0.0, 0.08), (0.3, 0.2, 0.2, 0.3)]
)
def test_the_interval_of_a_change_covers_the_truth_as_often_as_it_says(
    shares: tuple[float, ...],
) -> None:
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


# --- rates corrected for the errors of who judged


def judge(sensitivity: float, specificity: float, positives: int, negatives: int) -> stats.Accuracy:
    hits, rejections = round(sensitivity * positives), round(specificity * negatives)
    return stats.Accuracy(hits, positives - hits, rejections, negatives - rejections)


def corrected(successes: int, n: int, accuracy: stats.Accuracy) -> stats.Estimate:
    found = stats.corrected_rate(successes, n, accuracy)
    assert found is not None
    assert 0 <= found.low <= found.value <= found.high <= 1
    return found


@pytest.mark.parametrize("truth", [0, 120, 300, 400])
def test_the_corrected_rate_undoes_what_a_judge_does_to_a_known_share(truth: int) -> None:
    seen = round(
        truth * 0.9 + (400 - truth) * 0.05
    )  # of 400, by one that finds 90 % and takes 5 % for refusals
    assert corrected(seen, 400, judge(0.9, 0.95, 200, 200)).value == pytest.approx(truth / 400)


def test_the_corrected_rate_stays_a_share_and_grows_with_the_raw_one() -> None:
    accuracy = judge(0.8, 0.9, 100, 100)
    found = [corrected(count, 20, accuracy) for count in range(21)]
    assert (found[0].value, found[1].value, found[-1].value) == (0.0, 0.0, 1.0)
    for name in ("value", "low", "high"):
        values = [getattr(one, name) for one in found]
        assert values == sorted(values)
    assert corrected(0, 0, accuracy) == stats.Estimate(0.0, 0.0, 1.0)


def test_a_perfect_judge_known_for_certain_changes_nothing() -> None:
    sure, raw = judge(1.0, 1.0, 10**7, 10**7), stats.rate([True] * 30 + [False] * 70)
    found = corrected(30, 100, sure)
    assert found.value == raw.value
    assert (found.low, found.high) == pytest.approx((raw.low, raw.high), abs=0.01)
    before, after = pairs(20, 30, 5, 45)
    change, plain = stats.corrected_change(before, after, sure), stats.rate_change(before, after)
    assert change is not None
    assert (change.value, change.low, change.high) == pytest.approx(
        (plain.value, plain.low, plain.high), abs=1e-5
    )
    assert change.p_value == plain.p_value


def test_the_less_is_known_of_a_judge_the_wider_the_interval() -> None:
    widths = [(e := corrected(30, 100, judge(0.9, 0.9, n, n))).high - e.low for n in (10, 40, 1000)]
    assert widths == sorted(widths, reverse=True)


@pytest.mark.parametrize(
    "accuracy", [judge(0.5, 0.5, 100, 100), judge(0.3, 0.6, 10, 10), judge(1, 1, 0, 50)]
)
def test_nothing_follows_from_a_judge_that_knows_no_better_than_chance(
    accuracy: stats.Accuracy,
) -> None:
    assert stats.corrected_rate(3, 10, accuracy) is None
    assert stats.corrected_change([True], [False], accuracy) is None


def test_from_few_labels_that_may_be_chance_no_change_can_be_told() -> None:
    found = stats.corrected_change(*pairs(0, 20, 0, 0), judge(0.8, 0.8, 5, 5))
    assert found is not None
    assert (found.low, found.high) == (-1.0, 1.0)


def test_counts_are_not_negative() -> None:
    with pytest.raises(ValueError, match="negative count"):
        stats.Accuracy(1, -1, 1, 1)


@pytest.mark.parametrize("truth", [0.0, 0.05, 0.5, 0.95, 1.0])
@pytest.mark.parametrize("n", [8, 32, 300])
@pytest.mark.parametrize(
    ("sensitivity", "specificity", "labelled"), [(0.9, 0.97, 200), (0.75, 0.95, 40)]
)
def test_the_corrected_interval_covers_the_truth(
    truth: float, n: int, sensitivity: float, specificity: float, labelled: int
) -> None:
    random = np.random.default_rng(4)
    raw = truth * sensitivity + (1 - truth) * (1 - specificity)
    covered = 0
    for count, hits, alarms in zip(
        random.binomial(n, raw, 600),
        random.binomial(labelled, sensitivity, 600),
        random.binomial(labelled, 1 - specificity, 600),
        strict=True,
    ):
        accuracy = stats.Accuracy(
            int(hits), labelled - int(hits), labelled - int(alarms), int(alarms)
        )
        found = corrected(int(count), n, accuracy)
        covered += found.low <= truth <= found.high
    assert covered / 600 >= 0.93


@pytest.mark.parametrize(
    "shares", [(0.0, 0.9, 0.0, 0.1), (0.3, 0.3, 0.1, 0.3), (0.0, 0.0, 0.0, 1.0)]
)
def test_the_interval_of_a_corrected_change_covers_the_truth(shares: tuple[float, ...]) -> None:
    random = np.random.default_rng(5)
    truth, covered = shares[2] - shares[1], 0
    for counts in random.multinomial(60, shares, size=200):
        real = np.array(pairs(*map(int, counts)))
        seen = np.where(real, random.random(real.shape) < 0.85, random.random(real.shape) < 0.05)
        hits, alarms = int(random.binomial(150, 0.85)), int(random.binomial(150, 0.05))
        accuracy = stats.Accuracy(hits, 150 - hits, 150 - alarms, alarms)
        before, after = seen.tolist()
        found = stats.corrected_change(before, after, accuracy)
        assert found is not None
        assert -1 <= found.low <= found.value <= found.high <= 1
        covered += found.low <= truth <= found.high
    assert covered / 200 >= 0.905  # 95 % less three standard errors


@pytest.mark.parametrize("top", [(0.3, 0.1), (0.3, -0.2), (-0.4, -0.6), (0.0, -0.1), (0.2, 0.2)])
@pytest.mark.parametrize("bottom", [(0.8, 0.6, 0.9), (0.4, 0.1, 0.9), (0.3, 0.2, 0.99)])
def test_the_lower_end_of_a_ratio_is_where_the_difference_begins_to_reach_zero(
    top: tuple[float, float], bottom: tuple[float, float, float]
) -> None:
    value, low = top
    middle, down, up = bottom

    def reaches(r: float) -> bool:  # is 0 in the square-and-add interval of top - r bottom?
        spread = (up - middle if r > 0 else middle - down) * r
        return (value - r * middle) ** 2 <= (value - low) ** 2 + spread**2 + 1e-12

    grid = np.linspace(-8, value / middle, 40001)
    lowest = next(r for r in grid if reaches(float(r)))
    assert stats._ratio_low(value, low, bottom) == pytest.approx(lowest, abs=1e-3)
