"""A direction, or a cone of several, found by gradient through the frozen model (arXiv 2502.17420).

It starts at the difference in means that the paper's rule chooses, and stays at its place and norm.
Each step looks at some training prompts of both classes (``rdo_losses.py``), goes against the
gradient's part along the sphere, and comes back to length one. For a cone, the rows of an
orthonormal basis and some random mixtures of them (weights at least 0) must all do: the rows are
made orthonormal again after each step.
"""

import logging
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from refusal.config.run_config import RunConfig
from refusal.core import parallel
from refusal.core.direction import Direction
from refusal.core.progress import NOTE, task
from refusal.core.records import Prompt, PromptPair
from refusal.core.work import Lengths, Read, Search, Work, Write
from refusal.directions.difference_in_means import DifferenceInMeans
from refusal.directions.pool import Passed, draw_passing
from refusal.directions.rdo_losses import TERMS, WEIGHTS, Lesson, Lessons, Term, gradients
from refusal.directions.records import Candidates, Selection
from refusal.directions.refusal_metric import kl_divergence, refusal_metric
from refusal.interventions.ablate_add import Ablate, Add
from refusal.model.chat_model import ChatModel
from refusal.model.edits import Intervention
from refusal.model.endings import end_tokens
from refusal.model.forward import last_logits
from refusal.model.generation import generate_rows

RATE, BETAS = 1e-2, (0.9, 0.98)  # of AdamW, with amsgrad and no decay: the paper's
ANSWER = 30  # tokens of an answer that are learnt, and over which nothing else may change
BATCH = 8  # prompts of each class a step
SAMPLES = 8  # mixtures of a cone's rows a step
PASSES = 7  # of a prompt for one vector: three ways there and back, one unmodified
ENDS = (".", "!", "?", "\n")

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Trained:
    """Orthonormal rows, and the weighted loss at each step, before it."""

    rows: Float[Tensor, "rank d_model"]
    losses: tuple[float, ...]
    terms: tuple[Mapping[Term, float], ...]


class ByGradient(DifferenceInMeans):
    """The paper's direction, led on by gradient; ``--rank`` above 1 gives a cone."""

    def settings(self, config: RunConfig) -> Mapping[str, object]:
        """Rank, and how long it learns."""
        budget = {} if config.rdo_seconds is None else {"rdo_seconds": config.rdo_seconds}
        return {"rank": config.rank, "rdo_epochs": config.rdo_epochs, **budget}

    def refine(
        self,
        model: ChatModel,
        candidates: Candidates,
        selection: Selection,
        pairs: tuple[PromptPair, PromptPair],
        config: RunConfig,
    ) -> Selection:
        """Train on the training prompts that pass the filter; then score on the validation
        prompts.
        """
        tokens, filtered, start = candidates.tokens, self.filters(config), selection.direction
        sizes = zip(pairs, (config.n_train, config.n_val), strict=True)
        drawn = [_pair(model, pair, candidates, filtered, n) for pair, n in sizes]
        lessons = lessons_of(model, start, *(passed.prompts for passed in drawn[0]))
        done = train_rows(model, start, lessons, config)
        seen = start.seen.union(*(passed.seen for pair in drawn for passed in pair))
        direction = replace(start, vector=done.rows[0].clone(), by_layer=None, seen=seen)
        if len(done.rows) > 1:
            places = (start.places[0],) * len(done.rows)
            direction = replace(direction, basis=done.rows, row_places=places)
        assert tokens is not None  # the rule needs some
        bypass, induce, kl = scores_of(model, direction, drawn[1], tokens.ids)
        score = replace(selection.score, bypass=bypass, induce=induce, kl=kl)
        log.log(
            NOTE,
            "rdo: %d steps, loss %.3f to %.3f; cosine with where it started %.3f",
            *(len(done.losses), done.losses[0], done.losses[-1]),
            float(done.rows[0] @ start.vector),
        )
        return replace(selection, direction=direction, score=score)

    def select_costs(self, config: RunConfig, n_layers: int, lengths: Lengths) -> Sequence[Work]:
        """The paper's selection, three sets of answers, and the steps, back and forth."""
        n, vectors = config.n_train, 1 if config.rank == 1 else config.rank + SAMPLES
        passes = PASSES * vectors * config.rdo_epochs * n
        steps = Search(passes * (lengths.train + ANSWER), passes / BATCH)
        write = Write(3 * n, ANSWER, lengths.train, 3)
        again = Read(2 * self.drawn(config) * (n + config.n_val), lengths.train)
        return (*super().select_costs(config, n_layers, lengths), write, again, steps)


def _pair(
    model: ChatModel, prompts: PromptPair, candidates: Candidates, filtered: bool, n: int
) -> tuple[Passed, Passed]:
    """The prompts of both classes that count, as extraction and selection drew them."""
    tokens = candidates.tokens
    return (
        draw_passing(model, prompts.harmful, "harmful", tokens, n, filtered),
        draw_passing(model, prompts.harmless, "harmless", tokens, n, filtered),
    )


def lessons_of(
    model: ChatModel, start: Direction, harmful: Sequence[Prompt], harmless: Sequence[Prompt]
) -> Lessons:
    """What should be said: under ablation of the start to harmful prompts, the first sentence under
    its addition to harmless ones, and the model's own answers to those.
    """
    n = min(len(harmful), len(harmless))
    bad, good = (model.tokenize([p.question for p in some[:n]]) for some in (harmful, harmless))
    answers = _answers(model, bad, "answers", Ablate(start))
    refusals = [_sentence(model, ids) for ids in _answers(model, good, "refusals", Add(start))]
    own = _answers(model, good, "own answers")
    return {
        "answer": _lessons(model, bad, answers),
        "refuse": _lessons(model, good, refusals),
        "retain": tuple(_last(one) for one in _lessons(model, good, own)),
    }


