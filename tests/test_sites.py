"""Blocks and writers are found by measurement, in every family; what does not add up is refused."""

from dataclasses import replace
from typing import Any

import pytest
import tiny_models
import torch
from plain import block_inputs, last_logits
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    PreTrainedModel,
)

from refusal import Ablate, ChatModel, Direction, UnsupportedModelError, find_sites
from refusal.model.endings import end_tokens
from refusal.model.generation import generate_rows

ALL = [*tiny_models.FAMILIES, *tiny_models.OTHERS]
TEXTS = ("Hi", "Why is the sky blue on most days?", "Sing!")

# What must be found; where a family is not named: attention and MLP.
WRITERS: dict[str, set[tuple[str, ...]]] = {
    "gemma2": {("post_attention_layernorm", "post_feedforward_layernorm")},
    "gemma3": {("post_attention_layernorm", "post_feedforward_layernorm")},
    "gemma3_text": {("post_attention_layernorm", "post_feedforward_layernorm")},
    "olmo2": {("post_attention_layernorm", "post_feedforward_layernorm")},
    "glm4": {("post_self_attn_layernorm", "post_mlp_layernorm")},
    "gpt2": {("attn", "mlp")},
    "gpt_neox": {("attention", "mlp")},
    "gpt_neox-sequential": {("attention", "mlp")},
    "falcon": {("self_attention", "mlp")},
    "falcon-new": {("self_attention", "mlp")},
    "falcon-sequential": {("self_attention", "mlp")},
    "granite": {("0.22 x self_attn", "0.22 x mlp")},
    "mamba": {("mixer",)},
    "mamba2": {("mixer",)},
    "jamba": {("mamba", "feed_forward"), ("self_attn", "feed_forward")},
    "bamba": {("mamba", "feed_forward"), ("self_attn", "feed_forward")},
    "qwen3_next": {("linear_attn", "mlp"), ("self_attn", "mlp")},
    "falcon_h1": {("0.4 x mamba", "0.6 x self_attn", "feed_forward")},
    "lfm2": {("conv", "feed_forward"), ("self_attn", "feed_forward")},
    "llama4": {("self_attn", "feed_forward")},
    "qwen3_5": {("linear_attn", "mlp"), ("self_attn", "mlp")},
    "zamba2": {("mamba",), ("mamba_decoder.mamba",)},
}


def unit(seed: int = 7) -> Tensor:
    vector = torch.randn(tiny_models.WIDTH, generator=torch.Generator().manual_seed(seed))
    normed: Tensor = vector / vector.norm()
    return normed


@pytest.mark.parametrize("family", ALL)
def test_writes_add_up_to_the_stream(family: str) -> None:
    hf = tiny_models.network(family)
    sites = find_sites(hf)
    assert sites.n_layers == tiny_models.LAYERS
    assert set(sites.kinds) == WRITERS.get(family, {("self_attn", "mlp")})
    assert max(sites.verify(hf).errors) < 1e-4
    assert sites == find_sites(hf)
    assert hf.get_submodule(sites.head) is hf.get_output_embeddings()
    assert hf.get_submodule(sites.embedding) is hf.get_input_embeddings()


@pytest.mark.parametrize("family", ALL)
def test_the_sum_is_the_stream_that_a_plain_hook_sees(family: str) -> None:
    """The same check by plain hooks, on other tokens and in float64, without the package's own
    tracing.
    """
    hf = tiny_models.network(family)
    sites = find_sites(hf)
    ids = list(range(20, 40))
    blocks = [hf.get_submodule(name) for name in sites.blocks]
    seen: dict[str, Tensor] = {}
    handles = []
    for name in [name for group in sites.writers for name in group]:

        def keep(
            module: nn.Module, args: object, output: Tensor | tuple[Tensor, ...], name: str = name
        ) -> None:
            found = output[0] if isinstance(output, tuple) else output
            seen[name] = (
                found.reshape(-1, found.shape[-1]).detach().double().clone()
            )  # Llama-4 flattens its rows

        handles.append(hf.get_submodule(name).register_forward_hook(keep))
    stream = block_inputs(hf, blocks, ids)
    for handle in handles:
        handle.remove()
    total = stream[0].double()
    for names, after in zip(sites.writers, stream[1:], strict=True):
        for name in names:
            total = total + sites.multipliers.get(name, 1.0) * seen[name]
        assert ((total - after).norm(dim=-1) < 1e-4 * after.norm(dim=-1)).all()


