"""Algebra of the projections, and what they do to a model's stream."""

import math

import pytest
import tiny_models
import torch
from hypothesis import given
from hypothesis import strategies as st
from plain import block_inputs

from refusal import Ablate, Add, ChatModel, ConfigError, Direction, DirectionError
from refusal.core.registry import Registry
from refusal.interventions import conditions
from refusal.interventions.ablate_add import project_out
from refusal.interventions.conditions import Condition, interventions_for
from refusal.interventions.side_by_side import SideBySide


def unit(seed: int, width: int = tiny_models.WIDTH) -> torch.Tensor:
    vector = torch.randn(width, generator=torch.Generator().manual_seed(seed))
    normed: torch.Tensor = vector / vector.norm()
    return normed


@given(st.integers(0, 1000), st.integers(1, 5), st.integers(2, 64))
def test_projection_is_idempotent_and_leaves_the_orthogonal_part(
    seed: int, rows: int, width: int
) -> None:
    r = unit(seed, width)
    x = torch.randn(rows, width, generator=torch.Generator().manual_seed(seed + 1)) * 100
    once = project_out(x, r)
    assert (once @ r).abs().max() < 1e-3
    torch.testing.assert_close(project_out(once, r), once, atol=1e-3, rtol=1e-5)
    orthogonal = x - torch.outer(x.double() @ r.double(), r.double()).float()
    torch.testing.assert_close(once, orthogonal, atol=1e-3, rtol=1e-5)


def test_projection_is_float32_inside_and_not_in_place() -> None:
    r = unit(0)
    x = (torch.randn(4, tiny_models.WIDTH) * 1e3).bfloat16()
    before = x.clone()
    out = project_out(x, r)
    assert torch.equal(x, before)
    assert out.dtype == torch.bfloat16
    assert torch.equal(out, (x.float() - (x.float() @ r)[:, None] * r).bfloat16())


@pytest.mark.parametrize("family", [*tiny_models.FAMILIES, *tiny_models.SLIDING])
def test_ablated_stream_has_no_component_anywhere(family: str) -> None:
    model = tiny_models.chat_model(family)
    r = unit(7)
    blocks = [model.hf.get_submodule(name) for name in model.sites.blocks]
    ids = model.tokenize(["Describe the water cycle."])[0]
    with model.apply(Ablate(Direction(r, 1.0, -1, 2))):
        stream = block_inputs(model.hf, blocks, ids)
    assert len(stream) == tiny_models.LAYERS + 1
    for x in stream:
        assert ((x @ r).abs() < 1e-4 * x.norm(dim=-1)).all()


@pytest.mark.parametrize("layer", range(tiny_models.LAYERS))
def test_addition_changes_nothing_before_its_layer_and_exactly_its_vector_there(layer: int) -> None:
    model = tiny_models.chat_model()
    blocks = [model.hf.get_submodule(name) for name in model.sites.blocks]
    ids = model.tokenize(["Describe the water cycle."])[0]
    direction = Direction(unit(1), 3.0, -1, layer)
    plain = block_inputs(model.hf, blocks, ids)
    with model.apply(Add(direction, alpha=-2.0)):
        # The oracle's hook runs after the intervention's, so it sees the input as the block gets
        # it.
        changed = block_inputs(model.hf, blocks, ids)
    for before, after in zip(plain[:layer], changed[:layer], strict=True):
        assert torch.equal(before, after)
    torch.testing.assert_close(changed[layer], plain[layer] - 6.0 * unit(1), atol=1e-5, rtol=1e-5)
    assert not torch.allclose(plain[layer + 1], changed[layer + 1])


def test_a_direction_of_another_width_or_layer_is_refused(model: ChatModel) -> None:
    with (
        pytest.raises(DirectionError, match="64 dimensions but the model's residual stream 32"),
        model.apply(Ablate(Direction(unit(0, 64), 1.0, -1, 0))),
    ):
        pass
    with (
        pytest.raises(DirectionError, match="Layer 5 does not exist"),
        model.apply(Add(Direction(unit(0), 1.0, -1, 5))),
    ):
        pass


