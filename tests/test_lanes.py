"""Streams that are scaled, gated or have several lanes: what is found in them, and that ablation and
addition do there what they say, by plain hooks.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import shrunk
import torch
from family_sweep import looked_at
from torch import Tensor
from transformers import PreTrainedModel

from refusal import Ablate, Direction, DirectionError, Sites, UnsupportedModelError, find_sites
from refusal.interventions.ablate_add import AblateEach, Add
from refusal.interventions.affine import Affine
from refusal.interventions.side_by_side import SideBySide
from refusal.model.hooks import hooked
from refusal.model.lanes import Lanes, Layout

LANES = ["deepseek_v4", "gemma3n_text", "qwen4_exp_text"]  # one of each layout
OTHER = ["glm5_next", "hy_v4", "minimax", "rwkv", "zaya"]
IDS = torch.arange(10)[None] * 37 % 200 + 5


@pytest.fixture(scope="module")
def made() -> Callable[[str], tuple[PreTrainedModel, Sites]]:
    kept: dict[str, tuple[PreTrainedModel, Sites]] = {}

    def make(family: str) -> tuple[PreTrainedModel, Sites]:
        if family not in kept:
            hf = shrunk.tiny(family)
            kept[family] = hf, find_sites(hf)
        return kept[family]

    return make


Made = Callable[[str], tuple[PreTrainedModel, Sites]]


def direction(sites: Sites, seed: int = 0, layer: int = 2) -> Direction:
    vector = torch.randn(sites.d_model, generator=torch.Generator().manual_seed(seed))
    return Direction(vector / vector.norm(), 0.5, -1, layer)


@pytest.mark.parametrize("family", [*LANES, *OTHER])
def test_ablation_is_complete_in_every_lane(family: str, made: Made) -> None:
    hf, sites = made(family)
    assert not sites.additive
    assert sites.verify(hf).ok
    unit = direction(sites, seed=5).vector
    with hooked(Ablate(direction(sites, seed=5)).edits(hf, sites)):
        left, _ = looked_at(hf, sites, unit)
    plain, _ = looked_at(hf, sites, unit)
    assert left < 1e-5 < 1e-2 < plain


@pytest.mark.parametrize("family", ["deepseek_v4", "minimax"])
def test_a_writer_that_is_left_out_is_seen(family: str, made: Made) -> None:
    hf, sites = made(family)
    for name in sites.writers[1]:
        writers = tuple(tuple(n for n in block if n != name) for block in sites.writers)
        with pytest.raises(UnsupportedModelError, match=r"Ablation leaves .* input of block 2"):
            replace(sites, writers=writers).verify(hf)


def test_gemma4_has_a_number_a_block_and_reads_its_embedding_beside_the_stream(made: Made) -> None:
    hf, sites = made("gemma4_text")
    scalars = [float(hf.get_buffer(f"{name}.layer_scalar")) for name in sites.blocks]
    assert all(abs(scalar - 1) > 0.01 for scalar in scalars)
    assert [sites.scales[name] for name in sites.blocks] == pytest.approx(scalars, rel=1e-5)
    assert sites.additive
    assert sites.multipliers == {}
    assert sites.embedding_elsewhere
    assert max(sites.verify(hf).errors) < 1e-5
    unit = direction(sites).vector
    with hooked(Ablate(direction(sites)).edits(hf, sites)):
        assert looked_at(hf, sites, unit)[0] < 1e-5


def read_at(hf: PreTrainedModel, name: str) -> Tensor:
    """What a module is given, by a plain hook."""
    seen: list[Tensor] = []

    def look(module: object, args: tuple[Tensor, ...], kwargs: dict[str, Any]) -> None:
        seen.append((args[0] if args else kwargs["hidden_states"]).clone())

    handle = hf.get_submodule(name).register_forward_pre_hook(look, with_kwargs=True)
    with torch.inference_mode():
        hf(input_ids=IDS, use_cache=False)
    handle.remove()
    return seen[0]


@pytest.mark.parametrize("family", LANES)
def test_what_a_block_reads_is_moved_by_what_is_added(family: str, made: Made) -> None:
    """The weights of a mixture depend on the token, so it is the mean that moves by the step."""
    hf, sites = made(family)
    assert sites.lanes is not None
    assert sites.lanes.count == 4
    assert min(sites.lanes.straight) > 0.9
    for layer in range(sites.n_layers):
        step = replace(direction(sites, layer=layer), norm=0.1)
        before = read_at(hf, sites.reading(layer))
        assert before.shape == (1, IDS.shape[1], sites.d_model)
        with hooked(Add(step).edits(hf, sites)):
            moved = read_at(hf, sites.reading(layer)) - before
        along = moved @ step.vector
        assert float(along.mean()) == pytest.approx(0.1, rel=0.25)
        assert float(along.norm() / moved.norm()) > 0.8


def test_addition_where_a_block_does_not_read_is_refused(made: Made) -> None:
    hf, sites = made("deepseek_v4")
    assert sites.lanes is not None
    deaf = replace(sites, lanes=replace(sites.lanes, gains=(0.0,) * sites.n_layers))
    with pytest.raises(DirectionError, match=r"does not read what is added to its 4 lanes"):
        Add(direction(sites)).edits(hf, deaf)


@pytest.mark.parametrize("family", LANES)
def test_interventions_side_by_side_are_each_alone(family: str, made: Made) -> None:
    hf, sites = made(family)
    ones = [direction(sites, seed) for seed in (1, 2)]

    def logits(edits: Any, rows: int) -> Tensor:
        with torch.inference_mode(), hooked(edits):
            out: Tensor = hf(input_ids=IDS.repeat(rows, 1), use_cache=False).logits
        return out

    pairs: list[tuple[Any, list[Any]]] = [
        (AblateEach(tuple(ones)), [Ablate(one) for one in ones]),
        (SideBySide([Add(one) for one in ones]), [Add(one) for one in ones]),
    ]
    level = [Affine(one, torch.full((sites.d_model,), 0.3)) for one in ones]
    pairs.append((SideBySide(level), list(level)))
    for together, alone in pairs:
        if isinstance(together, SideBySide):
            together.rows([0, 1])
        both = logits(together.edits(hf, sites), 2)
        for row, one in zip(both, alone, strict=True):
            torch.testing.assert_close(
                row, logits(one.edits(hf, sites), 1)[0], rtol=1e-3, atol=1e-4
            )


@pytest.mark.parametrize("layout", ["before", "after", "within"])
def test_lanes_are_folded_and_unfolded(layout: Layout) -> None:
    shape = {"before": (3, 2, 5, 8), "after": (2, 5, 3, 8), "within": (2, 5, 24)}[layout]
    x = torch.randn(shape)
    lanes = Lanes(3, 8, layout)
    assert lanes.holds(x)
    assert not lanes.holds(torch.randn(2, 5, 8))
    folded = lanes.fold(x)
    assert folded.shape == (2, 15, 8)
    torch.testing.assert_close(lanes.unfold(folded), x, rtol=0, atol=0)
    row = {"before": x[:, 1], "after": x[1], "within": x[1]}[layout]
    assert set(folded[1].flatten().tolist()) == set(row.flatten().tolist())


def test_lanes_are_known_by_their_shape() -> None:
    assert Lanes.of(torch.Size((1, 8, 32)), 32) is None
    assert Lanes.of(torch.Size((1, 8, 4, 32)), 32) == Lanes(4, 32, "after")
    assert Lanes.of(torch.Size((4, 1, 8, 32)), 32) == Lanes(4, 32, "before")
    assert Lanes.of(torch.Size((1, 8, 128)), 32) == Lanes(4, 32, "within")
    with pytest.raises(ValueError, match="no lanes"):
        Lanes.of(torch.Size((8, 32)), 32)


def test_blocks_that_run_several_times_are_refused() -> None:
    with pytest.raises(UnsupportedModelError, match=r"run 6 times in a pass"):
        find_sites(shrunk.tiny("hrm_text"))


def test_blocks_that_need_earlier_ones_are_known(made: Made) -> None:
    assert not made("hy_v4")[1].stands_alone
    assert not made("hy_v4")[1].resumes
    assert made("deepseek_v4")[1].stands_alone
    assert not made("deepseek_v4")[1].resumes
