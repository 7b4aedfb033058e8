"""What a direction found by gradient must do, as three losses (arXiv 2502.17420), and their
gradients through the frozen model.

- ``answer``: cross-entropy of the answers to harmful prompts, under ablation;
- ``refuse``: cross-entropy of the beginning of a refusal of harmless prompts, under addition;
- ``retain``: KL from the unmodified model over the last tokens of harmless prompts with the model's
  own answers, under ablation.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from refusal.core.direction import Direction
from refusal.interventions.ablate_add import Ablate, Add
from refusal.interventions.stream import StreamEdit, wide
from refusal.model.base import LoadedModel
from refusal.model.forward import logits_at, plan, read_from
from refusal.model.rows import Batch

Term = Literal["answer", "refuse", "retain"]
TERMS: tuple[Term, ...] = get_args(Term)
WEIGHTS: dict[Term, float] = {"answer": 1.0, "refuse": 0.2, "retain": 1.0}  # the paper's
MOST_TOKENS = 512  # of a pass whose activations are kept for the way back


@dataclass(frozen=True)
class Lesson:
    """A prompt with what follows it, as token ids; ``start`` is where that begins, which is looked
    at from there on.
    """

    row: tuple[int, ...]
    start: int


Lessons = dict[Term, tuple[Lesson, ...]]


def gradients(
    model: LoadedModel,
    direction: Direction,
    unit: Float[Tensor, "d_model"],
    lessons: Lessons,
    which: Sequence[int],
) -> tuple[dict[Term, float], Float[Tensor, "d_model"]]:
    """Each loss over the lessons ``which`` with ``unit`` in the direction's place, and the gradient
    of their weighted sum with respect to it.

    A pass holds some hundred tokens, because all it computes is kept until it has gone back; the
    gradients of passes are added up. A way back is counted as many tokens as the way there: the
    weights get no gradients.
    """
    leaf = unit.detach().clone().requires_grad_(True)
    held = replace(direction, vector=leaf, basis=None, row_places=(), by_layer=None)
    values = dict.fromkeys(TERMS, 0.0)
    with frozen(model):
        for term in TERMS:
            some = [lessons[term][i] for i in which]
            for loss, tokens in _losses(model, term, held, some):
                (WEIGHTS[term] * loss).backward()
                model.forward_tokens += tokens
                values[term] += float(loss.detach())
    assert leaf.grad is not None
    return values, leaf.grad


def loss_of(
    model: LoadedModel, term: Term, direction: Direction, lessons: Sequence[Lesson]
) -> Float[Tensor, ""]:
    """The mean of one loss over some lessons, with its graph."""
    return torch.stack([loss for loss, _ in _losses(model, term, direction, lessons)]).sum()


def _losses(
    model: LoadedModel, term: Term, direction: Direction, lessons: Sequence[Lesson]
) -> Iterator[tuple[Tensor, int]]:
    """A loss's part from each pass, and the tokens of that."""
    edit: StreamEdit = Add(direction) if term == "refuse" else Ablate(direction)
    rows = [lesson.row for lesson in lessons]
    for planned in plan(model, rows, most=MOST_TOKENS):
        batch = planned.lay_out()
        starts = [lessons[i].start for i in batch.prompts]
        base = read_from(model, batch, starts) if term == "retain" else None
        with torch.enable_grad(), model.apply(edit):
            logits = differentiable(model, batch, starts)
        parts = []
        for place, i in enumerate(batch.prompts):
            said = wide(logits[place]).log_softmax(-1)
            if base is None:
                parts.append(_cross_entropy(said, lessons[i]))
            else:
                parts.append(_divergence(wide(base[place].clone()).log_softmax(-1), said))
        yield torch.stack(parts).sum() / len(lessons), batch.ids.numel()


def _cross_entropy(said: Float[Tensor, "token vocab"], lesson: Lesson) -> Float[Tensor, ""]:
    """Mean over the tokens that should follow."""
    due = torch.tensor(lesson.row[lesson.start :], device=said.device)
    loss: Tensor = -said.gather(-1, due[:, None]).mean()
    return loss


def _divergence(
    base: Float[Tensor, "token vocab"], said: Float[Tensor, "token vocab"]
) -> Float[Tensor, ""]:
    """Mean over tokens of KL(base || said), from log-probabilities."""
    return (base.exp() * (base - said)).sum(-1).mean()


def differentiable(
    model: LoadedModel, batch: Batch, starts: Sequence[int]
) -> list[Float[Tensor, "token vocab"]]:
    """What ``read_from`` gives, with the graph that leads to an intervention's vectors."""
    pairs = zip(batch.paths, starts, strict=True)
    return logits_at(model, batch, [path[start - 1 : -1] for path, start in pairs])


@contextmanager
def frozen(model: LoadedModel) -> Iterator[None]:
    """No weight gets a gradient inside the block."""
    asked = [weight for weight in model.hf.parameters() if weight.requires_grad]
    for weight in asked:
        weight.requires_grad_(False)
    try:
        yield
    finally:
        for weight in asked:
            weight.requires_grad_(True)
