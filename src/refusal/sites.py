"""Find the decoder blocks and every writer to the residual stream, by measurement rather than by name.

A few tokens go through the model. The block list is the ``ModuleList`` whose members hand their output on unchanged;
a block's writers are those of its children whose outputs add up, with the block's input, to the block's output.
Behind a post-norm (Gemma-2/3, OLMo-2) that is the norm, because its output is what is added.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from refusal.errors import UnsupportedModelError
from refusal.hooks import Edit, hooked

MAX_CHILDREN = 10  # of a block, with an output as wide as the stream; more would make the subset search slow
PROBE_TOKENS = 8


@dataclass(frozen=True)
class Sites:
    """Names of the modules that make, write and read the residual stream.

    ``writers[l]`` are the children of block ``l`` whose outputs are added to the stream. ``error`` is the largest
    relative error of "input plus writes equals output" over blocks and probe tokens.
    """

    embedding: str
    blocks: tuple[str, ...]
    writers: tuple[tuple[str, ...], ...]
    head: str
    d_model: int
    error: float

    @property
    def n_layers(self) -> int:
        """Number of decoder blocks."""
        return len(self.blocks)

    def verify(self, model: PreTrainedModel) -> "SiteReport":
        """Check that the input of block 0 plus the sum of all writes is the stream at every block input and the end.

        Raises:
            UnsupportedModelError: the sums do not add up.
        """
        trace = _trace(model, self.blocks, {name for block in self.writers for name in block})
        stream = trace.inputs[0]  # summed in the model's own dtype, so that both sides round alike
        errors = [0.0]
        for layer, names in enumerate(self.writers):
            for name in names:
                stream = stream + trace.outputs[name]
            errors.append(_relative_error(stream, trace.block_outputs[layer]))
        tolerance = _tolerance(stream.dtype)
        report = SiteReport(errors=tuple(errors), tolerance=tolerance)
        if not report.ok:
            worst = max(range(len(errors)), key=errors.__getitem__)
            raise UnsupportedModelError(
                f"The writes found do not add up to the residual stream: relative error {errors[worst]:.2g} at the "
                f"input of block {worst} (limit {tolerance:.0e}). Name the writers yourself with find_sites(model, "
                f"blocks=..., writers=...)."
            )
        return report

    def __str__(self) -> str:
        kinds = sorted({tuple(_child_name(n, b) for n in w) for w, b in zip(self.writers, self.blocks, strict=True)})
        return (
            f"{self.n_layers} blocks {self.blocks[0]} … {self.blocks[-1]}, d_model {self.d_model}, writers per block: "
            f"{' | '.join(' + '.join(kind) for kind in kinds)}; additive to {self.error:.1e}"
        )


@dataclass(frozen=True)
class SiteReport:
    """Relative error of the running sum at every block input and at the end (``n_layers + 1`` values)."""

    errors: tuple[float, ...]
    tolerance: float

    @property
    def ok(self) -> bool:
        """Whether every error is within the tolerance."""
        return max(self.errors) <= self.tolerance


def find_sites(model: PreTrainedModel, blocks: str | None = None, writers: Sequence[str] | None = None) -> Sites:
    """Find and verify the blocks and writers of a decoder-only language model.

    Args:
        model: any transformers decoder-only model.
        blocks: path of the block list ("model.layers"), when discovery cannot tell.
        writers: names of the writing children inside a block ("self_attn", "mlp"), likewise.

    Raises:
        UnsupportedModelError: says what was found and what does not add up.
    """
    names = {id(module): name for name, module in model.named_modules()}
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    if embedding is None or head is None:
        raise UnsupportedModelError(
            f"{type(model).__name__} has no token embedding or no output head: it is not a causal language model. "
            "Give a decoder-only chat model."
        )
    block_names = _find_blocks(model, blocks)
    trace = _trace(model, block_names, set(_children(model, block_names)))
    found, worst = [], 0.0
    for layer, block in enumerate(block_names):
        chosen, error = _find_writers(trace, layer, block, writers)
        found.append(chosen)
        worst = max(worst, error)
    return Sites(
        embedding=names[id(embedding)],
        blocks=block_names,
        writers=tuple(found),
        head=names[id(head)],
        d_model=trace.inputs[0].shape[-1],
        error=worst,
    )


@dataclass
class _Trace:
    """Hidden states of one probe pass, on the CPU, in the model's own dtype."""

    inputs: dict[int, Tensor]
    block_outputs: dict[int, Tensor]
    outputs: dict[str, Tensor]


