"""What fits into a model is known before it is run: tokens of its embedding, rows of its
context.
"""

import json
from pathlib import Path
from typing import Any

import pytest
import saved
import tiny_models
import torch
from transformers import AutoConfig

from refusal import (
    ChatModel,
    ConfigError,
    ModelLoadError,
    PromptError,
    RefusalTokens,
    UnsupportedModelError,
    find_parameters,
    find_sites,
    load,
    refusal_metric,
)
from refusal import run as run_stages
from refusal.config.rule import Rule
from refusal.directions.refusal_tokens import check_tokens, given_tokens
from refusal.evaluations.drift.stage import TAKEN, check_names
from refusal.model.contexts import context_length

ROPE = {"rope_theta": 10000.0}


@pytest.mark.parametrize(
    ("model_type", "values", "expected"),
    [
        ("llama", {"max_position_embeddings": 512}, 512),
        (
            "llama",
            {
                "max_position_embeddings": 512,
                "rope_parameters": {**ROPE, "rope_type": "linear", "factor": 4},
            },
            2048,
        ),
        (
            "llama",
            {
                "max_position_embeddings": 512,
                "rope_parameters": {**ROPE, "rope_type": "dynamic", "factor": 2.0},
            },
            1024,
        ),
        (
            "llama",  # 3.1: the length after the scaling
            {
                "max_position_embeddings": 131072,
                "rope_parameters": {
                    **ROPE,
                    "rope_type": "llama3",
                    "factor": 8.0,
                    "low_freq_factor": 1.0,
                    "high_freq_factor": 4.0,
                    "original_max_position_embeddings": 8192,
                },
            },
            131072,
        ),
        (
            "qwen2",  # as Qwen2.5's authors say to write it: the length before
            {
                "max_position_embeddings": 32768,
                "rope_parameters": {
                    **ROPE,
                    "rope_type": "yarn",
                    "factor": 4.0,
                    "original_max_position_embeddings": 32768,
                },
            },
            131072,
        ),
        ("mistral", {"max_position_embeddings": 32768, "sliding_window": 4096}, 32768),
        ("gpt2", {"n_positions": 1024}, 1024),
        ("opt", {"max_position_embeddings": 2048}, 2048),
        ("mpt", {"max_seq_len": 2048}, 2048),
        ("whisper", {"max_target_positions": 448}, 448),
        ("bloom", {}, None),
        ("mamba", {"max_position_embeddings": 512}, None),
        ("rwkv", {"context_length": 1024}, None),
    ],
)
def test_the_context_is_what_the_config_means(
    model_type: str, values: dict[str, Any], expected: int | None
) -> None:
    assert context_length(AutoConfig.for_model(model_type, **values)) == expected


def test_a_wrapper_has_the_context_of_its_language_model() -> None:
    assert context_length(tiny_models.network("gemma3").config) == 512


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_one_token_over_the_context_is_refused_and_as_many_as_fit_are_not(family: str) -> None:
    model = tiny_models.chat_model(family, "bare", max_position_embeddings=64)
    around = len(model.tokenize(["x"])[0]) - 1
    text = "x" * (64 - around - 5)
    assert model.generate([text], 5)
    with pytest.raises(PromptError, match=r"has 60 tokens, and 65 with the 5 .* holds 64 in all"):
        model.generate(["short", text + "x"], 5)


def test_a_mamba_reads_on() -> None:
    assert tiny_models.chat_model("mamba", "bare", max_position_embeddings=16).generate(
        ["x" * 40], 2
    )


@pytest.fixture
def small(tmp_path: Path) -> tuple[Path, tuple[str, ...]]:
    """A model of 200 tokens in all, and prompts; one harmful test prompt is long."""
    tiny_models.network(max_position_embeddings=200).save_pretrained(tmp_path / "model")
    tiny_models.tokenizer("bare").save_pretrained(tmp_path / "model")
    return tmp_path / "model", saved.write_prompts(tmp_path)


def run_with(small: tuple[Path, tuple[str, ...]], out: Path, **changes: Any) -> None:
    run_stages(saved.small_config(small[0], small[1], **changes), out, until="extract")


