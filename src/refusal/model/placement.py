"""In which numbers and on which devices a model is loaded."""

import re
import warnings
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from typing import Any, Literal

import torch
from accelerate.utils import align_module_device
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers import BitsAndBytesConfig, PreTrainedModel
from transformers.distributed.configuration_utils import DistributedConfig

from refusal.core import parallel
from refusal.core.errors import ConfigError

DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32, "float16": torch.float16}
REARRANGED = 32  # rows of a 4-bit weight that bitsandbytes rearranges together


def find_device(device: str) -> torch.device:
    """The device of that name; ``auto`` is the best there is.

    Raises:
        ConfigError: unknown, or not there.
    """
    if device == "auto":
        here = "mps" if torch.backends.mps.is_available() else "cpu"
        device = "cuda" if torch.cuda.is_available() else here
    if device == "cuda" and parallel.launched():  # each process of a machine has its own
        device = f"cuda:{parallel.local_number()}"
    try:
        where = torch.device(device)
    except RuntimeError as error:
        raise ConfigError(
            f"Unknown device {device!r}. Use auto, cpu, cuda, cuda:1 or mps."
        ) from error
    count = {
        "cpu": 1,
        "cuda": torch.cuda.device_count(),
        "mps": int(torch.backends.mps.is_available()),
    }
    if (where.index or 0) >= count.get(where.type, 0):
        raise ConfigError(
            f"The device {device!r} is not available here. Use --device auto or cpu; with a "
            "launcher, no more processes a machine than it has GPUs."
        )
    return where


def find_dtype(dtype: str, device: torch.device) -> torch.dtype:
    """The dtype of that name; ``auto`` is bfloat16 where the device multiplies in it, else float32.

    On a processor without instructions for bfloat16 its products take four times as long as
    float32's (docs/performance.md).

    Raises:
        ConfigError: unknown.
    """
    if dtype == "auto":
        return (
            torch.bfloat16 if device.type != "cpu" or _cpu_multiplies_bfloat16() else torch.float32
        )
    if dtype not in DTYPES:
        raise ConfigError(f"Unknown dtype {dtype!r}. Use auto, {', '.join(DTYPES)}.")
    return DTYPES[dtype]


def place(
    device: torch.device,
    dtype: torch.dtype,
    device_map: str | None,
    max_memory: Sequence[str],
    quantize: Literal["4bit", "8bit"] | None,
    tp_plan: Literal["auto"] | None,
) -> dict[str, Any]:
    """What ``from_pretrained`` is told about numbers and devices; nothing for a model that is moved
    afterwards.

    Raises:
        ConfigError: ``tp_plan`` without a launcher, ``quantize`` without bitsandbytes, or options
            that exclude each other.
    """
    if tp_plan is not None:
        if not parallel.launched():
            raise ConfigError(
                "--tp-plan splits a model over the processes of a launcher, and there is none. "
                "Start it with: torchrun --nproc-per-node N -m refusal run … --tp-plan auto."
            )
        if quantize is not None or device_map is not None:
            raise ConfigError(
                "--tp-plan goes with neither --quantize nor --device-map. Leave one of them out."
            )
        if not parallel.split():
            raise ConfigError(
                "--tp-plan goes with the stages of a run only. Use refusal run, extract, select, "
                "generate or evaluate."
            )
        return {"distributed_config": DistributedConfig(tp_plan=tp_plan)}
    if device_map is not None and parallel.launched():
        raise ConfigError(
            f"--device-map {device_map} spreads a model over all devices, and each process would "
            "do so. Start a single process, or split the model with --tp-plan auto."
        )
    options: dict[str, Any] = {}
    if max_memory:
        if device_map is None:
            raise ConfigError(
                "--max-memory limits what --device-map gives each device. Add --device-map auto."
            )
        options["max_memory"] = dict(_limit(text) for text in max_memory)
    if quantize is not None:
        options["quantization_config"] = _quantisation(quantize, dtype)
        device_map = device_map or str(device)  # its weights cannot be moved afterwards
    if device_map is not None:
        options["device_map"] = device_map
    return options


def input_device(model: PreTrainedModel) -> torch.device:
    """Where token ids go: to the embedding; where its weights are away, to where accelerate brings
    them for a call.
    """
    embedding = model.get_input_embeddings()
    where = next(embedding.parameters()).device
    if where.type != "meta":
        return where
    brought = getattr(getattr(embedding, "_hf_hook", None), "execution_device", None)
    return torch.device("cpu" if brought is None else brought)


def whole_weights(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """A model's weights and buffers by name, each as if the model were in one place.

    What is on the disk is read, what is split is gathered from all processes (which must all ask);
    one at a time.
    """
    for name, tensor in sorted(model.state_dict().items()):
        if isinstance(tensor, DTensor):
            yield name, tensor.full_tensor()
        elif tensor.is_meta:
            owner, _, leaf = name.rpartition(".")
            with align_module_device(model.get_submodule(owner)):
                yield name, getattr(model.get_submodule(owner), leaf)
        else:
            yield name, tensor


def multiply_as_asked(model: nn.Module, dtype: torch.dtype) -> None:
    """Have 4-bit weights multiplied in ``dtype`` on processors with instructions for bfloat16 too.

    There bitsandbytes rearranges them at their first use and then multiplies in bfloat16, whatever
    was asked for, and only weights whose sides its blocks fill.
    """
    for module in model.modules():
        layer: Any = module
        if hasattr(layer, "support_avx512bf16_for_cpu"):
            fills = (
                layer.out_features % REARRANGED == 0
                and layer.in_features % layer.weight.blocksize == 0
            )
            layer.support_avx512bf16_for_cpu &= fills and dtype == torch.bfloat16


def _limit(text: str) -> tuple[int | str, str]:
    """``0=20GiB`` as accelerate wants it: the number of a GPU, or ``cpu``."""
    found = re.fullmatch(r"(\d+|cpu|mps)=(\d+(?:\.\d+)?[KMG]i?B)", text)
    if found is None:
        raise ConfigError(
            f"--max-memory {text!r} cannot be read. Write a device and a size, as 0=20GiB or "
            "cpu=60GiB."
        )
    return (int(found[1]) if found[1].isdigit() else found[1]), found[2]


def _quantisation(quantize: Literal["4bit", "8bit"], dtype: torch.dtype) -> BitsAndBytesConfig:
    if find_spec("bitsandbytes") is None:
        raise ConfigError(
            "--quantize needs bitsandbytes. Install it with: pip install 'refusal[quantize]'."
        )
    if quantize == "4bit":
        return BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype
        )
    warnings.filterwarnings("ignore", message="MatMul8bitLt: inputs will be cast")  # once a layer
    return BitsAndBytesConfig(load_in_8bit=True)


def _cpu_multiplies_bfloat16() -> bool:
    """Whether torch's products in bfloat16 use instructions of this processor."""
    return torch.backends.mkldnn.is_available() and bool(
        torch.ops.mkldnn._is_mkldnn_bf16_supported()
    )
