"""What a comparison refuses, and how it shows what was not compared."""

from dataclasses import replace
from pathlib import Path

import pytest

from refusal.cli.entry import main
from refusal.core.records import Metric
from refusal.evaluations.diff.result import Compared, Diffed, read_diff, write_diff
from refusal.report.diff_tables import diff_tables


def test_the_options_that_a_comparison_has_no_use_for(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["diff", "embedded", "other", "--temperature", "0.5", "--quiet"]) == 2
    assert "likeliest" in " ".join(capsys.readouterr().err.split())
    assert main(["diff", "embedded", "--quiet"]) == 2
    assert "no candidate" in " ".join(capsys.readouterr().err.split())
    assert main(["diff", "embedded", "other", "--fail-on", "odd<1", "--quiet"]) == 2
    assert "refusal_change" in " ".join(capsys.readouterr().err.split())


def test_what_would_be_left_aside_in_silence_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["diff", "embedded", "other", "--seeds", "3", "--quiet"]) == 2
    assert "--seeds 3 is not for refusal diff" in " ".join(capsys.readouterr().err.split())
    for name in ("run.toml", "manifest.json"):
        (tmp_path / name).write_text("")
    assert main(["diff", str(tmp_path), "other", "--run", "elsewhere", "--quiet"]) == 2
    assert "is a run already, and --run names elsewhere" in " ".join(
        capsys.readouterr().err.split()
    )


def test_what_was_not_compared_stands_in_the_tables_and_the_file(tmp_path: Path) -> None:
    rates = {"refusal": ("refusal_rate", "harmful"), "xstest-safe": ("refusal_rate", "xstest-safe")}
    base = tuple(Metric(n, s, "baseline", 0.9, 0.8, 1.0, 40) for n, s in rates.values())
    own = tuple(replace(m, condition="other", value=0.1, low=0.0, high=0.2) for m in base)
    change = Metric("xstest-safe_refusal_change", "diff", "other", -0.8, -0.9, -0.6, 40, 1e-6)
    summary = (
        replace(own[0], name="refusal", set="diff"),
        replace(own[1], name="xstest-safe_refusal", set="diff"),
        change,
        Metric("kl_max", "diff", "other", 2.0, -float("inf"), float("inf"), 6),
    )
    missing = {"stream": "it has 3 blocks of width 8, the base 4 of 8"}
    one = Compared("other", "./other", "x", summary, own, None, missing, ("It is odd.",))
    found = Diffed(str(tmp_path), "base", "run", "mine", {"n_test": 40}, base, (one,))
    tables = {table.title: table for table in diff_tables(found)}
    notes = tables["Not compared, and notes"].rows
    assert notes[0] == ("other", "No stream: it has 3 blocks of width 8, the base 4 of 8.")
    assert notes[1] == ("other", "It is odd.")
    over = tables["Over-refusal sets"].rows
    assert over[0][:3] == ("xstest-safe", "the base", "90% (80–100)")
    assert over[1][2:] == ("10% (0–20)", "-80 (-90 to -60)", "1e-06")
    write_diff(tmp_path, found)
    assert read_diff(tmp_path) == found
