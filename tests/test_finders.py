"""Finders that look at single activations: identities, planted data, a plain loop, tiny runs."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import plain
import pytest
import torch
from conftest import make_prompts
from saved import save_model, small_config, times, write_prompts
from sklearn.covariance import LedoitWolf
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from refusal import ChatModel, Direction, PromptPair, RunConfig, make_config, run
from refusal.config.run_config import RunOptions
from refusal.core.errors import ConfigError, TooFewPromptsError
from refusal.core.stats import auroc
from refusal.directions import METHODS, packages
from refusal.directions.difference_in_means import DifferenceInMeans
from refusal.directions.from_activations import FromActivations, read_activations
from refusal.directions.kmeans import separation
from refusal.directions.lda import discriminant
from refusal.runs.files import read_vectors

PAIR = PromptPair(make_prompts("harmful", 12), make_prompts("harmless", 9, offset=50))
FINDERS = ("lda", "probe", "pca", "kmeans", "harmfulness")
CONFIG = make_config(n_train=9, filter=False, centroids=2, prune_layers=0.6)
ELIGIBLE = 2


def finder(name: str) -> FromActivations:
    made = METHODS[name]()
    assert isinstance(made, FromActivations)
    return made


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).double()


def cosine(a: Tensor, b: Tensor) -> float:
    return float(torch.cosine_similarity(a.double(), b.double(), dim=0))


def reads(vector: Tensor, harmful: Tensor, harmless: Tensor) -> float:
    found = auroc((harmful @ vector).tolist(), (harmless @ vector).tolist())
    assert found is not None
    return found


@pytest.mark.parametrize(("n", "d"), [(60, 12), (30, 80)])
def test_lda_is_the_inverse_of_ledoit_and_wolfs_covariance(n: int, d: int) -> None:
    mixing = normal(d, d, seed=3)
    harmful, harmless = normal(n, d, seed=1) @ mixing + 1.0, normal(n - 5, d, seed=2) @ mixing
    centred = torch.cat([harmful - harmful.mean(0), harmless - harmless.mean(0)])
    covariance = LedoitWolf(assume_centered=True).fit(centred.numpy()).covariance_
    expected = np.linalg.inv(covariance) @ (harmful.mean(0) - harmless.mean(0)).numpy()
    (found,) = finder("lda").find(harmful, harmless, CONFIG)
    assert cosine(found, torch.from_numpy(expected)) == pytest.approx(1.0, abs=1e-9)


def test_lda_with_an_identity_for_covariance_is_dim() -> None:
    rows, dim = normal(80, 20, seed=0), normal(20, seed=6)
    rows = torch.cat([half - half.mean(0) for half in rows.split(40)])
    white = torch.linalg.svd(rows, full_matrices=False).U * 80**0.5
    torch.testing.assert_close(white.mT @ white / 80, torch.eye(20).double())
    for share in (0.0, 0.3, 1.0):
        assert cosine(discriminant(dim, white, share), dim) == pytest.approx(1.0, abs=1e-9)
    (found,) = finder("lda").find(white[:40] + dim, white[40:], CONFIG)
    assert cosine(found, dim) == pytest.approx(1.0, abs=1e-9)


def test_kmeans_with_one_cluster_is_dim() -> None:
    harmful, harmless = normal(30, 7, seed=1) + 2.0, normal(20, 7, seed=2)
    one = make_config(method="kmeans", centroids=1)
    (found,) = finder("kmeans").find(harmful, harmless, one)
    torch.testing.assert_close(found, harmful.mean(0) - harmless.mean(0))


def test_kmeans_finds_planted_clusters_the_furthest_apart_first() -> None:
    centres = torch.eye(4).double()[:3] * torch.tensor([9.0, 6.0, 12.0])[:, None]
    harmful = torch.cat([centre + normal(20, 4, seed=i) / 5 for i, centre in enumerate(centres)])
    harmless = normal(30, 4, seed=9) / 5
    found = finder("kmeans").find(harmful, harmless, make_config(centroids=3))
    matched = torch.cdist(found, centres - harmless.mean(0)).argmin(1)
    assert sorted(matched.tolist()) == [0, 1, 2]
    assert torch.cdist(found, centres).min(1).values.max() < 0.3
    apart = separation(found, harmful, harmless)
    assert all(a >= b for a, b in pairwise(apart.tolist()))
    few = finder("kmeans").find(harmful[:1].repeat(9, 1), harmless, make_config(centroids=3))
    assert len(few) == 1


def test_the_probe_is_a_logistic_regression_of_all_coordinates() -> None:
    """The chosen penalty is not known here, so each of them is tried: one must give the weights."""
    harmful, harmless = normal(40, 90, seed=1), normal(35, 90, seed=2)
    harmful[:, 0] += 3.0
    (found,) = finder("probe").find(harmful, harmless, CONFIG)
    rows, labels = torch.cat([harmful, harmless]), np.arange(75) < 40
    scaled = rows - rows.mean(0)
    scaled = scaled / scaled.square().sum(1).mean().sqrt()
    likeness = []
    for strength in 10.0 ** np.arange(-1, 6):
        fitted = LogisticRegression(C=strength, tol=1e-8, max_iter=5000).fit(scaled, labels)
        likeness.append(cosine(found, torch.from_numpy(fitted.coef_[0])))
    assert max(likeness) == pytest.approx(1.0, abs=1e-4)
    assert min(likeness) < 0.99


def test_the_probe_separates_what_can_be_separated() -> None:
    axis = normal(30, seed=4)
    axis /= axis.norm()

    def rows(n: int, side: float, seed: int) -> Tensor:
        across = normal(n, 30, seed=seed)
        return across - (across @ axis)[:, None] * axis + side * 4.0 * axis

    (found,) = finder("probe").find(rows(60, 1, 1), rows(60, -1, 2), CONFIG)
    assert reads(found, rows(50, 1, 3), rows(50, -1, 4)) == 1.0
    assert cosine(found, axis) > 0.97
    with pytest.raises(TooFewPromptsError, match="two prompts of each class"):
        finder("probe").find(rows(1, 1, 1), rows(9, -1, 2), CONFIG)


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_pca_finds_the_axis_of_planted_pairs(sign: float) -> None:
    topics, axis = normal(25, 40, seed=1), normal(40, seed=2)
    axis *= sign / axis.norm()
    lengths = 3.0 + normal(25, seed=3).abs()
    harmful = topics + lengths[:, None] * axis + normal(25, 40, seed=4) / 20
    (found,) = finder("pca").find(harmful, topics, CONFIG)
    assert cosine(found, axis) > 0.999
    (short,) = finder("pca").find(harmful, topics[:20], CONFIG)
    assert cosine(short, axis) > 0.999


@pytest.mark.parametrize("name", ["lda", "probe", "pca", "kmeans"])
def test_shuffled_labels_read_nothing(name: str) -> None:
    rows = normal(120, 60, seed=1)
    rows[:60, 0] += 4.0
    fresh = normal(400, 60, seed=2)
    fresh[:200, 0] += 4.0
    order = torch.randperm(120, generator=torch.Generator().manual_seed(0))
    values = []
    for i in range(6):
        order = torch.randperm(120, generator=torch.Generator().manual_seed(i))
        vector = finder(name).find(rows[order[:60]], rows[order[60:]], CONFIG)[0]
        values.append(reads(vector, fresh[:200:2], fresh[1:200:2]))  # no classes at all
    assert abs(float(np.mean(values)) - 0.5) < 0.07
    vector = finder(name).find(rows[:60], rows[60:], CONFIG)[0]
    assert reads(vector, fresh[:200], fresh[200:]) > 0.9


def test_lda_reads_best_and_writes_worst() -> None:
    """METHODS section 2 says it of synthetic matrices: the classes differ along one axis (what the
    model writes), which lies largely on axes where prompts differ for other reasons.
    """
    d, n = 200, 128
    mixing = torch.ones(d).double()
    mixing[:5] = 12.0
    truth = torch.zeros(d).double()
    truth[:5] = 1.0
    truth[5:] = normal(d - 5, seed=7) * 0.1
    truth /= truth.norm()

    def rows(shift: float, seed: int) -> Tensor:
        return normal(n, d, seed=seed) * mixing + shift * truth

    harmful, harmless = rows(8.0, 1), rows(0.0, 2)
    fresh = rows(8.0, 3), rows(0.0, 4)
    dim = harmful.mean(0) - harmless.mean(0)
    vectors = {name: finder(name).find(harmful, harmless, CONFIG)[0] for name in ("lda", "probe")}
    found = {name: (reads(v, *fresh), cosine(v, truth)) for name, v in vectors.items()}
    found["dim"] = (reads(dim, *fresh), cosine(dim, truth))
    # held-out AUROC, cosine with the truth; docs/finders.md has these numbers
    expected = {"dim": (0.690, 0.963), "lda": (0.972, 0.362), "probe": (0.988, 0.429)}
    for name, pair in expected.items():
        assert found[name] == pytest.approx(pair, abs=0.01)


def plain_reads(model: ChatModel, texts: list[str]) -> Tensor:
    """Every prompt alone: block inputs at the instruction's last token and after it."""
    blocks = [model.hf.get_submodule(name) for name in model.sites.blocks]
    n = len(model.chat.suffix) + 1
    rows = []
    for ids in model.tokenize(texts):
        stream = plain.block_inputs(model.hf, blocks, ids)[:-1]
        rows.append(torch.stack([x[-n:] for x in stream], dim=1))
    return torch.stack(rows)