def _answers(
    model: ChatModel, rows: Sequence[list[int]], what: str, *interventions: Intervention
) -> list[list[int]]:
    with model.apply(*interventions):
        return generate_rows(model, rows, ANSWER, f"rdo: {what}")


def _sentence(model: ChatModel, ids: Sequence[int]) -> list[int]:
    """The tokens up to the end of the first sentence, or all."""
    for n in range(1, len(ids) + 1):
        if str(model.tokenizer.decode(list(ids[:n]))).rstrip(" ").endswith(ENDS):
            return list(ids[:n])
    return list(ids)


def _lessons(
    model: ChatModel, rows: Sequence[list[int]], answers: Sequence[Sequence[int]]
) -> tuple[Lesson, ...]:
    """Prompts with their answers; one that is answered by nothing is to be ended at once."""
    end = end_tokens(model)[:1]
    found = []
    for row, answer in zip(rows, answers, strict=True):
        found.append(Lesson((*row, *(answer or end)), len(row)))
    return tuple(found)


def _last(lesson: Lesson) -> Lesson:
    """The last tokens of prompt and answer together."""
    return replace(lesson, start=max(1, len(lesson.row) - ANSWER))


def train_rows(model: ChatModel, start: Direction, lessons: Lessons, config: RunConfig) -> Trained:
    """Lead the start on through ``rdo_epochs`` of the lessons, or until the seconds are over."""
    generator = torch.Generator().manual_seed(config.seed)
    rows = first_rows(start.vector, config.rank, generator).requires_grad_(True)
    optimiser = torch.optim.AdamW([rows], RATE, BETAS, weight_decay=0.0, amsgrad=True)
    began, n = time.perf_counter(), len(lessons["answer"])
    losses: list[float] = []
    terms: list[Mapping[Term, float]] = []
    steps: list[list[int]] = []
    for epoch in range(config.rdo_epochs):
        steps += _dealt(n, config.seed + epoch)

    def over() -> bool:
        spent = time.perf_counter() - began
        return config.rdo_seconds is not None and spent > config.rdo_seconds

    with task("select: rdo", total=len(steps), unit="steps") as advance:
        for which in steps:
            if losses and parallel.decided(over):
                break
            values, rows.grad = step_gradient(model, start, rows, (lessons, which), generator)
            terms.append(values)
            losses.append(sum(WEIGHTS[term] * values[term] for term in TERMS))
            optimiser.step()
            with torch.no_grad():
                rows.copy_(orthonormal_rows(rows))
            advance(1)
    return Trained(rows.detach().clone(), tuple(losses), tuple(terms))


def _dealt(n: int, seed: int) -> list[list[int]]:
    """All lessons once, in batches, shuffled."""
    order = random.Random(seed).sample(range(n), n)
    return [order[i : i + BATCH] for i in range(0, n, BATCH)]


def step_gradient(
    model: ChatModel,
    start: Direction,
    rows: Float[Tensor, "rank d_model"],
    batch: tuple[Lessons, Sequence[int]],
    generator: torch.Generator,
) -> tuple[dict[Term, float], Float[Tensor, "rank d_model"]]:
    """Mean losses of the rows, and of mixtures where there are several, and the part of their
    gradient along the sphere of each row.
    """
    rank = len(rows)
    shares = torch.eye(rank, dtype=rows.dtype)
    if rank > 1:
        drawn = torch.randn(SAMPLES, rank, generator=generator).abs().to(rows.dtype)
        shares = torch.cat([shares, drawn])
    gradient, mean = torch.zeros_like(rows), dict.fromkeys(TERMS, 0.0)
    for share in shares:
        held = rows.detach().clone().requires_grad_(True)
        with torch.enable_grad():
            mixed = share @ held
            unit = mixed / mixed.norm()
        values, along = gradients(model, start, unit, *batch)
        unit.backward(along / len(shares))
        assert held.grad is not None
        gradient += held.grad
        mean = {term: mean[term] + values[term] / len(shares) for term in TERMS}
    fixed = rows.detach()
    return mean, gradient - (gradient * fixed).sum(1, keepdim=True) * fixed


def first_rows(
    start: Float[Tensor, "d_model"], rank: int, generator: torch.Generator
) -> Float[Tensor, "rank d_model"]:
    """The start, and random rows across it."""
    more = torch.randn(rank - 1, len(start), generator=generator).to(start)
    return orthonormal_rows(torch.cat([start[None], more]))


def orthonormal_rows(rows: Float[Tensor, "rank d_model"]) -> Float[Tensor, "rank d_model"]:
    """The nearest in order: the first keeps its direction, each further one what is across those
    before it.
    """
    q, r = torch.linalg.qr(rows.detach().double().mT)
    found: Tensor = (q * r.diagonal().sign()).mT.to(rows.dtype).contiguous()
    return found


def scores_of(
    model: ChatModel, direction: Direction, drawn: tuple[Passed, Passed], tokens: Sequence[int]
) -> tuple[float, float, float]:
    """Bypass, induce and KL of a direction or a subspace, without the search's shortcuts."""
    harmful, harmless = ([p.question for p in passed.prompts] for passed in drawn)
    base = last_logits(model, harmless)
    with model.apply(Ablate(direction)):
        bypass = refusal_metric(last_logits(model, harmful), tokens)
        kl = kl_divergence(base, last_logits(model, harmless))
    with model.apply(Add(direction)):
        induce = refusal_metric(last_logits(model, harmless), tokens)
    return float(bypass.mean()), float(induce.mean()), float(kl.mean())
