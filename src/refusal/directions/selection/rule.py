"""The selection rule: lowest bypass among the candidates that induce refusal and leave harmless
behaviour alone.
"""

import math
from collections import Counter
from collections.abc import Sequence

from refusal.config.rule import Rule
from refusal.core.records import CandidateScore
from refusal.directions.records import Candidates

SHOWN = 3  # of the nearest misses, in messages


def rejected(score: CandidateScore, rule: Rule, n_layers: int) -> str | None:
    """Which criterion rejects a candidate (``layer``, ``nan``, ``induce``, ``kl``); ``None`` if
    none does.

    A score of ``None`` was not computed and rejects nothing by itself.
    """
    if score.layer >= rule.eligible_layers(n_layers):
        return "layer"
    if any(
        value is not None and math.isnan(value) for value in (score.bypass, score.induce, score.kl)
    ):
        return "nan"
    if score.induce is not None and score.induce < rule.induce_threshold:
        return "induce"
    if score.kl is not None and score.kl > rule.kl_threshold:
        return "kl"
    return None


def choose(
    scores: Sequence[CandidateScore],
    n_layers: int,
    *,
    induce_threshold: float = 0.0,
    kl_threshold: float = 0.1,
    prune_layers: float = 0.2,
) -> CandidateScore | None:
    """The candidate that the rule chooses, or ``None`` when none qualifies; no model needed.

    Candidates without all three scores cannot be chosen. Of equal bypass scores the first in the
    list wins.
    """
    rule = Rule(induce_threshold, kl_threshold, prune_layers)
    complete = [s for s in scores if None not in (s.bypass, s.induce, s.kl)]
    qualified = [s for s in complete if rejected(s, rule, n_layers) is None]
    return min(qualified, key=lambda s: s.bypass, default=None)  # type: ignore[arg-type,return-value]


def closest(scores: Sequence[CandidateScore], n_layers: int, rule: Rule) -> CandidateScore | None:
    """The lowest bypass inside the KL and layer limits, whatever it induces: the stand-in when none
    qualifies.
    """
    anything = Rule(-math.inf, rule.kl_threshold, rule.prune_layers)
    scored = [s for s in scores if s.bypass is not None and s.kl is not None]
    inside = [s for s in scored if rejected(s, anything, n_layers) is None]
    return min(inside, key=lambda s: s.bypass, default=None)  # type: ignore[arg-type,return-value]


def count_rejected(scores: Sequence[CandidateScore]) -> dict[str, int]:
    """How many candidates each criterion rejected."""
    return dict(Counter(s.rejected_because for s in scores if s.rejected_because is not None))


def left_out(candidates: Candidates, layers: Sequence[int], rule: Rule) -> list[CandidateScore]:
    """The candidates of all other ``layers``, with why they were not scored."""
    eligible = rule.eligible_layers(candidates.n_layers)
    others = [layer for layer in range(candidates.n_layers) if layer not in layers]
    found = []
    for position in candidates.positions:
        for layer in others:
            reason = "step" if layer < eligible else "layer"
            found.append(CandidateScore(position, layer, None, None, None, reason))
    return found


def explain(scores: Sequence[CandidateScore], rule: Rule | None = None) -> str:
    """Why no candidate qualifies: how many each criterion rejected, and the nearest with what they
    miss by.
    """
    rule = rule or Rule()
    reasons = ", ".join(
        f"{reason} {count}" for reason, count in sorted(count_rejected(scores).items())
    )
    finite = [s for s in scores if s.induce is not None and not math.isnan(s.induce)]
    nearest = sorted(finite, key=lambda s: -(s.induce or 0.0))[:SHOWN]
    shown = "; ".join(f"({s.position}, {s.layer}) {misses(s, rule)}" for s in nearest)
    return (
        f"No candidate qualifies; rejected by {reasons or 'nothing'}. Nearest: "
        f"{shown or 'none was scored'}."
    )


def misses(score: CandidateScore, rule: Rule) -> str:
    """The scores of a candidate and by how much each misses its threshold."""
    parts = []
    if score.induce is not None:
        gap = rule.induce_threshold - score.induce
        parts.append(f"induce {score.induce:+.2f}" + (f" (misses by {gap:.2f})" if gap > 0 else ""))
    if score.kl is None:
        parts.append("KL not scored")
    else:
        gap = score.kl - rule.kl_threshold
        parts.append(f"KL {score.kl:.3f}" + (f" (misses by {gap:.3f})" if gap > 0 else ""))
    return ", ".join(parts)
