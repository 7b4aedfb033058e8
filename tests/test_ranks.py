"""Several processes give what one gives: started by torchrun on loopback, with tiny models,
compared file by file.
"""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import saved
from serving import free_port, served

import refusal
from refusal import ConfigError, Direction, make_config
from refusal.config.commented import commented_toml
from refusal.config.run_config import RunConfig
from refusal.core import parallel
from refusal.weights.save import export_model

LIMIT = 30.0  # seconds in which a run must end after one of its processes has


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    base = tmp_path_factory.mktemp("ranks")
    return saved.small_config(
        saved.save_model(base / "model"),
        saved.write_prompts(base),
        dtype="float32",
        controls=2,
        n_control=2,
        drift_tokens=2,
        seeds=2,
        judges=("substring",),
    )


@pytest.fixture(scope="module")
def alone(config: RunConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("alone") / "run"
    refusal.run(config, out)
    return out


TORCHRUN = ("torch.distributed.run", "--standalone", "--nproc-per-node")
ACCELERATE = (
    "accelerate.commands.launch",
    "--cpu",
    "--num_machines",
    "1",
    "--mixed_precision",
    "no",
    "--num_processes",
)


def launch(
    config: RunConfig, out: Path, n: int, *more: str, launcher: tuple[str, ...] = TORCHRUN
) -> subprocess.Popen[str]:
    """A run in ``n`` processes with one thread each."""
    file = out.parent / "config.toml"
    file.write_text(commented_toml(config), encoding="utf-8")
    command = [
        sys.executable,
        "-m",
        *launcher,
        str(n),
        "-m",
        "refusal",
        "run",
        "--config",
        str(file),
        "--out",
        str(out),
        *more,
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MASTER_PORT": str(free_port())}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, env=environment, text=True, start_new_session=True, **pipes)  # type: ignore[call-overload, no-any-return]


def rows(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def assert_same(run: Path, alone: Path, asked: tuple[str, ...] = ()) -> None:
    """The same choice, scores to 1e-4, the same completions, the same numbers; under the conditions
    that a server was ``asked`` for nothing that needs tokens, which it does not give.
    """
    ours, theirs = (Direction.load(path / "direction.safetensors") for path in (run, alone))
    assert (ours.position, ours.layer) == (theirs.position, theirs.layer)
    assert float(ours.vector @ theirs.vector) == pytest.approx(1.0, abs=1e-6)
    scores = [
        {(s["position"], s["layer"]): s for s in json.loads((path / "scores.json").read_text())}
        for path in (run, alone)
    ]
    for place, score in scores[1].items():
        for name in ("bypass", "induce", "kl"):
            if None not in (score[name], scores[0][place][name]):
                assert scores[0][place][name] == pytest.approx(score[name], abs=1e-4)
    chosen = scores[0][ours.position, ours.layer]
    assert None not in (chosen["bypass"], chosen["induce"], chosen["kl"])
    files = sorted(path.relative_to(alone) for path in (alone / "completions").glob("*.jsonl"))
    assert files
    for file in files:
        known = rows(alone / file)
        if file.stem.partition(".")[2] in asked:
            known = [{**row, "tokens": None, "cuts": []} for row in known]
        assert rows(run / file) == known
    metrics = [json.loads((path / "metrics.json").read_text()) for path in (run, alone)]
    lengths = re.compile(r"refusal_rate_at_.*|refusal_rate_rise|delayed_refusal_rate|cut_off_rate")
    metrics[1] = [
        m for m in metrics[1] if m["condition"] not in asked or not lengths.fullmatch(m["name"])
    ]
    for one, other in zip(*metrics, strict=True):
        assert (one["name"], one["set"], one["condition"]) == (
            other["name"],
            other["set"],
            other["condition"],
        )
        assert one["value"] == pytest.approx(
            other["value"], rel=1e-5, abs=1e-4
        )  # a perplexity may be hundreds


@pytest.mark.parametrize("n", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_several_processes_give_what_one_gives(
    config: RunConfig, alone: Path, tmp_path: Path, n: int
) -> None:
    out, err = (done := launch(config, tmp_path / "run", n, "--json")).communicate(timeout=240)
    assert done.returncode == 0, err
    assert json.loads(out)["folder"] == str(tmp_path / "run")  # said once
    assert_same(tmp_path / "run", alone)
    tokens = [
        json.loads((path / "manifest.json").read_text())["stages"]["extract"]["forward_tokens"]
        for path in (tmp_path / "run", alone)
    ]
    assert tokens[0] >= tokens[1]  # of all processes together


@pytest.mark.slow
def test_samples_are_the_same_in_several_processes(config: RunConfig, tmp_path: Path) -> None:
    drawn = {"temperature": 1.0, "samples": 3, "seeds": 1, "controls": 1, "drift_tokens": 0}
    warm = config.model_copy(update=drawn)
    refusal.run(warm, tmp_path / "alone")
    done = launch(warm, tmp_path / "run", 2)
    _, err = done.communicate(timeout=240)
    assert done.returncode == 0, err
    files = sorted((tmp_path / "alone" / "completions").glob("*.jsonl"))
    assert len({row["completion"] for row in rows(files[0])}) > 3
    for file in files:
        assert rows(tmp_path / "run" / "completions" / file.name) == rows(file)


@pytest.mark.slow
def test_all_take_the_sizes_that_fit_the_first(config: RunConfig, tmp_path: Path) -> None:
    """Chosen by what each measures they would differ, and the processes wait for each other."""
    chosen = {"n_test", "max_new_tokens", "n_control", "seeds"}
    given = {name: getattr(config, name) for name in config.model_fields_set - chosen}
    # nothing that is given is larger than it might be: a busy machine is no error
    fitted = make_config(**{**given, "controls": 0, "drift_tokens": 0, "minutes": 0.2})
    _, err = (done := launch(fitted, tmp_path / "run", 2)).communicate(timeout=240)
    assert done.returncode == 0, err
    assert err.count("note: ") == 1  # said once
    sizes = json.loads((tmp_path / "run" / "manifest.json").read_text())["fitted"]["sizes"]
    written = make_config(file=tmp_path / "run" / "run.toml")
    assert {name: getattr(written, name) for name in sizes} == sizes
    assert sizes["n_train"] == config.n_train
    assert 16 <= written.n_test <= 100


@pytest.mark.slow
def test_accelerates_launcher_does_as_well(config: RunConfig, alone: Path, tmp_path: Path) -> None:
    _, err = (done := launch(config, tmp_path / "run", 2, launcher=ACCELERATE)).communicate(
        timeout=240
    )
    assert done.returncode == 0, err
    assert_same(tmp_path / "run", alone)


@pytest.mark.slow
def test_the_first_process_asks_a_server_for_all(
    config: RunConfig, alone: Path, tmp_path: Path
) -> None:
    """It also compares the server's completions with the model's, while the others wait."""
    direction = Direction.load(alone / "direction.safetensors")
    export_model(refusal.load(config.model, dtype="float32"), direction, tmp_path / "edited")
    with served(dtype="float32") as url:
        changes = {
            "engine": "openai",
            "engine_url": url,
            "engine_ablated": str(tmp_path / "edited"),
        }
        _, err = (
            done := launch(config.model_copy(update=changes), tmp_path / "run", 2)
        ).communicate(timeout=240)
    assert done.returncode == 0, err
    assert_same(tmp_path / "run", alone, asked=("baseline", "ablation"))


@pytest.mark.slow
def test_a_model_that_is_split_gives_what_a_whole_one_gives(
    config: RunConfig, alone: Path, tmp_path: Path
) -> None:
    """Tensor parallel: interventions act on what the parts have been added up to."""
    done = launch(config.model_copy(update={"tp_plan": "auto"}), tmp_path / "run", 2)
    _, err = done.communicate(timeout=240)
    assert done.returncode == 0, err
    assert_same(tmp_path / "run", alone)
    split, whole = (
        json.loads((path / "manifest.json").read_text()) for path in (tmp_path / "run", alone)
    )
    for key in ("forward_tokens", "flops"):  # of both parts together
        assert split["stages"]["extract"][key] == whole["stages"]["extract"][key]
    assert split["model"] == whole["model"]  # so either can go on with what the other has begun


@pytest.mark.slow
def test_a_program_of_ones_own_shares_the_work_too(
    config: RunConfig, alone: Path, tmp_path: Path
) -> None:
    """``refusal.pipeline.run`` joins the processes of a launcher by itself."""
    (tmp_path / "config.toml").write_text(commented_toml(config), encoding="utf-8")
    program = tmp_path / "program.py"
    program.write_text(
        "import sys, refusal\nrefusal.run(refusal.make_config(file=sys.argv[1]), sys.argv[2], "
        "until='generate')\n",
        encoding="utf-8",
    )
    command = [
        sys.executable,
        "-m",
        *TORCHRUN,
        "2",
        str(program),
        str(tmp_path / "config.toml"),
        str(tmp_path / "run"),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, env=environment, text=True, capture_output=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stderr
    for file in (alone / "completions").glob("*.jsonl"):
        assert rows(tmp_path / "run" / "completions" / file.name) == rows(file)
    stages = json.loads((tmp_path / "run" / "manifest.json").read_text())["stages"]
    assert stages["extract"]["device_seconds"] == pytest.approx(
        2 * stages["extract"]["seconds"], abs=0.02
    )


def test_splitting_a_model_needs_a_launcher(config: RunConfig) -> None:
    with pytest.raises(ConfigError, match="torchrun"):
        refusal.load(config.model, tp_plan="auto")


def test_what_is_wrong_is_said_once(config: RunConfig, tmp_path: Path) -> None:
    _, err = (done := launch(config, tmp_path / "run", 2, "--tasks", "no_such_task")).communicate(
        timeout=120
    )
    assert done.returncode != 0
    assert err.count("no task 'no_such_task'") == 1


@pytest.mark.slow
def test_a_process_that_dies_ends_the_run_and_it_resumes(
    config: RunConfig, alone: Path, tmp_path: Path
) -> None:
    started = launch(config, tmp_path / "run", 2)
    wait_for_stage(tmp_path / "run" / "manifest.json", "extract")
    workers = [
        p for p in psutil.Process(started.pid).children(recursive=True) if "refusal" in p.cmdline()
    ]
    second = next(p for p in workers if p.environ().get("RANK") == "1")
    second.send_signal(signal.SIGKILL)
    before = time.monotonic()
    _, err = started.communicate(timeout=LIMIT)
    assert time.monotonic() - before < LIMIT
    assert started.returncode != 0
    # The launcher may end the other process before that has noticed; then its own report is the
    # message.
    assert "error: Another process of this run has ended" in err or "exitcode" in err
    assert "refusal/cli.py" not in err  # no traceback of ours; torchrun shows its own
    kept = (tmp_path / "run" / "candidates.safetensors").stat().st_mtime_ns
    refusal.run(config, tmp_path / "run")  # in another number of processes
    assert (tmp_path / "run" / "candidates.safetensors").stat().st_mtime_ns == kept
    assert_same(tmp_path / "run", alone)


def wait_for_stage(manifest: Path, name: str) -> None:
    """Until the stage is finished: its files are there a little earlier."""
    until = time.monotonic() + 120
    while not manifest.is_file() or name not in json.loads(manifest.read_text())["stages"]:
        assert time.monotonic() < until, f"{name} was not finished"
        time.sleep(0.02)


def test_alone_there_is_nothing_to_share() -> None:
    assert (parallel.world(), parallel.rank(), parallel.is_writer()) == (1, 0, True)
    assert parallel.share([1, 2, 3], lambda x: x * x) == [1, 4, 9]
    assert parallel.smallest(7) == parallel.total(7) == 7
    assert parallel.decided(lambda: True)
    with parallel.joined():
        parallel.wait()
