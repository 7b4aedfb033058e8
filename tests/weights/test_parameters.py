"""Which parameters write to the stream is found by measurement, in every family; a wrong list is
caught.
"""

import re
from dataclasses import replace
from typing import Any

import pytest
import shrunk
import tiny_models
import torch
from torch import Tensor, nn

from refusal import (
    QuantisedModelError,
    StreamParameter,
    UnsupportedModelError,
    find_parameters,
    find_sites,
)
from refusal.weights.parameters import verify_parameters

FAMILIES = [*tiny_models.FAMILIES, *tiny_models.OTHERS]


def kinds(found: tuple[StreamParameter, ...]) -> set[tuple[str, int]]:
    """Names without their block, and axes."""
    return {(re.sub(r"^.*?\.\d+\.", "", p.name), p.axis) for p in found}


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_complete_and_left_untouched(family: str) -> None:
    hf = tiny_models.network(family)
    before = {name: p.detach().clone() for name, p in hf.named_parameters()}
    sites = find_sites(hf)
    found = find_parameters(hf, sites)
    assert verify_parameters(hf, sites, found) < 1e-5
    assert len({p.name for p in found}) == len(found)
    for name, p in hf.named_parameters():
        assert torch.equal(p, before[name])
    shapes = {name: p.shape for name, p in before.items()}
    assert all(shapes[p.name][p.axis] == sites.d_model for p in found)


@pytest.mark.parametrize("family", FAMILIES)
def test_each_parameter_is_needed(family: str) -> None:
    """Without any one of them the check fails: the list holds nothing idle (random weights, so
    nothing is zero).
    """
    hf = tiny_models.network(family)
    sites = find_sites(hf)
    found = find_parameters(hf, sites)
    for left_out in [
        p for p in found if not re.search(r"\.[1-9]\d*\.", p.name)
    ]:  # embeddings and block 0
        with pytest.raises(UnsupportedModelError):
            verify_parameters(hf, sites, [p for p in found if p != left_out])


def test_known_lists() -> None:
    def found(family: str, **changes: Any) -> set[tuple[str, int]]:
        hf = tiny_models.network(family, **changes)
        return kinds(find_parameters(hf, find_sites(hf)))

    assert found("llama") == {
        ("model.embed_tokens.weight", 1),
        ("self_attn.o_proj.weight", 0),
        ("self_attn.o_proj.bias", 0),
        ("mlp.down_proj.weight", 0),
        ("mlp.down_proj.bias", 0),
    }
    # All projections square: the axis is the one that the stream is on, and queries are not
    # writers.
    assert found("qwen2", intermediate_size=tiny_models.WIDTH, num_key_value_heads=4) == {
        ("model.embed_tokens.weight", 1),
        ("self_attn.o_proj.weight", 0),
        ("mlp.down_proj.weight", 0),
    }


def test_a_zero_bias_counts() -> None:
    hf = tiny_models.network("llama")
    with torch.no_grad():
        hf.get_parameter("model.layers.0.mlp.down_proj.bias").zero_()
    assert "model.layers.0.mlp.down_proj.bias" in {
        p.name for p in find_parameters(hf, find_sites(hf))
    }


@pytest.mark.parametrize(
    "left_out", ["model.layers.2.mlp.down_proj.bias", "model.layers.3.self_attn.o_proj.weight"]
)
def test_one_left_out_is_caught_by_its_likes(left_out: str) -> None:
    hf = tiny_models.network("llama")
    sites = find_sites(hf)
    found = [p for p in find_parameters(hf, sites) if p.name != left_out]
    with pytest.raises(UnsupportedModelError, match=rf"left out, {re.escape(left_out)} first"):
        verify_parameters(hf, sites, found)


def test_all_biases_left_out_is_caught_by_measurement() -> None:
    hf = tiny_models.network("llama")
    sites = find_sites(hf)
    found = [p for p in find_parameters(hf, sites) if not p.name.endswith("bias")]
    with pytest.raises(UnsupportedModelError, match=r"still in model\.layers\.0\.self_attn"):
        verify_parameters(hf, sites, found)


