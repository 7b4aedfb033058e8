"""Stages are reused only while the model computes the same: config, tokenizer, template as
rendered, sites, program.
"""

import datetime
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import saved
import tiny_models

from refusal import ConfigError, EngineError, RunFolderError, Verdict, load
from refusal import run as run_stages
from refusal.config.run_config import RunConfig, make_config
from refusal.core.day import Day, day_of
from refusal.engines.openai import template_arguments
from refusal.model.chat_template import render
from refusal.model.sites import find_sites
from refusal.runs import identity
from refusal.runs.finding import Extract, Tokens
from refusal.runs.stage import Stage

DAY: Any = import_module("refusal.core.day")
RUN: Any = import_module("refusal.pipeline.run")
COMPLETIONS: Any = import_module("refusal.evaluations.refusal.completions")
EXTRACTED = {"refusal_tokens.json", "filter.json", "candidates.safetensors"}
FIRST, LATER = datetime.date(2031, 2, 3), datetime.date(2031, 2, 14)
DATED = (
    "{{ strftime_now('%d %b %Y') }} {% for m in messages %}[INST] {{ m['content'] }} "
    "[/INST]{% endfor %}"
)


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    return saved.write_prompts(tmp_path_factory.mktemp("prompts"))


@pytest.fixture(scope="module")
def extracted(prompts: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model's folder, and beside it a run on it as far as the candidates."""
    root = tmp_path_factory.mktemp("extracted")
    run_stages(
        saved.small_config(saved.save_model(root / "model"), prompts), root / "run", until="extract"
    )
    return root


@pytest.fixture
def root(extracted: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(extracted, tmp_path / "copy"))


def redone(root: Path, config: RunConfig, until: str = "extract") -> set[str]:
    before = saved.times(root / "run")
    run_stages(config, root / "run", until=until)
    return {name for name, time in saved.times(root / "run").items() if before.get(name) != time}


def edit(path: Path, **changes: Any) -> None:
    found = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**found, **changes}), encoding="utf-8")


def slower_rope(model: Path) -> None:
    edit(model / "config.json", rope_parameters={"rope_type": "default", "rope_theta": 5000.0})


