"""The threshold and the logistic, which look at numbers alone."""

import math

import numpy as np
import pytest
from scipy.stats import beta, kstest
from sklearn.linear_model import LogisticRegression

from refusal import MonitorError, NonFiniteError
from refusal.directions.monitor.conformal import conformal_threshold
from refusal.directions.monitor.logistic import fit_logistic, probability


@pytest.mark.parametrize(
    ("n", "eps", "place"),
    [
        (99, 0.01, 99),
        (100, 0.01, 100),
        (199, 0.01, 198),
        (200, 0.05, 191),
        (999, 0.001, 999),
        (19, 0.05, 19),
    ],
)
def test_the_threshold_is_an_order_statistic(n: int, eps: float, place: int) -> None:
    scores = np.random.default_rng(n).permutation(n).astype(np.float64)
    assert conformal_threshold(scores, eps) == place - 1
    assert place == math.ceil(round((n + 1) * (1 - eps), 9))


def test_98_harmless_prompts_promise_nothing_at_one_percent() -> None:
    scores = np.arange(98.0)
    with pytest.raises(
        MonitorError, match=r"98 harmless calibration prompts are too few .* at least 99"
    ):
        conformal_threshold(scores, 0.01)
    assert conformal_threshold(scores, 0.02) == 97
    with pytest.raises(MonitorError, match="eps is 0"):
        conformal_threshold(scores, 0.0)
    with pytest.raises(NonFiniteError):
        conformal_threshold(np.array([math.nan] * 200), 0.05)


@pytest.mark.parametrize(("n", "eps"), [(99, 0.01), (500, 0.01), (200, 0.05)])
def test_coverage_over_a_thousand_calibrations_follows_the_beta_law(n: int, eps: float) -> None:
    """Of uniform scores the share below the threshold is the threshold itself."""
    random = np.random.default_rng(0)
    below = np.array([conformal_threshold(random.random(n), eps) for _ in range(1000)])
    place = math.ceil(round((n + 1) * (1 - eps), 9))
    law = beta(place, n + 1 - place)
    assert abs(below.mean() - place / (n + 1)) < 4 * law.std() / math.sqrt(1000)
    assert kstest(below, law.cdf).pvalue > 1e-3
    assert (
        (n + 1) * (1 - eps) - 1e-9 <= place < (n + 1) * (1 - eps) + 1
    )  # and not less than it could
    assert (
        kstest(below, beta(place - 1, n + 2 - place).cdf).pvalue < 1e-6
    )  # the next place is another law


def test_coverage_on_scores_that_were_never_seen() -> None:
    random = np.random.default_rng(1)
    fired = [
        float((random.normal(size=400) > conformal_threshold(random.normal(size=99), 0.01)).mean())
        for _ in range(1000)
    ]
    assert np.mean(fired) == pytest.approx(0.01, abs=0.0015)


@pytest.mark.parametrize("apart", [0.5, 2.0, 20.0])
@pytest.mark.parametrize("strength", [1.0, 0.01])
def test_the_logistic_is_scikit_learns(apart: float, strength: float) -> None:
    random = np.random.default_rng(2)
    positive = random.random(80) < 0.4
    x = random.normal(size=(80, 2)) * [1.0, 3.0] + apart * positive[:, None]
    found = fit_logistic(x, positive, strength)
    known = LogisticRegression(C=strength, tol=1e-12, max_iter=10_000).fit(x, positive)
    np.testing.assert_allclose(found.weights, known.coef_[0], atol=1e-5)
    assert found.bias == pytest.approx(float(known.intercept_[0]), abs=1e-4)
    p = probability(x @ found.weights + found.bias)
    np.testing.assert_allclose(p, known.predict_proba(x)[:, 1], atol=1e-5)
    assert p[positive].mean() > p[~positive].mean()


def test_probabilities_do_not_overflow() -> None:
    np.testing.assert_array_equal(probability(np.array([-1e4, 0.0, 1e4])), [0.0, 0.5, 1.0])
