"""Benchmarks in a comparison of checkpoints, of a GGUF file beside the model that it was made of."""

from pathlib import Path

import pytest
import saved
import tiny_gguf
import tiny_models
from bench_files import bench_folder

from refusal.config.diff import diff_config
from refusal.evaluations.diff.summary import numbers_asked
from refusal.pipeline.diff import diff
from refusal.report.diff_tables import diff_tables

# Tokens are bytes, so that prompts are long; llama.cpp's files have no biases.
LLAMA = {"mlp_bias": False, "attention_bias": False, "max_position_embeddings": 8192}


def test_a_gguf_file_with_benchmarks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REFUSAL_CACHE", str(tmp_path / "cache"))
    network = tiny_gguf.write(tmp_path / "tiny.gguf", tiny_models.network("llama", 0, **LLAMA))
    network.save_pretrained(tmp_path / "base")
    tiny_models.tokenizer("chatml").save_pretrained(tmp_path / "base")
    config = saved.small_config(
        tmp_path / "base",
        saved.write_prompts(tmp_path),
        data_dir=str(bench_folder(tmp_path)),
        tasks=("arc_challenge@4",),
        drift_tokens=2,
        n_test=4,
    )
    asked = diff_config(config, kl_prompts=3)
    found = diff(asked, [str(tmp_path / "tiny.gguf")], tmp_path / "out")
    (one,) = found.candidates
    assert one.label == "tiny.gguf"
    assert one.missing == {}
    kl, left, change = (
        one.number(name) for name in ("kl", "direction_left", "arc_challenge_change")
    )
    assert kl is not None
    assert kl.value == pytest.approx(0.0, abs=0.05)  # the file's numbers are read as bfloat16
    assert left is not None
    assert left.value == pytest.approx(1.0, abs=0.05)
    assert change is not None
    assert change.n == 4
    assert {m.name for m in one.summary} <= set(numbers_asked(asked))
    titles = [table.title for table in diff_tables(found)]
    assert titles[:2] == ["Candidates", "Predictions and stream"]
    assert "Benchmarks" in titles
