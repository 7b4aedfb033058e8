"""Less false refusal, on a model of which it is known what makes it refuse what.

One mark, ``@``, stands in harmful prompts, another, ``#``, in those that only look harmful; each
writes along a row of its own, and either makes the model refuse.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import planted
import pytest
import torch
from saved import flags
from torch import Tensor

from refusal import (
    Candidates,
    ChatModel,
    Direction,
    LeakageError,
    NoCandidateError,
    Prompt,
    PromptError,
    PromptPair,
    RunConfig,
    load,
    make_config,
    run,
    tokens_for,
)
from refusal.cli.verbs import app
from refusal.core.errors import ConfigError, DirectionError, TooFewPromptsError
from refusal.core.records import Label, Metric
from refusal.core.subspace import orthonormal, project_onto
from refusal.core.tables import Found
from refusal.directions import METHODS
from refusal.directions.false_refusal import FalseRefusal
from refusal.evaluations.refusal.completions import generate_under
from refusal.interventions.ablate_add import Ablate
from refusal.prompts.pseudo_harmful import pseudo_harmful
from refusal.report.four_sets import four_sets

HARMFUL, FALSE, PLAIN = "@@@@", "####", "...."


def texts(mark: str, n: int, first: int = 0) -> list[str]:
    topics = planted.TOPICS
    return [f"Describe {topics[i % 10]} for room {first + i} {mark}" for i in range(n)]


def prompts(mark: str, n: int, first: int) -> tuple[Prompt, ...]:
    label: Label = "harmless" if mark == PLAIN else "harmful"
    some = texts(mark, n, first)
    return tuple(Prompt(f"{mark[0]}{i}", text, label) for i, text in enumerate(some))


def pair(first: int, n: int = 10) -> PromptPair:
    return PromptPair(prompts(HARMFUL, n, first), prompts(PLAIN, n, first + 500))


def write(path: Path, *marks: str, n: int = 40) -> str:
    lines = [line for k, mark in enumerate(marks) for line in texts(mark, n, 2000 + 100 * k)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return str(path)


def config_of(file: str, **changes: Any) -> RunConfig:
    options: dict[str, Any] = {
        "method": "false-refusal",
        "pseudo_harmful": file,
        "n_train": 8,
        "n_val": 8,
        "filter": "metric",
        "filter_tokens": 4,
        "kl_threshold": 5.0,
        "refusal_tokens": (planted.REFUSAL,),
    }
    return make_config(**{**options, **changes})


def found(
    model: ChatModel, config: RunConfig, train: PromptPair | None = None
) -> tuple[FalseRefusal, Candidates]:
    method = METHODS["false-refusal"]()
    assert isinstance(method, FalseRefusal)
    train = train or pair(0)
    tokens = tokens_for(model, train, config.refusal_tokens)
    return method, method.extract(model, train, tokens, config)


def along(vector: Tensor, rows: Tensor) -> list[float]:
    unit = vector.double() / vector.double().norm()
    return [round(float(x), 3) for x in rows.double() @ unit]


def test_the_vector_is_that_of_false_refusals_alone(tmp_path: Path) -> None:
    two = planted.planted(2)
    config = config_of(write(tmp_path / "false.txt", FALSE))
    method, candidates = found(two.model, config)
    assert along(candidates.at(-1, 1).vector, two.rows)[1] > 0.99
    selection = method.select(two.model, candidates, pair(100), config)
    assert selection.qualified
    assert selection.score.more["pseudo_harmful_refused"] == 0.0
    assert selection.score.more["harmful_refused"] == 1.0
    with two.model.apply(Ablate(selection.direction)):
        answers = two.model.generate([*texts(FALSE, 3, 900), *texts(HARMFUL, 3, 900)], 3)
    assert answers == [planted.ANSWER] * 3 + [planted.REFUSAL] * 3
    used = {p.fingerprint for p in pseudo_harmful(config)} & selection.direction.seen
    assert len(used) == 16  # of both splits, none of them twice


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_lambda_takes_that_share_of_the_refusal_direction_out(share: float, tmp_path: Path) -> None:
    two = planted.planted(2)
    file = write(tmp_path / "false.txt", "###@")
    _, plain = found(two.model, config_of(file, lambdas=(0.0,)))
    _, changed = found(two.model, config_of(file, lambdas=(share,)))
    w, less = plain.vectors[-1, 1].double(), changed.vectors[-1, 1].double()
    u = two.rows[0].double()
    assert along(plain.vectors[-1, 1], two.rows)[0] > 0.2
    torch.testing.assert_close(less, w - share * u * (u @ w), atol=2e-2, rtol=0)
    if share == 1.0:
        assert abs(along(less, two.rows)[0]) < 2e-2


def test_of_several_lambdas_that_which_does_best_is_chosen(tmp_path: Path) -> None:
    # Harmful prompts have some of what false ones have: without it, w is no longer along p_2.
    two = planted.planted(2)
    mixed = (prompts("@@@#", 10, 0), prompts("@@@#", 10, 100))
    train = replace(pair(0), harmful=mixed[0])
    file = write(tmp_path / "false.txt", FALSE)
    for lambdas in ((1.0, 0.0), (0.0, 1.0)):
        config = config_of(file, lambdas=lambdas, tried=20, keep_refusal=1.0)
        method, candidates = found(two.model, config, train)
        val = replace(pair(100), harmful=mixed[1])
        selection = method.select(two.model, candidates, val, config)
        assert selection.score.more["lambda"] == 0.0
        assert selection.score.more["pseudo_harmful_refused"] == 0.0
        chosen = selection.direction
        assert chosen.by_layer is not None
        torch.testing.assert_close(chosen.by_layer[chosen.layer], chosen.vector)


def test_a_given_refusal_direction_stays(tmp_path: Path) -> None:
    two = planted.planted(2)
    kept = Direction(two.rows[1], 1.0, -1, 1, model=two.model.name, seen=frozenset({"x"}))
    kept.save(tmp_path / "direction.safetensors")
    file = write(tmp_path / "false.txt", "###@")
    config = config_of(file, refusal_direction=str(tmp_path))
    method, candidates = found(two.model, config)
    unit = candidates.at(-1, 1).vector
    assert abs(float(unit.double() @ two.rows[1].double())) < 1e-6
    assert "x" in candidates.seen
    assert method.settings(config) != method.settings(config_of(file))
    replace(kept, model="another").save(tmp_path / "direction.safetensors")
    with pytest.raises(DirectionError, match="another"):
        found(two.model, config)


def test_where_refusals_would_go_too_nothing_qualifies(tmp_path: Path) -> None:
    one = planted.planted(1)  # one mark for all: w is the refusal direction
    file = write(tmp_path / "false.txt", "@@@@", n=30)
    config = config_of(file, lambdas=(0.0,))
    method, candidates = found(one.model, config)
    val = pair(100)
    selection = method.select(one.model, candidates, val, config)
    assert not selection.qualified
    assert not selection.direction.qualified
    assert selection.rejected["refusal"] > 0
    with pytest.raises(NoCandidateError, match="keep-refusal"):
        strict = config_of(file, lambdas=(0.0,), strict=True)
        method.select(one.model, candidates, val, strict)


def test_only_refused_prompts_count_by_either_filter(tmp_path: Path) -> None:
    two = planted.planted(2)
    file = write(tmp_path / "false.txt", FALSE, PLAIN, n=20)
    for how in ("metric", "completions"):
        config = config_of(file, filter=how)
        _, candidates = found(two.model, config)
        assert along(candidates.at(-1, 1).vector, two.rows)[1] > 0.99
        pool = [p for p in pseudo_harmful(config) if p.fingerprint in candidates.seen]
        assert len(pool) > 8  # those that were looked at and answered have been seen too
    answered = write(tmp_path / "answered.txt", PLAIN, n=20)
    for how in ("metric", "completions"):
        with pytest.raises(TooFewPromptsError, match="pseudo-harmful"):
            found(two.model, config_of(answered, filter=how))


def test_projection_onto_rows_is_the_projector() -> None:
    draws = torch.randn(3, 5, 16, generator=torch.Generator().manual_seed(0)).double()
    rows = orthonormal(draws[0, :2]).double()
    expected = draws @ rows.T @ rows
    torch.testing.assert_close(project_onto(draws, rows), expected)


def test_what_is_measured_is_not_in_the_pool(data: Path) -> None:
    options: dict[str, Any] = {"data_dir": str(data / "prompts"), "n_over_refusal": 30}
    alone = pseudo_harmful(make_config(**options))
    measured = pseudo_harmful(make_config(**options, over_refusal=("xstest", "orbench-hard")))
    assert len(alone) == 1319
    assert len(alone) - len(measured) >= 30
    assert {p.label for p in alone} == {"harmful"}


def test_what_cannot_be_had_ends_a_run_before_anything_slow(tmp_path: Path) -> None:
    for source, kind in (("xstest", ConfigError), (str(tmp_path / "none.txt"), PromptError)):
        with pytest.raises(kind):
            run(config_of(source, model="no/such-model"), tmp_path / "run")
        several = config_of(source, model="no/such-model", method=("dim", "false-refusal"))
        with pytest.raises(kind):
            run(several, tmp_path / "run")


@pytest.mark.parametrize("lambdas", [(), (1.0, 1.0), (float("nan"),)])
def test_lambdas_are_different_numbers(lambdas: tuple[float, ...]) -> None:
    with pytest.raises(ConfigError, match="finite numbers"):
        make_config(lambdas=lambdas)


def test_a_run_finds_measures_and_exports_it(tmp_path: Path) -> None:
    two = planted.planted(2)
    folder = planted.save(two, tmp_path / "model")
    files = []
    for name, mark in (("harmful", HARMFUL), ("harmless", PLAIN)):
        lines = "\n".join(texts(mark, 60, 0 if name == "harmful" else 500))
        (tmp_path / f"{name}.txt").write_text(lines, encoding="utf-8")
        files.append(f"{name}={tmp_path / f'{name}.txt'}")
    config = config_of(
        write(tmp_path / "false.txt", FALSE),
        model=str(folder),
        prompts=tuple(files),
        dedup="exact",
        dtype="float32",
        n_test=6,
        max_new_tokens=4,
        controls=0,
        drift_tokens=0,
        figures=("none",),
    )
    done = run(config, tmp_path / "run")
    rates = {(m.set, m.condition): m.value for m in done.metrics if m.name == "refusal_rate"}
    assert rates["harmful", "ablation"] == rates["harmful", "baseline"] == 1.0
    times = (tmp_path / "run" / "candidates.safetensors").stat().st_mtime_ns
    assert run(config, tmp_path / "run").metrics == done.metrics
    assert (tmp_path / "run" / "candidates.safetensors").stat().st_mtime_ns == times
    direction = Direction.load(tmp_path / "run" / "direction.safetensors")
    seen = [p for p in pseudo_harmful(config) if p.fingerprint in direction.seen]
    with pytest.raises(LeakageError):
        generate_under(two.model, direction, seen[:2], "ablation", 3, "false")
    page = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert "false-refusal" in page
    app(
        ["export", str(tmp_path / "run"), "--as", "model", "-q"],
        exit_on_error=False,
        result_action="return_value",
    )
    edited = load(str(tmp_path / "run" / "export" / "model"), dtype="float32")
    answers = edited.generate([*texts(FALSE, 2, 900), *texts(HARMFUL, 2, 900)], 3)
    assert answers == [planted.ANSWER] * 2 + [planted.REFUSAL] * 2
    assert "--pseudo-harmful" in " ".join(flags(config))


def metric(
    name: str, set_name: str, condition: str, value: float, p: float | None = None
) -> Metric:
    return Metric(name, set_name, condition, value, value / 2, (1 + value) / 2, 200, p)


def test_the_table_has_four_sets_and_benchmarks_beside_them() -> None:
    rows = []
    for name, before, after in (
        ("harmful", 0.9, 0.8),
        ("harmless", 0.0, 0.1),
        ("xstest-safe", 0.37, 0.12),
        ("xstest-unsafe", 0.95, 0.91),
    ):
        rows += [metric("refusal_rate", name, "baseline", before)]
        rows += [metric("refusal_rate", name, "ablation", after)]
        rows += [metric("refusal_rate_change", name, "ablation", after - before, 0.03)]
    rows.append(metric("refusal_rate", "harmful", "random-1-ablation", 0.5))
    assert list(four_sets(Found(rows[:6]))) == []
    rows.append(metric("fires_rate", "xstest-safe", "monitor", 0.25))
    task = "capability_exact_match,flexible-extract"
    rows += [metric(task, "gsm8k_cot", c, v) for c, v in (("baseline", 0.5), ("ablation", 0.4))]
    rows.append(metric(f"{task}_change", "gsm8k_cot", "ablation", -0.1, 0.2))
    (table,) = four_sets(Found(rows))
    assert [row[0] for row in table.rows] == ["baseline", "ablation", "monitor fires"]
    assert str(table.rows[2][table.columns.index("xstest-safe")]).startswith("25%")
    cells = dict(zip(table.columns, table.rows[1], strict=True))
    assert cells["xstest-safe"] == "12% (6–56)"
    assert cells["p, xstest-safe"] == "0.03"
    assert cells["gsm8k_cot"] == "40% (20–70)"
    assert cells["p, gsm8k_cot"] == "0.2"
