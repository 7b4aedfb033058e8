"""Inputs that are wrong, one a row: each ends with the right exit code and one message that names the fault.

A row stands for a kind of fault. What a command must do with inputs that only look wrong is tested beside its module.
"""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import saved

from refusal.cli import main


class Place:
    """A folder of its own for one row, a tiny model and prompts that are in order."""

    def __init__(self, path: Path, source: Path, prompts: tuple[str, ...]) -> None:
        self.path, self.source, self.prompts = path, source, prompts

    def model(self) -> Path:
        """A copy of the tiny model's folder, to be damaged."""
        return Path(shutil.copytree(self.source, self.path / "model"))

    def run(self, *more: str, model: Path | None = None, verb: str = "run") -> list[str]:
        """The command line of a small run."""
        config = saved.small_config(model or self.source, self.prompts)
        return [verb, *saved.flags(config), "--out", str(self.path / "out"), *more]


class Hostile(NamedTuple):
    """``arguments`` prepares the files and gives the command line; ``says`` must all be in the one message."""

    name: str
    arguments: Callable[[Place], list[str]]
    says: tuple[str, ...]
    code: int = 2


def _no_such_model(place: Place) -> list[str]:
    return place.run(model=place.path / "nowhere")


# --- files of a model

MODEL_FILES: tuple[Hostile, ...] = (Hostile("no such folder", _no_such_model, ("nowhere", "embedded")),)

# --- identity of a run, direction files, contexts

IDENTITY: tuple[Hostile, ...] = ()

# --- prompt files and output places

PROMPT_FILES: tuple[Hostile, ...] = ()

# --- thinking, judges, refusal tokens

MEANING: tuple[Hostile, ...] = ()

# --- exports

EXPORTS: tuple[Hostile, ...] = ()

# --- files of a run folder

RUN_FOLDER: tuple[Hostile, ...] = ()

# --- options, environment, servers, what reaches a terminal

ARGUMENTS: tuple[Hostile, ...] = ()

ROWS = (*MODEL_FILES, *IDENTITY, *PROMPT_FILES, *MEANING, *EXPORTS, *RUN_FOLDER, *ARGUMENTS)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved.save_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    return saved.write_prompts(tmp_path_factory.mktemp("prompts"))


@pytest.mark.parametrize("row", ROWS, ids=[row.name for row in ROWS])
def test_a_wrong_input_ends_with_one_message_that_names_the_fault(
    row: Hostile,
    source: Path,
    prompts: tuple[str, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = row.arguments(Place(tmp_path, source, prompts))
    capfd.readouterr()
    code = main(arguments)
    out, err = capfd.readouterr()
    assert "Traceback" not in err
    assert (code, out, err.count("error: ")) == (row.code, "", 1), err
    for words in row.says:
        assert words in err, err
