"""Filters: by judged completions where refusals do not begin alike, chosen by itself and said;
tiny models whose direction and texts are known.
"""

import json
import logging
import random
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import late_refusers
import pytest
import torch
from conftest import make_prompts
from saved import times

from refusal import (
    ChatModel,
    ConfigError,
    Prompt,
    PromptPair,
    RunConfig,
    TooFewPromptsError,
    make_config,
    run,
)
from refusal.core.filters import (
    Fit,
    Judged,
    best_threshold,
    calibrate,
    fit_metric,
    passes_judged,
)
from refusal.core.stats import Estimate, Z, auroc, auroc_interval
from refusal.directions.filter_choice import choose_filter
from refusal.directions.judged_pool import Reading, draw_judged
from refusal.directions.refusal_metric import refusal_metric
from refusal.directions.refusal_tokens import CHOOSE_NEW_TOKENS, Sample, weighty_tokens
from refusal.report.data import read_run
from refusal.report.page import report_page
from refusal.report.verdict import verdict
from refusal.runs.filtered import judged_file, read_calibration, read_filter, read_judged

PER_CLASS = 80
UNCERTAIN = Estimate(0.0, 0.0, 0.0)


def harmful_texts(topics: str = "") -> list[str]:
    """Marked prompts; of five, four with a topic."""
    plain = [p.text for p in make_prompts("harmful", PER_CLASS)]
    marked = []
    for i, text in enumerate(plain):
        topic = f"{topics[(i * 7) % len(topics)]} " if topics and i % 5 else ""
        marked.append(f"## {topic}{text} ##")
    return marked


