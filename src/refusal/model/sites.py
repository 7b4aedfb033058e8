"""Find the decoder blocks and every writer to the residual stream, by measurement rather than by
name.

A few tokens go through the model. The block list is the one whose members hand their output on
unchanged; a block's writers are those modules inside it whose outputs, each perhaps times a
constant, add up with the block's input to its output. Behind a post-norm (Gemma-2/3, OLMo-2) that
is the norm, because its output is what is added.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import nn
from transformers import PreTrainedModel

from refusal.core.errors import UnsupportedModelError
from refusal.model.decompose import MAX_TENSORS, NOTHING, Fit, add_up, explain
from refusal.model.probe import Trace, check_pass, feeds_elsewhere, find_blocks, run_probe


@dataclass(frozen=True)
class Sites:
    """Names of the modules that make, write and read the residual stream.

    ``writers[l]`` are the modules of block ``l`` whose outputs are added to the stream, in the
    order in which they run. ``multipliers`` holds the constants that outputs are multiplied with
    before they are added, by writer, where that is not 1. ``error`` is the largest relative error
    of "input plus writes equals output" over blocks and probe tokens. ``in_tuple``: blocks return
    their output as the first of a tuple. ``embedding_elsewhere``: the embedding's output is also
    read beside the stream (Zamba's shared blocks), so that an ablation has to act on it too.
    """

    embedding: str
    blocks: tuple[str, ...]
    writers: tuple[tuple[str, ...], ...]
    head: str
    d_model: int
    error: float
    multipliers: dict[str, float] = field(default_factory=dict)
    in_tuple: bool = False
    embedding_elsewhere: bool = False

    @property
    def n_layers(self) -> int:
        """Number of decoder blocks."""
        return len(self.blocks)

    @property
    def kinds(self) -> dict[tuple[str, ...], int]:
        """The writers of each kind of block, as ``describe`` shows them, and how many blocks are of
        that kind.
        """
        counts: dict[tuple[str, ...], int] = {}
        for layer in range(self.n_layers):
            kind = self.describe(layer)
            counts[kind] = counts.get(kind, 0) + 1
        return counts

    def describe(self, layer: int) -> tuple[str, ...]:
        """The writers of a block by their names inside it, with their multipliers: ``("0.22 x
        self_attn", …)``.
        """
        block = self.blocks[layer]
        return tuple(
            f"{self.multipliers[name]:.4g} x {_inside(name, block)}"
            if name in self.multipliers
            else _inside(name, block)
            for name in self.writers[layer]
        )

    def measure(self, model: PreTrainedModel) -> "SiteReport":
        """How far the input of block 0 plus the sum of all writes is from the stream, at every
        block input and the end.

        Raises:
            UnsupportedModelError: a writer gives no hidden states.
        """
        trace = run_probe(model, self.blocks, {name for block in self.writers for name in block})
        stream = trace.inputs[0]
        errors = [0.0]
        for layer, names in enumerate(self.writers):
            silent = [name for name in names if name not in trace.outputs]
            if silent:
                raise UnsupportedModelError(
                    f"The writer {silent[0]} gives no hidden states. {_OVERRIDE}"
                )
            writes = [
                trace.outputs[name].view_as(stream) * self.multipliers.get(name, 1.0)
                for name in names
            ]
            stream, error = add_up(stream, writes, trace.after(layer))
            errors.append(error)
        return SiteReport(errors=tuple(errors), tolerance=_tolerance(stream.dtype))

    def verify(self, model: PreTrainedModel) -> "SiteReport":
        """Check that the input of block 0 plus the sum of all writes is the stream at every block
        input and the end.

        Raises:
            UnsupportedModelError: the sums do not add up.
        """
        report = self.measure(model)
        if not report.ok:
            worst = next(i for i, error in enumerate(report.errors) if error > report.tolerance)
            where = f"the input of block {worst}" if worst < self.n_layers else "the end"
            raise UnsupportedModelError(
                "The writes found do not add up to the residual stream: relative error "
                f"{report.errors[worst]:.2g} at {where} (limit {report.tolerance:.0e}). {_OVERRIDE}"
            )
        return report

    def __str__(self) -> str:
        return (
            f"{self.n_layers} blocks {self.blocks[0]} … {self.blocks[-1]}, d_model "
            f"{self.d_model}, writers per block: "
            f"{' | '.join(' + '.join(kind) for kind in sorted(self.kinds))}; additive to "
            f"{self.error:.1e}"
        )


@dataclass(frozen=True)
class SiteReport:
    """Relative error of the running sum at every block input and at the end (``n_layers + 1``
    values).
    """

    errors: tuple[float, ...]
    tolerance: float

    @property
    def ok(self) -> bool:
        """Whether every error is within the tolerance."""
        return max(self.errors) <= self.tolerance


def find_sites(
    model: PreTrainedModel, blocks: str | None = None, writers: Sequence[str] | None = None
) -> Sites:
    """Find and verify the blocks and writers of a decoder-only language model.

    Args:
        model: any transformers decoder-only model, also inside a vision-language wrapper.
        blocks: path of the block list ("model.layers"), when discovery cannot tell.
        writers: names of the writing modules inside a block ("self_attn", "mlp.down_proj"),
            when discovery cannot tell. A block may lack some of them; those that it has must add
            up.

    Raises:
        UnsupportedModelError: says what was found and what does not add up.
    """
    names = {id(module): name for name, module in model.named_modules()}
    embedding, head = _embeddings(model)
    if embedding is None or head is None:
        raise UnsupportedModelError(
            f"{type(model).__name__} has no token embedding or no output head: it is not a causal "
            "language model. Give a decoder-only chat model."
        )
    if getattr(model.config, "is_encoder_decoder", False):
        raise UnsupportedModelError(
            f"{type(model).__name__} has an encoder. Give a decoder-only chat model."
        )
    check_pass(model)
    block_names = find_blocks(model, blocks)
    wanted = set(writers) if writers is not None else None
    if wanted is not None:
        _check_names(model, block_names, wanted)
    trace = run_probe(model, block_names, _modules(model, block_names, wanted, depth=1))
    deeper: Trace | None = None
    found, multipliers, worst = [], {}, 0.0
    for layer, block in enumerate(block_names):
        names_here, fit = _find_writers(trace, layer, block, wanted)
        if fit.error > _tolerance(trace.inputs[layer].dtype) and wanted is None:
            # The residual may be added inside a child (BLOOM).
            deeper = deeper or run_probe(
                model, block_names, _modules(model, block_names, None, depth=2)
            )
            names_here, fit = _find_writers(deeper, layer, block, None, otherwise=(names_here, fit))
        if wanted is not None and fit.error > _tolerance(trace.inputs[layer].dtype):
            raise UnsupportedModelError(
                f"The writers given ({', '.join(sorted(wanted))}) do not add up in block {block}: "
                f"relative error {fit.error:.2g} (limit "
                f"{_tolerance(trace.inputs[layer].dtype):.0e}). As wide as the stream are "
                f"{', '.join(_wide(model, block_names)) or 'none'}: give all that write and no "
                "other, or none, to have them found."
            )
        _check(trace, layer, block, names_here, fit)
        found.append(names_here)
        multipliers.update(
            {n: m for n, m in zip(names_here, fit.multipliers, strict=True) if m != 1.0}
        )
        worst = max(worst, fit.error)
    return Sites(
        embedding=names[id(embedding)],
        blocks=block_names,
        writers=tuple(found),
        head=names[id(head)],
        d_model=trace.inputs[0].shape[-1],
        error=worst,
        multipliers=multipliers,
        in_tuple=trace.in_tuple,
        embedding_elsewhere=feeds_elsewhere(model, block_names, trace),
    )


_OVERRIDE = (
    "Name the writers yourself with find_sites(model, blocks=..., writers=[...]) or "
    "--blocks and --writers."
)

Found = tuple[tuple[str, ...], Fit]


def _embeddings(model: PreTrainedModel) -> tuple[nn.Module | None, nn.Module | None]:
    """The token embedding and the output head, as far as transformers says where they are."""
    try:
        return model.get_input_embeddings(), model.get_output_embeddings()
    except NotImplementedError:
        return None, None


def _modules(
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


def _find_writers(
    trace: Trace, layer: int, block: str, wanted: set[str] | None, otherwise: Found = ((), NOTHING)
) -> Found:
    """The modules of a block that explain its change, in running order; ``otherwise`` if there are
    too many to try.
    """
    start, end = trace.inputs[layer], trace.block_outputs[layer]
    names = _candidates(trace, layer, block)
    if len(names) > MAX_TENSORS and wanted is None:
        return otherwise
    writes = [trace.outputs[name].view_as(end) for name in names]
    # What a module adds up from its own parts is not added to the stream beside them.
    nested = [
        (i, j)
        for i, outer in enumerate(names)
        for j, inner in enumerate(names)
        if inner.startswith(f"{outer}.")
    ]
    chosen = explain(
        start, end, writes, _tolerance(start.dtype), everything=wanted is not None, apart=nested
    )
    return tuple(names[i] for i in chosen.indices), chosen


def _candidates(trace: Trace, layer: int, block: str) -> list[str]:
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
        inner = [other for other in kept if other.startswith(f"{name}.")]
        same = [
            other
            for other in inner
            if torch.equal(trace.outputs[other].flatten(), output.flatten())
        ]
        kept = [other for other in kept if other not in same]
        kept.append(name)
    return kept


def _check_names(model: PreTrainedModel, blocks: Sequence[str], wanted: set[str]) -> None:
    """Refuse a writer's name that no block has, and say which modules are as wide as the stream."""
    present = {
        name for block in blocks for name, _ in model.get_submodule(block).named_modules() if name
    }
    unknown = sorted(wanted - present)
    if unknown or not wanted:
        wide = _wide(model, blocks)
        raise UnsupportedModelError(
            f"No block has the writers {', '.join(map(repr, unknown)) or '(none was given)'}. As "
            f"wide as the stream are {', '.join(wide) or 'none'}: give those that write, or none, "
            "to have them found."
        )


def _wide(model: PreTrainedModel, blocks: Sequence[str]) -> list[str]:
    """Names inside a block of the modules that are as wide as the stream, of all blocks."""
    trace = run_probe(model, blocks, _modules(model, blocks, None, depth=2))
    found = {
        _inside(n, block): None
        for layer, block in enumerate(blocks)
        for n in _candidates(trace, layer, block)
    }
    return list(found)


def _check(trace: Trace, layer: int, block: str, names: tuple[str, ...], fit: Fit) -> None:
    """Refuse a block whose change is not explained, and say what comes nearest."""
    tolerance = _tolerance(trace.inputs[layer].dtype)
    if fit.error <= tolerance:
        return
    candidates = _candidates(trace, layer, block)
    shown = ", ".join(_inside(name, block) for name in candidates) or "none"
    if names:
        closest = (
            f"the closest is {' + '.join(_inside(n, block) for n in names)}, relative error "
            f"{fit.error:.2g}"
        )
    else:
        closest = "too many to try" if len(candidates) > MAX_TENSORS else "none to try"
    raise UnsupportedModelError(
        f"The writes of block {block} do not add up: of its modules as wide as the stream "
        f"({shown}) no combination explains its output ({closest}; limit {tolerance:.0e}). "
        f"{_OVERRIDE}"
    )


def _tolerance(dtype: torch.dtype) -> float:
    """Float32 must add up to 1e-4; half precisions round every sum to 8 or 11 bits."""
    return 1e-4 if dtype in (torch.float32, torch.float64) else 1e-2


def _inside(name: str, block: str) -> str:
    return name.removeprefix(f"{block}.")
