"""Run prompts through the model: shared prefix once, rows padded, logits of the last prompt token only.

The tokens before the instruction are the same for every prompt, so their keys and values are computed once per batch
and repeated. Rows are padded on the right for reading (a token's index is then its position, which keeps sliding
windows exact) and on the left for generating (every row then ends at the same index).
"""

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from refusal.hooks import Edit, hooked
from refusal.model import ChatModel

Side = Literal["left", "right"]


@dataclass(frozen=True)
class Batch:
    """Rows ready to run; ``last`` is the index of each row's last token within ``ids``."""

    prefix: Int[Tensor, "1 prefix"]
    ids: Int[Tensor, "row token"]
    mask: Bool[Tensor, "row all"]
    positions: Int[Tensor, "row token"]
    last: Int[Tensor, "row"]

    @property
    def rows(self) -> int:
        """Number of prompts."""
        return self.ids.shape[0]


def pack(model: ChatModel, rows: Sequence[Sequence[int]], side: Side = "right", new_tokens: int = 0) -> Batch:
    """Pad token rows to one tensor, with the shared prefix taken off where its cache can be reused.

    ``new_tokens`` is how many tokens will be generated after the rows: a sliding window shorter than the result
    rules the shared prefix out when rows are padded between prefix and prompt.
    """
    shared = _shared_prefix(model, rows, side, new_tokens)
    tails = [list(row[shared:]) for row in rows]
    width = max(len(tail) for tail in tails)
    ids = torch.zeros(len(rows), width, dtype=torch.long)
    real = torch.zeros(len(rows), width, dtype=torch.bool)
    for i, tail in enumerate(tails):
        where = slice(width - len(tail), width) if side == "left" else slice(0, len(tail))
        ids[i, where] = torch.tensor(tail)
        real[i, where] = True
    positions = shared + (real.long().cumsum(-1) - 1).clamp_min(0)
    last = (torch.arange(width) * real).argmax(-1)
    mask = torch.cat([torch.ones(len(rows), shared, dtype=torch.bool), real], dim=1)
    prefix = torch.tensor([list(rows[0][:shared])], dtype=torch.long)
    device = model.device
    return Batch(prefix.to(device), ids.to(device), mask.to(device), positions.to(device), last.to(device))


def forward(
    model: ChatModel, batch: Batch, reads: Sequence[Edit] = (), cache: Any = None
) -> Float[Tensor, "row vocab"]:
    """Logits of each row's last token; ``reads`` see the rows' own tokens, not the shared prefix.

    Give a ``new_cache`` to keep the keys and values for decoding.
    """
    rows, shared = batch.rows, batch.prefix.shape[1]
    head = model.hf.get_submodule(model.sites.head)
    model.forward_tokens += shared + batch.ids.numel()
    with torch.inference_mode():
        if shared:
            cache = new_cache(model) if cache is None else cache
            with hooked([Edit(head, "input", lambda x: x[:, -1:])]):
                call(model, batch.prefix, cache, use_cache=True)
            cache.batch_repeat_interleave(rows)
        index = torch.arange(rows, device=batch.last.device)

        def last_only(x: Tensor) -> Tensor:  # before the vocabulary product, its largest tensor by far
            return x[index.to(x.device), batch.last.to(x.device)][:, None]

        with hooked([*reads, Edit(head, "input", last_only)]):
            logits = call(model, batch.ids, cache, cache is not None, batch.mask, batch.positions)
    return logits[:, -1]


def new_cache(model: ChatModel) -> DynamicCache:
    """An empty cache of the kind the model's layers need."""
    return DynamicCache(config=model.hf.config)


def call(
    model: ChatModel,
    ids: Int[Tensor, "row token"],
    cache: Any,
    use_cache: bool,
    mask: Bool[Tensor, "row all"] | None = None,
    positions: Int[Tensor, "row token"] | None = None,
) -> Float[Tensor, "row kept vocab"]:
    """One call of the transformers model with only the arguments it knows."""
    if mask is None:
        mask = torch.ones_like(ids, dtype=torch.bool)
        positions = torch.arange(ids.shape[1], device=ids.device)[None]
    arguments = {
        "input_ids": ids,
        "attention_mask": mask.long(),
        "position_ids": positions,
        "past_key_values": cache,
        "use_cache": use_cache,
    }
    known = inspect.signature(model.hf.forward).parameters
    output = model.hf(**{name: value for name, value in arguments.items() if name in known})
    logits: Tensor = output.logits
    return logits


def _shared_prefix(model: ChatModel, rows: Sequence[Sequence[int]], side: Side, new_tokens: int) -> int:
    """How many leading tokens to run once for all rows; 0 where that would not pay or not be exact."""
    prefix = list(model.chat.prefix)
    if len(rows) < 2 or not prefix or not model.share_prefix:
        return 0
    room = min(len(row) for row in rows) - len(model.chat.suffix)
    if room < len(prefix) or any(list(row[: len(prefix)]) != prefix for row in rows):
        return 0
    longest = max(len(row) for row in rows) + new_tokens
    for layer in new_cache(model).layers:
        if type(layer) is DynamicLayer:
            continue
        if type(layer) is not DynamicSlidingWindowLayer:  # recurrent states cannot be repeated and continued here
            return 0
        if side == "left" and layer.sliding_window < longest:  # padding after the prefix would shift the window
            return 0
    return len(prefix)
