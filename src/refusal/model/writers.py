"""Which modules of a block write to the residual stream: those whose outputs, each perhaps times a
constant, add up with the block's input to its output.
"""

from collections.abc import Sequence

import torch
from torch import nn
from transformers import PreTrainedModel

from refusal.core.errors import UnsupportedModelError
from refusal.model.decompose import MAX_TENSORS, NOTHING, Fit, explain, explain_scaled
from refusal.model.probe import Trace, run_probe

OVERRIDE = (
    "Name the writers yourself with find_sites(model, blocks=..., writers=[...]) or "
    "--blocks and --writers."
)

Found = tuple[tuple[str, ...], Fit]


def module_names(
    model: PreTrainedModel, blocks: Sequence[str], wanted: set[str] | None, depth: int
) -> list[str]:
    """Names of the modules that may write: down to a depth inside each block, or those wanted.

    Dropout is left out, since in use it passes its input on.
    """
    names = []
    for block in blocks:
        for name, module in model.get_submodule(block).named_modules():
            fits = name in wanted if wanted is not None else name and name.count(".") < depth
            if fits and not isinstance(module, (nn.Dropout, nn.Identity)):
                names.append(f"{block}.{name}")
    return names


def find_writers(
    trace: Trace, layer: int, block: str, wanted: set[str] | None, otherwise: Found = ((), NOTHING)
) -> Found:
    """The modules of a block that explain its change, in running order; ``otherwise`` if there are
    too many to try.
    """
    start, end = trace.inputs[layer], trace.block_outputs[layer]
    names = candidates_of(trace, layer, block)
    if len(names) > MAX_TENSORS and wanted is None:
        return otherwise
    writes = [trace.outputs[name].view_as(end) for name in names]
    # What a module adds up from its own parts is not added to the stream beside them.
    nested = []
    for i, outer in enumerate(names):
        nested += [(i, j) for j, inner in enumerate(names) if inner.startswith(f"{outer}.")]
    chosen = explain(
        start, end, writes, tolerance_of(start.dtype), everything=wanted is not None, apart=nested
    )
    if chosen.error > tolerance_of(start.dtype) and wanted is None:
        scaled = explain_scaled(start, end, writes, tolerance_of(start.dtype), nested)
        chosen = min(chosen, scaled, key=lambda fit: fit.error)
    return tuple(names[i] for i in chosen.indices), chosen


def candidates_of(trace: Trace, layer: int, block: str) -> list[str]:
    """Modules as wide as the stream, in running order; of those with the same output the
    outermost.
    """
    end = trace.block_outputs[layer]
    kept: list[str] = []
    for name, output in trace.outputs.items():
        wide = (
            output.shape[-1:] == end.shape[-1:] and output.numel() == end.numel()
        )  # rows may be flattened (Llama-4)
        if not name.startswith(f"{block}.") or not wide:
            continue
        flat = output.flatten()
        for inner in [other for other in kept if other.startswith(f"{name}.")]:
            if torch.equal(trace.outputs[inner].flatten(), flat):
                kept.remove(inner)
        kept.append(name)
    return kept


def check_names(model: PreTrainedModel, blocks: Sequence[str], wanted: set[str]) -> None:
    """Refuse a writer's name that no block has, and say which modules are as wide as the stream."""
    present = {
        name for block in blocks for name, _ in model.get_submodule(block).named_modules() if name
    }
    unknown = sorted(wanted - present)
    if unknown or not wanted:
        wide = wide_names(model, blocks)
        raise UnsupportedModelError(
            f"No block has the writers {', '.join(map(repr, unknown)) or '(none was given)'}. As "
            f"wide as the stream are {', '.join(wide) or 'none'}: give those that write, or none, "
            "to have them found."
        )


def wide_names(model: PreTrainedModel, blocks: Sequence[str]) -> list[str]:
    """Names inside a block of the modules that are as wide as the stream, of all blocks."""
    trace = run_probe(model, blocks, module_names(model, blocks, None, depth=2))
    found: dict[str, None] = {}  # in order
    for layer, block in enumerate(blocks):
        found |= dict.fromkeys(inside_block(n, block) for n in candidates_of(trace, layer, block))
    return list(found)


def tolerance_of(dtype: torch.dtype) -> float:
    """Float32 must add up to 1e-4; half precisions round every sum to 8 or 11 bits."""
    return 1e-4 if dtype in (torch.float32, torch.float64) else 1e-2


def inside_block(name: str, block: str) -> str:
    """A module's name inside its block."""
    return name.removeprefix(f"{block}.")
