"""The whole job on the real embedded model, small: every effect has the right sign."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from cores import all_cores

import refusal
from refusal import CandidateScore, ChatModel
from refusal.model.placement import find_dtype

pytestmark = pytest.mark.embedded


@pytest.fixture(scope="module")
def real() -> Iterator[ChatModel]:
    with all_cores():
        yield refusal.load("embedded")


def test_chat_format(real: ChatModel) -> None:
    tokenizer = real.tokenizer
    assert tokenizer.decode(list(real.chat.suffix)) == "<|im_end|>\n<|im_start|>assistant\n"
    assert str(tokenizer.decode(list(real.chat.prefix))).endswith("<|im_end|>\n<|im_start|>user\n")
    assert real.sites.n_layers == 28
    assert real.sites.d_model == 1536


def test_weights_load_as_the_processor_likes_with_the_separate_head(real: ChatModel) -> None:
    """The GGUF file holds the head and the embedding apart, quantised differently: they must not be
    tied.
    """
    assert {p.dtype for p in real.hf.parameters()} == {find_dtype("auto", real.device)}
    embedding, head = (
        real.hf.get_input_embeddings().weight,
        real.hf.get_submodule(real.sites.head).weight,
    )
    assert isinstance(embedding, torch.Tensor)
    assert isinstance(head, torch.Tensor)
    assert not torch.equal(embedding, head)


def test_the_whole_job(real: ChatModel, tmp_path: Path) -> None:
    config = refusal.make_config(
        model="embedded",
        n_train=12,
        n_val=8,
        n_test=8,
        max_new_tokens=12,
        layer_step=7,
        controls=1,
        n_control=2,
        drift_tokens=4,
        n_texts=2,
        refusal_tokens=("I", "As", "Sorry"),
    )
    result = refusal.run(config, tmp_path / "run", model=real)
    selection = result.selection
    assert selection is not None
    score: CandidateScore = selection.score
    assert score.bypass is not None
    assert score.induce is not None
    assert score.kl is not None
    assert selection.qualified
    harmful = selection.harmful_count.mean_metric
    harmless = selection.harmless_count.mean_metric
    assert harmful is not None
    assert harmless is not None
    assert harmful > 0 > harmless
    assert score.bypass < harmful - 2
    assert score.induce > harmless + 2
    assert score.kl <= 0.1
    rate = {(m.set, m.condition): m.value for m in result.metrics if m.name == "refusal_rate"}
    assert rate["harmful", "baseline"] >= 0.75
    assert rate["harmful", "ablation"] <= 0.25
    assert rate["harmful", "subtraction"] <= 0.25
    assert rate["harmless", "baseline"] <= 0.25
    assert rate["harmless", "ablation"] <= 0.25
    assert rate["harmless", "addition"] >= 0.75