@pytest.mark.parametrize("family", ALL)
def test_ablation_leaves_nothing_of_the_direction_anywhere(family: str) -> None:
    model = tiny_models.chat_model(family)
    blocks = [model.hf.get_submodule(name) for name in model.sites.blocks]
    ids = model.tokenize(["Describe the water cycle."])[0]
    r = unit()
    before = block_inputs(model.hf, blocks, ids)
    with model.apply(Ablate(Direction(r, 1.0, -1, 2))):
        stream = block_inputs(model.hf, blocks, ids)
    assert len(stream) == tiny_models.LAYERS + 1
    for x, unmodified in zip(stream, before, strict=True):
        assert ((x @ r).abs() < 1e-4 * x.norm(dim=-1)).all()
        assert ((unmodified @ r).abs() > 1e-4 * unmodified.norm(dim=-1)).any()


@pytest.mark.parametrize("family", ALL)
@pytest.mark.parametrize("ablated", [False, True])
def test_generation_with_a_cache_equals_generation_without(family: str, ablated: bool) -> None:
    model = tiny_models.chat_model(family)
    rows = model.tokenize(TEXTS)
    with model.apply(*([Ablate(Direction(unit(), 1.0, -1, 2))] if ablated else [])):
        assert generate_rows(model, rows, 6) == [greedy(model, row, 6) for row in rows]


def greedy(model: ChatModel, ids: list[int], n: int) -> list[int]:
    """Token by token, each from the whole text so far, alone and without a cache."""
    out: list[int] = []
    while len(out) < n:
        token = int(last_logits(model.hf, [*ids, *out]).argmax())
        if token in end_tokens(model):
            break
        out.append(token)
    return out


@pytest.mark.parametrize("family", ALL)
def test_a_broken_map_is_caught(family: str) -> None:
    hf = tiny_models.network(family)
    sites = find_sites(hf)
    middle = 2
    for left_out in sites.writers[middle]:
        writers = tuple(
            tuple(name for name in names if name != left_out) for names in sites.writers
        )
        with pytest.raises(
            UnsupportedModelError, match=f"do not add up.*input of block {middle + 1} "
        ):
            replace(sites, writers=writers).verify(hf)
    twice = (*sites.writers[:-1], (*sites.writers[-1], sites.writers[-1][0]))
    with pytest.raises(UnsupportedModelError, match=r"do not add up.* at the end"):
        replace(sites, writers=twice).verify(hf)
    if sites.multipliers:
        with pytest.raises(UnsupportedModelError, match=r"do not add up.*input of block 1 "):
            replace(sites, multipliers={}).verify(hf)


@pytest.mark.parametrize(
    "family", ["gemma2", "granite", "falcon", "falcon_h1", "mixtral", "mamba", "qwen2_5_vl"]
)
def test_half_precision_finds_the_same_writers(family: str) -> None:
    exact = find_sites(tiny_models.network(family))
    hf = tiny_models.network(family)
    hf.to(torch.bfloat16)  # type: ignore[arg-type]
    sites = find_sites(hf)
    assert sites.writers == exact.writers
    assert sites.multipliers == exact.multipliers
    assert sites.verify(hf).ok


def random_model(model_type: str, **config: object) -> PreTrainedModel:
    torch.manual_seed(0)
    hf: PreTrainedModel = AutoModelForCausalLM.from_config(
        AutoConfig.for_model(model_type, **config)
    )
    hf.eval()
    return hf


def test_a_residual_added_inside_a_child_is_found_below_it() -> None:
    hf = random_model("bloom", hidden_size=32, n_layer=3, n_head=4, vocab_size=64)
    sites = find_sites(hf)
    assert set(sites.kinds) == {("self_attention.dense", "mlp.dense_4h_to_h")}
    assert max(sites.verify(hf).errors) < 1e-4
    assert sites == find_sites(hf, writers=["self_attention.dense", "mlp.dense_4h_to_h"])


def test_a_block_that_norms_its_stream_is_refused() -> None:
    hf = random_model("bert", **SMALL, is_decoder=True)
    with pytest.raises(UnsupportedModelError, match=r"end in a norm of the stream.*as BERT's do"):
        find_sites(hf)
    encoder = random_model("bert", **SMALL)
    with pytest.raises(UnsupportedModelError, match="reads in both directions: it is an encoder"):
        find_sites(encoder)


