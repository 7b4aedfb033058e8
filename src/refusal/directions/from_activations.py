"""Finders that look at every prompt's activation, not at means alone, and what they share: one pass
over the training prompts, however many of them there are.
"""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from refusal.config.run_config import RunConfig
from refusal.core import parallel
from refusal.core.progress import task
from refusal.core.records import ClassCount, Label, Prompt, PromptPair, RefusalTokens
from refusal.core.work import Lengths, Search, Work
from refusal.directions.method import POSITIONS, DirectionMethod
from refusal.directions.pool import Draw, keep_passing, run_pool
from refusal.directions.records import Candidates
from refusal.directions.refusal_tokens import check_tokens, tokens_for
from refusal.model.batch_size import keeping_memory
from refusal.model.chat_model import ChatModel

BEFORE = 1  # position before the post-instruction tokens: the last token of the instruction
Rows = Float[Tensor, "_ d_model"]  # of the prompts of one class
Streams = Float[Tensor, "_ position layer d_model"]


@dataclass(frozen=True)
class PromptActivations:
    """The residual stream of every training prompt that counts, in the model's dtype on the CPU.

    Positions are the last token of the instruction, then the post-instruction tokens; layers the
    first ones only, those that may be chosen. Of 128 prompts a class in a model of 28 layers,
    width 1536 and 5 post-instruction tokens that is 106 MB in bfloat16 (``layers`` 22).

    Attributes:
        n_layers: of the model.
        seen: fingerprints of all prompts that were looked at.
    """

    harmful: Streams
    harmless: Streams
    tokens: RefusalTokens | None
    model: str
    n_layers: int
    seed: int | None
    seen: frozenset[str]
    counts: Mapping[Label, ClassCount]


@keeping_memory()
def read_activations(
    model: ChatModel,
    train: PromptPair,
    tokens: RefusalTokens | None,
    config: RunConfig,
    layers: int,
) -> PromptActivations:
    """Read the training prompts once, and keep the inputs of the first ``layers`` blocks.

    The prompts that count are those of the difference in means: the first ``n_train`` of a class
    that pass the filter, or simply the first.

    Raises:
        ConfigError: the refusal tokens are not this model's.
        TooFewPromptsError: too few prompts of a class pass.
        NonFiniteError: an activation is NaN or infinite; names the layer.
    """
    filtered = config.filter in ("auto", "metric")
    if tokens is None and filtered:
        tokens = tokens_for(model, train)
    if tokens is not None:
        check_tokens(model, tokens)
    draw = Draw(config.n_train, filtered, BEFORE)
    streams: dict[Label, Tensor] = {}
    counts: dict[Label, ClassCount] = {}
    seen: set[str] = set()
    pools: tuple[tuple[Label, Sequence[Prompt]], ...] = (
        ("harmful", train.harmful),
        ("harmless", train.harmless),
    )
    for label, pool in pools:
        work = run_pool(model, pool, tokens, draw, f"activations {label}", layers, True)
        passed, kept = keep_passing(model, pool, label, work, draw)
        streams[label], counts[label] = torch.stack(kept), passed.count
        seen |= passed.seen
    return PromptActivations(
        streams["harmful"],
        streams["harmless"],
        tokens,
        model.name,
        model.sites.n_layers,
        config.seed,
        frozenset(seen),
        counts,
    )


class FromActivations(DirectionMethod):
    """A vector for each place by itself, from what every prompt has there.

    Attributes:
        at_instruction: look at the last token of the instruction, not at those after it.
    """

    at_instruction: ClassVar[bool] = False

    @abstractmethod
    def find(
        self, harmful: Rows, harmless: Rows, config: RunConfig
    ) -> Float[Tensor, "vector d_model"]:
        """The vector of one place, of any length, from float64 rows; more than one where the method
        finds several, the candidate first.

        Args:
            harmful: not all the same as ``harmless``.
        """

    def extract(
        self, model: ChatModel, train: PromptPair, tokens: RefusalTokens | None, config: RunConfig
    ) -> Candidates:
        """One vector per position and eligible layer, with the norm of the difference in means
        there, which is what addition adds.
        """
        layers = self.layers_read(config, model.sites.n_layers)
        return self.candidates_of(read_activations(model, train, tokens, config, layers), config)

    def candidates_of(self, read: PromptActivations, config: RunConfig) -> Candidates:
        """The candidates of prompts that were read; places that are not looked at are NaN."""
        n_positions, n_layers = read.harmful.shape[1:3]
        rows = range(BEFORE) if self.at_instruction else range(BEFORE, n_positions)
        places = list(product(rows, range(n_layers)))

        def found_at(place: tuple[int, int]) -> tuple[Tensor, Tensor]:
            position, layer = place
            harmful, harmless = (
                x[:, position, layer].double() for x in (read.harmful, read.harmless)
            )
            mean = harmless.mean(0)
            dim = harmful.mean(0) - mean
            if not dim.any():  # the same token in every prompt: no direction at all
                return mean, dim[None]
            found = self.find(harmful, harmless, config)
            return mean, torch.cat([with_norm(found[0], dim)[None], found])

        with task(f"extract: {type(self).__name__.lower()}", total=len(places)) as advance:
            made: list[tuple[Tensor, Tensor]] = []
            for position in rows:  # a sign of progress each
                some = [place for place in places if place[0] == position]
                made += parallel.share(some, found_at)
                advance(len(some))
        return _placed(read, places, made, 0 if self.at_instruction else BEFORE)

    def extract_costs(self, config: RunConfig, lengths: Lengths) -> Sequence[Work]:
        """The training prompts of both classes, whose activations are kept."""
        kept = Search(0, 0, kept=2 * config.n_train * (POSITIONS + BEFORE))
        return (*super().extract_costs(config, lengths), kept)

    def candidates(self, config: RunConfig, n_layers: int) -> int:
        """How many there are to choose from, about."""
        return super().candidates(config, n_layers) // (POSITIONS if self.at_instruction else 1)

    def layers_read(self, config: RunConfig, n_layers: int) -> int:
        """How many layers' inputs are kept: those that may be chosen, or all for the full map."""
        return n_layers if config.full_map else config.rule.eligible_layers(n_layers)


def with_norm(
    vector: Float[Tensor, "d_model"], dim: Float[Tensor, "d_model"]
) -> Float[Tensor, "d_model"]:
    """``vector`` with the norm of the difference in means, so that what methods induce can be
    compared; zero stays zero.
    """
    scaled: Tensor = vector * (dim.norm() / vector.norm().clamp_min(1e-300))
    return scaled


def _placed(
    read: PromptActivations,
    places: Sequence[tuple[int, int]],
    made: Sequence[tuple[Tensor, Tensor]],
    first: int,
) -> Candidates:
    """What was found at each place, in tensors without the first positions; NaN elsewhere."""
    n_positions, _, d_model = read.harmful.shape[1:]
    shape = (n_positions - first, read.n_layers)
    vectors, means = (torch.full((*shape, d_model), torch.nan) for _ in range(2))
    most = max(len(rows) for _, rows in made) - 1
    several = torch.full((*shape, most, d_model), torch.nan) if most > 1 else None
    for (position, layer), (mean, rows) in zip(places, made, strict=True):
        at = (position - first, layer)
        vectors[at], means[at] = rows[0].float(), mean.float()
        if several is not None:
            several[at][: len(rows) - 1] = rows[1:].float()
    return Candidates(
        vectors=vectors,
        tokens=read.tokens,
        model=read.model,
        seed=read.seed,
        seen=read.seen,
        harmless_means=means,
        counts=read.counts,
        several=several,
    )
