"""The command line: exit codes, one clear message for every mistake, JSON on stdout and everything
else on stderr.
"""

import errno
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import saved
import torch
from conftest import make_prompts
from transformers import AutoTokenizer

from refusal import Ablate, Add, ChatModel, Check, Direction, load
from refusal.audits import CHECKS
from refusal.cli.entry import main
from refusal.cli.verbs import VERBS
from refusal.config.run_config import RunConfig
from refusal.core.text import sanitised
from refusal.directions import METHODS
from refusal.interventions.conditions import CONDITIONS, ORDER


class Outcome(NamedTuple):
    code: int
    out: str
    err: str

    @property
    def message(self) -> str:
        """The one message on stderr."""
        assert self.err.count("\n") == 1, self.err
        assert "Traceback" not in self.err
        return self.err.removeprefix("error: ").rstrip("\n")


Cli = Callable[..., Outcome]


@pytest.fixture
def cli(capfd: pytest.CaptureFixture[str]) -> Cli:
    def call(*arguments: str) -> Outcome:
        capfd.readouterr()
        code = main(list(arguments))
        return Outcome(code, *capfd.readouterr())

    return call


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved.save_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    return saved.write_prompts(tmp_path_factory.mktemp("prompts"))


@pytest.fixture
def config(source: Path, prompts: tuple[str, ...]) -> RunConfig:
    return saved.small_config(source, prompts)


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Default run folders end up below the test's own folder."""
    monkeypatch.chdir(tmp_path)


# --- the job


