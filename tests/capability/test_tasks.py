"""Which tasks and which items are run, and what is said when they cannot be."""

from collections.abc import Callable
from pathlib import Path
from random import Random

import bench_files
import pytest
from bench_files import arc_flat, bench_folder, gsm8k, mmlu, roomy_model, run_tasks, write
from hypothesis import given
from hypothesis import strategies as st

from refusal import Add, ChatModel, ConfigError
from refusal.evaluations.capability.tasks import (
    Spec,
    _index,
    _members,
    choose_items,
    load_task,
    spread,
)


@given(
    counts=st.dictionaries(st.sampled_from("abcdefgh"), st.integers(1, 9), min_size=1),
    limit=st.none() | st.integers(1, 40),
    seed=st.integers(0, 5),
)
def test_items_are_spread_evenly(counts: dict[str, int], limit: int | None, seed: int) -> None:
    found = spread(counts, limit, Random(seed))
    total = sum(counts.values())
    assert sum(map(len, found.values())) == (total if limit is None else min(limit, total))
    for name, items in found.items():
        assert items == sorted(set(items))  # lm-eval needs them sorted
        assert items
        assert 0 <= items[0] <= items[-1] < counts[name]
    sizes = {name: len(found.get(name, ())) for name in counts}
    most = max(sizes.values())
    assert all(size == counts[name] or size >= most - 1 for name, size in sizes.items())


def test_the_choice_is_seeded_and_random() -> None:
    counts = {"a": 100, "b": 100}
    assert spread(counts, 20, Random("1 x")) == spread(counts, 20, Random("1 x"))
    assert spread(counts, 20, Random("1 x")) != spread(counts, 20, Random("2 x"))
    assert max(spread(counts, 20, Random("1 x"))["a"]) > 20  # not the first ones


@pytest.fixture(scope="module")
def subjects() -> list[str]:
    return [name.removeprefix("mmlu_") for name in _members(_index(whole=False).task_index, "mmlu")]


def test_mmlu_is_a_group_of_57_subjects_in_four_areas(subjects: list[str], tmp_path: Path) -> None:
    assert len(set(subjects)) == 57
    write(tmp_path / "mmlu_test_2000.jsonl", mmlu(subjects, 3))
    write(tmp_path / "mmlu_dev.jsonl", mmlu(subjects, 5, start=10))
    model = roomy_model()
    found = run_tasks(model, (), ["mmlu", "mmlu:2"], limit=60, data_dir=tmp_path)
    for spec, shots in (("mmlu", 0), ("mmlu:2", 2)):
        task = found[spec]
        by_subject = [item.id.split("/")[0] for item in task.main]
        assert len(task.main) == 60
        assert {by_subject.count(name) for name in by_subject} == {1, 2}
        assert set(task.shots.values()) == {shots}
        assert task.aggregate["mmlu"]["acc,none"] == pytest.approx(task.mean)
        assert {"mmlu_stem", "mmlu_other", "mmlu_social_sciences", "mmlu_humanities"} < set(
            task.aggregate
        )
    assert [item.id for item in found["mmlu"].main] == [item.id for item in found["mmlu:2"].main]


def test_the_same_items_for_every_condition_and_seed(subjects: list[str], tmp_path: Path) -> None:
    bench = bench_folder(tmp_path)
    direction = bench_files.some_direction()

    def ids(model: ChatModel, seed: int, *interventions: Add, exact: bool = False) -> list[str]:
        found = run_tasks(
            model, interventions, ["arc_challenge"], limit=4, data_dir=bench, seed=seed, exact=exact
        )
        return [item.id for item in found["arc_challenge"].main]

    first = ids(roomy_model(), 1)
    assert len(first) == 4
    assert ids(roomy_model("llama"), 1, Add(direction, -1.0), exact=True) == first
    assert any(ids(roomy_model(), seed) != first for seed in (2, 3))


def test_the_quick_index_says_what_the_whole_one_says() -> None:
    quick, whole = _index(whole=False).task_index, _index(whole=True).task_index
    names = [name for name, entry in quick.items() if entry.kind.name != "TAG"]
    assert {"mmlu", "arc_challenge", "gsm8k_cot", "hellaswag", "truthfulqa_mc1"} < set(names)
    assert [name for name in names if _members(quick, name) != _members(whole, name)] == []


