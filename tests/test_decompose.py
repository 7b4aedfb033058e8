"""Which tensors explain a change: against sums made on purpose."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from refusal.model.decompose import add_up, explain, relative_error


def tensors(n: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(1, 6, 16, generator=generator).to(dtype) for _ in range(n)]


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.sets(st.integers(0, 6), min_size=1, max_size=5))
def test_a_plain_sum_is_found_whatever_else_is_there(seed: int, chosen: set[int]) -> None:
    start, *writes = tensors(8, seed)
    end = start + sum(writes[i] for i in chosen)
    fit = explain(start, end, writes, 1e-4)
    assert fit.indices == tuple(sorted(chosen))
    assert set(fit.multipliers) == {1.0}
    assert fit.error < 1e-6


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.sets(st.integers(0, 6), min_size=1, max_size=3))
def test_multipliers_are_found_by_least_squares(seed: int, chosen: set[int]) -> None:
    start, *writes = tensors(8, seed)
    factors = {i: 0.22 + 0.31 * k for k, i in enumerate(sorted(chosen))}
    end = start + sum(writes[i] * factor for i, factor in factors.items())
    fit = explain(start, end, writes, 1e-4)
    assert dict(zip(fit.indices, fit.multipliers, strict=True)) == pytest.approx(factors, rel=1e-6)


def test_half_precision_sums_are_told_apart_from_near_misses() -> None:
    """A write of half a percent of the stream is missed by a tolerance of one percent; the exact
    sum is not.
    """
    start, small, large = tensors(3, dtype=torch.bfloat16)
    small = small * 0.005
    fit = explain(start, start + large + small, [large, small], 1e-2)
    assert fit.indices == (0, 1)
    assert fit.error == 0.0


def test_parallel_and_sequential_sums_both_round_alike() -> None:
    start, a, b, c = tensors(4, dtype=torch.bfloat16)
    for end in ((start + a) + b + c, start + (a + b + c), start + (a + b) + c):
        assert add_up(start, [a, b, c], end)[1] == 0.0


def test_what_cannot_be_explained_has_a_large_error() -> None:
    start, end, *writes = tensors(5)
    assert explain(start, end, writes, 1e-4).error > 0.1
    assert explain(start, end, [], 1e-4).indices == ()
    assert relative_error(end * torch.nan, end) == float("inf")


def test_all_of_them_must_be_added_when_asked_for() -> None:
    start, a, b = tensors(3)
    assert explain(start, start + 0.5 * a + 2 * b, [a, b], 1e-4, everything=True).multipliers == (
        0.5,
        2.0,
    )
    assert explain(start, start + a, [a, b], 1e-4, everything=True).error > 0.1


def test_what_must_stay_apart_is_not_combined() -> None:
    start, a, b = tensors(3)
    assert explain(start, start + a + b, [a, b], 1e-4, apart=[(0, 1)]).error > 0.1
