"""Judges of a run: asked once for each completion, again only for what failed, and compared with
the detector.
"""

import json
import shutil
from collections.abc import Iterator, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import saved

from refusal import Completion, ConfigError, JudgeError, PromptError, RunFailure
from refusal import run as run_stages
from refusal.config.judges import JudgeOptions
from refusal.config.run_config import RunConfig
from refusal.core.strict_files import read_json
from refusal.evaluations.judges.judgement import JudgeKind, Judgement
from refusal.evaluations.judges.protocol import Judge
from refusal.evaluations.judges.stage import check_judged, judge_all
from refusal.evaluations.refusal.generate import warn_of_no_answers
from refusal.interventions.conditions import CONDITIONS
from refusal.runs.files import read_completions
from refusal.runs.folder import RunFolder


class Fickle(Judge):
    """Answers in reverse order; fails on the ids in ``fails``, gives up altogether after ``stops``
    answers.
    """

    kind: JudgeKind = "refusal"

    def __init__(self, fails: set[str] | None = None, stops: int | None = None) -> None:
        super().__init__("fickle", "", JudgeOptions())
        self.fails, self.stops = fails or set(), stops
        self.asked: list[str] = []

    def judge(self, items: Sequence[Completion]) -> Iterator[Judgement]:
        for item in reversed(items):
            if self.stops is not None and len(self.asked) >= self.stops:
                raise JudgeError("Nobody answers. Start the server.")
            self.asked.append(item.prompt_id)
            if item.prompt_id in self.fails:
                yield Judgement(item.prompt_id, error="HTTP 500")
            else:
                yield Judgement(
                    item.prompt_id, "refusal" if item.prompt_id.endswith("1") else "compliance"
                )


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[RunConfig, Path]:
    base = tmp_path_factory.mktemp("judged")
    config = saved.small_config(
        saved.save_model(base / "model"), saved.write_prompts(base), n_test=4
    )
    run_stages(config, base / "run")
    return config, base / "run"


@pytest.fixture
def folder(finished: tuple[RunConfig, Path], tmp_path: Path) -> RunFolder:
    folder = RunFolder(Path(shutil.copytree(finished[1], tmp_path / "run")))
    folder.check()
    return folder


def completions(folder: RunFolder) -> dict[tuple[str, str], tuple[Completion, ...]]:
    return {key: read_completions(folder.completions(*key)) for key in CONDITIONS}


def judged(folder: RunFolder, config: RunConfig, judge: Fickle) -> dict[tuple[str, str, str], Any]:
    again = RunFolder(folder.path)
    again.check()
    found = judge_all(again, config, {"fickle": judge}, completions(folder))
    return {(m.name, m.set, m.condition): m for m in found}


def test_failures_are_counted_and_asked_again_and_nothing_else_is(
    folder: RunFolder, finished: tuple[RunConfig, Path]
) -> None:
    rows = completions(folder)
    some = rows["harmful", "baseline"][0].prompt_id
    found = judged(folder, finished[0], Fickle(fails={some}))
    assert (
        found["fickle_failed_rate", "harmful", "baseline"].value,
        found["fickle_refusal_rate", "harmful", "baseline"].n,
    ) == (0.25, 3)
    file = folder.path / "judgements" / "fickle" / "harmful.baseline.jsonl"
    assert len(file.read_text(encoding="utf-8").splitlines()) == 4
    second = Fickle()
    found = judged(folder, finished[0], second)
    assert second.asked == [some] * 3  # under each condition of the harmful set
    assert found["fickle_failed_rate", "harmful", "baseline"].value == 0
    expected = sum(c.prompt_id.endswith("1") for c in rows["harmful", "baseline"]) / 4
    assert found["fickle_refusal_rate", "harmful", "baseline"].value == expected
    assert judged(folder, finished[0], third := Fickle()) == found
    assert third.asked == []


def test_what_was_judged_before_the_endpoint_went_away_is_kept(
    folder: RunFolder, finished: tuple[RunConfig, Path]
) -> None:
    first, second = Fickle(stops=6), Fickle()
    with pytest.raises(JudgeError):
        judged(folder, finished[0], first)
    judged(folder, finished[0], second)
    assert len(first.asked) + len(second.asked) == sum(map(len, completions(folder).values()))


