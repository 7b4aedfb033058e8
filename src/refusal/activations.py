"""Streaming means of the residual stream at the post-instruction tokens, and the filter on the refusal metric.

One forward pass per prompt gives both: the metric decides whether the prompt counts, the block inputs go into float64
running sums. No per-prompt activation outlives its batch.
"""

import logging
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from refusal.batches import batched
from refusal.errors import NonFiniteError, TooFewPromptsError
from refusal.forward import Batch, forward, pack
from refusal.hooks import Edit
from refusal.metrics import refusal_metric
from refusal.model import ChatModel
from refusal.progress import task
from refusal.records import Activations, ClassCount, Label, Prompt, PromptPair, RefusalTokens
from refusal.refusal_tokens import tokens_for

log = logging.getLogger(__name__)

MIN_PROMPTS = 8

# What to read in the rows of a batch: edits that fill a store of activations by layer.
Reads = Callable[[Batch, dict[int, Tensor]], list[Edit]]


@dataclass(frozen=True)
class Passed:
    """The prompts of one class that passed the filter, in drawing order, and how many were drawn."""

    prompts: tuple[Prompt, ...]
    count: ClassCount


def collect(
    model: ChatModel,
    prompts: PromptPair,
    *,
    n: int | None = None,
    tokens: RefusalTokens | None = None,
    filter: bool = True,
    seed: int | None = None,
) -> Activations:
    """Mean residual stream per class, position and layer.

    Args:
        prompts: the training pools, in drawing order.
        n: prompts per class; drawn until ``n`` have passed the filter. Default: the whole pool.
        tokens: the refusal tokens; default: a preset or chosen from the model's completions of these prompts.
        filter: keep a harmful prompt only if its metric is > 0, a harmless one only if < 0.
        seed: recorded, not used.

    Raises:
        TooFewPromptsError: fewer than 8 prompts of a class pass.
        NonFiniteError: an activation is NaN or infinite; names the layer.
    """
    tokens = tokens_for(model, prompts) if tokens is None else tokens
    sums = {}
    counts = {}
    for label, pool in (("harmful", prompts.harmful), ("harmless", prompts.harmless)):
        total = _Sum(model)
        kept, metrics, drawn = [], [], 0
        for prompt, metric, activation in _run_pool(model, pool, tokens, n, filter, f"collect {label}", total.reads):
            drawn += 1
            if not filter or passes(prompt.label, metric):
                total.add(activation)
                kept.append(prompt)
                metrics.append(metric)
            if n is not None and len(kept) == n:
                break
        _check_enough(model, label, len(kept), drawn, n, pool)
        sums[label] = total.mean()
        counts[label] = ClassCount(drawn, len(kept), sum(metrics) / len(metrics))
    return Activations(
        harmful=sums["harmful"],
        harmless=sums["harmless"],
        tokens=tokens,
        harmful_count=counts["harmful"],
        harmless_count=counts["harmless"],
        model=model.name,
        seed=seed,
    )


def draw_passing(
    model: ChatModel, pool: Sequence[Prompt], label: Label, tokens: RefusalTokens, n: int | None, filter: bool = True
) -> Passed:
    """The first ``n`` prompts of ``pool`` that pass the filter.

    Raises:
        TooFewPromptsError: fewer than 8 pass.
    """
    kept, metrics, drawn = [], [], 0
    for prompt, metric, _ in _run_pool(model, pool, tokens, n, filter, f"filter {label}", None):
        drawn += 1
        if not filter or passes(prompt.label, metric):
            kept.append(prompt)
            metrics.append(metric)
        if n is not None and len(kept) == n:
            break
    _check_enough(model, label, len(kept), drawn, n, pool)
    return Passed(tuple(kept), ClassCount(drawn, len(kept), sum(metrics) / len(metrics)))


def passes(label: Label, metric: float) -> bool:
    """The filter: harmful prompts must be refused, harmless ones not, by the sign of the metric."""
    return metric > 0 if label == "harmful" else metric < 0


def post_instruction_reads(
    model: ChatModel, batch: Batch, store: dict[int, Float[Tensor, "row position d_model"]]
) -> list[Edit]:
    """Edits that put every block's input at the post-instruction tokens into ``store``, by layer."""
    n_positions = len(model.chat.suffix)
    offsets = torch.arange(-n_positions + 1, 1, device=batch.last.device)
    index = batch.last[:, None] + offsets[None]
    rows = torch.arange(batch.rows, device=batch.last.device)[:, None]

    def read(layer: int) -> Edit:
        def keep(x: Tensor) -> None:
            store[layer] = x[rows.to(x.device), index.to(x.device)]

        return Edit(model.hf.get_submodule(model.sites.blocks[layer]), "input", keep)

    return [read(layer) for layer in range(model.sites.n_layers)]


