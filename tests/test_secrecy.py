"""What is not written and not shown: keys, passwords, control characters, formulas; and who may
read the files.
"""

import csv
import io
import json
import logging
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
import saved
from loopback import Reply, items, says, serving

from refusal import ConfigError, JudgeError, make_config
from refusal.cli import console, progress_bars
from refusal.cli import present as display
from refusal.cli.entry import main
from refusal.config.commented import commented_toml
from refusal.config.judges import JudgeOptions
from refusal.core import endpoint, parallel
from refusal.core.errors import UsageError
from refusal.core.secrecy import shown_arguments
from refusal.core.storage import write_text
from refusal.core.tables import Cell, Table
from refusal.evaluations.judges.make import make_judge
from refusal.report.csv_tables import to_csv

NASTY = "\x1b[2J\x1b]0;owned\x07\u202e\x9b[/x][bold]:smile:"


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        (["--api-key", "abc", "x"], ["--api-key", "[hidden]", "x"]),
        (["--hf-token=abc"], ["--hf-token=[hidden]"]),
        (["api-key=abc", "PASSWORD=x y"], ["api-key=[hidden]", "PASSWORD=[hidden]"]),
        (["http://me:pw@host/v1"], ["http://[hidden]@host/v1"]),
        (["--judge-url=http://me:p@w@host"], ["--judge-url=http://[hidden]@host"]),
        (
            ["--max-new-tokens", "5", "--judge-key-env", "NAME"],
            ["--max-new-tokens", "5", "--judge-key-env", "NAME"],
        ),
        (
            ["--refusal-tokens", "I", "harmful=a@b.txt"],
            ["--refusal-tokens", "I", "harmful=a@b.txt"],
        ),
    ],
)
def test_secrets_among_arguments(given: list[str], shown: list[str]) -> None:
    assert shown_arguments(given) == shown


@pytest.mark.parametrize("name", ["judge_url", "engine_url", "engine_ablated_url"])
def test_no_address_with_a_password_gets_into_a_configuration(name: str) -> None:
    with pytest.raises(ConfigError, match="key-env") as caught:
        make_config(**{name: "https://me:hunter2@host/v1"})
    assert "hunter2" not in str(caught.value)
    for good in ("http://127.0.0.1:8000/v1", "https://[::1]:8/v1", "http://host"):
        assert getattr(make_config(**{name: good}), name) == good


def test_no_key_gets_into_a_configuration() -> None:
    with pytest.raises(ConfigError, match="VLLM_API_KEY") as caught:
        make_config(engine_arguments=("tensor-parallel-size=8", "api-key=hunter2"))
    assert "hunter2" not in str(caught.value)


# --- the terminal


