"""Is a recovered direction one of refusal? It is tried on the base, as ``refusal select`` tries a
candidate.

Weights say neither its sign nor how much of it there is. Both are read from the base: at every
layer the difference in means of harmful and harmless prompts, at the last token, is projected on
the direction. What is left is scored by the same bypass, induce and KL, under the same rule.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from refusal.audits.forensics.records import Proof
from refusal.config.rule import Rule
from refusal.core.records import CandidateScore, PromptSplits
from refusal.core.valid import check_width
from refusal.directions.difference_in_means import difference_in_means
from refusal.directions.pool import collect, draw_passing
from refusal.directions.records import Candidates
from refusal.directions.refusal_tokens import tokens_for
from refusal.directions.selection.rule import rejected
from refusal.directions.selection.score import Scorer
from refusal.directions.selection.search import Candidate, Search
from refusal.model.batch_size import keeping_memory
from refusal.model.chat_model import ChatModel

LEAST = 1e-3  # of the largest amount along the direction: with less there is none
PROMPTS = 32  # of each class, to read the sign and size of the direction, and as many to score it


@keeping_memory()
def prove(
    model: ChatModel,
    directions: Float[Tensor, "n d_model"],
    prompts: PromptSplits,
    *,
    n: int = PROMPTS,
    tokens: Sequence[str | int] = (),
    filtered: bool = True,
) -> tuple[Proof, ...]:
    """Try each recovered direction on the base model.

    Args:
        model: the base.
        directions: recovered from the weights, unit vectors.
        prompts: of them the training pools to read the model, the validation pools to score.
        n: prompts of each class for either.
        tokens: the refusal tokens; default: a preset, or chosen from the model's completions.
        filtered: take only prompts that the base refuses or answers as it should.

    Raises:
        DirectionError: directions of another width.
        TooFewPromptsError: the base refuses or answers too few prompts.
    """
    check_width(directions[0], model.sites.d_model)
    found = tokens_for(model, prompts.train, tokens)
    read = collect(model, prompts.train, n=n, tokens=found, filtered=filtered)
    own = difference_in_means(read)
    harmful = draw_passing(model, prompts.val.harmful, "harmful", found, n, filtered)
    harmless = draw_passing(model, prompts.val.harmless, "harmless", found, n, filtered)
    scorer = Scorer(model, harmful, harmless, found, own.n_layers)
    proofs = []
    for direction in directions:
        unit = (direction / direction.norm()).float()
        score = _best(scorer, along(own, unit))
        place = own.vectors[-1, score.layer].float()
        at = float(place @ unit)
        proofs.append(
            Proof(
                layer=score.layer,
                amount=at,
                cosine=at / max(float(place.norm()), 1e-30),
                bypass=score.bypass,
                harmful=harmful.count.mean_metric,
                induce=score.induce,
                harmless=harmless.count.mean_metric,
                kl=score.kl,
                qualified=rejected(score, Rule(), own.n_layers) is None,
                prompts=n,
            )
        )
    return tuple(proofs)


def _best(scorer: Scorer, tried: Candidates) -> CandidateScore:
    """The layer at which adding what is along the direction induces refusal most, of those that the
    rule lets choose. Ablation is of the unit vector: its bypass and KL are those of every layer.
    """
    sizes = tried.vectors[-1].norm(dim=-1)
    # At block 0 the last token is the same in every prompt: what is there is rounding.
    there = (sizes > LEAST * sizes.nan_to_num().max()).tolist()
    eligible = Rule().eligible_layers(tried.n_layers)
    layers = [layer for layer in range(eligible) if there[layer]] or [0]
    search = Search(scorer, [Candidate(tried.at(-1, at)) for at in layers], tried.n_layers)
    search.fill(search.candidates, "induce")
    best = max(search.candidates, key=lambda candidate: candidate.estimate("induce"))
    for score in ("bypass", "kl"):
        search.fill([best], score)
    return search.score_of(best)


def along(own: Candidates, unit: Float[Tensor, "d_model"]) -> Candidates:
    """The candidates at the last token, of each only what is along ``unit``."""
    last = own.vectors[-1:].float()
    vectors = torch.einsum("pld,d,e->ple", last, unit, unit)
    means = None if own.harmless_means is None else own.harmless_means[-1:]
    return replace(own, vectors=vectors, harmless_means=means)
