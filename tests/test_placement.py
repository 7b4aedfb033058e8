"""Numbers and devices: what each option hands to transformers, and which go together."""

import pytest
import torch

from refusal import ConfigError
from refusal.model import placement as placing
from refusal.model.placement import find_device, find_dtype, place

CPU = torch.device("cpu")


@pytest.mark.parametrize(("has", "dtype"), [(True, torch.bfloat16), (False, torch.float32)])
def test_auto_is_what_the_device_multiplies_in(
    monkeypatch: pytest.MonkeyPatch, has: bool, dtype: torch.dtype
) -> None:
    monkeypatch.setattr(placing, "_cpu_multiplies_bfloat16", lambda: has)
    assert find_dtype("auto", CPU) == dtype
    assert find_dtype("auto", torch.device("cuda")) == torch.bfloat16
    assert find_dtype("bfloat16", CPU) == torch.bfloat16


def test_limits_of_memory_go_with_a_device_map() -> None:
    found = place(CPU, torch.float32, "auto", ("0=20GiB", "cpu=1.5GB"), None, None)
    assert found == {"device_map": "auto", "max_memory": {0: "20GiB", "cpu": "1.5GB"}}
    with pytest.raises(ConfigError, match="Add --device-map auto"):
        place(CPU, torch.float32, None, ("cpu=1GiB",), None, None)


@pytest.mark.parametrize("text", ["cpu", "cpu=", "cpu=lots", "disk=1GiB", "0=20", "=1GiB"])
def test_a_limit_that_cannot_be_read(text: str) -> None:
    with pytest.raises(ConfigError, match="Write a device and a size"):
        place(CPU, torch.float32, "auto", (text,), None, None)


def test_a_split_model_is_neither_quantised_nor_mapped(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="Start it with: torchrun"):
        place(CPU, torch.float32, None, (), None, "auto")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(
        ConfigError, match="goes with the stages of a run"
    ):  # else none would know of the others
        place(CPU, torch.float32, None, (), None, "auto")
    monkeypatch.setattr("refusal.core.parallel.split", lambda: True)
    assert set(place(CPU, torch.float32, None, (), None, "auto")) == {"distributed_config"}
    with pytest.raises(ConfigError, match="Leave one of them out"):
        place(CPU, torch.float32, None, (), "4bit", "auto")


def test_several_processes_do_not_each_spread_a_model_over_all_devices(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="Start a single process"):
        place(CPU, torch.float32, "auto", (), None, None)


@pytest.mark.parametrize("name", ["auto", "cuda"])
def test_each_process_of_a_machine_has_a_gpu_of_its_own(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    assert find_device(name).index is None
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert find_device(name) == torch.device("cuda:1")
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(ConfigError, match="no more processes a machine than it has GPUs"):
        find_device(name)


def test_nothing_is_said_of_a_model_that_is_moved_afterwards() -> None:
    assert place(CPU, torch.float32, None, (), None, None) == {}
