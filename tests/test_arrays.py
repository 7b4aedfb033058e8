"""Arrays of safetensors files are those that torch reads."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from refusal.core.arrays import read_array


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.int64])
@pytest.mark.parametrize("shape", [(7,), (2, 3), (0,), ()])
def test_an_array_is_the_tensor(dtype: torch.dtype, shape: tuple[int, ...], tmp_path: Path) -> None:
    tensor = (100 * torch.randn(shape)).to(dtype)
    save_file({"other": torch.ones(3), "x": tensor}, tmp_path / "x.safetensors")
    with safe_open(str(tmp_path / "x.safetensors"), framework="np") as file:
        found = read_array(file, tmp_path / "x.safetensors", "x")
        with pytest.raises(SafetensorError):
            read_array(file, tmp_path / "x.safetensors", "y")
    assert found.shape == shape
    expected = tensor.float() if dtype is torch.bfloat16 else tensor
    assert np.array_equal(found, expected.numpy())
