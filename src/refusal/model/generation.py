"""Batched greedy completions: the shared start read once, rows sorted by length, rows that have
ended leave the batch.

Rows are padded on the left, so that all of them end at the same index and each step appends one
token to every row.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import DynamicCache, GenerationConfig, PreTrainedConfig
from transformers.cache_utils import DynamicSlidingWindowLayer

from refusal.core import parallel
from refusal.core.progress import task
from refusal.model.base import Batching, LoadedModel
from refusal.model.batch_size import BatchSize, batched, row_budget
from refusal.model.caches import cache_bytes_per_token, rows_apart
from refusal.model.contexts import check_rows
from refusal.model.edits import RowWise
from refusal.model.endings import end_tokens, read_outputs
from refusal.model.forward import PROBES, call, logit_tolerance, uncounted
from refusal.model.hooks import Edit, hooked
from refusal.model.sizes import narrowest_window

log = logging.getLogger(__name__)

OnRows = Callable[[Sequence[int]], object]
Ended = Callable[[Sequence[int]], bool]


def generate(
    model: LoadedModel, instructions: Sequence[str], max_new_tokens: int, name: str = "generate"
) -> list[str]:
    """Greedy completions of ``instructions``, in their order, as `read_outputs` gives them."""
    return read_outputs(
        model, generate_rows(model, model.tokenize(instructions), max_new_tokens, name)
    )


def generate_each(
    model: LoadedModel,
    instructions: Sequence[str],
    interventions: RowWise,
    max_new_tokens: int,
    name: str = "generate",
) -> list[list[str]]:
    """Greedy completions of all ``instructions`` under each of the interventions, side by side in
    the same batches.

    A step of a small batch costs little more than reading the weights, so many small runs are best
    done as one.
    """
    rows = model.tokenize(instructions)
    batching(model)  # measured without interventions that differ by row
    n = len(rows)
    with model.apply(interventions):
        outputs = generate_rows(
            model,
            rows * len(interventions),
            max_new_tokens,
            name,
            lambda running: interventions.rows([i // n for i in running]),
        )
    texts = read_outputs(model, outputs)
    return [texts[start : start + n] for start in range(0, len(texts), n)]


def generate_rows(
    model: LoadedModel,
    rows: Sequence[Sequence[int]],
    max_new_tokens: int,
    name: str = "generate",
    on_rows: OnRows | None = None,
    ended: Ended | None = None,
) -> list[list[int]]:
    """Greedy continuations of token ids, in their order, the ending token left out.

    ``on_rows`` is told which of ``rows`` the batch of the coming calls holds, whenever that
    changes; for interventions that differ by row. Nothing is then shared between rows. ``ended``
    says of the tokens written so far whether more are not needed (a stop string is among them).

    Raises:
        PromptError: no room for a prompt and what is to be written; ModelLoadError: a token that
            the model has not.
    """
    check_rows(model, rows, max_new_tokens)
    found: list[list[int]] = [[] for _ in rows]
    ends = end_tokens(model)
    length = max((len(row) for row in rows), default=0) + max_new_tokens
    fits = parallel.smallest(row_budget(model.device, length * cache_bytes_per_token(model)))
    size = model.batch_size if model.batch_size.value <= fits else BatchSize(fits)
    complete_batch = _generate_batch
    if batching(model) == "alone":
        log.warning(
            "%s: its state cannot be padded or thinned out, so prompts are completed one by one.",
            model.name,
        )
        size, complete_batch = BatchSize(1), _generate_alone
    with task(name, total=len(rows) * max_new_tokens, unit="tokens") as advance:

        def run(indices: list[int]) -> list[list[int]]:
            counted = 0

            def count(n: int) -> None:
                nonlocal counted
                counted += n
                advance(n)

            try:
                told = None if on_rows is None else lambda kept: on_rows([indices[i] for i in kept])
                return complete_batch(
                    model, [rows[i] for i in indices], max_new_tokens, ends, count, told, ended
                )
            except (RuntimeError, MemoryError):  # out of memory: the same rows will be tried again
                advance(-counted)
                raise

        for indices, outputs in _shared(rows, size, run):
            for i, output in zip(indices, outputs, strict=True):
                found[i] = output
    return found


def _shared(
    rows: Sequence[Sequence[int]], size: BatchSize, run: Callable[[list[int]], list[list[int]]]
) -> Iterator[tuple[list[int], list[list[int]]]]:
    """``batched`` rows, handed out to all processes of a run: rows of similar length together, the
    longest first.
    """
    order = sorted(range(len(rows)), key=lambda i: -len(rows[i]))
    most = min(parallel.smallest(size.value), -(-len(rows) // parallel.world())) or 1
    units = (
        [order[start : start + most] for start in range(0, len(order), most)]
        if parallel.world() > 1
        else [order]
    )

    def work(members: list[int]) -> list[tuple[list[int], list[list[int]]]]:
        lengths = [len(rows[i]) for i in members]
        return [
            ([members[i] for i in indices], outputs)
            for indices, outputs in batched(
                lengths, size, lambda some: run([members[i] for i in some])
            )
        ]

    for part in parallel.share(units, work):
        yield from part


@dataclass
class _Prefill:
    """Where a batch stands after its prompts have been read."""

    logits: Float[Tensor, "row vocab"]
    mask: Bool[Tensor, "row seen"]
    position: Int[Tensor, "row 1"]
    cache: DynamicCache


def _generate_batch(
    model: LoadedModel,
    rows: Sequence[Sequence[int]],
    max_new_tokens: int,
    ends: Sequence[int],
    count: Callable[[int], object],
    on_rows: OnRows | None,
    ended: Ended | None,
) -> list[list[int]]:
    """Token ids generated for each row, the ending token left out.

    ``count`` is told the tokens of each step; a row that ends counts the tokens it will not need
    any more too.
    """
    outputs: list[list[int]] = [[] for _ in rows]
    stop = torch.tensor(list(ends), dtype=torch.long, device=model.device)
    with torch.inference_mode():
        if on_rows is not None:
            on_rows(range(len(rows)))
        together = on_rows is None and batching(model) == "shared"
        state = read_prompts(model, rows, max_new_tokens, share=together)
        logits, mask, position, cache = state.logits, state.mask, state.position, state.cache
        alive = list(range(len(rows)))
        for step in range(max_new_tokens):
            token: Tensor = logits.argmax(-1).to(model.device)
            going = ~torch.isin(token, stop)
            for row, value, goes_on in zip(alive, token.tolist(), going.tolist(), strict=True):
                if goes_on:
                    outputs[row].append(value)
            if ended is not None:
                going &= torch.tensor(
                    [not ended(outputs[row]) for row in alive], device=going.device
                )
            left = int((~going).sum())
            count(len(alive) + left * (max_new_tokens - step - 1))
            if step == max_new_tokens - 1 or not going.any():
                break
            if not going.all():
                keep = going.nonzero()[:, 0]
                alive = [alive[i] for i in keep.tolist()]
                cache.batch_select_indices(
                    keep.cpu()
                )  # blocks may be on several devices, and their keys with them
                token, mask, position = token[keep], mask[keep], position[keep]
                if on_rows is not None:
                    on_rows(alive)
            mask = torch.cat([mask, mask.new_ones(len(alive), 1)], dim=1)
            position = position + 1
            model.forward_tokens += len(alive)
            logits = call(model, token[:, None], mask, position, cache)[:, -1]
    return outputs


def _generate_alone(
    model: LoadedModel,
    rows: Sequence[Sequence[int]],
    max_new_tokens: int,
    ends: Sequence[int],
    count: Callable[[int], object],
    on_rows: OnRows | None,
    ended: Ended | None,
) -> list[list[int]]:
    """One row through transformers' own generation, which knows every kind of state."""
    if on_rows is not None:
        on_rows([0])
    ids = torch.tensor([list(rows[0])], device=model.device)
    length = ids.shape[1]

    def enough(seen: Tensor, scores: object, **kwargs: object) -> Tensor:
        return torch.tensor(
            [ended is not None and ended(seen[0, length:].tolist())], device=seen.device
        )

    how = GenerationConfig(
        max_new_tokens=max_new_tokens, do_sample=False, eos_token_id=list(ends), pad_token_id=0
    )
    own, model.hf.generation_config = model.hf.generation_config, how  # it may ask for penalties
    try:
        out = model.hf.generate(
            ids, attention_mask=torch.ones_like(ids), stopping_criteria=[enough]
        )  # type: ignore[operator]
    finally:
        model.hf.generation_config = own
    new: list[int] = out[0, length:].tolist()
    model.forward_tokens += ids.shape[1] + len(new)
    count(max_new_tokens)
    return [new[:-1] if new and new[-1] in ends else new]


