"""The control-vector file, read back with the format's own reader."""

from pathlib import Path

import gguf
import numpy as np
import pytest
import tiny_models
import torch

from refusal import Add, DirectionError, StorageError
from refusal.core.direction import Direction
from refusal.model.hooks import Edit, hooked
from refusal.weights.gguf_control_vector import write_control_vector

VECTOR = torch.nn.functional.normalize(torch.arange(1.0, 33.0), dim=0)


def direction(layer: int) -> Direction:
    return Direction(VECTOR, norm=2.5, position=-1, layer=layer, model="tiny")


def test_the_step_is_added_to_the_output_of_the_block_before(tmp_path: Path) -> None:
    path = tmp_path / "out" / "vector.gguf"
    write_control_vector(direction(4), path, n_layers=6, model_hint="llama")
    reader = gguf.GGUFReader(path)
    (tensor,) = reader.tensors
    assert tensor.name == "direction.3"  # block 4 reads what block 3 writes
    assert tensor.tensor_type == gguf.GGMLQuantizationType.F32
    assert list(tensor.shape) == [32]
    np.testing.assert_array_equal(tensor.data, (VECTOR * 2.5).numpy())
    fields = {name: field.contents() for name, field in reader.fields.items()}
    assert fields["general.architecture"] == "controlvector"
    assert fields["controlvector.model_hint"] == "llama"
    assert fields["controlvector.layer_count"] == 5
    assert [file.name for file in path.parent.iterdir()] == ["vector.gguf"]


def test_adding_as_llama_cpp_does_is_activation_addition(tmp_path: Path) -> None:
    """llama.cpp's rule (the tensor of index k goes onto the output of block k) gives the logits of
    ``Add``.
    """
    model = tiny_models.chat_model("llama")
    write_control_vector(direction(3), tmp_path / "vector.gguf", model.sites.n_layers)
    (tensor,) = gguf.GGUFReader(tmp_path / "vector.gguf").tensors
    block = model.hf.get_submodule(model.sites.blocks[int(tensor.name.removeprefix("direction."))])
    ids = torch.arange(1, 13)[None]
    with torch.inference_mode(), model.apply(Add(direction(3))):
        expected = model.hf(input_ids=ids).logits
    step = torch.tensor(tensor.data)
    with torch.inference_mode(), hooked([Edit(block, "output", lambda x: x + step)]):
        torch.testing.assert_close(model.hf(input_ids=ids).logits, expected)


@pytest.mark.parametrize("layer", [0, 1, 6])
def test_a_layer_that_llama_cpp_cannot_add_at_is_refused(tmp_path: Path, layer: int) -> None:
    with pytest.raises(DirectionError, match=f"block {layer} of 6.*inputs of blocks 2 to 5"):
        write_control_vector(direction(layer), tmp_path / "vector.gguf", n_layers=6)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("layer", [2, 5])
def test_the_first_and_last_layer_that_it_can_add_at(tmp_path: Path, layer: int) -> None:
    write_control_vector(direction(layer), tmp_path / "vector.gguf", n_layers=6)
    assert [tensor.name for tensor in gguf.GGUFReader(tmp_path / "vector.gguf").tensors] == [
        f"direction.{layer - 1}"
    ]


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="could not be written"):
        write_control_vector(direction(3), tmp_path / "file" / "vector.gguf", n_layers=6)
