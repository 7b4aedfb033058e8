"""Choose one candidate: score them on validation prompts, apply the rule.

The order saves most of the work without changing the answer: induce is scored for every eligible candidate (cheapest),
KL only for those that induce, bypass only for those left.
"""

import logging
import math
from dataclasses import replace

from refusal.activations import MIN_PROMPTS, Passed, draw_passing
from refusal.errors import NoCandidateError, NonFiniteError
from refusal.model import ChatModel
from refusal.progress import task
from refusal.records import Candidates, CandidateScore, PromptPair, Selection
from refusal.selection.rule import Rule, choose, closest, count_rejected, explain
from refusal.selection.score import Scorer

__all__ = ["MIN_PROMPTS", "Passed", "Rule", "choose", "explain", "select"]

log = logging.getLogger(__name__)


def select(
    model: ChatModel,
    candidates: Candidates,
    prompts: PromptPair,
    *,
    n: int | None = None,
    filter: bool = True,
    rule: Rule | None = None,
    layer_step: int = 1,
    strict: bool = False,
) -> Selection:
    """Score the candidates on validation prompts and choose one by the rule.

    Args:
        prompts: the validation pools, in drawing order.
        n: prompts per class, drawn until ``n`` have passed the filter. Default: the whole pool.
        filter: as in ``collect``.
        rule: the thresholds; default: the paper's.
        layer_step: score every ``layer_step``-th layer only (the quick preset); 1 scores all.
        strict: raise instead of falling back when no candidate qualifies.

    Raises:
        NoCandidateError: none qualifies under ``strict``, or none lies inside the KL and layer limits.
        NonFiniteError: every candidate's scores are NaN.
        TooFewPromptsError: fewer than 8 prompts of a class pass the filter.
    """
    rule = rule or Rule()
    n_layers = candidates.n_layers
    harmful = draw_passing(model, prompts.harmful, "harmful", candidates.tokens, n, filter)
    harmless = draw_passing(model, prompts.harmless, "harmless", candidates.tokens, n, filter)
    layers = range(0, rule.eligible_layers(n_layers), layer_step)
    scorer = Scorer(model, harmful.prompts, harmless.prompts, candidates.tokens, max(layers, default=0) + 1)
    scores = [
        CandidateScore(position, layer, None, None, None)
        for position in range(-candidates.n_positions, 0)
        for layer in layers
    ]
    scores = _score(scorer, candidates, scores, "induce", rule)
    scores = _score(scorer, candidates, scores, "kl", rule)
    scores = _score(scorer, candidates, scores, "bypass", rule)
    best = choose(scores, n_layers, **vars(rule))
    if best is None:
        best, scores = _fall_back(scorer, candidates, scores, rule, strict)
    rest = [
        CandidateScore(position, layer, None, None, None, "step" if layer < rule.eligible_layers(n_layers) else "layer")
        for position in range(-candidates.n_positions, 0)
        for layer in range(n_layers)
        if layer not in layers
    ]
    qualified = best.rejected_because is None
    return Selection(
        direction=replace(candidates.at(best.position, best.layer), qualified=qualified),
        score=best,
        scores=tuple(sorted([*scores, *rest], key=lambda s: (s.position, s.layer))),
        qualified=qualified,
        rejected=count_rejected([*scores, *rest]),
        harmful_count=harmful.count,
        harmless_count=harmless.count,
    )


def _score(
    scorer: Scorer, candidates: Candidates, scores: list[CandidateScore], name: str, rule: Rule
) -> list[CandidateScore]:
    """Compute one score for every candidate not yet rejected, and reject by it."""
    wanted = [s for s in scores if s.rejected_because is None]
    done: dict[tuple[int, int], CandidateScore] = {}
    with task(f"select: {name}", total=len(wanted), unit="candidates") as advance:
        for score in wanted:
            value = getattr(scorer, name)(candidates.at(score.position, score.layer))
            score = replace(score, **{name: value})
            done[score.position, score.layer] = replace(score, rejected_because=rule.reject(score, candidates.n_layers))
            advance(1)
    return [done.get((s.position, s.layer), s) for s in scores]


def _fall_back(
    scorer: Scorer, candidates: Candidates, scores: list[CandidateScore], rule: Rule, strict: bool
) -> tuple[CandidateScore, list[CandidateScore]]:
    """No candidate qualifies: score those that only failed to induce, and take the lowest bypass within the limits."""
    if all(s.rejected_because == "nan" for s in scores):
        raise NonFiniteError("Every candidate's scores are NaN. Run with --dtype bfloat16 or float32.")
    message = explain(scores)
    if strict:
        raise NoCandidateError(f"{message} Run without --strict to go on with the closest one, marked unqualified.")
    log.warning("%s Going on with the lowest bypass inside the KL and layer limits, marked unqualified.", message)
    relaxed = replace(rule, induce_threshold=-math.inf)
    again = [replace(s, rejected_because=None) if s.rejected_because == "induce" else s for s in scores]
    again = _score(scorer, candidates, again, "kl", relaxed)
    again = _score(scorer, candidates, again, "bypass", relaxed)
    again = [replace(s, rejected_because=rule.reject(s, candidates.n_layers)) for s in again]
    chosen = closest(again, candidates.n_layers, rule)
    if chosen is None:
        raise NoCandidateError(
            f"{message} None lies inside the KL limit of {rule.kl_threshold} either. "
            "Raise --kl-threshold, or use more training prompts."
        )
    return chosen, again
