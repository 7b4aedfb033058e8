"""Models to measure on, and what the machine could do at best."""

import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from refusal import ChatModel, load
from refusal.runs.machine import peak_resident

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
import tiny_models

SHAPES = {
    "llama-8b": {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
                 "num_key_value_heads": 8, "vocab_size": 128256},
    "llama-1b": {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32,
                 "num_key_value_heads": 8, "vocab_size": 128256},
    "two-blocks": {"hidden_size": 1536, "intermediate_size": 8960, "num_hidden_layers": 2, "num_attention_heads": 12,
                   "num_key_value_heads": 2, "vocab_size": 512},  # of the embedded model's widths
    "tiny": {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 8, "num_attention_heads": 4,
             "num_key_value_heads": 2, "vocab_size": 512},
}  # fmt: skip


def get_model(name: str, shape: str | None, dtype: str, device: str) -> ChatModel:
    """The named model, or a random one of a shape with a byte-level tokenizer."""
    if shape is None:
        return load(name, dtype=dtype, device=device)
    where = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    config = AutoConfig.for_model("llama", max_position_embeddings=4096, **SHAPES[shape])
    torch.manual_seed(0)
    with torch.device(where):
        hf = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype))
    return ChatModel(hf, tiny_models.tokenizer(), name=f"random {shape}")


def seconds(run: Callable[[], object], device: torch.device) -> float:
    """Wall-clock seconds of one call, the device's queue included."""
    wait(device)
    start = time.perf_counter()
    run()
    wait(device)
    return time.perf_counter() - start


def wait(device: torch.device) -> None:
    """Until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def matmul_rate(model: ChatModel, tokens: int) -> float:
    """FLOP/s of this model's own matrix products on ``tokens`` tokens, one decoder block's linear
    layers in turn.
    """
    block = model.hf.get_submodule(model.sites.blocks[0])
    layers = [m for m in block.modules() if isinstance(m, torch.nn.Linear)]
    inputs = [
        torch.randn(tokens, m.in_features, dtype=model.hf.dtype, device=model.device)
        for m in layers
    ]

    def run() -> None:
        for _ in range(5):
            for layer, x in zip(layers, inputs, strict=True):
                layer(x)

    with torch.inference_mode():
        run()
        best = min(seconds(run, model.device) for _ in range(3)) / 5
    return sum(2 * tokens * m.in_features * m.out_features for m in layers) / best


def flop_per_token(model: ChatModel) -> int:
    """Two per weight of the decoder blocks; the head is counted apart, as it may see few tokens."""
    names = model.sites.blocks
    return 2 * sum(
        p.numel()
        for name in names
        for p in model.hf.get_submodule(name).parameters()
        if p.dim() > 1
    )


def head_flop(model: ChatModel) -> int:
    """Of one token's logits."""
    weight = model.hf.get_submodule(model.sites.head).weight
    assert isinstance(weight, torch.Tensor)
    return 2 * weight.numel()


def peak_memory(device: torch.device) -> int:
    """Bytes: of the process, or allocated on the GPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = peak_resident()
    assert peak is not None
    return peak
