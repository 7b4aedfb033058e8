"""The stages after the direction is chosen: what they leave in the folder, what is reused, what the
numbers rest on.
"""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import saved
import torch

from refusal import Direction, LeakageError, Prompt, PromptError, RunFolderError, load
from refusal import run as run_stages
from refusal.config.run_config import RunConfig
from refusal.core.storage import write_json
from refusal.evaluations.drift.stage import read_drift
from refusal.evaluations.refusal.completions import generate_under
from refusal.evaluations.refusal.rates import measure_all
from refusal.interventions.conditions import CONDITIONS
from refusal.interventions.conditions import actions as actions_of
from refusal.prompts.load import matched_pairs
from refusal.runs.files import read_completions, read_metrics

EXTRA = {
    "controls": 2,
    "n_control": 2,
    "drift_tokens": 2,
    "n_texts": 2,
    "text_tokens": 12,
    "seeds": 2,
}
NAMES = ["random-1", "random-2", "shuffled", "matched"]


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    return saved.write_prompts(tmp_path_factory.mktemp("prompts"))


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory, prompts: tuple[str, ...]) -> RunConfig:
    source = saved.save_model(tmp_path_factory.mktemp("model"))
    text = source.parent / "lines.txt"
    text.write_text(
        "The sea is wide, and the moon pulls at it all night long.\n" * 120, encoding="utf-8"
    )
    return saved.small_config(source, prompts, **EXTRA, texts=(str(text),))


@pytest.fixture(scope="module")
def finished(config: RunConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("finished") / "run"
    run_stages(config, out)
    return out


@pytest.fixture
def out(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run"))


def metrics(out: Path) -> dict[tuple[str, str, str], Any]:
    return {(m.name, m.set, m.condition): m for m in read_metrics(out / "metrics.json")}


def test_every_control_has_completions_under_every_action(finished: Path) -> None:
    for set_name, actions in actions_of().items():
        baseline = read_completions(finished / "completions" / f"{set_name}.baseline.jsonl")
        for action in actions:
            for name in NAMES:
                rows = read_completions(
                    finished / "completions" / f"{set_name}.{name}-{action}.jsonl"
                )
                assert [row.prompt_id for row in rows] == [row.prompt_id for row in baseline[:2]]


def test_metrics_are_those_of_the_files(finished: Path) -> None:
    found = metrics(finished)
    conditions: list[tuple[str, str]] = [
        *CONDITIONS,
        *((s, f"{n}-{a}") for s, actions in actions_of().items() for a in actions for n in NAMES),
    ]
    completions = {
        (s, c): read_completions(finished / "completions" / f"{s}.{c}.jsonl") for s, c in conditions
    }
    for expected in measure_all(completions):
        assert found[expected.name, expected.set, expected.condition] == expected
    for set_name in ("own-answers", "lines"):
        drift = read_drift(finished / "drift" / f"{set_name}.ablation.jsonl")
        total = sum(sum(d.nats) for d in drift) / sum(len(d.nats) for d in drift)
        assert found["cross_entropy", set_name, "ablation"].value == pytest.approx(total)
    assert ("kl_first_2_tokens", "own-answers", "ablation") in found
    assert {c for n, s, c in found if n == "cosine"} == {*NAMES, "seed-43"}


def test_another_seed_leaves_its_choice_and_its_rate(finished: Path) -> None:
    found = metrics(finished)
    other, main = (
        Direction.load(finished / p)
        for p in ("seeds/43.direction.safetensors", "direction.safetensors")
    )
    assert found["cosine", "direction", "seed-43"].value == pytest.approx(
        float(torch.dot(other.vector, main.vector))
    )
    choice = json.loads((finished / "seeds" / "43.json").read_text(encoding="utf-8"))
    assert found["bypass", "direction", "seed-43"].value == choice["score"]["bypass"]
    assert found["refusal_rate", "harmful", "seed-43-ablation"].n == 3
    assert other.seen != main.seen


def test_a_second_run_measures_nothing_again(out: Path, config: RunConfig) -> None:
    before = saved.times(out)
    run_stages(config, out)
    assert saved.times(out) == before


@pytest.mark.parametrize(
    ("change", "redone"),
    [
        ({"n_control": 1}, {"completions", "drift"}),
        ({"drift_tokens": 1}, set()),
        ({"text_tokens": 9}, {"drift"}),
        ({"seeds": 1}, set()),
        ({"controls": 0}, set()),
    ],
)
def test_an_option_redoes_only_what_depends_on_it(
    out: Path, config: RunConfig, change: dict[str, Any], redone: set[str]
) -> None:
    before = saved.times(out)
    run_stages(config.model_copy(update=change), out)
    changed = {name for name, when in saved.times(out).items() if before.get(name) != when}
    assert {name.partition("/")[0] for name in changed} == {"metrics.json", *redone}
    own = (".ablation.jsonl", ".subtraction.jsonl", ".baseline.jsonl")
    assert "drift" in redone - {"completions"} or not any(name.endswith(own) for name in changed)


def test_a_text_file_that_is_not_there_stops_the_run_before_anything_slow(
    config: RunConfig, tmp_path: Path
) -> None:
    wrong = config.model_copy(update={"model": "no/such-model", "texts": ("missing.txt",)})
    with pytest.raises(PromptError, match="no text file missing"):
        run_stages(wrong, tmp_path / "run")


def test_a_direction_made_with_test_prompts_is_not_evaluated(out: Path, config: RunConfig) -> None:
    """Also not one that someone put into the folder: the prompts it knows travel with it."""
    prompt = read_completions(out / "completions" / "harmful.baseline.jsonl")[0].prompt
    direction = Direction.load(out / "direction.safetensors")
    leaked = replace(
        direction, seen=frozenset([Prompt("x", prompt.upper(), "harmful").fingerprint])
    )
    with pytest.raises(LeakageError):
        generate_under(
            load(config.model, dtype="float32"),
            leaked,
            [Prompt("x", prompt, "harmful")],
            "ablation",
            2,
            "",
        )


def test_bounds_that_are_not_known_are_null_in_the_file_and_infinite_when_read(
    tmp_path: Path,
) -> None:
    row = {
        "name": "kl",
        "set": "s",
        "condition": "c",
        "value": 1.0,
        "low": None,
        "high": None,
        "n": 1,
    }
    write_json(tmp_path / "metrics.json", [row])
    (found,) = read_metrics(tmp_path / "metrics.json")
    assert (found.low, found.high) == (-float("inf"), float("inf"))
    write_json(tmp_path / "metrics.json", [{"name": "kl"}])
    with pytest.raises(RunFolderError, match=r"row 1, set: Field required"):
        read_metrics(tmp_path / "metrics.json")


def test_own_prompts_may_be_among_the_matched_pairs(tmp_path: Path) -> None:
    """They are tested on, so their pairs take no part in the control."""
    pairs = matched_pairs()
    for label, pool in (("harmful", pairs.harmful), ("harmless", pairs.harmless)):
        (tmp_path / f"{label}.txt").write_text(
            "".join(f"{prompt.text}\n" for prompt in pool[:24]), encoding="utf-8"
        )
    own = tuple(f"{label}={tmp_path / label}.txt" for label in ("harmful", "harmless"))
    config = saved.small_config(saved.save_model(tmp_path / "model"), own, controls=1, n_control=2)
    assert any(
        m.condition == "matched-ablation" for m in run_stages(config, tmp_path / "run").metrics
    )
