"""Streaming means of the residual stream at the post-instruction tokens, and the filter on the
refusal metric.

One forward pass per prompt gives both: the metric decides whether the prompt counts, the block
inputs go into float64 running sums. No per-prompt activation outlives its batch.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from refusal.core import parallel
from refusal.core.direction import Direction
from refusal.core.progress import task
from refusal.core.records import ClassCount, Label, Prompt, PromptPair, RefusalTokens
from refusal.directions.pool_checks import check_enough, check_finite
from refusal.directions.records import Activations
from refusal.directions.refusal_metric import refusal_metric
from refusal.directions.refusal_tokens import check_tokens, tokens_for
from refusal.model.batch_size import keeping_memory
from refusal.model.chat_model import ChatModel
from refusal.model.forward import read, share_batches
from refusal.model.hooks import Edit, skipped
from refusal.model.rows import Batch

CHUNK_PROMPTS = (
    128  # read at once: enough to fill batches, few enough to hold their activations for a moment
)


@dataclass(frozen=True)
class Passed:
    """The prompts of one class that passed the filter, in drawing order, their metrics, and how
    many were drawn.

    ``seen`` holds the fingerprints of all that were drawn.
    """

    prompts: tuple[Prompt, ...]
    metrics: tuple[float, ...]
    count: ClassCount
    seen: frozenset[str] = frozenset()


class Draw(NamedTuple):
    """Which prompts of a pool count: the first ``n``, or all; ``filtered``: of those that pass.

    ``before``: tokens before the post-instruction ones that are read too; 1 is the last token of
    the instruction.
    """

    n: int | None = None
    filtered: bool = True
    before: int = 0


@keeping_memory()
def collect(
    model: ChatModel,
    prompts: PromptPair,
    *,
    n: int | None = None,
    tokens: RefusalTokens | None = None,
    filtered: bool = True,
    layers: int | None = None,
    seed: int | None = None,
) -> Activations:
    """Mean residual stream per class, position and layer.

    Args:
        prompts: the training pools, in drawing order.
        n: prompts per class; drawn until ``n`` have passed the filter. Default: the whole pool.
        tokens: the refusal tokens; default: a preset or chosen from the model's completions of
            these prompts. Without the filter none are needed.
        filtered: keep a harmful prompt only if its metric is > 0, a harmless one only if < 0.
        layers: read only the inputs of blocks ``0 .. layers - 1``; the means of the others are NaN.
            Without the filter the blocks after them are not run. Default: all.
        seed: recorded, not used.

    Raises:
        ConfigError: the refusal tokens are not this model's.
        TooFewPromptsError: fewer than 8 prompts of a class pass.
        NonFiniteError: an activation is NaN or infinite; names the layer.
    """
    return collect_drawn(model, prompts, Draw(n, filtered), tokens, layers, seed)


def collect_drawn(
    model: ChatModel,
    prompts: PromptPair,
    draw: Draw,
    tokens: RefusalTokens | None = None,
    layers: int | None = None,
    seed: int | None = None,
) -> Activations:
    """Mean residual stream per class, position and layer, of what ``draw`` says, which may be
    positions before the post-instruction tokens too; all else is said at ``collect``.
    """
    n, filtered, before = draw
    if tokens is None and filtered:
        tokens = tokens_for(model, prompts)
    if tokens is not None:
        check_tokens(model, tokens)
    sums = {}
    seen: set[str] = set()
    counts = {}
    for label, pool in (("harmful", prompts.harmful), ("harmless", prompts.harmless)):
        total = _Sum(model, layers, before)
        kept, metrics, drawn = [], [], 0
        work = run_pool(model, pool, tokens, draw, f"collect {label}", total.layers)
        for prompt, metric, activation in work:
            drawn += 1
            seen.add(prompt.fingerprint)
            if not filtered or passes(prompt.label, metric):
                if activation is not None:  # else another process has it
                    total.add(activation)
                kept.append(prompt)
                metrics.append(metric)
            if n is not None and len(kept) == n:
                break
        check_enough(model, label, len(kept), drawn, n, pool, filtered)
        sums[label] = total.mean()
        counts[label] = _count(drawn, metrics)
    return Activations(
        harmful=sums["harmful"],
        harmless=sums["harmless"],
        tokens=tokens,
        harmful_count=counts["harmful"],
        harmless_count=counts["harmless"],
        model=model.name,
        seed=seed,
        seen=frozenset(seen),
    )


def draw_passing(
    model: ChatModel,
    pool: Sequence[Prompt],
    label: Label,
    tokens: RefusalTokens | None,
    n: int | None,
    filtered: bool = True,
) -> Passed:
    """The first ``n`` prompts of ``pool`` that pass the filter; without it simply the first.

    Without refusal tokens nothing can be filtered: nothing is run, and the metrics are NaN.

    Raises:
        TooFewPromptsError: fewer than 8 pass.
        NonFiniteError: a metric is NaN.
    """
    work = (
        ((prompt, math.nan, None) for prompt in pool)
        if tokens is None
        else run_pool(model, pool, tokens, Draw(n, filtered), f"filter {label}", 0)
    )
    return keep_passing(model, pool, label, work, Draw(n, filtered))[0]


def keep_passing(
    model: ChatModel,
    pool: Sequence[Prompt],
    label: str,
    work: Iterable[tuple[Prompt, float, Tensor | None]],
    draw: Draw,
) -> tuple[Passed, list[Tensor]]:
    """The prompts that count of what ``run_pool`` gives, with the activations that came with them.

    Raises:
        TooFewPromptsError: fewer than 8 pass.
    """
    kept, metrics, drawn = [], [], 0
    seen: set[str] = set()
    activations: list[Tensor] = []
    for prompt, metric, activation in work:
        drawn += 1
        seen.add(prompt.fingerprint)
        if not draw.filtered or passes(prompt.label, metric):
            kept.append(prompt)
            metrics.append(metric)
            activations += [] if activation is None else [activation]
        if draw.n is not None and len(kept) == draw.n:
            break
    check_enough(model, label, len(kept), drawn, draw.n, pool, draw.filtered)
    count = _count(drawn, metrics)
    return Passed(tuple(kept), tuple(metrics), count, frozenset(seen)), activations


def _count(drawn: int, metrics: Sequence[float]) -> ClassCount:
    mean = sum(metrics) / len(metrics)
    return ClassCount(drawn, len(metrics), None if math.isnan(mean) else mean)


def passes(label: Label, metric: float) -> bool:
    """The filter: harmful prompts must be refused, harmless ones not, by the sign of the metric."""
    return metric > 0 if label == "harmful" else metric < 0


def post_instruction_reads(
    model: ChatModel,
    batch: Batch,
    store: dict[int, Float[Tensor, "prompt position d_model"]],
    layers: int,
    before: int = 0,
) -> list[Edit]:
    """Edits that put what the first ``layers`` blocks read at the post-instruction tokens, and at
    as many ``before`` them, into ``store``.
    """
    last = len(model.chat.suffix) + before
    index = torch.stack([path[-last:] for path in batch.paths])
    rows = batch.row[:, None]

    def read_at(layer: int) -> Edit:
        def keep(x: Tensor) -> None:
            store[layer] = x[rows.to(x.device), index.to(x.device)]

        return Edit(model.hf.get_submodule(model.sites.reading(layer)), "input", keep)

    return [read_at(layer) for layer in range(layers)]


def tokens_before(model: ChatModel, direction: Direction) -> int:
    """How many tokens before the post-instruction ones must be read to reach the positions of a
    direction and of its subspace: 1 where one is the last token of the instruction, else 0.
    """
    earliest = min([direction.position, *(position for position, _ in direction.places)])
    return max(0, -earliest - len(model.chat.suffix))


class _Sum:
    """A float64 running sum on the CPU (Apple's GPUs have no float64)."""

    def __init__(self, model: ChatModel, layers: int | None, before: int) -> None:
        self.n = 0
        self.layers = model.sites.n_layers if layers is None else layers
        shape = (len(model.chat.suffix) + before, model.sites.n_layers, model.sites.d_model)
        self.total: Float[Tensor, "position layer d_model"] = torch.zeros(
            shape, dtype=torch.float64
        )

    def add(self, activation: Float[Tensor, "position layer d_model"]) -> None:
        self.total[:, : self.layers] += activation.double()
        self.n += 1

    def mean(self) -> Float[Tensor, "position layer d_model"]:
        mean = parallel.add_up(self.total) / parallel.total(self.n)
        mean[:, self.layers :] = torch.nan  # not read
        return mean


def run_pool(
    model: ChatModel,
    pool: Sequence[Prompt],
    tokens: RefusalTokens | None,
    draw: Draw,
    name: str,
    layers: int,
    everywhere: bool = False,
) -> Iterator[tuple[Prompt, float, Tensor | None]]:
    """Yield ``(prompt, metric, activations of the first layers)`` in drawing order; runs a little
    ahead.

    The metrics are known in all processes of a run, activations only in the one that has run the
    prompt, unless ``everywhere``.

    The metric and the activations come from one pass. Without the filter only activations are
    needed, so the blocks after the last one read are skipped and the metric is NaN.
    """
    n, filtered, before = draw
    unneeded = [] if filtered or not layers else model.sites.blocks[layers:]
    skip = [model.hf.get_submodule(name) for name in unneeded]

    def run(batch: Batch) -> tuple[list[float], Tensor | None]:
        store: dict[int, Tensor] = {}
        with skipped(skip, model.sites.in_tuple):
            reads = post_instruction_reads(model, batch, store, layers, before)
            logits = read(model, batch, reads)[0]
        known = () if skip or tokens is None else refusal_metric(logits, tokens.ids).tolist()
        metrics = list(known) or [math.nan] * len(logits)
        if n is None:
            advance(len(metrics))
        stacked = (
            torch.stack([store[layer].cpu() for layer in range(layers)], dim=2) if layers else None
        )
        check_finite(model, stacked, known)
        if stacked is None:
            return metrics, None
        here.update(zip(batch.prompts, stacked, strict=True))
        return metrics, stacked if everywhere else None

    start, taken = 0, 0
    with task(name, total=len(pool) if n is None else n) as advance:
        while start < len(pool) and (n is None or taken < n):
            missing = len(pool) - start if n is None else n - taken
            ahead = missing // 8 + 2 if filtered and n is not None else 0  # some will not pass
            chunk = pool[start : start + min(missing + ahead, CHUNK_PROMPTS)]
            here: dict[int, Tensor] = {}
            results: dict[int, float] = {}
            rows = model.tokenize([prompt.question for prompt in chunk])
            for members, (metrics, stacked) in share_batches(model, rows, run):
                results.update(zip(members, metrics, strict=True))
                here.update(zip(members, stacked, strict=True) if stacked is not None else ())
            for i, prompt in enumerate(chunk):
                metric = results[i]
                passed = not filtered or passes(prompt.label, metric)
                if n is not None and passed:
                    advance(1)
                taken += passed
                yield prompt, metric, here.get(i)
            start += len(chunk)
