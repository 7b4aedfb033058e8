"""Where a block's change is no sum of what its modules write (hyper-connections, norms within the
stream), what is claimed of ablation is measured instead: that it is complete.

A direction is projected out of what enters block 0 and of the writers' outputs; then no vector that
enters a block or leaves the last one, in any lane, may have a component along it. A writer is a
module whose output reaches the block's output along the direction while all others are projected.
"""

import inspect
from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from refusal.core.errors import UnsupportedModelError
from refusal.model.hooks import Edit, EditFunction, hooked
from refusal.model.lanes import Lanes
from refusal.model.probe import PROBE_TOKENS, Trace, keep_in, probe_ids, run_probe
from refusal.model.writers import OVERRIDE, inside_block, module_names

Writers = tuple[tuple[str, ...], ...]
DEEPEST = 3  # modules inside a block are looked at down to here


def limits(dtype: torch.dtype) -> tuple[float, float]:
    """How much may be left of a direction: of a vector's length, and of what was there."""
    return (1e-5, 1e-3) if dtype in (torch.float32, torch.float64) else (1e-2, 5e-2)


class Ablated:
    """Passes over a few tokens with a random direction projected out at chosen places."""

    def __init__(
        self, model: PreTrainedModel, blocks: Sequence[str], d_model: int, seed: int = 0
    ) -> None:
        self.model, self.blocks, self.d_model = model, blocks, d_model
        unit = torch.randn(d_model, generator=torch.Generator().manual_seed(seed))
        self.unit = unit / unit.norm()

    def clean(self, x: Tensor) -> Tensor:
        """``x`` without the direction, in every lane."""
        vectors = x.float().unflatten(-1, (-1, self.d_model))
        unit = self.unit.to(x.device)
        cleaned: Tensor = vectors - (vectors @ unit)[..., None] * unit
        return cleaned.flatten(-2).to(x.dtype)

    def run(
        self, writers: Writers, every: bool = False, kick: Sequence[tuple[str, float]] = ()
    ) -> Trace:
        """Block inputs and outputs with ``writers`` and block 0's input projected; ``every``: all
        blocks' inputs. To the outputs named in ``kick`` that much of the direction is added.
        """
        kicks = dict(kick)

        def write(name: str) -> EditFunction:
            def fn(x: Tensor) -> Tensor:
                moved: Tensor = self.clean(x).float() + kicks.get(name, 0.0) * self._wide(x)
                return moved.to(x.dtype)

            return fn

        inputs = self.blocks if every else self.blocks[:1]
        edits = [Edit(self.model.get_submodule(name), "input", self.clean) for name in inputs]
        names = [name for block in writers for name in block]
        edits += [Edit(self.model.get_submodule(name), "output", write(name)) for name in names]
        with hooked(edits):
            return run_probe(self.model, self.blocks)

    def share(self, x: Tensor) -> float:
        """The most of any vector's length that lies along the direction."""
        vectors = x.double().reshape(-1, self.d_model)
        size = vectors.norm(dim=-1)
        along = (vectors @ self.unit.double()).abs()
        share = float((along / size.clamp_min(1e-3 * float(size.max()) + 1e-12)).max())
        return share if share == share else float("inf")

    def along(self, x: Tensor) -> float:
        """Size of the component along the direction."""
        return float((x.double().reshape(-1, self.d_model) @ self.unit.double()).norm())

    def constant(self, x: Tensor) -> bool:
        """Whether the component along the direction is the same for every token."""
        parts = x.double().reshape(-1, self.d_model) @ self.unit.double()
        return bool(parts.std() < 1e-2 * parts.mean().abs())

    def _wide(self, x: Tensor) -> Tensor:
        return _repeated(self.unit.to(x.device), x, self.d_model)


def leftovers(
    model: PreTrainedModel, blocks: Sequence[str], d_model: int, writers: Writers, seed: int = 0
) -> tuple[float, ...]:
    """What ablation leaves of a random direction: the most of any vector's length, at every block
    input and at the end.
    """
    ablated = Ablated(model, blocks, d_model, seed)
    trace = ablated.run(writers)
    streams = [trace.inputs[i] for i in range(len(blocks))] + [trace.block_outputs[len(blocks) - 1]]
    return tuple(ablated.share(x) for x in streams)


