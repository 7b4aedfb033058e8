"""What a model is like for this package, and self-checks with measured errors; needs no prompts but
its own few.
"""

import logging
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from refusal.audits import CHECKS
from refusal.core.direction import Direction
from refusal.core.errors import QuantisedModelError, UnsupportedModelError
from refusal.interventions.ablate_add import Ablate
from refusal.model.chat_model import ChatModel
from refusal.model.chat_template import PROBES, Thinking, render, tokenize
from refusal.model.endings import end_tokens
from refusal.model.forward import call, last_logits, logit_tolerance, packs, rows_gap
from refusal.model.generation import generate_rows
from refusal.model.probe import run_probe
from refusal.weights.norms import is_norm
from refusal.weights.parameters import (
    discover_parameters,
    quantisation,
    refuse_quantised,
    verify_parameters,
)
from refusal.weights.probe import Probe

log = logging.getLogger(__name__)

GREEDY_TOKENS = 8
_QUESTIONS = ("Why?", "Name three rivers of Europe, please.")


@dataclass(frozen=True)
class Check:
    """One self-check: what was measured, and the most it may be; ``value`` is infinite where it is
    not a number.
    """

    name: str
    value: float
    limit: float

    @property
    def ok(self) -> bool:
        """Whether the value is within the limit."""
        return self.value <= self.limit


@dataclass(frozen=True)
class BlockKind:
    """Blocks that are written to alike: how many, their writers with multipliers, and which writers
    are norms.
    """

    count: int
    writers: tuple[str, ...]
    post_norms: tuple[str, ...]


@dataclass(frozen=True)
class Inspection:
    """What was found in a model, and the checks.

    ``suffix_ids`` and ``suffix_tokens`` are the post-instruction tokens. ``bos_written`` counts the
    BOS tokens at the start of a prompt as this package tokenises it, ``bos_doubled`` says whether
    the tokenizer would put another one before the template's. ``shares_rows``: prompts can share
    rows of tokens. ``system``, ``turns`` (harmless exchanges before every prompt) and ``prefill``
    (how answers begin): as asked for. ``thinking``: what prompts do about thoughts, and which marks
    were found. ``structural``: the first token of the answer where it is the same for very
    different prompts, and so says nothing about refusal; else ``None``.
    """

    model: str
    revision: str | None
    architecture: str
    parameters: int
    dtype: str
    device: str
    quantisation: str | None
    d_model: int
    blocks: tuple[str, ...]
    kinds: tuple[BlockKind, ...]
    embedding: str
    head: str
    tied: bool
    suffix_ids: tuple[int, ...]
    suffix_tokens: tuple[str, ...]
    bos_written: int
    bos_doubled: bool
    thinking_switch: bool
    system: str | None
    turns: int
    prefill: str
    thinking: Thinking
    structural: str | None
    shares_rows: bool
    checks: tuple[Check, ...]

    @property
    def ok(self) -> bool:
        """Whether every check is within its limit."""
        return all(check.ok for check in self.checks)


def inspect_model(model: ChatModel) -> Inspection:
    """Describe a loaded model and run every self-check on it.

    Raises:
        UnsupportedModelError: a writer that was named does not give hidden states.
    """
    hf, sites, chat = model.hf, model.sites, model.chat
    about = (chat.system, chat.day, chat.thinking, chat.around)
    text = render(model.tokenizer, _QUESTIONS[0], *about)
    ids, doubled = tokenize(model.tokenizer, text), model.tokenizer(text)["input_ids"]
    return Inspection(
        model=model.name,
        revision=model.revision,
        architecture=type(hf).__name__,
        parameters=sum(parameter.numel() for parameter in hf.parameters()),
        dtype=str(hf.dtype).removeprefix("torch."),
        device=str(model.device),
        quantisation=quantisation(hf),
        d_model=sites.d_model,
        blocks=sites.blocks,
        kinds=_kinds(model),
        embedding=sites.embedding,
        head=sites.head,
        tied=_tied(model),
        suffix_ids=chat.suffix,
        suffix_tokens=tuple(str(model.tokenizer.decode([i])) for i in chat.suffix),
        bos_written=_count_bos(model, ids),
        bos_doubled=_count_bos(model, doubled) > 1,
        thinking_switch=chat.thinking_switch,
        system=chat.system,
        turns=len(chat.around.turns) // 2,
        prefill=chat.around.prefill,
        thinking=chat.thinking,
        structural=_structural(model),
        shares_rows=packs(model),
        checks=tuple(found for check in CHECKS.values() if (found := check(model)) is not None),
    )


def check_additive(model: ChatModel) -> Check:
    """Embedding plus the sum of all writes against the stream, at every block input and at the
    end.
    """
    report = model.sites.measure(model.hf)
    name = (
        "input of block 0 + writes = stream"
        if report.additive
        else "left by ablation, not being a sum"
    )
    return Check(name, max(report.errors), report.tolerance)


