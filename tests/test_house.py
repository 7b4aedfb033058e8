"""The house keeps its shape: what import-linter does not look at."""

import ast
import json
import subprocess
import sys
import tokenize
from pathlib import Path
from typing import Any

import pytest

import refusal
from refusal.config.run_config import RunConfig, make_config
from refusal.core.work import Ask, Score, Write
from refusal.model.sizes import ModelSize
from refusal.pipeline.costs.estimate import Estimate, Machine, estimate
from refusal.pipeline.costs.speed import Speed
from refusal.pipeline.stages import ALL, STAGES
from refusal.runs.stage import Plan

ROOT = Path(str(refusal.__file__)).parent
SIZE = ModelSize(10**9, 9 * 10**8, 10**8, 10**4, 2, 8 * 10**8, 24, 1024, 4096)
MACHINE = Machine(Speed(1e12, 1e11))


def test_few_rooms_and_no_long_file() -> None:
    entries = [path for path in ROOT.iterdir() if path.name != "__pycache__"]
    assert len(entries) <= 18
    lines = {
        path: len(path.read_text(encoding="utf-8").splitlines()) for path in ROOT.rglob("*.py")
    }
    assert {str(path.relative_to(ROOT)): n for path, n in lines.items() if n > 350} == {}


def test_no_comprehension_spans_more_than_three_lines() -> None:
    kinds = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
    long = []
    for path in sorted(ROOT.rglob("*.py")):
        name = path.relative_to(ROOT).as_posix()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, kinds) and (node.end_lineno or 0) - node.lineno >= 3:
                long.append(f"{name}:{node.lineno}")
    assert long == []


def of(**options: Any) -> Estimate:
    config: RunConfig = make_config(**options)
    return estimate(SIZE, Plan(config, SIZE.layers), MACHINE)


def test_the_estimate_is_the_sum_over_the_stages_that_have_work() -> None:
    plan = Plan(make_config(), SIZE.layers)
    assert set(of().seconds) == {stage.name for stage in ALL if stage.costs(plan)}
    assert {"tokens", "extract", "select", "generate", "controls", "drift"} <= set(of().seconds)
    assert list(STAGES) == ["extract", "select", "transfer", "generate", "evaluate"]


@pytest.mark.parametrize(
    ("options", "stage"),
    [
        ({"tasks": ("arc_challenge@50",)}, "capability"),
        ({"tasks": ("gsm8k_cot@50",)}, "capability"),
        ({"seeds": 3}, "seed"),
        ({"transfer_systems": ("none", "cautious")}, "transfer"),
        ({"judges": ("local-safety",)}, "judge"),
    ],
)
def test_whatever_is_asked_for_costs_something(options: dict[str, object], stage: str) -> None:
    assert stage not in of().seconds
    assert of(**options).seconds[stage] > 0


def test_over_refusal_sets_and_more_items_take_longer() -> None:
    more = of(over_refusal=("xstest", "orbench-hard"))
    # Two sets of three halves beside two classes of as many prompts, each under three conditions.
    assert more.seconds["generate"] == pytest.approx(of().seconds["generate"] * 5 / 2, rel=0.15)
    few, many = (of(tasks=(f"mmlu:5@{n}",), controls=0).seconds["capability"] for n in (100, 200))
    assert many > 1.5 * few


def test_seeds_cost_what_they_repeat() -> None:
    one, three = of(), of(seeds=3)
    repeated = one.seconds["extract"] + one.seconds["select"]
    assert three.seconds["seed"] > 2 * repeated


def test_questions_to_others_are_counted_and_paid_but_take_no_time_here() -> None:
    found = of(
        judges=("endpoint-refusal=big",), judge_price_in=1.0, judge_price_out=10.0, n_test=10
    )
    assert found.seconds["judge"] == 0
    assert found.asked == {"judge": 10 * 3 * 2}
    assert found.cost is not None
    assert 0 < found.cost < 1
    assert of(judges=("labels=people.csv",)).asked == {}
    served = of(engine="vllm", n_test=10)
    assert served.asked == {"generate": 10 * 2 * 2}
    assert served.seconds["generate"] < of(n_test=10).seconds["generate"]


def test_a_benchmark_without_a_number_of_items_is_counted_in_its_data() -> None:
    plan = Plan(make_config(tasks=("arc_challenge@7", "gsm8k_cot@5")), 24)
    kinds = {
        kind for stage in ALL if stage.name == "capability" for kind in map(type, stage.costs(plan))
    }
    assert kinds == {Score, Write}
    assert Ask not in kinds


def test_every_name_is_defined() -> None:
    """ruff's F821 and mypy's name-defined are off for jaxtyping's shapes, which are strings: so here
    all that is said of anything but strings counts.
    """
    asked = [
        "check",
        "--isolated",
        "--no-cache",
        "--select",
        "F821",
        "--output-format",
        "json",
        ".",
    ]
    said = subprocess.run([sys.executable, "-m", "ruff", *asked], capture_output=True, cwd=ROOT)
    strings: dict[str, list[tuple[tuple[int, int], tuple[int, int]]]] = {}
    undefined = []
    for one in json.loads(said.stdout):
        name, at = one["filename"], (one["location"]["row"], one["location"]["column"] - 1)
        if name not in strings:
            with Path(name).open("rb") as file:
                tokens = tokenize.tokenize(file.readline)
                strings[name] = [(t.start, t.end) for t in tokens if t.type == tokenize.STRING]
        if not any(start <= at < end for start, end in strings[name]):
            undefined.append(f"{name}:{at[0]}: {one['message']}")
    assert strings  # shapes are found, so something was looked at
    assert undefined == []
