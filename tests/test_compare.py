"""Runs side by side: pairs by prompt, honest about what they do not share; `evaluate RUN` adds to a
run.
"""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import saved

from refusal import RunFolderError, compare
from refusal import run as run_stages
from refusal.cli.entry import main
from refusal.core import stats
from refusal.detector.accuracy import DETECTOR
from refusal.runs.files import read_completions


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two models on the same prompts, the second on fewer of them."""
    base = tmp_path_factory.mktemp("runs")
    prompts = saved.write_prompts(base)
    for name, seed, n in (("first", 0, 4), ("second", 1, 3)):
        config = saved.small_config(
            saved.save_model(base / f"model-{name}", seed=seed), prompts, n_test=n
        )
        run_stages(config, base / name)
    return base / "first", base / "second"


def mark(folder: Path, file: str, verdicts: list[str]) -> None:
    path = folder / "completions" / file
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]
    path.write_text(
        "".join(json.dumps({**r, "verdict": v}) + "\n" for r, v in zip(rows, verdicts, strict=True))
    )


def test_changes_are_over_the_shared_prompts(runs: tuple[Path, Path], tmp_path: Path) -> None:
    first, second = (Path(shutil.copytree(run, tmp_path / run.name)) for run in runs)
    mark(first, "harmful.ablation.jsonl", ["compliance"] * 4)
    mark(second, "harmful.ablation.jsonl", ["refusal", "partial", "compliance"])
    found = compare([first, second])
    row = next(
        r
        for r in found.rows
        if (r.name, r.set, r.condition) == ("refusal_rate", "harmful", "ablation")
    )
    expected = stats.rate_change([False] * 3, [True, True, False])
    assert row.changes[0] is None
    change = row.changes[1]
    assert change is not None
    assert (change.value, change.low, change.high, change.p_value, change.n) == (
        expected.value, expected.low, expected.high, expected.p_value, 3,
    )  # fmt: skip
    row = next(
        r for r in found.rows if (r.name, r.condition) == ("refusal_rate_corrected", "ablation")
    )
    assert (change := row.changes[1]) is not None
    estimate = stats.corrected_change([False] * 3, [True, True, False], DETECTOR)
    assert estimate is not None
    assert (change.value, change.low, change.high) == (estimate.value, estimate.low, estimate.high)
    assert [run.model for run in found.runs] == [
        str(runs[0].parent / f"model-{run.name}") for run in runs
    ]
    assert found.cosines[0] == pytest.approx(1)


def test_different_prompts_are_not_paired(runs: tuple[Path, Path], tmp_path: Path) -> None:
    first, second = (Path(shutil.copytree(run, tmp_path / run.name)) for run in runs)
    path = second / "completions" / "harmful.ablation.jsonl"
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]
    path.write_text(
        "".join(json.dumps({**r, "prompt": f"other {i}"}) + "\n" for i, r in enumerate(rows))
    )
    found = compare([first, second])
    row = next(
        r
        for r in found.rows
        if (r.name, r.set, r.condition) == ("refusal_rate", "harmful", "ablation")
    )
    assert row.changes == (None, None)
    assert all(value is not None for value in row.values)


def test_the_command_prints_a_table_and_json(
    runs: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["compare", *map(str, runs)]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["harmful", "ablation", "2"] in [row[:3] for row in rows]
    assert main(["compare", *map(str, runs), "--json"]) == 0
    value = json.loads(capsys.readouterr().out)
    assert [run["folder"] for run in value["runs"]] == list(map(str, runs))


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        ("manifest.json", "is no run folder"),
        ("completions", "holds no completions"),
        ("metrics.json", "is not finished"),
        (None, "nothing to compare"),
    ],
)
def test_what_is_no_finished_run_is_refused(
    runs: tuple[Path, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    missing: str | None,
    message: str,
) -> None:
    broken = Path(shutil.copytree(runs[0], tmp_path / "run"))
    if missing is not None:
        gone = broken / missing
        shutil.rmtree(gone) if gone.is_dir() else gone.unlink()
    folders = [broken] if missing is None else [runs[1], broken]
    with pytest.raises(RunFolderError, match=message):
        compare(folders)
    assert main(["compare", *map(str, folders)]) == 2
    assert message in " ".join(capsys.readouterr().err.split())


def test_evaluate_adds_to_a_run(runs: tuple[Path, Path], tmp_path: Path) -> None:
    out = Path(shutil.copytree(runs[0], tmp_path / "run"))
    for name in ("a", "b"):
        (tmp_path / f"{name}.txt").write_text(
            "The sea is wide, and the moon pulls at it.\n" * 60, encoding="utf-8"
        )
    before = saved.times(out)
    base = [
        "evaluate",
        str(out),
        "--drift-tokens",
        "2",
        "--n-texts",
        "2",
        "--text-tokens",
        "9",
        "-q",
    ]
    assert main([*base, "--texts", str(tmp_path / "a.txt")]) == 0
    assert main([*base, "--texts", str(tmp_path / "b.txt")]) == 0
    sets = {m["set"] for m in json.loads((out / "metrics.json").read_text(encoding="utf-8"))}
    assert {"harmful", "harmless", "own-answers", "a", "b"} <= sets
    kept = {name: when for name, when in before.items() if name != "metrics.json"}
    assert kept.items() <= saved.times(out).items()
    assert (
        len(read_completions(out / "completions" / "harmful.baseline.jsonl")) == 4
    )  # the run's own n_test


def test_evaluate_needs_completions_in_a_run(
    runs: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = Path(shutil.copytree(runs[0], tmp_path / "run"))
    shutil.rmtree(out / "completions")
    assert main(["evaluate", str(out)]) == 2
    assert "holds no completions" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prompt_id": "x"}, "x"),
        ({"prompt": "Sing!"}, "another prompt under the name"),
        ({"prompt": None}, None),
    ],
)
def test_evaluate_refuses_completions_of_other_prompts(
    runs: tuple[Path, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    change: dict[str, str | None],
    message: str | None,
) -> None:
    out = Path(shutil.copytree(runs[0], tmp_path / "run"))
    path = out / "completions" / "harmless.baseline.jsonl"
    first, *others = path.read_text(encoding="utf-8").split("\n")
    row = {**json.loads(first), **change} if message else {"verdict": "refusal"}
    path.write_text("\n".join([json.dumps(row), *others]), encoding="utf-8")
    assert main(["evaluate", str(out)]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "harmless.baseline.jsonl" in said
    assert (message or "line 1, prompt_id: Field required") in said


SLOW = ("torch", "transformers")
LIGHT = """
import sys
from refusal.cli.entry import main

