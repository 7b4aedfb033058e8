"""Choose one candidate: score them on validation prompts, apply the rule, see how firm the choice
is.
"""

import logging
import math
from dataclasses import dataclass, replace

from refusal.config.rule import Rule
from refusal.core.errors import NoCandidateError, NonFiniteError
from refusal.core.records import CandidateScore, PromptPair
from refusal.directions.pool import draw_passing
from refusal.directions.records import Candidates, Selection
from refusal.directions.refusal_tokens import check_tokens, tokens_for
from refusal.directions.selection.rule import (
    SHOWN,
    choose,
    closest,
    count_rejected,
    explain,
    left_out,
)
from refusal.directions.selection.score import Scorer
from refusal.directions.selection.search import Candidate, Search
from refusal.directions.selection.stability import measure_stability
from refusal.model.batch_size import keeping_memory
from refusal.model.chat_model import ChatModel

__all__ = ["Rule", "choose", "explain", "select"]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class HowToSearch:
    """Which candidates are scored, and what is done beside the choice.

    Attributes:
        layer_step: score every ``layer_step``-th layer only; 1 scores all.
        full_map: give every candidate of every layer all three scores, for plots; without it a
            score that the decision does not need is ``None``.
        resamples: of the validation prompts, to see how often the same candidate wins; 0 leaves it
            out.
        strict: raise instead of falling back when no candidate qualifies.
        risk: the probability that may be taken of dropping the candidate which the rule would
            choose, by tests on the first of the prompts; 0 drops nobody but by exact bounds.
    """

    layer_step: int = 1
    full_map: bool = False
    resamples: int = 1000
    strict: bool = False
    risk: float = 0.0


@keeping_memory()
def select(
    model: ChatModel,
    candidates: Candidates,
    prompts: PromptPair,
    *,
    n: int | None = None,
    filtered: bool = True,
    rule: Rule | None = None,
    how: HowToSearch | None = None,
) -> Selection:
    """Score the candidates on validation prompts and choose one by the rule.

    Args:
        prompts: the validation pools, in drawing order.
        n: prompts per class, drawn until ``n`` have passed the filter. Default: the whole pool.
        filtered: as in ``collect``.
        rule: the thresholds; default: the paper's.
        how: which layers are scored, and what is done beside the choice.

    Raises:
        ConfigError: no layer is eligible, or the refusal tokens are not this model's.
        NoCandidateError: none qualifies under ``strict``, or none lies inside the KL and layer
            limits.
        NonFiniteError: every candidate's scores are NaN.
        TooFewPromptsError: fewer than 8 prompts of a class pass the filter.
    """
    rule, how = rule or Rule(), how or HowToSearch()
    n_layers = candidates.n_layers
    rule.check(n_layers)
    tokens = candidates.tokens or tokens_for(model, prompts)
    check_tokens(model, tokens)
    harmful = draw_passing(model, prompts.harmful, "harmful", tokens, n, filtered)
    harmless = draw_passing(model, prompts.harmless, "harmless", tokens, n, filtered)
    layers = range(0, n_layers if how.full_map else rule.eligible_layers(n_layers), how.layer_step)
    shuffled = how.risk > 0 and not how.full_map  # tests need prompts in random order
    scorer = Scorer(model, harmful, harmless, tokens, max(layers, default=0) + 1, shuffled)
    places = [(position, layer) for position in candidates.positions for layer in layers]
    tried = [Candidate(candidates.at(*place)) for place in places]
    search = Search(scorer, tried, n_layers, how.risk)
    search.run(rule, everything=how.full_map)
    if all(c.out == "nan" for c in tried):
        raise NonFiniteError(
            f"Every candidate's scores are NaN in {model.hf.dtype}. Run with --dtype float32."
        )

    best = choose(search.scores(), n_layers, **vars(rule))
    if best is None:
        best = _fall_back(search, rule, how.strict)
    stability = measure_stability(search, best, rule, how.resamples) if how.resamples else None
    scores = sorted(
        [*search.scores(), *left_out(candidates, layers, rule)], key=lambda s: (s.position, s.layer)
    )
    qualified = best.rejected_because is None
    return Selection(
        direction=replace(
            candidates.at(best.position, best.layer),
            qualified=qualified,
            seen=candidates.seen | harmful.seen | harmless.seen,
        ),
        score=best,
        scores=tuple(scores),
        qualified=qualified,
        rejected=count_rejected(scores),
        harmful_count=harmful.count,
        harmless_count=harmless.count,
        stability=stability,
        risk=0.0 if how.full_map else how.risk,
    )


def _fall_back(search: Search, rule: Rule, strict: bool) -> CandidateScore:
    """No candidate qualifies: score those that only failed to induce, and take the lowest bypass
    within the limits.
    """
    failed = [candidate for candidate in search.candidates if candidate.out == "induce"]
    for candidate in failed:
        candidate.out = None
    search.run(replace(rule, induce_threshold=-math.inf))
    best_inducing = sorted(
        search.candidates, key=lambda c: -c.estimate("induce") if c.values["induce"] else math.inf
    )
    search.fill(best_inducing[:SHOWN], "induce")  # for the message: how far they miss
    for candidate in failed:
        candidate.out = "induce"  # not what dropped it now
    search.judge(rule)
    scores = search.scores()
    message = explain(scores, rule)
    if strict:
        raise NoCandidateError(
            f"{message} Run without --strict to go on with the closest one, marked unqualified.",
            scores,
        )
    chosen = closest(scores, search.n_layers, rule)
    if chosen is None:
        raise NoCandidateError(
            f"{message} None lies inside the KL limit of {rule.kl_threshold} either. "
            "Raise --kl-threshold, or use more training prompts.",
            scores,
        )
    log.warning(
        "%s Going on with the lowest bypass inside the KL and layer limits, marked unqualified.",
        message,
    )
    return chosen
