"""Benchmarks as a stage of a run: the same items for all, pairs by item, kept and reused; wrong
names stop at once.
"""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import saved
from bench_files import bench_folder, roomy_model

import refusal
from refusal import compare
from refusal.cli.entry import main
from refusal.config.run_config import RunConfig
from refusal.core import stats
from refusal.core.records import Metric
from refusal.evaluations.capability.rates import capability_metrics
from refusal.evaluations.capability.results import ItemResult, TaskRun, read_task_run
from refusal.evaluations.capability.run import HowToRun, load_benchmarks, run_benchmark
from refusal.runs.files import read_metrics

TASKS = ("arc_challenge", "gsm8k_cot:2@2")


def long_model(folder: Path, seed: int = 0) -> Path:
    """A tiny model with room for a benchmark's prompt."""
    path = saved.save_model(folder, "chatml", "qwen2", seed)
    config = path / "config.json"
    config.write_text(
        config.read_text().replace(
            '"max_position_embeddings": 512', '"max_position_embeddings": 8192'
        )
    )
    return path


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[RunConfig, Path]:
    base = tmp_path_factory.mktemp("capability")
    bench = bench_folder(base)
    config = saved.small_config(
        long_model(base / "model"),
        saved.write_prompts(base),
        data_dir=str(bench),
        tasks=TASKS,
        task_tokens=4,
        n_items=5,
        n_control=3,
        controls=2,
    )
    refusal.run(config, base / "run")
    return config, base / "run"


def by_key(folder: Path) -> dict[tuple[str, str, str], Metric]:
    rows = read_metrics(folder / "metrics.json")
    return {(m.name, m.set, m.condition): m for m in rows}


def items(folder: Path, condition: str, task: str = "arc_challenge") -> dict[str, float]:
    path = folder / "capability" / f"{task}.{condition}.jsonl"
    run = read_task_run(path, path.with_suffix(".json"))
    return {item.id: item.value for item in run.main}


def test_every_condition_has_its_items_and_controls_some_of_the_same(
    finished: tuple[RunConfig, Path],
) -> None:
    _, folder = finished
    base = items(folder, "baseline")
    assert len(base) == 5
    for condition in ("ablation", "subtraction"):
        assert items(folder, condition).keys() == base.keys()
    controls = [
        f"{c}-{a}"
        for c in ("random-1", "random-2", "shuffled", "matched")
        for a in ("ablation", "subtraction")
    ]
    for condition in controls:
        some = items(folder, condition)
        assert len(some) == 3
        assert some.keys() < base.keys()


def test_metrics_are_paired_by_item(finished: tuple[RunConfig, Path]) -> None:
    _, folder = finished
    found = by_key(folder)
    for condition in ("ablation", "matched-ablation"):
        base, after = items(folder, "baseline"), items(folder, condition)
        expected = stats.rate_change([base[i] == 1 for i in after], [after[i] == 1 for i in after])
        change = found["capability_acc_norm_change", "arc_challenge", condition]
        assert (change.value, change.low, change.high, change.p_value, change.n) == (
            expected.value, expected.low, expected.high, expected.p_value, len(after),
        )  # fmt: skip
    assert found["capability_exact_match,strict-match", "gsm8k_cot:2", "ablation"].n == 2
    names = {name for name, set_name, _ in found if set_name == "gsm8k_cot:2"}
    assert {
        "capability_exact_match,strict-match",
        "capability_exact_match,flexible-extract",
    } < names
    both = [found["capability_acc", "arc_challenge", f"random-{i}-ablation"].value for i in (1, 2)]
    assert found["capability_acc", "arc_challenge", "random-ablation"].value == pytest.approx(
        sum(both) / 2
    )


def test_an_intervention_is_really_there(finished: tuple[RunConfig, Path]) -> None:
    """The run's ablation gives what running the benchmark under the ablated direction by hand
    gives.
    """
    config, folder = finished
    model = refusal.load(config.model, dtype="float32")
    direction = refusal.Direction.load(folder / "direction.safetensors")
    (benchmark,) = load_benchmarks(["arc_challenge"], Path(str(config.data_dir)))
    run = run_benchmark(
        model, [refusal.Ablate(direction)], benchmark, HowToRun(limit=5, seed=config.seed)
    )
    assert {item.id: item.value for item in run.main} == items(folder, "ablation")