def read_prompts(
    model: LoadedModel, rows: Sequence[Sequence[int]], new_tokens: int, share: bool = True
) -> _Prefill:
    """Read the prompts into a cache: the shared start once, its keys and values then repeated for
    every row.
    """
    cache = DynamicCache(config=model.hf.config)
    shared = _shared_start(rows, cache, new_tokens, model.hf.config) if share else 0
    tails = [list(row[shared:]) for row in rows]
    width = max(len(tail) for tail in tails)
    ids = torch.tensor([[0] * (width - len(tail)) + tail for tail in tails])
    pad = torch.tensor([width - len(tail) for tail in tails])
    columns = torch.arange(width).expand(len(rows), -1)
    positions = shared + (columns - pad[:, None]).clamp_min(0)
    mask = torch.cat(
        [torch.ones(len(rows), shared, dtype=torch.bool), columns >= pad[:, None]], dim=1
    )
    ids, positions, mask = ids.to(model.device), positions.to(model.device), mask.to(model.device)
    model.forward_tokens += shared + ids.numel()
    # The head sees one token a row: the vocabulary product is the largest tensor by far.
    with hooked([Edit(model.hf.get_submodule(model.sites.head), "input", lambda x: x[:, -1:])]):
        if shared:
            start = torch.tensor([list(rows[0][:shared])], device=model.device)
            everything = torch.ones_like(start, dtype=torch.bool)
            call(model, start, everything, torch.arange(shared, device=model.device)[None], cache)
            cache.batch_repeat_interleave(len(rows))
        logits = call(model, ids, mask, positions, cache)[:, -1]
    return _Prefill(logits, mask, positions[:, -1:], cache)


