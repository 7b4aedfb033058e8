"""Products by oneDNN: those of ``nn.Linear`` to rounding, and never of a weight that is no more."""

import copy
from typing import Any

import pytest
import torch
from torch import nn

from refusal.model import fast_linear
from refusal.model.fast_linear import FastLinear, copied_bytes, speed_up

pytestmark = pytest.mark.skipif(
    not fast_linear._available(), reason="torch has no oneDNN on this processor"
)


def network(dtype: torch.dtype = torch.float32, bias: bool = True) -> Any:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(640, 480, bias), nn.Linear(480, 640, bias)).to(dtype)


@pytest.fixture(params=["copied", "in place"])
def room(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Both ways: with memory for copies of the weights, and without."""
    if request.param == "in place":
        monkeypatch.setattr(fast_linear, "SHARE", 0.0)
    return bool(request.param == "copied")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bias", [True, False])
def test_products_are_those_of_float64(room: bool, dtype: torch.dtype, bias: bool) -> None:
    plain = network(dtype, bias)
    fast = copy.deepcopy(plain)
    speed_up(fast)
    assert all(isinstance(layer, FastLinear) for layer in fast)
    sizes = sum(layer.weight.numel() * dtype.itemsize for layer in fast)
    assert copied_bytes(fast) == (sizes if room else 0)
    for shape in ((1, 640), (7, 640), (640,), (2, 33, 640), (0, 640), (300, 640)):
        x = torch.randn(shape).to(dtype)
        with torch.inference_mode():
            found, once = fast[0](x), plain[0](x)
            true = nn.functional.linear(
                x.double(),
                plain[0].weight.double(),
                plain[0].bias.double() if bias else None,
            )
        assert found.dtype == dtype
        assert found.shape == once.shape
        error = (found.double() - true).abs().max() if x.numel() else torch.tensor(0.0)
        allowed = (once.double() - true).abs().max() if x.numel() else torch.tensor(0.0)
        assert error <= 4 * allowed + 1e-6 * true.abs().max() if x.numel() else True


def test_a_weight_that_was_written_to_or_replaced_counts(room: bool) -> None:
    fast = network()
    speed_up(fast)
    layer, x = fast[0], torch.randn(3, 640)

    def agrees() -> bool:
        with torch.inference_mode():
            return torch.allclose(
                layer(x), nn.functional.linear(x, layer.weight, layer.bias), atol=1e-4
            )

    assert agrees()
    with torch.no_grad():
        layer.weight.mul_(2)
    assert agrees()
    layer.weight.data = torch.randn_like(layer.weight)
    assert agrees()
    layer.weight = nn.Parameter(torch.randn(480, 640))
    assert agrees()
    layer.load_state_dict({"weight": torch.randn(480, 640), "bias": torch.zeros(480)})
    assert agrees()


def test_a_deep_copy_has_weights_of_its_own(room: bool) -> None:
    fast = network()
    speed_up(fast)
    other = copy.deepcopy(fast)
    with torch.no_grad():
        other[0].weight.zero_()
    with torch.inference_mode():
        assert torch.equal(other[0](torch.randn(2, 640)), other[0].bias.expand(2, -1))
        assert fast[0](torch.randn(2, 640)).std() > 0.1


def test_gradients_flow(room: bool) -> None:
    plain = network()
    fast = copy.deepcopy(plain)
    speed_up(fast)
    x = torch.randn(4, 640, requires_grad=True)
    y = x.detach().clone().requires_grad_()
    fast(x).square().sum().backward()
    plain(y).square().sum().backward()
    assert x.grad is not None
    assert y.grad is not None
    assert torch.allclose(x.grad, y.grad)
    assert torch.allclose(fast[0].weight.grad, plain[0].weight.grad)


def test_what_does_not_fit_says_what_torch_says() -> None:
    fast = network()
    speed_up(fast)
    with torch.inference_mode(), pytest.raises(RuntimeError, match=r"mat1 and mat2|shapes"):
        fast[0](torch.randn(2, 639))
    with torch.inference_mode(), pytest.raises(RuntimeError, match="dtype"):
        fast[0](torch.randn(2, 640).double())


def test_small_layers_subclasses_and_other_dtypes_are_left_alone() -> None:
    class Own(nn.Linear):
        pass

    with torch.inference_mode():
        untracked = nn.Linear(640, 480)
    layers = nn.ModuleList(
        [nn.Linear(64, 64), Own(640, 480), nn.Linear(640, 480).to(torch.float16), untracked]
    )
    speed_up(layers)
    assert not any(isinstance(layer, FastLinear) for layer in layers)
