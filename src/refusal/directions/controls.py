"""Control directions: what the same interventions do with a direction that is not the model's
refusal direction.

- ``random-1`` …: directions drawn uniformly, with the norm of the direction.
- ``shuffled``: the difference in means at the same position and layer after the labels of the
  training prompts were shuffled, scaled to the same norm: what this recipe finds where there is
  nothing to find. Both classes hold as many harmful prompts: a chance surplus would bring part of
  the direction back, made large by the scaling.
- ``matched``: the difference in means there between built-in harmful prompts and harmless ones
  written to match each in topic and form. It should do what the direction does; where it does not,
  the direction is about something else.
"""

import random
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from refusal.core.direction import Direction
from refusal.core.records import Prompt, PromptPair
from refusal.core.subspace import orthonormal, spanned
from refusal.directions.difference_in_means import difference_in_means
from refusal.directions.pool import Draw, collect_drawn, tokens_before
from refusal.model.chat_model import ChatModel
from refusal.prompts.load import matched_pairs


def control_directions(
    model: ChatModel,
    direction: Direction,
    train: PromptPair,
    *,
    n_random: int = 8,
    n_train: int | None = None,
    matched: PromptPair | None = None,
    seed: int = 0,
) -> dict[str, Direction]:
    """The controls of a direction by name, with a subspace of its rank and directions of the single
    layers where it has them; they are no more evaluated on prompts they have seen than it is.

    Args:
        train: the training pools; their first ``n_train`` prompts a class are shuffled.
        matched: pairs of a harmful prompt and a harmless one like it; by default the built-in ones.
        n_random: number of random directions; 0 gives no controls at all.
    """
    if n_random == 0:
        return {}
    pairs = matched_pairs() if matched is None else matched
    shuffled = _difference(model, _shuffled(train, n_train, seed), direction)
    return {
        **random_directions(direction, n_random, seed),
        "shuffled": replace(shuffled, norm=direction.norm),
        "matched": _difference(model, pairs, direction),
    }


def random_directions(direction: Direction, n: int, seed: int = 0) -> dict[str, Direction]:
    """``n`` uniformly drawn directions of the same norm, position, layer and rank: ``random-1`` …
    ``random-n``.
    """
    generator = torch.Generator().manual_seed(seed)
    draws = torch.randn(n, len(direction.vector), generator=generator, dtype=torch.float64)
    units = (draws / draws.norm(dim=1, keepdim=True)).float()
    return {
        f"random-{i + 1}": _as_large(unit, direction, generator) for i, unit in enumerate(units)
    }


def _as_large(
    unit: Float[Tensor, "d_model"], direction: Direction, generator: torch.Generator
) -> Direction:
    """A drawn direction, with a drawn subspace and drawn layers where the direction has some."""
    found, basis, layers = replace(direction, vector=unit), direction.basis, direction.by_layer
    if basis is not None:
        more = torch.randn(basis[1:].shape, generator=generator, dtype=torch.float64)
        found = replace(found, basis=orthonormal(torch.cat([unit[None].double(), more])))
    if layers is not None:
        drawn = torch.randn(layers.shape, generator=generator, dtype=torch.float64)
        drawn = drawn / drawn.norm(dim=1, keepdim=True)
        found = replace(found, by_layer=(drawn * layers.any(dim=1, keepdim=True)).float())
    return found


def _shuffled(train: PromptPair, n: int | None, seed: int) -> PromptPair:
    """The training prompts dealt into two classes, each with half of the harmful and half of the
    harmless ones.
    """
    dealt: tuple[list[Prompt], list[Prompt]] = ([], [])
    for pool in (train.harmful[:n], train.harmless[:n]):
        order = random.Random(seed).sample(pool, len(pool) // 2 * 2)
        for side, half in zip(dealt, (order[::2], order[1::2]), strict=True):
            side.extend(half)
    return PromptPair(tuple(dealt[0]), tuple(dealt[1]))


def _difference(model: ChatModel, prompts: PromptPair, direction: Direction) -> Direction:
    """The difference in means of two classes at the direction's position and layer, and at those of
    every row of its subspace.
    """
    known = 0 if direction.by_layer is None else len(direction.by_layer)
    layers = max(known, *(layer + 1 for _, layer in direction.places), direction.layer + 1)
    draw = Draw(filtered=False, before=tokens_before(model, direction))
    means = difference_in_means(collect_drawn(model, prompts, draw, layers=layers))
    found = means.at(direction.position, direction.layer)
    if direction.basis is not None:
        found = spanned([found, *(means.at(*place) for place in direction.places[1:])])
    if known:
        found = replace(found, by_layer=means.by_layer(direction.position))
    return replace(
        found,
        qualified=False,
        seed=direction.seed,
        seen=direction.seen | found.seen,
        harmless_mean=direction.harmless_mean,
    )


def cosines(direction: Direction, controls: dict[str, Direction]) -> dict[str, float]:
    """Cosine of each control with the direction, in float64: in float32 it depends on where the
    vectors lie in memory.
    """
    unit = direction.vector.double()
    return {name: float(unit @ control.vector.double()) for name, control in controls.items()}
