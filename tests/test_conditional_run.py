"""Interventions by a monitor in a run: what is written, what it depends on, what is refused."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import saved
import torch
from test_conditional import logits_of

from refusal import Direction, LeakageError, Monitor, RunConfig, load, run
from refusal.cli.verbs import app
from refusal.core.errors import ConfigError, MonitorError
from refusal.core.monitor import Reader
from refusal.core.turns import fingerprint
from refusal.evaluations.refusal.gates import monitor_of
from refusal.interventions.action import WHEN
from refusal.interventions.conditions import (
    BASELINE,
    BY_PROMPT,
    Condition,
    actions,
    in_order,
    is_plain,
    stopping,
)
from refusal.model.fingerprint import template_fingerprint
from refusal.runs.files import read_completions, read_metrics

WIDTH_SEED, SIZE = 7, "addition@60"
CONDITIONAL = f"conditional-{SIZE}"
Finished = tuple[RunConfig, Path, list[bool]]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    base = tmp_path_factory.mktemp("conditional")
    prompts = saved.write_prompts(base)
    model = load(str(saved.save_model(base / "model")), dtype="float32")
    draws = torch.randn(2, model.sites.d_model, generator=torch.Generator().manual_seed(WIDTH_SEED))
    units = (draws / draws.norm(dim=1, keepdim=True)).numpy()
    readers = (Reader(units[0], 0, -1, 0.0, 1.0), Reader(units[1], 0, "instruction", 0.0, 1.0))
    about = (model.name, model.weight_hash(), template_fingerprint(model))
    monitor = Monitor(*readers, (0.0, 1.0), 0.0, 0.0, 0.1, np.zeros(9), *about)
    config = saved.small_config(
        base / "model",
        prompts,
        n_test=6,
        interventions=(SIZE, CONDITIONAL, "unless-ablation"),
        condition_on=str(base / "monitor"),
        drift_tokens=2,
        n_texts=2,
        controls=1,
        n_control=1,
    )
    plain = config.model_copy(update={"interventions": (), "condition_on": None})
    run(plain, base / "run", until="generate")
    rows = read_completions(base / "run" / "completions" / "harmless.baseline.jsonl")
    scores = logits_of(model, monitor, [row.prompt for row in rows])
    ordered = sorted(scores)
    monitor = replace(monitor, threshold=(ordered[2] + ordered[3]) / 2)
    monitor.save(base / "monitor")
    run(config, base / "run")
    return config, base / "run", [score > monitor.threshold for score in scores]


def texts(folder: Path, name: str) -> list[str]:
    rows = read_completions(folder / "completions" / f"harmless.{name}.jsonl")
    return [row.completion for row in rows]


def test_prompts_that_fire_are_written_under_it_and_the_others_are_not(finished: Finished) -> None:
    _, folder, fires = finished
    base = texts(folder, BASELINE)
    for name, under in ((CONDITIONAL, SIZE), ("unless-ablation", "ablation")):
        changed = texts(folder, under)
        acts = [fire != name.startswith("unless") for fire in fires]
        expected = [a if act else b for a, b, act in zip(changed, base, acts, strict=True)]
        assert texts(folder, name) == expected
    assert texts(folder, SIZE) != base


def test_they_are_measured_of_every_set_with_controls_and_without_drift(finished: Finished) -> None:
    _, folder, _ = finished
    metrics = saved_metrics(folder)
    for label in ("harmful", "harmless"):
        for name in (CONDITIONAL, "unless-ablation"):
            assert ("refusal_rate_change", label, name) in metrics
            assert ("refusal_rate", label, f"random-1-{name}") in metrics
    assert ("kl_first_token", "own-answers", "ablation") in metrics
    assert ("kl_first_token", "own-answers", "unless-ablation") not in metrics
    assert ("fires_rate", "harmful", "monitor") in metrics
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert CONDITIONAL in page


def test_how_often_the_monitor_fires_is_measured(finished: Finished) -> None:
    _, folder, fires = finished
    (found,) = [
        m
        for m in read_metrics(folder / "metrics.json")
        if (m.name, m.set) == ("fires_rate", "harmless")
    ]
    assert (found.value, found.n) == (sum(fires) / 6, 6)


def saved_metrics(folder: Path) -> set[tuple[str, str, str]]:
    return {(m.name, m.set, m.condition) for m in read_metrics(folder / "metrics.json")}


def test_another_threshold_writes_them_again_and_nothing_else(finished: Finished) -> None:
    config, folder, _ = finished
    before = saved.times(folder)
    run(config, folder)
    assert saved.times(folder) == before
    place = Path(str(config.condition_on))
    old = Monitor.load(place)
    replace(old, threshold=1e6).save(place)
    try:
        run(config, folder)
        now = saved.times(folder)
        again = {name for name in now if name.endswith(".jsonl") and now[name] != before[name]}
        assert again
        assert all(any(f".{when}-" in n or f"-{when}-" in n for when in WHEN) for n in again)
        assert texts(folder, CONDITIONAL) == texts(folder, BASELINE)
    finally:
        old.save(place)


def test_what_does_not_fit_is_refused(finished: Finished, tmp_path: Path) -> None:
    config, folder, _ = finished
    with pytest.raises(ConfigError, match="refusal monitor fit"):
        monitor_of(config.model_copy(update={"condition_on": None}))
    with pytest.raises(ConfigError, match="without an intervention"):
        monitor_of(config.model_copy(update={"interventions": ("affine",)}))
    with pytest.raises(MonitorError):
        monitor_of(config.model_copy(update={"condition_on": str(tmp_path)}))
    monitor = Monitor.load(str(config.condition_on))
    rows = read_completions(folder / "completions" / "harmless.baseline.jsonl")
    replace(monitor, fitted=frozenset({fingerprint(rows[0].prompt)})).save(tmp_path / "leaky")
    with pytest.raises(LeakageError, match="making the monitor"):
        run(config.model_copy(update={"condition_on": str(tmp_path / "leaky")}), tmp_path / "run")
    replace(monitor, model_hash="another").save(tmp_path / "other")
    with pytest.raises(MonitorError, match="fitted on"):
        run(config.model_copy(update={"condition_on": str(tmp_path / "other")}), tmp_path / "run")
    with pytest.raises(ConfigError, match="conditional-"):
        app(
            ["export", str(folder), "--as", "lora", "--intervention", "conditional-ablation", "-q"],
            exit_on_error=False,
            result_action="return_value",
        )


def test_names_say_when_it_acts() -> None:
    assert (
        Condition("conditional-ablation@0.5", "random-2").name
        == "random-2-conditional-ablation@0.5"
    )
    named = Condition.named("random-2-unless-kernel@1,0.5,0,0.5")
    assert named == Condition("unless-kernel@1,0.5,0,0.5", "random-2")
    for name in ("unless-", "conditional-unless-ablation", "unless-random-1-ablation", "unless-x"):
        with pytest.raises(ConfigError):
            Condition.named(name)
    assert is_plain("conditional-addition@2")
    assert in_order("unless-addition") > in_order("conditional-ablation") > in_order("kernel")
    assert set(actions(("unless-addition",))["harmful"]) >= {"unless-addition"}
    assert "conditional-addition" in stopping(("conditional-addition",))
    assert "conditional-ablation" in BY_PROMPT
    direction = Direction(torch.eye(4)[0], 1.0, -1, 0)
    with pytest.raises(ConfigError, match="--condition-on"):
        Condition.named("conditional-ablation").edit(direction)