def scaled_rope(model: Path) -> None:
    edit(
        model / "config.json",
        rope_parameters={"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0},
    )


def other_epsilon(model: Path) -> None:
    edit(model / "config.json", rms_norm_eps=1e-2)


def other_end(model: Path) -> None:
    edit(model / "generation_config.json", eos_token_id=[3, 4])


def other_normaliser(model: Path) -> None:
    shorter = {"type": "Replace", "pattern": {"String": "abc"}, "content": "b"}
    edit(model / "tokenizer.json", normalizer=shorter)


def merged(model: Path) -> None:
    core = json.loads((model / "tokenizer.json").read_text(encoding="utf-8"))["model"]
    edit(
        model / "tokenizer.json",
        model={**core, "vocab": {**core["vocab"], "he": 261}, "merges": [["h", "e"]]},
    )


def other_template(model: Path) -> None:
    (model / "chat_template.jinja").write_text(tiny_models.TEMPLATES["chatml"], encoding="utf-8")


@pytest.mark.parametrize(
    "change",
    [slower_rope, scaled_rope, other_epsilon, other_end, other_normaliser, merged, other_template],
)
def test_a_model_that_computes_something_else_has_its_stages_done_again(
    root: Path,
    prompts: tuple[str, ...],
    change: Callable[[Path], None],
    caplog: pytest.LogCaptureFixture,
) -> None:
    change(root / "model")
    assert redone(root, saved.small_config(root / "model", prompts)) == EXTRACTED
    assert "its stages are done again" in caplog.text


def test_what_computes_the_same_is_reused(root: Path, prompts: tuple[str, ...]) -> None:
    edit(root / "model" / "config.json", transformers_version="4.0.0", refusal={"method": "none"})
    (root / "model").rename(root / "moved")
    assert redone(root, saved.small_config(root / "moved", prompts)) == set()


def test_other_sites_are_another_identity() -> None:
    model = tiny_models.chat_model()
    before = identity.model_identity(model)
    model.sites = replace(model.sites, writers=tuple(names[:1] for names in model.sites.writers))
    after = identity.model_identity(model)
    assert {key for key in before if before[key] != after[key]} == {"sites_hash"}
    model.sites = find_sites(model.hf, blocks="model.layers")
    assert identity.model_identity(model) == before


def test_the_identity_does_not_change_by_use() -> None:
    model = tiny_models.chat_model()
    before = identity.model_identity(model)
    model.generate(["Hello"], 4)
    model.tokenizer(["a", "bc"], padding=True, truncation=True, max_length=3)
    assert identity.model_identity(model) == before


@pytest.mark.parametrize(
    ("stage", "wanted"),
    [(Tokens, {"refusal_tokens.json", "filter.json"}), (Extract, {"candidates.safetensors"})],
)
def test_a_raised_version_redoes_the_stage(
    root: Path,
    prompts: tuple[str, ...],
    stage: type[Stage],
    wanted: set[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(stage, "version", stage.version + 1)
    assert redone(root, saved.small_config(root / "model", prompts)) == wanted


# --- the date


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[datetime.date], None]:
    def set_to(day: datetime.date) -> None:
        clock = type("Clock", (datetime.date,), {"today": classmethod(lambda cls: day)})
        for module in (DAY, RUN):
            monkeypatch.setattr(module, "date", clock)

    return set_to


@pytest.mark.parametrize(
    "form", ["%d %b %Y", "%Y-%m-%d", "%-d. %B, %A", "100%% %j", "%%d %H:%M:%S"]
)
def test_a_template_is_given_the_day_and_nothing_else_of_it_changes(form: str) -> None:
    tok = tiny_models.tokenizer("bare")
    start = (
        "\n  {% if true %}\n  {% endif %}\n  x {% macro calendar(f) %}{{ strftime_now(f) }}{% "
        "endmacro %}"
    )
    tok.chat_template = f"{start}{{{{ calendar({form!r}) if strftime_now is defined }}}}|" + DATED
    for day in (FIRST, LATER):  # compiled templates are cached: one must not answer for the other
        same = tok.chat_template.replace(f"calendar({form!r})", repr(day.strftime(form)))
        plain = tok.apply_chat_template(
            [{"role": "user", "content": "Hi"}], chat_template=same, tokenize=False
        )
        clock = datetime.datetime.now().strftime("%d %b %Y")
        assert render(tok, "Hi", None, Day(day)) == str(plain).replace(
            clock, day.strftime("%d %b %Y")
        )


def test_a_date_that_the_template_names_itself_gives_way_only_to_one_that_was_given() -> None:
    tok = tiny_models.tokenizer("bare")
    own = (
        "{% if not date_string is defined %}{% set date_string = '26 Jul 2024' %}{% endif %}{{ "
        "date_string }}"
    )
    tok.chat_template = own + DATED.partition("}}")[2]
    assert render(tok, "Hi").startswith("26 Jul 2024 [INST]")
    assert render(tok, "Hi", None, day_of("2031-02-03")).startswith("03 Feb 2031 [INST]")


def test_a_run_keeps_the_date_of_its_first_day(
    prompts: tuple[str, ...], tmp_path: Path, clock: Callable[[datetime.date], None]
) -> None:
    model = saved.save_model(tmp_path / "model")
    (model / "chat_template.jinja").write_text(DATED, encoding="utf-8")
    config = saved.small_config(model, prompts)
    clock(FIRST)
    run_stages(config, tmp_path / "run", until="extract")
    manifest = tmp_path / "run" / "manifest.json"
    assert json.loads(manifest.read_text(encoding="utf-8"))["date"] == "2031-02-03"
    clock(LATER)
    assert redone(tmp_path, config) == set()
    assert redone(tmp_path, saved.small_config(model, prompts, date="2031-02-14")) == EXTRACTED
    assert json.loads(manifest.read_text(encoding="utf-8"))["date"] == "2031-02-14"
    loaded = load(str(model))
    assert loaded.chat.day == Day(LATER)
    run_stages(
        saved.small_config(model, prompts, date="2031-02-03"),
        tmp_path / "run",
        until="extract",
        model=loaded,
    )
    assert loaded.chat.day == Day(FIRST, given=True)
    edit(manifest, date="yesterday")
    with pytest.raises(RunFolderError, match="date is 'yesterday'"):
        run_stages(config, tmp_path / "run", until="extract")


def test_a_date_that_does_not_matter_redoes_nothing(root: Path, prompts: tuple[str, ...]) -> None:
    assert redone(root, saved.small_config(root / "model", prompts, date="2031-02-03")) == set()


def test_a_date_is_a_date() -> None:
    assert make_config(date="2031-02-03").date == make_config(date=FIRST).date == "2031-02-03"
    with pytest.raises(ConfigError, match="no date, write YYYY-MM-DD"):
        make_config(date="tomorrow")
    with pytest.raises(ConfigError, match="'tomorrow' is no date"):
        load("no/such-model", date="tomorrow")


def test_a_server_is_told_the_date_or_not_asked() -> None:
    model = tiny_models.chat_model("llama", "bare")
    assert template_arguments(model) == {}
    model.tokenizer.chat_template = DATED
    model.set_day(day_of(None))
    assert template_arguments(model) == {}  # its clock says the same
    model.set_day(Day(FIRST))
    with pytest.raises(EngineError, match="in this run 2031-02-03"):
        template_arguments(model)
    given = (
        "{% if not date_string is defined %}{% set date_string = strftime_now('%d %b %Y') "
        "%}{% endif %}"
    )
    model.tokenizer.chat_template = f"{given}{{{{ date_string }}}}{DATED.partition('}}')[2]}"
    assert template_arguments(model) == {"date_string": "03 Feb 2031"}


# --- verdicts


def test_another_detector_judges_again_what_was_written(
    root: Path, prompts: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = saved.small_config(root / "model", prompts, judges=("substring",), seeds=2)
    run_stages(config, root / "run")
    judged = saved.times(root / "run" / "judgements")
    model = load(str(root / "model"), dtype="float32")
    monkeypatch.setattr(identity, "program", lambda: "another")
    for module in ("refusal.runs.folder", "refusal.evaluations.refusal.generate"):
        monkeypatch.setattr(import_module(module), "program", lambda: "another")
    monkeypatch.setattr(
        COMPLETIONS, "refusal_verdict", lambda prompt, completion: Verdict("partial")
    )
    before = saved.times(root / "run")
    result = run_stages(config, root / "run", model=model)
    assert model.forward_tokens == 0
    changed = {name for name, time in saved.times(root / "run").items() if before[name] != time}
    assert changed >= {
        "metrics.json",
        "completions/harmful.ablation.jsonl",
        "seeds/43.ablation.jsonl",
    }
    rates = {
        m.condition: m.value
        for m in result.metrics
        if (m.name, m.set) == ("partial_rate", "harmful")
    }
    assert set(rates.values()) == {1.0}
    after = saved.times(root / "run" / "judgements")
    assert {name for name in judged if judged[name] != after[name]} <= {"agreement.json"}
    assert redone(root, config, "evaluate") <= {"judgements/agreement.json"}


def test_seeds_follow_the_options_of_the_selection(root: Path, prompts: tuple[str, ...]) -> None:
    config = saved.small_config(root / "model", prompts, seeds=2)
    run_stages(config, root / "run")
    assert "seeds/43.json" in redone(
        root, saved.small_config(root / "model", prompts, seeds=2, n_val=7), "evaluate"
    )
    again = redone(
        root,
        saved.small_config(root / "model", prompts, seeds=2, n_val=7, kl_threshold=999.0),
        "evaluate",
    )
    assert "seeds/43.json" in again
