"""Run a few tokens through a model and keep what enters and leaves its modules."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from refusal.core.errors import NonFiniteError, UnsupportedModelError
from refusal.model.batch_size import is_out_of_memory
from refusal.model.contexts import context_length
from refusal.model.hooks import Edit, hooked
from refusal.model.placement import input_device

PROBE_TOKENS = 8


@dataclass
class Trace:
    """Hidden states of one pass, on the CPU, in the model's own dtype; each ``(1, token,
    d_model)``.

    ``inputs`` and ``block_outputs`` by layer; ``outputs`` by module name, in the order in which the
    modules ran; ``in_tuple``: of how many, where blocks return their output as the first of a
    tuple; ``beside``: how many more tensors like it they return;
    ``runs``: how often block 0 ran.
    """

    inputs: dict[int, Tensor] = field(default_factory=dict)
    block_outputs: dict[int, Tensor] = field(default_factory=dict)
    outputs: dict[str, Tensor] = field(default_factory=dict)
    in_tuple: int = 0
    beside: int = 0
    runs: int = 0

    def after(self, layer: int) -> Tensor:
        """The stream after a block: the input of the next one, or the output of the last."""
        return self.inputs.get(layer + 1, self.block_outputs[layer])

    def see_result(self, result: Any) -> None:
        """Note how a block returns its output."""
        self.runs += 1
        self.in_tuple = len(result) if isinstance(result, tuple) else 0
        if isinstance(result, tuple):
            others = [x for x in result[1:] if isinstance(x, Tensor) and x.is_floating_point()]
            self.beside = sum(x.shape == result[0].shape for x in others)


def probe_ids(model: PreTrainedModel, count: int = PROBE_TOKENS) -> Tensor:
    """A few different token ids, ``(1, token)``; fewer where the context holds no more.

    Raises:
        UnsupportedModelError: it holds next to nothing.
    """
    context = context_length(model.config)
    if context is not None and context < PROBE_TOKENS:
        raise UnsupportedModelError(
            f"The context of {type(model).__name__} holds {context} tokens in all, fewer than a "
            "chat prompt has. Give a model with a longer one."
        )
    count = count if context is None else min(count, context)
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
        edits.append(Edit(module, "input", keep_in(trace.inputs, layer)))
        edits.append(Edit(module, "output", keep_in(trace.block_outputs, layer)))
    edits += [Edit(model.get_submodule(name), "result", trace.see_result) for name in blocks[:1]]
    for name in sorted(modules):
        edits.append(Edit(model.get_submodule(name), "output", keep_in(trace.outputs, name)))
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


def check_pass(model: PreTrainedModel) -> None:
    """Refuse a model whose numbers leave the range of its dtype, or whose embedding or head tells
    no tokens apart.

    Raises:
        NonFiniteError: names the first module with NaN or infinity, the dtype, and which to try.
        UnsupportedModelError: the embedding gives the same vector for every token, or the head the
            same logit, or logits at other places than the tokens given.
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
        and vectors.dim() == 3  # XLNet's has tokens before rows
        and torch.equal(vectors, vectors[:1, :1].expand_as(vectors))
    ):
        raise UnsupportedModelError(
            f"The embedding {ends[0]} gives one vector for every token (zeros, say). {mend}"
        )
    count = probe_ids(model).shape[1]
    if logits is not None and logits.dim() == 3 and logits.shape[1] not in (1, count):
        raise UnsupportedModelError(
            f"{type(model).__name__} gives logits at {logits.shape[1]} places for {count} tokens: "
            "it does not write one token after the other (but a block at once, by diffusion, say). "
            "Give a decoder-only chat model."
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


def keep_in(store: dict[Any, Tensor], key: Any) -> Callable[[Any], None]:
    """A hook's function that copies what it sees to the CPU, under ``key``."""

    def keep(x: Any) -> None:
        if isinstance(x, Tensor):
            store[key] = x.detach().to("cpu", copy=True)

    return keep


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [""])[0][:200]
