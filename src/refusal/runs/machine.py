"""What a run was made with: versions, hardware, devices, memory."""

import os
import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from refusal.model.chat_model import ChatModel


def versions() -> dict[str, str]:
    """Of Python, this package, and those that compute."""
    found = {"python": platform.python_version()}
    for name in ("refusal", "torch", "transformers", "tokenizers", "safetensors"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed as a package"
    return found


def hardware(model: ChatModel) -> dict[str, Any]:
    """The device that a model is on, and the machine."""
    device = model.device
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    return {
        "device": str(device),
        "gpu": gpu,
        "machine": platform.machine(),
        "system": platform.system(),
        "cpu_count": os.cpu_count(),
        "threads": torch.get_num_threads(),
    }


def devices(model: ChatModel) -> int:
    """Accelerators that one process's model is spread over, else 1: a processor and a disk beside
    them are not paid.
    """
    devices = {parameter.device for parameter in model.hf.parameters()}
    return max(1, sum(device.type not in ("cpu", "meta") for device in devices))


def peak_memory(model: ChatModel) -> int | None:
    """Most memory that this process has held: of its GPUs, or resident; not known on Windows."""
    if model.device.type == "cuda":
        return sum(torch.cuda.max_memory_allocated(i) for i in range(torch.cuda.device_count()))
    return peak_resident()


def peak_resident() -> int | None:
    """Most bytes that this process has held resident; not known on Windows.

    Linux counts it in ``/proc`` from the program's start. ``getrusage`` would begin with what the
    process had that started it.
    """
    status = Path("/proc/self/status")
    for line in status.read_text().splitlines() if status.is_file() else ():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
