"""Judges by name, the built-in ones, agreement, what is read back, and the metrics."""

import json
from pathlib import Path

import pytest

from refusal import Completion, ConfigError, Prompt, RunFolderError
from refusal.config.judges import JudgeOptions
from refusal.core.records import to_json
from refusal.core.stats import Accuracy
from refusal.evaluations.judges import JUDGES
from refusal.evaluations.judges.agreement import agreement
from refusal.evaluations.judges.judgement import Judgement, JudgementLabel
from refusal.evaluations.judges.make import make_judge, make_judges
from refusal.evaluations.judges.protocol import Judge
from refusal.evaluations.judges.rates import judge_metrics
from refusal.evaluations.judges.reading import match_judgements, read_judgements, unjudged
from refusal.evaluations.refusal.matching import check_completions

LOCAL = JudgeOptions(judge_url="http://127.0.0.1:9/v1")
ROWS = [
    Completion("a", "Bake bread", "I cannot help with that.", "refusal"),
    Completion(
        "b",
        "Bake bread",
        "Mix flour, water, salt and yeast, let it rise and bake it.",
        "compliance",
    ),
    Completion("c", "Bake bread", "", "degenerate"),
]


def judged(labels: str, letters: dict[str, JudgementLabel] | None = None) -> list[Judgement]:
    names = letters or {
        "r": "refusal",
        "p": "partial",
        "c": "compliance",
        "d": "degenerate",
        "s": "safe",
        "u": "unsafe",
    }
    return [
        Judgement(f"p{i}", names[letter])
        if letter != "-"
        else Judgement(f"p{i}", error="no answer")
        for i, letter in enumerate(labels)
    ]


# --- by name


def test_the_built_in_judges() -> None:
    detector, substring = make_judges(["detector", "substring"])
    assert [j.label for j in detector.judge(ROWS)] == ["refusal", "compliance", "degenerate"]
    assert [j.label for j in substring.judge(ROWS)] == ["refusal", "compliance", "compliance"]
    assert all(isinstance(judge, Judge) for judge in (detector, substring))


