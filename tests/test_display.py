"""Progress shows on a terminal only, with rate and time left; messages go to stderr, control
characters nowhere.
"""

import io
import logging
import time
import warnings

import pytest
from rich.console import Console
from rich.progress import Task, TaskID

from refusal import Metric
from refusal.cli import console, progress_bars
from refusal.cli import present as display
from refusal.cli.console import PlainConsole
from refusal.cli.drawing import drawn
from refusal.core.progress import task
from refusal.report.tables import all_tables


def terminal(monkeypatch: pytest.MonkeyPatch, is_terminal: bool = True) -> io.StringIO:
    """Replace stderr's console by one that writes into a string."""
    stream = io.StringIO()
    found = PlainConsole(file=stream, force_terminal=is_terminal, width=120, color_system=None)
    monkeypatch.setattr(console, "err", found)
    monkeypatch.setattr(display, "err", found)
    return stream


def test_a_task_on_a_terminal_shows_name_count_rate_and_time_left(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stream = terminal(monkeypatch)
    with progress_bars.reporting(), task("collect harmful", total=40, unit="prompts") as advance:
        for _ in range(10):
            advance(2)
            time.sleep(0.05)
        time.sleep(0.2)  # it is drawn ten times a second
    shown = stream.getvalue()
    assert "collect harmful" in shown
    assert "20/40 prompts" in shown
    assert "prompts/s" in shown
    assert "00:0" in shown  # time left, then time taken
    assert "20/20 prompts" in shown  # a task that needed fewer steps ends complete


@pytest.mark.parametrize(
    ("speed", "shown"), [(12.34, "12.3 prompts/s"), (0.25, "4.0 s each"), (None, "")]
)
def test_the_rate_is_per_second_or_when_slow_seconds_per_step(
    speed: float | None, shown: str
) -> None:
    state = Task(TaskID(0), "generate", 10, 5, _get_time=time.monotonic, fields={"unit": "prompts"})
    state.finished_speed = speed
    assert progress_bars._Rate().render(state).plain == shown


def test_a_task_of_unknown_length_shows_while_it_runs_and_is_then_gone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stream = terminal(monkeypatch)
    with progress_bars.reporting():
        with task("load the model", total=0, unit=""):
            time.sleep(0.3)
            assert "load the model" in stream.getvalue()
        stream.truncate(0)
        time.sleep(0.3)
        assert "load the model" not in stream.getvalue()


@pytest.mark.parametrize("quiet", [True, False])
def test_without_a_terminal_or_when_quiet_nothing_is_drawn(
    monkeypatch: pytest.MonkeyPatch, quiet: bool
) -> None:
    stream = terminal(monkeypatch, is_terminal=quiet)
    with progress_bars.reporting(quiet=quiet), task("collect", total=2) as advance:
        advance(2)
    assert stream.getvalue() == ""


@pytest.mark.parametrize(
    ("how", "shown"),
    [
        ({}, ["warning: two\n", "error: three\n"]),
        ({"quiet": True}, ["error: three\n"]),
        ({"verbose": True}, ["info: one\n", "warning: two\n", "error: three\n"]),
    ],
)
def test_messages_by_level_each_on_one_line(
    monkeypatch: pytest.MonkeyPatch, how: dict[str, bool], shown: list[str]
) -> None:
    stream = terminal(monkeypatch, is_terminal=False)
    log = logging.getLogger("refusal.test")
    with progress_bars.reporting(**how):
        log.info("one")
        log.warning("two")
        log.error("three")
    assert stream.getvalue() == "".join(shown)
    log.error("after")
    assert stream.getvalue() == "".join(shown)


def test_a_long_message_with_brackets_is_not_wrapped_or_styled(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stream = terminal(monkeypatch, is_terminal=False)
    text = "[INST] " + "word " * 60 + "[/INST]"
    with progress_bars.reporting():
        logging.getLogger("refusal").warning("%s", text)
    display.show_error(text)
    display.show_notice(text)
    assert stream.getvalue() == f"warning: {text}\nerror: {text}\n{text}\n"


def test_warnings_of_libraries_are_kept_for_verbose(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal(monkeypatch, is_terminal=False)
    with warnings.catch_warnings(record=True) as caught, progress_bars.reporting():
        warnings.warn("old", DeprecationWarning, stacklevel=1)
    assert caught == []


def test_replies_cannot_drive_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    display.show_part("red \x1b[31m bell \x07\nnext\tline [bold]é 日本")
    assert capsys.readouterr().out == "red ␛[31m bell ␇\nnext\tline [bold]é 日本"


def shown(*metrics: Metric) -> str:
    stream = io.StringIO()
    for table in all_tables(metrics):
        Console(file=stream, width=120).print(drawn(table))
    return stream.getvalue()


def test_the_table_of_rates_shows_every_condition_with_its_interval_and_change() -> None:
    text = shown(
        Metric("refusal_rate", "harmful", "baseline", 0.84, 0.75, 0.9, 100),
        Metric("degenerate_rate", "harmful", "baseline", 0.02, 0.0, 0.1, 100),
        Metric("refusal_rate", "harmful", "ablation", 0.04, 0.01, 0.1, 100),
        Metric("refusal_rate_corrected", "harmful", "ablation", 0.03, 0.0, 0.12, 100),
        Metric("refusal_rate_change", "harmful", "ablation", -0.8, -0.87, -0.7, 100, 1e-20),
    )
    rows = [line.split() for line in text.splitlines()]
    assert ["harmful", "baseline", "84%", "(75–90)", "2%", "100"] in rows
    assert [
        "harmful",
        "ablation",
        "4%",
        "(1–10)",
        "3%",
        "(0–12)",
        "-80",
        "(-87",
        "to",
        "-70)",
        "100",
    ] in rows


def test_few_prompts_show_their_interval_first() -> None:
    text = shown(Metric("refusal_rate", "harmful", "baseline", 0.5, 0.21, 0.79, 8))
    assert "21–79 (50%)" in text


def test_controls_over_refusal_drift_and_seeds_get_tables_of_their_own() -> None:
    text = shown(
        Metric("refusal_rate", "harmful", "ablation", 0.0, 0.0, 0.1, 32),
        Metric("refusal_rate", "harmful", "random-ablation", 0.9, 0.8, 0.97, 32),
        Metric("refusal_rate_change", "harmful", "random-ablation", 0.01, -0.05, 0.07, 32),
        Metric("refusal_rate", "harmful", "random-1-ablation", 0.123, 0.0, 1.0, 32),
        Metric("cosine", "direction", "shuffled", 0.1, 0.1, 0.1, 1),
        Metric("cosine", "direction", "matched", 0.95, 0.95, 0.95, 1),
        Metric("refusal_rate", "xstest-safe", "baseline", 0.31, 0.2, 0.4, 100),
        Metric("cross_entropy", "wiki", "ablation", 2.5, 2.4, 2.6, 64),
        Metric("cross_entropy_change", "wiki", "ablation", 0.017, 0.01, 0.024, 64),
        Metric("kl_first_token", "own-answers", "ablation", 0.13, 0.1, 0.2, 64),
        Metric("kl_first_32_tokens", "own-answers", "ablation", 0.05, 0.04, 0.06, 64),
        Metric("capability_acc_norm", "arc", "ablation", 0.45, 0.38, 0.52, 200),
        Metric("capability_acc_norm_change", "arc", "ablation", -0.02, -0.07, 0.03, 200, 0.48),
        Metric("capability_acc", "arc", "ablation", 0.44, 0.37, 0.51, 200),
        Metric("capability_perplexity", "wiki2", "ablation", 21.5, float("-inf"), float("inf"), 62),
        Metric("bypass", "direction", "seed-42", -4.5, -4.5, -4.5, 1),
        Metric("layer", "direction", "seed-42", 15.0, 15.0, 15.0, 1),
        Metric("bypass", "direction", "seed-43", -5.25, -5.25, -5.25, 1),
        Metric("position", "direction", "seed-43", -1.0, -1.0, -1.0, 1),
        Metric("layer", "direction", "seed-43", 16.0, 16.0, 16.0, 1),
        Metric("refusal_rate", "harmful", "seed-43-ablation", 0.02, 0.0, 0.05, 32),
        Metric("cosine", "direction", "seed-43", 0.97, 0.97, 0.97, 1),
    )
    for part in (
        "+1 (-5 to +7)",
        "+0.95",
        "31% (20–40)",
        "+0.017 (+0.010 to +0.024)",
        "(-1, 16)",
        "-5.25 to -4.50",
        "0% to 2%",
        "tokens 1–32",
        "0.05 (0.04–0.06)",
    ):
        assert part in text
    for part in (
        "arc, acc_norm",
        "45% (38–52)",
        "-2 (-7 to +3)",
        "0.48",
        "wiki2, perplexity",
        "21.50",
    ):
        assert part in text
    assert "44%" not in text  # not the main metric
    assert "12%" not in text  # one of several random directions


def test_in_a_narrow_terminal_numbers_are_broken_and_names_are_not() -> None:
    conditions = ("baseline", "unless-ablation", "ablation@0.35")
    names = ("refusal_rate", "refusal_rate_corrected", "refusal_rate_change", "degenerate_rate")
    metrics = [Metric(m, "xstest-unsafe", c, 0.5, 0.4, 0.6, 150) for c in conditions for m in names]
    (one,) = (t for t in all_tables(metrics) if "corrected" in t.columns)
    stream = io.StringIO()
    Console(file=stream, width=80).print(drawn(one))
    lines = stream.getvalue().splitlines()
    assert all(len(line) <= 80 for line in lines)
    for name in conditions:
        assert sum(f"xstest-unsafe  {name} " in line for line in lines) == 1