def test_strength_of_ablation_is_exact_at_its_ends(model: ChatModel) -> None:
    direction = Direction(unit(3), 2.0, -1, 1)
    x = torch.randn(3, 5, tiny_models.WIDTH)
    x[0, 0, 0] = -0.0
    assert Ablate(direction, alpha=0.0).edits(model.hf, model.sites) == []
    nothing = Ablate(direction, alpha=0.0)(x)
    assert torch.equal(nothing.view(torch.int32), x.view(torch.int32))
    whole = Ablate(direction)(x)
    assert torch.equal(whole, Ablate(direction, alpha=1.0)(x))
    assert torch.equal(whole, project_out(x, unit(3)))
    half = Ablate(direction, alpha=0.5)(x)
    torch.testing.assert_close(half, (x + whole) / 2)
    torch.testing.assert_close(Ablate(direction, alpha=2.0)(x) - whole, whole - x)


@pytest.mark.parametrize("alphas", [(1.0, 1.0), (0.0, 0.5)])
def test_side_by_side_each_row_is_under_its_own(
    model: ChatModel, alphas: tuple[float, ...]
) -> None:
    ids = torch.tensor(model.tokenize(["Describe the water cycle."]) * 2)
    directions = [Direction(unit(seed), 4.0, -1, 1) for seed in (1, 2)]
    for kind in (Ablate, Add):
        each = [kind(d, alpha) for d, alpha in zip(directions, alphas, strict=True)]
        side = SideBySide(each)
        side.rows([1, 0])
        with torch.no_grad(), model.apply(side):
            together = model.hf(input_ids=ids).logits
        for row, one in zip(together, (each[1], each[0]), strict=True):
            with torch.no_grad(), model.apply(one):
                alone = model.hf(input_ids=ids[:1]).logits[0]
            torch.testing.assert_close(row, alone, atol=1e-4, rtol=1e-4)


def test_a_name_that_is_no_condition_is_refused() -> None:
    direction = Direction(unit(0), 1.0, -1, 0)
    for name in ("conditionally-addition", "random-addition", "random-x-ablation", "ablate", ""):
        with pytest.raises(ConfigError, match="There is no condition"):
            interventions_for(name, direction)
    for name in ("conditional-addition", "unless-ablation@0.5", "random-1-conditional-affine"):
        with pytest.raises(ConfigError, match="--condition-on"):  # and not a plain addition
            interventions_for(name, direction)
        assert Condition.named(name).name == name
    for name in ("baseline", "ablation", "random-12-subtraction", "shuffled-addition"):
        assert Condition.named(name).name == name
    assert Condition.named("random-12-subtraction") == Condition("subtraction", "random-12")


def test_names_are_looked_up_and_near_misses_are_named() -> None:
    table = Registry("shape", {"square": "math:sqrt", "missing": "no.such.module:x"})
    assert table["square"] is math.sqrt
    assert list(table) == ["square", "missing"]
    assert "missing" in table
    assert len(table) == 2
    with pytest.raises(ConfigError, match=r"no shape .sqare.\. Did you mean .square.\? Use one of"):
        table["sqare"]
    with pytest.raises(ConfigError, match=r"no shape .zzz.\. Use one of: square, missing\."):
        table["zzz"]


def test_what_is_measured_is_what_the_table_says() -> None:
    claimed = {"harmful": ("ablation", "subtraction"), "harmless": ("ablation", "addition")}
    assert conditions.actions() == claimed
    assert conditions.actions(["addition", "ablation"]) == claimed  # nothing is measured twice
    assert conditions.stopping() == ("ablation", "subtraction")
    assert conditions.stopping(["affine"]) == ("ablation", "subtraction", "affine")
    assert conditions.actions(["affine"])["harmless"] == ("ablation", "addition", "affine")
    with pytest.raises(ConfigError, match="There is no intervention 'ablatoin'"):
        conditions.actions(["ablatoin"])
