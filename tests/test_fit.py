"""Sizes that fit a number of minutes: what is given up is the same on every machine, in one order."""

import json
import re
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import saved
import tiny_models
import tomli_w
import torch

from refusal import ConfigError, make_config
from refusal.cli.entry import main
from refusal.config.commented import commented_toml
from refusal.config.run_config import RunConfig
from refusal.config.sizes import COARSER, FEWEST_LAYERS, SIZES, STEPS, TRADES
from refusal.config.tables import in_tables
from refusal.core.work import Lengths, Write
from refusal.model.forward import last_logits
from refusal.model.hooks import Edit, hooked
from refusal.model.memory import room_on
from refusal.model.sizes import ModelSize
from refusal.pipeline.costs.estimate import Machine, seconds_by_stage
from refusal.pipeline.costs.fit import MARGIN, Fitted, fit, minutes_for, sizes, sizes_given
from refusal.pipeline.costs.loaded import loaded_speed
from refusal.pipeline.costs.planning import _room, fitted_estimate, seconds_beside
from refusal.pipeline.costs.speed import Speed
from refusal.pipeline.stages import ALL
from refusal.runs.stage import Plan
from refusal.weights.proxy_model import blocks_needed

ROOT = Path(__file__).parent.parent
# The embedded model's, in float32 on two cores with AVX2 (docs/performance.md, "Which dtype").
SIZE = ModelSize(
    weights=1_543_714_304,
    active=1_310_340_608,
    head=233_373_696,
    cache=14_336,
    stored=2,
    linear=1_310_000_000,
    layers=28,
    d_model=1536,
    inner=8960,
)
SLOW = Speed(80e9, 10e9, ((1, 2 / 6.5e9), (16, 32 / 28.7e9), (128, 256 / 81.8e9)))
LENGTHS = Lengths(16, 16, 16, 24)
SPEEDS = np.geomspace(0.5, 2000, 40)  # times as fast as that: from a phone to several GPUs
LEAST = {"n_test": 16, "max_new_tokens": 24, "controls": 1, "n_control": 2}


def seconds_on(speed: float) -> Callable[[RunConfig], float]:
    """The estimate of the embedded model on a machine so many times as fast as the slow one."""
    room = room_on(SIZE, "cpu", 4, SIZE.weights * 4, 6e9)
    beside = seconds_beside(SIZE.weights * 4) / speed

    def seconds(config: RunConfig) -> float:
        plan = Plan(config, SIZE.layers, LENGTHS)
        return beside + sum(seconds_by_stage(plan, SIZE, SLOW.times(speed), room).values())

    return seconds


def fitted(speed: float, minutes: float = 8, **given: Any) -> Fitted:
    return fit(seconds_on(speed), make_config("quick", **given), set(given), minutes, SIZE.layers)


def amounts(config: RunConfig) -> list[float]:
    """Every size as a number that is larger where more is measured."""
    return [
        float("inf") if value is None else -value if name in COARSER else value
        for name, value in sizes(config).items()
    ]


# --- the table


def test_every_step_gives_up_more_of_one_size() -> None:
    assert {name for name, _ in STEPS} == set(SIZES)
    now: dict[str, Any] = {**sizes(RunConfig())}
    for name, to in STEPS:
        before = now[name]
        assert before is None or (to > before if name in COARSER else to < before)
        now[name] = to
    RunConfig(**now)  # the smallest are sizes that a run may have
    assert {name: now[name] for name in LEAST} == LEAST
    assert len({trade.why for trade in TRADES}) == len(TRADES)


def test_the_page_shows_the_table() -> None:
    text = (ROOT / "docs" / "minutes.md").read_text(encoding="utf-8")
    rows = [line for line in text.splitlines() if re.match(r"\| \d+ \|", line)]
    wanted = []
    for number, trade in enumerate(TRADES, start=1):
        steps: dict[str, list[str]] = {}
        for name, to in trade.steps:
            steps.setdefault(name, []).append(str(to))
        given_up = "; ".join(f"`{name}` {', '.join(to)}" for name, to in steps.items())
        wanted.append(f"| {number} | {given_up} | {trade.why} |")
    assert rows == wanted


# --- what fits


