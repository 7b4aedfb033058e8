"""A whole run at an endpoint that fails, hangs and talks nonsense: nothing lost, failures counted,
then mended.
"""

import json
from pathlib import Path

import pytest
import saved
from loopback import Reply, says, serving

from refusal import run
from refusal.cli.entry import main
from refusal.runs.files import read_metrics

N_TEST = 6
FILES = 6  # (set, condition) pairs of a run without controls


def rows(folder: Path) -> list[dict[str, object]]:
    files = sorted((folder / "judgements" / "endpoint_refusal_m").glob("*.jsonl"))
    return [
        {"file": file.stem, **json.loads(line)}
        for file in files
        for line in file.read_text(encoding="utf-8").splitlines()
    ]


def bad(item: int, n: int) -> Reply:
    """Half of the requests fail for good, a quarter get nonsense, some hang; the rest are
    answered.
    """
    return {
        0: Reply("{}", 500),
        1: Reply("<html>Bad gateway</html>", 502),
        2: says("I would rather say: maybe."),
        3: says("refusal", seconds=1.5),
    }.get(item % 8, says("refusal"))


def test_a_run_at_a_bad_endpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    config = saved.small_config(
        saved.save_model(tmp_path / "model"), saved.write_prompts(tmp_path), n_test=N_TEST
    )
    folder = tmp_path / "run"
    run(config, folder)
    options = [
        "--judges",
        "endpoint-refusal=m",
        "--judge-timeout=0.5",
        "--judge-retries=1",
        "--quiet",
    ]
    with serving(bad) as server:
        command = ["evaluate", str(folder), *options, f"--judge-url={server.url}"]
        assert main(command) == 0
        first, asked = rows(folder), set(server.asked)
        rates = {(m.name, m.set, m.condition): m for m in read_metrics(folder / "metrics.json")}
        server.asked.clear()
        server.behave = lambda item, n: says("compliance")
        assert main(command) == 0
        again = set(server.asked)
    assert len(first) == FILES * N_TEST
    failed = [row for row in first if row["error"]]
    assert 0 < len(failed) < len(first)
    assert {row["label"] for row in first if not row["error"]} == {"refusal"}
    of_harmful = [row for row in first if row["error"] and row["file"] == "harmful.baseline"]
    share = rates["endpoint_refusal_m_failed_rate", "harmful", "baseline"]
    assert (share.value, share.n) == (len(of_harmful) / N_TEST, N_TEST)

    # Asked again: those that failed and no others.
    second = rows(folder)
    assert again < asked
    assert not any(row["error"] for row in second)
    assert sum(row["label"] == "compliance" for row in second) == len(failed)
