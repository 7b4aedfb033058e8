"""Lay prompts out in rows of tokens, run them through the model, and keep the logits of each prompt's last token.

Prompts are packed: a row holds the tokens that all prompts start with once, then the rest of one prompt after another,
and the attention mask lets each rest see the shared start and itself only. Nothing is padded and the start is read once
for the whole row, so a pass costs what its different tokens cost. Where a model cannot be packed (recurrent state,
positions it counts itself, a sliding window shorter than a prompt) a row holds one prompt, padded on the right.
Both give the same numbers; which one a model allows is measured, not looked up.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from refusal.batches import is_out_of_memory, too_large
from refusal.hooks import Edit, hooked
from refusal.model import ChatModel

log = logging.getLogger(__name__)
T = TypeVar("T")

ROW_TOKENS = 768  # attention within a row is quadratic: at this length still a small part of a pass
_PROBES = ("Why?", "Name three rivers of Europe, please.", "How do birds find their way home in the autumn?")


@dataclass(frozen=True)
class Batch:
    """Rows ready to run, and where each prompt's last token is.

    ``mask`` is boolean with one prompt a row (which tokens are real); additive with packed rows.
    ``prompts`` are indices into the list that was laid out, in the order of ``row`` and ``last``.
    """

    ids: Int[Tensor, "row token"]
    positions: Int[Tensor, "row token"]
    mask: Bool[Tensor, "row token"] | Float[Tensor, "row 1 token token"]
    row: Int[Tensor, "prompt"]
    last: Int[Tensor, "prompt"]
    prompts: tuple[int, ...]


def layout(model: ChatModel, rows: Sequence[Sequence[int]], which: Sequence[int] | None = None) -> list[Batch]:
    """Batches of at most ``model.token_budget`` tokens that hold the prompts ``rows`` (those at ``which``)."""
    chosen = list(range(len(rows)) if which is None else which)
    if not chosen:
        return []
    budget = model.token_budget.value
    if not _packable(model, max(len(rows[i]) for i in chosen)):
        order = sorted(chosen, key=lambda i: -len(rows[i]))
        return [_padded(model, rows, group) for group in _groups(order, [len(rows[i]) for i in order], budget)]
    shared = _shared_start(model, [rows[i] for i in chosen])
    longest = max(len(rows[i]) for i in chosen)
    bins = _fill(chosen, {i: len(rows[i]) - shared for i in chosen}, max(min(ROW_TOKENS, budget), longest) - shared)
    width = max(sum(len(rows[i]) - shared for i in group) for group in bins) + shared
    per_batch = max(1, budget // width)
    return [_packed(model, rows, bins[start : start + per_batch], shared) for start in range(0, len(bins), per_batch)]


def read(
    model: ChatModel, batch: Batch, edits: Sequence[Edit] = (), copies: int = 1
) -> Float[Tensor, "copy prompt vocab"]:
    """Logits of each prompt's last token.

    ``copies`` runs the batch that many times side by side (row ``copy * rows + row``), for edits that differ by copy.
    """
    n_rows = batch.ids.shape[0]
    head = model.hf.get_submodule(model.sites.head)
    rows = (torch.arange(copies, device=batch.row.device)[:, None] * n_rows + batch.row).flatten()
    last = batch.last.repeat(copies)
    model.forward_tokens += copies * batch.ids.numel()

    def last_only(x: Tensor) -> Tensor:  # before the vocabulary product, its largest tensor by far
        return x[rows.to(x.device), last.to(x.device)][:, None]

    with torch.inference_mode(), hooked([*edits, Edit(head, "input", last_only)]):
        logits = call(
            model, *(t.repeat(copies, *[1] * (t.dim() - 1)) for t in (batch.ids, batch.mask, batch.positions))
        )
    return logits.view(copies, len(batch.prompts), -1)


def call(
    model: ChatModel,
    ids: Int[Tensor, "row token"],
    mask: Tensor,
    positions: Int[Tensor, "row token"],
    cache: Any = None,
) -> Float[Tensor, "out kept vocab"]:
    """One call of the transformers model with only the arguments it knows."""
    arguments = {
        "input_ids": ids,
        "attention_mask": mask.long() if mask.dtype == torch.bool else mask,
        "position_ids": positions,
        "past_key_values": cache,
        "use_cache": cache is not None,
    }
    logits: Tensor = model.hf(**{name: value for name, value in arguments.items() if name in model.arguments}).logits
    return logits


def run_batches(
    model: ChatModel, rows: Sequence[Sequence[int]], run: Callable[[Batch], T]
) -> Iterator[tuple[Batch, T]]:
    """Lay out ``rows`` and call ``run`` on every batch; out of memory, halve the budget and lay out what is left.

    Raises:
        OutOfMemoryError: one prompt alone does not fit.
    """
    todo = layout(model, rows)
    while todo:
        batch, *rest = todo
        try:
            result = run(batch)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            if len(batch.prompts) == 1:
                raise too_large(len(rows[batch.prompts[0]])) from error
            model.token_budget.halve(batch.ids.numel())
            todo = layout(model, rows, [i for left in todo for i in left.prompts])
            continue
        yield batch, result
        todo = rest


def last_logits(model: ChatModel, texts: Sequence[str]) -> Float[Tensor, "prompt vocab"]:
    """Logits of the last prompt token of each text, on the CPU, in their order."""
    out: dict[int, Tensor] = {}
    for batch, logits in run_batches(model, model.tokenize(texts), lambda batch: read(model, batch)[0].cpu()):
        out.update(zip(batch.prompts, logits, strict=True))
    return torch.stack([out[i] for i in range(len(texts))])


def _shared_start(model: ChatModel, rows: Sequence[Sequence[int]]) -> int:
    """How many leading tokens all rows share, the post-instruction tokens not counted."""
    ordered = sorted(list(row) for row in rows)  # what the first and the last share, all share
    first, final = ordered[0], ordered[-1]
    room = min(len(row) for row in rows) - len(model.chat.suffix)
    same = (i for i, (a, b) in enumerate(zip(first, final, strict=False)) if a != b)
    return max(0, min(next(same, room), room))


def _groups(order: Sequence[int], lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Cut a list sorted by falling length into groups whose padded size keeps to the budget."""
    groups: list[list[int]] = []
    width = 0
    for index, length in zip(order, lengths, strict=True):
        if groups and (len(groups[-1]) + 1) * width <= budget:
            groups[-1].append(index)
        else:
            groups.append([index])
            width = length
    return groups


