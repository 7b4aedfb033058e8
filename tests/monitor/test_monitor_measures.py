"""Figures of an evaluation, which are functions of scores, against plain counts and planted data."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from monitors import drawn
from scipy.stats import norm
from sklearn.metrics import brier_score_loss, roc_auc_score

from refusal import Prompt
from refusal.core.records import Label
from refusal.directions.monitor.logistic import probability
from refusal.evaluations.monitor.drift import drift
from refusal.evaluations.monitor.measure import contrast, recall, reliability
from refusal.evaluations.monitor.sources import Source, leave_one_out

RANDOM = np.random.default_rng(0)


@pytest.mark.parametrize(
    ("n", "fpr", "allowed"),
    [(100, 0.01, 1), (99, 0.01, 0), (200, 0.05, 10), (20, 0.05, 1), (7, 0.05, 0)],
)
def test_recall_at_a_false_alarm_rate_is_a_count(n: int, fpr: float, allowed: int) -> None:
    negative, positive = RANDOM.normal(size=n), RANDOM.normal(1.5, size=80)
    found = recall(positive, negative, fpr)
    assert found.false_alarms == allowed
    assert found.threshold == sorted(negative)[n - 1 - allowed]
    assert found.tpr.value == sum(x > found.threshold for x in positive) / 80
    assert found.tpr.low <= found.tpr.value <= found.tpr.high
    assert found.tpr.low < found.tpr.high


def test_ties_never_give_more_false_alarms() -> None:
    negative = np.array([0.0] * 90 + [1.0] * 10)
    found = recall(np.array([1.0, 2.0]), negative, 0.05)
    assert (found.threshold, found.false_alarms, found.tpr.value) == (1.0, 0, 0.5)


def test_recall_of_two_normals_is_the_formula_within_its_interval() -> None:
    """TPR at FPR a of N(d, 1) against N(0, 1) is Phi(d - z)."""
    found = contrast(("bad", RANDOM.normal(2, size=3000)), ("good", RANDOM.normal(size=3000)))
    for one in found.recalls:
        expected = float(norm.cdf(2 - norm.ppf(1 - one.fpr)))
        assert one.tpr.low - 0.02 < expected < one.tpr.high + 0.02
    assert found.auroc.value == pytest.approx(float(norm.cdf(2 / math.sqrt(2))), abs=0.01)


def test_none_found_has_an_interval_too() -> None:
    found = recall(np.zeros(20), np.ones(40), 0.05).tpr
    assert (found.value, found.low) == (0.0, 0.0)
    assert found.high > 0.1


def test_auroc_is_scikit_learns() -> None:
    bad, good = RANDOM.normal(0.7, size=40), RANDOM.normal(size=60)
    found = contrast(("a", bad), ("b", good))
    truth = np.arange(100) < 40
    assert found.auroc.value == pytest.approx(roc_auc_score(truth, np.concatenate([bad, good])))
    assert (found.n_harmful, found.n_harmless, found.harmful, found.harmless) == (40, 60, "a", "b")


def test_reliability_is_a_plain_loop() -> None:
    logits = RANDOM.normal(size=500) * 3
    truth = RANDOM.random(500) < probability(logits)
    found = reliability(logits, truth)
    said = probability(logits)
    assert found.brier.value == pytest.approx(brier_score_loss(truth, said))
    error = 0.0
    for i in range(10):
        inside = [k for k in range(500) if i / 10 <= said[k] < (i + 1) / 10]
        error += abs(sum(said[k] - truth[k] for k in inside)) / 500
    assert found.error == pytest.approx(error)
    assert sum(one.n for one in found.bins) == 500
    assert found.error < 0.06  # it was calibrated
    assert reliability(logits * 5, truth).error > 0.1  # and is not any more


def test_probability_one_is_in_the_last_bin() -> None:
    found = reliability(np.array([40.0, -40.0]), np.array([True, False]))
    assert [one.low for one in found.bins] == [0.0, 0.9]


def test_the_same_traffic_has_not_drifted_and_other_traffic_has() -> None:
    calibration = np.sort(RANDOM.normal(size=500))
    monitor = replace(drawn(), calibration=calibration, threshold=float(calibration[-5]))
    alarms = sum(bool(drift(monitor, RANDOM.normal(size=200)).drifted) for _ in range(200))
    assert alarms / 200 < 0.05
    moved = drift(monitor, RANDOM.normal(-0.5, size=200))
    assert "lower" in moved.drifted[0]
    assert "drifted" in moved.line
    harmful = drift(monitor, np.concatenate([RANDOM.normal(size=180), np.full(20, 9.0)]))
    assert "more fire" in harmful.drifted[-1]
    assert harmful.fired.value == pytest.approx(0.1, abs=0.02)


def test_few_prompts_say_nothing_of_drift() -> None:
    monitor = replace(drawn(), calibration=np.sort(RANDOM.normal(size=500)))
    found = drift(monitor, np.full(5, 50.0))
    assert found.drifted == ()
    assert "say nothing of drift" in found.line
    assert "  " not in found.line


# --- sources left out: planted directions, one that all sources share and one of each source

WIDTH = 64


def source(name: str, label: Label, seed: int, shared: float, own: float, n: int = 60) -> Source:
    """Streams with a step along e_0 (harm, as all sources have it) and along an axis of its own."""
    x = torch.randn(n, 2, WIDTH, generator=torch.Generator().manual_seed(seed))
    if label == "harmful":
        x[..., 0] += shared
        x[..., 1 + seed] += own
    prompts = tuple(
        Prompt(f"{name}-{i}", f"{name} {seed * 1000 + i} {i * 7919 % 1013}", label)
        for i in range(n)
    )
    return Source(name, label, prompts, x)


def test_what_all_sources_share_is_found_without_any_one_of_them() -> None:
    sources = [source(f"s{i}", "harmful", i, 4.0, 0.0) for i in range(3)]
    found = list(leave_one_out(drawn(WIDTH), [*sources, source("good", "harmless", 9, 0, 0)], []))
    assert [one.source for one in found] == [
        "s0",
        "s1",
        "s2",
    ]  # one harmless source cannot be left out
    for one in found:
        assert one.without.auroc.value > 0.95
        assert abs(one.without.auroc.value - one.same.auroc.value) < 0.05
        assert (one.without.n_harmful, one.without.n_harmless) == (30, 30)


def test_what_is_a_sources_own_is_not() -> None:
    sources = [source(f"s{i}", "harmful", i, 0.0, 8.0) for i in range(3)]
    for one in leave_one_out(drawn(WIDTH), [*sources, source("good", "harmless", 9, 0, 0)], []):
        assert one.same.auroc.value > 0.95
        assert one.without.auroc.value < 0.75  # chance, but for the other sources' noise


def test_near_duplicates_of_the_source_left_out_do_not_stand_in_for_it() -> None:
    first = source("s0", "harmful", 0, 0.0, 8.0)
    again = replace(
        first,
        name="copy",
        prompts=tuple(replace(p, id=f"copy-{i}") for i, p in enumerate(first.prompts)),
    )
    other = source("s1", "harmful", 1, 0.0, 8.0)
    good = source("good", "harmless", 9, 0, 0)
    sources, notes = [first, again, other, good], list[str]()
    found = {one.source: one for one in leave_one_out(drawn(WIDTH), sources, notes)}
    assert notes == []
    assert found["s0"].without.auroc.value < 0.75
    assert list(leave_one_out(drawn(WIDTH), [first, again, good], notes)) == []
    assert [note.partition(" was not left out: 0 harmful prompts")[0] for note in notes] == [
        "s0",
        "copy",
    ]


def test_harmless_sources_are_left_out_in_the_same_way() -> None:
    goods = [source(f"g{i}", "harmless", 20 + i, 0, 0) for i in range(2)]
    bads = [source("s0", "harmful", 0, 4.0, 0.0)]
    found = list(leave_one_out(drawn(WIDTH), [*bads, *goods], []))
    assert [one.source for one in found] == ["g0", "g1"]
    assert all(one.without.auroc.value > 0.95 for one in found)
    assert found[0].without.harmless == "g0"
