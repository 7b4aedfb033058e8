"""Run folders whose files are damaged in any way: read as what they are, or refused in one message
with the place.
"""

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import report_runs
from damage import damage, files_of, kinds_for
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from refusal import Direction, Error, RunFolderError, compare
from refusal.cli.entry import main
from refusal.core.strict_files import read_one
from refusal.evaluations.capability.results import read_task_run
from refusal.evaluations.drift.stage import read_drift
from refusal.evaluations.seeds import _Choice
from refusal.report.csv_tables import csv_tables
from refusal.report.data import read_run
from refusal.report.page import report_page
from refusal.runs.files import read_completions
from refusal.runs.records import read_controls

ANY = st.integers(0, 2**32)
QUICK = settings(deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of everything, a benchmark's files and judgements included."""
    run = report_runs.make(tmp_path_factory.mktemp("clean"), judges=("substring",))
    about = {"task": "mmlu", "metric": "acc", "items": [], "aggregate": {"mmlu": {"acc": 0.5, "x": None}},
             "shots": {"mmlu": 0}, "files": {}}  # fmt: skip
    (run / "capability").mkdir()
    (run / "capability" / "mmlu.baseline.json").write_text(json.dumps(about))
    rows = [{"id": f"mmlu/{i}", "value": float(i % 2), "metric": "acc"} for i in range(4)]
    (run / "capability" / "mmlu.baseline.jsonl").write_text(
        "".join(json.dumps(row) + "\n" for row in rows)
    )
    return run


@pytest.fixture(scope="module")
def broken(clean: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy, one file of which is damaged at a time."""
    return Path(shutil.copytree(clean, tmp_path_factory.mktemp("broken") / "run"))


def readers(file: Path, clean: Path, run: Path) -> list[Callable[[], object]]:
    """Who reads a file."""
    path = run / file
    match file.parent.name, file.suffix:
        case "drift", _:
            return [lambda: read_drift(path)]
        case "seeds", ".json":
            return [lambda: read_one(path, _Choice)]
        case "seeds", ".safetensors":
            return [lambda: Direction.load(path)]
        case "seeds", _:
            return [lambda: read_completions(path)]
        case "capability", _:
            both = (run / "capability" / f"mmlu.baseline{end}" for end in (".jsonl", ".json"))
            return [lambda: read_task_run(*both)]
        case "completions", _:
            return [lambda: compare([clean, run])]
        case _:
            if file.name == "controls.safetensors":
                return [
                    lambda: read_controls(path, Direction.load(clean / "direction.safetensors"))
                ]
            return [lambda: csv_tables(read_run(run)), lambda: compare([clean, run])]


def only_errors(calls: list[Callable[[], object]]) -> list[Error]:
    """What was said; anything but an error of the package's own comes through."""
    said = []
    for call in calls:
        try:
            call()
        except Error as error:
            said.append(error)
    return said


@pytest.mark.parametrize("examples", [60, pytest.param(500, marks=pytest.mark.slow)])
def test_a_damaged_file_is_read_or_refused(clean: Path, broken: Path, examples: int) -> None:
    check = given(number=ANY, seed=ANY)(a_damaged_file_is_read_or_refused)
    settings(QUICK, max_examples=examples)(check)(clean, broken)


def a_damaged_file_is_read_or_refused(clean: Path, broken: Path, number: int, seed: int) -> None:
    files = files_of(clean)
    file = files[number % len(files)]
    content = (clean / file).read_bytes()
    (broken / file).write_bytes(damage(content, random.Random(seed).choice(kinds_for(file)), seed))
    try:
        for error in only_errors(readers(file, clean, broken)):
            assert error.exit_code == 2
            assert (
                file.name in str(error)
                or "run.toml" in file.name
                or "is no run folder" in str(error)
            )
    finally:
        (broken / file).write_bytes(content)


@settings(QUICK, max_examples=20)
@given(number=ANY, seed=ANY)
def test_what_is_read_can_be_shown(clean: Path, broken: Path, number: int, seed: int) -> None:
    files = [
        file
        for file in files_of(clean)
        if file.suffix == ".json" and file.parent.name in ("", "judgements")
    ]
    file = files[number % len(files)]
    content = (clean / file).read_bytes()
    (broken / file).write_bytes(damage(content, "json", seed))
    try:
        only_errors([lambda: report_page(read_run(broken))])
    finally:
        (broken / file).write_bytes(content)


@settings(QUICK, max_examples=4)
@given(number=ANY, seed=ANY)
def test_the_slow_verbs_end_with_a_message(
    clean: Path, tmp_path_factory: pytest.TempPathFactory, number: int, seed: int
) -> None:
    """To go on and to export: a traceback would come through."""
    run = Path(shutil.copytree(clean, tmp_path_factory.mktemp("slow") / "run"))
    names = (
        "manifest.json",
        "run.toml",
        "direction.safetensors",
        "controls.safetensors",
        "selection.json",
    )
    file = run / names[number % len(names)]
    file.write_bytes(damage(file.read_bytes(), random.Random(seed).choice(kinds_for(file)), seed))
    for arguments in (
        ["report", str(run), "--figures", "none"],
        ["export", str(run), "--as", "direction", "--out", str(run.parent / "exported"), "-q"],
        ["run", "--config", str(clean / "run.toml"), "--out", str(run), "-q"],
    ):
        assert main(arguments) in (0, 1, 2)


def test_options_that_are_no_text_are_replaced_by_those_given(clean: Path, tmp_path: Path) -> None:
    """A run that names its options elsewhere does not need to read the folder's."""
    run = Path(shutil.copytree(clean, tmp_path / "run"))
    (run / "run.toml").write_bytes(b"\xc3(")
    assert main(["run", "--config", str(clean / "run.toml"), "--out", str(run), "-q"]) == 0
    assert (run / "run.toml").read_bytes() == (clean / "run.toml").read_bytes()


@pytest.mark.parametrize(
    ("file", "old", "new", "says"),
    [
        (
            "scores.json",
            '"bypass": ',
            '"bypass": "x", "y": ',
            "row 1, bypass: Input should be a valid number",
        ),
        ("scores.json", '"layer": 1,', '"layer": 99,', "beyond the candidates' "),
        ("scores.json", '"layer": 1,', '"layer": true,', "layer: Input should be a valid integer"),
        ("metrics.json", '"n": 3', '"n": 3, "frob": 1', "row 1, frob: Unexpected"),
        ("metrics.json", '"n": 3', '"n": NaN', "NaN is no JSON number"),
        ("metrics.json", '"n": 3', '"n": 3, "n": 4', "'n' stands twice"),
        (
            "selection.json",
            '"qualified": ',
            '"qualified": 1, "x": ',
            "qualified: Input should be a valid boolean",
        ),
        ("selection.json", '"drawn": ', '"drawn": "', "cannot be read as JSON"),
        (
            "stability.json",
            '"cosines": [',
            '"cosines": [[1.0], ',
            "not a row and a column for each",
        ),
        (
            "manifest.json",
            '"seconds": ',
            '"seconds": "long", "x": ',
            "stages, tokens, seconds: Input should be",
        ),
        (
            "manifest.json",
            '"seed": ',
            '"seed": null, "x": ',
            "seed: Input should be a valid integer",
        ),
        (
            "categories.json",
            "{",
            '{"other": {"a": 1}, ',
            "other, a: Input should be a valid string",
        ),
        ("projections.json", '"harmless": [', '"harmless": [[1.0], ', "not as many layers"),
        ("refusal_tokens.json", '"ids": [', '"ids": [5, ', "not one for each token"),
        (
            "judgements/agreement.json",
            '"n": ',
            '"n": null, "x": ',
            "row 1, n: Input should be a valid integer",
        ),
        (
            "completions/harmful.ablation.jsonl",
            '"verdict": "',
            '"verdict": "un',
            "line 1, verdict: Input should be",
        ),
        (
            "completions/harmful.ablation.jsonl",
            '"prompt": "',
            '"prompt": "\\ud800',
            "line 1: Invalid JSON",
        ),
    ],
)
def test_the_message_names_the_file_and_the_field(
    clean: Path, broken: Path, file: str, old: str, new: str, says: str
) -> None:
    content = (clean / file).read_text()
    assert old in content
    (broken / file).write_text(content.replace(old, new, 1))
    try:
        with pytest.raises(RunFolderError) as caught:
            read_run(broken)
    finally:
        (broken / file).write_text(content)
    assert says in str(caught.value)
    assert str(broken / file) in str(caught.value)
    assert "Delete it" in str(caught.value)


def test_the_page_of_an_older_or_newer_manifest(clean: Path, broken: Path) -> None:
    """Fields that are not known here are another version's, and those that it did not write yet are
    not there.
    """
    path = broken / "manifest.json"
    content = path.read_text()
    manifest = json.loads(content)
    manifest["frob"], manifest["model"]["frob"] = 1, {"x": None}
    for stage in manifest["stages"].values():
        del stage["flops"], stage["device_seconds"]
    path.write_text(json.dumps(manifest))
    try:
        assert "all together" in report_page(read_run(broken))
    finally:
        path.write_text(content)


@example(b"")
@example(b"[" * 100_000)
@example(b'{"position": ' + b"9" * 5000 + b"}")
@settings(QUICK, max_examples=25)
@given(content=st.binary(max_size=60))
def test_any_bytes_in_the_place_of_a_file(broken: Path, clean: Path, content: bytes) -> None:
    names = (
        "metrics.json",
        "candidates.safetensors",
        "direction.safetensors",
        "completions/harmful.ablation.jsonl",
    )
    for name in names:
        (broken / name).write_bytes(content)
        try:
            only_errors([lambda: read_run(broken)])
        finally:
            (broken / name).write_bytes((clean / name).read_bytes())