def _fill(chosen: Sequence[int], lengths: dict[int, int], capacity: int) -> list[list[int]]:
    """Deal prompts into as few rows as hold them, longest first, each into the emptiest row."""
    n_rows = -(-sum(lengths.values()) // capacity)
    while True:
        rows: list[list[int]] = [[] for _ in range(n_rows)]
        used = [0] * n_rows
        for i in sorted(chosen, key=lambda i: -lengths[i]):
            row = min(range(n_rows), key=used.__getitem__)
            rows[row].append(i)
            used[row] += lengths[i]
        if max(used) <= capacity:
            return rows
        n_rows += 1


def _padded(model: ChatModel, rows: Sequence[Sequence[int]], group: Sequence[int]) -> Batch:
    """One prompt a row, padded on the right: a token's index is its position."""
    width = max(len(rows[i]) for i in group)
    ids = torch.tensor([list(rows[i]) + [0] * (width - len(rows[i])) for i in group])
    length = torch.tensor([len(rows[i]) for i in group])
    positions = torch.arange(width).expand(len(group), -1)
    mask = positions < length[:, None]
    tensors = (ids, positions, mask, torch.arange(len(group)), length - 1)
    return Batch(*_on_device(model, tensors), tuple(group))


def _packed(model: ChatModel, rows: Sequence[Sequence[int]], bins: Sequence[Sequence[int]], shared: int) -> Batch:
    """The shared start and then the rest of each prompt, row by row; padding at the end sees only itself."""
    width = max(shared + sum(len(rows[i]) - shared for i in group) for group in bins)
    ids = torch.zeros(len(bins), width, dtype=torch.long)
    positions = torch.zeros(len(bins), width, dtype=torch.long)
    owner = -torch.arange(2, width + 2).repeat(len(bins), 1)  # negative and different: padding belongs to nobody
    row, last = [], []
    for r, group in enumerate(bins):
        ids[r, :shared] = torch.tensor(rows[group[0]][:shared], dtype=torch.long)
        positions[r, :shared] = torch.arange(shared)
        owner[r, :shared] = -1
        end = shared
        for i in group:
            rest = rows[i][shared:]
            where = slice(end, end + len(rest))
            ids[r, where] = torch.tensor(list(rest), dtype=torch.long)
            positions[r, where] = torch.arange(shared, shared + len(rest))
            owner[r, where] = i
            end += len(rest)
            row.append(r)
            last.append(end - 1)
    sees = (owner[:, :, None] == owner[:, None, :]) | (owner[:, None, :] == -1)
    sees &= torch.ones(width, width, dtype=torch.bool).tril()
    sees |= torch.eye(width, dtype=torch.bool)
    dtype = model.hf.dtype
    mask = torch.zeros(sees.shape, dtype=dtype).masked_fill(~sees, torch.finfo(dtype).min)[:, None]
    tensors = (ids, positions, mask, torch.tensor(row), torch.tensor(last))
    return Batch(*_on_device(model, tensors), tuple(i for group in bins for i in group))


def _on_device(
    model: ChatModel, tensors: tuple[Tensor, Tensor, Tensor, Tensor, Tensor]
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    ids, positions, mask, row, last = (tensor.to(model.device) for tensor in tensors)
    return ids, positions, mask, row, last


def packs(model: ChatModel) -> bool:
    """Whether prompts may share a row; measured once, and said where they may not."""
    if model.packs is None:
        model.packs = _measure_packing(model)
        if not model.packs:
            log.warning("%s: prompts cannot share a row in this model, so each gets its own (slower).", model.name)
    return model.packs


def _packable(model: ChatModel, longest: int) -> bool:
    """Whether prompts up to that length may share a row."""
    config = model.hf.config.get_text_config()
    windows = [getattr(config, name, None) for name in ("sliding_window", "attention_chunk_size")]
    return packs(model) and all(not window or longest <= window for window in windows)  # 0 is no window too


def _measure_packing(model: ChatModel) -> bool:
    """Run a few prompts in one row and each alone: are the logits the same to rounding?"""
    if "position_ids" not in model.arguments:
        return False
    rows = model.tokenize(_PROBES)
    shared = _shared_start(model, rows)
    try:
        together = _packed(model, rows, [range(len(rows))], shared)
        # What leaks from one prompt into the next (a short convolution, a state) shows most in its first token.
        gap = max(_gap(model, rows, together), _gap(model, rows, together, first=shared))
    except (RuntimeError, ValueError, IndexError) as error:  # a mask of this shape is not taken
        log.info("packing: %s", error)
        return False
    return gap < logit_tolerance(model.hf.dtype)


def rows_gap(model: ChatModel) -> float:
    """Relative difference between the logits of a few prompts read together, as they always are, and each alone."""
    rows = model.tokenize(_PROBES)
    return max(_gap(model, rows, batch) for batch in layout(model, rows))


def logit_tolerance(dtype: torch.dtype) -> float:
    """Relative difference of logits that rounding explains."""
    return 1e-3 if dtype == torch.float32 else 5e-2


def _gap(model: ChatModel, rows: Sequence[Sequence[int]], batch: Batch, first: int | None = None) -> float:
    """Relative difference between a batch's logits and those of its prompts run alone.

    At the last token of each prompt, or at the one of index ``first``.
    """
    lengths = torch.tensor([len(rows[i]) for i in batch.prompts], device=batch.last.device)
    back = torch.zeros_like(lengths) if first is None else lengths - 1 - first
    together = read(model, replace(batch, last=batch.last - back))[0].float()
    singles = [_padded(model, rows, [i]) for i in batch.prompts]
    each = zip(singles, back, strict=True)
    alone = torch.cat([read(model, replace(single, last=single.last - b))[0] for single, b in each]).float()
    return float((together - alone).norm() / (alone - alone.mean()).norm().clamp_min(1e-12))
