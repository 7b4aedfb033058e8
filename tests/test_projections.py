"""Projections through the layers: those of the plain forward pass, on the prompts that the
selection used.
"""

from pathlib import Path

import numpy as np
import pytest
import saved
import torch
from hypothesis import given
from hypothesis import strategies as st

from refusal import Direction, RunFolderError, load, load_prompts, run
from refusal.evaluations.separation import principal_plane
from refusal.runs.projections import Projections, read_projections


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = tmp_path_factory.mktemp("projections")
    saved.save_model(base / "model")
    return base


def test_they_are_those_of_the_hidden_states(base: Path) -> None:
    """Transformers' own hidden states, one prompt at a time: entry ``l`` is the input of block
    ``l``.
    """
    specs = saved.write_prompts(base)
    config = saved.small_config(base / "model", specs, figures=("none",))
    run(config, base / "run", until="select")
    found = read_projections(base / "run" / "projections.json")
    direction = Direction.load(base / "run" / "direction.safetensors")
    assert (found.position, found.layer) == (direction.position, direction.layer)
    model, prompts = (
        load(str(base / "model"), dtype="float32"),
        load_prompts(specs, seed=config.seed, dedup="exact"),
    )
    places = []
    for label in ("harmful", "harmless"):
        pool = getattr(prompts.val, label)[: config.n_val]
        assert len(found.along[label]) == len(pool) == 8
        for prompt, row in zip(pool, found.along[label], strict=True):
            ids = torch.tensor(model.tokenize([prompt.text]))
            states = model.hf(input_ids=ids, output_hidden_states=True).hidden_states[:-1]
            stream = (
                torch.stack([state[0, direction.position] for state in states]).detach().double()
            )
            np.testing.assert_allclose(
                row, stream @ direction.vector.double(), rtol=1e-3, atol=1e-4
            )
            places.append(stream[direction.layer].numpy())
    # the plane: distances from the mean cannot be longer than in the whole space, and their mean
    # square is what the covariance matrix's two largest eigenvalues say
    values = np.linalg.eigvalsh(np.cov(np.array(places).T, bias=True))[::-1]
    points = np.array([*found.plane["harmful"], *found.plane["harmless"]])
    np.testing.assert_allclose((points**2).mean(0), values[:2], rtol=1e-3)
    np.testing.assert_allclose(found.explained, values[:2] / values.sum(), rtol=1e-3)


@given(st.integers(2, 12), st.integers(2, 6), st.integers(0, 1000))
def test_the_plane_does_not_depend_on_how_the_axes_lie(n: int, width: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(n, width, generator=generator, dtype=torch.float64) * torch.arange(
        width, 0, -1
    )
    towards = torch.randn(width, generator=generator, dtype=torch.float64)
    turn, _ = torch.linalg.qr(torch.randn(width, width, generator=generator, dtype=torch.float64))
    first, explained, cosines = principal_plane(rows, towards)
    again, _, _ = principal_plane(rows @ turn + 3, towards @ turn)
    assert all(cosine >= 0 for cosine in cosines)
    assert 0 <= explained[1] <= explained[0] <= 1 + 1e-9
    gap = (torch.pdist(first) - torch.pdist(again)).abs()
    assert float(gap.max()) < 1e-6 * (1 + float(rows.abs().max()))


def test_auroc_by_layer() -> None:
    along = {"harmful": ((0.0, 3.0), (1.0, 4.0)), "harmless": ((0.0, 1.0), (1.0, 2.0))}
    plane = dict.fromkeys(along, ((0.0, 0.0), (0.0, 0.0)))
    assert Projections(-1, 1, along, plane, (1.0, 0.0), (1.0, 0.0)).auroc == [0.5, 1.0]


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"position": -1}'])
def test_a_damaged_file_says_what_to_do(tmp_path: Path, text: str) -> None:
    (tmp_path / "projections.json").write_text(text, encoding="utf-8")
    with pytest.raises(RunFolderError, match=r"projections.json.*Delete it"):
        read_projections(tmp_path / "projections.json")
