"""Engines: whoever writes the completions, they are the ones that the model itself writes under
hooks.
"""

import os
import signal
import stat
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import saved
import tiny_models
import torch
from loopback import says, serving
from serving import served

import refusal
from refusal import ChatModel, ConfigError, Direction, EngineError
from refusal.config.commented import commented_toml
from refusal.config.engines import EngineOptions
from refusal.engines import ENGINES
from refusal.engines.hooks import HOOKS
from refusal.engines.paged import Paged
from refusal.engines.protocol import Engine, Job
from refusal.runs.files import read_completions, read_metrics
from refusal.weights.save import export_model

TEXTS = (
    "Name a colour.",
    "Why is the sea salty, and since when?",
    "Sing",
    "Count to ten.",
    "What is bread?",
    "Hm",
)
NEW = 8


def make_engine(options: EngineOptions, scratch: Path) -> Engine:
    made: Engine = ENGINES[options.engine](options, scratch)
    return made


def direction(model: ChatModel, layer: int = 1, norm: float = 40.0) -> Direction:
    vector = torch.randn(model.sites.d_model, generator=torch.Generator().manual_seed(5))
    return Direction(vector / vector.norm(), norm, -1, layer, True, model.name, 0, frozenset())


@pytest.fixture(autouse=True)
def no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved.save_model(tmp_path_factory.mktemp("engines") / "model", template="chatml")


@pytest.fixture(scope="module")
def model(folder: Path) -> ChatModel:
    return refusal.load(str(folder), dtype="float32")