def test_one_expert_left_out_is_caught() -> None:
    """Experts as a list of modules, of which the probe may miss some; and a fused tensor edited in
    part.
    """
    hf = tiny_models.network("llama", mlp_bias=False)
    for layer in range(tiny_models.LAYERS):
        hf.get_submodule(f"model.layers.{layer}").mlp = _Experts()
    sites = find_sites(hf)
    found = find_parameters(hf, sites)
    experts = [p for p in found if ".experts." in p.name]
    assert len(experts) == tiny_models.LAYERS * 4
    for expert in experts[4:8]:
        with pytest.raises(
            UnsupportedModelError, match=rf"left out, {re.escape(expert.name)} first"
        ):
            verify_parameters(hf, sites, [p for p in found if p != expert])


class _Experts(nn.Module):
    """One expert a token, chosen by a router as wide as the stream."""

    def __init__(self) -> None:
        super().__init__()
        random = torch.Generator().manual_seed(0)
        self.router = nn.Linear(tiny_models.WIDTH, 4, bias=False)
        self.experts = nn.ModuleList(
            nn.Linear(tiny_models.WIDTH, tiny_models.WIDTH, bias=False) for _ in range(4)
        )
        for p in self.parameters():
            p.data = torch.randn(p.shape, generator=random)

    def forward(self, x: Tensor) -> Tensor:
        choice = self.router(x).argmax(-1)
        out = torch.zeros_like(x)
        for i, expert in enumerate(self.experts):
            out[choice == i] = expert(x[choice == i])
        return out


def test_a_wrong_axis_is_caught() -> None:
    hf = tiny_models.network("qwen2", intermediate_size=tiny_models.WIDTH)
    sites = find_sites(hf)
    found = [replace(p, axis=1) if "down_proj" in p.name else p for p in find_parameters(hf, sites)]
    with pytest.raises(UnsupportedModelError, match="still in"):
        verify_parameters(hf, sites, found)


def test_a_writer_that_no_weight_explains_is_refused() -> None:
    class Shifted(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.inner(x)
            return out.tanh()

    hf = tiny_models.network("qwen2")
    block = hf.get_submodule("model.layers.2")
    block.mlp = Shifted(block.get_submodule("mlp"))
    with pytest.raises(UnsupportedModelError, match=r"still in model\.layers\.2\.mlp.*use Ablate"):
        find_parameters(hf, find_sites(hf))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_half_precision_finds_the_same(dtype: torch.dtype) -> None:
    for family in ("llama", "gemma2"):
        hf = tiny_models.network(family)
        sites = find_sites(hf)
        expected = find_parameters(hf, sites)
        hf.to(dtype)  # type: ignore[arg-type]
        assert find_parameters(hf, sites) == expected


def test_quantised_weights_are_refused_with_the_way_round() -> None:
    hf = tiny_models.network("qwen2")
    sites = find_sites(hf)
    packed = hf.get_submodule("model.layers.1.mlp.down_proj")
    packed.weight = nn.Parameter(torch.zeros(32, 24, dtype=torch.uint8), requires_grad=False)
    with pytest.raises(QuantisedModelError, match=r"down_proj.*bfloat16.*Ablate"):
        find_parameters(hf, sites)
    hf = tiny_models.network("qwen2")
    hf.config.quantization_config = {"quant_method": "mxfp4"}
    hf.__dict__["is_quantized"] = True  # as a quantiser leaves it
    with pytest.raises(QuantisedModelError, match="mxfp4"):
        find_parameters(hf, sites)


@pytest.mark.parametrize(
    ("family", "parameter", "norm"),
    [
        ("bloom", r"word_embeddings\.weight", r"word_embeddings_layernorm"),
        ("nanochat", r"embed_tokens\.weight", r"norm"),
        ("modernbert-decoder", r"tok_embeddings\.weight", r"norm"),
        ("axk1", r"layers\.1\.mlp\.experts\.down_proj", r"layers\.1\.mlp\.post_mlp_layernorm"),
    ],
)
def test_what_writes_through_a_norm_that_is_no_writer_is_found(
    family: str, parameter: str, norm: str
) -> None:
    """Between the embedding and block 0, or inside the experts."""
    hf = shrunk.tiny(family)
    sites = find_sites(hf)
    found = find_parameters(hf, sites)
    behind = [p for p in found if re.search(parameter, p.name)]
    assert behind
    assert all(p.norm is not None and re.search(norm, p.norm) for p in behind)
    assert verify_parameters(hf, sites, found) < 1e-5
