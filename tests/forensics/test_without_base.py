"""Without a base: exact projections stand at the rounding floor, and nothing else does."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import weight_edits as edits
from edited import Tiny
from weight_edits import Edit, Tensors, everywhere, projection, then

from refusal.audits.forensics.alone import examine_weights
from refusal.audits.forensics.floor import mantissa_bits
from refusal.audits.forensics.grid import on_grid
from refusal.audits.forensics.records import Forensics
from refusal.core.direction import Direction
from refusal.weights.checkpoint_stream import stream_model

FAMILIES = ("llama", "gemma2", "gpt2", "mixtral", "falcon-new")


@pytest.fixture(scope="module", params=FAMILIES)
def tiny(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    return Tiny(tmp_path_factory.mktemp("tiny"), request.param, dtype=torch.bfloat16)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    return Tiny(tmp_path_factory.mktemp("tiny"), "llama", dtype=torch.bfloat16)


def examine(tiny: Tiny, edit: Edit) -> tuple[Forensics, float]:
    """The record, and how much of the direction is in those found."""
    record, directions = examine_weights(str(tiny.candidate(edit)))
    return record, float((directions.float() @ tiny.u).norm()) if len(directions) else 0.0


def untouched(tensors: Any, places: Any) -> Tensors:
    return dict(tensors)


def stored(dtype: torch.dtype) -> Edit:
    return lambda tensors, places: {name: t.to(dtype) for name, t in tensors.items()}


def test_an_exact_projection_stands_at_the_floor_of_its_dtype(tiny: Tiny) -> None:
    whole = projection(tiny.u, everywhere(1.0))
    wide = stored(torch.float32)
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        record, cosine = examine(tiny, then(wide, whole, stored(dtype)))
        assert record.verdict == "edited by projection"
        assert cosine > 0.9999
        assert all(floor.found for floor in record.floors)
        assert max(floor.ratio or 0 for floor in record.floors) < 5
        assert min(floor.gap or 0 for floor in record.floors) > 100
    # Stored in float32, rounded to bfloat16 before.
    record, _ = examine(tiny, then(wide, whole, stored(torch.bfloat16), wide))
    assert all(floor.found for floor in record.floors)
    assert record.agreement is not None
    assert record.agreement > 0.999


def invisible(tiny: Tiny) -> Iterator[tuple[str, Edit]]:
    """Clean weights, and edits that cannot be seen without a base."""
    yield "clean", untouched
    yield "half", projection(tiny.u, everywhere(0.5))
    yield "reflection", projection(tiny.u, everywhere(2.0))
    yield "decay", edits.decay(0.3)
    yield "lora", edits.lora(4, 0.1, 1)
    yield "8 bits", edits.quantised(8)
    yield "noise", then(projection(tiny.u, everywhere(1.0)), edits.noise(0.05, 1))


def test_what_is_not_exact_is_not_found_and_that_is_said(tiny: Tiny) -> None:
    for name, edit in invisible(tiny):
        record, _ = examine(tiny, edit)
        assert record.verdict == "no exact projection found", name
        assert min(floor.ratio or 0 for floor in record.floors) > 300, name
        assert "CANNOT be seen" in record.cannot[0]


@pytest.mark.parametrize("bits", [4, 6])
def test_weights_that_went_through_few_bits_are_refused(tiny: Tiny, bits: int) -> None:
    hidden = then(projection(tiny.u, everywhere(1.0)), edits.quantised(bits))
    record, _ = examine(tiny, hidden)
    assert record.verdict == "not tested"
    assert "4 to 6 bits" in record.notes[0]
    assert all(floor.ratio is not None for floor in record.floors if "bits" in floor.why)
    assert not any(floor.found for floor in record.floors)
    after = then(edits.quantised(bits), projection(tiny.u, everywhere(1.0)))
    assert examine(tiny, after)[0].verdict == "edited by projection"


def test_a_grid_is_told_from_other_weights() -> None:
    random = torch.Generator().manual_seed(0)
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        weight = torch.randn(64, 96, generator=random).to(dtype)
        assert not on_grid(weight)
        for bits, grid in ((3, True), (4, True), (5, True), (6, True), (8, False)):
            read = edits.quantised(bits)({"w": weight}, ())["w"]
            assert on_grid(read) == grid, (dtype, bits)
        shifted = (weight.float() * 4).round() / 4 + 0.37  # a grid with an offset
        assert on_grid(shifted.to(dtype))


def test_bits_that_are_used_are_counted() -> None:
    weight = torch.randn(50, 60)
    assert mantissa_bits(weight) == 23
    assert mantissa_bits(weight.to(torch.bfloat16).float()) == 7
    assert mantissa_bits(weight.to(torch.float16).float()) == 10
    assert mantissa_bits(weight.to(torch.bfloat16)) == 7


def test_a_window_and_two_directions(llama: Tiny) -> None:
    window = projection(llama.u, lambda place: 1.0 if place.layer in (1, 2) else 0.0)
    record, cosine = examine(llama, window)
    assert [floor.layers for floor in record.floors if floor.found] == [(1,), (2,)]
    assert cosine > 0.999
    assert record.recipe[0] == "Exact projection in 2 of 5 blocks; not in the embeddings."
    record, directions = examine_weights(
        str(llama.candidate(edits.two_directions(llama.u, llama.v, 1.0, 1.0)))
    )
    assert record.directions == 2
    assert min(float((directions.float() @ x).norm()) for x in (llama.u, llama.v)) > 0.999


def test_a_dead_channel_is_no_projection(llama: Tiny) -> None:
    def dead(tensors: Any, places: Any) -> Tensors:
        def change(w: torch.Tensor, place: Any) -> torch.Tensor:
            new = w.clone()
            new[7] = 0.0
            return new

        return edits.each(tensors, places, change)

    assert examine(llama, dead)[0].verdict == "no exact projection found"


def test_layers_with_too_few_inputs_are_pooled(tmp_path: Path) -> None:
    """In one layer there are 32 inputs for 32 dimensions: only two layers together are enough."""
    tiny = Tiny(tmp_path, "llama", dtype=torch.bfloat16, intermediate_size=16)
    record, cosine = examine(tiny, projection(tiny.u, everywhere(1.0)))
    found = [floor.layers for floor in record.floors if floor.found]
    assert found == [(None,), (0, 1), (2, 3)]
    assert cosine > 0.999
    assert not any(floor.found for floor in examine(tiny, untouched)[0].floors)


@pytest.mark.parametrize("family", ["gemma2", "qwen3_moe"])
def test_the_projects_own_export(family: str, tmp_path: Path) -> None:
    tiny = Tiny(tmp_path, family, dtype=torch.bfloat16)
    stream_model(tiny.folder, Direction(tiny.u, 1.0, -1, 2), tiny.out)
    record, directions = examine_weights(str(tiny.out))
    tested = [floor for floor in record.floors if floor.tested]
    assert all(floor.found for floor in tested)
    assert len(tested) >= 5
    assert float((directions.float() @ tiny.u).norm()) > 0.999
