"""The recipes of docs/architecture.md, followed to the letter in a copy of the package."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import report_runs
import saved

import refusal

PAGE = Path(__file__).parents[1] / "docs" / "architecture.md"
# Where the page says that its blocks of Python go, in the order of the page.
FILES = (
    "directions/difference_of_medians.py",
    "interventions/rectify.py",
    "evaluations/entropy.py",
    "audits/repeatable.py",
    "engines/alone.py",
    "evaluations/judges/polite.py",
)


def blocks(language: str) -> list[str]:
    text = PAGE.read_text(encoding="utf-8").partition("## Recipes")[2]
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


def edit(path: Path, place: str, text: str, *, over: bool = False) -> None:
    """Put ``text`` before the one ``place`` in a file, or in its stead."""
    before, found, after = path.read_text(encoding="utf-8").partition(place)
    assert found
    path.write_text(before + text + ("" if over else found) + after, encoding="utf-8")


def follow(package: Path) -> None:
    code, lines = blocks("python"), blocks("text")
    for name, text in zip(FILES, code, strict=True):
        assert f"`{name}`" in PAGE.read_text(encoding="utf-8")
        (package / name).write_text(text, encoding="utf-8")
    method, intervention, stages, option, audit, engine, judge = lines
    for room, line in (
        ("directions", method),
        ("interventions", intervention),
        ("audits", audit),
        ("engines", engine),
        ("evaluations/judges", judge),
    ):
        edit(package / room / "__init__.py", "    },\n)", line)
    listed = re.search(r'    "evaluate": .*\n', (package / "pipeline/stages.py").read_text())
    assert listed is not None
    edit(package / "pipeline/stages.py", listed[0], stages, over=True)
    imported = "from refusal.evaluations.entropy import Entropy\n"
    edit(package / "pipeline/stages.py", "from refusal.evaluations.judges", imported)
    edit(package / "config/options.py", "    max_new_tokens: Count", option)


@pytest.mark.slow
def test_whoever_follows_the_recipes_has_all_six(tmp_path: Path) -> None:
    package = tmp_path / "src" / "refusal"
    shutil.copytree(str(Path(str(refusal.__file__)).parent), package)
    follow(package)
    method = (package / FILES[0]).read_text(encoding="utf-8")
    assert len(method.splitlines()) + 1 < 60  # with its registration

    def cli(*words: str) -> str:
        environment = {**os.environ, "PYTHONPATH": str(package.parent), "COLUMNS": "200"}
        command = [sys.executable, "-m", "refusal", *words]
        found = subprocess.run(command, capture_output=True, text=True, env=environment)
        assert found.returncode == 0, found.stderr
        return found.stdout

    help_text = cli("run", "--help")
    for word in ("medians", "rectification", "--entropy", "alone"):
        assert word in help_text
    config = report_runs.full_config(tmp_path, seeds=1)
    asked = ["--method", "medians", "--interventions", "rectification", "--entropy"]
    asked += ["--engine", "alone", "--judges", "polite"]
    cli("run", *saved.flags(config), *asked, "--out", str(tmp_path / "run"))
    page = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    for word in ("medians", "rectification", "first token entropy", "polite"):
        assert word in page
    estimates = {
        name: json.loads(cli("estimate", *saved.flags(config), *words, "--device=h100", "--json"))
        for name, words in (("plain", []), ("asked", asked))
    }
    plain, more = (estimates[name]["seconds"] for name in ("plain", "asked"))
    assert more["entropy"] > 0
    assert "entropy" not in plain
    assert more["generate"] > plain["generate"]
    checks = json.loads(cli("inspect", config.model, "--json"))["checks"]
    assert checks[-1]["name"] == "a pass = the same again"
