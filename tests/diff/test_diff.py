"""A base and what was made of it: the numbers of the weights are those of the hooks."""

import gc
import shutil
import weakref
from pathlib import Path
from typing import Any

import planted
import pytest
import saved
import tiny_models
import torch
from diffing import Made, made

import refusal
from refusal import (
    Ablate,
    ConfigError,
    Direction,
    DirectionError,
    ModelLoadError,
    load,
)
from refusal.cli.entry import main
from refusal.config.diff import diff_config
from refusal.core.records import Completion
from refusal.evaluations.diff.result import Diffed, read_diff
from refusal.evaluations.drift.measure import drift_metrics, measure_drift, own_answers
from refusal.evaluations.refusal.completions import generate_under
from refusal.evaluations.refusal.rates import measure_all
from refusal.model.checkpoint_check import load_whole
from refusal.model.load import load_adapted
from refusal.pipeline.asking import prompts_of
from refusal.pipeline.diff import diff, name_candidates
from refusal.pipeline.export import export_run

FILE = "direction.safetensors"


@pytest.fixture(scope="module")
def found() -> Made:
    return made()


@pytest.fixture(scope="module")
def edited(found: Made, tmp_path_factory: pytest.TempPathFactory) -> Diffed:
    """The base beside itself, its edited copy and the adapter."""
    out = tmp_path_factory.mktemp("diff") / "out"
    names = [str(found.edited), str(found.adapter), str(found.base)]
    return diff(found.config(), names, out, run=found.run)


def test_the_edited_model_does_what_the_hooks_do(found: Made, edited: Diffed) -> None:
    model, direction, config = found.load(), found.direction, found.config()
    test = prompts_of(config).test
    completions: dict[tuple[str, str], tuple[Completion, ...]] = {}
    for name, pool in (("harmful", test.harmful), ("harmless", test.harmless)):
        for condition in ("baseline", "ablation"):
            about = (model, direction, pool[: config.n_test], condition, config.max_new_tokens)
            completions[name, condition] = generate_under(*about, name)
    hooks = {(m.name, m.set): m for m in measure_all(completions) if m.condition == "ablation"}
    one = edited.candidate("edited")
    assert hooks["refusal_rate_change", "harmful"].value == pytest.approx(-1.0)
    for (name, set_name), m in hooks.items():
        mine = one.find(name, set_name)
        assert mine is not None, name
        assert (mine.value, mine.low, mine.high, mine.n, mine.p_value) == pytest.approx(
            (m.value, m.low, m.high, m.n, m.p_value), nan_ok=True
        )
    texts = own_answers(model, completions["harmless", "baseline"][:6], config.drift_tokens)
    drifts = measure_drift(model, texts, {"ablation": [Ablate(direction)]}, "own-answers")
    by_hooks = [m for m in drift_metrics(drifts, "own-answers", 2) if m.condition == "ablation"]
    assert len(by_hooks) == 5
    for m in by_hooks:
        mine = one.find(m.name, "own-answers")
        assert mine is not None, m.name
        assert (mine.value, mine.low, mine.high) == pytest.approx(
            (m.value, m.low, m.high), abs=1e-5
        )
    every = torch.tensor([value for drift in drifts["ablation"] for value in drift.kl]).double()
    assert _value(one, "kl_max") == pytest.approx(float(every.max()), abs=1e-5)
    assert _value(one, "kl_median") == pytest.approx(float(every.quantile(0.5)), abs=1e-5)
    firsts = own_answers(model, completions["harmful", "baseline"][:6], 1)
    drift = measure_drift(model, firsts, {"ablation": [Ablate(direction)]}, "harmful")["ablation"]
    mean = sum(d.kl[0] for d in drift) / len(drift)
    assert mean > 1  # the refusal is gone
    assert _value(one, "kl_first_token_harmful") == pytest.approx(mean, abs=1e-4)


