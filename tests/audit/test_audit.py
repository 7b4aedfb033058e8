"""An audit as a whole: all attacks, no leak, resumed, within a budget."""

from dataclasses import replace
from pathlib import Path

import auditing
import planted
import pytest
import torch

from refusal import LeakageError
from refusal.core.direction import Direction
from refusal.core.records import Prompt
from refusal.evaluations.audit import ATTACKS
from refusal.evaluations.audit.attack import Attack, Bench, Found, Setting
from refusal.evaluations.audit.measure import Completed
from refusal.evaluations.audit.result import Audited, read_audit
from refusal.evaluations.audit.validation import Validation, log_odds
from refusal.interventions.conditions import interventions_for
from refusal.model.forward import last_logits
from refusal.report.audit_page import write_audit_page
from refusal.runs.files import read_completions


def test_strength_zero_is_the_baseline_to_the_bit() -> None:
    model = planted.planted(2)
    direction = Direction(model.rows[0], 1.0, -1, 1)
    texts = planted.prompts(2, 6)[0]
    base = last_logits(model.model, texts)
    with model.model.apply(*interventions_for("ablation@0", direction)):
        assert torch.equal(last_logits(model.model, texts), base)
    with model.model.apply(*interventions_for("ablation@0.25", direction)):
        assert not torch.equal(last_logits(model.model, texts), base)


def test_log_odds_go_on_where_the_refusal_metric_ends() -> None:
    logits = torch.tensor([[100.0, 0.0, 1.0], [40.0, 0.0, 1.0]])
    found = log_odds(logits, [0])
    rest = float(torch.tensor([0.0, 1.0]).double().logsumexp(0))
    assert found.tolist() == pytest.approx([100 - rest, 40 - rest])


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Audited]:
    """Every attack on the model with two units."""
    folder = tmp_path_factory.mktemp("whole")
    return folder, auditing.audited(folder, planted.planted(2), budget_tokens=60_000)


def test_every_attack_is_in_the_audit_and_on_its_page(whole: tuple[Path, Audited]) -> None:
    folder, found = whole
    assert {r.name for r in found.attacks} == set(ATTACKS)
    for record in found.attacks:
        assert record.chosen is not None, record.note
        left = found.find("refusal_rate", "harmful", record.chosen)
        assert left is not None
        assert left.n == 40
    assert set(found.spent) == set(ATTACKS)
    assert found.spent["textbook"].forward_tokens > 0
    assert found == read_audit(folder / "run" / "audit")
    page = write_audit_page(found).read_text(encoding="utf-8")
    assert found.verdict in page.replace("&#39;", "'")
    for name in ("Refusal against rank", "Refusal against strength", "Refusal by length"):
        assert name in page
    # one direction leaves all of it, two take it away
    assert "rank-2" in found.verdict or "iterated-2" in found.verdict
    assert (folder / "run" / "audit" / "tables" / "summary.csv").is_file()


def test_no_search_has_seen_a_test_prompt(whole: tuple[Path, Audited]) -> None:
    audit = whole[0] / "run" / "audit"
    rows = read_completions(audit / "completions" / "harmful.baseline.jsonl")
    tested = {Prompt(row.prompt_id, row.prompt, "harmful").fingerprint for row in rows}
    for name in ATTACKS:
        seen = Direction.load(audit / "attacks" / f"{name}.safetensors").seen
        assert len(seen) >= 2 * 24
        assert not seen & tested


def test_a_validation_prompt_that_is_tested_on_is_refused() -> None:
    model = planted.planted(1).model
    bad, good = planted.prompts(1, 4)
    harmful = [Prompt(f"harmful-{i}", text, "harmful") for i, text in enumerate(bad)]
    harmless = [Prompt(f"harmless-{i}", text, "harmless") for i, text in enumerate(good)]
    for one in (harmful[1], harmless[3]):
        with pytest.raises(LeakageError, match="1 of 8 validation prompts"):
            Validation(model, harmful, harmless, [5], frozenset([one.fingerprint]))


def test_an_attack_that_has_seen_a_test_prompt_is_not_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    every = planted.prompts(1, auditing.PER_CLASS)[0]
    all_of_them = frozenset(Prompt("x", text, "harmful").fingerprint for text in every)

    class Peeking(Attack):
        def find(self, bench: Bench) -> Found:
            found = replace(bench.textbook, seen=all_of_them)
            return Found({"peeking": Setting("ablation", found)})

    monkeypatch.setitem(ATTACKS.table, "peeking", Peeking)
    with pytest.raises(LeakageError):
        auditing.audited(tmp_path, planted.planted(1), attacks=("peeking",), drift_tokens=0)


@pytest.mark.slow
def test_a_resumed_audit_is_an_uninterrupted_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, attacks = planted.planted(2), ("affine", "iterated", "prefill")
    wanted = {"attacks": attacks, "n_test": 8, "n_val": 8}
    whole = auditing.audited(_made(tmp_path / "whole"), model, **wanted)
    with monkeypatch.context() as patched:
        patched.setattr(Completed, "work", _interrupted)
        with pytest.raises(KeyboardInterrupt):
            auditing.audited(_made(tmp_path / "parts"), model, **wanted)
    found = auditing.audited(tmp_path / "parts", model, **wanted)
    for name in ("attacks", "summary", "metrics", "verdict", "notes"):
        assert getattr(found, name) == getattr(whole, name)
    before = _written(tmp_path / "parts")
    assert auditing.audited(tmp_path / "parts", model, **wanted) == found
    assert _written(tmp_path / "parts") == before


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


def _interrupted(*_: object) -> None:
    raise KeyboardInterrupt


def _written(folder: Path) -> dict[Path, int]:
    kept = [*folder.rglob("*.jsonl"), *folder.rglob("attacks/*")]
    return {path: path.stat().st_mtime_ns for path in kept}


def test_a_budget_that_is_spent_ends_a_search(tmp_path: Path) -> None:
    wanted = {"attacks": ("rank",), "budget_tokens": 1, "n_test": 8, "drift_tokens": 0}
    found = auditing.audited(tmp_path, planted.planted(3), **wanted)
    (record,) = [r for r in found.attacks if r.name == "rank"]
    assert record.note == "the budget is spent"
    assert [arm.name for arm in record.arms] == ["textbook"]