def test_an_encoder_decoder_is_refused() -> None:
    from transformers import AutoModelForSeq2SeqLM

    config = AutoConfig.for_model(
        "t5", d_model=32, d_kv=8, num_layers=2, num_heads=4, d_ff=48, vocab_size=64
    )
    with pytest.raises(UnsupportedModelError, match="has an encoder"):
        find_sites(AutoModelForSeq2SeqLM.from_config(config))


class Gained(nn.Module):
    """A block whose output is multiplied: by a number, or by a vector of gains."""

    def __init__(self, inner: nn.Module, by: float | Tensor) -> None:
        super().__init__()
        self.mlp, self.inner, self.by = inner.mlp, inner, by

    def forward(self, hidden_states: Tensor, **kwargs: object) -> Tensor:
        out: Tensor = self.inner(hidden_states, **kwargs)
        return out * self.by


def gained(by: float | Tensor) -> PreTrainedModel:
    hf = tiny_models.network()
    layers = hf.get_submodule("model.layers")
    layers[2] = Gained(layers[2], by)  # type: ignore[operator,index]
    return hf


def test_a_block_that_scales_its_stream_is_found_with_its_number() -> None:
    sites = find_sites(gained(1.5))
    assert list(sites.scales) == ["model.layers.2"]
    assert sites.scales["model.layers.2"] == pytest.approx(1.5, rel=1e-6)
    assert sites.additive
    assert sites.verify(gained(1.5)).ok
    with pytest.raises(UnsupportedModelError, match="do not add up"):
        replace(sites, scales={}).verify(gained(1.5))


def test_a_block_that_gains_its_stream_by_a_vector_is_refused_with_that_reason() -> None:
    hf = gained(torch.linspace(0.5, 2.0, tiny_models.WIDTH))
    with pytest.raises(UnsupportedModelError, match=r"block model\.layers\.2 .* vector of gains"):
        find_sites(hf)


SMALL: dict[str, Any] = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4, "head_dim": 8,
    "vocab_size": 64,
}  # fmt: skip


def test_a_model_that_needs_more_than_token_ids_is_refused() -> None:
    hf = tiny_models.network()

    def forward(input_ids: Tensor, **kwargs: object) -> None:
        raise ValueError("You have to specify pixel_values")

    hf.forward = forward
    with pytest.raises(
        UnsupportedModelError, match=r"does not run on token ids alone .*pixel_values"
    ):
        find_sites(hf)


def test_layout_can_be_overridden_and_a_wrong_override_is_refused() -> None:
    hf = tiny_models.network()
    assert find_sites(hf, blocks="model.layers", writers=["self_attn", "mlp"]) == find_sites(hf)
    assert set(find_sites(hf, writers=["self_attn.o_proj", "mlp"]).kinds) == {
        ("self_attn.o_proj", "mlp")
    }
    with pytest.raises(UnsupportedModelError, match="do not add up"):
        find_sites(hf, writers=["self_attn"])
    with pytest.raises(UnsupportedModelError, match="do not add up"):
        find_sites(hf, writers=["self_attn", "mlp", "input_layernorm"])
    with pytest.raises(
        UnsupportedModelError, match=r"No block has the writers 'attention'.*self_attn.*mlp"
    ):
        find_sites(hf, writers=["attention"])
    with pytest.raises(
        UnsupportedModelError, match=r"no list of modules 'model\.nothing'.*model\.layers \(5 x"
    ):
        find_sites(hf, blocks="model.nothing")


def test_an_override_may_name_writers_that_only_some_blocks_have() -> None:
    hf = tiny_models.network("jamba")
    assert find_sites(hf, writers=["mamba", "self_attn", "feed_forward"]) == find_sites(hf)


def test_ten_or_more_layers_are_not_confused() -> None:
    sites = find_sites(tiny_models.network(num_hidden_layers=12))
    assert sites.n_layers == 12
    assert all(name.startswith("model.layers.1.") for name in sites.writers[1])


def test_sites_say_what_was_found() -> None:
    shown = str(find_sites(tiny_models.network("granite")))
    assert shown.startswith("5 blocks model.layers.0 … model.layers.4, d_model 32")
    assert "0.22 x self_attn + 0.22 x mlp" in shown


def test_a_model_that_hides_its_embedding_is_refused_with_a_reason() -> None:
    """An image-to-formula model: transformers itself does not know where its embedding is."""
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(AutoConfig.for_model("pp_formulanet"))
    with pytest.raises(
        UnsupportedModelError, match="PPFormulaNetForConditionalGeneration has no token embedding"
    ):
        find_sites(model)
