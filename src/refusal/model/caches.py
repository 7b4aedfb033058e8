"""What keys and values of a model take, and how rows come, go and stand in them.

Everything here is for caches that hold each row's tokens apart (``rows_apart``). Tokens that a row
has are the last ones of it, padding comes before them.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor
from torch.nn.functional import pad
from transformers import DynamicCache, PreTrainedConfig
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from refusal.core import parallel
from refusal.model.base import LoadedModel
from refusal.model.sizes import cache_values

# Caches that hold each row's tokens apart. Recurrent states would mix padding in and cannot drop
# rows.
_ROWS_APART = (DynamicLayer, DynamicSlidingWindowLayer)
Part = tuple[Tensor, Tensor] | None  # keys and values of a layer; None where it uses another's


def rows_apart(config: PreTrainedConfig) -> bool:
    """Whether a model's state keeps the tokens of every row apart, so that rows can be padded,
    dropped and paged.
    """
    return all(type(layer) in _ROWS_APART for layer in DynamicCache(config=config).layers)


def cache_bytes_per_token(model: LoadedModel) -> int:
    """Keys and values of one token in all layers; a process that holds a part of the model keeps
    its share.
    """
    return cache_values(model.hf.config) * model.hf.dtype.itemsize // parallel.parts()


def marks(cache: Any) -> dict[int, list[bool]]:
    """What is noted of every row of a cache, by who noted it: it goes where the row goes."""
    found: dict[int, list[bool]] = cache.__dict__.setdefault("refusal_marks", {})
    return found


def row_of(cache: DynamicCache, row: int) -> list[Part]:
    """Keys and values of one row, by layer."""
    found: list[Part] = [None] * len(cache.layers)
    for i, (_, keys, values) in _numbered(cache):
        found[i] = keys[row : row + 1].clone(), values[row : row + 1].clone()
    return found


def cache_of(rows: Sequence[Sequence[Part]], config: PreTrainedConfig) -> DynamicCache:
    """A cache that begins with these rows, each as ``row_of`` gives it."""
    cache = DynamicCache(config=config)
    for layer, parts in zip(cache.layers, zip(*rows, strict=True), strict=True):
        some = [part for part in parts if part is not None]
        if some and isinstance(layer, DynamicLayer):
            layer.update(torch.cat([keys for keys, _ in some]), torch.cat([v for _, v in some]))
    return cache


def keep_rows(cache: DynamicCache, rows: Int[Tensor, "kept"], before: int, width: int) -> None:
    """Keep some rows, and the last ``width`` of their ``before`` tokens: all that any has."""
    order = rows.tolist()
    for name, each in marks(cache).items():
        marks(cache)[name] = [each[row] for row in order]
    for layer, keys, values in _filled(cache):
        width_here = _seen(layer, width)
        rows_here = rows.to(keys.device)
        layer.keys = keys[:, :, -width_here:].index_select(0, rows_here)
        layer.values = values[:, :, -width_here:].index_select(0, rows_here)
        _set_length(layer, before, width)


def close_gaps(cache: DynamicCache, mask: Bool[Tensor, "row seen"]) -> None:
    """Move the tokens of every row to its end, in their order; ``mask`` says which are some.

    Raises:
        ValueError: a layer has let go of tokens that are not the first.
    """
    order = mask.long().argsort(dim=1, stable=True)  # padding first
    for _, keys, _ in _filled(cache):
        if keys.shape[2] != mask.shape[1]:
            raise ValueError(f"A layer keeps {keys.shape[2]} of {mask.shape[1]} tokens.")
    for layer, keys, values in _filled(cache):
        index = order[:, None, :, None].to(keys.device)
        layer.keys = keys.gather(2, index.expand(-1, keys.shape[1], -1, keys.shape[3]))
        layer.values = values.gather(2, index.expand(-1, values.shape[1], -1, values.shape[3]))


def join(cache: DynamicCache, other: DynamicCache, before: int, width: int) -> None:
    """Put the rows of ``other`` behind those of ``cache``, whose ``before`` tokens become
    ``width``, both padded to that.
    """
    for name in {*marks(cache), *marks(other)}:
        marks(cache)[name] = [*_noted(cache, name), *_noted(other, name)]
    others = {i: (keys, values) for i, (_, keys, values) in _numbered(other)}
    for i, (layer, keys, values) in _numbered(cache):
        most = _seen(layer, width)
        parts = [(keys, values), others[i]]
        layer.keys = torch.cat([_widened(keys, most) for keys, _ in parts])
        layer.values = torch.cat([_widened(values, most) for _, values in parts])
        _set_length(layer, before, width)


def _noted(cache: DynamicCache, name: int) -> list[bool]:
    """What somebody has noted of every row; of rows that came without a note, ``False``."""
    rows = next((len(keys) for _, keys, _ in _filled(cache)), 0)
    return marks(cache).get(name, [False] * rows)


def _widened(some: Tensor, width: int) -> Tensor:
    """Keys or values with padding in front, which the mask hides."""
    return pad(some, (0, 0, width - some.shape[2], 0))


def _seen(layer: DynamicLayer, width: int) -> int:
    """How many of so many tokens a layer keeps."""
    if isinstance(layer, DynamicSlidingWindowLayer):
        return min(width, layer.sliding_window - 1)
    return width


def _set_length(layer: DynamicLayer, before: int, width: int) -> None:
    """A layer with a window counts its tokens by itself."""
    if isinstance(layer, DynamicSlidingWindowLayer):
        layer.cumulative_length += width - before


def _filled(cache: DynamicCache) -> Iterator[tuple[DynamicLayer, Tensor, Tensor]]:
    for _, part in _numbered(cache):
        yield part


def _numbered(cache: DynamicCache) -> Iterator[tuple[int, tuple[DynamicLayer, Tensor, Tensor]]]:
    """Layers that have keys of their own; others use those of one before."""
    for i, layer in enumerate(cache.layers):
        if not isinstance(layer, DynamicLayer):
            continue
        keys, values = layer.keys, layer.values
        if keys is not None and values is not None:
            yield i, (layer, keys, values)
