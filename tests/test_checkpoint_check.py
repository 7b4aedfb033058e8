"""A checkpoint is whole or refused: what each family saves loads, and what it lacks is named."""

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import gguf
import pytest
import saved
import tiny_gguf
import tiny_models
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from refusal import ModelLoadError, NonFiniteError, OutOfMemoryError, find_sites, load

FAMILIES = [*tiny_models.FAMILIES, *tiny_models.OTHERS]


@pytest.mark.parametrize("family", FAMILIES)
def test_what_a_family_saves_is_whole_and_without_one_tensor_is_not(
    family: str, tmp_path: Path
) -> None:
    folder = saved.save_model(tmp_path, "bare", family)
    load(str(folder), dtype="float32")
    file = folder / "model.safetensors"
    tensors = load_file(file)
    lost = sorted(name for name, tensor in tensors.items() if ".2." in name and tensor.dim() > 1)[0]
    save_file(
        {name: tensor for name, tensor in tensors.items() if name != lost}, file, {"format": "pt"}
    )
    with pytest.raises(
        ModelLoadError, match=r"tensors? (missing|of another shape|cannot be put together)"
    ):
        load(str(folder), dtype="float32")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved.save_model(tmp_path_factory.mktemp("model") / "model")


@pytest.fixture
def damaged(source: Path, tmp_path: Path) -> Path:
    """A model that lacks one tensor."""
    folder = Path(shutil.copytree(source, tmp_path / "damaged"))
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.1.self_attn.v_proj.weight"]
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder


@pytest.mark.parametrize(
    "how", [{"device_map": "auto"}, {"device_map": "cpu"}, {"dtype": "bfloat16"}]
)
def test_a_missing_tensor_is_found_however_the_model_is_loaded(
    damaged: Path, how: dict[str, str]
) -> None:
    with pytest.raises(
        ModelLoadError, match=r"1 tensor missing \(model\.layers\.1\.self_attn\.v_proj\.weight\)"
    ):
        load(str(damaged), **how)  # type: ignore[arg-type]


def test_a_head_stored_beside_a_tied_embedding_and_parts_for_images_are_no_fault(
    tmp_path: Path,
) -> None:
    folder = saved.save_model(tmp_path, "bare", "gemma")
    tensors = load_file(folder / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)
    tensors["vision_tower.layers.0.weight"] = torch.ones(4)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    load(str(folder))


def test_an_expert_that_is_missing_in_part_is_named(tmp_path: Path) -> None:
    folder = saved.save_model(tmp_path, "bare", "mixtral")
    tensors = load_file(folder / "model.safetensors")
    lost = next(
        name for name in tensors if "layers.1." in name and name.endswith("experts.2.w1.weight")
    )
    del tensors[lost]
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(
        ModelLoadError, match=r"layers\.1\.mlp\.experts\.gate_up_proj: Sizes of tensors must match"
    ):
        load(str(folder))


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("missing", r"1 tensor missing \(model\.layers\.2\.mlp\.up_proj\.weight\)"),
        (
            "further",
            r"3 tensors without a place in the model \(blk\.5\.ffn_up\.weight, odd\.weight, rope_freqs\.weight\)",
        ),
        ("shape", r"up_proj\.weight \(46, 32\), the model \(48, 32\)"),
    ],
)
def test_a_gguf_file_is_whole_or_refused(
    what: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add = gguf.GGUFWriter.add_tensor

    def changed(self: gguf.GGUFWriter, name: str, tensor: NDArray[Any]) -> None:
        if name != "blk.2.ffn_up.weight":
            add(self, name, tensor)
        elif what == "shape":
            add(self, name, tensor[:-2].copy())
        elif what == "further":
            for other in (name, "blk.5.ffn_up.weight", "odd.weight", "rope_freqs.weight"):
                add(self, other, tensor.copy())

    monkeypatch.setattr(gguf.GGUFWriter, "add_tensor", changed)
    monkeypatch.setenv("REFUSAL_CACHE", str(tmp_path / "cache"))
    tiny_gguf.write(tmp_path / "a.gguf")
    with pytest.raises(ModelLoadError, match=message):
        load(str(tmp_path / "a.gguf"))
    assert not list((tmp_path / "cache" / "models").iterdir())


@pytest.mark.parametrize(
    ("dtype", "mend"), [(torch.float16, "bfloat16 or float32"), (torch.float32, "damaged")]
)
def test_infinity_in_a_pass_names_the_first_module_and_the_dtype_to_try(
    dtype: torch.dtype, mend: str
) -> None:
    hf = tiny_models.network("llama")
    hf.get_submodule("model.layers.3.mlp.down_proj").weight.data.fill_(torch.inf)  # type: ignore[operator]
    hf.to(dtype)  # type: ignore[arg-type]
    with pytest.raises(
        NonFiniteError, match=rf"output of model\.layers\.3\.mlp\.down_proj .*{mend}"
    ):
        find_sites(hf)


def test_a_checkpoint_s_own_code_is_neither_run_nor_asked_about(
    source: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(source, tmp_path / "own"))
    config = folder / "config.json"
    text = config.read_text(encoding="utf-8").replace(
        '"model_type": "llama"', '"model_type": "own-kind"', 1
    )
    config.write_text(
        text.replace("{", '{"auto_map": {"AutoConfig": "own.Config"},', 1), encoding="utf-8"
    )
    (folder / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')", encoding="utf-8")
    command = [sys.executable, "-m", "refusal", "inspect", str(folder)]
    found = subprocess.run(command, input="y\n" * 5, capture_output=True, text=True, timeout=120)
    assert found.returncode == 2
    assert "which is not run" in found.stderr
    assert "y/N" not in found.stdout + found.stderr
    assert not (tmp_path / "ran").exists()


def test_no_room_for_the_weights_is_said_as_that(
    source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: object, **options: object) -> None:
        raise OSError(12, "Cannot allocate memory")

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", full)
    with pytest.raises(OutOfMemoryError, match="ulimit -v"):
        load(str(source))