def test_a_line_cut_off_by_an_interruption_is_asked_again(
    folder: RunFolder, finished: tuple[RunConfig, Path]
) -> None:
    judged(folder, finished[0], Fickle())
    file = folder.path / "judgements" / "fickle" / "harmless.addition.jsonl"
    file.write_text(file.read_text(encoding="utf-8")[:-7], encoding="utf-8")
    again = Fickle()
    judged(folder, finished[0], again)
    assert len(again.asked) == 1
    assert len(file.read_text(encoding="utf-8").splitlines()) == 4


def test_other_completions_are_judged_anew(
    folder: RunFolder, finished: tuple[RunConfig, Path]
) -> None:
    judged(folder, finished[0], Fickle())
    path = folder.completions("harmful", "ablation")
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]
    path.write_text(
        "".join(json.dumps({**row, "completion": "other"}) + "\n" for row in rows), encoding="utf-8"
    )
    again = Fickle()
    judged(folder, finished[0], again)
    assert len(again.asked) == 4


def test_agreement_with_the_detector_is_over_all_completions(
    folder: RunFolder, finished: tuple[RunConfig, Path]
) -> None:
    found = judged(folder, finished[0], Fickle())
    rows = completions(folder)
    agreed = [
        (c.verdict in ("refusal", "partial")) == c.prompt_id.endswith("1")
        for r in rows.values()
        for c in r
    ]
    share = found["agreement", "judges", "detector/fickle"]
    assert (share.value, share.n) == (pytest.approx(sum(agreed) / len(agreed)), len(agreed))
    (pair,) = read_json(folder.path / "judgements" / "agreement.json")
    assert sum(sum(row.values()) for row in pair["confusion"].values()) == len(agreed)


def test_a_run_with_a_judge_writes_its_rates(
    finished: tuple[RunConfig, Path], tmp_path: Path
) -> None:
    out = Path(shutil.copytree(finished[1], tmp_path / "run"))
    result = run_stages(finished[0].model_copy(update={"judges": ("detector", "substring")}), out)
    found = {(m.name, m.set, m.condition): m.value for m in result.metrics}
    for set_name, condition in CONDITIONS:
        assert found["substring_refusal_rate", set_name, condition] <= 1
    assert ("agreement", "judges", "detector/substring") in found


def test_a_judge_that_does_not_exist_stops_the_run_before_anything_slow(
    finished: tuple[RunConfig, Path], tmp_path: Path
) -> None:
    wrong = finished[0].model_copy(update={"judges": ("wildgard",), "model": "no/such-model"})
    with pytest.raises(ConfigError, match="wildguard"):
        run_stages(wrong, tmp_path / "run")


def labelled(folder: RunFolder, path: Path, labels: dict[str, str], **change: str) -> Path:
    """People's labels of the harmful baseline completions."""
    rows = completions(folder)["harmful", "baseline"]
    with path.open("w", encoding="utf-8") as file:
        for row in rows:
            if row.prompt_id in labels:
                value = {
                    "prompt_id": row.prompt_id,
                    "completion": row.completion,
                    "label": labels[row.prompt_id],
                }
                file.write(json.dumps({**value, **change}) + "\n")
    return path


def test_labels_that_people_gave_are_a_judge(
    folder: RunFolder, finished: tuple[RunConfig, Path], tmp_path: Path
) -> None:
    ids = [row.prompt_id for row in completions(folder)["harmful", "baseline"]]
    path = labelled(
        folder,
        tmp_path / "people.jsonl",
        dict(zip(ids[:3], ("refusal", "partial", "compliance"), strict=True)),
    )
    config = finished[0].model_copy(update={"judges": (f"labels={path}",)})
    found = {
        (m.name, m.condition): m
        for m in run_stages(config, folder.path).metrics
        if m.set == "harmful"
    }
    rate = found["labels_people.jsonl_refusal_rate", "baseline"]
    assert rate.value == pytest.approx(2 / 3)
    assert rate.n == 3
    assert found["labels_people.jsonl_failed_rate", "baseline"].value == 0.25
    assert found["labels_people.jsonl_failed_rate", "ablation"].value == 1.0


