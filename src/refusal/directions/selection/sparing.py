"""Choose the candidate whose ablation leaves fewest false refusals and the true ones.

All are screened by the refusal metric that is left on pseudo-harmful prompts. From the lowest up,
the first few with a small KL that keep the refusals of harmful prompts by the metric's sign then
complete both kinds of prompts, and the verdicts decide.
"""

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from jaxtyping import Float
from torch import Tensor

from refusal.config.run_config import RunConfig
from refusal.core.direction import Direction
from refusal.core.errors import NonFiniteError
from refusal.core.progress import NOTE, task
from refusal.core.records import CandidateScore
from refusal.detector.verdict import refusal_verdict
from refusal.directions.pool import Passed
from refusal.directions.records import Candidates
from refusal.directions.refusal_metric import kl_divergence, refusal_metric
from refusal.interventions.ablate_add import Ablate
from refusal.model.chat_model import ChatModel
from refusal.model.edits import Intervention
from refusal.model.forward import last_logits
from refusal.model.generation import generate_and_read
from refusal.model.probe import other_dtype

NAME = "false-refusal"

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Bench:
    """What candidates are tried on: prompts of three kinds, refusal tokens, the options."""

    model: ChatModel
    sets: Mapping[str, Passed]
    tokens: Sequence[int]
    config: RunConfig

    def logits(self, name: str, *interventions: Intervention) -> Float[Tensor, "prompt vocab"]:
        """Of the last token of every prompt of a set."""
        with self.model.apply(*interventions):
            return last_logits(self.model, [p.question for p in self.sets[name].prompts])

    def metric(self, logits: Float[Tensor, "prompt vocab"]) -> Float[Tensor, "prompt"]:
        """The refusal metric of each prompt."""
        return refusal_metric(logits, self.tokens)

    def rates(self, *interventions: Intervention) -> tuple[float, float]:
        """The share of pseudo-harmful and of harmful prompts that completions refuse."""
        prompts = [p for name in ("pseudo", "harmful") for p in self.sets[name].prompts]
        with self.model.apply(*interventions):
            questions, new = [p.question for p in prompts], self.config.judged_tokens
            outputs, _ = generate_and_read(self.model, questions, new, f"select: {NAME}")
        hits = []
        for prompt, output in zip(prompts, outputs, strict=True):
            hits.append(refusal_verdict(prompt.text, output).label in ("refusal", "partial"))
        n = len(self.sets["pseudo"].prompts)
        return sum(hits[:n]) / n, sum(hits[n:]) / len(hits[n:])


@dataclass(frozen=True)
class Tried:
    """A candidate with its score.

    Attributes:
        share: of the refusal direction that was taken out of it.
    """

    direction: Direction
    share: float
    score: CandidateScore
    qualified: bool = False

    @property
    def place(self) -> tuple[int, int]:
        """Position and layer."""
        return self.score.position, self.score.layer


def places(candidates: Candidates, layers: Sequence[int]) -> list[tuple[int, Direction]]:
    """Every candidate of some layers, with the number of its lambda."""
    assert candidates.several is not None
    found = []
    for number in range(candidates.several.shape[2]):
        one = replace(candidates, vectors=candidates.several[:, :, number], several=None)
        for position in one.positions:
            by_layer = one.by_layer(position)
            for layer in layers:
                found.append((number, replace(one.at(position, layer), by_layer=by_layer)))
    return found


