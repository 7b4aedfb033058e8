"""Attention within a packed row, piece by piece.

The tokens of a packed row see their ancestors only, so nearly all of the row's square of scores is
masked out and was computed for nothing: on a processor a tenth of a pass. Here a piece of
neighbouring tokens looks at the keys that any of its tokens sees, which are its own and what its
prompts begin with. The mask is the model's own, cut to the piece, so only sums are taken in another
order. It applies to models whose attention is transformers' ``sdpa``, on a processor: in
transformers' table of attention functions this one takes that one's place at first use, and does
what it did for all other calls.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor, nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

PIECE = 64  # tokens: fewer see fewer keys in vain, and more calls cost more (docs/performance.md)

SDPA = "sdpa"


@dataclass(frozen=True)
class Piece:
    """The tokens ``start .. stop - 1`` of a row, and all that they see."""

    start: int
    stop: int
    keys: Int[Tensor, " key"]


_row: ContextVar[tuple[Piece, ...]] = ContextVar("row", default=())


def pieces(sees: Bool[Tensor, "token token"], size: int = PIECE) -> tuple[Piece, ...]:
    """The pieces of a row whose token ``i`` sees token ``j`` where ``sees[i, j]``; none where they
    would save nothing.
    """
    n, found = len(sees), []
    for start in range(0, n, size):
        stop = min(start + size, n)
        found.append(Piece(start, stop, sees[start:stop].any(dim=0).nonzero()[:, 0]))
    looked = sum((piece.stop - piece.start) * len(piece.keys) for piece in found)
    return tuple(found) if 2 * looked < n * n else ()


@contextmanager
def attending(row: Sequence[Piece]) -> Iterator[None]:
    """Have models look piece by piece inside the block, in calls with rows as long as this one."""
    if row and not isinstance(ALL_ATTENTION_FUNCTIONS[SDPA], _ByPiece):
        ALL_ATTENTION_FUNCTIONS[SDPA] = _ByPiece(ALL_ATTENTION_FUNCTIONS[SDPA])
    token = _row.set(tuple(row))
    try:
        yield
    finally:
        _row.reset(token)


class _ByPiece:
    """An attention function that looks piece by piece where the row of this thread has pieces."""

    def __init__(self, whole: Callable[..., Any]) -> None:
        self.whole = whole

    def __call__(
        self,
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        **rest: Any,
    ) -> Any:
        row = _row.get()
        if (
            not row
            or not _is_of(row, query, key, attention_mask)
            or rest.get("position_bias") is not None
        ):
            return self.whole(module, query, key, value, attention_mask, **rest)
        assert attention_mask is not None
        found = []
        for piece in row:
            mine, keys = slice(piece.start, piece.stop), piece.keys
            mask = attention_mask[..., mine, :].index_select(-1, keys)
            given = query[:, :, mine], key.index_select(2, keys), value.index_select(2, keys)
            found.append(self.whole(module, *given, mask, **rest)[0])
        return torch.cat(found, dim=1), None


def _is_of(row: Sequence[Piece], query: Tensor, key: Tensor, mask: Tensor | None) -> bool:
    """Whether a call is of the whole row, with a mask that says who sees whom."""
    n = row[-1].stop
    return mask is not None and {query.shape[2], key.shape[2], *mask.shape[-2:]} == {n}