def test_nothing_that_is_printed_drives_a_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In lines, tables, log records and progress; brackets and colons stay what they are."""
    from rich.table import Table

    table = Table("a", title=NASTY)
    table.add_row(NASTY)
    for one in (console.err, console.out):
        one.print(table)
        one.print(NASTY, soft_wrap=True)
    with progress_bars.reporting():
        logging.getLogger("refusal").warning("%s", NASTY)
    display.show_error(NASTY)
    display.show_notice(NASTY)
    display.show_part(NASTY)
    shown = "".join(capsys.readouterr())
    assert not set(shown) & set("\x1b\x07\u202e\x9b")
    assert shown.count("[/x][bold]:smile:") >= 5


def test_a_name_with_markup_may_be_a_task(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(console.err, "_file", stream)
    with (
        progress_bars.show_progress(),
        progress_bars._listener(progress_bars._progress())(NASTY, 2, "[/x]") as advance,
    ):
        advance(1)


def test_a_configuration_on_the_terminal_is_escaped_and_means_the_same(tmp_path: Path) -> None:
    config = make_config(model="a\u202e\x9b\u200b")
    text = commented_toml(config)
    assert not set(text) & set("\u202e\x9b\u200b")
    (tmp_path / "c.toml").write_text(text)
    assert make_config(file=tmp_path / "c.toml") == config


def test_texts_are_no_formulas_and_numbers_are_numbers() -> None:
    cells: list[Cell] = ["=1+1", "+1", "-x", "@a", "\tb", "\rc", "plain", -1.5, -3, None]
    (row,) = csv.reader(
        io.StringIO(to_csv(Table("", ("a",), (tuple(cells),))).partition("\n")[2], newline="")
    )
    assert row == ["'=1+1", "'+1", "'-x", "'@a", "'\tb", "␍c", "plain", "-1.5", "-3", ""]


# --- files


@pytest.mark.skipif(os.name == "nt", reason="no umask")
@pytest.mark.parametrize("umask", [0o077, 0o027, 0o022])
def test_files_have_the_rights_that_the_umask_leaves(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        write_text(tmp_path / "a", "x")
        write_text(tmp_path / "a", "y")  # replaced
    finally:
        os.umask(before)
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o666 & ~umask
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


# --- servers


def test_requests_are_not_sent_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with serving(lambda item, n: says("refusal")) as other:

        class Redirecting(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                self.send_response(307)
                self.send_header("Location", f"{other.url}/chat/completions")
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *args: Any) -> None:
                """Nothing."""

        server = HTTPServer(("127.0.0.1", 0), Redirecting)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            url = f"http://127.0.0.1:{server.server_port}/v1"
            judge = make_judge("endpoint-refusal=m", JudgeOptions(judge_url=url, judge_retries=0))
            with pytest.raises(JudgeError, match="not sent on"):
                list(judge.judge(items(2)))
        finally:
            server.shutdown()
            server.server_close()
        assert other.asked == []


def test_a_body_without_end_is_a_failed_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.setattr(endpoint, "MOST_BYTES", 2_000_000)
    long = Reply(json.dumps({"x": "y" * 3_000_000}))
    with serving(lambda item, n: says("refusal") if item == 0 else long) as server:
        judge = make_judge(
            "endpoint-refusal=m",
            JudgeOptions(judge_url=server.url, judge_retries=0, judge_timeout=20),
        )
        found = {j.prompt_id: j for j in judge.judge(items(2))}
    assert found["p0"].label == "refusal"
    assert "more than 2 MB" in str(found["p1"].error)


# --- the environment


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("WORLD_SIZE", "two"), ("WORLD_SIZE", "-3"), ("WORLD_SIZE", "9" * 5000), ("RANK", "x"), ("RANK", "7"),
        ("MASTER_PORT", "99999"), ("MASTER_PORT", "x"), ("MASTER_ADDR", ""),
    ],
)  # fmt: skip
def test_a_launcher_that_says_nonsense(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    name: str,
    value: str,
) -> None:
    good = {"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}
    for key, text in {**good, name: value}.items():
        monkeypatch.setenv(key, text)
    with pytest.raises(UsageError, match=name), parallel.joined():
        pass
    assert main(["run", str(tmp_path / "nowhere")]) == 2
    assert capsys.readouterr().err.count("error: ") == 1


@pytest.mark.skipif(os.name == "nt", reason="a shell's redirections")
@pytest.mark.parametrize("redirection", ["| head -0", ">&-", "2>&-", "<&-"])
def test_outputs_that_are_closed(tmp_path: Path, redirection: str) -> None:
    """No traceback, and nothing from the interpreter's own exit."""
    program = f"{sys.executable} -c 'from refusal.cli.entry import entry; entry()' config"
    done = subprocess.run(
        ["bash", "-c", f"{program} {redirection}"], capture_output=True, text=True, timeout=300
    )
    assert done.stderr == ""


def test_what_chat_does_with_other_bytes(tmp_path: Path) -> None:
    model = saved.save_model(tmp_path / "model")
    from refusal import load
    from refusal.core.direction import Direction

    width = load(str(model)).sites.d_model
    import torch

    vector = torch.zeros(width)
    vector[0] = 1.0
    Direction(vector, 1.0, -1, 0).save(tmp_path / "d.safetensors")
    program = [
        sys.executable,
        "-c",
        "from refusal.cli.entry import entry; entry()",
        "chat",
        str(model),
    ]
    done = subprocess.run(
        [*program, "--direction", str(tmp_path / "d.safetensors"), "--max-new-tokens", "2"],
        input=b"caf\xe9\n/nonsense\n/quit\n", capture_output=True, timeout=300, env={**os.environ, "LC_ALL": "C"},
    )  # fmt: skip
    assert b"Traceback" not in done.stderr
    assert b"not UTF-8" in done.stderr
    assert done.stderr.count(b"Commands:") == 1
    assert done.returncode == 0
