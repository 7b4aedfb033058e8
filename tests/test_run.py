"""A run folder holds what is documented; stages are reused exactly when they may be; nothing is
half-written.
"""

import json
import math
import shutil
import tomllib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import saved
import tiny_models
import torch
from safetensors import safe_open

from refusal import (
    ChatModel,
    Completion,
    Direction,
    NoCandidateError,
    PromptError,
    RunFolderError,
    load,
    make_config,
)
from refusal import run as run_stages
from refusal.config.run_config import RunConfig
from refusal.core.storage import file_sha256
from refusal.interventions.conditions import CONDITIONS, ORDER

DIM: Any = import_module("refusal.directions.difference_in_means")
METHOD: Any = import_module("refusal.directions.method")
MEASURING: Any = import_module("refusal.evaluations.refusal.generate")
RATES = {
    "refusal_rate",
    "partial_rate",
    "degenerate_rate",
    "substring_refusal_rate",
    "refusal_rate_corrected",
}
LENGTHS = {"refusal_rate_at_3_tokens", "cut_off_rate"}
ROW = {"prompt_id", "prompt", "completion", "verdict", "tokens", "cuts"}
ACCURACY = {"sensitivity", "specificity"}
CHANGES = {"refusal_rate_change", "degenerate_rate_change", "refusal_rate_corrected_change"}
COMPLETIONS = {f"completions/{set_name}.{condition}.jsonl" for set_name, condition in CONDITIONS}
BASELINES = {"completions/harmful.baseline.jsonl", "completions/harmless.baseline.jsonl"}
SELECTED = {"scores.json", "direction.safetensors", "selection.json", "stability.json"}
PROJECTED = "projections.json"
REPORT = {
    "report.html",
    "categories.json",
    *(
        f"tables/{name}.csv"
        for name in (
            *("metrics", "lengths", "scores", "stability"),
            *("projections", "cosines", "stages"),
        )
    ),
}
RATED = {*COMPLETIONS, "metrics.json"}
IN_ORDER = [
    *("tokens", "extract", "select", "projections"),
    *(f"generate {s}.{c}" for s, c in sorted(CONDITIONS, key=lambda key: ORDER.index(key[1]))),
    "evaluate",
]
EVERYTHING = {
    "refusal_tokens.json",
    "filter.json",
    "candidates.safetensors",
    *SELECTED,
    PROJECTED,
    *RATED,
}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved.save_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    return saved.write_prompts(tmp_path_factory.mktemp("prompts"))


@pytest.fixture
def config(source: Path, prompts: tuple[str, ...]) -> RunConfig:
    return saved.small_config(source, prompts)


