"""What a run of a large model should take, on paper: shapes of published models, devices by data
sheet, $3 an hour.

    python benchmarks/plans.py     # the table of docs/plans.md

No weights are needed: a model is built from its config on torch's meta device.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedConfig
from transformers.models.qwen3_moe.configuration_qwen3_moe import Qwen3MoeConfig

from refusal import make_config
from refusal.cli.doctor import duration
from refusal.model.sizes import ModelSize, size_of
from refusal.pipeline.costs.estimate import Estimate, Machine, estimate
from refusal.pipeline.costs.speed import DEVICES
from refusal.runs.stage import Plan

PRICE = 3.0  # for a device, an hour

LLAMA: dict[str, Any] = {"vocab_size": 128256, "tie_word_embeddings": False, "dtype": "bfloat16"}
MOE: dict[str, Any] = {"head_dim": 128}
SHAPES: dict[str, PreTrainedConfig] = {
    "8B (Llama 3.1)": LlamaConfig(
        hidden_size=4096, num_hidden_layers=32, num_attention_heads=32, num_key_value_heads=8,
        intermediate_size=14336, **LLAMA,
    ),
    "70B (Llama 3.1)": LlamaConfig(
        hidden_size=8192, num_hidden_layers=80, num_attention_heads=64, num_key_value_heads=8,
        intermediate_size=28672, **LLAMA,
    ),
    "405B (Llama 3.1)": LlamaConfig(
        hidden_size=16384, num_hidden_layers=126, num_attention_heads=128, num_key_value_heads=8,
        intermediate_size=53248, **LLAMA,
    ),
    "235B, 22B active (Qwen 3)": Qwen3MoeConfig(
        hidden_size=4096, num_hidden_layers=94, num_attention_heads=64, num_key_value_heads=4,
        intermediate_size=12288, moe_intermediate_size=1536, num_experts=128, num_experts_per_tok=8,
        vocab_size=151936, tie_word_embeddings=False, dtype="bfloat16", **MOE,
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Case:
    """A shape on devices."""

    shape: str
    device: str
    count: int
    way: Literal["copies", "split"]
    quantize: Literal["4bit"] | None = None


CASES = (
    Case("8B (Llama 3.1)", "h100", 1, "copies"),
    Case("8B (Llama 3.1)", "l40s", 1, "copies"),
    Case("8B (Llama 3.1)", "h100", 4, "copies"),
    Case("70B (Llama 3.1)", "h100", 1, "copies", "4bit"),
    Case("70B (Llama 3.1)", "h100", 4, "split"),
    Case("70B (Llama 3.1)", "h200", 2, "split"),
    Case("70B (Llama 3.1)", "b200", 1, "copies"),
    Case("70B (Llama 3.1)", "h100", 4, "copies"),
    Case("405B (Llama 3.1)", "h200", 8, "split"),
    Case("405B (Llama 3.1)", "b200", 8, "split"),
    Case("405B (Llama 3.1)", "h100", 8, "copies", "4bit"),
    Case("235B, 22B active (Qwen 3)", "h200", 4, "split"),
)


def size(shape: str) -> ModelSize:
    """The size of a shape."""
    config = SHAPES[shape]
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    return replace(size_of(model, config), stored=2)


def plan(case: Case, size: ModelSize, **changes: Any) -> Estimate:
    """What the paper preset should take, in bfloat16, with the built-in prompts' lengths."""
    speed, room = DEVICES[case.device]
    config = make_config(
        dtype="bfloat16",
        quantize=case.quantize,
        tp_plan="auto" if case.way == "split" else None,
        **changes,
    )
    machine = Machine(speed, "cuda", room, case.count, PRICE)
    return estimate(size, Plan(config, size.layers), machine)


def table() -> Iterator[str]:
    """The table's lines."""
    yield "| model | devices | way | memory each, GB | paper's measurements | cost | all of `refusal run` | cost |"
    yield "| --- | --- | --- | ---: | ---: | ---: | ---: | ---: |"
    sizes = {shape: size(shape) for shape in SHAPES}
    for case in CASES:
        as_paper = plan(case, sizes[case.shape], controls=0, drift_tokens=0)
        everything = plan(case, sizes[case.shape])
        way = "split" if everything.split else "copies" if everything.processes > 1 else "spread"
        way = ("one" if case.count == 1 else way) + (", 4 bits" if case.quantize else "")
        room = DEVICES[case.device][1]
        each = everything.memory_bytes / (case.count if way.startswith("spread") else 1)
        memory = f"{each / 1e9:.0f} of {room / 1e9:.0f}" + ("" if everything.fits else ": too much")
        cells = [case.shape, f"{case.count} × {case.device.upper()}", way]
        cells.append(memory)
        for found in (as_paper, everything):
            assert found.cost is not None
            cells += [duration(found.total_seconds), f"${found.cost:.2f}"]
        yield f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    print("\n".join(table()))
