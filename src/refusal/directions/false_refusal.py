"""The false-refusal direction (arXiv 2410.03415): what a model has in common where it refuses
prompts that only look harmful, without the refusal of harmful ones.

``w = mean(pseudo-harmful prompts that are refused) - mean(harmless prompts)`` at each place, and
``w' = w - lambda u u'w`` with ``u`` the refusal direction. Ablating ``w'`` should end false
refusals and leave true ones. The choice is made by that, on validation prompts: candidates in order
of the refusal metric that their ablation leaves on pseudo-harmful prompts; of the first few whose
KL is small and whose ablation keeps the refusals of harmful prompts by the metric's sign, the one
whose completions refuse fewest pseudo-harmful prompts while they still refuse harmful ones.
"""

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from refusal.config.run_config import RunConfig
from refusal.core.direction import Direction
from refusal.core.errors import DirectionError, NoCandidateError
from refusal.core.filters import passes_judged
from refusal.core.records import Prompt, PromptPair, RefusalTokens
from refusal.core.subspace import project_onto
from refusal.core.valid import check_width
from refusal.core.work import Lengths, Read, Search, Work, Write
from refusal.directions.difference_in_means import DifferenceInMeans
from refusal.directions.judged_pool import Reading, draw_judged
from refusal.directions.pool import Draw, Passed, collect, draw_passing, keep_passing, run_pool
from refusal.directions.records import Candidates, Selection
from refusal.directions.refusal_tokens import check_tokens, tokens_for
from refusal.directions.selection.rule import count_rejected, left_out
from refusal.directions.selection.sparing import Bench, completed, places, screened
from refusal.model.chat_model import ChatModel
from refusal.prompts.pseudo_harmful import pseudo_harmful

LENGTH = 1.4  # tokens of a pseudo-harmful prompt for each of a harmful one


class FalseRefusal(DifferenceInMeans):
    """Candidates ``w'``, and a rule of their own."""

    def settings(self, config: RunConfig) -> Mapping[str, object]:
        """The pool, what is kept of refusal, and how many candidates complete prompts."""
        pool = pseudo_harmful(config)
        digest = hashlib.sha256("\n".join(sorted(p.fingerprint for p in pool)).encode())
        given = config.refusal_direction
        found: dict[str, object] = {
            "pseudo_harmful": digest.hexdigest(),
            "lambdas": config.lambdas,
            "keep_refusal": config.keep_refusal,
            "tried": config.tried,
            "judged_tokens": config.judged_tokens,
        }
        if given is not None:
            kept = refusal_direction(given)
            found["refusal_direction"] = kept.rows.tolist()
        return found

    def extract(
        self, model: ChatModel, train: PromptPair, tokens: RefusalTokens | None, config: RunConfig
    ) -> Candidates:
        """``w'`` at every position and layer, for each lambda.

        Raises:
            TooFewPromptsError: too few pseudo-harmful prompts are refused.
            DirectionError: the refusal direction that is given is another model's.
        """
        tokens = tokens or tokens_for(model, train)
        layers = self.layers_read(config, model.sites.n_layers)
        means = collect(
            model,
            train,
            n=config.n_train,
            tokens=tokens,
            filtered=self.filters(config),
            layers=layers,
            seed=config.seed,
        )
        some = refused(model, pseudo_harmful(config), tokens, config.n_train, config)
        draw, layers = Draw(filtered=False), layers or model.sites.n_layers
        work = run_pool(model, some.prompts, None, draw, "collect pseudo-harmful", layers, True)
        total = torch.zeros_like(means.harmless)
        for _, _, read in work:
            assert read is not None  # every process has them
            total[:, :layers] += read.double()
        false = total / len(some.prompts) - means.harmless  # NaN where harmless ones were not read
        seen = means.seen | some.seen
        refusal = _units(means.harmful - means.harmless)
        if config.refusal_direction is not None:
            kept = refusal_direction(config.refusal_direction)
            _check_of(model, kept)
            refusal, seen = kept.rows.double(), seen | kept.seen
        each = [false - share * project_onto(false, refusal) for share in config.lambdas]
        return Candidates(
            vectors=each[0].float(),
            tokens=tokens,
            model=model.name,
            seed=config.seed,
            seen=seen,
            harmless_means=means.harmless.float(),
            counts={"harmful": means.harmful_count, "harmless": means.harmless_count},
            several=torch.stack(each, dim=2).float(),
        )

    def select(
        self, model: ChatModel, candidates: Candidates, val: PromptPair, config: RunConfig
    ) -> Selection:
        """The candidate whose ablation leaves fewest false refusals and the true ones.

        Raises:
            NoCandidateError: none keeps enough refusals with a KL inside the limit, and ``strict``,
                or none is finite and inside.
            TooFewPromptsError: too few prompts of a class count.
            NonFiniteError: every candidate's score is NaN.
        """
        tokens = candidates.tokens or tokens_for(model, val)
        check_tokens(model, tokens)
        pool = [p for p in pseudo_harmful(config) if p.fingerprint not in candidates.seen]
        filtered, n = self.filters(config), config.n_val
        sets = {
            "pseudo": refused(model, pool, tokens, n, config),
            "harmful": draw_passing(model, val.harmful, "harmful", tokens, n, filtered),
            "harmless": draw_passing(model, val.harmless, "harmless", tokens, n, filtered),
        }
        eligible = config.rule.eligible_layers(candidates.n_layers)
        last = candidates.n_layers if config.full_map else eligible
        layers = range(0, last, config.layer_step)
        bench = Bench(model, sets, tokens.ids, config)
        tried = screened(bench, places(candidates, layers), eligible)
        scores, best = completed(bench, tried)
        scores += left_out(candidates, layers, config.rule)
        scores.sort(key=lambda score: (score.position, score.layer))
        if best is None or (config.strict and not best.qualified):
            raise NoCandidateError(
                f"No candidate keeps {config.keep_refusal:.0%} of the refusals of harmful prompts "
                f"with a KL of at most {config.kl_threshold:g}. Lower --keep-refusal, raise "
                "--kl-threshold or --tried, or give more prompts.",
                scores,
            )
        direction = replace(best.direction, qualified=best.qualified)
        for some in sets.values():
            direction = replace(direction, seen=direction.seen | some.seen)
        return Selection(
            direction=direction,
            score=best.score,
            scores=tuple(scores),
            qualified=best.qualified,
            rejected=count_rejected(scores),
            harmful_count=sets["harmful"].count,
            harmless_count=sets["harmless"].count,
        )

    def extract_costs(self, config: RunConfig, lengths: Lengths) -> Sequence[Work]:
        """Training prompts of three kinds, the pseudo-harmful ones twice."""
        length = LENGTH * lengths.train
        drawn = 2 * config.n_train  # of an over-refusal set about half is refused
        more: list[Work] = [Read(drawn + config.n_train, length)]
        if config.filter == "completions":
            more.append(Write(drawn, config.judged_tokens, length))
        return (*super().extract_costs(config, lengths), *more)

    def select_costs(self, config: RunConfig, n_layers: int, lengths: Lengths) -> Sequence[Work]:
        """Validation prompts unmodified; the pseudo-harmful ones under every candidate, the others
        under those that come first; completions under a few.
        """
        n, length = config.n_val, lengths.val
        candidates = self.candidates(config, n_layers) * len(config.lambdas)
        looked, tried = 3 * config.tried, 1 + config.tried
        passes = LENGTH * candidates + 2 * looked
        search = Search(passes * n * length, candidates + looked)
        write = Write(2 * n * tried, config.judged_tokens, length, tried)
        return Read(6 * self.drawn(config) * n, length), search, write