@pytest.fixture(scope="module")
def finished(
    source: Path, prompts: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A finished run; tests that write go to a copy of it."""
    out = tmp_path_factory.mktemp("finished") / "run"
    run_stages(saved.small_config(source, prompts), out)
    return out


@pytest.fixture
def out(finished: Path, tmp_path: Path) -> Path:
    """A copy of the finished run, with its file times."""
    return Path(shutil.copytree(finished, tmp_path / "run"))


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def redone(out: Path, config: RunConfig, **how: Any) -> set[str]:
    """Which files a run writes anew."""
    before = saved.times(out)
    run_stages(config, out, **how)
    return {name for name, time in saved.times(out).items() if before.get(name) != time}


def stages_of(out: Path) -> dict[str, Any]:
    """What the manifest says of finished stages."""
    found: dict[str, Any] = read(out / "manifest.json")["stages"]
    return found


def no_leftovers(folder: Path) -> None:
    assert [p.name for p in folder.rglob("*") if p.name.startswith(".")] == []


# --- what is in the folder


def test_the_folder_holds_the_documented_files(finished: Path, source: Path) -> None:
    files = {str(p.relative_to(finished)) for p in finished.rglob("*") if p.is_file()}
    assert files == {"run.toml", "manifest.json", *REPORT, *EVERYTHING}
    with safe_open(str(finished / "candidates.safetensors"), framework="pt") as file:
        assert set(file.keys()) == {"candidates", "harmless_means"}
        candidates = file.get_tensor("candidates")
        assert file.get_tensor("harmless_means").shape == candidates.shape
    positions = len(load(str(source)).chat.suffix)
    assert candidates.shape == (positions, tiny_models.LAYERS, tiny_models.WIDTH)
    assert candidates.dtype == torch.float32


def test_every_candidate_has_a_row_of_scores(finished: Path) -> None:
    scores = read(finished / "scores.json")
    assert set(scores[0]) == {"position", "layer", "bypass", "induce", "kl", "rejected_because"}
    with safe_open(str(finished / "candidates.safetensors"), framework="pt") as file:
        positions, layers, _ = file.get_tensor("candidates").shape
    assert [(s["position"], s["layer"]) for s in scores] == [
        (p, la) for p in range(-positions, 0) for la in range(layers)
    ]
    chosen = [s for s in scores if s["rejected_because"] is None]
    assert chosen
    assert all(math.isfinite(s[name]) for s in chosen for name in ("induce", "kl"))


def test_the_direction_is_the_chosen_candidate_normalised(finished: Path, source: Path) -> None:
    with safe_open(str(finished / "direction.safetensors"), framework="pt") as file:
        assert set(file.keys()) == {"direction", "harmless_mean", "by_layer"}
        vector, meta = file.get_tensor("direction"), file.metadata()
    with safe_open(str(finished / "candidates.safetensors"), framework="pt") as file:
        candidate = file.get_tensor("candidates")[int(meta["position"]), int(meta["layer"])]
    torch.testing.assert_close(vector * float(meta["norm"]), candidate)
    assert float(vector.norm()) == pytest.approx(1, abs=1e-6)
    assert (meta["qualified"], meta["model"], meta["seed"]) == ("true", str(source), "42")
    best = min(
        (s for s in read(finished / "scores.json") if s["bypass"] is not None),
        key=lambda s: s["bypass"],
    )
    assert (int(meta["position"]), int(meta["layer"])) == (best["position"], best["layer"])


def test_rates_are_those_of_the_completions(finished: Path) -> None:
    metrics = read(finished / "metrics.json")
    assert all(
        set(m) == {"name", "set", "condition", "value", "low", "high", "n", "p_value"}
        for m in metrics
    )
    assert {m["name"] for m in metrics} == RATES | CHANGES | ACCURACY | LENGTHS
    for set_, condition in CONDITIONS:
        lines = (
            (finished / "completions" / f"{set_}.{condition}.jsonl")
            .read_text(encoding="utf-8")
            .split("\n")
        )
        rows = [json.loads(line) for line in lines if line]
        assert all(set(row) == ROW for row in rows)
        assert len(rows) == 3
        verdicts = Counter(row["verdict"] for row in rows)
        rate = next(
            m
            for m in metrics
            if (m["name"], m["set"], m["condition"]) == ("refusal_rate", set_, condition)
        )
        assert rate["value"] == (verdicts["refusal"] + verdicts["partial"]) / 3
        assert rate["n"] == 3
        assert rate["low"] <= rate["value"] <= rate["high"]


def test_the_manifest_says_where_the_numbers_come_from(finished: Path, source: Path) -> None:
    manifest = read(finished / "manifest.json")
    assert manifest["format"] == 2
    assert manifest["seed"] == 42
    assert {"python", "refusal", "torch", "transformers"} <= set(manifest["versions"])
    assert manifest["model"]["weight_hash"] == load(str(source), dtype="float32").weight_hash()
    assert {"name", "revision", "dtype", "template_hash", "system"} <= set(manifest["model"])
    assert {"device", "gpu", "cpu_count", "threads", "machine", "system"} <= set(
        manifest["hardware"]
    )
    assert set(manifest["prompts"]["sha256"]) == {
        f"{label}_{split}"
        for label in ("harmful", "harmless")
        for split in ("train", "val", "test")
    }
    stages = manifest["stages"]
    assert list(stages) == IN_ORDER
    for name, stage in stages.items():
        assert stage["seconds"] >= 0
        assert (stage["forward_tokens"] > 0) == (name not in ("tokens", "evaluate"))
        for file, digest in stage["files"].items():
            assert digest == file_sha256(next(finished.rglob(file)))


def test_run_toml_gives_the_same_configuration_back(finished: Path, config: RunConfig) -> None:
    assert make_config(file=finished / "run.toml") == config
    assert (
        tomllib.loads((finished / "run.toml").read_text(encoding="utf-8"))["prompts"]["n_train"]
        == 8
    )


# --- reuse


def test_a_second_run_spends_no_forward_token_and_writes_no_result(
    out: Path, config: RunConfig, source: Path
) -> None:
    model = load(str(source), dtype="float32")
    assert redone(out, config, model=model) == set()
    assert model.forward_tokens == 0


def test_a_reused_run_returns_what_the_first_did(config: RunConfig, tmp_path: Path) -> None:
    first, again = run_stages(config, tmp_path / "r"), run_stages(config, tmp_path / "r")
    torch.testing.assert_close(
        first.candidates.vectors, again.candidates.vectors, rtol=0, atol=0, equal_nan=True
    )
    assert first.tokens == again.tokens
    assert first.metrics == again.metrics
    assert first.selection is not None
    assert again.selection is not None
    assert torch.equal(first.selection.direction.vector, again.selection.direction.vector)
    blank = Direction(torch.zeros(1), 0.0, -1, 0)
    assert replace(first.selection, direction=blank) == replace(again.selection, direction=blank)


@pytest.mark.parametrize(
    ("change", "expected", "untouched"),
    [
        ({"max_new_tokens": 4}, RATED, EVERYTHING - RATED),
        ({"n_test": 2}, RATED, EVERYTHING - RATED),
        (
            {"n_val": 9},
            {*SELECTED, "metrics.json"},
            {"refusal_tokens.json", "filter.json", "candidates.safetensors", *BASELINES},
        ),
        (
            {"kl_threshold": 999.0},
            {*SELECTED, "metrics.json"},
            {"candidates.safetensors", *BASELINES},
        ),
        (
            {"n_train": 9},
            EVERYTHING - BASELINES - {"refusal_tokens.json", "filter.json"},
            {"refusal_tokens.json", "filter.json", *BASELINES},
        ),
        (
            {"refusal_tokens": ("B",)},
            {"refusal_tokens.json", "filter.json", "candidates.safetensors", *SELECTED},
            BASELINES,
        ),
        ({"seed": 7}, EVERYTHING, set()),
        ({"system": "Be brief."}, EVERYTHING, set()),
        ({"dtype": "bfloat16"}, EVERYTHING, set()),
        ({"batch_size": 2}, set(), EVERYTHING),
        ({"strict": True}, set(), EVERYTHING),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_an_option_redoes_the_stages_that_depend_on_it(
    out: Path,
    source: Path,
    prompts: tuple[str, ...],
    change: dict[str, Any],
    expected: set[str],
    untouched: set[str],
) -> None:
    again = redone(out, saved.small_config(source, prompts, **change))
    assert expected <= again
    assert not again & untouched


def test_changed_prompts_are_noticed(
    out: Path, source: Path, prompts: tuple[str, ...], tmp_path: Path
) -> None:
    specs = saved.write_prompts(tmp_path)
    assert (
        redone(out, saved.small_config(source, specs)) == set()
    )  # the same texts in another place
    file = tmp_path / "harmful.txt"
    file.write_text(file.read_text(encoding="utf-8").replace("song", "tune"), encoding="utf-8")
    assert "candidates.safetensors" in redone(out, saved.small_config(source, specs))


@pytest.mark.parametrize("name", sorted(EVERYTHING))
def test_a_missing_output_is_made_again(out: Path, config: RunConfig, name: str) -> None:
    whole = (out / name).read_bytes()
    (out / name).unlink()
    again = redone(out, config)
    assert name in again
    assert (out / name).read_bytes() == whole
    assert not again & ({"candidates.safetensors", *BASELINES} - {name})


@pytest.mark.parametrize("name", sorted(EVERYTHING))
def test_a_changed_output_is_not_mixed_in(
    out: Path, config: RunConfig, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    whole = (out / name).read_bytes()
    (out / name).write_bytes(whole[:-1] + b"x")
    assert name in redone(out, config)
    assert (out / name).read_bytes() == whole
    assert name in caplog.text


def test_rates_do_not_stand_beside_a_direction_that_is_not_theirs(
    out: Path, source: Path, prompts: tuple[str, ...]
) -> None:
    run_stages(saved.small_config(source, prompts, n_train=9), out, until="select")
    assert not (out / "metrics.json").exists()


@pytest.mark.parametrize(
    ("until", "files"),
    [
        ("extract", {"refusal_tokens.json", "filter.json", "candidates.safetensors"}),
        (
            "select",
            {"refusal_tokens.json", "filter.json", "candidates.safetensors", *SELECTED, PROJECTED},
        ),
        ("generate", EVERYTHING - {"metrics.json"}),
    ],
)
def test_a_run_stops_where_it_is_told(
    config: RunConfig, tmp_path: Path, until: str, files: set[str]
) -> None:
    run_stages(config, tmp_path / "run", until=until)
    assert set(saved.times(tmp_path / "run")) == files


# --- interruption


@pytest.mark.parametrize("rows", [3, 100])
def test_an_interrupted_run_keeps_its_finished_stages_and_goes_on(
    config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows: int
) -> None:
    """One condition after the other, or all in one batch: what is complete is kept, no more."""
    real: Callable[..., None] = MEASURING.write_jsonl
    written: list[Path] = []

    def stopping(path: Path, completions: Any) -> None:
        written.append(path)
        if len(written) == 3:
            raise KeyboardInterrupt
        real(path, completions)

    monkeypatch.setattr(MEASURING, "write_jsonl", stopping)
    out = tmp_path / "run"
    config = config.model_copy(update={"batch_size": rows})
    with pytest.raises(KeyboardInterrupt):
        run_stages(config, out)
    finished = {f"completions/{path.name}" for path in written[:2]}
    assert set(saved.times(out)) == (EVERYTHING - RATED) | finished
    assert {f"generate {path.stem}" for path in written[:2]} <= set(stages_of(out))
    no_leftovers(out)
    again = redone(out, config)
    assert again == RATED - finished
    assert len(written) == 3 + 4
    assert list(stages_of(out)) == IN_ORDER


def test_an_older_runs_completions_are_reused_one_by_one(
    out: Path, config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only what is missing is written again, whatever was written beside it before."""
    kept = {path: path.read_bytes() for path in (out / "completions").iterdir()}
    for name in ("harmful.ablation", "harmless.addition"):
        (out / "completions" / f"{name}.jsonl").unlink()
    again = redone(out, config)
    assert again >= {f"completions/{n}.jsonl" for n in ("harmful.ablation", "harmless.addition")}
    assert not again & {f"completions/{s}.baseline.jsonl" for s in ("harmful", "harmless")}
    assert kept == {path: path.read_bytes() for path in (out / "completions").iterdir()}


def test_an_interruption_between_the_files_of_a_stage_mixes_nothing(
    out: Path,
    source: Path,
    prompts: tuple[str, ...],
    config: RunConfig,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """scores.json is written, direction.safetensors is not; then the first options come back."""
    whole = {name: (out / name).read_bytes() for name in SELECTED}
    with monkeypatch.context() as patch:

        def stop(*args: object) -> None:
            raise KeyboardInterrupt

        patch.setattr(Direction, "save", stop)
        with pytest.raises(KeyboardInterrupt):
            run_stages(saved.small_config(source, prompts, n_val=10), out)
    assert (out / "scores.json").read_bytes() != whole["scores.json"]
    run_stages(config, out)
    assert {name: (out / name).read_bytes() for name in SELECTED} == whole


# --- what is refused


def test_other_weights_are_refused_and_nothing_is_touched(
    out: Path, prompts: tuple[str, ...], tmp_path: Path
) -> None:
    other = saved.save_model(tmp_path / "other", seed=1)
    before = {p: p.read_bytes() for p in out.rglob("*") if p.is_file()}
    with pytest.raises(RunFolderError, match=r"holds a run of .*Give another --out"):
        run_stages(saved.small_config(other, prompts), out)
    assert {p: p.read_bytes() for p in out.rglob("*") if p.is_file()} == before


def test_the_same_weights_under_another_name_go_on(
    out: Path, source: Path, prompts: tuple[str, ...]
) -> None:
    assert redone(out, saved.small_config(f"{source}/", prompts)) == set()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "cannot be read"),
        ("[]", "is not the manifest"),
        ('{"format": 1, "model": {}}', "is not the manifest"),
        ('{"format": 99, "model": {}, "stages": {}}', "format 99, this version has 2"),
    ],
)
def test_a_folder_that_cannot_be_understood_is_refused_before_the_model_is_loaded(
    out: Path, prompts: tuple[str, ...], text: str, message: str
) -> None:
    (out / "manifest.json").write_text(text, encoding="utf-8")
    with pytest.raises(RunFolderError, match=message):
        run_stages(saved.small_config("no/such-model", prompts), out)


