"""Options come from a preset, a file and what was given, the later one wins; TOML holds all of
them.
"""

from pathlib import Path
from typing import Any

import pytest
import tomli_w
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from refusal import ConfigError, RunConfig, make_config
from refusal.cli.options import Settings
from refusal.config.commented import commented_toml
from refusal.config.run_config import PRESETS, RunOptions
from refusal.config.tables import KEYS, SECTIONS, in_tables
from refusal.core.storage import write_toml

TEXT = st.text(st.characters(codec="utf-8"), min_size=1, max_size=8)
VALUES = st.fixed_dictionaries(
    {},
    optional={
        "model": TEXT,
        "revision": TEXT,
        "system": TEXT,
        "prompts": st.lists(TEXT, min_size=1, max_size=3).map(tuple),
        "refusal_tokens": st.lists(TEXT, max_size=3).map(tuple),
        "seed": st.integers(-(2**40), 2**40),
        "n_train": st.integers(1, 1000),
        "batch_size": st.none() | st.integers(1, 64),
        "filter": st.booleans() | st.sampled_from(["auto", "completions", "metric", "none"]),
        "kl_threshold": st.floats(0, 1e6),
        "induce_threshold": st.floats(-1e6, 1e6),
        "dtype": st.sampled_from(["bfloat16", "float32", "float16"]),
    },
)


@given(VALUES)
def test_a_configuration_survives_toml(
    tmp_path_factory: pytest.TempPathFactory, values: dict[str, Any]
) -> None:
    config = RunConfig(**values)
    file = tmp_path_factory.mktemp("toml") / "run.toml"
    write_toml(file, in_tables(config.model_dump()))
    assert make_config(file=file) == config
    write_toml(file, config.model_dump())  # as runs of before had it
    assert make_config(file=file) == config


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_presets_hold_valid_options(preset: str) -> None:
    config = make_config(preset)
    assert {name: getattr(config, name) for name in PRESETS[preset]} == PRESETS[preset]


def test_the_paper_preset_is_the_papers_sizes() -> None:
    config = make_config("paper")
    assert (config.n_train, config.n_val, config.n_test, config.max_new_tokens) == (
        128,
        32,
        100,
        512,
    )
    assert (config.rule.induce_threshold, config.rule.kl_threshold, config.rule.prune_layers) == (
        0.0,
        0.1,
        0.2,
    )
    assert config.layer_step == 1
    assert config.filter == "auto"
    assert make_config() == config


def toml(folder: Path, **values: Any) -> Path:
    file = folder / "options.toml"
    file.write_text(tomli_w.dumps(values), encoding="utf-8")
    return file


def test_the_later_source_wins(tmp_path: Path) -> None:
    file = toml(tmp_path, n_val=5, n_test=6)
    config = make_config("quick", file, n_test=7)
    assert (config.minutes, config.n_val, config.n_test) == (PRESETS["quick"]["minutes"], 5, 7)


def test_a_given_value_that_is_the_default_still_wins(tmp_path: Path) -> None:
    default = RunOptions().n_test
    assert make_config("quick", toml(tmp_path, n_test=6), n_test=default).n_test == default
    assert (
        make_config("quick", toml(tmp_path, n_val=RunOptions().n_val)).n_val == RunOptions().n_val
    )


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"n_train": 0}, r"n_train = 0 cannot be used: .*greater than or equal to 1"),
        ({"max_new_tokens": -4}, "max_new_tokens = -4"),
        ({"n_val": "many"}, "n_val = 'many'"),
        ({"dtype": "int3"}, "dtype = 'int3' cannot be used: .*'bfloat16'"),
        ({"dedup": "fuzzy"}, "dedup = 'fuzzy'"),
        ({"prune_layers": 1.0}, "prune_layers = 1.0"),
        ({"kl_threshold": float("nan")}, "kl_threshold = nan"),
        ({"kl_threshold": -0.1}, "kl_threshold = -0.1"),
        ({"induce_threshold": float("nan")}, "induce_threshold = nan"),
        ({"batch_size": 0}, "batch_size = 0"),
        ({"layers": 3}, r"no option 'layers'.*n_train"),
    ],
)
def test_a_wrong_value_is_one_message(tmp_path: Path, values: dict[str, Any], message: str) -> None:
    for source in ({"file": toml(tmp_path, **values)}, values):
        with pytest.raises(ConfigError, match=message) as caught:
            make_config(**source)
        assert "\n" not in str(caught.value)
        assert "pydantic" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, r"There is no configuration .*options\.toml"),
        (b"n_train = ", r"options\.toml cannot be read as TOML"),
        (
            b"n_train = " + b"[" * 100_000,
            r"options\.toml cannot be read as TOML \(nested too deeply",
        ),
        (b'system = "\xff"', r"options\.toml is not UTF-8 \(byte 10, line 1\)"),
        ("n_train = 3".encode("utf-16"), r"options\.toml is not UTF-8 but UTF-16"),
    ],
    ids=["missing", "broken", "deep", "not UTF-8", "UTF-16"],
)
def test_an_unreadable_file_is_one_message(
    tmp_path: Path, content: bytes | None, says: str
) -> None:
    file = tmp_path / "options.toml"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(ConfigError, match=says):
        make_config(file=file)


