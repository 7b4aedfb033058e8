"""One run at a time in a folder, what killed ones leave, and files of others that are never
replaced.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import saved

from refusal import ExportError, RunFolderError, StorageError, write_report
from refusal.config.commented import commented_toml
from refusal.core.lock import NAME, locked
from refusal.core.storage import check_page, left_by_dead, new_folder, temporary_prefix, write_text
from refusal.pipeline.run import run as run_stages
from refusal.report.compare_page import write_comparison


def lock_of(pid: int, host: str | None = None, started: float | None = None) -> str:
    process = psutil.Process(pid) if psutil.pid_exists(pid) else None
    when = started if started is not None else (process.create_time() if process else 0.0)
    return json.dumps({"pid": pid, "host": host or socket.gethostname(), "started": when})


@pytest.fixture
def dead() -> int:
    """The number of a process that has ended."""
    with subprocess.Popen([sys.executable, "-c", ""]) as child:
        child.wait()
    return child.pid


def test_a_folder_is_held_and_given_back(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "run"
    with locked(folder):
        found = json.loads((folder / NAME).read_text(encoding="utf-8"))
        assert (found["pid"], found["host"]) == (os.getpid(), socket.gethostname())
        with (
            pytest.raises(RunFolderError, match=rf"in use: process {os.getpid()} on"),
            locked(folder),
        ):
            pass
        assert (folder / NAME).exists()
    assert list(tmp_path.iterdir()) == []  # the folders were made for the lock alone
    with pytest.raises(ZeroDivisionError), locked(folder):
        (folder / "kept").write_text("x", encoding="utf-8")
        raise ZeroDivisionError
    assert [path.name for path in folder.iterdir()] == ["kept"]


def test_a_living_process_keeps_its_folder(tmp_path: Path) -> None:
    other = os.getppid()
    (tmp_path / NAME).write_text(lock_of(other), encoding="utf-8")
    with (
        pytest.raises(RunFolderError, match=rf"process {other} on .* give another --out"),
        locked(tmp_path),
    ):
        pass
    assert json.loads((tmp_path / NAME).read_text(encoding="utf-8"))["pid"] == other


def test_the_lock_of_a_dead_process_is_taken_over(tmp_path: Path, dead: int) -> None:
    reused = lock_of(os.getppid(), started=5.0)  # the number belongs to another process now
    mine = lock_of(os.getpid(), started=7.0)  # to this one: a container that was started again
    for stale in (lock_of(dead), reused, mine):
        (tmp_path / NAME).write_text(stale, encoding="utf-8")
        with locked(tmp_path):
            assert json.loads((tmp_path / NAME).read_text(encoding="utf-8"))["pid"] == os.getpid()
        assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("text", ["", "mine", "[]", "{}"])
def test_a_file_that_is_no_lock_stays(tmp_path: Path, text: str) -> None:
    (tmp_path / NAME).write_text(text, encoding="utf-8")
    with pytest.raises(RunFolderError, match="no lock of this program"), locked(tmp_path):
        pass
    assert (tmp_path / NAME).read_text(encoding="utf-8") == text


def test_another_machines_lock_is_not_judged(tmp_path: Path, dead: int) -> None:
    (tmp_path / NAME).write_text(lock_of(dead, "elsewhere"), encoding="utf-8")
    with (
        pytest.raises(RunFolderError, match=r"on elsewhere works there\. .* delete"),
        locked(tmp_path),
    ):
        pass


def test_what_dead_processes_were_writing_is_removed_and_nothing_else(
    tmp_path: Path, dead: int
) -> None:
    ours = temporary_prefix("x.json").replace(f".{os.getpid()}-", f".{dead}-")
    left = [
        tmp_path / f"{ours}abcd1234",
        tmp_path / "completions" / f"{ours}zz",
        tmp_path / ".vllm-killed",
    ]
    stays = [
        tmp_path / f"{temporary_prefix('x.json')}abcd1234",  # a living process's
        tmp_path / f".x.json.{dead}-00000000.abcd1234",  # another machine's, of today
        tmp_path / ".hidden", tmp_path / ".git" / "config", tmp_path / "x.json",
    ]  # fmt: skip
    for path in (*left, *stays):
        path.parent.mkdir(exist_ok=True)
        path.write_text("x", encoding="utf-8")
    with locked(tmp_path):
        assert not any(path.exists() for path in left)
        assert all(path.exists() for path in stays)
    old = time.time() - 2 * 24 * 3600
    os.utime(stays[1], (old, old))
    assert left_by_dead(tmp_path) == [stays[1]]


def test_an_export_that_was_killed_is_removed_by_the_next(tmp_path: Path, dead: int) -> None:
    left = (
        tmp_path
        / (temporary_prefix("model").replace(f".{os.getpid()}-", f".{dead}-") + "ab")
        / "folder"
    )
    other = tmp_path / (temporary_prefix("lora").replace(f".{os.getpid()}-", f".{dead}-") + "ab")
    left.mkdir(parents=True)
    other.mkdir()
    with new_folder(tmp_path / "model", 0) as folder:
        assert not left.exists()
        (folder / "x").write_text("x", encoding="utf-8")
    assert sorted(path.name for path in tmp_path.iterdir()) == [other.name, "model"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("run")
    config = saved.small_config(saved.save_model(place / "model"), saved.write_prompts(place))
    run_stages(config, place / "out")
    return place / "out"


def test_pages_replace_only_pages(finished: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    before = {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()}
    for path in (
        finished / "manifest.json",
        finished / "metrics.json",
        finished,
        Path("/dev/null"),
    ):
        with pytest.raises(ExportError, match=r"is no (page of this program|file)"):
            write_report(finished, out=path)
        with pytest.raises(ExportError, match=r"is no (page of this program|file)"):
            write_comparison([finished, finished], path)
    page.write_text("<html><title>Mine</title></html>", encoding="utf-8")
    with pytest.raises(ExportError, match="is no page"):
        write_report(finished, out=page)
    assert {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()} == before
    page.unlink()
    for _ in range(2):
        assert write_report(finished, out=page) == page
        check_page(page)
    write_comparison([finished, finished], page)
    assert Path("/dev/null").is_char_device()


def test_only_files_are_replaced(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(StorageError, match="no file"):
        write_text(tmp_path / "pipe", "x")
    assert (tmp_path / "pipe").is_fifo()


@pytest.mark.parametrize("name", ["direction.safetensors", "metrics.json", "report.html"])
def test_results_without_a_manifest_are_not_replaced(
    finished: Path, tmp_path: Path, name: str
) -> None:
    (tmp_path / name).write_text("mine", encoding="utf-8")
    with pytest.raises(RunFolderError, match=rf"holds {name} and no manifest"):
        run_stages(saved.small_config("no/such-model", ("builtin",)), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [name]


def start(out: Path, config: Path) -> "subprocess.Popen[bytes]":
    """A run in a process of its own, stopped while it holds the folder."""
    process = subprocess.Popen(
        [sys.executable, "-m", "refusal", "run", "--config", str(config), "--out", str(out)]
    )
    while (
        not (out / NAME).exists()
        or json.loads((out / NAME).read_text(encoding="utf-8"))["pid"] != process.pid
    ):
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGSTOP)
    return process


def test_two_runs_in_one_folder(tmp_path: Path) -> None:
    """The second is told; killed, the first leaves a lock that the next run takes over; told to
    end, it leaves none.
    """
    saved.save_model(tmp_path / "model")
    config = saved.small_config(tmp_path / "model", saved.write_prompts(tmp_path))
    options, out = tmp_path / "run.toml", tmp_path / "out"
    options.write_text(commented_toml(config), encoding="utf-8")
    with start(out, options) as first:
        with pytest.raises(RunFolderError, match=rf"in use: process {first.pid} on"):
            run_stages(config, out)
        first.kill()
    assert (out / NAME).exists()
    with start(out, options) as second:
        second.send_signal(signal.SIGTERM)
        second.send_signal(signal.SIGCONT)
        assert second.wait(120) == 128 + signal.SIGTERM
    assert not (out / NAME).exists()
