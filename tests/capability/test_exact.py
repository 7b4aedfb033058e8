"""lm-eval's own numbers against ours: the model loaded by lm-eval alone, the data read by its own
loader.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import bench_files
import lm_eval.evaluator
import lm_eval.tasks
import pytest
from bench_files import bench_folder, roomy_model, run_tasks, some_direction
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from saved import save_model

import refusal
from refusal import Ablate, Add, ChatModel, Direction
from refusal.model.edits import Intervention

TASKS = Path(str(lm_eval.tasks.__file__)).parent
ARC, GSM8K = 7, 3  # items

# lm-eval's task, with its data from a file by lm-eval's and datasets' own means.
ALONE = """
include: {base}
dataset_path: json
dataset_name: null
dataset_kwargs:
  data_files: {{test: {data}}}
  cache_dir: {cache}
training_split: null
validation_split: null
{more}
"""
SHORT = """
generation_kwargs: {until: ["Q:", "</s>", "<|im_end|>"], do_sample: false, max_gen_toks: 6}
num_fewshot: 2
"""

Samples = dict[str, list[dict[str, Any]]]


@pytest.fixture
def bench(tmp_path: Path) -> Path:
    return bench_folder(tmp_path)


@pytest.fixture
def roomy() -> ChatModel:
    return roomy_model()


@pytest.fixture
def direction() -> Direction:
    return some_direction()


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = save_model(tmp_path_factory.mktemp("model"), "chatml", "qwen2")
    config = folder / "config.json"
    config.write_text(
        config.read_text().replace(
            '"max_position_embeddings": 512', '"max_position_embeddings": 8192'
        )
    )
    return folder


@pytest.fixture(scope="module")
def alone(saved: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What lm-eval gives by itself."""
    folder = tmp_path_factory.mktemp("alone")
    data = {
        "arc/arc_challenge": (bench_files.arc_hub(ARC), ""),
        "gsm8k/gsm8k-cot": (bench_files.gsm8k(GSM8K), SHORT),
    }
    for base, (rows, more) in data.items():
        name = base.split("/")[1]
        file = bench_files.write(folder / f"{name}.jsonl", rows)
        text = ALONE.format(
            base=TASKS / f"{base}.yaml", data=file, cache=folder / "cache", more=more
        )
        (folder / f"{name}.yaml").write_text(text, encoding="utf-8")
    results: dict[str, Any] = lm_eval.evaluator.simple_evaluate(
        model=HFLM(pretrained=str(saved), device="cpu", dtype="float32"),
        tasks=["arc_challenge", "gsm8k_cot"],
        task_manager=TaskManager(include_defaults=False, include_path=folder),
        bootstrap_iters=0,
    )
    return results


@pytest.fixture
def samples(monkeypatch: pytest.MonkeyPatch) -> Samples:
    """What lm-eval saw inside our run: prompts, answers and numbers of every item."""
    seen: Samples = {}
    evaluate = lm_eval.evaluator.evaluate

    def watched(*args: Any, **kwargs: Any) -> Any:
        results = evaluate(*args, **kwargs)
        seen.update(results["samples"])
        return results

    monkeypatch.setattr(lm_eval.evaluator, "evaluate", watched)
    return seen


def everything(samples: Samples) -> list[tuple[Any, ...]]:
    """All that was asked and answered, to the last bit."""
    columns = ("doc_id", "filter", "arguments", "target", "resps", "filtered_resps")
    return [
        (name, *(row[column] for column in columns), *(row[metric] for metric in row["metrics"]))
        for name, rows in sorted(samples.items())
        for row in rows
    ]


def run(model: ChatModel, data_dir: Path, *interventions: Intervention, **options: Any) -> Any:
    return run_tasks(
        model,
        interventions,
        ["arc_challenge", "gsm8k_cot:2"],
        data_dir=data_dir,
        max_gen_toks=6,
        **options,
    )


NOTHING: dict[str, Callable[[Direction], tuple[Intervention, ...]]] = {
    "no intervention": lambda direction: (),
    "an intervention that does nothing": lambda direction: (Add(direction, alpha=0.0),),
}


@pytest.mark.parametrize("interventions", NOTHING.values(), ids=NOTHING.keys())
def test_exact_is_lm_eval_bit_for_bit(
    interventions: Callable[[Direction], tuple[Intervention, ...]],
    saved: Path,
    bench: Path,
    alone: dict[str, Any],
    samples: Samples,
    direction: Direction,
) -> None:
    model = refusal.load(str(saved), dtype="float32")
    found = run(model, bench, *interventions(direction), exact=True)
    assert everything(samples) == everything(alone["samples"])
    for name, spec in (("arc_challenge", "arc_challenge"), ("gsm8k_cot", "gsm8k_cot:2")):
        numbers = {
            key: value
            for key, value in alone["results"][name].items()
            if isinstance(value, (int, float))
        }
        assert found[spec].aggregate[name] == numbers
    assert {item.value for item in found["arc_challenge"].items} == {
        0.0,
        1.0,
    }  # some right, some wrong


