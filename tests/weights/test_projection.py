"""The arithmetic of one weight: what is gone, what stays, in every layout."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from refusal.weights import projection
from refusal.weights.projection import Removal, project_weight

D = 8
LAYOUTS = [
    ((D, 5), 0),
    ((5, D), 1),
    ((D, D), 0),
    ((D, D), 1),
    ((3, D, 5), 1),
    ((3, 5, D), 2),
    ((D, D, D), 1),
    ((D,), 0),
]


def _case(shape: tuple[int, ...], seed: int = 0) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(seed)
    unit = torch.randn(D, generator=random)
    return torch.randn(shape, generator=random), unit / unit.norm()


@pytest.mark.parametrize(("shape", "axis"), LAYOUTS)
def test_the_direction_is_gone_and_nothing_else(shape: tuple[int, ...], axis: int) -> None:
    weight, unit = _case(shape)
    before = weight.clone()
    new = project_weight(weight, axis, unit)
    assert torch.equal(weight, before)  # a new tensor
    assert (new.movedim(axis, -1) @ unit).abs().max() < 1e-6
    removed = (weight - new).movedim(axis, -1)
    assert (removed - (removed @ unit)[..., None] * unit).abs().max() < 1e-6
    assert (project_weight(new, axis, unit) - new).abs().max() < 1e-6


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000), step=st.integers(1, 60))
def test_pieces_make_the_same_whole(seed: int, step: int) -> None:
    weight, unit = _case((3, 7, D), seed)
    expected = weight - torch.einsum("eid,d,f->eif", weight, unit, unit)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(projection, "CHUNK", step)
        assert (project_weight(weight, 2, unit) - expected).abs().max() < 1e-5


def test_half_precision_is_rounded_once() -> None:
    weight, unit = _case((D, 5))
    half = weight.bfloat16()
    exact = half.double() - torch.outer(unit.double(), unit.double() @ half.double())
    assert torch.equal(project_weight(half, 0, unit), exact.bfloat16())


@pytest.mark.parametrize(("shape", "axis"), [case for case in LAYOUTS if len(case[0]) > 1])
def test_preserved_norms_do_not_bring_the_direction_back(shape: tuple[int, ...], axis: int) -> None:
    weight, unit = _case(shape)
    new = project_weight(weight, axis, unit, norm="column")
    assert (new.movedim(axis, -1) @ unit).abs().max() < 1e-5
    assert torch.allclose(new.norm(dim=axis), weight.norm(dim=axis), rtol=1e-5)


def test_what_was_all_direction_is_not_blown_up() -> None:
    weight, unit = _case((D, 5))
    weight[:, 2] = 3 * unit
    assert project_weight(weight, 0, unit, norm="column")[:, 2].norm() < 1e-5


def test_an_oblique_removal_leaves_nothing_to_read() -> None:
    weight, unit = _case((5, D))
    write = torch.randn(D, generator=torch.Generator().manual_seed(1))
    new = project_weight(weight, 1, Removal(unit[None], (write / (unit @ write))[None]))
    assert (new @ unit).abs().max() < 1e-5