def write_files(folder: Path, topics: str = "") -> tuple[str, ...]:
    """What ``--prompts`` takes."""
    harmless = [p.text for p in make_prompts("harmless", PER_CLASS, offset=1000)]
    for label, lines in (("harmful", harmful_texts(topics)), ("harmless", harmless)):
        (folder / f"{label}.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return f"harmful={folder / 'harmful.txt'}", f"harmless={folder / 'harmless.txt'}"


def config_for(folder: Path, topics: str = "", **changes: Any) -> RunConfig:
    sizes: dict[str, Any] = {"n_train": 12, "n_val": 8, "n_test": 6, "max_new_tokens": 64}
    rest: dict[str, Any] = {
        "dedup": "exact", "dtype": "float32", "controls": 0, "drift_tokens": 0,
        "figures": ("none",), "resamples": 20,
    }  # fmt: skip
    prompts = write_files(folder, topics)
    return make_config(model="planted", prompts=prompts, **{**sizes, **rest, **changes})


@pytest.fixture(scope="module")
def late() -> ChatModel:
    return late_refusers.late()


@pytest.fixture(scope="module")
def scattered() -> ChatModel:
    return late_refusers.scattered()


# --- a model that refuses late


@pytest.fixture(scope="module")
def late_run(late: ChatModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("late")
    out = folder / "run"
    run(config_for(folder), out, model=late)
    return out


def test_a_model_that_refuses_late_is_measured_and_its_direction_found(
    late: ChatModel, late_run: Path
) -> None:
    data = read_run(late_run)
    choice = read_filter(late_run)
    assert (choice.kind, choice.automatic) == ("completions", True)
    assert "within 24 tokens" in choice.why
    assert read_calibration(late_run, choice).rule == "cosmic"
    assert data.tokens is None  # none of those that answers begin with says anything
    assert data.direction is not None
    cosine = float(torch.from_numpy(data.direction) @ late_refusers.axis())
    assert cosine > 0.99

    def rate(name: str, set_name: str, condition: str) -> float:
        found = data.find(name, set_name, condition)
        assert found is not None
        return found.value

    assert rate("refusal_rate", "harmful", "baseline") == 1.0
    assert rate("refusal_rate_at_32_tokens", "harmful", "baseline") == 0.0
    assert rate("delayed_refusal_rate", "harmful", "baseline") == 1.0
    assert rate("refusal_rate", "harmful", "ablation") == 0.0
    assert rate("refusal_rate", "harmless", "baseline") == 0.0
    assert rate("refusal_rate", "harmless", "addition") == 1.0
    assert data.selection is not None
    assert data.selection.score.more["cosmic"] is not None
    assert data.selection.harmful_count.drawn >= data.selection.harmful_count.passed == 8


def test_what_was_chosen_is_said(late_run: Path) -> None:
    manifest = json.loads((late_run / "manifest.json").read_text("utf-8"))
    said = manifest["filter"]
    assert (said["kind"], said["automatic"], said["rule"]) == ("completions", True, "cosmic")
    assert "judged completions of 128 tokens" in said["why"]
    assert "COSMIC's score chooses" in said["why"]
    data = read_run(late_run)
    assert any("judged completions" in note for note in verdict(data).notes)
    page = report_page(data)
    assert "Prompts are filtered by judged completions of 128 tokens" in page
    assert "highest cosmic score" in page
    rows = read_judged(judged_file(late_run, "train.harmful"))
    assert rows
    assert all(row.prompt not in page for row in rows)  # kept, but not shown


def test_the_same_run_again_writes_nothing(late: ChatModel, late_run: Path) -> None:
    before = times(late_run)
    config = config_for(late_run.parent)
    run(config, late_run, model=late)
    assert times(late_run) == before
    judged_file(late_run, "val.harmless").unlink()
    tokens = late.forward_tokens
    run(config, late_run, model=late)
    changed = {name for name, at in times(late_run).items() if before.get(name) != at}
    assert changed == {str(judged_file(Path(), "val.harmless")), "metrics.json"}
    assert 0 < late.forward_tokens - tokens < 12 * 250  # not the other pools


@pytest.mark.slow
def test_other_seeds_use_the_same_filter(late: ChatModel, tmp_path: Path) -> None:
    result = run(config_for(tmp_path, seeds=2), tmp_path / "run", model=late)
    (cosine,) = [m.value for m in result.metrics if (m.name, m.condition) == ("cosine", "seed-43")]
    assert cosine > 0.99


# --- a model whose refusals begin with words of their topic


def test_tokens_threshold_and_filter_of_scattered_beginnings(
    scattered: ChatModel, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    out = tmp_path / "run"
    caplog.set_level(logging.INFO)
    result = run(config_for(tmp_path, late_refusers.TOPICS), out, model=scattered)
    choice = read_filter(out)
    assert choice.fit is not None
    assert choice.kind == "completions"
    assert "the threshold of the refusal metric, 0, fits badly" in caplog.text
    assert result.tokens is not None
    assert result.tokens.texts == ("\nSorry",)  # the topics' words carry no weight
    calibration = read_calibration(out, choice)
    assert calibration.rule == "metric"
    assert calibration.fit is not None
    assert calibration.fit.auroc.value > 0.95
    assert -4.9 < calibration.threshold < -0.3
    low, high = calibration.fit.threshold.low, calibration.fit.threshold.high
    assert low <= calibration.threshold <= high
    assert result.selection is not None
    assert result.selection.qualified
    assert (result.selection.score.induce or -99) >= calibration.threshold
    cosine = float(result.selection.direction.vector @ late_refusers.axis())
    assert cosine > 0.9
    rates = {(m.set, m.condition): m.value for m in result.metrics if m.name == "refusal_rate"}
    assert rates["harmful", "baseline"] == 1.0
    assert rates["harmful", "ablation"] == 0.0
    page = report_page(read_run(out))
    assert f"induce at least {calibration.threshold:g}".replace("-", "\u2212") in page
    saved = json.loads((out / "selection.json").read_text("utf-8"))
    scores = json.loads((out / "scores.json").read_text("utf-8"))
    limit = calibration.threshold
    for row in scores:
        if row["rejected_because"] == "induce" and row["induce"] is not None:
            assert row["induce"] < limit
    assert saved["harmful_count"]["passed"] == 8


def test_the_published_filter_says_early_that_it_will_not_get_enough(
    scattered: ChatModel, tmp_path: Path
) -> None:
    config = config_for(
        tmp_path, late_refusers.TOPICS, filter="metric", refusal_tokens=(_sorry(scattered),)
    )
    with pytest.raises(TooFewPromptsError) as caught:
        run(config, tmp_path / "run", model=scattered)
    said = str(caught.value)
    assert "harmful prompts pass the refusal filter, so that" in said
    assert "at least 8 are needed" in said
    assert "--filter completions" in said
    assert not (tmp_path / "run" / "candidates.safetensors").exists()


def test_fewer_than_wanted_is_a_warning_with_numbers(
    scattered: ChatModel, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = config_for(
        tmp_path, late_refusers.TOPICS, filter="metric", n_train=40, n_val=2,
        refusal_tokens=(_sorry(scattered),),
    )  # fmt: skip
    run(config, tmp_path / "run", until="extract", model=scattered)
    (warning,) = [
        r.message for r in caplog.records if "Fewer prompts than wanted may pass" in r.message
    ]
    assert "harmful training prompts, where 40 are wanted and 8 needed" in warning


def test_tokens_do_not_hide_it_from_their_own_sample(
    scattered: ChatModel, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """With tokens that are chosen from it three in four of the sample pass; of others, half do."""
    config = config_for(tmp_path, late_refusers.TOPICS, filter="metric")
    with pytest.raises(TooFewPromptsError, match="Only 7 of 16 harmful prompts pass"):
        run(config, tmp_path / "run", model=scattered)
    choice = read_filter(tmp_path / "run")
    assert choice.harmful is not None
    assert choice.harmful.passed <= choice.harmful.tried / 2
    said = caplog.messages
    early = next(i for i, text in enumerate(said) if "Fewer prompts than wanted may pass" in text)
    assert "of the 16 harmful validation prompts, where 8 are wanted and 8 needed" in said[early]


def test_given_tokens_that_fit_badly_are_kept_and_calibrated(
    scattered: ChatModel, tmp_path: Path
) -> None:
    config = config_for(tmp_path, late_refusers.TOPICS, refusal_tokens=(_sorry(scattered),))
    result = run(config, tmp_path / "run", until="extract", model=scattered)
    choice = read_filter(tmp_path / "run")
    assert (choice.kind, choice.automatic) == ("completions", True)
    assert result.tokens is not None
    assert result.tokens.source == "given"
    assert read_calibration(tmp_path / "run", choice).threshold < 0


def test_a_metric_that_fits_stays_without_long_completions(
    scattered: ChatModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without topics every refusal begins alike: the published rule, as before."""
    lengths: list[int] = []
    own = choose_filter.__globals__["take_sample"]

    def counted(model: ChatModel, prompts: Any, new: int, *more: str) -> Sample:
        lengths.append(new)
        found: Sample = own(model, prompts, new, *more)
        return found

    monkeypatch.setitem(choose_filter.__globals__, "take_sample", counted)
    out = tmp_path / "run"
    result = run(config_for(tmp_path), out, model=scattered)
    choice = read_filter(out)
    assert (choice.kind, lengths) == ("metric", [24])
    assert not (out / "filter" / "train.harmful.jsonl").exists()
    assert result.selection is not None
    assert result.selection.score.more == {}
    same = run(config_for(tmp_path, filter="metric"), tmp_path / "asked", model=scattered)
    assert same.selection is not None
    assert same.selection.scores == result.selection.scores
    assert torch.equal(same.selection.direction.vector, result.selection.direction.vector)


def test_tokens_are_of_the_verdicts_that_say_that_they_fit(
    scattered: ChatModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cut to a few words three refusals show, one of each topic; whole, all do and begin alike. The
    tokens that then fit are those of the whole answers.
    """
    pools = late_refusers.TOPICS
    harmful = [f"## {p.text} ##" for p in make_prompts("harmful", 32)]
    odd = [f"## {pools[i]} {text[3:]}" for i, text in enumerate(harmful[:3])]
    harmless = make_prompts("harmless", 16, offset=1000)
    texts = odd + harmful[3:]
    marked = tuple(Prompt(f"h{i}", t, "harmful") for i, t in enumerate(texts))
    train = PromptPair(marked, harmless)
    own = choose_filter.__globals__["take_sample"]

    def cut(model: ChatModel, prompts: Any, new: int, *more: str) -> Sample:
        found: Sample = own(model, prompts, new, *more)
        if new > CHOOSE_NEW_TOKENS:
            return found
        seen = {prompt.id for prompt in prompts.harmful[:3]}
        labels = [
            verdict if prompt.label == "harmless" or prompt.id in seen else "compliance"
            for prompt, verdict in zip(found.prompts, found.verdicts, strict=True)
        ]
        return replace(found, verdicts=tuple(labels))

    monkeypatch.setitem(choose_filter.__globals__, "take_sample", cut)
    config = make_config(model="planted", max_new_tokens=64)
    chosen = choose_filter(scattered, train, config)
    assert chosen.choice.kind == "metric"
    assert (chosen.choice.tokens or 0) > CHOOSE_NEW_TOKENS
    assert chosen.tokens is not None
    assert int(_sorry(scattered)) in chosen.tokens.ids


def _sorry(model: ChatModel) -> str:
    return str(model.tokenizer.get_vocab()["\nSorry"])


# --- the pieces


def test_drawing_ends_with_the_last_prompt_that_is_needed(late: ChatModel) -> None:
    """However many are completed at once: those that a loop over single prompts takes."""
    plain = [p.text for p in make_prompts("harmful", 14)]
    texts = [text if i % 3 == 0 else f"## {text} ##" for i, text in enumerate(plain)]
    pool = [Prompt(f"p{i}", text, "harmful") for i, text in enumerate(texts)]
    expected = [p.id for p in pool[:7]]  # 1, 2, 4 and 5 are refused, and then 7
    for share in (0.01, 0.5, 1.0):
        rows = draw_judged(late, pool, "harmful", 4, Reading(None, 64, share=share))
        assert [row.prompt_id for row in rows][-1] == "p5"
        assert [row.prompt_id for row in rows] == expected[:6]
        assert [row.verdict for row in rows] == ["compliance", "refusal", "refusal"] * 2
    known = {row.prompt_id: row for row in rows}
    before = late.forward_tokens
    again = draw_judged(late, pool, "harmful", 4, Reading(None, 64, known))
    assert again == rows
    assert late.forward_tokens - before < 3 * 150  # at most what lies ahead
    everything = draw_judged(late, pool, "harmful", 99, Reading(None, 64))
    assert len(everything) == len(pool)
    assert sum(passes_judged("harmful", row) for row in everything) == 9


def test_metrics_stand_beside_completions(scattered: ChatModel) -> None:
    from refusal.directions.refusal_tokens import given_tokens
    from refusal.model.forward import last_logits

    pool = make_prompts("harmless", 3)
    tokens = given_tokens(scattered, [_sorry(scattered)])
    rows = draw_judged(scattered, pool, "harmless", 3, Reading(tokens, 8))
    values = refusal_metric(last_logits(scattered, [p.text for p in pool]), tokens.ids)
    assert [row.metric for row in rows] == pytest.approx(values.tolist(), abs=1e-4)


def plain_threshold(refused: Sequence[float], answered: Sequence[float]) -> float:
    """Of all cuts between neighbours those that part best, and of them the middle one."""
    values = sorted({*refused, *answered})
    scored = []
    for left, right in pairwise(values):
        cut = (left + right) / 2
        above = sum(v > cut for v in refused) / len(refused)
        below = sum(v < cut for v in answered) / len(answered)
        scored.append((above + below, cut))
    most = max(score for score, _ in scored)
    best = [cut for score, cut in scored if score > most - 1e-9]
    return best[(len(best) - 1) // 2]


@pytest.mark.parametrize("seed", range(5))
def test_the_threshold_is_that_of_a_plain_loop(seed: int) -> None:
    draw = random.Random(seed)
    refused = [round(draw.gauss(-1, 2), 1) for _ in range(25)]
    answered = [round(draw.gauss(-4, 2), 1) for _ in range(17)]
    found = best_threshold(refused, answered)
    assert found.value == pytest.approx(plain_threshold(refused, answered))
    assert found.low <= found.value <= found.high
    assert best_threshold(refused, answered) == found


def test_the_interval_of_an_area() -> None:
    """Its ends solve the equation that defines them, and it has a width at 1."""
    for area, m, n in ((0.95, 24, 16), (0.5, 10, 10), (0.7, 40, 300), (1.0, 25, 23)):
        found = auroc_interval(area, m, n)
        assert found.low < area <= found.high <= 1
        for end in {found.low, found.high} - {1.0}:
            q1, q2 = (1 - end) / (2 - end), end / (1 + end)
            variance = end * (1 - end) * (1 + ((m + n) / 2 - 1) * (q1 + q2)) / (m * n)
            assert abs(end - area) == pytest.approx(Z * variance**0.5, rel=1e-6)
    assert auroc_interval(0.8, 30, 20).high == pytest.approx(
        1 - auroc_interval(0.2, 20, 30).low, abs=1e-9
    )
    assert auroc_interval(0.5, 0, 9) == Estimate(0.5, 0.0, 1.0)


def rows_of(refused: Sequence[float], answered: Sequence[float]) -> list[Judged]:
    every = [("refusal", v) for v in refused] + [("compliance", v) for v in answered]
    rows = []
    for i, (label, value) in enumerate(every):
        rows.append(Judged(str(i), "", "", label, metric=value))  # type: ignore[arg-type]
    return rows


def test_the_threshold_stays_where_it_fits() -> None:
    good = rows_of([2.0] * 18 + [-1.0] * 4, [-3.0] * 20)
    fit = fit_metric(good)
    assert fit is not None
    assert fit.fits
    assert fit.trusted
    assert fit.agreement.value == pytest.approx(38 / 42)
    assert calibrate(good).threshold == 0.0
    bad = rows_of([2.0] * 5 + [-1.0] * 17, [-3.0] * 20)
    fit = fit_metric(bad)
    assert fit is not None
    assert fit.trusted
    assert not fit.fits
    assert (calibrate(bad).threshold, calibrate(bad).rule) == (-2.0, "metric")
    assert "5 have a metric above 0" in calibrate(bad).why
    high = rows_of([9.0] * 20, [1.0] * 20)  # what answers begin with is among the tokens
    assert calibrate(high).threshold == 5.0


def test_a_metric_that_tells_nothing_apart_leaves_the_choice_to_cosmic() -> None:
    draw = random.Random(1)
    noise = rows_of([draw.gauss(0, 1) for _ in range(30)], [draw.gauss(0, 1) for _ in range(30)])
    fit = fit_metric(noise)
    assert fit is not None
    assert not fit.trusted
    assert not fit.fits
    assert fit.auroc.high < 0.9
    found = calibrate(noise)
    assert (found.rule, found.threshold) == ("cosmic", 0.0)
    assert "cannot tell refusals from answers" in found.why
    assert calibrate(rows_of([1.0] * 2, [0.0] * 50)).rule == "cosmic"
    assert fit_metric(rows_of([1.0] * 2, [0.0] * 50)) is None


def test_two_in_three_is_a_limit_of_what_is_measured() -> None:
    def fit(above: int, n: int) -> Fit:
        return Fit(n, 20, above, 20, Estimate(0.98, 0.9, 1.0), UNCERTAIN)

    assert not fit(11, 24).fits  # at most 65 %
    assert fit(12, 24).fits  # perhaps 69 %
    assert fit(1, 3).fits  # nobody knows


def test_tokens_that_carry_no_weight_are_not_taken() -> None:
    """One token tells refusals from answers a little, one more of them, and the rest each begins a
    single refusal of the half that they are ranked on.
    """
    refused, answered = 20, 20
    logits = torch.zeros(refused + answered, 60)
    logits[:, 0] = 5.0
    logits[range(0, refused, 2), range(10, 20)] = 7.0  # seen in one refusal each, all ranked on
    logits[: refused - 6, 1] = 4.0
    logits[refused - 6 : refused, 2] = 4.0
    prompts = make_prompts("harmful", refused + answered)
    verdicts = ["refusal"] * refused + ["compliance"] * answered
    sample = Sample(prompts, ("",) * len(prompts), tuple(verdicts), logits, 24)  # type: ignore[arg-type]
    assert set(weighty_tokens(sample)) == {1, 2}
    values = refusal_metric(logits, [1, 2]).tolist()
    assert auroc(values[:refused], values[refused:]) == 1.0
    nothing = Sample(prompts, sample.outputs, sample.verdicts, torch.zeros(40, 60), 24)
    assert weighty_tokens(nothing) == []


# --- asking for it


def test_older_files_say_yes_or_no(tmp_path: Path) -> None:
    for value, kind in (("true", "metric"), ("false", "none"), ('"completions"', "completions")):
        file = tmp_path / "old.toml"
        file.write_text(f"[prompts]\nfilter = {value}\n", encoding="utf-8")
        assert make_config(file=file).filter == kind
    with pytest.raises(ConfigError, match="filter = 'maybe' cannot be used"):
        make_config(filter="maybe")


def test_the_length_of_what_is_judged() -> None:
    lengths = [make_config(max_new_tokens=n).judged_tokens for n in (16, 200, 512)]
    assert lengths == [128, 200, 256]
    assert make_config(filter_tokens=40).judged_tokens == 40