def screened(
    bench: Bench, candidates: Sequence[tuple[int, Direction]], eligible: int
) -> list[Tried]:
    """All candidates from the lowest metric on pseudo-harmful prompts up; of those with neither a
    KL nor a reason against them it was not asked.
    """
    config, found = bench.config, list[Tried]()
    with task(f"select: {NAME}", total=len(candidates), unit="candidates") as advance:
        for number, direction in candidates:
            metric = math.nan
            if direction.norm > 0:
                metric = float(bench.metric(bench.logits("pseudo", Ablate(direction))).mean())
            why = "layer" if direction.layer >= eligible else None
            why = "nan" if math.isnan(metric) else why
            about = (direction.position, direction.layer, None, None, None, why)
            score = CandidateScore(*about, {NAME: metric})
            found.append(Tried(direction, config.lambdas[number], score))
            advance(1)
    if all(one.score.rejected_because == "nan" for one in found):
        raise NonFiniteError(
            "No candidate has a score: activations are not finite, or those of pseudo-harmful and "
            f"harmless prompts are the same. {other_dtype(bench.model.hf.dtype)}"
        )
    found.sort(key=lambda one: (one.score.rejected_because == "nan", one.score.more[NAME]))
    base = bench.logits("harmless")
    kept = float((bench.metric(bench.logits("harmful")) > 0).double().mean())
    left = config.tried
    for i, one in enumerate(found):
        if left and one.score.rejected_because is None:
            found[i] = _looked(bench, one, base, kept)
            left -= found[i].score.rejected_because is None
    return found


def _looked(bench: Bench, one: Tried, base: Float[Tensor, "prompt vocab"], kept: float) -> Tried:
    """A candidate with its KL and the metric of harmful prompts; ``kept``: of those the share above
    zero, unmodified.
    """
    edit, config = Ablate(one.direction), bench.config
    kl = float(kl_divergence(base, bench.logits("harmless", edit)).mean())
    metric = bench.metric(bench.logits("harmful", edit))
    enough = float((metric > 0).double().mean()) >= config.keep_refusal * kept
    why = None if kl <= config.kl_threshold else "kl"
    why = "nan" if math.isnan(kl) else why if enough else (why or "refusal")
    score = replace(one.score, bypass=float(metric.mean()), kl=kl, rejected_because=why)
    return replace(one, score=score)


def completed(bench: Bench, tried: Sequence[Tried]) -> tuple[list[CandidateScore], Tried | None]:
    """The scores by place, and the best of those whose prompts were completed; ``None`` where there
    are none.
    """
    config = bench.config
    scores = {one.place: one.score for one in reversed(tried)}
    some = [one for one in tried if one.score.kl is not None and one.score.rejected_because is None]
    if not some:  # by the metric none keeps enough: the nearest, so that there is something to see
        near = [
            one for one in tried if one.score.kl is not None and one.score.kl <= config.kl_threshold
        ]
        some = sorted(near, key=lambda one: -(one.score.bypass or 0.0))[: config.tried]
    before, best = bench.rates(), None
    for one in some:
        false, true = bench.rates(Ablate(one.direction))
        keeps = true >= config.keep_refusal * before[1]
        more = {**one.score.more, "pseudo_harmful_refused": false, "harmful_refused": true}
        more["lambda"] = one.share
        score = replace(one.score, more=more, rejected_because=None if keeps else "refusal")
        now = replace(one, score=score, qualified=keeps)
        scores[one.place] = score
        if best is None or _rank(now) < _rank(best):
            best = now
    if best is not None:
        scores[best.place] = best.score
        said = best.score.more
        log.log(
            NOTE,
            "%s: of validation prompts, refused %.0f %% of pseudo-harmful ones (%.0f %% before) and"
            " %.0f %% of harmful ones (%.0f %% before)%s",
            *(NAME, 100 * (said["pseudo_harmful_refused"] or 0), 100 * before[0]),
            *(100 * (said["harmful_refused"] or 0), 100 * before[1]),
            "" if best.qualified else ": more than may be lost, so it is marked unqualified",
        )
    return list(scores.values()), best


def _rank(one: Tried) -> tuple[float, ...]:
    """Those that keep refusals first, by false refusals and the metric; of the others the one that
    keeps most.
    """
    more = one.score.more
    false, true = more["pseudo_harmful_refused"] or 0.0, more["harmful_refused"] or 0.0
    metric = more[NAME] or 0.0
    return (0.0, false, metric) if one.qualified else (1.0, -true, false)