def test_the_base_beside_itself_differs_in_nothing(edited: Diffed) -> None:
    one = edited.candidate("base")
    assert "the base's weights" in one.notes[0]
    assert one.missing == {}
    base = {(m.name, m.set): m for m in edited.metrics}
    changes = [m for m in one.metrics if m.name.endswith("_change") or m.name.startswith("kl_")]
    assert len(changes) > 12
    assert [m for m in changes if m.value != 0.0] == []
    for m in one.metrics:
        if (there := base.get((m.name, m.set))) is not None:
            assert (m.value, m.low, m.high) == (there.value, there.low, there.high)
    assert {"kl", "kl_first_token_harmful", "refusal_change"} <= {m.name for m in one.summary}


@pytest.mark.parametrize("family", ["llama", pytest.param("gpt2", marks=pytest.mark.slow)])
def test_an_export_of_a_run_is_its_hooks(tmp_path: Path, family: str) -> None:
    base = saved.save_model(tmp_path / "base", template="chatml", family=family)
    config = saved.small_config(base, saved.write_prompts(tmp_path), n_test=6)
    run = tmp_path / "out" / "run"  # where a comparison looks for it, and makes what is missing
    refusal.run(config, run, until="select")
    export_run(run, "model", tmp_path / "edited")
    asked = diff_config(config.model_copy(update={"drift_tokens": 3}), kl_prompts=4)
    result = diff(asked, [str(tmp_path / "edited")], tmp_path / "out")
    (one,) = result.candidates
    assert result.run == str(run)
    model, direction = load(str(base), dtype="float32"), Direction.load(run / FILE)
    harmless = prompts_of(asked).test.harmless
    about = (model, direction, harmless[:4], "baseline", config.max_new_tokens, "harmless")
    texts = own_answers(model, generate_under(*about), 3)
    drifts = measure_drift(model, texts, {"ablation": [Ablate(direction)]}, "own-answers")
    hooks = [m for m in drift_metrics(drifts, "own-answers", 3) if m.condition == "ablation"]
    for m in hooks:
        mine = one.find(m.name, "own-answers")
        assert mine is not None, m.name
        assert mine.value == pytest.approx(m.value, abs=1e-4, rel=1e-5)
    assert _value(one, "kl") > 1e-3
    assert _value(one, "direction_left") == pytest.approx(0.0, abs=1e-4)


def test_refusal_by_length_is_paired(edited: Diffed) -> None:
    one = edited.candidate("edited")
    change = one.find("refusal_rate_at_8_tokens_change", "harmful")
    rate = one.find("refusal_rate_at_8_tokens", "harmful")
    assert change is not None
    assert rate is not None
    assert (change.value, rate.value, change.n) == (-1.0, 0.0, 20)
    assert change.p_value == pytest.approx(2.0**-19)  # McNemar: 20 of 20 one way


def test_an_adapter_is_its_merged_folder(found: Made, tmp_path: Path, edited: Diffed) -> None:
    from peft import PeftModel

    hf = PeftModel.from_pretrained(found.load().hf, str(found.adapter)).merge_and_unload()
    hf.save_pretrained(tmp_path / "merged")
    load(str(found.base)).tokenizer.save_pretrained(tmp_path / "merged")
    merged = diff(found.config(), [str(tmp_path / "merged")], tmp_path / "out", run=found.run)
    one, other = edited.candidate("adapter"), merged.candidates[0]
    assert [(m.name, m.value) for m in one.metrics] == [(m.name, m.value) for m in other.metrics]
    assert one.stream == other.stream
    assert (one.notes, one.missing) == (other.notes, {})


