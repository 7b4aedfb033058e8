"""Directions are read only where they are ones, and used only on the weights that they were found
on.
"""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import saved
import torch
from safetensors.torch import load_file, save_file

from refusal import Direction, DirectionError, load
from refusal import run as run_stages
from refusal.core.records import RefusalTokens
from refusal.core.storage import write_tensors
from refusal.directions.records import Candidates
from refusal.pipeline.export import export_run
from refusal.weights.same_weights import files_hash, files_hash_of

GOOD = {
    "position": "-1",
    "layer": "1",
    "norm": "2.5",
    "qualified": "true",
    "model": "m",
    "seed": "3",
    "seen": '["a"]',
}
UNIT = torch.tensor([0.6, 0.8])


def written(
    path: Path, vector: torch.Tensor = UNIT, changes: dict[str, str | None] | None = None
) -> Path:
    meta = {key: value for key, value in {**GOOD, **(changes or {})}.items() if value is not None}
    write_tensors(path / "d.safetensors", {"direction": vector}, meta)
    return path / "d.safetensors"


def test_a_direction_comes_back_as_it_was_saved(tmp_path: Path) -> None:
    found = Direction.load(written(tmp_path))
    assert (found.position, found.layer, found.norm, found.qualified, found.seed) == (
        -1,
        1,
        2.5,
        True,
        3,
    )
    found.save(tmp_path / "again.safetensors")
    again = Direction.load(tmp_path / "again.safetensors")
    assert torch.equal(again.vector, UNIT)
    assert again.seen == {"a"}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_what_rounding_took_from_a_direction_is_given_back(
    tmp_path: Path, dtype: torch.dtype
) -> None:
    """An ablation with a row of length 1 - e would leave 2 e of what it is to take out."""
    draw = torch.Generator().manual_seed(0)
    rows = torch.linalg.qr(torch.randn(512, 2, generator=draw, dtype=torch.float64))[0].T
    kept = {"direction": rows[0], "basis": rows, "by_layer": torch.stack([rows[1], 0 * rows[0]])}
    off = 1.0 if dtype == torch.bfloat16 else 1.0002  # its own rounding is as far
    rounded = {name: (off * x).to(dtype) for name, x in kept.items()}
    meta = {**GOOD, "row_places": "[[-1, 1], [-1, 2]]"}
    write_tensors(tmp_path / "d.safetensors", rounded, meta)
    found = Direction.load(tmp_path / "d.safetensors")
    assert found.basis is not None
    assert found.by_layer is not None
    basis, vector = found.basis.double(), found.vector.double()
    torch.testing.assert_close(basis @ basis.T, torch.eye(2).double(), atol=1e-6, rtol=0)
    torch.testing.assert_close(
        found.by_layer.double().norm(dim=1), torch.tensor([1.0, 0.0]).double()
    )
    assert torch.equal(vector, basis[0])
    assert float(vector @ rows[0]) > 1 - 1e-4


@pytest.mark.parametrize(
    ("vector", "message"),
    [
        (torch.tensor([0.6, math.nan]), "NaN or infinity"),
        (torch.tensor([math.inf, 0.8]), "NaN or infinity"),
        (torch.tensor([6.0, 8.0]), "has length 10, not 1"),
        (torch.zeros(2), "has length 0, not 1"),
        (torch.tensor([[0.6, 0.8]]), r"is \(1, 2\), not one vector"),
        (torch.tensor(1.0), r"is \(\), not one vector"),
        (torch.zeros(0), r"is \(0,\), not one vector"),
        (torch.tensor([1, 0]), "not one vector of floating-point"),
    ],
)
def test_a_vector_that_is_no_direction_is_refused(
    tmp_path: Path, vector: torch.Tensor, message: str
) -> None:
    with pytest.raises(DirectionError, match=message):
        Direction.load(written(tmp_path, vector))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        *(({"norm": text}, "its norm is") for text in ("nan", "inf", "-1", "0")),
        ({"norm": None}, "norm"),
        ({"layer": "-1"}, "its layer is -1"),
        ({"layer": "1.5"}, "1.5"),
        ({"position": "0"}, "its position is 0"),
        *(({"qualified": text}, "qualified is") for text in ('"no"', "1", "null", "[]")),
        ({"qualified": "True"}, "holds no refusal direction"),
        ({"qualified": "[" * 100_000}, "holds no refusal direction"),
        ({"seed": "true"}, "its seed is True"),
        ({"seen": '"abc"'}, "no list of fingerprints"),
        ({"seen": "[1]"}, "no list of fingerprints"),
    ],
)
def test_what_it_says_of_itself_is_checked(
    tmp_path: Path, changes: dict[str, str | None], message: str
) -> None:
    with pytest.raises(DirectionError, match=message):
        Direction.load(written(tmp_path, changes=changes))


def test_rounding_to_bfloat16_is_no_fault_and_is_mended(tmp_path: Path) -> None:
    unit = torch.nn.functional.normalize(
        torch.randn(64, generator=torch.Generator().manual_seed(0)), dim=0
    )
    found = Direction.load(written(tmp_path, unit.bfloat16())).vector
    rounded = unit.bfloat16().double()
    torch.testing.assert_close(found.double(), rounded / rounded.norm(), atol=1e-7, rtol=0)


