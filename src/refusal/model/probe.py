"""Run a few tokens through a model, keep what enters and leaves its blocks, and find the block list
that way.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from refusal.core.errors import NonFiniteError, UnsupportedModelError
from refusal.model.batch_size import is_out_of_memory
from refusal.model.hooks import Edit, hooked
from refusal.model.placement import input_device

PROBE_TOKENS = 8


@dataclass
class Trace:
    """Hidden states of one pass, on the CPU, in the model's own dtype; each ``(1, token,
    d_model)``.

    ``inputs`` and ``block_outputs`` by layer; ``outputs`` by module name, in the order in which the
    modules ran; ``in_tuple``: whether blocks return their output as the first of a tuple;
    ``beside``: how many more tensors like it they return.
    """

    inputs: dict[int, Tensor] = field(default_factory=dict)
    block_outputs: dict[int, Tensor] = field(default_factory=dict)
    outputs: dict[str, Tensor] = field(default_factory=dict)
    in_tuple: bool = False
    beside: int = 0

    def after(self, layer: int) -> Tensor:
        """The stream after a block: the input of the next one, or the output of the last."""
        return self.inputs.get(layer + 1, self.block_outputs[layer])

    def see_result(self, result: Any) -> None:
        """Note how a block returns its output."""
        self.in_tuple = isinstance(result, tuple)
        if isinstance(result, tuple):
            others = [x for x in result[1:] if isinstance(x, Tensor) and x.is_floating_point()]
            self.beside = sum(x.shape == result[0].shape for x in others)


def probe_ids(model: PreTrainedModel, count: int = PROBE_TOKENS) -> Tensor:
    """A few different token ids, ``(1, token)``."""
    vocabulary = model.config.get_text_config().vocab_size
    ids: Tensor = torch.arange(1, count + 1).mul(7919).remainder(vocabulary)[None]
    return ids.to(input_device(model))


def run_probe(model: PreTrainedModel, blocks: Sequence[str], modules: Iterable[str] = ()) -> Trace:
    """Keep block inputs, block outputs and the outputs of ``modules`` of one pass over the probe
    tokens.

    Raises:
        UnsupportedModelError: the model does not run on token ids alone.
    """
    trace = Trace()
    edits = []
    for layer, block in enumerate(blocks):
        module = model.get_submodule(block)
        edits.append(Edit(module, "input", _keep(trace.inputs, layer)))
        edits.append(Edit(module, "output", _keep(trace.block_outputs, layer)))
    edits += [Edit(model.get_submodule(name), "result", trace.see_result) for name in blocks[:1]]
    edits += [
        Edit(model.get_submodule(name), "output", _keep(trace.outputs, name))
        for name in sorted(modules)
    ]
    try:
        with torch.inference_mode(), hooked(edits):
            model(input_ids=probe_ids(model), use_cache=False)
    except (
        RuntimeError,
        ValueError,
        TypeError,
        LookupError,
        AttributeError,
        ImportError,
        MemoryError,
    ) as error:
        if is_out_of_memory(error):
            raise
        raise UnsupportedModelError(
            f"{type(model).__name__} does not run on token ids alone ({type(error).__name__}: "
            f"{_first_line(error)}). Give a decoder-only language model."
        ) from error
    return trace


def find_blocks(model: PreTrainedModel, path: str | None = None) -> tuple[str, ...]:
    """Names of the blocks: the longest chain in which each member's output is the next one's input.

    Args:
        model: a decoder-only language model.
        path: of the block list, when several or none are found.

    Raises:
        UnsupportedModelError: no list of modules is such a chain, or its stream is not one vector a
            token.
    """
    every = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList | nn.Sequential)
    }
    lists = {
        name: module
        for name, module in every.items()
        if isinstance(module, nn.ModuleList) and len(module) > 0
    }
    if path is not None and not len(every.get(path, ())):
        raise UnsupportedModelError(
            f"{type(model).__name__} has no list of modules {path!r}, which was given as its "
            f"blocks. It has {_described(lists)}: give one of these, or none, to have it found."
        )
    n_layers = getattr(model.config.get_text_config(), "num_hidden_layers", None)
    tried = lists if path is None else {path: every[path]}
    for name, module in sorted(tried.items(), key=lambda item: -len(item[1])):
        if path is None and n_layers is not None and len(module) != n_layers:
            continue
        members = tuple(f"{name}.{i}" for i in range(len(module)))
        trace = run_probe(model, members)
        if len(trace.inputs) != len(members) or len(trace.block_outputs) != len(members):
            continue
        if all(
            torch.equal(trace.block_outputs[i], trace.inputs[i + 1])
            for i in range(len(members) - 1)
        ):
            if trace.beside:
                raise UnsupportedModelError(
                    f"The blocks {name} of {type(model).__name__} hand on {trace.beside + 1} "
                    "tensors as wide as the stream (reversible residuals), and each would have to "
                    "be ablated. Give a model whose blocks hand on one."
                )
            if trace.inputs[0].dim() != 3:
                raise UnsupportedModelError(
                    f"The blocks {name} of {type(model).__name__} pass on a tensor of shape "
                    f"{tuple(trace.inputs[0].shape)} for 1 row of {PROBE_TOKENS} tokens: not one "
                    "residual stream. Give a model with a single residual stream."
                )
            return members
    if path is not None:
        raise UnsupportedModelError(
            f"The modules in {path!r}, which was given as the blocks of {type(model).__name__}, "
            "are no chain of decoder blocks, where the output of one is the input of the next. "
            f"The model has {_described(lists)}: give one of these, or none, to have it found."
        )
    raise UnsupportedModelError(
        f"No chain of decoder blocks was found in {type(model).__name__}, which has "
        f"{_described(lists)}. "
        'Name the list yourself: find_sites(model, blocks="model.layers"), or --blocks on the '
        "command line."
    )


def feeds_elsewhere(model: PreTrainedModel, blocks: Sequence[str], trace: Trace) -> bool:
    """Whether the embedding's output, in the coordinates of the stream, enters at other places than
    block 0's input.

    Zamba's shared blocks read it beside the stream. It is moved along one direction while block 0
    gets what it got in ``trace``: nothing may change after that. Where a norm stands between it and
    block 0 it is another space.
    """
    embedding, first = model.get_input_embeddings(), model.get_submodule(blocks[0])
    width = trace.inputs[0].shape[-1]
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
    edits += [Edit(model.get_submodule(name), "output", _keep(seen, name)) for name in blocks]
    with torch.inference_mode(), hooked(edits):
        model(input_ids=probe_ids(model), use_cache=False)
    change = seen["input"] - trace.inputs[0].float()
    across = change - (change @ unit)[..., None] * unit
    tolerance = 1e-3 if trace.inputs[0].dtype in (torch.float32, torch.float64) else 5e-2
    return bool(across.norm() < tolerance * change.norm()) and any(
        float((seen[name].float() - before.float()).norm())
        > tolerance * float(before.float().norm())
        for name, before in (
            (blocks[layer], before) for layer, before in trace.block_outputs.items()
        )
    )


def check_pass(model: PreTrainedModel) -> None:
    """Refuse a model whose numbers leave the range of its dtype, or whose embedding or head tells
    no tokens apart.

    Raises:
        NonFiniteError: names the first module with NaN or infinity, the dtype, and which to try.
        UnsupportedModelError: the embedding gives the same vector for every token, or the head the
            same logit.
    """
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    names = {id(module): name for name, module in model.named_modules()}
    ends = names[id(embedding)], names[id(head)]
    trace = run_probe(model, (), ends)
    if not all(output.isfinite().all() for output in trace.outputs.values()):
        outputs = run_probe(model, (), [name for name in names.values() if name]).outputs
        first = next(
            (name for name, x in outputs.items() if x.isnan().any() or x.isposinf().any()), ends[1]
        )
        raise NonFiniteError(
            f"The output of {first} holds NaN or infinity. {other_dtype(model.dtype)}"
        )
    vectors, logits = trace.outputs.get(ends[0]), trace.outputs.get(ends[1])
    mend = "Fetch or save the checkpoint again."
    if (
        vectors is not None
        and vectors.dim() == 3
        and torch.equal(vectors, vectors[:, :1].expand_as(vectors))
    ):
        raise UnsupportedModelError(
            f"The embedding {ends[0]} gives one vector for every token (zeros, say). {mend}"
        )
    if logits is not None and torch.equal(logits, logits[..., :1].expand_as(logits)):
        raise UnsupportedModelError(
            f"The head {ends[1]} gives one logit for every token (zeros, say). {mend}"
        )


def other_dtype(dtype: torch.dtype) -> str:
    """What to do about NaN or infinity in a pass in this dtype."""
    if dtype == torch.float16:
        return (
            "The model runs in float16, which holds no more than 65504: use --dtype bfloat16 "
            "or float32."
        )
    if dtype == torch.bfloat16:
        return (
            "The model runs in bfloat16: use --dtype float32; if it is the same there, its "
            "weights are damaged."
        )
    return (
        f"The model runs in {str(dtype).removeprefix('torch.')}: its weights are damaged, or "
        "its config is another's."
    )


def _described(lists: dict[str, Any]) -> str:
    shown = ", ".join(
        f"{name} ({len(module)} x {type(module[0]).__name__})" for name, module in lists.items()
    )
    return f"the lists {shown}" if shown else "no lists of modules"


def _keep(store: dict[Any, Tensor], key: Any) -> Callable[[Any], None]:
    def keep(x: Any) -> None:
        if isinstance(x, Tensor):
            store[key] = x.detach().to("cpu", copy=True)

    return keep


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [""])[0][:200]