def test_a_faster_machine_never_measures_less() -> None:
    found = [amounts(fitted(speed).config) for speed in SPEEDS]
    for slower, faster in pairwise(found):
        assert all(a <= b for a, b in zip(slower, faster, strict=True))
    assert found[0] != found[-1]


def test_more_minutes_never_measure_less() -> None:
    found = [amounts(fitted(3, minutes).config) for minutes in (1, 2, 5, 8, 20, 60, 600)]
    for fewer, more in pairwise(found):
        assert all(a <= b for a, b in zip(fewer, more, strict=True))


@pytest.mark.parametrize("speed", SPEEDS)
def test_what_is_chosen_fits_and_uses_the_time(speed: float) -> None:
    found, room = fitted(speed), 8 * 60 * (1 - MARGIN)
    floor = seconds_on(speed)(fitted(1e-3).config)
    assert found.seconds == seconds_on(speed)(found.config)
    if floor > room:
        assert found.seconds == floor
        assert f"--minutes {minutes_for(floor)}" in found.said[0]
        assert f"{floor / 60:.1f} min" in found.said[0]
        assert fitted(speed, minutes_for(floor)).seconds <= minutes_for(floor) * 60 * (1 - MARGIN)
        return
    assert found.seconds <= room
    everything = sizes(found.config) == sizes(RunConfig())
    assert everything or found.seconds > 0.7 * room  # steps are small


@pytest.mark.parametrize("speed", SPEEDS)
def test_the_headline_stays_sound(speed: float) -> None:
    found = sizes(fitted(speed).config)
    for name, least in LEAST.items():
        assert (found[name] or 0) >= least
    if (found["n_test"] or 0) < 28:  # the headline goes last
        assert found["drift_tokens"] == 0
        assert (found["n_control"] or 0) <= 4


@pytest.mark.parametrize(
    ("layers", "coarsest"), [(5, 1), (12, 2), (16, 2), (24, 4), (28, 4), (80, 4)]
)
def test_a_shallow_model_keeps_its_layers(layers: int, coarsest: int) -> None:
    found = fit(lambda config: 1e9, make_config("quick"), (), 8, layers).config
    assert found.layer_step == coarsest
    scored = range(0, found.rule.eligible_layers(layers), coarsest)
    assert coarsest == 1 or len(scored) >= FEWEST_LAYERS


def test_it_is_the_same_every_time() -> None:
    assert fitted(3) == fitted(3)


def test_what_was_chosen_is_said() -> None:
    (line,) = fitted(3).said
    config = fitted(3).config
    assert config.minutes is None
    assert f"n_test {config.n_test} of 100" in line
    assert f"max_new_tokens {config.max_new_tokens} of 512" in line
    assert "n_items" not in line  # no benchmark is asked for
    assert fitted(0.5).said[1] == "Left out for time: drift (--drift-tokens)."
    assert " of " not in fitted(2000).said[0].partition(":")[2]


@pytest.mark.parametrize("speed", SPEEDS[8::8])
def test_what_is_given_stays(speed: float) -> None:
    given = {"n_train": 20, "layer_step": 1, "n_texts": 5, "max_new_tokens": 30}
    try:
        found = fitted(speed, **given)
    except ConfigError:
        assert speed < 5
        return
    assert {name: getattr(found.config, name) for name in given} == given
    everything: dict[str, Any] = {**sizes(found.config)}
    assert fitted(speed, **everything).config == found.config  # all given: nothing to do


def test_what_is_given_and_does_not_fit_is_an_error() -> None:
    speed = 4.0
    with pytest.raises(
        ConfigError, match=r"8 min do not hold n_test 100, max_new_tokens 512"
    ) as caught:
        fitted(speed, n_test=100, max_new_tokens=512)
    text = str(caught.value)
    minutes = re.search(r"--minutes (\d+)", text)
    assert minutes is not None
    assert fitted(speed, int(minutes[1]), n_test=100, max_new_tokens=512).seconds > 0
    free = fitted(speed).config
    assert f"n_test {free.n_test}, max_new_tokens {free.max_new_tokens} would fit" in text


