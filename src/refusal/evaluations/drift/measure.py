"""How far an intervention moves what the model does otherwise, beyond the first token.

Texts are read with the model forced along them, and two things are kept of every predicted token:
its cross-entropy (nats), and the KL divergence of the intervened from the unmodified model's
next-token distribution.

Three kinds of text, as in the paper (section 4.3, table 9): running text as it is, pairs of
instruction and output, and what the unmodified model itself answers to harmless prompts. On the
last, KL over the first ``k`` tokens of the answer shows damage that the first token's KL (the
selection score) is blind to.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from refusal.core.progress import task
from refusal.core.records import Completion, Metric
from refusal.core.stats import Estimate, mean, ratio, ratio_change
from refusal.core.turns import Question, asked
from refusal.directions.refusal_metric import kl_between, rows_at_once, softmax64
from refusal.evaluations.refusal.rates import metric, random_together
from refusal.interventions.conditions import BASELINE
from refusal.interventions.stream import StreamEdit
from refusal.model.batch_size import FORCED_TOKENS
from refusal.model.chat_model import ChatModel
from refusal.model.edits import Intervention
from refusal.model.endings import thought_opened
from refusal.model.forward import read_from, share_batches
from refusal.model.hooks import Edit, hooked, skipped
from refusal.model.rows import Batch
from refusal.model.thinking_limits import Limits
from refusal.model.thinking_spans import completion_tokens
from refusal.model.thinking_tokens import as_written


@dataclass(frozen=True)
class ForcedText:
    """Token ids of a text, and where the part that counts begins (at least 1: the first token is
    not predicted).
    """

    id: str
    ids: tuple[int, ...]
    start: int


@dataclass(frozen=True)
class Drift:
    """One text under one condition: nats and KL of each token that counts. The KL of the baseline
    is 0.
    """

    id: str
    nats: tuple[float, ...]
    kl: tuple[float, ...]


def running_text(model: ChatModel, texts: Mapping[str, str], tokens: int) -> list[ForcedText]:
    """Texts as they are, with the tokenizer's own special tokens, cut to ``tokens``; one-token
    texts are left out.
    """
    rows = {name: model.tokenizer(text)["input_ids"][:tokens] for name, text in texts.items()}
    return [ForcedText(name, tuple(ids), 1) for name, ids in rows.items() if len(ids) > 1]


def answers(
    model: ChatModel,
    pairs: Sequence[tuple[str, Question, str]],
    tokens: int,
    prefill: bool = False,
) -> list[ForcedText]:
    """``(id, instruction, answer)`` through the chat template; the answer's first ``tokens`` tokens
    count. ``prefill``: the answers come after the beginning that the model's own are given.
    """
    prompts = model.tokenize([question for _, question, _ in pairs], prefill=prefill)
    found = []
    for (name, _, answer), prompt in zip(pairs, prompts, strict=True):
        ids = model.tokenizer(answer, add_special_tokens=False)["input_ids"][:tokens]
        if ids:
            found.append(ForcedText(name, (*prompt, *ids), len(prompt)))
    return found


def own_answers(
    model: ChatModel, completions: Sequence[Completion], tokens: int
) -> list[ForcedText]:
    """The model's baseline completions as texts to be forced along, thoughts marked as it marks
    them itself.
    """
    opened = thought_opened(model)
    if model.chat.thinking.mode == "on":
        return _after_thoughts(model, completions, tokens)
    written = []
    for c in completions:
        own = c.completion.removeprefix(model.chat.around.prefill)
        answer = as_written(model.tokenizer, own, opened)
        written.append((c.prompt_id, asked(c.prompt, c.before), answer))
    return answers(model, written, tokens, prefill=True)


def _after_thoughts(
    model: ChatModel, completions: Sequence[Completion], tokens: int
) -> list[ForcedText]:
    """The answers after the model's own thoughts, which are read and do not count; unfinished ones
    have none.
    """
    prompts = model.tokenize([asked(c.prompt, c.before) for c in completions], freely=True)
    limit, found = Limits(model, tokens), []
    for c, prompt in zip(completions, prompts, strict=True):
        ids = completion_tokens(model, c.completion)
        start = limit.start(ids)
        if start is not None and ids[start:]:
            read = (*prompt, *ids[:start])
            answer = ids[start:][:tokens]
            found.append(ForcedText(c.prompt_id, (*read, *answer), len(read)))
    return found


def measure_drift(
    model: ChatModel,
    texts: Sequence[ForcedText],
    conditions: Mapping[str, Sequence[Intervention]],
    name: str,
) -> dict[str, tuple[Drift, ...]]:
    """Nats and KL of every text under the baseline and under each condition, in the order of
    ``texts``.

    What changes nothing before a block is run from there, on what the unmodified model gave it,
    where a block needs nothing else.
    """
    everything = {BASELINE: (), **conditions}
    begins = {_begins_at(edits) for edits in conditions.values()} if model.sites.resumes else set()
    layers = begins - {0}
    found: dict[str, dict[int, Drift]] = {condition: {} for condition in everything}
    rows = [text.ids for text in texts]

    def run(batch: Batch) -> dict[str, list[Drift]]:
        members = [texts[i] for i in batch.prompts]
        starts = [text.start for text in members]
        base, inputs = _read_keeping(model, batch, starts, layers)
        out = {}
        for condition, interventions in everything.items():
            layer = _begins_at(interventions)
            if condition == BASELINE:
                logits = base
            elif layer in inputs:
                logits = _read_onwards(model, batch, starts, layer, inputs[layer], interventions)
            else:
                with model.apply(*interventions):
                    logits = read_from(model, batch, starts)
            out[condition] = [
                text_drift(*three) for three in zip(members, logits, base, strict=True)
            ]
        advance(len(members))
        return out

    with task(f"drift: {name}", len(texts), "texts") as advance:
        for prompts, out in share_batches(model, rows, run, FORCED_TOKENS):
            for condition, drifts in out.items():
                found[condition].update(zip(prompts, drifts, strict=True))
    order = range(len(texts))
    return {condition: tuple(by_index[i] for i in order) for condition, by_index in found.items()}


def _begins_at(interventions: Sequence[Intervention]) -> int:
    """The block before which an intervention changes nothing; 0 where it may change all."""
    blocks = [one.block if isinstance(one, StreamEdit) else 0 for one in interventions]
    return min((block or 0 for block in blocks), default=0)


def _read_keeping(
    model: ChatModel, batch: Batch, starts: Sequence[int], layers: Collection[int]
) -> tuple[list[Tensor], dict[int, Tensor]]:
    """The unmodified model's logits, and what some of its blocks were given."""
    inputs: dict[int, Tensor] = {}
    keep = []
    for layer in layers:
        block = model.hf.get_submodule(model.sites.blocks[layer])
        keep.append(Edit(block, "input", partial(_keep, inputs, layer)))
    with hooked(keep):
        return read_from(model, batch, starts), inputs