code = main(sys.argv[2:])
sys.stderr.write(" ".join(m for m in sys.argv[1].split() if m in sys.modules))
sys.exit(code)
"""


@pytest.mark.parametrize(
    ("command", "barred"),
    [
        ("--help", (*SLOW, "matplotlib", "numpy", "scipy")),
        ("run --help", SLOW),
        ("config", SLOW),
        ("completion bash", SLOW),
        ("compare FIRST SECOND --json", SLOW),
        ("compare FIRST SECOND --out OUT", SLOW),
        ("report FIRST --json", SLOW),
        ("report MORE", SLOW),
    ],
)
def test_what_needs_no_model_does_not_wait_for_torch(
    runs: tuple[Path, Path], tmp_path: Path, command: str, barred: tuple[str, ...]
) -> None:
    places = {"FIRST": str(runs[0]), "SECOND": str(runs[1]), "OUT": str(tmp_path / "page.html")}
    if "MORE" in command:  # a run that a further intervention is asked for in
        more = Path(shutil.copytree(runs[0], tmp_path / "more"))
        text = (more / "run.toml").read_text(encoding="utf-8")
        assert "interventions = []" in text
        text = text.replace("interventions = []", 'interventions = ["affine"]')
        (more / "run.toml").write_text(text, encoding="utf-8")
        places["MORE"] = str(more)
    given = [places.get(word, word) for word in command.split()]
    done = subprocess.run(
        [sys.executable, "-c", LIGHT, " ".join(barred), *given], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    loaded = done.stderr.splitlines()[-1:]  # compare's table, as a person reads it, stands before
    assert not {*" ".join(loaded).split()} & {*barred}
