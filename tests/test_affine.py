"""Affine concept editing: its algebra, where it acts, and its place in a run."""

from pathlib import Path

import pytest
import tiny_models
import torch
from hypothesis import given
from hypothesis import strategies as st
from plain import block_inputs
from saved import save_model, small_config, write_prompts

from refusal import ChatModel, Direction, DirectionError, RunFolderError, run
from refusal.core.storage import write_tensors
from refusal.interventions.affine import Affine, levels
from refusal.interventions.conditions import interventions_for
from refusal.interventions.side_by_side import SideBySide
from refusal.runs.records import read_candidates

WIDTH = tiny_models.WIDTH


def drawn(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def direction_at(layer: int, seed: int = 1, norm: float = 3.0, mean: int | None = 2) -> Direction:
    vector = drawn(seed, WIDTH)
    known = None if mean is None else drawn(mean, WIDTH)
    return Direction(vector / vector.norm(), norm, -1, layer, harmless_mean=known)


@given(st.integers(0, 1000), st.floats(-2, 2), st.floats(0.1, 50))
def test_every_token_gets_the_level_and_keeps_the_rest(
    seed: int, alpha: float, norm: float
) -> None:
    direction, x = direction_at(0, seed, norm), 20 * drawn(seed + 1, 4, 3, WIDTH)
    reference = 5 * drawn(seed + 2, WIDTH)
    out = Affine(direction, reference, alpha)(x)
    unit = direction.vector
    level = float(unit.double() @ reference.double()) + alpha * norm
    torch.testing.assert_close(out @ unit, torch.full((4, 3), level), atol=2e-3, rtol=1e-4)
    rest = x - (x @ unit)[..., None] * unit
    torch.testing.assert_close(out - (out @ unit)[..., None] * unit, rest, atol=2e-3, rtol=1e-4)


def test_the_harmless_mean_stays_and_alpha_one_gives_the_harmful_one() -> None:
    direction, harmless = direction_at(0), 4 * drawn(5, WIDTH)
    harmful = harmless + direction.vector * direction.norm
    torch.testing.assert_close(Affine(direction, harmless)(harmless), harmless)
    torch.testing.assert_close(Affine(direction, harmless)(harmful), harmless)
    torch.testing.assert_close(Affine(direction, harmless, 1.0)(harmless), harmful)
    torch.testing.assert_close(Affine(direction, harmless, 1.0)(harmful), harmful)


def test_it_acts_at_the_input_of_its_block_and_is_float32_inside(model: ChatModel) -> None:
    direction = direction_at(2)
    assert direction.harmless_mean is not None
    edit = Affine(direction, direction.harmless_mean, alpha=0.5)
    blocks = [model.hf.get_submodule(name) for name in model.sites.blocks]
    ids = model.tokenize(["Describe the water cycle."])[0]
    plain = block_inputs(model.hf, blocks, ids)
    with model.apply(edit):
        changed = block_inputs(model.hf, blocks, ids)
    for before, after in zip(plain[:2], changed[:2], strict=True):
        assert torch.equal(before, after)
    torch.testing.assert_close(changed[2], edit(plain[2]))
    assert not torch.allclose(plain[3], changed[3])
    x = (1e3 * drawn(7, 4, WIDTH)).bfloat16()
    assert torch.equal(edit(x), edit(x.float()).bfloat16())


def test_controls_run_side_by_side(model: ChatModel) -> None:
    ids = torch.tensor(model.tokenize(["Describe the water cycle."]) * 2)
    each = [interventions_for("affine", direction_at(1, seed))[0] for seed in (3, 4)]
    side = SideBySide(each)  # type: ignore[arg-type]
    side.rows([1, 0])
    with torch.no_grad(), model.apply(side):
        together = model.hf(input_ids=ids).logits
    for row, one in zip(together, (each[1], each[0]), strict=True):
        with torch.no_grad(), model.apply(one):
            alone = model.hf(input_ids=ids[:1]).logits[0]
        torch.testing.assert_close(row, alone, atol=1e-4, rtol=1e-4)


def test_without_a_harmless_mean_it_is_refused() -> None:
    with pytest.raises(DirectionError, match="no harmless mean beside it"):
        interventions_for("affine", direction_at(1, mean=None))
    with pytest.raises(DirectionError, match="dimensions"):
        Affine(direction_at(1), torch.ones(WIDTH + 1))


def test_a_run_measures_it_with_controls(tmp_path: Path) -> None:
    config = small_config(
        save_model(tmp_path / "model"),
        write_prompts(tmp_path),
        interventions=("affine",),
        controls=1,
        n_control=2,
        drift_tokens=2,
        n_texts=2,
        text_tokens=12,
    )
    result = run(config, tmp_path / "run")
    assert result.selection is not None
    direction = result.selection.direction
    rates = {(m.set, m.condition) for m in result.metrics if m.name == "refusal_rate"}
    for condition in ("affine", "random-1-affine", "shuffled-affine", "matched-affine"):
        assert {("harmful", condition), ("harmless", condition)} <= rates
    assert ("kl_first_token", "affine") in {(m.name, m.condition) for m in result.metrics}
    found = {m.name: m.value for m in result.metrics if m.condition == "affine"}
    harmless, harmful = levels(direction)
    assert found["mean_harmless_component"] == pytest.approx(harmless.value)
    assert found["mean_harmful_component"] == pytest.approx(harmful.value)
    assert harmful.value - harmless.value == pytest.approx(direction.norm)
    assert Direction.load(tmp_path / "run" / "direction.safetensors").harmless_mean is not None


def test_candidates_of_older_versions_have_no_harmless_means(tmp_path: Path) -> None:
    vectors, means = drawn(1, 2, 3, WIDTH), drawn(2, 2, 3, WIDTH)
    file = tmp_path / "candidates.safetensors"
    about = {"seen": "[]", "suffix": "[]"}
    write_tensors(file, {"candidates": vectors}, about)
    assert read_candidates(tmp_path, None, "tiny", 0).at(-1, 1).harmless_mean is None
    write_tensors(file, {"candidates": vectors, "harmless_means": means}, about)
    found = read_candidates(tmp_path, None, "tiny", 0).at(-2, 1).harmless_mean
    assert found is not None
    assert torch.equal(found, means[0, 1])
    means[0, 1, 5] = torch.nan
    for wrong in (means, means[:, :2].clone()):
        write_tensors(file, {"candidates": vectors, "harmless_means": wrong}, about)
        with pytest.raises(RunFolderError, match="harmless_means"):
            read_candidates(tmp_path, None, "tiny", 0)
