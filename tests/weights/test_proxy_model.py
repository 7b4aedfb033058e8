"""Proxies of configs of real size: small, quick, and right about every block of the whole model.

Expected counts are worked out by hand from the architecture: an embedding, and the writers of every
block.
"""

from typing import Any

import pytest
import torch
from transformers import AutoConfig

from refusal import UnsupportedModelError
from refusal.weights import proxy_model as proxies
from refusal.weights.proxy_model import MOST_PARAMETERS, build_proxy, carry_over, shorten, skeleton

LLAMA_70B: dict[str, Any] = {
    "hidden_size": 8192,
    "intermediate_size": 28672,
    "num_hidden_layers": 80,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
}


@pytest.mark.parametrize(
    ("family", "values", "count"),
    [
        ("llama", LLAMA_70B, 1 + 80 * 2),
        ("gemma2", {}, 1 + 26 * 2),
        ("mixtral", {}, 1 + 32 * 2),
        ("gpt_oss", {}, 1 + 36 * 4),  # attention and fused experts, both with biases
        ("deepseek_v3", {}, 1 + 61 + 3 + 58 * 2),  # 3 dense blocks, then routed and shared experts
        ("falcon_h1", {}, 1 + 32 * 3),  # attention, state space and MLP in every block
    ],
)
def test_a_proxy_of_a_large_config(family: str, values: dict[str, Any], count: int) -> None:
    config = AutoConfig.for_model(family, **values)
    whole = skeleton(config)
    before = config.to_dict()
    proxy = build_proxy(config, whole)
    assert config.to_dict() == before
    assert proxy.model.num_parameters() <= MOST_PARAMETERS < whole.num_parameters()
    parameters = carry_over(proxy, whole)
    assert len(parameters) == len({parameter.name for parameter in parameters}) == count
    shapes = {name: parameter.shape for name, parameter in whole.named_parameters()}
    assert {shapes[parameter.name][parameter.axis] for parameter in parameters} == {
        config.hidden_size
    }
    behind = sum(parameter.norm is not None for parameter in parameters)
    assert behind == (count - 1 if family == "gemma2" else 0)
    assert all(
        p.norm is None or p.norm.split(".")[:3] == p.name.split(".")[:3] for p in parameters
    )  # of its own block


def test_the_whole_model_takes_no_memory() -> None:
    whole = skeleton(AutoConfig.for_model("llama", **LLAMA_70B))
    assert {parameter.device for parameter in whole.parameters()} == {torch.device("meta")}


def test_a_block_that_is_built_unlike_every_block_of_the_proxy_is_refused() -> None:
    config = AutoConfig.for_model("llama", **LLAMA_70B)
    whole = skeleton(config)
    proxy = build_proxy(config, whole)
    block = whole.get_submodule("model.layers.41")
    block.second_mlp = torch.nn.Linear(8192, 8192, device="meta")
    with pytest.raises(
        UnsupportedModelError, match=r"No block like model\.layers\.41 could be measured"
    ):
        carry_over(proxy, whole)


def test_configs_of_every_kind_are_made_smaller() -> None:
    """Some want a number for the padding (Step-3.7); what cannot be made smaller is refused with a
    reason.
    """
    for kind in ("llama", "step3p7", "gemma3", "qwen3_5", "gpt_neo", "deepseek_v3"):
        small = shorten(AutoConfig.for_model(kind), 2, cut_lists=True).get_text_config()
        assert small.vocab_size == 64
        assert not small.pad_token_id


def test_a_config_that_cannot_be_made_smaller_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object) -> None:
        raise ValueError("num_heads must be odd")

    config = AutoConfig.for_model("llama", **LLAMA_70B)
    monkeypatch.setattr(proxies, "shorten", fail)
    with pytest.raises(
        UnsupportedModelError,
        match=r"LlamaForCausalLM cannot be made smaller .num_heads must be odd",
    ):
        build_proxy(config, skeleton(config))