def find_complete(
    model: PreTrainedModel,
    blocks: Sequence[str],
    plain: Trace,
    d_model: int,
    wanted: set[str] | None,
) -> tuple[Writers, float]:
    """The writers of every block, and what ablation there leaves.

    Args:
        model: a causal language model.
        blocks: names of its blocks.
        plain: a pass with nothing changed.
        d_model: width of a vector of the stream.
        wanted: names of the writers inside a block, where they were given.

    Raises:
        UnsupportedModelError: it is an encoder, its blocks end in a norm of the stream itself, or
            no choice of modules makes ablation complete.
    """
    _refuse_encoder(model)
    whole, kept = limits(plain.inputs[0].dtype)
    ablated = Ablated(model, blocks, d_model)
    left, worst, constant = 1.0, blocks[0], False
    for depth in (DEEPEST,) if wanted is not None else range(1, DEEPEST + 1):
        trace = run_probe(model, blocks, module_names(model, blocks, wanted, depth))
        groups = tuple(
            _wide(model, trace, b, plain.block_outputs[i], d_model) for i, b in enumerate(blocks)
        )
        cleaned = ablated.run(groups, every=True)
        shares = {}
        for i, block in enumerate(blocks):
            there = ablated.along(plain.block_outputs[i])
            shares[block] = ablated.along(cleaned.block_outputs[i]) / there
        worst = max(shares, key=lambda block: shares[block])
        left = shares[worst]
        if left > kept:
            constant = ablated.constant(cleaned.block_outputs[blocks.index(worst)])
            continue
        writers = groups if wanted is not None else _kicked(ablated, groups, plain)
        found = max(leftovers(model, blocks, d_model, writers, seed=1))
        if found <= whole:
            return writers, found
        left = found
    _refuse_post_norm(model, blocks)
    raise UnsupportedModelError(
        f"Ablation cannot be made complete in {type(model).__name__}: with a direction projected "
        f"out of the input of block {worst} and of what its modules write, {left:.2g} of it is "
        "still in the block's output, so the block itself "
        + (
            "adds a vector, the same for every token: a bias that no module puts out."
            if constant
            else "changes the stream, by a vector of gains, say."
        )
        + (f" {OVERRIDE}" if wanted is not None else "")
    )


def find_reads(model: PreTrainedModel, blocks: Sequence[str], plain: Trace, lanes: Lanes) -> Lanes:
    """Where each block reads its mixture, and how far that moves when all lanes are moved.

    The module is the first child of the block that is given one vector a token. All blocks are
    measured in one pass, in which each gets its own input, moved.

    Raises:
        UnsupportedModelError: a block reads no mixture.
    """
    ablated = Ablated(model, blocks, lanes.d_model)
    names = module_names(model, blocks, None, depth=1)
    before = _inputs(model, names, {})
    reads = []
    for block in blocks:
        children = [n for n, x in before.items() if n.startswith(f"{block}.") and _one(x, lanes)]
        if not children:
            raise UnsupportedModelError(
                f"The block {block} has {lanes.count} lanes, and none of its modules reads a "
                "mixture of them, so there is no place to read a direction."
            )
        reads.append(children[0])
    sizes = [_length(plain.inputs[i], lanes.d_model) for i in range(len(blocks))]
    moved = {}
    for i, block in enumerate(blocks):
        moved[block] = _moved(plain.inputs[i], 0.1 * sizes[i] * ablated.unit, lanes.d_model)
    base = _inputs(model, reads, {block: plain.inputs[i] for i, block in enumerate(blocks)})
    after = _inputs(model, reads, moved)
    gains, straight = [], []
    for i, name in enumerate(reads):
        change = (after[name] - base[name]).double().reshape(-1, lanes.d_model)
        along = change @ ablated.unit.double()
        gains.append(float(along.mean()) / (0.1 * sizes[i]))
        straight.append(float(along.norm() / change.norm().clamp_min(1e-12)))
    return Lanes(
        lanes.count, lanes.d_model, lanes.layout, tuple(reads), tuple(gains), tuple(straight)
    )


def _length(x: Tensor, d_model: int) -> float:
    """Mean length of the vectors of a stream."""
    return float(x.float().reshape(-1, d_model).norm(dim=-1).mean())


def _moved(x: Tensor, step: Tensor, d_model: int) -> Tensor:
    moved: Tensor = x.float() + _repeated(step, x, d_model)
    return moved.to(x.dtype)