def test_done_is_done_and_more_can_be_added(
    finished: tuple[RunConfig, Path], tmp_path: Path
) -> None:
    config, folder = finished
    folder = Path(shutil.copytree(folder, tmp_path / "run"))
    before = saved.times(folder)
    refusal.run(config, folder)
    assert saved.times(folder) == before
    assert main(["evaluate", str(folder), "--tasks", "gsm8k_cot:1", "--quiet"]) == 0
    after = saved.times(folder)
    assert {name: after[name] for name in before if "capability" in name} == {
        name: time for name, time in before.items() if "capability" in name
    }
    assert ("capability_exact_match,strict-match", "gsm8k_cot:1", "subtraction") in by_key(folder)
    assert ("capability_acc", "arc_challenge", "subtraction") in by_key(folder)
    about = json.loads((folder / "capability" / "gsm8k_cot-shots-1.ablation.json").read_text())
    assert about["shots"] == {"gsm8k_cot": 1}


def test_runs_are_compared_by_item(finished: tuple[RunConfig, Path], tmp_path: Path) -> None:
    _, folder = finished
    other = Path(shutil.copytree(folder, tmp_path / "other"))
    file = other / "capability" / "arc_challenge.ablation.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    file.write_text(
        "".join(json.dumps({**row, "value": 1.0 - row["value"]}) + "\n" for row in rows)
    )
    found = compare([folder, other])
    row = next(
        r for r in found.rows if (r.name, r.condition) == ("capability_acc_norm", "ablation")
    )
    change = row.changes[1]
    assert change is not None
    before = items(folder, "ablation").values()
    assert change.value == pytest.approx(1 - 2 * sum(before) / len(before))
    assert change.n == 5


@pytest.mark.parametrize(
    ("task", "message"),
    [
        ("arc_chalenge", "Did you mean arc_challenge"),
        ("mmlu:few", "name:N"),
        ("mmlu@", "name@M"),
        ("gsm8k", "gsm8k_train.jsonl"),
    ],
)
def test_a_wrong_task_stops_before_the_model_is_loaded(
    task: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prompts = saved.write_prompts(tmp_path)
    config = saved.small_config(
        tmp_path / "no-model", prompts, data_dir=str(bench_folder(tmp_path)), tasks=(task,)
    )
    assert main(["run", *saved.flags(config), "--out", str(tmp_path / "run")]) == 2
    assert message in capsys.readouterr().err.replace("\n", " ")
    assert not (tmp_path / "run").exists()


def run_of(values: list[float], metric: str = "f1") -> TaskRun:
    return TaskRun(
        "t",
        metric,
        tuple(ItemResult(f"t/{i}", v, metric) for i, v in enumerate(values)),
        {},
        {},
        {},
    )


def test_what_is_not_right_or_wrong_gets_a_bootstrap() -> None:
    before, after = [0.1, 0.5, 0.9, 0.4], [0.2, 0.7, 0.9, 0.1]
    found = {
        (m.name, m.condition): m
        for m in capability_metrics({"baseline": run_of(before), "ablation": run_of(after)})
    }
    change = found["capability_f1_change", "ablation"]
    assert change.value == pytest.approx(0.0, abs=1e-12)
    assert change.low < 0 < change.high
    assert change.p_value is None
    assert found["capability_f1", "baseline"].value == pytest.approx(0.475)


def test_a_task_without_items_gives_its_aggregate() -> None:
    run = TaskRun(
        "wiki", "", (), {"wiki": {"word_perplexity,none": 21.5, "sample_len": 62.0}}, {}, {}
    )
    found = capability_metrics({"baseline": run, "ablation": replace(run)})
    assert [(m.name, m.condition, m.value, m.n) for m in found] == [
        ("capability_word_perplexity", "baseline", 21.5, 62),
        ("capability_word_perplexity", "ablation", 21.5, 62),
    ]


def test_a_smaller_limit_gives_some_of_the_same_items(tmp_path: Path) -> None:
    (benchmark,) = load_benchmarks(["arc_challenge"], bench_folder(tmp_path))
    model = roomy_model()
    some, more = (
        {item.id for item in run_benchmark(model, (), benchmark, HowToRun(limit=n, seed=3)).main}
        for n in (2, 6)
    )
    assert some < more