def test_activations_are_those_of_a_plain_loop(model: ChatModel) -> None:
    read = read_activations(model, PAIR, None, CONFIG, layers=4)
    harmful = plain_reads(model, [p.text for p in PAIR.harmful[:9]])
    torch.testing.assert_close(read.harmful, harmful[:, :, :4], atol=1e-5, rtol=1e-5)
    assert len(read.harmless) == 9
    assert read.seen == {p.fingerprint for p in (*PAIR.harmful[:9], *PAIR.harmless)}
    last = [
        ids[-len(model.chat.suffix) - 1] for ids in model.tokenize([p.text for p in PAIR.harmful])
    ]
    texts = [p.text for p in PAIR.harmful]
    assert [model.tokenizer.decode([i])[-1] for i in last] == [text[-1] for text in texts]


@pytest.mark.parametrize("name", FINDERS)
def test_a_candidate_has_the_norm_of_dim_at_its_place(model: ChatModel, name: str) -> None:
    found = finder(name).extract(model, PAIR, None, CONFIG)
    dim = DifferenceInMeans().extract(model, PAIR, None, CONFIG)
    n = len(model.chat.suffix)
    if name == "harmfulness":
        harmful, harmless = (
            plain_reads(model, [p.text for p in some[:9]])[:, 0].double().mean(0)
            for some in (PAIR.harmful, PAIR.harmless)
        )
        assert found.positions == (-n - 1,)
        assert found.n_positions == n + 1
        expected = (harmful - harmless)[:ELIGIBLE].float()
        torch.testing.assert_close(found.vectors[0, :ELIGIBLE], expected, atol=1e-4, rtol=1e-4)
        assert found.vectors[1:].isnan().all()
        assert found.at(-n - 1, 1).position == -n - 1
    else:
        assert found.positions == tuple(range(-n, 0))
        norms, expected = (
            found.vectors[:, :ELIGIBLE].norm(dim=-1),
            dim.vectors[:, :ELIGIBLE].norm(dim=-1),
        )
        torch.testing.assert_close(norms, expected, atol=1e-4, rtol=1e-4)
        assert found.harmless_means is not None
        assert dim.harmless_means is not None
        means = (found.harmless_means[:, :ELIGIBLE], dim.harmless_means[:, :ELIGIBLE])
        torch.testing.assert_close(*means, atol=1e-5, rtol=1e-5)
    assert found.vectors[:, ELIGIBLE:].isnan().all()  # not eligible, not read
    assert (found.several is not None) == (name == "kmeans")