def test_what_is_given_is_not_to_blame_where_nothing_fits() -> None:
    with pytest.raises(ConfigError, match=r"or --minutes \d+ without these sizes"):
        fitted(0.5, n_test=200)
    assert "too few" in fitted(0.5, controls=0).said[0]


def test_what_nobody_asks_for_is_not_given_up() -> None:
    found = fitted(1, controls=0, drift_tokens=0).config
    assert (found.n_control, found.n_texts) == (32, 64)
    assert (found.n_items, found.n_over_refusal, found.text_tokens) == (None, 100, 256)
    asked = fitted(1, over_refusal=("xstest",), texts=("a.txt",), tasks=("mmlu@9",)).config
    assert (asked.n_items, asked.n_over_refusal) == (20, 16)


# --- configurations


def test_a_configuration_carries_the_request(tmp_path: Path) -> None:
    config = make_config("quick", n_val=9)
    assert sizes_given(config) == {"n_val": 9}
    text = commented_toml(config)
    assert "\nminutes = 8.0\n" in text
    assert "\n# n_test = 100\n" in text
    assert "\nn_val = 9\n" in text
    (tmp_path / "run.toml").write_text(text, encoding="utf-8")
    again = make_config(file=tmp_path / "run.toml")
    assert again == config
    assert sizes_given(again) == {"n_val": 9}
    assert "\nn_test = 100\n" in commented_toml(make_config())  # nothing is left to choose


def test_the_resolved_one_asks_for_nothing(tmp_path: Path) -> None:
    found = fitted(3).config
    file = tmp_path / "run.toml"
    file.write_text(tomli_w.dumps(in_tables(found.model_dump())), encoding="utf-8")
    assert make_config(file=file) == found


@pytest.mark.parametrize("minutes", [0, -1, float("inf"), float("nan")])
def test_no_number_of_minutes_is_an_error(minutes: float) -> None:
    with pytest.raises(ConfigError, match="minutes"):
        make_config(minutes=minutes)


def test_an_estimate_shows_the_choice() -> None:
    machine = Machine(SLOW.times(4), "cpu", 1e11)
    found = fitted_estimate(SIZE, Plan(make_config("quick"), SIZE.layers, LENGTHS), machine)
    chosen: dict[str, Any] = {**(found.sizes or {})}
    whole = make_config("quick", minutes=None, **chosen)
    plain = fitted_estimate(SIZE, Plan(whole, SIZE.layers, LENGTHS), machine)
    assert plain.seconds == found.seconds
    assert plain.sizes is None
    assert 5 * 60 < found.total_seconds + seconds_beside(found.weights_bytes) <= 8 * 60