def _find_blocks(model: PreTrainedModel, path: str | None) -> tuple[str, ...]:
    """Names of the blocks: the longest chain in which each member's output is the next one's input."""
    lists = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and (name == path if path is not None else len(module) > 0)
    }
    described = ", ".join(f"{name} ({len(module)} x {type(module[0]).__name__})" for name, module in lists.items())
    n_layers = getattr(model.config.get_text_config(), "num_hidden_layers", None)
    for name, module in sorted(lists.items(), key=lambda item: -len(item[1])):
        if path is None and n_layers is not None and len(module) != n_layers:
            continue
        members = tuple(f"{name}.{i}" for i in range(len(module)))
        trace = _trace(model, members, set())
        if len(trace.inputs) != len(members):
            continue
        chained = (torch.equal(trace.block_outputs[i], trace.inputs[i + 1]) for i in range(len(members) - 1))
        if all(chained):
            return members
    raise UnsupportedModelError(
        f"No chain of decoder blocks was found in {type(model).__name__}; module lists: {described or 'none'}. "
        'Name the list yourself: find_sites(model, blocks="model.layers"), or --blocks on the command line.'
    )


def _children(model: PreTrainedModel, blocks: Sequence[str]) -> list[str]:
    """Names of the children that may write: all but dropout, which passes its input on."""
    return [
        f"{block}.{child}"
        for block in blocks
        for child, module in model.get_submodule(block).named_children()
        if not isinstance(module, (nn.Dropout, nn.Identity))
    ]


def _find_writers(trace: _Trace, layer: int, block: str, wanted: Sequence[str] | None) -> tuple[tuple[str, ...], float]:
    """The subset of children whose outputs explain the block's change best, and its relative error."""
    start, end = trace.inputs[layer], trace.block_outputs[layer]
    children = [name for name, out in trace.outputs.items() if name.startswith(f"{block}.") and out.shape == end.shape]
    if wanted is not None:
        names = tuple(f"{block}.{child}" for child in wanted if f"{block}.{child}" in children)
        subsets = [names]
    elif len(children) > MAX_CHILDREN:
        raise UnsupportedModelError(
            f"Block {block} has {len(children)} children as wide as the stream, too many to search. "
            "Name the writers yourself: find_sites(model, writers=[...])."
        )
    else:
        subsets = [c for size in range(1, len(children) + 1) for c in combinations(children, size)]
    # Summed in the model's dtype and in the order in which they ran, so that both sides round alike.
    errors = {s: _relative_error(sum((trace.outputs[n] for n in s), start=start), end) for s in subsets}
    best = min(errors, key=lambda s: (errors[s], len(s)), default=())
    if not best or errors[best] > _tolerance(start.dtype):
        shown = ", ".join(name.removeprefix(f"{block}.") for name in children) or "none"
        closest = f"closest: {' + '.join(_child_name(n, block) for n in best)}, " if best else ""
        raise UnsupportedModelError(
            f"The writes of block {block} do not add up: of its children as wide as the stream ({shown}) no subset "
            f"explains its output ({closest}relative error {errors.get(best, float('nan')):.2g}, limit "
            f"{_tolerance(start.dtype):.0e}). Name them yourself: find_sites(model, writers=[...]) or --writers."
        )
    return best, errors[best]


def _trace(model: PreTrainedModel, blocks: Sequence[str], children: set[str]) -> _Trace:
    """Run the probe tokens and keep block inputs, block outputs and the outputs of ``children``."""
    trace = _Trace({}, {}, {})
    edits = []
    for layer, block in enumerate(blocks):
        module = model.get_submodule(block)
        edits.append(Edit(module, "input", _keep(trace.inputs, layer)))
        edits.append(Edit(module, "output", _keep(trace.block_outputs, layer)))
    edits += [Edit(model.get_submodule(name), "output", _keep(trace.outputs, name)) for name in sorted(children)]
    vocabulary = model.config.get_text_config().vocab_size
    ids = torch.arange(1, PROBE_TOKENS + 1).mul(7919).remainder(vocabulary)[None]
    with torch.inference_mode(), hooked(edits):
        model(input_ids=ids.to(model.device), use_cache=False)
    return trace


def _keep(store: dict[Any, Tensor], key: Any) -> Any:
    def keep(x: Any) -> None:
        if isinstance(x, Tensor):
            store[key] = x.detach().to("cpu", copy=True)

    return keep


def _relative_error(found: Tensor, true: Tensor) -> float:
    """Largest ``|found - true| / |true|`` over tokens."""
    difference = (found.double() - true.double()).norm(dim=-1)
    return float((difference / true.double().norm(dim=-1).clamp_min(1e-12)).max())


def _tolerance(dtype: torch.dtype) -> float:
    """Float32 must add up to 1e-4; half precisions round every sum to 8 or 11 bits."""
    return 1e-4 if dtype in (torch.float32, torch.float64) else 1e-2


def _child_name(name: str, block: str) -> str:
    return name.removeprefix(f"{block}.")