def test_the_order_of_candidates_is_irrelevant_and_files_are_read_again(
    found: Made, edited: Diffed
) -> None:
    out = Path(edited.folder)
    before = saved.times(out / "candidates") | saved.times(out / "base")
    names = [str(found.base), str(found.edited)]
    again = diff(found.config(), names, out, run=found.run)
    assert [one.label for one in again.candidates] == ["base", "edited"]
    for label in ("base", "edited"):
        assert again.candidate(label) == edited.candidate(label)
    after = saved.times(out / "candidates") | saved.times(out / "base")
    kept = {name: when for name, when in before.items() if _is_result(name)}
    assert len(kept) > 10
    assert {name: after[name] for name in kept} == kept
    assert read_diff(out) == again


def test_never_two_models_at_once(
    found: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alive: list[weakref.ref[Any]] = []

    def watched(*args: Any) -> Any:
        gc.collect()
        assert [ref for ref in alive if ref() is not None] == []
        hf = load_whole(*args)
        alive.append(weakref.ref(hf))
        return hf

    monkeypatch.setattr("refusal.model.load.load_whole", watched)
    names = [str(found.edited), str(found.adapter)]
    diff(found.config(n_test=4, kl_prompts=2), names, tmp_path / "out", run=found.run)
    assert len(alive) == 3


def test_another_vocabulary_and_width_leave_behaviour(found: Made, tmp_path: Path) -> None:
    small = saved.save_model(tmp_path / "small", template="chatml")
    other = tiny_models.tokenizer("chatml")
    other.add_tokens(["<|other|>"])  # where the base's has its refusal
    other.save_pretrained(small)
    wide = load(str(found.base), dtype="float32")
    wide.hf.resize_token_embeddings(wide.hf.config.vocab_size + 8)
    wide.hf.save_pretrained(tmp_path / "resized")
    wide.tokenizer.save_pretrained(tmp_path / "resized")
    names = [str(small), str(tmp_path / "resized")]
    result = diff(found.config(), names, tmp_path / "out", run=found.run)
    one, resized = result.candidates
    assert set(one.missing) == {"KL", "cross-entropy", "stream"}
    assert "other tokens" in one.missing["KL"]
    assert (one.stream, one.number("kl"), one.number("direction_left")) == (None, None, None)
    assert one.number("refusal_change") is not None
    assert set(resized.missing) == {"KL"}
    assert "rows, the base's" in resized.missing["KL"]
    assert resized.stream is not None
    assert _value(resized, "direction_left") == pytest.approx(1.0)
    assert _value(resized, "refusal_change") == 0.0


def test_another_number_of_blocks_has_no_stream_and_has_kl(found: Made, tmp_path: Path) -> None:
    other = planted.planted(1)
    other.model.hf.model.layers = other.model.hf.model.layers[:3]
    other.model.hf.config.num_hidden_layers = 3
    planted.save(other, tmp_path / "short")
    one = diff(found.config(), [str(tmp_path / "short")], tmp_path / "out", run=found.run)
    assert set(one.candidates[0].missing) == {"stream"}
    assert "3 blocks" in one.candidates[0].missing["stream"]
    assert one.candidates[0].number("kl") is not None


def test_a_quantised_copy(found: Made, tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    config = found.config(candidate_quantize="8bit", n_test=4, kl_prompts=2)
    (one,) = diff(config, [str(found.base)], tmp_path / "out", run=found.run).candidates
    assert one.missing == {}
    assert _value(one, "kl") < 0.1
    assert one.stream is not None
    (left, _) = one.stream.at_place
    assert left == pytest.approx(1.0, abs=0.1)
    assert left != 1.0  # rounded to 8 bits


def test_texts_are_read_for_cross_entropy(found: Made, tmp_path: Path) -> None:
    (tmp_path / "sea.txt").write_text("The sea is wide, and the moon pulls at it.\n" * 3)
    config = found.config(texts=(str(tmp_path / "sea.txt"),), n_test=4, kl_prompts=2)
    (one,) = diff(config, [str(found.edited)], tmp_path / "out", run=found.run).candidates
    change = one.number("sea_cross_entropy_change")
    assert change is not None
    entropy = one.find("cross_entropy", "sea")
    assert entropy is not None
    model = load(str(found.edited), dtype="float32")
    ids = torch.tensor([model.tokenizer((tmp_path / "sea.txt").read_text().strip())["input_ids"]])
    with torch.inference_mode():
        loss = float(model.hf(input_ids=ids, labels=ids).loss)
    assert entropy.value == pytest.approx(loss, abs=1e-4)


@pytest.mark.parametrize(
    ("names", "words", "error"),
    [
        ([], "no candidate", ConfigError),
        (["{edited}", "{edited}"], "given twice", ConfigError),
        (["{edited}", "nowhere"], "neither a folder", ModelLoadError),
    ],
)
def test_bad_candidates_are_told_before_anything_is_loaded(
    found: Made, tmp_path: Path, names: list[str], words: str, error: type[Exception]
) -> None:
    given = [name.format(edited=found.edited) for name in names]
    with pytest.raises(error, match=words):
        diff(found.config(), given, tmp_path / "out", run=found.run)
    assert not (tmp_path / "out" / "base").exists()


def test_half_a_download_is_the_loaders_message(found: Made, tmp_path: Path) -> None:
    shutil.copytree(found.edited, tmp_path / "half")
    for path in (tmp_path / "half").glob("*.safetensors"):
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ModelLoadError, match="half"):
        diff(found.config(n_test=2), [str(tmp_path / "half")], tmp_path / "out", run=found.run)
    assert not (tmp_path / "out" / "base").exists()


def test_a_candidate_that_was_made_anew_is_measured_anew(found: Made, tmp_path: Path) -> None:
    config = found.config(n_test=3, kl_prompts=2)
    shutil.copytree(found.base, tmp_path / "candidate")
    about = ([str(tmp_path / "candidate")], tmp_path / "out")
    (before,) = diff(config, *about, run=found.run).candidates
    shutil.rmtree(tmp_path / "candidate")
    shutil.copytree(found.edited, tmp_path / "candidate")
    (after,) = diff(config, *about, run=found.run).candidates
    assert (_value(before, "refusal"), _value(after, "refusal")) == (1.0, 0.0)
    assert after.folder == before.folder


def test_a_run_of_other_weights_is_refused(found: Made, tmp_path: Path) -> None:
    config = found.config(model=str(found.edited))
    with pytest.raises(DirectionError, match="other weights"):
        diff(config, [str(found.base)], tmp_path / "out", run=found.run)


def test_an_adapter_for_another_model_does_not_fit(found: Made, tmp_path: Path) -> None:
    small = saved.save_model(tmp_path / "small", template="chatml")
    with pytest.raises(ModelLoadError, match="does not fit its base"):
        load_adapted(str(small), str(found.adapter))
    with pytest.raises(ConfigError, match="--quantize does not leave"):
        load_adapted(str(found.base), str(found.adapter), quantize="8bit")


def test_labels_tell_candidates_apart() -> None:
    named = name_candidates(["owner/a", "other/a", "b.gguf"])
    assert [one.label for one in named] == ["owner/a", "other/a", "b.gguf"]
    assert len({one.folder for one in named}) == 3


@pytest.mark.parametrize(("limit", "code"), [("refusal_change<-0.5", 1), ("refusal>0.5", 0)])
def test_fail_on(found: Made, edited: Diffed, limit: str, code: int) -> None:
    arguments = ["diff", str(found.run), str(found.edited), "--out", edited.folder]
    assert main([*arguments, "--kl-prompts", "6", "--quiet", "--fail-on", limit]) == code
    page = Path(edited.folder) / "diff.html"
    assert "edited" in page.read_text(encoding="utf-8")
    assert (Path(edited.folder) / "tables" / "summary.csv").is_file()


def _value(one: Any, name: str) -> float:
    number = one.number(name)
    assert number is not None, name
    value: float = number.value
    return value


def _is_result(name: str) -> bool:
    return Path(name).suffix in (".jsonl", ".safetensors", ".bin")