def test_a_tag_is_all_its_tasks(tmp_path: Path) -> None:
    write(tmp_path / "arc_challenge_test.jsonl", arc_flat(3))
    write(tmp_path / "arc_easy_validation.jsonl", arc_flat(2))
    found = run_tasks(roomy_model(), (), ["ai2_arc"], data_dir=tmp_path)["ai2_arc"]
    assert found.aggregate["arc_easy"]["sample_len"] == 2
    assert len(found.main) == 5


WRONG: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "near a name": (
        "arc_chalenge",
        lambda d: None,
        r"no task 'arc_chalenge'. Did you mean .*arc_challenge",
    ),
    "near none": ("qqqqzzzz0", lambda d: None, "lm-eval ls tasks"),
    "no number": ("mmlu:few", lambda d: None, "name:N"),
    "no folder": ("arc_easy", lambda d: None, "arc_easy_test.jsonl"),
    "examples missing": (
        "gsm8k",
        lambda d: write(d / "gsm8k_test.jsonl", gsm8k(2)),
        "gsm8k_train.jsonl .* gsm8k_cot",
    ),
    "examples would be items": (
        "arc_easy:2",
        lambda d: write(d / "arc_easy_validation.jsonl", arc_flat(5)),
        "arc_easy_train.jsonl or arc_easy_test.jsonl .* arc_easy:0",
    ),
    "too many examples": (
        "gsm8k_cot:9",
        lambda d: write(d / "gsm8k_test.jsonl", gsm8k(2)),
        "has 8 worked examples",
    ),
    "examples in the prompt": (
        "gsm8k_cot_zeroshot:3",
        lambda d: write(d / "gsm8k_test.jsonl", gsm8k(2)),
        "takes no worked examples",
    ),
    "a subject is missing": (
        "mmlu",
        lambda d: write(d / "mmlu_test.jsonl", mmlu(["anatomy"], 2)),
        "no items of abstract_algebra",
    ),
    "runs code": ("humaneval", lambda d: None, "humaneval"),
}


@pytest.mark.parametrize(("task", "prepare", "message"), WRONG.values(), ids=WRONG.keys())
def test_what_cannot_run_is_said(
    task: str,
    prepare: Callable[[Path], object],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("datasets.load_dataset", unreachable)
    prepare(tmp_path)
    with pytest.raises(ConfigError, match=message):
        run_tasks(roomy_model(), (), [task], data_dir=tmp_path)
    assert (
        _index(whole=False).task_index["arc_easy"].yaml_path is not None
    )  # nothing of it stays in the index


def unreachable(*args: object, **kwargs: object) -> None:
    raise ConnectionError("Couldn't reach the Hub\nand more lines")


def test_examples_come_from_another_split(tmp_path: Path) -> None:
    write(tmp_path / "arc_challenge_test.jsonl", arc_flat(3))
    write(
        tmp_path / "arc_challenge_validation.jsonl",
        [{**row, "centerpiece": "Seen"} for row in arc_flat(4)],
    )
    loaded = load_task(Spec.parse("arc_challenge:2"), tmp_path)
    (task,) = loaded.tasks.values()
    task.set_fewshot_seed(1)
    text = task.fewshot_context(task.eval_docs[0], 2)
    assert text.count("Question: Seen\nAnswer: ") == 2
    assert text.endswith("Question: Which of these is number 0?\nAnswer:")
    assert choose_items(loaded, None, 0) == {"arc_challenge": [0, 1, 2]}


def test_nothing_to_run(tmp_path: Path, model: ChatModel) -> None:
    with pytest.raises(ConfigError, match="nothing to run"):
        run_tasks(model, (), ["arc_challenge"], data_dir=bench_folder(tmp_path), limit=0)


def test_answers_must_leave_room_for_the_prompt(tmp_path: Path, model: ChatModel) -> None:
    with pytest.raises(ConfigError, match="512 tokens in all"):
        run_tasks(model, (), ["gsm8k_cot"], data_dir=bench_folder(tmp_path), max_gen_toks=600)
