"""Lay prompts out in rows of tokens, run them through the model, and keep the logits of each
prompt's last token.

Prompts are packed: a row is a tree of tokens in which prompts share the beginning they have in
common (the template's tokens before the instruction, and its first words where they are the same),
and the attention mask lets each token see its ancestors only. What is shared is read once and
nothing is padded, so a pass costs what its different tokens cost. Where a model cannot be packed
(recurrent state, positions it counts itself, a sliding window shorter than a prompt) a row holds
one prompt, padded on the right. Both give the same numbers; which one a model allows is measured,
not looked up.
"""

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from refusal.core import parallel
from refusal.core.turns import Question
from refusal.model.base import LoadedModel
from refusal.model.batch_size import is_out_of_memory, too_large
from refusal.model.contexts import check_rows
from refusal.model.hooks import Edit, hooked
from refusal.model.row_attention import attending
from refusal.model.rows import Batch, Planned, groups, packed, padded
from refusal.model.sizes import narrowest_window
from refusal.model.token_tree import grow

log = logging.getLogger(__name__)
T = TypeVar("T")

ROW_TOKENS = 768  # attention within a row is quadratic: at this length still a small part of a pass
PROBES = (
    "Why?",
    "Name three rivers of Europe, please.",
    "How do birds find their way home in the autumn?",
)


