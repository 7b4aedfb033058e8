"""A plain and a hardened model's audits beside each other, and the command line."""

import json
from pathlib import Path

import auditing
import planted
import pytest
from scipy.stats import binomtest

from refusal import RunFolderError
from refusal.cli.entry import main
from refusal.evaluations.audit.result import Audited
from refusal.report.audit_compare import are_audits, compare_audits

SMALL = {"attacks": ("textbook",), "drift_tokens": 0}

pytestmark = pytest.mark.slow  # two audits


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> list[Audited]:
    """One unit, which one direction takes away, and two, on the same prompts."""
    folder = tmp_path_factory.mktemp("two")
    found = []
    for m in (1, 2):
        (folder / str(m)).mkdir()
        found.append(auditing.audited(folder / str(m), planted.planted(m), kinds=2, **SMALL))
    return found


def test_two_audits_are_compared_by_mcnemars_test(two: list[Audited]) -> None:
    found = compare_audits([Path(one.folder) for one in two])
    (row,) = [r for r in found.rows if (r.set, r.attack) == ("harmful", "textbook")]
    verdicts = []
    for one in two:
        path = Path(one.folder) / "completions" / "harmful.textbook.jsonl"
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        verdicts.append({r["prompt"]: r["verdict"] in ("refusal", "partial") for r in rows})
    gained = sum(verdicts[1][p] and not refused for p, refused in verdicts[0].items())
    lost = sum(refused and not verdicts[1][p] for p, refused in verdicts[0].items())
    change = row.changes[1]
    assert change is not None
    assert change.value == pytest.approx((gained - lost) / 40)
    assert change.p_value == pytest.approx(binomtest(gained, gained + lost).pvalue)
    assert gained > 0


def test_audits_and_other_folders_are_not_mixed(two: list[Audited], tmp_path: Path) -> None:
    first = Path(two[0].folder)
    assert are_audits([first, first])
    assert not are_audits([tmp_path])
    with pytest.raises(RunFolderError, match="Compare runs with runs"):
        are_audits([first, tmp_path])


def test_the_command_line_compares_them(
    two: list[Audited], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folders = [one.folder for one in two]
    assert main(["compare", *folders, "--out", str(tmp_path / "both.html")]) == 0
    shown = capsys.readouterr().out
    assert "textbook" in shown
    assert "2 audits compared" in (tmp_path / "both.html").read_text(encoding="utf-8")


def test_a_limit_decides_the_exit_code(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = planted.planted(1)
    folder = planted.save(model, tmp_path / "model")
    config = auditing.planted_config(tmp_path, model, attacks=("textbook",))
    flags = ["--prompts", *config.prompts, "--refusal-tokens", *config.refusal_tokens]
    for name, value in {**auditing.SIZES, "drift_tokens": 0}.items():
        if name != "figures":
            flags.append(f"--{name.replace('_', '-')}={value}")
    command = ["audit", str(folder), "--out", str(tmp_path / "run"), "--attacks", "textbook", "-q"]
    command += [*flags, "--figures", "none", "--fail-on"]
    assert main([*command, "k10<=1", "a50<0"]) == 1
    said = capsys.readouterr().err
    assert "k10<=1: k10 of rank is 1" in said
    assert main([*command, "k10>5"]) == 0
    assert main([*command, "refusals<0.5"]) == 2
    assert "there is no number 'refusals'" in capsys.readouterr().err
    # the folder of the run itself is enough
    assert main(["audit", str(tmp_path / "run"), "--attacks", "textbook", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["summary"][0]["name"] == "baseline_refusal"