def test_the_whole_job_prints_json_on_stdout_only(
    cli: Cli, config: RunConfig, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    done = cli("run", *saved.flags(config), "--out", str(out), "--json")
    assert done.code == 0
    assert done.err.startswith(
        "warning: None of the 3 baseline completions"
    )  # random weights write no language
    assert done.err.count("\n") == 1
    result = json.loads(done.out)
    assert result["folder"] == str(out)
    assert result["model"] == config.model
    assert result["metrics"] == json.loads((out / "metrics.json").read_text(encoding="utf-8"))
    assert result["selection"]["qualified"] is True
    assert result["refusal_tokens"]["source"] == "given"
    again = cli("run", *saved.flags(config), "--out", str(out), "--json")
    assert (again.code, again.out) == (0, done.out)


def test_a_person_gets_tokens_direction_and_rates_and_the_path(
    cli: Cli, config: RunConfig, tmp_path: Path
) -> None:
    done = cli("run", *saved.flags(config), "--out", str(tmp_path / "run"))
    assert done.code == 0
    assert done.out == f"Run folder: {tmp_path / 'run'}\n"
    for part in (
        "Refusal tokens (given): 'I'",
        "Direction: position",
        "bypass",
        "subtraction",
        "addition",
        "0%",
    ):
        assert part in done.err
    assert "\x1b" not in done.err


@pytest.mark.parametrize(
    ("verb", "last"),
    [
        ("extract", "candidates.safetensors"),
        ("select", "direction.safetensors"),
        ("generate", "completions/harmless.addition.jsonl"),
        ("evaluate", "metrics.json"),
    ],
)
def test_a_single_stage_verb_stops_after_its_stage(
    cli: Cli, config: RunConfig, tmp_path: Path, verb: str, last: str
) -> None:
    done = cli(verb, *saved.flags(config), "--out", str(tmp_path / "run"), "--json")
    assert done.code == 0
    order = [
        "candidates.safetensors",
        "direction.safetensors",
        "completions/harmless.addition.jsonl",
        "metrics.json",
    ]
    there = [name for name in order if (tmp_path / "run" / name).exists()]
    assert there == order[: order.index(last) + 1]
    result = json.loads(done.out)
    assert (result["selection"] is None) == (verb == "extract")
    assert (result["metrics"] == []) == (verb != "evaluate")


def test_the_verbs_one_after_the_other_do_what_run_does(
    cli: Cli, config: RunConfig, tmp_path: Path
) -> None:
    for verb in ("extract", "select", "generate", "evaluate"):
        cli(verb, *saved.flags(config), "--out", str(tmp_path / "steps"))
    times = saved.times(tmp_path / "steps")
    assert cli("run", *saved.flags(config), "--out", str(tmp_path / "steps")).code == 0
    assert saved.times(tmp_path / "steps") == times


def test_as_a_program_it_prints_no_bar_and_no_escape_code(
    config: RunConfig, tmp_path: Path
) -> None:
    command = [
        sys.executable,
        "-m",
        "refusal",
        "run",
        *saved.flags(config),
        "--out",
        str(tmp_path / "run"),
        "-q",
    ]
    done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    loud = subprocess.run(
        command[:-1], capture_output=True, text=True, encoding="utf-8", check=False
    )
    assert loud.returncode == 0
    assert loud.stdout == f"Run folder: {tmp_path / 'run'}\n"
    assert not re.search(r"\x1b|\r|it/s|%\|", loud.stderr)
    failed = subprocess.run(
        [*command[:3], "run", "no-such", "-q"], capture_output=True, text=True, check=False
    )
    assert failed.returncode == 2
    assert failed.stderr.startswith("error: ")
    assert failed.stderr.count("\n") == 1


def test_verbose_tells_what_is_reused(cli: Cli, config: RunConfig, tmp_path: Path) -> None:
    cli("extract", *saved.flags(config), "--out", str(tmp_path / "run"))
    assert (
        f"extract: reused from {tmp_path / 'run'}"
        in cli("extract", *saved.flags(config), "--out", str(tmp_path / "run"), "-v").err
    )


def test_a_run_can_be_repeated_from_its_run_toml(
    cli: Cli, config: RunConfig, tmp_path: Path
) -> None:
    first = tmp_path / "first"
    cli("select", *saved.flags(config), "--out", str(first))
    assert (
        cli("select", "--config", str(first / "run.toml"), "--out", str(tmp_path / "second")).code
        == 0
    )
    for name in ("run.toml", "candidates.safetensors", "direction.safetensors", "scores.json"):
        assert (tmp_path / "second" / name).read_bytes() == (first / name).read_bytes()


def settings(monkeypatch: pytest.MonkeyPatch, cli: Cli, *arguments: str) -> tuple[RunConfig, Path]:
    """What the command line asks the library to do."""
    asked: list[tuple[RunConfig, Path]] = []

    def record(config: RunConfig, out: Path, until: str, adding: bool) -> None:
        asked.append((config, out))
        raise KeyboardInterrupt

    monkeypatch.setattr("refusal.pipeline.run.run", record)
    assert cli(*arguments).code == 130
    return asked[0]


def test_flags_win_over_the_file_and_the_file_over_the_preset(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "o.toml"
    file.write_text(
        'model = "a/b"\nn_val = 5\nn_test = 6\nfilter = false\nseed = 3\n', encoding="utf-8"
    )
    given = ["--n-test", "100", "--seed=-7", "--filter", "auto"]  # two of them are the defaults
    config, out = settings(
        monkeypatch, cli, "run", "--preset", "quick", "--config", str(file), *given
    )
    assert (config.model, config.minutes, config.n_val, config.n_test) == ("a/b", 8, 5, 100)
    assert (config.seed, config.filter) == (-7, "auto")
    assert out == Path("runs/a-b")
    config, _ = settings(monkeypatch, cli, "run", "c/d", "--config", str(file))
    assert (config.model, config.filter) == ("c/d", "none")
    for given, kind in ((["--no-filter"], "none"), (["--filter", "completions"], "completions")):
        config, _ = settings(monkeypatch, cli, "run", "c/d", *given)
        assert config.filter == kind


@pytest.mark.parametrize(
    ("arguments", "model", "folder"),
    [
        ([], "embedded", "runs/embedded"),
        (
            ["Qwen/Qwen2.5-1.5B-Instruct"],
            "Qwen/Qwen2.5-1.5B-Instruct",
            "runs/Qwen-Qwen2.5-1.5B-Instruct",
        ),
        (["../models/tiny/"], "../models/tiny/", "runs/models-tiny"),
        (["."], ".", "runs/model"),
        (["m.gguf", "--out", "x/y"], "m.gguf", "x/y"),
    ],
)
def test_the_model_and_the_folder_have_defaults(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, arguments: list[str], model: str, folder: str
) -> None:
    config, out = settings(monkeypatch, cli, "run", *arguments)
    assert (config.model, out) == (model, Path(folder))


# --- wrong usage


@pytest.mark.parametrize(
    "arguments",
    [["--help"], ["--version"], [], ["chat", "--help"], *([v, "--help"] for v in VERBS)],
)
def test_help_and_version_end_with_zero(cli: Cli, arguments: list[str]) -> None:
    done = cli(*arguments)
    assert (done.code, done.err) == (0, "")
    if "--version" in arguments:
        assert done.out == f"{version('refusal')}\n"
    else:
        assert "Usage: refusal" in done.out


def test_help_names_every_option(cli: Cli) -> None:
    shown = cli("run", "--help").out
    for name in RunConfig.model_fields:
        assert name == "model" or f"--{name.replace('_', '-')}" in shown
    for name in ("--out", "--preset", "--config", "--json", "-q", "-v"):
        assert name in shown


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["frob"], "frob"),
        (["run", "--nope"], "--nope"),
        (["run", "a/b", "c/d"], "c/d"),
        (["run", "--seed"], "--seed"),
        (["run", "--n-train", "-3"], "n_train = '-3'"),
        (["run", "--n-val=0"], "n_val = '0'"),
        (["run", "--max-new-tokens", "1.5"], "max_new_tokens = '1.5'"),
        (["run", "--kl-threshold", "nan"], "kl_threshold"),
        (["run", "--dtype", "int3"], "dtype = 'int3'"),
        (["run", "--dedup", "maybe"], "dedup = 'maybe'"),
        (["run", "--preset", "fast"], "Unknown preset 'fast'"),
        (["run", "--device", "toaster"], "Unknown device 'toaster'"),
        (["run", "--device", "cuda:99"], "not available"),
        (["run", "--config", "missing.toml"], "missing.toml"),
        (["run", "--data-dir", "nowhere", "--prompts", "paper"], "nowhere"),
        (["run", "--strict=perhaps"], "perhaps"),
        (["chat", "--max-new-tokens", "0"], "max-new-tokens"),
        (["chat", "--n-train", "3"], "--n-train"),
    ],
)
def test_wrong_usage_is_one_message_and_exit_code_2(
    cli: Cli, arguments: list[str], message: str
) -> None:
    done = cli(*arguments)
    assert (done.code, done.out) == (2, "")
    assert message in done.message
    assert "pydantic" not in done.err


