"""The decoder blocks, found by a few tokens: the list whose members hand their output on; and what
reaches a block past its input.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from refusal.core.errors import UnsupportedModelError
from refusal.model.batch_size import is_out_of_memory
from refusal.model.hooks import Edit, hooked, skipped
from refusal.model.lanes import Lanes
from refusal.model.probe import PROBE_TOKENS, Trace, keep_in, probe_ids, run_probe

MOST_LISTS = 24  # whose length is not the config's number of layers, tried longest first
EXACT = 1e-6  # relative: nothing but float32 rounding


def find_blocks(model: PreTrainedModel, path: str | None = None) -> tuple[str, ...]:
    """Names of the blocks: the longest chain in which each member's output is the next one's input.

    Args:
        model: a decoder-only language model.
        path: of the block list, when several or none are found.

    Raises:
        UnsupportedModelError: no list of modules is such a chain, or it hands on several tensors.
    """
    every: dict[str, nn.ModuleList | nn.Sequential] = {}
    lists: dict[str, nn.ModuleList] = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList | nn.Sequential):
            every[name] = module
        if isinstance(module, nn.ModuleList) and len(module) > 0:
            lists[name] = module
    if path is not None and not len(every.get(path, ())):
        raise UnsupportedModelError(
            f"{type(model).__name__} has no list of modules {path!r}, which was given as its "
            f"blocks. It has {_described(lists)}: give one of these, or none, to have it found."
        )
    n_layers = getattr(model.config.get_text_config(), "num_hidden_layers", None)
    tried = lists if path is None else {path: every[path]}
    likely = {name: module for name, module in tried.items() if len(module) == n_layers}
    others = {name: module for name, module in tried.items() if name not in likely}
    # A config may count otherwise (LongCat-Flash: two sublayers a block). One block is no chain.
    longest = sorted(others.items(), key=lambda item: -len(item[1]))
    alone = path is not None or n_layers is None
    others = {n: m for n, m in longest[:MOST_LISTS] if len(m) > 1 or alone}
    for name, module in [*likely.items(), *others.items()]:
        members = tuple(f"{name}.{i}" for i in range(len(module)))
        trace = run_probe(model, members)
        if len(trace.inputs) != len(members) or len(trace.block_outputs) != len(members):
            continue
        if all(
            _handed_on(trace.block_outputs[i], trace.inputs[i + 1]) for i in range(len(members) - 1)
        ):
            if trace.runs > 1:
                raise UnsupportedModelError(
                    f"The blocks {name} of {type(model).__name__} run {trace.runs} times in a pass "
                    "(recurrent depth), and a layer would be several places. Give a model whose "
                    "blocks run once."
                )
            if trace.beside:
                raise UnsupportedModelError(
                    f"The blocks {name} of {type(model).__name__} hand on {trace.beside + 1} "
                    "tensors as wide as the stream (reversible residuals), and each would have to "
                    "be ablated. Give a model whose blocks hand on one."
                )
            return members
    if path is not None:
        raise UnsupportedModelError(
            f"The modules in {path!r}, which was given as the blocks of {type(model).__name__}, "
            "are no chain of decoder blocks, where the output of one is the input of the next. "
            f"The model has {_described(lists)}: give one of these, or none, to have it found."
        )
    untried = [n for n, m in every.items() if len(m) > 1 and n not in {*likely, *others}]
    raise UnsupportedModelError(
        f"No chain of decoder blocks was found in {type(model).__name__}, which has "
        f"{_described(lists)}. "
        + (
            'Name the list yourself: find_sites(model, blocks="model.layers"), or --blocks on the '
            "command line."
            if untried
            else "All were tried, so naming one does not help: on text alone, in none of them is "
            "what each member hands on (a tensor, or the first of a tuple) the input of the next."
        )
    )


def _handed_on(out: Tensor, new: Tensor) -> bool:
    """Whether a block's output is the next one's input, perhaps times a number (RWKV's halving)."""
    if torch.equal(out, new):
        return True
    if out.shape != new.shape or not out.is_floating_point():
        return False
    wide, found = out.double().flatten(), new.double().flatten()
    number = (wide @ found) / (wide @ wide).clamp_min(1e-12)
    return bool((found - number * wide).norm() <= EXACT * found.norm() and number > EXACT)


def stands_alone(model: PreTrainedModel, blocks: Sequence[str], trace: Trace) -> bool:
    """Whether a block needs nothing of those before it but its input.

    Some take keys and values (Gemma-3n) or a choice of tokens (HY-V4) of an earlier block. Blocks
    before the middle one, and before the last, are skipped and what they handed on is put in.
    """
    last = len(blocks) - 1
    wanted = trace.block_outputs[last].float()
    for start in {len(blocks) // 2, last}:
        seen: dict[str, Tensor] = {}
        given = trace.inputs[start]
        edits = [
            Edit(model.get_submodule(blocks[start]), "input", partial(_instead, given)),
            Edit(model.get_submodule(blocks[last]), "output", keep_in(seen, "end")),
        ]
        before = [model.get_submodule(name) for name in blocks[:start]]
        try:
            with torch.inference_mode(), hooked(edits), skipped(before, trace.in_tuple):
                model(input_ids=probe_ids(model), use_cache=False)
        except (RuntimeError, ValueError, TypeError, LookupError, AttributeError) as error:
            if is_out_of_memory(error):
                raise
            return False
        tolerance = 1e-4 if trace.inputs[0].dtype in (torch.float32, torch.float64) else 1e-2
        if not (seen["end"].float() - wanted).norm() <= tolerance * wanted.norm():
            return False
    return True


def _instead(given: Tensor, x: Tensor) -> Tensor:
    return given.to(x.device)


def feeds_elsewhere(
    model: PreTrainedModel, blocks: Sequence[str], trace: Trace, lanes: Lanes | None = None
) -> bool:
    """Whether the embedding's output, in the coordinates of the stream, enters at other places than
    block 0's input.

    Zamba's shared blocks read it beside the stream. It is moved along one direction while block 0
    gets what it got in ``trace``: nothing may change after that. Where a norm stands between it and
    block 0 it is another space.
    """
    embedding, first = model.get_input_embeddings(), model.get_submodule(blocks[0])
    width = trace.inputs[0].shape[-1] if lanes is None else lanes.d_model
    unit = torch.nn.functional.normalize(
        torch.randn(width, generator=torch.Generator().manual_seed(0)), dim=0
    )
    seen: dict[str, Tensor] = {}

    def move(x: Tensor) -> Tensor | None:
        if x.shape[-1] != width:
            return None
        size = x.float().norm(dim=-1, keepdim=True)
        moved: Tensor = x.float() + size * unit.to(x.device)
        return moved.to(x.dtype)

    def put_back(x: Tensor) -> Tensor:
        seen["input"] = x.detach().float().cpu()
        return trace.inputs[0].to(x.device)

    edits = [Edit(embedding, "output", move), Edit(first, "input", put_back)]
    edits += [Edit(model.get_submodule(name), "output", keep_in(seen, name)) for name in blocks]
    with torch.inference_mode(), hooked(edits):
        model(input_ids=probe_ids(model), use_cache=False)
    change = seen["input"] - trace.inputs[0].float()
    if lanes is not None:
        change = lanes.fold(change)[0]
    across = change - (change @ unit)[..., None] * unit
    tolerance = 1e-3 if trace.inputs[0].dtype in (torch.float32, torch.float64) else 5e-2
    if lanes is None:
        same = bool(across.norm() < tolerance * change.norm())
    else:  # one lane in the embedding's own coordinates is enough
        small = across.norm(dim=-1) < tolerance * change.norm(dim=-1)
        same = int(small.sum()) >= PROBE_TOKENS
    if not same:
        return False
    for layer, before in trace.block_outputs.items():
        moved = (seen[blocks[layer]].float() - before.float()).norm()
        if float(moved) > tolerance * float(before.float().norm()):
            return True
    return False


def _described(lists: dict[str, Any]) -> str:
    shown = ", ".join(
        f"{name} ({len(module)} x {type(module[0]).__name__})" for name, module in lists.items()
    )
    return f"the lists {shown}" if shown else "no lists of modules"
