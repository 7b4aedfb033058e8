"""Audits of a model whose answers are known in closed form: how many directions, which strength."""

from pathlib import Path

import auditing
import planted
import pytest

from refusal.core.direction import Direction
from refusal.evaluations.audit.attacks.forms import STRENGTHS, strength_name
from refusal.runs.files import read_completions


@pytest.mark.parametrize("m", [1, 2, *(pytest.param(m, marks=pytest.mark.slow) for m in (3, 4))])
def test_as_many_directions_are_needed_as_were_planted(m: int, tmp_path: Path) -> None:
    model = planted.planted(m)
    found = auditing.audited(tmp_path, model, attacks=("rank",), drift_tokens=0)
    k10 = found.number("k10")
    assert k10 is not None
    assert k10.value == m
    audit = tmp_path / "run" / "audit"
    texts = [
        row.prompt for row in read_completions(audit / "completions" / "harmful.baseline.jsonl")
    ]
    rows = Direction.load(audit / "attacks" / "rank.safetensors").rows
    for arm in next(r for r in found.attacks if r.name == "rank").arms:
        left = found.find("refusal_rate", "harmful", arm.name)
        assert left is not None
        refused = [model.excess(text, rows[: arm.rank]) > 0 for text in texts]
        assert left.value == pytest.approx(sum(refused) / len(refused))
        assert (left.value > 0.4) == (arm.rank < m)
    # a random subspace takes nothing away: of such, more than 5 directions would be needed
    control = found.find("refusal_rate", "harmful", "control-rank-5")
    assert control is not None
    assert control.value == 1.0


def test_the_strength_that_halves_refusal_is_the_computed_one(tmp_path: Path) -> None:
    model = planted.planted(1, additive=True)
    found = auditing.audited(tmp_path, model, attacks=("strength",), drift_tokens=0)
    rows = read_completions(tmp_path / "run" / "audit" / "completions" / "harmful.baseline.jsonl")
    texts = [row.prompt for row in rows]
    direction = Direction.load(tmp_path / "run" / "direction.safetensors")
    rates = {0.0: 1.0}
    for alpha in (*STRENGTHS, 1.0):
        refused = [model.excess(text, direction.vector[None], alpha) > 0 for text in texts]
        rates[alpha] = sum(refused) / len(refused)
        name = "textbook" if alpha == 1 else strength_name(alpha)
        measured = found.find("refusal_rate", "harmful", name)
        assert measured is not None
        assert measured.value == pytest.approx(rates[alpha])
    grid = sorted(rates)
    above = max(alpha for alpha in grid if all(rates[a] > 0.5 for a in grid if a <= alpha))
    below = grid[grid.index(above) + 1]
    part = (rates[above] - 0.5) / (rates[above] - rates[below])
    a50 = found.number("a50")
    assert a50 is not None
    assert a50.value == pytest.approx(above + part * (below - above))
    assert a50.low <= a50.value <= a50.high
    crossings = sorted(model.crossing(text) for text in texts)
    assert above <= crossings[len(texts) // 2] <= below