# --- what cannot be used


def test_an_unknown_model_or_no_network(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*args: object, **kwargs: object) -> None:
        raise OSError("We couldn't connect to the hub.\nSecond line.")

    monkeypatch.setattr(AutoTokenizer, "from_pretrained", offline)
    done = cli("run", "owner/model")
    assert done.code == 2
    for part in ("'owner/model'", "couldn't connect", "local folder", ".gguf file", "`embedded`"):
        assert part in done.message


@pytest.mark.parametrize(
    ("template", "arguments", "message"),
    [
        (None, [], "no chat template: this looks like a base model"),
        ("no-system", ["--system", "Be brief."], "rejects a system prompt"),
    ],
)
def test_a_chat_template_that_does_not_serve(
    cli: Cli,
    config: RunConfig,
    tmp_path: Path,
    template: str | None,
    arguments: list[str],
    message: str,
) -> None:
    folder = saved.save_model(tmp_path / "model", template=template)
    done = cli("run", *saved.flags(config.model_copy(update={"model": str(folder)})), *arguments)
    assert done.code == 2
    assert message in done.message


@pytest.mark.parametrize(
    ("name", "content", "arguments", "message"),
    [
        ("p.txt", b"", [], "holds no prompts"),
        ("p.txt", b"\n  \n", [], "holds no prompts"),
        ("p.txt", b"caf\xe9\n", [], "not UTF-8"),
        ("p.txt", None, [], "There is no prompt file"),
        ("p.doc", b"x", [], "unknown kind"),
        ("p.csv", b"a,b\n1,2\n", ["--column", "text"], "no column text"),
        ("p.csv", b"prompt,b\n1,2\n", ["--column", "text"], "no column text"),
        ("p.json", b"{", [], "not valid json"),
        ("p.jsonl", b'"a"\n{', [], "not valid jsonl"),
    ],
)
def test_a_prompt_file_that_cannot_be_used(
    cli: Cli,
    source: Path,
    tmp_path: Path,
    name: str,
    content: bytes | None,
    arguments: list[str],
    message: str,
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    done = cli("run", str(source), *arguments, "--prompts", f"harmful={tmp_path / name}")
    assert done.code == 2
    assert message in done.message
    assert name in done.message


def test_a_file_without_a_class_says_how_to_give_one(
    cli: Cli, source: Path, tmp_path: Path
) -> None:
    (tmp_path / "p.txt").write_text("One.\nTwo.\n", encoding="utf-8")
    done = cli("run", str(source), "--prompts", str(tmp_path / "p.txt"))
    assert done.code == 2
    assert "harmful=" in done.message


def test_duplicate_prompts_count_once(
    cli: Cli, config: RunConfig, tmp_path: Path, prompts: tuple[str, ...]
) -> None:
    lines = [p.text for p in make_prompts("harmful", saved.PER_CLASS)]
    (tmp_path / "twice.txt").write_text("\n".join([*lines, *lines]), encoding="utf-8")
    counts = []
    for harmful, out in ((prompts[0], "once"), (f"harmful={tmp_path / 'twice.txt'}", "twice")):
        arguments = saved.flags(config.model_copy(update={"prompts": (harmful, prompts[1])}))
        assert cli("extract", *arguments, "--out", out).code == 0
        counts.append(
            json.loads(Path(out, "manifest.json").read_text(encoding="utf-8"))["prompts"]["counts"]
        )
    assert counts[0] == counts[1]


def test_too_few_prompts_that_pass_the_filter(cli: Cli, config: RunConfig) -> None:
    done = cli("run", *saved.flags(config.model_copy(update={"filter": "metric"})))
    assert done.code == 1
    assert re.search(r"Only \d+ of \d+ harmful prompts pass", done.message)
    assert "at least 8" in done.message
    assert re.search(r"first tokens there: .+ \(\d+\)", done.message)
    assert "--refusal-tokens" in done.message
    assert "--no-filter" in done.message


def test_no_candidate_under_strict(cli: Cli, config: RunConfig) -> None:
    done = cli(
        "run", *saved.flags(config.model_copy(update={"induce_threshold": 1000.0})), "--strict"
    )
    assert done.code == 1
    last = done.err.splitlines()[-1]
    assert re.match(r"error: No candidate qualifies; rejected by .*induce \d+", last)
    assert "Run without --strict" in last


def test_without_strict_the_closest_candidate_is_marked_everywhere(
    cli: Cli, config: RunConfig, tmp_path: Path
) -> None:
    arguments = saved.flags(config.model_copy(update={"induce_threshold": 1000.0}))
    done = cli("run", *arguments, "--out", str(tmp_path / "run"))
    assert done.code == 0
    assert "warning: No candidate qualifies" in done.err
    assert "UNQUALIFIED direction" in done.err
    assert Direction.load(tmp_path / "run" / "direction.safetensors").qualified is False
    done = cli("run", *arguments, "--out", str(tmp_path / "run"), "--json")
    assert json.loads(done.out)["selection"]["qualified"] is False


@pytest.mark.parametrize("out", ["file", "file/run", "file/a/b"])
def test_an_out_that_is_no_folder(cli: Cli, config: RunConfig, tmp_path: Path, out: str) -> None:
    (tmp_path / "file").write_text("mine", encoding="utf-8")
    done = cli("run", *saved.flags(config), "--out", str(tmp_path / out))
    assert done.code == 2
    assert "--out" in done.message
    assert (tmp_path / "file").read_text(encoding="utf-8") == "mine"


def test_an_out_that_is_not_writable(
    cli: Cli, config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    done = cli("run", *saved.flags(config), "--out", str(tmp_path / "run"))
    assert done.code == 2
    assert "not writable" in done.message


@pytest.mark.parametrize(
    "name", ["run.toml", "candidates.safetensors", "direction.safetensors", "metrics.json"]
)
def test_a_full_disk_keeps_the_finished_stages(
    cli: Cli, config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    out = tmp_path / "run"
    real = Path.replace

    def replace(self: Path, target: Path) -> Path:
        if Path(target).name == name:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", replace)
        done = cli("run", *saved.flags(config), "--out", str(out))
    assert done.code == 1
    said = done.err.splitlines()[-1]  # that no completion is an answer may stand before it
    assert "No space left on device" in said
    assert name in said
    assert not (out / name).exists()
    assert list(out.rglob(".*")) == []
    file = out / "manifest.json"
    stages = json.loads(file.read_text(encoding="utf-8"))["stages"] if file.exists() else {}
    kept = {written for stage in stages.values() for written in stage["files"]}
    before = {key: when for key, when in saved.times(out).items() if Path(key).name in kept}
    assert cli("run", *saved.flags(config), "--out", str(out)).code == 0
    assert before.items() <= saved.times(out).items()
    written = sorted(CONDITIONS, key=lambda key: ORDER.index(key[1]))
    order = [
        "tokens",
        "extract",
        "select",
        "projections",
        *(f"generate {s}.{c}" for s, c in written),
        "evaluate",
    ]
    stops = {
        "run.toml": 0,
        "candidates.safetensors": 1,
        "direction.safetensors": 2,
        "metrics.json": 10,
    }
    assert list(stages) == order[: stops[name]]


def test_another_model_in_the_same_folder(cli: Cli, config: RunConfig, tmp_path: Path) -> None:
    cli("extract", *saved.flags(config), "--out", str(tmp_path / "run"))
    other = saved.save_model(tmp_path / "other", seed=1)
    done = cli(
        "run",
        *saved.flags(config.model_copy(update={"model": str(other)})),
        "--out",
        str(tmp_path / "run"),
    )
    assert done.code == 2
    assert "holds a run of" in done.message


@pytest.mark.parametrize("text", ["{", "[]", '{"format": 0, "model": {}, "stages": {}}'])
def test_a_damaged_or_foreign_manifest(
    cli: Cli, config: RunConfig, tmp_path: Path, text: str
) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "manifest.json").write_text(text, encoding="utf-8")
    done = cli("run", *saved.flags(config), "--out", str(tmp_path / "run"))
    assert done.code == 2
    assert "--out" in done.message


def test_an_interruption_exits_with_130_and_the_next_run_goes_on(
    cli: Cli, config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(METHODS["dim"], "select", interrupt)
        done = cli("run", *saved.flags(config), "--out", str(tmp_path / "run"))
    assert done.code == 130
    assert "the same command goes on" in done.message
    before = saved.times(tmp_path / "run")
    assert set(before) == {"refusal_tokens.json", "filter.json", "candidates.safetensors"}
    assert cli("run", *saved.flags(config), "--out", str(tmp_path / "run")).code == 0
    assert before.items() <= saved.times(tmp_path / "run").items()


# --- chat


@pytest.fixture(scope="module")
def direction(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    vector = torch.zeros(32)
    vector[3] = 1.0
    file = tmp_path_factory.mktemp("direction") / "direction.safetensors"
    Direction(vector, 50.0, -1, 1, model=str(source)).save(file)
    return file


@pytest.fixture
def talk(
    cli: Cli, source: Path, direction: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[Outcome, list[tuple[object, ...]], list[str]]]:
    """Chat through typed lines; returns the outcome, the interventions of each reply, and the
    prompts shown.
    """

    def call(
        *lines: str | type[BaseException],
    ) -> tuple[Outcome, list[tuple[object, ...]], list[str]]:
        typed: Iterator[str | type[BaseException]] = iter(lines)
        asked: list[str] = []
        applied: list[tuple[object, ...]] = []
        real = ChatModel.apply

        def type_line(prompt: str = "") -> str:
            asked.append(prompt)
            line = next(typed, EOFError)
            if isinstance(line, str):
                return line
            raise line

        def apply(self: ChatModel, *interventions: Any) -> Any:
            applied.append(interventions)
            return real(self, *interventions)

        monkeypatch.setattr("builtins.input", type_line)
        monkeypatch.setattr(ChatModel, "apply", apply)
        done = cli(
            "chat",
            str(source),
            "--direction",
            str(direction),
            "--max-new-tokens",
            "3",
            "--dtype",
            "float32",
        )
        return done, applied, asked

    return call


def test_chat_switches_between_conditions(talk: Any, direction: Path) -> None:
    done, applied, asked = talk(
        "Hi", "/ablate", "Hi", "/add 1.0", "Hi", "/add -2", "Hi", "/baseline", "  ", "Hi", "/quit"
    )
    assert done.code == 0
    found = Direction.load(direction)
    kinds = [[(type(i), getattr(i, "alpha", None)) for i in each] for each in applied]
    assert kinds == [[], [(Ablate, 1.0)], [(Add, 1.0)], [(Add, -2.0)], []]
    assert all(i.direction.layer == found.layer for each in applied for i in each)
    states = [a.split("]")[0].lstrip("[") for a in asked]
    assert (
        states
        == ["baseline"] * 2 + ["ablation"] * 2 + ["add 1"] * 2 + ["add -2"] * 2 + ["baseline"] * 3
    )


def test_chat_replies_are_those_of_the_library(talk: Any, source: Path, direction: Path) -> None:
    done, _, _ = talk("Hello", "/add 1.0", "/reset", "Hello")
    model, found = load(str(source), dtype="float32"), Direction.load(direction)
    plain = model.generate(["Hello"], 3)
    with model.apply(Add(found, 1.0)):
        moved = model.generate(["Hello"], 3)
    assert plain != moved
    assert done.code == 0  # the end of the input ends the talk
    for reply in (plain[0], moved[0]):
        assert sanitised(reply) in done.out


@pytest.mark.parametrize(
    "line", ["/add x", "/add", "/add nan", "/add inf", "/add 1 2", "/remove", "/ablate now", "/"]
)
def test_chat_explains_its_commands(talk: Any, line: str) -> None:
    done, applied, asked = talk(line, "Hi")
    assert done.code == 0
    assert done.err.count("/baseline  /ablate  /add ALPHA  /reset  /tokens  /quit") == 2
    assert applied == [()]
    assert asked[-1].startswith("[baseline]")


def test_chat_is_interrupted_with_130(talk: Any) -> None:
    done, _, _ = talk("Hi", KeyboardInterrupt)
    assert done.code == 130


def test_chat_without_a_direction(cli: Cli, source: Path) -> None:
    done = cli("chat", str(source))
    assert done.code == 2
    assert "holds no direction yet" in done.message
    assert f"refusal select {source} --out runs" in done.message


def test_chat_with_a_direction_of_another_width(cli: Cli, source: Path, tmp_path: Path) -> None:
    Direction(torch.ones(7) / 7**0.5, 1.0, -1, 1).save(tmp_path / "d.safetensors")
    done = cli("chat", str(source), "--direction", str(tmp_path / "d.safetensors"))
    assert done.code == 2
    assert "7 dimensions" in done.message


def test_chat_tells_when_the_direction_is_another_models(
    cli: Cli, tmp_path: Path, direction: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("builtins.input", lambda prompt: "/quit")
    other = saved.save_model(tmp_path / "other", seed=1)
    assert f"found on {source}" in cli("chat", str(other), "--direction", str(direction)).err
    assert "found on" not in cli("chat", str(source), "--direction", str(direction)).err


def test_chat_finds_the_direction_of_a_run(
    cli: Cli, config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("builtins.input", lambda prompt: "/quit")
    cli("select", *saved.flags(config))
    assert cli("chat", config.model).code == 0


def test_chat_compares_weights_and_not_names(
    cli: Cli, config: RunConfig, tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("builtins.input", lambda prompt: "/quit")
    cli("select", *saved.flags(config), "--out", "r")
    moved = str(shutil.copytree(source, tmp_path / "moved"))
    for dtype in ("float32", "bfloat16"):  # not that of the run: the files are compared
        done = cli("chat", moved, "--out", "r", "--dtype", dtype)
        assert done.code == 0
        assert "found on" not in done.err
    other = saved.save_model(tmp_path / "other", seed=1)
    for how in (["--out", "r"], ["--direction", "r/direction.safetensors"]):
        done = cli("chat", str(other), *how)
        assert done.code == 2
        assert "has other weights than that had" in done.message


# --- inspect


def test_inspect_describes_the_model_on_stdout(cli: Cli, source: Path) -> None:
    found = cli("inspect", str(source), "--dtype", "float32")
    assert found.code == 0
    for words in (
        "LlamaForCausalLM",
        "self_attn + mlp in 5 blocks",
        "prompts share rows",
        "Self-checks",
        "ok",
    ):
        assert words in found.out
    assert "FAILED" not in found.out
    assert "Traceback" not in found.err


def test_inspect_prints_json_with_every_check(cli: Cli, source: Path) -> None:
    found = cli("inspect", str(source), "--dtype", "float32", "--json")
    value = json.loads(found.out)
    assert found.code == 0
    assert value["ok"] is True
    assert value["kinds"] == [{"count": 5, "writers": ["self_attn", "mlp"], "post_norms": []}]
    assert len(value["checks"]) == 5
    assert all(check["ok"] and check["value"] <= check["limit"] for check in value["checks"])


def test_inspect_ends_with_1_if_a_check_fails(
    cli: Cli, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad = Check("a sum", float("inf"), 1e-4)
    checks = {**CHECKS, "sum": lambda model: bad}
    monkeypatch.setattr("refusal.audits.self_checks.CHECKS", checks)
    found = cli("inspect", str(source), "--dtype", "float32", "--json")
    assert found.code == 1
    assert "1 of 6 self-checks failed: a sum (inf, limit 1e-04)" in found.err
    value = json.loads(found.out)
    assert value["ok"] is False
    assert value["checks"][-1] == {"name": "a sum", "value": None, "limit": 1e-4, "ok": False}
    assert "FAILED" in cli("inspect", str(source), "--dtype", "float32").out


def test_inspect_refuses_a_layout_that_does_not_add_up(cli: Cli, source: Path) -> None:
    found = cli("inspect", str(source), "--writers", "self_attn")
    assert found.code == 2
    assert "do not add up" in found.message
    assert found.out == ""
    assert cli("inspect", str(source), "--writers", "self_attn", "mlp", "--quiet").code == 0