def test_the_command_shows_the_choice(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = saved.save_model(tmp_path / "model")
    base = ["estimate", str(model), "--device", "h100"]
    command = [*base, "--minutes", "1", "--n-test", "60"]
    assert main([*command, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["sizes"]["n_test"] == 60
    assert 24 <= found["sizes"]["max_new_tokens"] < 512
    assert main(command) == 0
    assert " ".join(found["said"]) in " ".join(capsys.readouterr().out.split())
    assert main([*base, "--minutes", "0.05", "--n-test", "90"]) == 2
    assert "n_test 90" in " ".join(capsys.readouterr().err.split())


def test_thoughts_are_counted_where_the_model_thinks() -> None:
    def work(**options: Any) -> dict[str, list[Any]]:
        plan = Plan(make_config(controls=0, seeds=2, **options), SIZE.layers, LENGTHS)
        return {stage.name: list(stage.costs(plan)) for stage in ALL}

    closed, on = work(thinking="closed"), work(thinking="on", thinking_tokens=600)
    for name in ("generate", "seed"):
        before = [one for one in closed[name] if isinstance(one, Write)]
        after = [one for one in on[name] if isinstance(one, Write)]
        assert [one.new + 600 for one in before] == [one.new for one in after]
        assert [one.rows for one in before] == [one.rows for one in after]
    assert closed["thoughts"] == []
    (thoughts,) = on["thoughts"]
    assert (thoughts.prompts, thoughts.length) == (200, 16 + 0.7 * 600)
    (drift,) = (one for one in on["drift"] if one not in closed["drift"])
    assert drift.length == 0.7 * 600
    changed = {name for name in closed if closed[name] != on[name]}
    assert changed == {"generate", "seed", "drift", "thoughts"}


def test_with_thoughts_answers_get_what_the_context_leaves() -> None:
    hf = tiny_models.network(max_position_embeddings=1000).config
    config = make_config(max_new_tokens=512, thinking_tokens=300)
    assert _room(hf, [[1] * 20, [1] * 50], config) == 950
    on = config.model_copy(update={"thinking": "on"})
    assert _room(hf, [[1] * 20, [1] * 50], on) == 650


# --- a loaded model


def test_a_planted_delay_is_measured() -> None:
    """Every block sleeps: its seconds come out, whatever surrounds it."""
    model = tiny_models.chat_model()
    before, tokens = last_logits(model, ["Why?"]), model.forward_tokens
    delay = 0.02
    blocks = [model.hf.get_submodule(f"{name}.mlp") for name in model.sites.blocks]
    with hooked([Edit(block, "input", lambda _: time.sleep(delay)) for block in blocks]):
        found = loaded_speed(model)
    for seconds in (found.read(64), found.write(1)):
        assert seconds is not None
        assert 0.9 * delay < seconds < 5 * delay
    assert model.forward_tokens == tokens
    assert torch.equal(last_logits(model, ["Why?"]), before)


@pytest.mark.parametrize(
    "family", ["gemma2", "gpt2", "falcon-new", "mixtral", "mamba", "jamba", "deepseek_v3"]
)
def test_every_kind_of_model_can_be_timed(family: str) -> None:
    model = tiny_models.chat_model(family)
    found = loaded_speed(model)
    assert found.flops > 0
    assert found.steps[0][0] == 1
    unlike = blocks_needed(model.hf) > 1
    assert bool(found.reading) == (not unlike)
    assert bool(found.writing) == (not unlike and family != "mamba")


# --- a run


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def test_a_run_is_fitted_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    chosen = {"n_val", "n_train", "layer_step", "max_new_tokens", "n_test"}
    kept = {name: value for name, value in saved.SMALL.items() if name not in chosen}
    model, prompts = saved.save_model(tmp_path / "model"), saved.write_prompts(tmp_path)
    config = make_config(model=str(model), prompts=prompts, n_val=8, **kept)
    out = tmp_path / "run"
    command = ["run", *saved.flags(config), "--minutes", "0.18", "--out", str(out)]

    assert main(command) == 0
    said = " ".join(capsys.readouterr().err.split())
    manifest, written = read(out / "manifest.json"), make_config(file=out / "run.toml")
    fitted = manifest["fitted"]
    assert written.minutes is None
    assert fitted["sizes"] == sizes(written)
    assert fitted["given"] == {"n_val": 8, "controls": 0, "drift_tokens": 0}
    assert (written.n_val, written.controls, written.drift_tokens) == (8, 0, 0)
    assert 16 <= written.n_test <= 100
    assert 24 <= written.max_new_tokens < 512
    assert "note: " in said
    assert all(" ".join(line.split()) in said for line in fitted["said"])
    assert fitted["said"][0] in (out / "report.html").read_text(encoding="utf-8")
    rows = (out / "completions" / "harmful.baseline.jsonl").read_text(encoding="utf-8")
    assert len(rows.splitlines()) <= written.n_test

    before = saved.times(out)
    assert main(command) == 0  # resumed: nothing is measured, nothing is done again
    assert saved.times(out) == before
    assert read(out / "manifest.json")["fitted"] == fitted

    other = tmp_path / "other"
    assert main(["run", "--config", str(out / "run.toml"), "--out", str(other)]) == 0
    assert "note: " not in capsys.readouterr().err.split("Report")[-1]
    assert read(other / "metrics.json") == read(out / "metrics.json")
    assert read(other / "manifest.json")["fitted"] is None
    assert make_config(file=other / "run.toml") == written

    assert main(["evaluate", str(out), "--minutes", "3"]) == 2
    assert "--minutes is for a whole run" in " ".join(capsys.readouterr().err.split())
    assert main(["run", "--config", str(out / "run.toml"), "--out", str(out)]) == 0
    assert saved.times(out) == before
    assert read(out / "manifest.json")["fitted"] == fitted  # it is still how they were chosen