def plan(
    model: LoadedModel,
    rows: Sequence[Sequence[int]],
    which: Sequence[int] | None = None,
    most: int | None = None,
) -> list[Planned]:
    """Batches of at most ``model.token_budget`` (and ``most``) tokens that hold the prompts
    ``rows`` (at ``which``).
    """
    chosen = list(range(len(rows)) if which is None else which)
    if not chosen:
        return []
    budget = min(model.token_budget.value, most or model.token_budget.value)
    longest = max(len(rows[i]) for i in chosen)
    planned = []
    if not _packable(model, longest):
        order = sorted(chosen, key=lambda i: -len(rows[i]))
        apart = groups(order, [len(rows[i]) for i in order], budget if pads(model) else 0)
        for group in apart:
            tokens = len(group) * len(rows[group[0]])
            planned.append(Planned(tuple(group), tokens, partial(padded, model, rows, group)))
        return planned
    trees = grow(rows, chosen, max(min(ROW_TOKENS, budget), longest))
    per_batch = max(1, budget // max(len(tree.ids) for tree in trees))
    for start in range(0, len(trees), per_batch):
        some = trees[start : start + per_batch]
        prompts = tuple(i for tree in some for i in tree.paths)
        tokens = len(some) * max(len(tree.ids) for tree in some)
        planned.append(Planned(prompts, tokens, partial(packed, model, some)))
    return planned


def read(
    model: LoadedModel, batch: Batch, edits: Sequence[Edit] = (), copies: int = 1
) -> Float[Tensor, "copy prompt vocab"]:
    """Logits of each prompt's last token.

    ``copies`` runs the batch that many times side by side (row ``copy * rows + row``), for edits
    that differ by copy.
    """
    n_rows = batch.ids.shape[0]
    rows = (torch.arange(copies, device=batch.row.device)[:, None] * n_rows + batch.row).flatten()
    last = batch.last.repeat(copies)
    model.forward_tokens += copies * batch.ids.numel()

    with torch.inference_mode(), hooked(edits), model.only_at(rows, last), attending(batch.pieces):
        given = (batch.ids, batch.mask, batch.positions)
        logits = call(model, *(t.repeat(copies, *[1] * (t.dim() - 1)) for t in given))
    return logits.view(copies, len(batch.prompts), -1)


def read_from(
    model: LoadedModel, batch: Batch, starts: Sequence[int]
) -> list[Float[Tensor, "token vocab"]]:
    """For each prompt ``p`` of a batch, the logits that predict its tokens from ``starts[p]`` (at
    least 1) on.
    """
    pairs = zip(batch.paths, starts, strict=True)
    with torch.inference_mode():
        return logits_at(model, batch, [path[start - 1 : -1] for path, start in pairs])


def logits_at(
    model: LoadedModel, batch: Batch, tokens: Sequence[Int[Tensor, "_"]]
) -> list[Float[Tensor, "token vocab"]]:
    """For each prompt of a batch, the logits at some of its tokens, given as indices in its row."""
    counts = [len(some) for some in tokens]
    row = batch.row.cpu().repeat_interleave(torch.tensor(counts))
    model.forward_tokens += batch.ids.numel()
    with model.only_at(row, torch.cat(list(tokens))), attending(batch.pieces):
        logits = call(model, batch.ids, batch.mask, batch.positions)[:, 0]
    return list(logits.split(counts))


def call(
    model: LoadedModel,
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
    logits: Tensor = model.hf(
        **{name: value for name, value in arguments.items() if name in model.arguments}
    ).logits
    return logits


def run_batches(
    model: LoadedModel,
    rows: Sequence[Sequence[int]],
    run: Callable[[Batch], T],
    most: int | None = None,
    which: Sequence[int] | None = None,
) -> Iterator[tuple[Batch, T]]:
    """Lay out ``rows`` and call ``run`` on every batch; out of memory, halve the budget and lay out
    what is left.

    ``most``: tokens a batch, where ``run`` needs much memory for each. ``which``: only these of the
    rows.

    Raises:
        OutOfMemoryError: one prompt alone does not fit.
        PromptError: one is longer than the model's context; ModelLoadError: it has a token that the
            model has not.
    """
    check_rows(model, rows)
    todo = plan(model, rows, which, most)
    while todo:
        planned, *rest = todo
        try:
            batch = planned.lay_out()
            result = run(batch)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            if len(planned.prompts) == 1:
                raise too_large(len(rows[planned.prompts[0]])) from error
            model.token_budget.halve(planned.tokens)
            todo = plan(model, rows, [i for left in todo for i in left.prompts], most)
            continue
        yield batch, result
        todo = rest


def share_batches(
    model: LoadedModel,
    rows: Sequence[Sequence[int]],
    run: Callable[[Batch], T],
    most: int | None = None,
) -> Iterator[tuple[tuple[int, ...], T]]:
    """``run_batches`` with the batches handed out to all processes of a run: each one's prompts and
    result.

    Raises:
        OutOfMemoryError: one prompt alone does not fit.
    """
    model.token_budget.value = parallel.smallest(
        model.token_budget.value
    )  # all lay the same batches out
    units = (
        [planned.prompts for planned in plan(model, rows, most=most)]
        if parallel.world() > 1
        else [None]
    )

    def work(which: tuple[int, ...] | None) -> list[tuple[tuple[int, ...], T]]:
        return [
            (batch.prompts, result) for batch, result in run_batches(model, rows, run, most, which)
        ]

    for part in parallel.share(units, work):
        yield from part


def last_logits(model: LoadedModel, questions: Sequence[Question]) -> Float[Tensor, "prompt vocab"]:
    """Logits of the last prompt token of each question, on the CPU, in their order."""
    out: dict[int, Tensor] = {}
    for prompts, logits in share_batches(
        model, model.tokenize(questions), lambda batch: read(model, batch)[0].cpu()
    ):
        out.update(zip(prompts, logits, strict=True))
    return torch.stack([out[i] for i in range(len(questions))])


def packs(model: LoadedModel) -> bool:
    """Whether prompts may share a row; measured once, and said where they may not."""
    if model.packs is None:
        with uncounted(model):
            model.packs = _measure_packing(model)
        if not model.packs:
            log.warning(
                "%s: prompts cannot share a row in this model, so each gets its own (slower).",
                model.name,
            )
    return model.packs


def pads(model: LoadedModel) -> bool:
    """Whether a row may be padded to the length of another; measured once, and said where it may
    not.

    PaliGemma's prompts see in both directions, and their padding too.
    """
    if model.pads is None:
        rows = model.tokenize(PROBES)
        try:
            with uncounted(model):
                gap = _gap(model, rows, padded(model, rows, range(len(rows))))
        except (RuntimeError, ValueError, IndexError) as error:
            log.info("padding: %s", error)
            gap = math.inf
        model.pads = gap < logit_tolerance(model.hf.dtype)
        if not model.pads:
            log.warning(
                "%s: padding changes what this model says, so prompts are read one by one.",
                model.name,
            )
    return model.pads


def _packable(model: LoadedModel, longest: int) -> bool:
    """Whether prompts up to that length may share a row."""
    return not model.apart and packs(model) and longest <= narrowest_window(model.hf.config)


@contextmanager
def uncounted(model: LoadedModel) -> Iterator[None]:
    """For what is measured of the model at first use: which stage comes first must not change what
    a stage cost.
    """
    before = model.forward_tokens
    try:
        yield
    finally:
        model.forward_tokens = before


def _measure_packing(model: LoadedModel) -> bool:
    """Run a few prompts in one row and each alone: are the logits the same to rounding?"""
    if "position_ids" not in model.arguments:
        return False
    rows = model.tokenize(PROBES)
    try:
        together = packed(model, grow(rows, range(len(rows)), sum(map(len, rows))))
        # What leaks from one prompt into the next (a short convolution, a state) shows most where
        # they part.
        parting = next(
            i for i, tokens in enumerate(zip(*rows, strict=False)) if len(set(tokens)) > 1
        )
        gap = max(_gap(model, rows, together), _gap(model, rows, together, parting))
    except (RuntimeError, ValueError, IndexError) as error:  # a mask of this shape is not taken
        log.info("packing: %s", error)
        return False
    return gap < logit_tolerance(model.hf.dtype)


def rows_gap(model: LoadedModel) -> float:
    """Relative difference between the logits of a few prompts read together, as they always are,
    and each alone.
    """
    rows = model.tokenize(PROBES)
    return max(_gap(model, rows, planned.lay_out()) for planned in plan(model, rows))


def logit_tolerance(dtype: torch.dtype) -> float:
    """Relative difference of logits that rounding explains."""
    return 1e-3 if dtype == torch.float32 else 5e-2


def _gap(model: LoadedModel, rows: Sequence[Sequence[int]], batch: Batch, at: int = -1) -> float:
    """Relative difference between a batch's logits, at token ``at`` of each prompt, and those of
    its prompts alone.
    """
    together = read(model, _ending(batch, at))[0].float()
    alone = torch.cat(
        [read(model, _ending(padded(model, rows, [i]), at))[0] for i in batch.prompts]
    ).float()
    return float((together - alone).norm() / (alone - alone.mean()).norm().clamp_min(1e-12))


def _ending(batch: Batch, at: int) -> Batch:
    """The batch with token ``at`` of each prompt as its last."""
    return replace(
        batch, last=torch.stack([path[at] for path in batch.paths]).to(batch.last.device)
    )
