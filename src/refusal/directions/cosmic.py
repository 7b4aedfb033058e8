"""COSMIC (arXiv 2506.00085): the candidate that takes the mean activation of one class to that of
the other, whatever the model says.

The classes are compared where they are least alike: at the tenth of the layers whose means have the
lowest cosine. A candidate's score is the mean over those layers of ``cos(harmful under ablation,
harmless) + cos(harmless under addition, harmful)``, all of them means over validation prompts at
the last prompt token. No refusal token is looked at.
"""

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from refusal.config.run_config import RunConfig
from refusal.core import parallel
from refusal.core.direction import Direction
from refusal.core.errors import NoCandidateError, NonFiniteError
from refusal.core.progress import task
from refusal.core.records import CandidateScore, PromptPair
from refusal.core.work import Lengths, Read, Search, Work
from refusal.directions.difference_in_means import DifferenceInMeans
from refusal.directions.pool import draw_passing
from refusal.directions.records import Candidates, Selection
from refusal.directions.selection.rule import count_rejected, left_out
from refusal.directions.selection.score import Score, Scorer
from refusal.interventions.ablate_add import Ablate, Add
from refusal.model.chat_model import ChatModel
from refusal.model.edits import Intervention
from refusal.model.forward import read, run_batches
from refusal.model.hooks import Edit, skipped
from refusal.model.probe import other_dtype
from refusal.model.rows import Batch

LEAST_ALIKE = 0.1  # share of the layers at which the classes are compared; one at least
TRIED = 3  # candidates, from the highest score down, whose KL is looked at, about
TOGETHER = 8  # candidates for each process between two signs of progress


class Cosmic(DifferenceInMeans):
    """The candidates of ``dim``, and another rule: of the thresholds only KL's and the layers'."""

    needs_tokens = False

    def select(
        self, model: ChatModel, candidates: Candidates, val: PromptPair, config: RunConfig
    ) -> Selection:
        """The highest score with a KL and a layer inside the limits.

        Raises:
            NoCandidateError: no candidate is inside; NonFiniteError: every score is NaN.
            TooFewPromptsError: there are no prompts of a class.
        """
        rule, tokens, n = config.rule, candidates.tokens, config.n_val
        eligible = rule.eligible_layers(candidates.n_layers)
        harmful = draw_passing(model, val.harmful, "harmful", tokens, n, filtered=False)
        harmless = draw_passing(model, val.harmless, "harmless", tokens, n, filtered=False)
        layers = range(0, candidates.n_layers if config.full_map else eligible, config.layer_step)
        places = [
            candidates.at(position, layer) for position in candidates.positions for layer in layers
        ]
        rows = [model.tokenize([p.question for p in some.prompts]) for some in (harmful, harmless)]
        values = cosmic_scores(model, places, rows[0], rows[1])
        if all(map(math.isnan, values)):
            raise NonFiniteError(
                "No candidate has a score: activations are not finite, or those of both classes "
                f"are the same. {other_dtype(model.hf.dtype)}"
            )
        scorer = Scorer(model, harmful, harmless, tokens, eligible if tokens is not None else 0)
        scores, best = _ranked(scorer, places, values, config)
        scores += left_out(candidates, layers, rule)
        scores.sort(key=lambda score: (score.position, score.layer))
        if best is None:
            raise NoCandidateError(
                f"The KL of no candidate is within {rule.kl_threshold:g}. Raise --kl-threshold, or "
                "use more training prompts.",
                scores,
            )
        at = next(i for i, score in enumerate(scores) if _is_of(score, best))
        if tokens is not None:
            bypass, induce = (_mean(scorer, name, best) for name in ("bypass", "induce"))
            scores[at] = replace(scores[at], bypass=bypass, induce=induce)
        return Selection(
            direction=replace(best, seen=candidates.seen | harmful.seen | harmless.seen),
            score=scores[at],
            scores=tuple(scores),
            qualified=True,
            rejected=count_rejected(scores),
            harmful_count=harmful.count,
            harmless_count=harmless.count,
        )

    def select_costs(self, config: RunConfig, n_layers: int, lengths: Lengths) -> Sequence[Work]:
        """The validation prompts unmodified, each class under every candidate, and KL of a few."""
        candidates, read = self.candidates(config, n_layers), config.n_val * lengths.val
        tried = candidates if config.full_map else TRIED
        search = Search((2 * candidates + tried) * read, 2 * candidates + tried)
        return Read(2 * config.n_val, lengths.val), search


