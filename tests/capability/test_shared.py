"""The fast way against lm-eval's ``HFLM``, request by request, on models of different kinds."""

from collections.abc import Sequence
from typing import Any

import pytest
import tiny_models
import torch
from bench_files import roomy_model
from lm_eval.api.instance import Instance

from refusal import ChatModel
from refusal.evaluations.capability.shared import make_harness
from refusal.model.generation import generate_rows

# Contexts that share a beginning, nothing, or all; continuations of one token and of several.
PAIRS = [
    ("Question: why? Answer:", " because"),
    ("Question: why? Answer:", " so"),
    ("Question: who? Answer:", "A"),
    ("Question: who? Answer:", "B"),
    ("", "nothing before"),
    ("Another one, longer than the window of any sliding attention here", " yes"),
    ("Z", "z"),
]
PROMPTS = ("Count: one, two,", "Count: one, two, three,", "Hello", "Count: one")


def requests(kind: Any, pairs: Sequence[tuple[Any, ...]]) -> list[Instance]:
    return [Instance(kind, {}, pair, i, ("test", i, 1)) for i, pair in enumerate(pairs)]


def both(model: ChatModel) -> tuple[Any, Any]:
    """lm-eval's and ours."""
    return make_harness(model, "a", True, 1), make_harness(model, "b", False, None)


@pytest.mark.parametrize(
    "family", ["llama", "gemma2", "gpt2", "mixtral", "mamba", "falcon_h1", "qwen2_5_vl"]
)
def test_log_likelihoods(family: str) -> None:
    theirs, ours = both(tiny_models.chat_model(family))
    expected = theirs.loglikelihood(requests("loglikelihood", PAIRS))
    found = ours.loglikelihood(requests("loglikelihood", PAIRS))
    assert [value for value, _ in found] == pytest.approx(
        [value for value, _ in expected], abs=1e-3
    )
    assert [greedy for _, greedy in found] == [greedy for _, greedy in expected]


def test_rolling_log_likelihoods_and_prompts_that_are_cut(caplog: pytest.LogCaptureFixture) -> None:
    model = tiny_models.chat_model("gpt2", max_position_embeddings=24)
    theirs, ours = both(model)
    texts = [
        ("Once upon a time there was a river that ran uphill, and nobody minded.",),
        ("Short.",),
    ]
    expected = theirs.loglikelihood_rolling(requests("loglikelihood_rolling", texts))
    assert ours.loglikelihood_rolling(requests("loglikelihood_rolling", texts)) == pytest.approx(
        expected, abs=1e-3
    )
    cut = requests("loglikelihood", [("A context of more than twenty-four bytes", " yes")])
    caplog.clear()
    assert ours.loglikelihood(cut)[0][0] == pytest.approx(theirs.loglikelihood(cut)[0][0], abs=1e-3)
    assert [r.getMessage() for r in caplog.records if r.name.startswith("refusal")] == [
        "1 prompts were cut to the model's 24 tokens, at their beginning."
    ]


def written(model: ChatModel, harness: Any, **kwargs: Any) -> list[str]:
    options = {"until": ["\n\n"], "max_gen_toks": 12, "do_sample": False, **kwargs}
    answers: list[str] = harness.generate_until(
        requests("generate_until", [(text, dict(options)) for text in PROMPTS])
    )
    return answers


@pytest.mark.parametrize("family", ["llama", "gemma2", "mamba"])
def test_answers_end_at_stop_strings_as_in_lm_eval(family: str) -> None:
    model = tiny_models.chat_model(family)
    theirs, ours = both(model)
    whole = written(model, theirs)
    assert written(model, ours) == whole
    stop = next(letter for text in whole for letter in text[2:] if letter.isascii())
    expected = written(model, theirs, until=[stop, "never written"])
    assert written(model, ours, until=[stop, "never written"]) == expected
    assert expected != whole


def test_answers_end_at_the_end_of_turn_as_in_lm_eval() -> None:
    model = roomy_model("llama")
    rows = [model.tokenizer.encode(text) for text in PROMPTS]
    ids = generate_rows(model, rows, 12)
    end = max(ids, key=len)[4]
    token = str(model.tokenizer.convert_ids_to_tokens(end))
    model.tokenizer.add_special_tokens({"additional_special_tokens": [token]})
    assert model.hf.generation_config is not None
    model.hf.generation_config.eos_token_id = end
    theirs, ours = both(model)
    assert written(model, ours) == written(model, theirs)
    assert any(end in out for out in ids)
    assert sum(map(len, generate_rows(model, rows, 12))) < sum(map(len, ids))


def test_a_repetition_penalty_of_the_model_is_obeyed() -> None:
    """What transformers' generate does beyond the argmax is left to it."""
    model = roomy_model("llama")
    theirs, ours = both(model)
    plain = written(model, theirs)
    assert model.hf.generation_config is not None
    model.hf.generation_config.repetition_penalty = 5.0
    before = model.forward_tokens
    expected = [
        theirs.generate_until(
            requests("generate_until", [(t, {"until": ["#"], "max_gen_toks": 12})])
        )[0]
        for t in PROMPTS
    ]
    assert written(model, ours, until=["#"]) == expected != plain
    assert model.forward_tokens > before


def test_requests_of_several_kinds_come_back_in_their_order() -> None:
    model = roomy_model("llama")
    theirs, ours = both(model)
    kinds = [
        (text, {"until": ["#"], "max_gen_toks": 3 + i % 2, "do_sample": False})
        for i, text in enumerate(PROMPTS)
    ]
    found = ours.generate_until(requests("generate_until", kinds))
    assert found == [theirs.generate_until(requests("generate_until", [kind]))[0] for kind in kinds]


def test_out_of_memory_halves_what_runs_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model = roomy_model("llama")
    _, ours = both(model)
    expected = ours.loglikelihood(requests("loglikelihood", PAIRS))
    model.token_budget.value = 4096
    forward = model.hf.forward

    def tight(*args: Any, **arguments: Any) -> Any:
        if arguments["input_ids"].numel() > 80:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(*args, **arguments)

    monkeypatch.setattr(model.hf, "forward", tight)
    found = ours.loglikelihood(requests("loglikelihood", PAIRS))
    assert [value for value, _ in found] == pytest.approx(
        [value for value, _ in expected], abs=1e-3
    )
    assert model.token_budget.value < 160


@pytest.mark.parametrize("exact", [True, False])
def test_the_model_and_its_tokenizer_are_left_as_they_are(exact: bool) -> None:
    """Not tied anew where the config says so and the weights do not, no padding token given to the
    user's tokenizer.
    """
    model = tiny_models.chat_model("gpt2")
    weight = model.hf.get_parameter(f"{model.sites.head}.weight")
    model.hf.get_submodule(model.sites.head).weight = torch.nn.Parameter(weight.detach() * 2)
    model.tokenizer.pad_token = None
    before = {name: p.data_ptr() for name, p in model.hf.named_parameters(remove_duplicate=False)}
    harness = make_harness(model, "a", exact, None)
    written(model, harness)
    harness.loglikelihood(requests("loglikelihood", PAIRS))
    assert {
        name: p.data_ptr() for name, p in model.hf.named_parameters(remove_duplicate=False)
    } == before
    assert model.hf.config.tie_word_embeddings
    assert model.tokenizer.pad_token is None
    assert "tie_weights" not in vars(model.hf)
