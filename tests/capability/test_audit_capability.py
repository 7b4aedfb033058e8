"""Benchmarks in an audit: the baseline's and the attacks' items, counted as a run counts them."""

from pathlib import Path

import saved
from bench_files import bench_folder, roomy_model

from refusal.config.audit import audit_config
from refusal.core.work import Score, Write
from refusal.evaluations.audit.damage import AuditCapability
from refusal.evaluations.capability.stage import Capability
from refusal.pipeline.audit import audit
from refusal.runs.stage import Plan

TASKS = ("arc_challenge", "gsm8k_cot:2@2")


def test_an_audit_runs_the_benchmarks_under_each_attacks_best_arm(tmp_path: Path) -> None:
    config = audit_config(
        saved.small_config(
            "tiny",
            saved.write_prompts(tmp_path),
            data_dir=str(bench_folder(tmp_path)),
            tasks=TASKS,
            task_tokens=4,
            n_items=5,
            controls=0,
        ),
        attacks=("textbook",),
        ranks=1,
    )
    model = roomy_model()
    found = audit(config, tmp_path / "run", model=model)
    (textbook,) = [r for r in found.attacks if r.name == "textbook"]
    assert textbook.chosen is not None
    folder = tmp_path / "run" / "audit" / "capability"
    for arm in ("baseline", textbook.chosen):
        for task in ("arc_challenge", "gsm8k_cot"):
            rows = [f for f in folder.glob("*.jsonl") if task in f.name and f".{arm}." in f.name]
            assert len(rows) == 1, (arm, task)
    # GSM8K's answers are written, ARC's are scored: as in a run's estimate
    plan = Plan(config, model.sites.n_layers)
    kinds = [type(work) for work in AuditCapability.costs(plan)]
    assert kinds == [Score, Write] == [type(work) for work in Capability.costs(plan)]
