"""The kernel's search: what it counts as a kernel, and what none beats."""

import numpy as np
import pytest

from refusal.evaluations.audit.attacks.kernel import _Tried, condition_of, front
from refusal.interventions.conditions import action_of


def test_every_point_is_a_kernel_that_has_a_name() -> None:
    for point in (*np.random.default_rng(0).random((50, 8)), np.zeros(8), np.ones(8)):
        numbers = action_of(condition_of(point)).numbers
        for most, at, least, reach in (numbers[:4], numbers[4:]):
            assert 0 <= least <= most + 1e-3 <= 1.501
            assert 0.3 <= at <= 1
            assert 0.1 <= reach <= 1


def test_the_front_is_what_no_other_beats_in_both() -> None:
    random = np.random.default_rng(1)
    tried = [_Tried(str(i), (), *map(float, random.random(2).round(1))) for i in range(60)]
    beaten = []
    for one in tried:
        others = [t for t in tried if t.bypass <= one.bypass and t.kl <= one.kl]
        beaten.append(any((t.bypass, t.kl) != (one.bypass, one.kl) for t in others))
    expected = {(t.bypass, t.kl) for t, lost in zip(tried, beaten, strict=True) if not lost}
    found = front(tried)
    assert {(t.bypass, t.kl) for t in found} == expected
    assert [t.kl for t in found] == sorted(t.kl for t in found)
    assert front([]) == []


def test_a_kernel_of_full_reach_and_height_is_ablation_behind_the_embedding() -> None:
    name = condition_of([2 / 3, 0.5, 1.0, 1.0] * 2)
    assert action_of(name).numbers == pytest.approx((1, 0.65, 1, 1) * 2)