def test_a_long_prompt_is_named_before_anything_is_run(
    small: tuple[Path, tuple[str, ...]], tmp_path: Path
) -> None:
    (tmp_path / "long.jsonl").write_text(
        json.dumps(
            {"id": "the-long-one", "text": "word " * 60, "label": "harmful", "split": "train"}
        ),
        encoding="utf-8",
    )
    with pytest.raises(PromptError, match=r"'the-long-one' has 31\d tokens; .* holds 200 in all"):
        run_with((small[0], (*small[1], str(tmp_path / "long.jsonl"))), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    with pytest.raises(PromptError, match=r"with the 190 that are to be written"):
        run_with(small, tmp_path / "run", max_new_tokens=190)


def test_a_long_instruction_of_a_text_is_named(
    small: tuple[Path, tuple[str, ...]], tmp_path: Path
) -> None:
    file = tmp_path / "pairs.jsonl"
    file.write_text(json.dumps({"instruction": "word " * 60, "output": "yes"}), encoding="utf-8")
    with pytest.raises(PromptError, match=r"pairs: The prompt 'pairs-0' has 31\d tokens"):
        run_with(small, tmp_path / "run", texts=(str(file),), drift_tokens=2)
    file.with_suffix(".txt").write_text("word " * 200, encoding="utf-8")  # running text is cut
    run_with(
        small,
        tmp_path / "run",
        texts=(str(file.with_suffix(".txt")),),
        drift_tokens=2,
        text_tokens=100,
    )


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_a_tiny_context_is_measured_within_it(family: str) -> None:
    """A learned position past the end would be an error of the device."""
    hf = tiny_models.network(family, max_position_embeddings=12)
    sites = find_sites(hf)
    assert find_parameters(hf, sites)
    with pytest.raises(UnsupportedModelError, match="holds 4 tokens in all, fewer than a chat"):
        find_sites(tiny_models.network(family, max_position_embeddings=4))


# --- tokens beyond the embedding


def test_a_tokenizer_that_is_larger_than_the_embedding() -> None:
    tok = tiny_models.tokenizer("bare")
    tok.add_tokens(["zzz"])
    model = ChatModel(tiny_models.network(vocab_size=len(tok) - 1), tok, "small")
    assert model.generate(["fine"], 2)
    with pytest.raises(
        ModelLoadError,
        match=f"'zzz' the id {len(tok) - 1}, and the model's embedding has {len(tok) - 1}",
    ):
        model.generate(["zzz"], 2)
    with pytest.raises(ModelLoadError, match="embedding has 100 rows"):
        ChatModel(tiny_models.network(vocab_size=100), tok, "small")


@pytest.mark.parametrize("key", ["pad_token_id", "eos_token_id", "bos_token_id"])
def test_special_tokens_of_the_config_beyond_the_vocabulary(tmp_path: Path, key: str) -> None:
    folder = saved.save_model(tmp_path / "model")
    found = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps({**found, key: 5000}), encoding="utf-8")
    with pytest.raises(ModelLoadError, match=f"{key} 5000, and its vocabulary has 272"):
        load(str(folder))


# --- refusal tokens


@pytest.mark.parametrize(
    ("ids", "texts", "message"),
    [
        ((5, 5), ("a", "a"), "5 is named twice"),
        ((), (), "there are none"),
        ((-1,), ("a",), "-1 is no token id"),
        ((1, 2), ("a",), "are 2, 1 and 2, not one for each"),
    ],
)
def test_refusal_tokens_are_a_set_of_ids(
    ids: tuple[int, ...], texts: tuple[str, ...], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        RefusalTokens(ids, texts, "mine")


def test_a_token_that_is_named_twice_counts_once(model: ChatModel) -> None:
    one = given_tokens(model, ["I"])
    assert given_tokens(model, ["I", str(one.ids[0]), "I"]) == one
    logits = torch.randn(3, 9)
    torch.testing.assert_close(refusal_metric(logits, [2, 2, 4]), refusal_metric(logits, [4, 2]))
    assert torch.isfinite(refusal_metric(torch.tensor([[0.0, 50.0]]), [1, 1])).all()


@pytest.mark.parametrize("ids", [[], [-1], [9]])
def test_the_metric_takes_only_ids_of_the_vocabulary(ids: list[int]) -> None:
    with pytest.raises(ConfigError, match="not in the vocabulary of 9"):
        refusal_metric(torch.zeros(1, 9), ids)


def test_most_of_the_vocabulary_is_no_set_of_refusal_tokens(model: ChatModel) -> None:
    every = [str(i) for i in range(tiny_models.VOCABULARY)]
    with pytest.raises(ConfigError, match="272 of the model's 272 tokens are refusal tokens"):
        given_tokens(model, every)
    with pytest.raises(ConfigError, match="outside the vocabulary of 272"):
        check_tokens(model, RefusalTokens((400,), ("x",), "mine"))
    check_tokens(model, given_tokens(model, every[:20]))


# --- names, layers


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("pile", "Pile"), "like those of 0"),
        (("own-answers",), "measured under that name anyway"),
        (("pile", "pile with controls"), "like those of 0"),
        *(((name,), "anyway") for name in TAKEN),
    ],
)
def test_texts_of_one_name_are_refused(names: tuple[str, ...], message: str) -> None:
    with pytest.raises(PromptError, match=message):
        check_names(names, [str(i) for i in range(len(names))])


def test_texts_of_different_names_are_fine() -> None:
    check_names(["pile", "alpaca"], ["a/pile.txt", "b/alpaca.jsonl"])


@pytest.mark.parametrize(
    ("share", "layers", "fine"),
    [(0.2, 5, True), (0.8, 5, False), (0.99, 28, False), (0.99, 200, True)],
)
def test_some_layer_must_be_eligible(share: float, layers: int, fine: bool) -> None:
    rule = Rule(prune_layers=share)
    assert (int(layers * (1 - share)) > 0) == fine
    if fine:
        rule.check(layers)
    else:
        with pytest.raises(
            ConfigError, match=f"--prune-layers {share} leaves none of the model's {layers} layers"
        ):
            rule.check(layers)