def test_a_byte_order_mark_is_no_part_of_a_configuration(tmp_path: Path) -> None:
    (tmp_path / "options.toml").write_text("n_train = 3\n", encoding="utf-8-sig")
    assert make_config(file=tmp_path / "options.toml").n_train == 3


def test_an_unknown_preset_names_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"Unknown preset 'fast'\. Use paper or quick\."):
        make_config("fast")


def test_a_configuration_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="frozen"):
        RunConfig().n_train = 3


# Of every option a value that is not its default.
OTHER: dict[str, Any] = {
    "model": "some/model", "revision": "main", "dtype": "float32", "device": "cpu", "device_map": "auto",
    "max_memory": ("0=20GiB", "cpu=60GiB"), "quantize": "8bit", "tp_plan": "auto", "system": 'Say "yes".\n',
    "date": "2026-01-02", "thinking": "closed", "thinking_tokens": 64, "blocks": "model.layers", "writers": ("self_attn", "mlp"), "batch_size": 3,
    "prompts": ("harmful=a.txt", "harmless=b.txt"), "data_dir": "data", "column": "text", "dedup": "exact",
    "turns": 2, "prefill": "Sure,", "seed": 7, "n_train": 5, "n_val": 6, "n_test": 8, "filter": "none", "filter_tokens": 99,
    "method": ("cosmic", "lda"), "interventions": ("affine",), "condition_on": "monitor", "refusal_tokens": ("I", "40"), "induce_threshold": -0.5, "kl_threshold": 0.25, "prune_layers": 0.5,
    "pseudo_harmful": "false.txt", "refusal_direction": "runs/a", "lambdas": (0.5, 1.0), "keep_refusal": 0.9, "tried": 2,
    "centroids": 5, "rank": 3, "rdo_epochs": 4, "rdo_seconds": 60.5,
    "transfer_systems": ("none", "cautious"), "transfer_turns": (0, 2), "transfer_languages": ("de",),
    "selection_risk": 1e-3, "layer_step": 2, "full_map": True, "resamples": 9, "strict": True,
    "minutes": 2.5, "max_new_tokens": 11, "temperature": 0.5, "samples": 4, "controls": 1, "n_control": 2, "over_refusal": ("xstest",), "n_over_refusal": 4,
    "seeds": 3, "drift_tokens": 12, "texts": ("a.txt",), "n_texts": 13, "text_tokens": 14,
    "tasks": ("mmlu:5",), "n_items": 15, "task_chat": True, "task_tokens": 16, "task_exact": True,
    "engine": "openai", "engine_url": "http://127.0.0.1:1/v1", "engine_model": "m", "engine_ablated": "e",
    "engine_ablated_url": "http://127.0.0.1:2/v1", "engine_key_env": "KEY", "engine_concurrency": 17,
    "engine_timeout": 18.5, "engine_arguments": ("tensor-parallel-size=8",),
    "judges": ("substring",), "judge_url": "http://127.0.0.1:3/v1", "judge_key_env": "JUDGE",
    "judge_concurrency": 19, "judge_timeout": 20.5, "judge_retries": 2, "judge_max_tokens": 21,
    "judge_price_in": 1.5, "judge_price_out": 2.5, "judge_dtype": "float16", "judge_device": "cuda:1",
    "judge_device_map": "auto", "judge_labels": "labels.csv", "judge_batch_size": 22, "short_is_safe": True,
    "figures": ("pdf",), "price_per_device_hour": 3.5,
}  # fmt: skip


@pytest.mark.parametrize("name", RunConfig.model_fields)
def test_every_option_has_one_place_in_the_tables_and_comes_back(name: str, tmp_path: Path) -> None:
    value = OTHER.get(name)
    assert value != RunConfig.model_fields[name].default, f"OTHER lacks {name}"
    config = make_config(**{name: value})
    [(table, key)] = [
        (t, k) for t, names in KEYS.items() for k, flat in names.items() if flat == name
    ]
    assert in_tables(config.model_dump())[table][key] == value
    file = tmp_path / "run.toml"
    for text in (
        tomli_w.dumps({table: {key: value}}),
        tomli_w.dumps({name: value}),
        commented_toml(config),
    ):
        file.write_text(text, encoding="utf-8")
        assert make_config(file=file) == config


def test_tables_are_the_groups_of_help() -> None:
    groups = [type(part) for part in vars(Settings()).values() if isinstance(part, BaseModel)]
    assert groups == [section.options for section in SECTIONS.values()]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("n_test = 3\n[drift]\ntokens = 2", r"in tables \(\[drift\]\) and outside of them \(n_test\)"),
        ("[drifts]\ntokens = 2", r"There is no table \[drifts\].*selection"),
        ("[drift]\ndrift_tokens = 2", r"no option 'drift_tokens' in \[drift\]\. It is tokens in \[drift\]"),
        ("[selection]\nn_test = 2", r"no option 'n_test' in \[selection\]\. It is n_test in \[prompts\]"),
        ("[model]\nfrob = 2", r"no option 'frob' in \[model\]\. The options there are model, revision"),
        ("[drift]\ntokens = 2\ntokens = 3", "cannot be read as TOML"),
        ("[drift]\ntokens = -2", "drift_tokens = -2 cannot be used"),
    ],
)  # fmt: skip
def test_a_wrong_place_is_one_message(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "options.toml").write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=says):
        make_config(file=tmp_path / "options.toml")
