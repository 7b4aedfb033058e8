"""Two processes audit as one does."""

import subprocess
import sys
from pathlib import Path

import auditing
import planted
import pytest

from refusal.evaluations.audit.result import Audited, read_audit

OPTIONS = {"n_test": 8, "n_val": 8, "n_train": 16, "drift_tokens": 2, "n_texts": 4}
ATTACKS = ("rank", "prefill")


@pytest.mark.slow
def test_two_processes_find_and_measure_what_one_does(tmp_path: Path) -> None:
    model = planted.planted(2)
    options = {**auditing.SIZES, **OPTIONS}
    alone = auditing.audited(tmp_path, model, attacks=ATTACKS, **OPTIONS)
    folder = planted.save(model, tmp_path / "model")  # whose config has no dtype but a text then
    config = auditing.planted_config(tmp_path, model)
    flags = ["--prompts", *config.prompts, "--refusal-tokens", *config.refusal_tokens]
    for name, value in options.items():
        several = value if isinstance(value, tuple) else (value,)
        flags += [f"--{name.replace('_', '-')}", *map(str, several)]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]
    command += ["2", "-m", "refusal", "audit", str(folder), "--out", str(tmp_path / "two"), "-q"]
    done = subprocess.run(
        [*command, "--attacks", *ATTACKS, *flags], capture_output=True, text=True, timeout=500
    )
    assert done.returncode == 0, done.stderr[-2000:]
    check_same(read_audit(tmp_path / "two" / "audit"), alone)


def check_same(found: Audited, alone: Audited) -> None:
    """Arms and verdicts are the same, and numbers but for rounding."""
    assert [(r.name, r.chosen, [a.name for a in r.arms]) for r in found.attacks] == [
        (r.name, r.chosen, [a.name for a in r.arms]) for r in alone.attacks
    ]
    assert found.verdict == alone.verdict
    for mine, other in zip(found.metrics, alone.metrics, strict=True):
        assert (mine.name, mine.set, mine.condition) == (other.name, other.set, other.condition)
        assert mine.value == pytest.approx(other.value, abs=1e-4)