# --- the hash of files


def test_the_hash_of_files_is_of_every_tensor_and_of_nothing_else(tmp_path: Path) -> None:
    model = saved.save_model(tmp_path / "model")
    first = files_hash(model)
    tensors = load_file(model / "model.safetensors")
    save_file(
        dict(reversed(tensors.items())),
        model / "model.safetensors",
        {"format": "pt", "by": "another"},
    )
    assert files_hash(model) == first == files_hash_of(str(model), None)
    names = sorted(tensors)
    halves = {"one.safetensors": names[::2], "two.safetensors": names[1::2]}
    (model / "model.safetensors").unlink()
    for file, some in halves.items():
        save_file({name: tensors[name] for name in some}, model / file)
    places = {name: file for file, some in halves.items() for name in some}
    (model / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": places}), encoding="utf-8"
    )
    assert files_hash(model) == first
    for name in (names[0], names[-1]):
        changed = {**tensors, name: tensors[name].clone()}
        changed[name].view(-1)[-1] += 1e-3
        other = tmp_path / f"other-{name}"
        other.mkdir()
        shutil.copy(model / "config.json", other)
        save_file(changed, other / "model.safetensors")
        assert files_hash(other) != first


def test_a_model_without_files_has_no_hash(tmp_path: Path) -> None:
    assert files_hash_of(str(tmp_path), None) is None
    assert files_hash_of("no/such-model", None) is None


# --- who the direction was found on


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model's folder and a run on it as far as the direction."""
    root = tmp_path_factory.mktemp("made")
    config = saved.small_config(saved.save_model(root / "model"), saved.write_prompts(root))
    run_stages(config, root / "run", until="select")
    return root


@pytest.fixture
def root(made: Path, tmp_path: Path) -> Path:
    """A copy in which the run names the model by a path of its own."""
    copy = Path(shutil.copytree(made, tmp_path / "copy"))
    toml = copy / "run" / "run.toml"
    toml.write_text(
        toml.read_text(encoding="utf-8").replace(str(made), str(copy)), encoding="utf-8"
    )
    return copy


def other_weights(model: Path) -> None:
    tensors = load_file(model / "model.safetensors")
    tensors["model.layers.2.mlp.down_proj.weight"][3, 4] += 0.5
    save_file(tensors, model / "model.safetensors", {"format": "pt"})


@pytest.mark.parametrize(
    "how", [{"kind": "model"}, {"kind": "lora"}, {"kind": "model", "stream": True}]
)
def test_other_weights_under_the_same_name_are_refused(root: Path, how: dict[str, Any]) -> None:
    other_weights(root / "model")
    with pytest.raises(DirectionError, match="has other weights than that had"):
        export_run(root / "run", out=root / "out", n_prompts=2, **how)
    assert not (root / "out").exists()


@pytest.mark.parametrize(
    "how", [{"kind": "model"}, {"kind": "lora"}, {"kind": "model", "stream": True}]
)
def test_the_same_weights_elsewhere_are_fine(root: Path, how: dict[str, Any]) -> None:
    (root / "model").rename(root / "moved")
    done = export_run(root / "run", out=root / "out", n_prompts=2, model=str(root / "moved"), **how)
    assert done.report is not None
    assert any((root / "out").iterdir())


def test_a_run_that_does_not_know_its_files_is_not_streamed(root: Path) -> None:
    manifest = root / "run" / "manifest.json"
    found = json.loads(manifest.read_text(encoding="utf-8"))
    manifest.write_text(json.dumps({**found, "files_hash": None}), encoding="utf-8")
    with pytest.raises(
        DirectionError, match=r"Leave --stream out, or have it written down: refusal select"
    ):
        export_run(root / "run", "model", root / "out", stream=True)


def test_a_model_that_was_changed_in_memory_does_not_pass_for_its_files(
    root: Path, tmp_path: Path
) -> None:
    model = load(str(root / "model"), dtype="float32")
    with torch.no_grad():
        model.hf.lm_head.weight[0, 0] += 1
    config = saved.small_config(root / "model", saved.write_prompts(tmp_path))
    run_stages(config, tmp_path / "run", until="select", model=model)
    with pytest.raises(DirectionError, match="does not say"):
        export_run(tmp_path / "run", "model", tmp_path / "out", stream=True)
    with pytest.raises(DirectionError, match="other weights"):
        export_run(tmp_path / "run", "model", tmp_path / "out")


@pytest.mark.parametrize(("layer", "position"), [(99, -1), (1, -99)])
def test_a_place_that_the_model_does_not_have_is_refused(
    root: Path, layer: int, position: int
) -> None:
    found = Direction.load(root / "run" / "direction.safetensors")
    Direction(found.vector, found.norm, position, layer, model=found.model).save(
        root / "run" / "direction.safetensors"
    )
    with pytest.raises(DirectionError, match=f"{layer}|{position}"):
        export_run(root / "run", "model", root / "out", n_prompts=2)


def test_a_candidate_is_a_direction() -> None:
    tokens = RefusalTokens((1,), ("a",), "given")
    made = Candidates(torch.randn(2, 3, 8), tokens, "m").at(-1, 2)
    assert float(made.vector.norm()) == pytest.approx(1, abs=1e-5)