def _repeated(vector: Tensor, x: Tensor, d_model: int) -> Tensor:
    """The vector for each lane that lies in the last dimension of ``x``."""
    return vector.repeat(x.shape[-1] // d_model)


def _one(x: Tensor, lanes: Lanes) -> bool:
    return x.shape[-1] == lanes.d_model and x.numel() == PROBE_TOKENS * lanes.d_model


def _inputs(
    model: PreTrainedModel, names: Sequence[str], given: dict[str, Tensor]
) -> dict[str, Tensor]:
    """What modules are given, in the order in which they ran; blocks get what is ``given``."""
    seen: dict[str, Tensor] = {}

    def instead(name: str) -> EditFunction:
        return lambda x: given[name].to(x.device)

    edits = [Edit(model.get_submodule(name), "input", instead(name)) for name in given]
    edits += [Edit(model.get_submodule(name), "input", keep_in(seen, name)) for name in names]
    with hooked(edits):
        run_probe(model, ())
    return seen


def _kicked(ablated: Ablated, groups: Writers, plain: Trace) -> Writers:
    """Those of each block's modules that move its output along the direction when they are moved,
    with all else projected; one of each block in a pass.
    """
    found: list[list[str]] = [[] for _ in groups]
    sizes = [_length(plain.block_outputs[i], ablated.d_model) for i in range(len(groups))]
    least = 1e-3 if limits(plain.inputs[0].dtype)[0] < 1e-4 else 2e-2
    for which in range(max(map(len, groups))):
        kick = [(names[which], sizes[i]) for i, names in enumerate(groups) if which < len(names)]
        trace = ablated.run(groups, every=True, kick=kick)
        for i, names in enumerate(groups):
            moved = ablated.along(trace.block_outputs[i]) > least * sizes[i] * PROBE_TOKENS**0.5
            if which < len(names) and moved:
                found[i].append(names[which])
    for names, some in zip(groups, found, strict=True):
        gates = [name for name in names if is_gate(ablated.model, name)]
        if set(gates) & set(some):  # the stream goes through gates, and all of a block hand it on
            some[:] = [name for name in names if name in gates or name in some]
    return tuple(map(tuple, found))


def _wide(
    model: PreTrainedModel, trace: Trace, block: str, end: Tensor, d_model: int
) -> tuple[str, ...]:
    """Modules of a block that give one vector a token, or all lanes; of those with the same output
    the outermost. One whose output is the block's hands the stream on, and is looked into.
    """
    sizes = {PROBE_TOKENS * d_model, trace.inputs[0].numel()}
    kept: list[str] = []
    for name, x in trace.outputs.items():
        if torch.equal(x, end) and not is_gate(model, name):
            continue
        if not name.startswith(f"{block}.") or x.shape[-1] % d_model or x.numel() not in sizes:
            continue
        inside = [inner for inner in kept if inner.startswith(f"{name}.")]
        flat = x.flatten()
        same = [inner for inner in inside if torch.equal(trace.outputs[inner].flatten(), flat)]
        kept = [*(other for other in kept if other not in same), name]
    return tuple(kept)


def is_gate(model: PreTrainedModel, name: str) -> bool:
    """Whether a module weighs the stream and a write by vectors and adds them (Zaya, Muse Spark):
    what it hands on is the stream, and there the stream is projected.
    """
    module = model.get_submodule(name)
    taken = inspect.signature(module.forward).parameters.values()
    needed = [p for p in taken if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD]
    weights = list(module.parameters())
    return bool(weights) and all(p.dim() == 1 for p in weights) and len(needed) == 2


def _refuse_encoder(model: PreTrainedModel) -> None:
    """Refuse a model whose earlier tokens see later ones."""
    ids = probe_ids(model)
    other = ids.clone()
    other[0, -1] = ids[0, 0]
    with torch.inference_mode():
        one, two = (
            model(input_ids=x, use_cache=False).logits[0, :-1].float() for x in (ids, other)
        )
    tolerance = 1e-4 if model.dtype in (torch.float32, torch.float64) else 2e-2
    if not (one - two).norm() <= tolerance * (one - one.mean()).norm():
        raise UnsupportedModelError(
            f"{type(model).__name__} reads in both directions: it is an encoder, BERT-like, and "
            "writes no text. Give a decoder-only chat model."
        )


def _refuse_post_norm(model: PreTrainedModel, blocks: Sequence[str]) -> None:
    """Refuse blocks that end in a norm of the whole stream."""
    trace = run_probe(model, blocks, module_names(model, blocks, None, DEEPEST))
    for i, block in enumerate(blocks):
        out = trace.block_outputs[i]
        for name, x in trace.outputs.items():
            weights = list(model.get_submodule(name).parameters())
            norm = weights and all(p.dim() == 1 for p in weights)
            if (
                name.startswith(f"{block}.")
                and norm
                and x.shape == out.shape
                and torch.equal(x, out)
            ):
                raise UnsupportedModelError(
                    f"The blocks of {type(model).__name__} end in a norm of the stream itself "
                    f"({inside_block(name, block)}), as BERT's do: its gains bring back what was "
                    "projected out, in other directions. Give a model with norms before its "
                    "sublayers, or behind each."
                )