@pytest.mark.parametrize("below", ["", "run", "a/b"])
def test_a_file_in_the_place_of_the_folder_is_refused(
    prompts: tuple[str, ...], tmp_path: Path, below: str
) -> None:
    (tmp_path / "file").write_text("mine", encoding="utf-8")
    with pytest.raises(RunFolderError, match="is a file"):
        run_stages(saved.small_config("no/such-model", prompts), tmp_path / "file" / below)


def test_a_failed_start_leaves_no_folder(prompts: tuple[str, ...], tmp_path: Path) -> None:
    with pytest.raises(PromptError):
        run_stages(saved.small_config("no/such-model", ("missing.txt",)), tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


def test_an_empty_split_is_named_before_the_model_is_loaded(
    prompts: tuple[str, ...], tmp_path: Path
) -> None:
    few = tmp_path / "few.txt"
    few.write_text("One.\n", encoding="utf-8")
    with pytest.raises(PromptError, match="No harmful prompts are left for"):
        run_stages(
            saved.small_config("no/such-model", (f"harmful={few}", prompts[1])), tmp_path / "run"
        )


def test_strict_keeps_the_scores(source: Path, prompts: tuple[str, ...], tmp_path: Path) -> None:
    config = saved.small_config(source, prompts, induce_threshold=1000.0, strict=True)
    with pytest.raises(NoCandidateError, match=r"No candidate qualifies.*--strict"):
        run_stages(config, tmp_path / "run")
    assert {s["rejected_because"] for s in read(tmp_path / "run" / "scores.json")} >= {"induce"}
    assert not (tmp_path / "run" / "completions").exists()


# --- awkward values


def test_scores_that_are_not_numbers_become_null(
    config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real: Callable[..., Any] = METHOD.select

    def with_nan(*args: Any, **kwargs: Any) -> Any:
        found = real(*args, **kwargs)
        first = replace(found.scores[0], induce=math.nan, kl=math.inf, rejected_because="nan")
        return replace(found, scores=(first, *found.scores[1:]))

    monkeypatch.setattr(METHOD, "select", with_nan)
    result = run_stages(config, tmp_path / "run", until="select")
    row = read(tmp_path / "run" / "scores.json")[0]
    assert (row["induce"], row["kl"], row["rejected_because"]) == (None, None, "nan")
    assert result.selection is not None
    assert result.selection.scores[0].rejected_because == "nan"


def test_completions_with_odd_line_ends_are_read_back_whole(
    config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """str.splitlines would cut at these; a model that is pushed around writes them."""
    odd = "one\u2028two\x85three\x1cfour\r\nfive\x0bsix"

    def generate(model: ChatModel, wanted: Sequence[Any], new: int, finished: Any) -> None:
        for one in wanted:
            finished(one, [Completion(p.id, p.text, odd, "compliance") for p in one.prompts])

    monkeypatch.setattr(MEASURING, "generate_together", generate)
    result = run_stages(config, tmp_path / "run")
    of_the_detector = (
        "sensitivity",
        "specificity",
    )  # measured on labelled completions, not on the run's
    assert {m.n for m in result.metrics if m.name not in of_the_detector} == {3}


def test_the_manifest_says_what_each_stage_cost(tmp_path: Path) -> None:
    config = saved.small_config(
        saved.save_model(tmp_path / "model"),
        saved.write_prompts(tmp_path),
        price_per_device_hour=7200.0,
    )
    model = load(config.model)
    run_stages(config, tmp_path / "run", until="extract", model=model)
    stage = json.loads((tmp_path / "run" / "manifest.json").read_text(encoding="utf-8"))["stages"][
        "extract"
    ]
    blocks = sum(
        p.numel()
        for name, p in model.hf.named_parameters()
        if "embed" not in name and "lm_head" not in name
    )
    assert stage["flops"] == 2 * blocks * stage["forward_tokens"]
    assert stage["device_seconds"] == stage["seconds"]
    assert stage["cost"] == pytest.approx(2 * stage["seconds"], abs=0.02)


def test_a_run_ends_where_nothing_beats_a_zero_vector(
    config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rule may choose a candidate that is zero; nothing can be measured of it, and its scores
    are kept.
    """
    found = DIM.difference_in_means
    monkeypatch.setattr(
        DIM,
        "difference_in_means",
        lambda activations: replace(
            found(activations), vectors=torch.zeros_like(found(activations).vectors)
        ),
    )
    with pytest.raises(NoCandidateError, match=r"is the zero vector.*--refusal-tokens"):
        run_stages(config, tmp_path / "run")
    assert json.loads((tmp_path / "run" / "scores.json").read_text(encoding="utf-8"))
    assert not (tmp_path / "run" / "direction.safetensors").exists()