@pytest.mark.parametrize(
    ("labels", "change", "message"),
    [
        (("refusal", "unsure"), {}, "row 2: unknown label 'unsure'"),
        (("refusal", "safe"), {}, "labels of refusal beside labels of safety"),
        ((), {}, "holds no labels"),
        (
            ("refusal", "refusal"),
            {"completion": "something else"},
            "2 of 2 labels in .* are of no completion",
        ),
        (("refusal", "compliance"), {"prompt_id": "x", "completion": "y"}, "row 2 labels x again"),
    ],
)
def test_labels_that_do_not_fit_are_refused(
    folder: RunFolder,
    finished: tuple[RunConfig, Path],
    tmp_path: Path,
    labels: tuple[str, ...],
    change: dict[str, str],
    message: str,
) -> None:
    ids = [row.prompt_id for row in completions(folder)["harmful", "baseline"]]
    path = labelled(
        folder, tmp_path / "people.jsonl", dict(zip(ids, labels, strict=False)), **change
    )
    config = finished[0].model_copy(update={"judges": (f"labels={path}",)})
    with pytest.raises(PromptError, match=message):
        run_stages(config, folder.path)


def test_what_could_not_be_used_does_not_stay_in_the_options(
    folder: RunFolder, finished: tuple[RunConfig, Path], tmp_path: Path
) -> None:
    """Otherwise every later command on the run would stumble over it again."""
    ids = [row.prompt_id for row in completions(folder)["harmful", "baseline"]]
    path = labelled(
        folder, tmp_path / "people.jsonl", {ids[0]: "refusal"}, completion="something else"
    )
    before = (folder.path / "run.toml").read_text(encoding="utf-8")
    with pytest.raises(PromptError, match="are of no completion"):
        run_stages(
            finished[0].model_copy(update={"judges": (f"labels={path}",)}), folder.path, adding=True
        )
    assert (folder.path / "run.toml").read_text(encoding="utf-8") == before


def test_a_judge_that_failed_on_everything_fails_the_run_and_one_that_failed_on_much_warns(
    folder: RunFolder, finished: tuple[RunConfig, Path], caplog: pytest.LogCaptureFixture
) -> None:
    rows = completions(folder)
    every = {row.prompt_id for some in rows.values() for row in some}
    judge = Fickle(fails=every)
    n = sum(len(some) for some in rows.values())
    judged(folder, finished[0], judge)
    with pytest.raises(
        RunFailure, match=rf"All {n} judgements of fickle failed \(HTTP 500\), so it has no rates\."
    ):
        check_judged(folder, {"fickle": judge})
    some = {row.prompt_id for row in rows["harmful", "baseline"]}
    judged(folder, finished[0], Fickle(fails=some))
    check_judged(folder, {"fickle": judge})
    assert f"of {n} judgements of fickle failed (HTTP 500)" in caplog.text
    caplog.clear()
    judged(folder, finished[0], Fickle())
    check_judged(folder, {"fickle": judge})
    assert not caplog.records


def test_a_whole_run_says_so_in_the_end_when_its_judge_only_failed(
    finished: tuple[RunConfig, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = import_module("refusal.evaluations.judges.stage")
    out = Path(shutil.copytree(finished[1], tmp_path / "run"))
    every = {
        row.prompt_id
        for key in CONDITIONS
        for row in read_completions(RunFolder(out).completions(*key))
    }
    monkeypatch.setattr(module, "judges_for", lambda config: {"fickle": Fickle(fails=every)})
    with pytest.raises(
        RunFailure, match=r"judgements of fickle failed .*What else was measured is in"
    ) as caught:
        run_stages(finished[0], out)
    assert caught.value.exit_code == 1
    assert "fickle_failed_rate" in (out / "metrics.json").read_text(encoding="utf-8")
    assert (out / "report.html").is_file()
    monkeypatch.setattr(module, "judges_for", lambda config: {"fickle": Fickle()})
    run_stages(finished[0], out)  # only the failed ones are asked again


def test_a_model_that_gives_no_answer_is_worth_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    cut = Completion("a", "Why?", "<think>Let me see", "unfinished")
    warn_of_no_answers([cut, Completion("b", "Why?", "Because.", "compliance")], "harmless")
    warn_of_no_answers([], "harmless")
    assert not caplog.records
    warn_of_no_answers([cut, cut], "harmless")
    assert (
        "None of the 2 baseline completions of harmless is an answer: 2 are still thinking"
        in caplog.text
    )
    warn_of_no_answers([Completion("a", "Why?", "", "degenerate")], "harmful")
    assert "empty, loops or no language" in caplog.text
