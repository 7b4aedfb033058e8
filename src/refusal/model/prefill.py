"""Prompts read into a cache, so that they can be continued: what all begin with once, and each
one's own tokens.

Rows are padded on the left, so that all of them end at the same index and each step appends one
token to every row.
"""

from collections.abc import Collection, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import pad
from transformers import DynamicCache, PreTrainedConfig
from transformers.cache_utils import DynamicSlidingWindowLayer

from refusal.model.base import LoadedModel
from refusal.model.caches import Part, cache_of, close_gaps, join, keep_rows, row_of
from refusal.model.edits import RowWise
from refusal.model.forward import call
from refusal.model.sizes import narrowest_window


@dataclass
class Standing:
    """Rows side by side after a pass.

    Attributes:
        logits: of what follows each, until rows come or go. mask: which tokens are a row's own.
        position: of its last token. cache: keys and values of all.
    """

    logits: Float[Tensor, "row vocab"]
    mask: Bool[Tensor, "row seen"]
    position: Int[Tensor, "row 1"]
    cache: DynamicCache

    def keep(self, rows: Sequence[int], width: int) -> None:
        """Go on with some rows only, the longest of which has ``width`` tokens."""
        before, kept = self.mask.shape[1], torch.tensor(list(rows), dtype=torch.long)
        keep_rows(self.cache, kept, before, width)
        kept = kept.to(self.mask.device)
        self.mask = self.mask[kept, before - width :]
        self.position = self.position[kept]

    def spread(self, places: Sequence[int]) -> None:
        """Go on with the rows at these places, some of them several times."""
        self.keep(places, self.mask.shape[1])
        self.logits = self.logits[torch.tensor(list(places), device=self.logits.device)]

    def join(self, other: "Standing") -> None:
        """Put other rows behind these."""
        before, width = self.mask.shape[1], max(self.mask.shape[1], other.mask.shape[1])
        join(self.cache, other.cache, before, width)
        masks = [pad(mask, (width - mask.shape[1], 0)) for mask in (self.mask, other.mask)]
        self.mask = torch.cat(masks)
        self.position = torch.cat([self.position, other.position])

    def step(self, model: LoadedModel, tokens: Sequence[int]) -> None:
        """Read one more token of each row."""
        self.mask = torch.cat([self.mask, self.mask.new_ones(len(tokens), 1)], dim=1)
        self.position = self.position + 1
        ids = torch.tensor(list(tokens), device=model.device)[:, None]
        model.forward_tokens += len(tokens)
        self.logits = call(model, ids, self.mask, self.position, self.cache)[:, -1]


class Starts:
    """What all rows begin with, read once under each intervention that differs by row."""

    def __init__(
        self, model: LoadedModel, tokens: Sequence[int], interventions: RowWise | None = None
    ) -> None:
        """``tokens`` may be none; then every row begins from nothing."""
        self.model, self.tokens, self.interventions = model, list(tokens), interventions
        self._read: dict[int, list[Part]] = {}

    def under(self, which: Sequence[int]) -> DynamicCache:
        """A cache that holds the start once a row, under intervention ``which[row]``."""
        config = self.model.hf.config
        if not self.tokens:
            return DynamicCache(config=config)
        new = [one for one in dict.fromkeys(which) if one not in self._read]
        most = max(1, self.model.token_budget.value // len(self.tokens))
        for first in range(0, len(new), most):
            self._add(new[first : first + most])
        return cache_of([self._read[one] for one in which], config)

    def forget_all_but(self, needed: Collection[int]) -> None:
        """Let go of the start under other interventions."""
        self._read = {one: part for one, part in self._read.items() if one in needed}

    def _add(self, which: Sequence[int]) -> None:
        model, shared = self.model, len(self.tokens)
        if self.interventions is not None:
            self.interventions.rows(which)
        ids = torch.tensor(self.tokens, device=model.device).expand(len(which), -1)
        positions = torch.arange(shared, device=model.device).expand(len(which), -1)
        cache = DynamicCache(config=model.hf.config)
        model.forward_tokens += ids.numel()
        with _last_only(model, ids):
            call(model, ids, torch.ones_like(ids, dtype=torch.bool), positions, cache)
        self._read.update((one, row_of(cache, row)) for row, one in enumerate(which))


def read_prompts(
    model: LoadedModel, rows: Sequence[Sequence[int]], new_tokens: int, share: bool = True
) -> Standing:
    """Read prompts, what they all begin with once if they are to ``share`` it."""
    shared = shared_start(rows, new_tokens, model.hf.config) if share else 0
    cache = Starts(model, rows[0][:shared]).under([0] * len(rows))
    return read_tails(model, rows, shared, cache)


def read_tails(
    model: LoadedModel, rows: Sequence[Sequence[int]], shared: int, cache: DynamicCache
) -> Standing:
    """Read each prompt but its first ``shared`` tokens, which the cache holds of every row."""
    tails = [list(row[shared:]) for row in rows]
    width = max(len(tail) for tail in tails)
    ids = torch.tensor([[0] * (width - len(tail)) + tail for tail in tails])
    padding = torch.tensor([width - len(tail) for tail in tails])
    columns = torch.arange(width).expand(len(rows), -1)
    positions = shared + (columns - padding[:, None]).clamp_min(0)
    start = torch.ones(len(rows), shared, dtype=torch.bool)
    mask = torch.cat([start, columns >= padding[:, None]], dim=1)
    ids, positions, mask = ids.to(model.device), positions.to(model.device), mask.to(model.device)
    model.forward_tokens += ids.numel()
    with _last_only(model, ids):
        logits = call(model, ids, mask, positions, cache)[:, -1]
    if shared and len({len(tail) for tail in tails}) > 1:  # padding lies behind the start
        close_gaps(cache, mask)
        mask = mask.sort(dim=1, stable=True).values
    return Standing(logits, mask, positions[:, -1:], cache)


def _last_only(model: LoadedModel, ids: Int[Tensor, "row token"]) -> AbstractContextManager[None]:
    """The head sees one token a row: the vocabulary product is the largest tensor by far."""
    rows = torch.arange(len(ids))
    return model.only_at(rows, torch.full_like(rows, ids.shape[1] - 1))


def shared_start(rows: Sequence[Sequence[int]], new_tokens: int, config: PreTrainedConfig) -> int:
    """How many leading tokens to read once for all rows; 0 where that would not be exact."""
    if len(rows) < 2:
        return 0
    longest = max(len(row) for row in rows) + new_tokens
    if longest > narrowest_window(config):
        return 0  # padding after the shared start would shift the window
    for layer in DynamicCache(config=config).layers:
        if isinstance(layer, DynamicSlidingWindowLayer) and layer.sliding_window <= longest:
            return 0
    return common_start(rows)


def common_start(rows: Sequence[Sequence[int]]) -> int:
    """How many leading tokens all rows have in common; each keeps a last token of its own."""
    together = zip(*(row[:-1] for row in rows), strict=False)
    return next(
        (i for i, tokens in enumerate(together) if len(set(tokens)) > 1),
        min(len(row) for row in rows) - 1,
    )