def refusal_direction(given: str) -> Direction:
    """The direction of a file, or of a run's folder.

    Raises:
        DirectionError: there is none.
    """
    path = Path(given).expanduser()
    return Direction.load(path / "direction.safetensors" if path.is_dir() else path)


def refused(
    model: ChatModel, pool: Sequence[Prompt], tokens: RefusalTokens, n: int, config: RunConfig
) -> Passed:
    """The first ``n`` prompts of a pool that the model refuses: by its refusal metric where that
    filters, else by judged completions.

    Raises:
        TooFewPromptsError: too few.
    """
    what = "pseudo-harmful"
    if config.filter in ("auto", "metric"):
        draw = Draw(n)
        work = run_pool(model, pool, tokens, draw, f"filter {what}", 0)
        return keep_passing(model, pool, what, work, draw)[0]
    rows = draw_judged(model, pool, "harmful", n, Reading(tokens, config.judged_tokens))
    drawn = [(prompt, math.nan, None) for prompt in pool[: len(rows)]]
    kept = [passes_judged("harmful", row) for row in rows]
    some = [one for one, keep in zip(drawn, kept, strict=True) if keep]
    passed, _ = keep_passing(model, pool, what, some, Draw(n, False))
    seen = frozenset(prompt.fingerprint for prompt, _, _ in drawn)
    return replace(passed, seen=seen, count=replace(passed.count, drawn=len(drawn)))


def _units(vectors: Float[Tensor, "position layer d_model"]) -> Float[Tensor, "position layer 1 d"]:
    """Unit vectors; zero stays zero."""
    units: Tensor = vectors / vectors.norm(dim=-1, keepdim=True).clamp_min(1e-300)
    return units[:, :, None]


def _check_of(model: ChatModel, direction: Direction) -> None:
    check_width(direction.vector, model.sites.d_model)
    if direction.model not in ("", model.name):
        raise DirectionError(
            f"--refusal-direction is of {direction.model}, and this model is {model.name}. Give "
            "one of this model."
        )
