"""What is left of the base's direction in a candidate's stream, and how well that is known."""

import math

import numpy as np
import pytest
from diffing import Made, made

from refusal import Ablate, PromptPair
from refusal.directions.pool import Draw, collect_drawn
from refusal.evaluations.diff.result import Diffed
from refusal.evaluations.diff.stream import share_of_difference
from refusal.pipeline.asking import prompts_of
from refusal.pipeline.diff import diff


@pytest.fixture(scope="module")
def found() -> Made:
    return made()


@pytest.fixture(scope="module")
def edited(found: Made, tmp_path_factory: pytest.TempPathFactory) -> Diffed:
    out = tmp_path_factory.mktemp("left") / "out"
    config = found.config(n_test=2, kl_prompts=2)
    return diff(config, [str(found.base), str(found.edited)], out, run=found.run)


def test_what_is_left_in_the_stream_is_what_the_hooks_leave(found: Made, edited: Diffed) -> None:
    model, direction, config = found.load(), found.direction, found.config()
    val = prompts_of(config).val
    pair = PromptPair(val.harmful[: config.n_val], val.harmless[: config.n_val])
    apart = []
    for edits in ((), (Ablate(direction),)):
        with model.apply(*edits):
            means = collect_drawn(model, pair, Draw(None, False))
        apart.append((means.harmful - means.harmless) @ direction.vector.double())
    stream = edited.candidate("edited").stream
    assert stream is not None
    assert (stream.position, stream.layer) == (direction.position, direction.layer)
    known = 0
    for p, row in enumerate(stream.left):
        for layer, share in enumerate(row):
            if share is not None:
                known += 1
                expected = float(apart[1][p, layer] / apart[0][p, layer])
                assert share == pytest.approx(expected, abs=1e-4)
                assert abs(share) < 1e-4
    assert known > 0
    assert stream.at_place[0] == pytest.approx(0.0, abs=1e-4)
    own = edited.candidate("base").stream
    assert own is not None
    assert own.at_place == pytest.approx((1.0, 1.0))
    assert {share for row in own.left for share in row if share is not None} == {1.0}
    for name in ("direction_left", "direction_left_everywhere"):
        (same, less) = (edited.candidate(label).number(name) for label in ("base", "edited"))
        assert same is not None
        assert less is not None
        assert (same.low, same.high) == pytest.approx((1.0, 1.0))
        assert -1e-4 < less.low <= less.high < 1e-4
    cosine = edited.candidate("base").number("direction_cosine")
    assert cosine is not None
    assert math.isinf(cosine.high)


def test_the_interval_of_what_is_left_is_a_bootstrap_over_prompts_of_each_class() -> None:
    """Its ends are those of a plain loop; it covers; what is not told from 0 has none."""
    draw = np.random.default_rng(1)

    def sample(n: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
        before = [draw.normal(3.0, 1.0, n), draw.normal(0.0, 1.0, n + 5)]
        return before, [0.25 * x + draw.normal(0.0, 0.5, len(x)) for x in before]

    before, now = sample(24)
    found = share_of_difference(before, now)
    shares = []
    for _ in range(4000):
        some = [draw.integers(len(x), size=len(x)) for x in before]
        top, bottom = (x[0][some[0]].mean() - x[1][some[1]].mean() for x in (now, before))
        shares.append(top / bottom)
    assert found.value == pytest.approx(
        (now[0].mean() - now[1].mean()) / (before[0].mean() - before[1].mean())
    )
    low, high = np.quantile(shares, [0.025, 0.975])
    assert (found.low, found.high) == pytest.approx((low, high), abs=0.01)
    covered = 0
    for _ in range(200):
        one = share_of_difference(*sample(24))
        covered += one.low <= 0.25 <= one.high
    assert 0.88 <= covered / 200 <= 0.99
    for few in (1, 24):
        nothing = [draw.normal(0.0, 1.0, few), draw.normal(0.0, 1.0, few)]
        assert math.isinf(share_of_difference(nothing, nothing).high)