def settings(folder: Path, **changes: object) -> RunConfig:
    return small_config(save_model(folder / "model"), write_prompts(folder), **changes)


def test_a_run_with_the_direction_of_harmfulness(tmp_path: Path) -> None:
    config = settings(tmp_path, method="harmfulness", controls=1, n_control=2)
    out = tmp_path / "run"
    result = run(config, out)
    direction = Direction.load(out / "direction.safetensors")
    saved = read_vectors(out)
    assert direction.position == -len(saved.suffix)
    assert saved.suffix[0] == "instruction end"
    assert result.candidates.positions == (direction.position,)
    page = (out / "report.html").read_text("utf-8")
    assert f"−{len(saved.suffix)} instruction end" in page
    assert "one of the method harmfulness" in page
    before = times(out)
    run(config, out)
    assert times(out) == before


def test_a_run_keeps_all_centroids(tmp_path: Path) -> None:
    config = settings(tmp_path, method="kmeans", centroids=3)
    out = tmp_path / "run"
    first = run(config, out, until="select")
    several = first.candidates.several
    assert several is not None
    positions, layers, width = first.candidates.vectors.shape
    assert several.shape == (positions, layers, 3, width)
    place = (first.candidates.positions[-1], 2)
    assert cosine(several[place][0], first.candidates.vectors[place]) == pytest.approx(1, abs=1e-6)
    before = times(out)
    run(config, out, until="select")
    assert times(out) == before
    again = run(settings(tmp_path, method="kmeans", centroids=2), out, until="select")
    assert again.candidates.several is not None
    assert again.candidates.several.shape[2] == 2


def test_a_missing_package_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "sklearn.cluster", None)
    with pytest.raises(ConfigError, match=r"refusal\[finders\]"):
        packages.from_sklearn("cluster")


def test_one_name_is_a_list_of_one() -> None:
    assert RunOptions(method="lda").method == ("lda",)  # type: ignore[arg-type]
    assert make_config(method=("dim", "pca")).found_by == "dim"
    with pytest.raises(ConfigError):
        make_config(method=())