def check_ablation(model: ChatModel) -> Check:
    """``|r_hat . x| / |x|`` for a random direction under ablation: the most at any block input and
    at the end.
    """
    noise = torch.randn(model.sites.d_model, generator=torch.Generator().manual_seed(0))
    unit = noise / noise.norm()
    with model.apply(Ablate(Direction(unit, 1.0, -1, 0))):
        trace = run_probe(model.hf, model.sites.blocks)

    def left(x: Tensor) -> float:
        x = x.reshape(-1, len(unit))
        return _worst((x.double() @ unit.double()).abs() / x.double().norm(dim=-1).clamp_min(1e-12))

    # The probe's hook at block 0 runs after the ablation's, so it sees the input as the block gets
    # it.
    streams = [*trace.inputs.values(), trace.block_outputs[model.sites.n_layers - 1]]
    limit = 1e-4 if model.hf.dtype == torch.float32 else 1e-2
    return Check("direction left under ablation", max(left(x) for x in streams), limit)


def check_rows(model: ChatModel) -> Check:
    """Prompts read together, in shared rows if the model allows it, against each one alone."""
    name = "prompts sharing a row" if packs(model) else "prompts side by side"
    return Check(f"{name} = each alone", rows_gap(model), logit_tolerance(model.hf.dtype))


def check_cache(model: ChatModel) -> Check:
    """Greedy tokens generated with the cache against one pass without it.

    The value is how far the logit of a generated token is below the best one of the pass without a
    cache, in standard deviations of the logits: 0 where both choose the same token.
    """
    rows = model.tokenize(_QUESTIONS)
    worst = 0.0
    for row, new in zip(rows, generate_rows(model, rows, GREEDY_TOKENS), strict=True):
        ended = len(new) < GREEDY_TOKENS
        ids = torch.tensor([[*row, *new]], device=model.device)
        with torch.inference_mode():
            mask, positions = (
                torch.ones_like(ids, dtype=torch.bool),
                torch.arange(ids.shape[1], device=ids.device),
            )
            logits = call(model, ids, mask, positions[None])[0, len(row) - 1 :].float().cpu()
        chosen = [logits[step, token] for step, token in enumerate(new)]
        if ended:
            chosen.append(logits[len(new), end_tokens(model)].max())
        picked = torch.stack(chosen)
        steps = logits[: len(picked)]
        worst = max(worst, _worst((steps.max(-1).values - picked) / steps.std(-1)))
    # Half precisions round logits of size 30 to eighths, and of two that are all but equal either
    # may win.
    limit = 1e-3 if model.hf.dtype == torch.float32 else 0.25
    return Check("generation with a cache = without", worst, limit)


def check_weights(model: ChatModel) -> Check | None:
    """A random direction projected out of every parameter that writes to the stream: the most that
    a write keeps.

    Infinite where something else writes too; ``None`` where weights cannot be edited at all
    (quantised, offloaded).
    """
    try:
        refuse_quantised(model.hf)
    except (QuantisedModelError, UnsupportedModelError) as error:
        log.info("%s", error)
        return None
    try:
        kept = verify_parameters(model.hf, model.sites, discover_parameters(model.hf, model.sites))
    except UnsupportedModelError as error:
        log.warning("%s", error)
        kept = math.inf
    return Check("direction left by edited weights", kept, Probe(model.hf, model.sites).tolerance)


def _structural(model: ChatModel) -> str | None:
    """The first token that the model writes after every probe, if it is one."""
    first = set(last_logits(model, PROBES).argmax(-1).tolist())
    return str(model.tokenizer.decode([first.pop()])) if len(first) == 1 else None


def _kinds(model: ChatModel) -> tuple[BlockKind, ...]:
    sites = model.sites
    first: dict[tuple[str, ...], int] = {}
    for layer in range(sites.n_layers):
        first.setdefault(sites.describe(layer), layer)
    found = []
    for writers, layer in first.items():
        norms = []
        for shown, name in zip(writers, sites.writers[layer], strict=True):
            if is_norm(model.hf.get_submodule(name)):
                norms.append(shown)
        found.append(BlockKind(sites.kinds[writers], writers, tuple(norms)))
    return tuple(found)


def _tied(model: ChatModel) -> bool:
    embedding, head = model.hf.get_input_embeddings(), model.hf.get_output_embeddings()
    return getattr(head, "weight", None) is not None and head.weight is embedding.weight


def _count_bos(model: ChatModel, ids: list[int]) -> int:
    """How many BOS tokens a prompt starts with."""
    count = 0
    while count < len(ids) and ids[count] == model.tokenizer.bos_token_id:
        count += 1
    return count


def _worst(values: Tensor) -> float:
    """The largest value; infinite if one is not a number."""
    return float(values.nan_to_num(nan=torch.inf, posinf=torch.inf).max())