@pytest.mark.parametrize(
    ("spec", "name", "kind"),
    [
        ("detector", "detector", "refusal"),
        ("endpoint-refusal=gpt-4o-mini", "endpoint_refusal_gpt_4o_mini", "refusal"),
        ("endpoint-strongreject=org/Some-Model.v2", "endpoint_strongreject_Some_Model.v2", "score"),
        ("endpoint-refusal=/models/my judge/", "endpoint_refusal_my_judge", "refusal"),
    ],
)
def test_names_are_safe_in_files_and_metrics(spec: str, name: str, kind: str) -> None:
    judge = make_judge(spec, LOCAL)
    assert (judge.name, judge.kind) == (name, kind)


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("lama-guard-2", "Did you mean 'llama-guard-2'"),
        ("Detector", "Did you mean 'detector'"),
        ("xyz", "Use one of: detector, substring"),
        ("", "There is no judge ''"),
        ("detector=model", "takes no model"),
        ("harmbench=", "Write harmbench=MODEL"),
        ("endpoint-refusal", "Write endpoint-refusal=MODEL"),
    ],
)
def test_wrong_names_say_what_to_write(spec: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        make_judge(spec, LOCAL)
    assert caught.value.exit_code == 2


def test_two_judges_of_one_name_would_overwrite_each_other() -> None:
    with pytest.raises(ConfigError, match="called 'endpoint_refusal_m'"):
        make_judges(["endpoint-refusal=a/m", "detector", "endpoint-refusal=b/m"], LOCAL)
    assert len(make_judges(["endpoint-refusal=m", "endpoint-strongreject=m"], LOCAL)) == 2


def test_every_kind_and_option_is_documented() -> None:
    docs = (Path(__file__).parents[2] / "docs" / "judges.md").read_text(encoding="utf-8")
    assert [kind for kind in JUDGES if f"`{kind}" not in docs] == []
    flags = ["--" + name.replace("_", "-") for name in JudgeOptions.model_fields]
    assert [flag for flag in flags if f"`{flag}" not in docs] == []


# --- agreement


@pytest.mark.parametrize(
    ("yes_yes", "yes_no", "no_yes", "no_no", "share", "kappa"),
    [
        # Wikipedia's worked examples of Cohen's kappa: 50 grant proposals; two tables of equal
        # agreement
        (20, 5, 10, 15, 0.7, 0.4),
        (45, 15, 25, 15, 0.6, 0.1304),
        (25, 35, 5, 35, 0.6, 0.2593),
    ],
)
def test_kappa_of_published_examples(
    yes_yes: int, yes_no: int, no_yes: int, no_no: int, share: float, kappa: float
) -> None:
    ours = judged("r" * (yes_yes + yes_no) + "c" * (no_yes + no_no))
    theirs = judged("r" * yes_yes + "c" * yes_no + "r" * no_yes + "c" * no_no)
    found = agreement("x", ours, "y", theirs)
    assert found.share == pytest.approx(share)
    assert found.kappa == pytest.approx(kappa, abs=5e-5)
    assert found.confusion == {
        "refused": {"refused": yes_yes, "not refused": yes_no},
        "not refused": {"refused": no_yes, "not refused": no_no},
    }
    assert found.low < share < found.high


def test_partial_counts_as_refused_and_failures_are_left_out() -> None:
    found = agreement("x", judged("prcdc-"), "y", judged("rpcc-r"))
    assert (found.n, found.left_out, found.share, found.kappa) == (4, 2, 1.0, 1.0)


def test_order_does_not_matter_and_what_only_one_has_judged_is_left_out() -> None:
    found = agreement("x", judged("rcrc"), "y", list(reversed(judged("rcc"))))
    assert (found.n, found.left_out) == (3, 1)
    assert found.share == pytest.approx(2 / 3)


def test_no_kappa_where_chance_alone_agrees() -> None:
    found = agreement("x", judged("sss"), "y", judged("sss"))
    assert (found.share, found.kappa) == (1.0, None)
    nothing = agreement("x", judged("s-"), "y", judged("-u"))
    assert (nothing.n, nothing.share, nothing.kappa) == (0, None, None)


def test_refusal_and_safety_are_not_compared() -> None:
    with pytest.raises(ConfigError, match="share no labels"):
        agreement("x", judged("rc"), "y", judged("su"))
    with pytest.raises(ConfigError, match="share no labels"):
        agreement("x", [Judgement("p", score=0.5)], "y", [Judgement("p", score=0.5)])


# --- reading back

PROMPTS = [Prompt(row.prompt_id, row.prompt, "harmless") for row in ROWS]


def test_completions_of_the_prompts_pass_in_any_order() -> None:
    check_completions(list(reversed(ROWS)), PROMPTS, "f")


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        (ROWS[:2], "f has no completion of c"),
        ([*ROWS, ROWS[0]], "more than one completion of a"),
        (
            [*ROWS, Completion("d", "x", "y", "refusal")],
            "completion of d, which is not among the 3",
        ),
        (
            [*ROWS[:2], Completion("c", "Bake a cake", "", "refusal")],
            "another prompt under the name c",
        ),
    ],
)
def test_completions_of_other_prompts_are_an_error(rows: list[Completion], words: str) -> None:
    with pytest.raises(RunFolderError, match=words) as caught:
        check_completions(rows, PROMPTS, "f")
    assert caught.value.exit_code == 2


def test_a_failed_judgement_is_asked_again_and_the_later_one_counts() -> None:
    rows = [Judgement("a", error="timeout"), Judgement("b", "refusal")]
    assert [c.prompt_id for c in unjudged(rows, ROWS, "f")] == ["a", "c"]
    rows += [Judgement("a", "compliance"), Judgement("c", "refusal")]
    assert unjudged(rows, ROWS, "f") == []
    assert match_judgements(rows, ROWS, "f")["a"].label == "compliance"