@pytest.fixture(scope="module")
def edited(folder: Path, model: ChatModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model with the direction projected out of its weights."""
    out = tmp_path_factory.mktemp("edited") / "model"
    export_model(refusal.load(str(folder), dtype="float32"), direction(model), out)
    return out


# --- transformers' continuous batching


@pytest.mark.parametrize("condition", ["baseline", "ablation", "subtraction", "addition"])
@pytest.mark.parametrize("family", ["llama", "gemma2", "qwen2"])
def test_pages_change_nothing(family: str, condition: str) -> None:
    model = tiny_models.chat_model(family)
    given = Job(model, direction(model), condition, TEXTS, NEW, "test")
    assert Paged().generate(given) == HOOKS.generate(given)


def test_a_model_without_pages_is_completed_as_ever(caplog: pytest.LogCaptureFixture) -> None:
    model = tiny_models.chat_model("mamba2")
    given = Job(model, direction(model), "ablation", TEXTS[:2], 4, "test")
    assert Paged().generate(given) == HOOKS.generate(given)
    assert "cannot be kept in pages" in caplog.text


def test_fewer_pages_than_rows_only_take_longer(
    model: ChatModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("refusal.engines.paged.row_budget", lambda device, bytes_per_row: 2)
    given = Job(model, direction(model), "ablation", TEXTS, NEW, "test")
    assert Paged().generate(given) == HOOKS.generate(given)


# --- a server that runs


def test_a_real_server_writes_what_the_model_does(
    model: ChatModel, folder: Path, edited: Path, tmp_path: Path
) -> None:
    with served(dtype="float32") as url:
        options = EngineOptions(
            engine="openai",
            engine_url=url,
            engine_model=str(folder),
            engine_ablated=str(edited),
            engine_concurrency=2,
        )
        engine = make_engine(options, tmp_path)
        for condition in ("baseline", "ablation"):
            given = Job(model, direction(model), condition, TEXTS, NEW, "test")
            assert engine.generate(given) == HOOKS.generate(given)
        assert HOOKS.generate(
            Job(model, direction(model), "baseline", TEXTS, NEW, "")
        ) != engine.generate(Job(model, direction(model), "ablation", TEXTS, NEW, ""))


def test_a_run_asks_the_server_for_two_conditions_and_writes_the_others_itself(
    folder: Path, tmp_path: Path
) -> None:
    prompts = saved.write_prompts(tmp_path)
    config = saved.small_config(folder, prompts)
    own = refusal.run(config, tmp_path / "own")
    assert own.selection is not None
    export_model(
        refusal.load(str(folder), dtype="float32"), own.selection.direction, tmp_path / "edited"
    )
    with served(dtype="float32") as url:
        asked = config.model_copy(
            update={
                "engine": "openai",
                "engine_url": url,
                "engine_model": str(folder),
                "engine_ablated": str(tmp_path / "edited"),
            }
        )
        refusal.run(asked, tmp_path / "served")
    for name in (
        "harmful.baseline",
        "harmful.ablation",
        "harmful.subtraction",
        "harmless.addition",
    ):
        ours, theirs = (
            read_completions(tmp_path / run / "completions" / f"{name}.jsonl")
            for run in ("own", "served")
        )
        assert [replace(row, tokens=None) for row in ours] == [
            replace(row, tokens=None) for row in theirs
        ], name
        by_the_server = name.endswith(("baseline", "ablation"))  # which gives text, and no tokens
        assert {row.tokens is None for row in theirs} == {by_the_server}
    metrics = read_metrics(tmp_path / "served" / "metrics.json")
    with_curve = {(m.set, m.condition) for m in metrics if m.name == "cut_off_rate"}
    assert with_curve == {("harmful", "subtraction"), ("harmless", "addition")}
    assert "Not known of harmful, baseline; harmful, ablation; harmless, baseline" in (
        tmp_path / "served" / "report.html"
    ).read_text(encoding="utf-8")
    # what a server has written is kept when it is gone
    refusal.run(asked, tmp_path / "served")


def ask(server: Any, model: ChatModel, condition: str = "baseline", **options: Any) -> list[str]:
    given = EngineOptions(
        engine="openai",
        engine_url=server if isinstance(server, str) else server.url,
        engine_ablated="edited",
        **options,
    )
    return make_engine(given, Path()).generate(
        Job(model, direction(model), condition, TEXTS, NEW, "test")
    )


def test_another_model_is_refused(model: ChatModel) -> None:
    n = {len(row) for row in model.tokenize(TEXTS)}
    with serving(lambda item, k: says("Something quite different.", tokens=None)) as server:
        with pytest.raises(
            EngineError,
            match=r"begins 0 of 4 completions .* under baseline here: it is another model",
        ):
            ask(server, model)
        assert len(server.asked) == 4  # the others were not asked for
    longer = r"reads \d+ tokens of a prompt that has \d+ here: its chat template"
    with (
        serving(lambda item, k: says("x", tokens=(max(n) + 7, 1))) as server,
        pytest.raises(EngineError, match=longer),
    ):
        ask(server, model)


def test_the_unedited_model_is_not_taken_for_the_edited_one(model: ChatModel, folder: Path) -> None:
    far = replace(direction(model), norm=1.0)
    with served(dtype="float32") as url:
        options = EngineOptions(
            engine="openai", engine_url=url, engine_model=str(folder), engine_ablated=str(folder)
        )
        own = {
            c: HOOKS.generate(Job(model, far, c, TEXTS[:4], NEW, ""))
            for c in ("baseline", "ablation")
        }
        assert not any(
            a == b for a, b in zip(*own.values(), strict=True)
        )  # the direction matters to all four
        with pytest.raises(
            EngineError, match="begins 0 of 4 completions as the model does under ablation"
        ):
            make_engine(options, Path()).generate(Job(model, far, "ablation", TEXTS, NEW, "test"))


def test_a_prompt_without_a_completion_ends_the_run(model: ChatModel) -> None:
    own = HOOKS.generate(Job(model, direction(model), "baseline", TEXTS, NEW, ""))
    broken = iter(range(100))

    def behave(item: int, k: int) -> Any:
        n = next(broken)
        return says(own[n], tokens=None) if n < 4 else says("", status=400)

    with (
        serving(behave) as server,
        pytest.raises(EngineError, match=r"turns requests .* down|gave no completion of"),
    ):
        ask(server, model, engine_concurrency=1)


def test_the_edited_model_may_be_at_another_server(model: ChatModel) -> None:
    own = {
        c: HOOKS.generate(Job(model, direction(model), c, TEXTS[:1], NEW, ""))[0]
        for c in ("baseline", "ablation")
    }
    with (
        serving(lambda item, k: says(own["baseline"], tokens=None)) as plain,
        serving(lambda item, k: says(own["ablation"], tokens=None)) as edited,
    ):
        for condition in own:
            assert ask(plain, model, condition, engine_ablated_url=edited.url) == [
                own[condition]
            ] * len(TEXTS)
        assert {body["model"] for body in plain.bodies} == {model.name}
        assert {body["model"] for body in edited.bodies} == {"edited"}


def test_nobody_there(model: ChatModel) -> None:
    with pytest.raises(EngineError, match=r"Nobody answers at http://127\.0\.0\.1:9/v1"):
        ask("http://127.0.0.1:9/v1", model)


def test_a_server_needs_the_name_of_the_edited_model() -> None:
    with pytest.raises(ConfigError, match=r"Write it with refusal export RUN .* --engine-ablated"):
        make_engine(EngineOptions(engine="openai"), Path())


# --- vLLM, started here (a stand-in for its command)


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of its own with the stand-in as its `vllm` command, first on the PATH."""
    place = tmp_path / "bin"
    place.mkdir()
    command = place / "vllm"
    script = Path(__file__).with_name("vllm_stand_in.py")
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{script}" "$@"\n')
    command.chmod(command.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{place}{os.pathsep}{os.environ['PATH']}")
    return place


def test_vllm_is_started_for_each_condition_and_nothing_stays(
    stand_in: Path, model: ChatModel, tmp_path: Path
) -> None:
    scratch = tmp_path / "run"
    engine = make_engine(EngineOptions(engine="vllm"), scratch)
    try:
        for condition in ("baseline", "ablation"):
            given = Job(model, direction(model), condition, TEXTS, NEW, "test")
            assert engine.generate(given) == HOOKS.generate(given)
            assert len(list(scratch.iterdir())) == 1
    finally:
        engine.close()
    assert list(scratch.iterdir()) == []


def test_what_vllm_says_when_it_cannot_start_is_shown(
    stand_in: Path, model: ChatModel, tmp_path: Path
) -> None:
    options = EngineOptions(engine="vllm", engine_arguments=("fail-with=no room for the cache",))
    engine = make_engine(options, tmp_path / "run")
    with pytest.raises(
        EngineError,
        match=r"vllm ended with exit code 1 before it answered: no room for the cache\.",
    ):
        engine.generate(Job(model, direction(model), "baseline", TEXTS, NEW, "test"))
    assert list((tmp_path / "run").iterdir()) == []


def test_a_run_that_is_told_to_end_takes_its_server_along(
    stand_in: Path, folder: Path, tmp_path: Path
) -> None:
    """A scheduler's SIGTERM, or a launcher's: the server has a session of its own, and would keep
    the GPU.
    """
    out = tmp_path / "run"
    config = tmp_path / "config.toml"
    given = saved.small_config(
        folder, saved.write_prompts(tmp_path), engine="vllm", dtype="float32"
    )
    config.write_text(commented_toml(given), encoding="utf-8")
    command = [sys.executable, "-m", "refusal", "run", "--config", str(config), "--out", str(out)]
    with subprocess.Popen(command, start_new_session=True) as run:
        while not list(out.glob(".vllm-*/log")):
            assert run.poll() is None
            time.sleep(0.02)
        time.sleep(0.2)
        server = [child.pid for child in psutil.Process(run.pid).children()]
        run.terminate()
        assert run.wait(60) == 128 + signal.SIGTERM
    assert server
    assert not any(psutil.pid_exists(pid) for pid in server)
    assert list(out.glob(".vllm-*")) == []


def test_what_a_killed_run_left_is_removed(
    stand_in: Path, model: ChatModel, tmp_path: Path
) -> None:
    left = tmp_path / "run" / ".vllm-killed" / "model"
    left.mkdir(parents=True)
    engine = make_engine(EngineOptions(engine="vllm"), tmp_path / "run")
    try:
        engine.generate(Job(model, direction(model), "baseline", TEXTS[:1], 1, "test"))
        assert not left.exists()
    finally:
        engine.close()


def test_without_vllm(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match="needs the vllm command"):
        make_engine(EngineOptions(engine="vllm"), tmp_path)