def _keep(inputs: dict[int, Tensor], layer: int, x: Tensor) -> None:
    inputs[layer] = x


def _read_onwards(
    model: ChatModel,
    batch: Batch,
    starts: Sequence[int],
    layer: int,
    stream: Float[Tensor, "row token d_model"],
    interventions: Sequence[Intervention],
) -> list[Tensor]:
    """Logits under interventions that change nothing before a block: from what the unmodified
    model gave it.
    """
    blocks = [model.hf.get_submodule(name) for name in model.sites.blocks]
    begin = Edit(blocks[layer], "input", lambda x: stream)
    model.forward_tokens -= batch.ids.numel() * layer // len(blocks)  # only what is run
    before = skipped(blocks[:layer], model.sites.in_tuple)
    with before, hooked([begin]), model.apply(*interventions):
        return read_from(model, batch, starts)


def drift_metrics(
    drifts: Mapping[str, Sequence[Drift]], set_name: str, k: int | None = None
) -> tuple[Metric, ...]:
    """Cross-entropy and perplexity per token by condition, and their change from the baseline on
    the same texts.

    With ``k`` also the KL of the first token and the mean over the first ``k``. Intervals are over
    texts. What the random directions do together is added.
    """
    found: list[Metric] = []
    base = {drift.id: drift for drift in drifts[BASELINE]}
    for condition, rows in drifts.items():
        n = len(rows)
        weights = [float(len(d.nats)) for d in rows]
        after = [sum(d.nats) for d in rows]
        entropy = ratio(after, weights)
        found.append(metric("cross_entropy", set_name, condition, entropy, n))
        found.append(metric("perplexity", set_name, condition, _exp(entropy), n))
        if condition == BASELINE:
            continue
        before = [sum(base[d.id].nats) for d in rows]
        found.append(
            metric(
                "cross_entropy_change", set_name, condition, ratio_change(before, after, weights), n
            )
        )
        if k is not None:
            several = ratio([sum(d.kl[:k]) for d in rows], [float(len(d.kl[:k])) for d in rows])
            found.append(
                metric("kl_first_token", set_name, condition, mean([d.kl[0] for d in rows]), n)
            )
            found.append(metric(f"kl_first_{k}_tokens", set_name, condition, several, n))
    return (*found, *random_together(found))


def _exp(estimate: Estimate) -> Estimate:
    value, low, high = (
        torch.tensor([estimate.value, estimate.low, estimate.high], dtype=torch.float64)
        .exp()
        .tolist()
    )
    return Estimate(value, low, high)


def text_drift(
    text: ForcedText, logits: Float[Tensor, "token vocab"], base: Float[Tensor, "token vocab"]
) -> Drift:
    """Nats and KL of one text's tokens, in float64, a few tokens at a time.

    Args:
        logits: what predicts each token that counts.
        base: the unmodified model's; the KL is 0 where it is ``logits`` itself.
    """
    targets = torch.tensor(text.ids[text.start :])
    nats: list[float] = []
    kl: list[float] = []
    chunks = (part.split(rows_at_once(logits)) for part in (logits, base, targets))
    for mine, theirs, target in zip(*chunks, strict=True):
        p = softmax64(mine)
        nats += (
            (-p.gather(1, target.to(p.device)[:, None]).clamp_min(1e-300).log()).flatten().tolist()
        )
        kl += [0.0] * len(target) if logits is base else kl_between(softmax64(theirs), p).tolist()
    return Drift(text.id, tuple(round(x, 6) for x in nats), tuple(round(x, 6) for x in kl))
