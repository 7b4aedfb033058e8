"""What keys and values of a model take, and whether each row of a batch keeps its own."""

from transformers import DynamicCache, PreTrainedConfig
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from refusal.core import parallel
from refusal.model.base import LoadedModel
from refusal.model.sizes import cache_values

# Caches that hold each row's tokens apart. Recurrent states would mix padding in and cannot drop
# rows.
_ROWS_APART = (DynamicLayer, DynamicSlidingWindowLayer)


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