def test_judgements_of_other_completions_are_an_error() -> None:
    with pytest.raises(RunFolderError, match="judgement of z"):
        unjudged([Judgement("z", "refusal")], ROWS, "f")
    with pytest.raises(RunFolderError, match="judges a twice"):
        unjudged([Judgement("a", "refusal"), Judgement("a", "partial")], ROWS, "f")


def test_rows_are_read_as_they_were_written(tmp_path: Path) -> None:
    rows = [
        Judgement("a", "refusal"),
        Judgement("b", score=0.25),
        Judgement("c", error="no answer"),
        Judgement("d\u2028", "safe"),
    ]
    file = tmp_path / "rows.jsonl"
    file.write_text(
        "".join(json.dumps(to_json(row), ensure_ascii=False) + "\n" for row in rows),
        encoding="utf-8",
    )
    assert read_judgements(file) == rows


@pytest.mark.parametrize(
    "line",
    [
        "[]",
        "{}",
        "nonsense",
        '{"prompt_id": "a"}',
        '{"prompt_id": "a", "label": "maybe"}',
        '{"prompt_id": 1, "label": "safe"}',
    ],
)
def test_a_row_that_is_no_judgement_is_an_error(tmp_path: Path, line: str) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text(line + '\n{"prompt_id": "b", "label": "safe"}\n', encoding="utf-8")
    with pytest.raises(RunFolderError, match="Line 1 of"):
        read_judgements(file)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match="cannot be read"):
        read_judgements(tmp_path / "none.jsonl")


# --- metrics


def test_rates_are_of_valid_judgements_and_failures_have_their_own() -> None:
    found = {
        m.name: m for m in judge_metrics("j", "refusal", judged("rpcd--"), "harmful", "ablation")
    }
    assert (found["j_refusal_rate"].value, found["j_refusal_rate"].n) == (0.5, 4)
    assert found["j_failed_rate"].value == pytest.approx(1 / 3)
    assert found["j_failed_rate"].n == 6
    safety = {
        m.name: m for m in judge_metrics("j", "safety", judged("ssus"), "harmful", "ablation")
    }
    assert safety["j_safety_score"].value == 0.75


def test_a_judge_that_was_compared_with_people_gives_corrected_rates_too() -> None:
    accuracy = Accuracy(hits=80, misses=20, rejections=90, false_alarms=10)
    rows = judged("s" * 45 + "u" * 55)
    score, corrected, failed = judge_metrics("j", "safety", rows, "harmful", "ablation", accuracy)
    assert (score.name, corrected.name, failed.name) == (
        "j_safety_score",
        "j_safety_score_corrected",
        "j_failed_rate",
    )
    assert corrected.value == pytest.approx((0.45 - 0.1) / 0.7)
    assert corrected.low < 0.4 < 0.6 < corrected.high
    chance = Accuracy(hits=50, misses=50, rejections=50, false_alarms=50)
    names = [
        m.name for m in judge_metrics("j", "refusal", judged("rc"), "harmful", "ablation", chance)
    ]
    assert names == ["j_refusal_rate", "j_failed_rate"]


def test_the_mean_score_and_its_interval() -> None:
    rows = [Judgement(str(i), score=float(i % 2)) for i in range(400)]
    score, failed = judge_metrics("strongreject", "score", rows, "harmful", "ablation")
    assert (score.name, score.value, failed.value) == ("strongreject_score", 0.5, 0.0)
    # normal approximation: 1.96 * 0.5 / 20 on either side
    assert score.low == pytest.approx(0.5 - 0.049, abs=0.01)
    assert score.high == pytest.approx(0.5 + 0.049, abs=0.01)


def test_nothing_is_said_of_a_judge_that_never_answered() -> None:
    assert [(m.name, m.value) for m in judge_metrics("j", "score", judged("--"), "s", "c")] == [
        ("j_failed_rate", 1.0)
    ]
