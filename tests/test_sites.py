"""Blocks and writers are found by measurement, in every family; what does not add up is refused."""

import pytest
import tiny_models
import torch
from torch import Tensor, nn

from refusal import UnsupportedModelError, find_sites

POST_NORM = {"gemma2", "gemma3_text", "olmo2"}


@pytest.mark.parametrize("family", tiny_models.FAMILIES)
def test_writes_add_up_to_the_stream(family: str) -> None:
    hf = tiny_models.network(family)
    sites = find_sites(hf)
    assert sites.n_layers == tiny_models.LAYERS
    assert sites.blocks[-1] == f"model.layers.{tiny_models.LAYERS - 1}"
    assert max(sites.verify(hf).errors) < 1e-4
    children = {name.rsplit(".", 1)[1] for group in sites.writers for name in group}
    if family in POST_NORM:
        assert children == {"post_attention_layernorm", "post_feedforward_layernorm"}
    else:
        assert children == {"self_attn", "mlp"}


def test_bfloat16_adds_up_too() -> None:
    hf = tiny_models.network("gemma2")
    hf.to(torch.bfloat16)  # type: ignore[arg-type]
    sites = find_sites(hf)
    assert {len(group) for group in sites.writers} == {2}
    assert sites.verify(hf).ok


def test_a_missing_writer_is_caught() -> None:
    hf = tiny_models.network()
    sites = find_sites(hf)
    broken = type(sites)(**{**vars(sites), "writers": (sites.writers[0][:1], *sites.writers[1:])})
    with pytest.raises(UnsupportedModelError, match=r"do not add up.*input of block"):
        broken.verify(hf)


def test_a_block_that_scales_its_stream_is_refused_with_what_was_found() -> None:
    class Scaled(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.mlp, self.inner = inner.mlp, inner

        def forward(self, hidden_states: Tensor, **kwargs: object) -> Tensor:
            out: Tensor = self.inner(hidden_states, **kwargs)
            return out * 1.5

    hf = tiny_models.network()
    layers = hf.get_submodule("model.layers")
    layers[2] = Scaled(layers[2])  # type: ignore[operator,index]
    with pytest.raises(UnsupportedModelError, match=r"block model\.layers\.2 do not add up.*mlp.*--writers"):
        find_sites(hf)


def test_layout_can_be_overridden_and_a_wrong_override_is_refused() -> None:
    hf = tiny_models.network()
    assert find_sites(hf, blocks="model.layers", writers=["self_attn", "mlp"]) == find_sites(hf)
    with pytest.raises(UnsupportedModelError, match="do not add up"):
        find_sites(hf, writers=["self_attn"])
    with pytest.raises(UnsupportedModelError, match="No chain of decoder blocks"):
        find_sites(hf, blocks="model.nothing")


def test_ten_or_more_layers_are_not_confused() -> None:
    sites = find_sites(tiny_models.network(num_hidden_layers=12))
    assert sites.n_layers == 12
    assert all(name.startswith("model.layers.1.") for name in sites.writers[1])