def _ranked(
    scorer: Scorer, places: Sequence[Direction], values: Sequence[float], config: RunConfig
) -> tuple[list[CandidateScore], Direction | None]:
    """Candidates from the highest score down, and the first that is inside the limits.

    KL is taken of those above it only, unless the configuration asks for the full map.
    """
    eligible = config.rule.eligible_layers(scorer.model.sites.n_layers)
    scores: list[CandidateScore] = []
    best: Direction | None = None
    for i in sorted(range(len(places)), key=lambda i: (math.isnan(values[i]), -values[i])):
        place, value, kl = places[i], values[i], None
        why = "nan" if math.isnan(value) else "layer" if place.layer >= eligible else None
        if config.full_map or (best is None and why is None):
            kl = _mean(scorer, "kl", place)
            why = why or (None if kl <= config.kl_threshold else "kl")
        if best is None and why is None:
            best = place
        more = {"cosmic": value}
        scores.append(CandidateScore(place.position, place.layer, None, None, kl, why, more))
    return scores, best


def _mean(scorer: Scorer, score: Score, place: Direction) -> float:
    """One of the three scores of a candidate; the same in every process."""
    (found,) = parallel.share(
        [place], lambda it: float(scorer.values(score, 0, scorer.n_prompts(score), [it]).mean())
    )
    return found


def _is_of(score: CandidateScore, place: Direction) -> bool:
    return (score.position, score.layer) == (place.position, place.layer)


def cosmic_scores(
    model: ChatModel,
    places: Sequence[Direction],
    harmful: Sequence[Sequence[int]],
    harmless: Sequence[Sequence[int]],
) -> list[float]:
    """The score of each candidate, -2 to 2, on prompts as token ids; NaN of the zero vector."""
    everywhere = range(model.sites.n_layers)
    bad, good = (last_means(model, rows, everywhere) for rows in (harmful, harmless))
    n = max(1, int(LEAST_ALIKE * len(everywhere)))
    layers = sorted(torch.cosine_similarity(bad, good).argsort(stable=True)[:n].tolist())
    bad, good = bad[layers], good[layers]

    def score(place: Direction) -> float:
        if place.norm == 0:  # the same token there in every prompt: no direction at all
            return math.nan
        ablated = last_means(model, harmful, layers, Ablate(place))
        added = last_means(model, harmless, layers, Add(place))
        cosines = torch.cosine_similarity(ablated, good) + torch.cosine_similarity(added, bad)
        return float(cosines.mean())

    found: list[float] = []
    step = TOGETHER * parallel.world()
    with task("select: cosmic", total=len(places), unit="candidates") as advance:
        for start in range(0, len(places), step):
            some = places[start : start + step]
            found += parallel.share(some, score)
            advance(len(some))
    return found


def last_means(
    model: ChatModel,
    rows: Sequence[Sequence[int]],
    layers: Sequence[int],
    *interventions: Intervention,
) -> Float[Tensor, "layer d_model"]:
    """Mean input of some blocks (in rising order) at the last token of each prompt, float64."""
    blocks = [model.hf.get_submodule(name) for name in model.sites.blocks]

    def run(batch: Batch) -> Float[Tensor, "layer d_model"]:
        found: dict[int, Tensor] = {}

        def reading(layer: int) -> Edit:
            def keep(x: Tensor) -> None:
                last = x[batch.row.to(x.device), batch.last.to(x.device)]
                found[layer] = last.cpu().double().sum(0)

            return Edit(model.hf.get_submodule(model.sites.reading(layer)), "input", keep)

        with model.apply(*interventions), skipped(blocks[max(layers) :], model.sites.in_tuple):
            read(model, batch, [reading(layer) for layer in layers])
        return torch.stack([found[layer] for layer in layers])

    totals = [total for _, total in run_batches(model, rows, run)]
    return torch.stack(totals).sum(0) / len(rows)
