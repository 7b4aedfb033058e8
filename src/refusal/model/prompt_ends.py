"""Where prompts end in a call of a model, whoever makes it and however they lie in its rows: padded
on the left or right, one after the other, or as trees of tokens that share their beginnings.

A prompt ends where the post-instruction tokens do.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Shaped
from torch import Tensor


class End(NamedTuple):
    """A prompt in a call: its row, the columns of its tokens, and their ids."""

    row: int
    path: tuple[int, ...]
    ids: tuple[int, ...]


def prompt_ends(args: Sequence[Any], kwargs: Mapping[str, Any], suffix: Sequence[int]) -> list[End]:
    """The prompts that a call of a transformers model reads whole, from its arguments.

    Where keys and values of earlier tokens are there already none is whole. A conversation has an
    end after each turn of the user's.

    Args:
        suffix: the post-instruction tokens.
    """
    given = args[0] if args else kwargs.get("input_ids")
    if not isinstance(given, Tensor) or given.dim() != 2 or given.shape[1] <= len(suffix):
        return []
    ids, mask = given, kwargs.get("attention_mask")
    if isinstance(mask, Mapping):  # one for each kind of layer: in this one all of a prompt is seen
        mask = mask.get("full_attention")
    cache, width = kwargs.get("past_key_values"), ids.shape[1]
    if not isinstance(mask, Tensor):
        whole = cache is None or not int(cache.get_seq_length())
        mask = torch.ones_like(ids) if whole else None
    if mask is None or mask.dim() not in (2, 4) or mask.shape[-1] != width:
        return []
    rows = ids.tolist()
    return _padded(rows, mask, suffix) if mask.dim() == 2 else _packed(rows, mask, suffix)


def _padded(
    rows: Sequence[Sequence[int]], mask: Shaped[Tensor, "row token"], suffix: Sequence[int]
) -> list[End]:
    """The prompts of rows that hold tokens one after the other, between padding."""
    found = []
    for row, (tokens, real) in enumerate(zip(rows, mask.tolist(), strict=True)):
        path = [column for column, here in enumerate(real) if here]
        ids = [tokens[column] for column in path]
        for end in range(len(suffix) + 1, len(ids) + 1):
            if _ends(ids[:end], suffix):
                found.append(End(row, tuple(path[:end]), tuple(ids[:end])))
    return found


def _packed(
    rows: Sequence[Sequence[int]], mask: Shaped[Tensor, "_ 1 token token"], suffix: Sequence[int]
) -> list[End]:
    """The prompts of rows whose mask says which tokens each sees: itself and those before it in its
    own prompts.
    """
    sees = mask[:, 0] if mask.dtype == torch.bool else mask[:, 0] == 0
    found = []
    for row, (tokens, seen) in enumerate(
        zip(rows, sees.expand(len(rows), -1, -1).cpu(), strict=True)
    ):
        for column, token in enumerate(tokens):
            path = seen[column].nonzero()[:, 0].tolist() if token == suffix[-1] else []
            ids = [tokens[i] for i in path]
            if len(ids) > len(suffix) and path[-1] == column and _ends(ids, suffix):
                found.append(End(row, tuple(path), tuple(ids)))
    return found


def _ends(ids: Sequence[int], suffix: Sequence[int]) -> bool:
    return ids[-1] == suffix[-1] and list(ids[-len(suffix) :]) == list(suffix)