class _Sum:
    """A float64 running sum on the CPU (Apple's GPUs have no float64)."""

    def __init__(self, model: ChatModel) -> None:
        self.model = model
        self.n = 0
        shape = (len(model.chat.suffix), model.sites.n_layers, model.sites.d_model)
        self.total: Float[Tensor, "position layer d_model"] = torch.zeros(shape, dtype=torch.float64)

    def reads(self, batch: Batch, store: dict[int, Tensor]) -> list[Edit]:
        return post_instruction_reads(self.model, batch, store)

    def add(self, activation: Float[Tensor, "position layer d_model"] | None) -> None:
        assert activation is not None
        finite = activation.isfinite().all(-1).all(0)
        if not finite.all():
            layer = int((~finite).nonzero()[0, 0])
            raise NonFiniteError(
                f"The activations at layer {layer} are not finite in {self.model.hf.dtype}. "
                "Run with --dtype bfloat16 or float32."
            )
        self.total += activation.double()
        self.n += 1

    def mean(self) -> Float[Tensor, "position layer d_model"]:
        return self.total / self.n


def _run_pool(
    model: ChatModel,
    pool: Sequence[Prompt],
    tokens: RefusalTokens,
    n: int | None,
    filter: bool,
    name: str,
    reads: Reads | None,
) -> Iterator[tuple[Prompt, float, Tensor | None]]:
    """Yield ``(prompt, metric, activations)`` in drawing order; runs a little ahead of what is taken."""
    start, taken = 0, 0
    with task(name, total=len(pool) if n is None else n) as advance:
        while start < len(pool) and (n is None or taken < n):
            missing = len(pool) - start if n is None else n - taken
            size = min(missing + (missing // 8 + 2 if filter and n is not None else 0), 4 * model.batch_size.value)
            chunk = pool[start : start + size]
            rows = model.tokenize([prompt.text for prompt in chunk])
            results: dict[int, tuple[float, Tensor | None]] = {}

            def run(indices: list[int], rows: list[list[int]] = rows) -> list[tuple[float, Tensor | None]]:
                batch = pack(model, [rows[i] for i in indices])
                store: dict[int, Tensor] = {}
                logits = forward(model, batch, reads(batch, store) if reads is not None else ())
                values = refusal_metric(logits, tokens.ids).tolist()
                if reads is None:
                    return [(value, None) for value in values]
                stacked = torch.stack([store[layer].cpu() for layer in range(len(store))], dim=2)
                return list(zip(values, stacked, strict=True))

            for indices, out in batched([len(row) for row in rows], model.batch_size, run):
                results.update(zip(indices, out, strict=True))
            for i, prompt in enumerate(chunk):
                value, activation = results[i]
                passed = not filter or passes(prompt.label, value)
                if n is None or passed:
                    advance(1)
                taken += passed
                yield prompt, value, activation
            start += len(chunk)


def _check_enough(model: ChatModel, label: str, passed: int, drawn: int, n: int | None, pool: Sequence[Prompt]) -> None:
    """Too few is an error that shows what the model really says; fewer than asked is a warning."""
    if passed < min(MIN_PROMPTS, n or MIN_PROMPTS):
        raise TooFewPromptsError(
            f"Only {passed} of {drawn} {label} prompts pass the refusal filter, at least {MIN_PROMPTS} are needed. "
            f"The model's most likely first tokens there: {_first_tokens(model, pool[:16])}. Give matching "
            "--refusal-tokens, more prompts, or switch the filter off with --no-filter."
        )
    if n is not None and passed < n:
        log.warning(
            "Only %d of %d %s prompts pass the filter (%d wanted): going on with those.", passed, drawn, label, n
        )


def _first_tokens(model: ChatModel, prompts: Sequence[Prompt]) -> str:
    """The commonest greedy first tokens, for an error message."""
    rows = model.tokenize([prompt.text for prompt in prompts])
    seen: Counter[str] = Counter()
    for _, logits in batched(
        [len(r) for r in rows], model.batch_size, lambda ix: forward(model, pack(model, [rows[i] for i in ix]))
    ):
        seen.update(str(model.tokenizer.decode([token])) for token in logits.argmax(-1).tolist())
    return ", ".join(f"{text!r} ({count})" for text, count in seen.most_common(5)) or "none (no prompts)"