def _shared_start(
    rows: Sequence[Sequence[int]], cache: DynamicCache, new_tokens: int, config: PreTrainedConfig
) -> int:
    """How many leading tokens to read once for all rows; 0 where that would not be exact."""
    if len(rows) < 2:
        return 0
    longest = max(len(row) for row in rows) + new_tokens
    if longest > narrowest_window(config):
        return 0  # padding after the shared start would shift the window
    for layer in cache.layers:
        if isinstance(layer, DynamicSlidingWindowLayer) and layer.sliding_window < longest:
            return 0
    return common_start(rows)


def common_start(rows: Sequence[Sequence[int]]) -> int:
    """How many leading tokens all rows have in common; each keeps a last token of its own."""
    together = zip(*(row[:-1] for row in rows), strict=False)
    return next(
        (i for i, tokens in enumerate(together) if len(set(tokens)) > 1),
        min(len(row) for row in rows) - 1,
    )


def batching(model: LoadedModel) -> Batching:
    """How rows are put together: the start they share read once, only padded, or each alone;
    measured at first use.

    A few prompts of different length are read and continued by a token together, and each alone.
    """
    if model.batching is None:
        with uncounted(model):
            model.batching = _measure_batching(model)
    return model.batching


def _measure_batching(model: LoadedModel) -> Batching:
    if not rows_apart(model.hf.config):
        return "alone"
    rows = model.tokenize(PROBES)
    if _is_exact(model, rows, share=True):
        return "shared"
    return "padded" if _is_exact(model, rows, share=False) else "alone"


def _is_exact(model: LoadedModel, rows: Sequence[Sequence[int]], share: bool) -> bool:
    try:
        together = _two_steps(model, rows, share)
        alone = torch.cat([_two_steps(model, [row], share=False) for row in rows], dim=1)
    except (RuntimeError, ValueError, IndexError) as error:
        log.info("rows side by side: %s", error)
        return False
    gaps = (together - alone).norm(dim=-1) / (alone - alone.mean()).norm(dim=-1).clamp_min(1e-12)
    return bool(gaps.max() < logit_tolerance(model.hf.dtype))


def _two_steps(
    model: LoadedModel, rows: Sequence[Sequence[int]], share: bool
) -> Float[Tensor, "step row vocab"]:
    """Logits of the last prompt token and of one more token, the same for every row."""
    with torch.inference_mode():
        state = read_prompts(model, rows, 1, share)
        token = torch.full((len(rows), 1), rows[0][-1], device=model.device)
        mask = torch.cat([state.mask, state.mask.new_ones(len(rows), 1)], dim=1)
        after = call(model, token, mask, state.position + 1, state.cache)[:, -1]
    return torch.stack([state.logits, after]).float().cpu()