@pytest.mark.parametrize("interventions", NOTHING.values(), ids=NOTHING.keys())
def test_the_fast_way_gives_lm_evals_numbers_to_rounding(
    interventions: Callable[[Direction], tuple[Intervention, ...]],
    saved: Path,
    bench: Path,
    alone: dict[str, Any],
    samples: Samples,
    direction: Direction,
) -> None:
    """The same metric of every item, the same texts; log-likelihoods to the rounding of float32."""
    found = run(refusal.load(str(saved), dtype="float32"), bench, *interventions(direction))
    ours, theirs = samples["arc_challenge"], alone["samples"]["arc_challenge"]
    assert [(row["doc_id"], row["arguments"], row["acc"], row["acc_norm"]) for row in ours] == [
        (row["doc_id"], row["arguments"], row["acc"], row["acc_norm"]) for row in theirs
    ]
    for row, other in zip(ours, theirs, strict=True):
        likelihoods, greedy = zip(*row["filtered_resps"], strict=True)
        expected, expected_greedy = zip(*other["filtered_resps"], strict=True)
        assert likelihoods == pytest.approx(expected, abs=1e-3, rel=1e-5)
        assert greedy == expected_greedy
    assert everything({"gsm8k_cot": samples["gsm8k_cot"]}) == everything(
        {"gsm8k_cot": alone["samples"]["gsm8k_cot"]}
    )
    assert found["arc_challenge"].mean == alone["results"]["arc_challenge"]["acc_norm,none"]


def test_rows_are_lm_evals_numbers_item_by_item(
    saved: Path, bench: Path, alone: dict[str, Any]
) -> None:
    found = run(refusal.load(str(saved), dtype="float32"), bench)
    rows = alone["samples"]["arc_challenge"]
    task = found["arc_challenge"]
    assert task.metric == "acc_norm"
    assert [item.value for item in task.main] == [row["acc_norm"] for row in rows]
    assert [item.value for item in task.items if item.metric == "acc"] == [
        row["acc"] for row in rows
    ]
    assert [item.id.split("-")[0] for item in task.main] == [
        f"arc_challenge/{i}" for i in range(ARC)
    ]
    task = found["gsm8k_cot:2"]
    assert task.metric == "exact_match,strict-match"
    assert {item.metric for item in task.items} == {
        "exact_match,strict-match",
        "exact_match,flexible-extract",
    }
    assert task.shots == {"gsm8k_cot": 2}
    assert set(task.files) == {"gsm8k_test.jsonl"}


@pytest.mark.parametrize("exact", [True, False])
def test_an_intervention_acts_and_leaves_nothing_behind(
    exact: bool, roomy: ChatModel, bench: Path, samples: Samples, direction: Direction
) -> None:
    run(roomy, bench, exact=exact)
    before = everything(samples)
    run(roomy, bench, Ablate(direction), exact=exact)
    changed = everything(samples)
    likelihoods = [
        [likelihood for likelihood, _ in row[6]] for row in before if row[0] == "arc_challenge"
    ]
    ablated = [
        [likelihood for likelihood, _ in row[6]] for row in changed if row[0] == "arc_challenge"
    ]
    assert all(
        abs(a - b) > 1e-3
        for x, y in zip(likelihoods, ablated, strict=True)
        for a, b in zip(x, y, strict=True)
    )
    assert [row[:5] for row in before] == [row[:5] for row in changed]  # the same items and prompts
    hooks = [
        h
        for m in roomy.hf.modules()
        for h in (*m._forward_hooks.values(), *m._forward_pre_hooks.values())
    ]
    assert hooks == []
    run(roomy, bench, exact=exact)
    assert everything(samples) == before


@pytest.mark.parametrize("batch_size", [2, 4])
def test_a_batch_size_is_lm_evals(
    batch_size: int, roomy: ChatModel, bench: Path, samples: Samples
) -> None:
    """Padding changes rounding in lm-eval too; nothing else."""
    run(roomy, bench, exact=True)
    alone = everything(samples)
    run(roomy, bench, exact=True, batch_size=batch_size)
    assert [row[:5] + row[7:] for row in everything(samples)] == [
        row[:5] + row[7:] for row in alone
    ]


def test_tokens_are_counted_either_way(roomy: ChatModel, bench: Path) -> None:
    prompt, choice = len("Question: Which of these is number 0?\nAnswer:"), len(" salt of the sea")
    counts = []
    for exact in (True, False):
        before = roomy.forward_tokens
        run_tasks(roomy, (), ["arc_challenge"], data_dir=bench, exact=exact)
        counts.append(roomy.forward_tokens - before)
    assert counts[0] == pytest.approx(ARC * 4 * (prompt + choice), rel=0.1)
    assert counts[1] < ARC * (prompt + 4 * choice)
