"""Limits that an audit has to keep."""

import math

import pytest

from refusal import ConfigError
from refusal.core.records import Metric
from refusal.evaluations.audit.limits import NUMBERS, broken, parse_limit

SUMMARY = (
    Metric("residual_refusal", "audit", "rank-2", 0.3, 0.2, 0.45, 40),
    Metric("k10", "audit", "rank", math.inf, math.inf, math.inf, 40),
    Metric("price_nats", "audit", "textbook", 0.02, 0.01, 0.03, 40),
    Metric("price_nats", "audit", "rank-2", 0.2, 0.1, 0.3, 40),
)


@pytest.mark.parametrize(
    ("text", "fails"),
    [
        ("residual_refusal<0.5", 1),
        ("residual_refusal < .3", 0),
        ("residual_refusal<=0.3", 1),
        ("residual_refusal.low<0.25", 1),
        ("residual_refusal.high>0.5", 0),
        ("k10<=5", 0),
        ("k10>5", 1),
        ("price_nats<0.1", 1),
        ("price_nats<1", 2),
        ("a50<1", 1),  # was not measured
    ],
)
def test_a_limit_fails_where_it_holds(text: str, fails: int) -> None:
    assert len(list(broken([parse_limit(text)], SUMMARY))) == fails


@pytest.mark.parametrize(
    "text",
    [
        "",
        "residual_refusal",
        "residual_refusal=0.5",
        "residual_refusal<",
        "a50<one",
        "a50<1 or 2",
        "a50<1e3x",
        "0.5>a50",
        "a50.mean<1",
    ],
)
def test_what_is_no_limit_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="--fail-on"):
        parse_limit(text)


def test_an_unknown_number_is_an_error_that_lists_the_known_ones() -> None:
    with pytest.raises(ConfigError) as caught:
        parse_limit("residual<0.5", ["mmlu:5"])
    assert all(name in str(caught.value) for name in (*NUMBERS, "price_mmlu:5"))
    assert parse_limit("price_mmlu:5>2", ["mmlu:5"]).name == "price_mmlu:5"
