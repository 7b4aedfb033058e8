"""Find the decoder blocks and every writer to the residual stream, by measurement rather than by
name.

A few tokens go through the model. The block list is the one whose members hand their output on
unchanged; a block's writers are those modules inside it whose outputs, each perhaps times a
constant, add up with the block's input to its output. Behind a post-norm (Gemma-2/3, OLMo-2) that
is the norm, because its output is what is added.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import nn
from transformers import PreTrainedModel

from refusal.core.errors import UnsupportedModelError
from refusal.model.blocks import feeds_elsewhere, find_blocks, stands_alone
from refusal.model.complete import find_complete, find_reads, leftovers, limits
from refusal.model.decompose import add_up
from refusal.model.lanes import Lanes
from refusal.model.probe import PROBE_TOKENS, Trace, check_pass, run_probe
from refusal.model.writers import (
    OVERRIDE,
    Found,
    check_names,
    find_writers,
    inside_block,
    module_names,
    tolerance_of,
    wide_names,
)


@dataclass(frozen=True)
class Sites:
    """Names of the modules that make, write and read the residual stream.

    ``writers[l]`` are the modules of block ``l`` whose outputs are added to the stream, in the
    order in which they run. ``multipliers`` holds the constants that outputs are multiplied with
    before they are added, by writer, where that is not 1. ``error`` is the largest relative error
    of "input plus writes equals output" over blocks and probe tokens. ``in_tuple``: of how many,
    where blocks return their output as the first of a tuple. ``embedding_elsewhere``: the
    embedding's output is also read beside the stream (Zamba's shared blocks, Gemma-4's per-layer
    embeddings), so that an ablation has to act on it too.
    ``stands_alone``: a block needs nothing of earlier ones but its input. ``scales``: by block, the
    number that stream and writes together are multiplied with at its end, where that is not 1
    (Gemma-4). ``lanes``: where a token has several vectors. ``additive``: the sums were found;
    where they were not, ``error`` is what ablation leaves of a direction anywhere.
    """

    embedding: str
    blocks: tuple[str, ...]
    writers: tuple[tuple[str, ...], ...]
    head: str
    d_model: int
    error: float
    multipliers: dict[str, float] = field(default_factory=dict)
    in_tuple: int = 0
    embedding_elsewhere: bool = False
    stands_alone: bool = True
    scales: dict[str, float] = field(default_factory=dict)
    lanes: Lanes | None = None
    additive: bool = True

    @property
    def n_layers(self) -> int:
        """Number of decoder blocks."""
        return len(self.blocks)

    @property
    def resumes(self) -> bool:
        """Whether a pass may begin at a block with what it was given in another."""
        return self.stands_alone and self.lanes is None

    def reading(self, layer: int) -> str:
        """The module at whose input a block reads one vector a token."""
        return self.blocks[layer] if self.lanes is None else self.lanes.reads[layer]

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
        described = []
        for name in self.writers[layer]:
            inside = inside_block(name, self.blocks[layer])
            scaled = name in self.multipliers
            described.append(f"{self.multipliers[name]:.4g} x {inside}" if scaled else inside)
        return tuple(described)

    def measure(self, model: PreTrainedModel) -> "SiteReport":
        """How far the input of block 0 plus the sum of all writes is from the stream, at every
        block input and the end.

        Raises:
            UnsupportedModelError: a writer gives no hidden states.
        """
        if not self.additive:
            left = leftovers(model, self.blocks, self.d_model, self.writers, seed=2)
            return SiteReport(left, limits(model.dtype)[0], additive=False)
        trace = run_probe(model, self.blocks, {name for block in self.writers for name in block})
        stream = trace.inputs[0]
        errors = [0.0]
        for layer, names in enumerate(self.writers):
            silent = [name for name in names if name not in trace.outputs]
            if silent:
                raise UnsupportedModelError(
                    f"The writer {silent[0]} gives no hidden states. {OVERRIDE}"
                )
            writes = []
            for name in names:
                factor = self.multipliers.get(name, 1.0)
                writes.append(trace.outputs[name].view_as(stream) * factor)
            scale = self.scales.get(self.blocks[layer], 1.0)
            after = trace.after(layer)
            stream, error = add_up(stream, writes, after if scale == 1.0 else after / scale)
            stream = stream if scale == 1.0 else stream * scale
            errors.append(error)
        return SiteReport(errors=tuple(errors), tolerance=tolerance_of(stream.dtype))

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
            if not report.additive:
                raise UnsupportedModelError(
                    f"Ablation leaves {report.errors[worst]:.2g} of a direction at {where} (limit "
                    f"{report.tolerance:.0e}): what was found does not make it complete. {OVERRIDE}"
                )
            raise UnsupportedModelError(
                "The writes found do not add up to the residual stream: relative error "
                f"{report.errors[worst]:.2g} at {where} (limit {report.tolerance:.0e}). {OVERRIDE}"
            )
        return report

    def __str__(self) -> str:
        return (
            f"{self.n_layers} blocks {self.blocks[0]} … {self.blocks[-1]}, d_model "
            f"{self.d_model}, writers per block: "
            f"{' | '.join(' + '.join(kind) for kind in sorted(self.kinds))}; "
            f"{'additive to' if self.additive else 'ablation leaves'} {self.error:.1e}"
        )


@dataclass(frozen=True)
class SiteReport:
    """Relative error of the running sum at every block input and at the end (``n_layers + 1``
    values); where a stream is not additive, what ablation leaves there.
    """

    errors: tuple[float, ...]
    tolerance: float
    additive: bool = True

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
        check_names(model, block_names, wanted)
    trace = run_probe(model, block_names, module_names(model, block_names, wanted, depth=1))
    lanes = _lanes(model, block_names, trace)
    common = {
        "embedding": names[id(embedding)],
        "blocks": block_names,
        "head": names[id(head)],
        "in_tuple": trace.in_tuple,
        "embedding_elsewhere": feeds_elsewhere(model, block_names, trace, lanes),
        "stands_alone": stands_alone(model, block_names, trace),
    }
    if lanes is not None:
        found, left = find_complete(model, block_names, trace, lanes.d_model, wanted)
        lanes = find_reads(model, block_names, trace, lanes)
        return Sites(
            **common, writers=found, d_model=lanes.d_model, error=left, lanes=lanes, additive=False
        )
    d_model = trace.inputs[0].shape[-1]
    fits = _add_up(model, block_names, trace, wanted)
    bad = [i for i, (_, fit) in enumerate(fits) if fit.error > tolerance_of(trace.inputs[i].dtype)]
    if bad:
        found, left = find_complete(model, block_names, trace, d_model, None)
        return Sites(**common, writers=found, d_model=d_model, error=left, additive=False)
    multipliers: dict[str, float] = {}
    scales: dict[str, float] = {}
    for block, (writing, fit) in zip(block_names, fits, strict=True):
        factors = zip(writing, fit.multipliers, strict=True)
        multipliers |= {name: factor for name, factor in factors if factor != 1.0}
        if fit.scale != 1.0:
            scales[block] = fit.scale
    return Sites(
        **common,
        writers=tuple(names for names, _ in fits),
        d_model=d_model,
        error=max(fit.error for _, fit in fits),
        multipliers=multipliers,
        scales=scales,
    )


def _lanes(model: PreTrainedModel, blocks: Sequence[str], trace: Trace) -> Lanes | None:
    shape = trace.inputs[0].shape
    width = getattr(model.config.get_text_config(), "hidden_size", None) or shape[-1]
    try:
        return Lanes.of(shape, width if shape[-1] % width == 0 else shape[-1])
    except ValueError as error:
        raise UnsupportedModelError(
            f"The blocks {blocks[0].rpartition('.')[0]} of {type(model).__name__} pass on a tensor "
            f"of shape {tuple(shape)} for 1 row of {PROBE_TOKENS} tokens: neither one vector a "
            "token nor several lanes. Give another model."
        ) from error


def _add_up(
    model: PreTrainedModel, blocks: Sequence[str], trace: Trace, wanted: set[str] | None
) -> list[Found]:
    """By block, the writers that come nearest to its change, and how near."""
    deeper: Trace | None = None
    found = []
    for layer, block in enumerate(blocks):
        here = find_writers(trace, layer, block, wanted)
        if here[1].error > tolerance_of(trace.inputs[layer].dtype):
            if wanted is not None:
                raise UnsupportedModelError(
                    f"The writers given ({', '.join(sorted(wanted))}) do not add up in block "
                    f"{block}: relative error {here[1].error:.2g} (limit "
                    f"{tolerance_of(trace.inputs[layer].dtype):.0e}). As wide as the stream are "
                    f"{', '.join(wide_names(model, blocks)) or 'none'}: give all that write and no "
                    "other, or none, to have them found."
                )
            # The residual may be added inside a child (BLOOM).
            deeper = deeper or run_probe(model, blocks, module_names(model, blocks, None, depth=2))
            here = find_writers(deeper, layer, block, None, otherwise=here)
        found.append(here)
    return found


def language_model(model: PreTrainedModel) -> PreTrainedModel:
    """The part of a wrapper that is a causal language model by itself, where the wrapper does not
    say where its embedding and head are (Nemotron-H-Omni); else the model.
    """
    if None not in _embeddings(model):
        return model
    parts = [m for m in model.children() if isinstance(m, PreTrainedModel)]
    whole = [part for part in parts if None not in _embeddings(part)]
    return whole[0] if len(whole) == 1 else model


def _embeddings(model: PreTrainedModel) -> tuple[nn.Module | None, nn.Module | None]:
    """The token embedding and the output head, as far as transformers says where they are."""
    try:
        return model.get_input_embeddings(), model.get_output_embeddings()
    except NotImplementedError:
        return None, None
