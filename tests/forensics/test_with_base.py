"""With a base: every recipe of an edit by projection is flagged, nothing else is, and what is said
of it is what was done.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import weight_edits as edits
from edited import Tiny
from torch import Tensor
from weight_edits import Edit, Place, Tensors, everywhere, projection, then

from refusal.audits.forensics.examine import Examination, compare_weights
from refusal.config.exports import NormRule
from refusal.core.direction import Direction
from refusal.weights.checkpoint_stream import stream_model

FEW = ("llama", "gemma2", "gpt_oss", "qwen3_moe")
MORE = ("gpt2", "mixtral", "falcon-new", "mamba2", "jamba", "zamba2", "qwen3_5", "llama4", "lfm2")


@pytest.fixture(scope="module", params=FEW)
def tiny(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    return Tiny(tmp_path_factory.mktemp("tiny"), request.param)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    return Tiny(tmp_path_factory.mktemp("tiny"), "llama")


def examine(tiny: Tiny, edit: Edit) -> Examination:
    return compare_weights(str(tiny.candidate(edit)), str(tiny.folder), writers=tiny.writers)


def in_bfloat16(tensors: Any, places: Any) -> Tensors:
    return {name: t.to(torch.bfloat16) for name, t in tensors.items()}


def projections(tiny: Tiny) -> Iterator[tuple[str, Edit, float]]:
    """By name: the edit and its strength."""
    u = tiny.u
    for a in (0.3, 1.0, 1.5, 2.0, -1.0):
        yield f"{a}", projection(u, everywhere(a)), a
    for keep in ("column", "row"):
        for a in (0.5, 1.0):
            yield f"{keep} {a}", projection(u, everywhere(a), keep), a
    yield "bfloat16", then(projection(u, everywhere(0.5)), in_bfloat16), 0.5
    yield "tuned after", then(projection(u, everywhere(0.5)), tiny.trained(1e-3)), 0.5
    yield "tuned before", then(tiny.trained(1e-3), projection(u, everywhere(1.0))), 1.0


def test_every_edit_by_projection_is_flagged_in_every_layer(tiny: Tiny) -> None:
    for name, edit, strength in projections(tiny):
        found = examine(tiny, edit)
        assert found.record.verdict == "edited by projection", name
        assert len(found.directions) == 1, name
        assert abs(float(found.directions[0].float() @ tiny.u)) > 0.99, name
        for layer in found.record.layers:
            assert layer.holds, (name, layer)
            assert layer.along[0].strength == pytest.approx(strength, abs=0.05), (name, layer)
            assert layer.cosines[0] > 0.99, (name, layer)


@pytest.mark.parametrize("keep", ["", "row"])
def test_components_edited_along_directions_of_their_own(llama: Tiny, keep: str) -> None:
    """As Tema_Q exports: attention and MLP of a layer each along its own."""

    def only(component: str, strength: float) -> Callable[[Place], float]:
        return lambda place: strength if place.component == component else 0.0

    attention = projection(llama.u, only("attention", 0.7), keep)
    found = examine(llama, then(attention, projection(llama.v, only("MLP", 0.6), keep)))
    blocks = [one for one in found.layers if one.layer.layer is not None]
    n = len({one.layer.layer for one in blocks})
    assert len(blocks) == 2 * n
    for one in blocks:
        assert one.directions is not None
        (part,) = one.layer.parts
        meant = {"attention": (llama.u, 0.7), "MLP": (llama.v, 0.6)}[part.component]
        assert abs(float(one.directions[:, 0].float() @ meant[0])) > 0.99
        assert part.along[0].strength == pytest.approx(meant[1], abs=0.05)
    assert any("for each component of a layer" in line for line in found.record.recipe)
    assert found.record.recipe[0] == f"All {n} blocks are edited."


def others(tiny: Tiny) -> Iterator[tuple[str, Edit]]:
    """What is no edit by projection."""
    for rank in (1, 4, 16):
        yield f"lora {rank}", edits.lora(rank, 0.1, rank)
    yield "a large lora", edits.lora(1, 1.0, 9)
    yield "decay", edits.decay(0.1)
    yield "lora and decay", then(edits.lora(1, 0.1, 3), edits.decay(0.1))
    yield "noise", edits.noise(0.05, 1)
    yield "merge", edits.merged(edits.noise(0.5, 2)(tiny.tensors, tiny.places), 0.5)
    for bits in (8, 4):
        yield f"{bits} bits", edits.quantised(bits)
    yield "tuned", tiny.trained(1e-3)
    yield "tuned hard", tiny.trained(1e-2, 8, 0.1)


def test_nothing_else_is(tiny: Tiny) -> None:
    for name, edit in others(tiny):
        found = examine(tiny, edit)
        assert found.record.verdict == "changed, not by projection", name
        assert not [layer for layer in found.record.layers if layer.holds], name
        assert found.record.recipe == ()
        assert len(found.directions) == 0


@pytest.mark.parametrize("family", MORE)
def test_other_families(family: str, tmp_path: Path) -> None:
    tiny = Tiny(tmp_path, family)
    assert examine(tiny, edits.lora(2, 0.1, 1)).record.edited == ()
    found = examine(tiny, projection(tiny.u, everywhere(0.7)))
    assert len(found.record.edited) == len(found.record.layers)
    assert abs(float(found.directions[0].float() @ tiny.u)) > 0.99
    strengths = [layer.along[0].strength for layer in found.record.layers]
    assert strengths == pytest.approx([0.7] * len(strengths), abs=0.01)


@pytest.mark.parametrize("family", ["llama", "gemma2", "olmo2", "mixtral"])
@pytest.mark.parametrize("norm", [None, "column"])
def test_the_projects_own_export(family: str, norm: NormRule | None, tmp_path: Path) -> None:
    """Behind a post-norm the export reads and writes with the norm's gain: it is a projection in
    the rows scaled by it.
    """
    tiny = Tiny(tmp_path, family, shard="40KB")
    direction = Direction(tiny.u, 1.0, -1, 2)
    stream_model(tiny.folder, direction, tiny.out, norm=norm)
    record = compare_weights(str(tiny.out), str(tiny.folder)).record
    assert len(record.edited) == len(record.layers)
    for layer in record.layers:
        assert layer.along[0].strength == pytest.approx(1, abs=0.05)
        assert layer.cosines[0] > 0.99
        behind = family in ("gemma2", "olmo2") and layer.layer is not None
        assert (layer.frame == "behind its norm") == behind
        assert layer.kept == norm
    tied = family == "gemma2"
    assert any("tied to the embedding" in note for note in record.notes) == tied


def test_the_depth_kernel_is_given_back_by_component(llama: Tiny) -> None:
    tent = edits.tent(1.2, 0.3, 2, 2)

    def strength(place: Place) -> float:
        return {"attention": 1.0, "MLP": 0.5}.get(place.component, 0.0) * tent(place)

    record = examine(llama, projection(llama.u, strength)).record
    assert not record.layers[0].holds
    for layer in record.layers[1:]:
        assert layer.layer is not None
        whole = tent(Place("", 0, layer.layer, ""))
        by_name = {part.component: part.along[0].strength for part in layer.parts}
        assert by_name["attention"] == pytest.approx(whole, abs=1e-3)
        assert by_name["MLP"] == pytest.approx(whole / 2, abs=1e-3)
        assert layer.rank == 1
    said = " ".join(record.recipe)
    assert "attention: a tent, 0.30 to 1.20" in said
    assert "not: embedding" in said
    window = projection(llama.u, lambda p: 1.0 if p.layer in (1, 2) else 0.0)
    assert "Blocks 1 to 2 of 5" in " ".join(examine(llama, window).record.recipe)


def test_one_component_alone_is_enough(tiny: Tiny) -> None:
    """Pooled with an untouched component of the same size R^2 would be no more than one half."""
    for component in {place.component for place in tiny.places if place.layer == 0}:
        edit = projection(tiny.u, lambda p, c=component: 1.0 if p.component == c else 0.0)  # type: ignore[misc]
        record = examine(tiny, edit).record
        for layer in record.layers:
            parts = {part.component: part for part in layer.parts}
            assert layer.holds == (component in parts and parts[component].changed > 0)
            if layer.holds:
                assert layer.along[0].strength == pytest.approx(1, abs=1e-3)


def test_which_norms_were_kept(tiny: Tiny) -> None:
    for keep in ("column", "row", ""):
        found = examine(tiny, projection(tiny.u, everywhere(1.0), keep)).record
        assert {layer.kept for layer in found.layers} == {keep or None}


def span(found: Tensor, *meant: Tensor) -> float:
    """How much of each meant direction is in the span of those found, at the least."""
    return min(float((found.float() @ one).norm()) for one in meant)


@pytest.mark.parametrize("strengths", [(1.0, 1.0), (1.0, 0.6), (1.0, 0.3)])
def test_two_directions(tiny: Tiny, strengths: tuple[float, float]) -> None:
    u, v = tiny.u, tiny.v
    found = examine(tiny, edits.two_directions(u, v, *strengths))
    assert found.record.directions == 2
    assert span(found.directions, u, v) > 0.99
    for layer in found.record.layers:
        along = sorted((one.strength for one in layer.along if one.holds), reverse=True)
        assert along == pytest.approx(sorted(strengths, reverse=True), abs=0.05)
        assert layer.rank == 2


def test_a_conversion_is_no_change(llama: Tiny) -> None:
    record = examine(llama, in_bfloat16).record
    assert record.verdict == "unchanged"
    assert record.tensors_changed == 0
    assert all(layer.changed == 0 for layer in record.layers)


def test_a_resized_vocabulary_is_told_and_compared_as_far_as_it_goes(llama: Tiny) -> None:
    def larger(tensors: Any, places: Any) -> Tensors:
        new = dict(tensors)
        for name in ("model.embed_tokens.weight", "lm_head.weight"):
            new[name] = torch.cat([tensors[name], torch.zeros(8, llama.width)])
        return new

    record = examine(llama, larger).record
    assert record.verdict == "changed, not by projection"
    assert any("model.embed_tokens.weight is (280, 32)" in note for note in record.notes)
    both = examine(llama, then(projection(llama.u, everywhere(1.0)), larger)).record
    assert len(both.edited) == 6


def test_what_the_base_lacks_is_a_change(llama: Tiny) -> None:
    def steered(tensors: Any, places: Any) -> Tensors:
        return {**tensors, "model.layers.1.steering.bias": torch.ones(llama.width)}

    record = examine(llama, steered).record
    assert (record.verdict, record.tensors_changed) == ("changed, not by projection", 1)
    assert record.notes == ("Only the candidate has model.layers.1.steering.bias.",)


def test_a_base_that_is_edited_itself_is_told(llama: Tiny) -> None:
    edited = llama.candidate(projection(llama.u, everywhere(1.0)), "edited")
    record = compare_weights(str(llama.folder), str(edited)).record
    assert any("the base is edited itself" in note for note in record.notes)
    assert record.verdict == "changed, not by projection"


def test_the_same_answer_for_any_block_size(llama: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    edit = projection(llama.u, everywhere(0.7))
    whole = examine(llama, edit).record
    monkeypatch.setattr("refusal.audits.forensics.blocks.CHUNK", 32 * 5)
    parts = examine(llama, edit).record
    for one, other in zip(whole.layers, parts.layers, strict=True):
        assert one.along[0].strength == pytest.approx(other.along[0].strength, abs=1e-5)
        assert one.along[0].random == pytest.approx(other.along[0].random, rel=1e-3)
