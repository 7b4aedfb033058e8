"""How large a model is: parameters, those that a token meets, what a token leaves in the cache."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers import PreTrainedConfig, PreTrainedModel


@dataclass(frozen=True)
class ModelSize:
    """What a config says about size.

    Attributes:
        weights: parameters in all.
        active: parameters that a token of the blocks meets (embedding and head left out).
        head: parameters of the output head, met by tokens whose logits are read.
        cache: values of keys and values that one token leaves in the cache.
        stored: bytes of a parameter in the checkpoint, as far as the config says.
        linear: parameters of linear layers, the output head left out: what bitsandbytes quantises.
        layers: decoder blocks; d_model: width of the residual stream; inner: the widest MLP tensor.
    """

    weights: int
    active: int
    head: int
    cache: int
    stored: int
    linear: int
    layers: int
    d_model: int
    inner: int


def size_of(model: PreTrainedModel, config: PreTrainedConfig) -> ModelSize:
    """Counts a model's parameters; those of experts count as active by the share of experts that a
    token meets.

    ``model`` may be on the meta device.
    """
    text, head = config.get_text_config(), model.get_output_embeddings()
    products = [m.weight for m in model.modules() if isinstance(m, nn.Linear) and m is not head]
    return ModelSize(
        weights=sum(count(parameter) for parameter in model.parameters()),
        active=active_parameters(model),
        head=text.vocab_size * text.hidden_size,
        cache=cache_values(config),
        stored=(getattr(config, "dtype", None) or torch.float32).itemsize,
        linear=sum(count(weight) for weight in products),
        layers=text.num_hidden_layers,
        d_model=text.hidden_size,
        inner=widest(config),
    )


def cache_values(config: PreTrainedConfig) -> int:
    """Values of keys and values that one token leaves in all blocks; none without attention."""
    total = 0
    for layer in _by_layer(config):
        heads: int = getattr(layer, "num_attention_heads", None) or 0
        kept: int = getattr(layer, "num_key_value_heads", None) or heads
        per_head: int = getattr(layer, "head_dim", None) or layer.hidden_size // max(1, heads)
        total += 2 * kept * per_head
    return total


def _by_layer(config: PreTrainedConfig) -> Sequence[PreTrainedConfig]:
    """What holds for each block: one config for all, unless sizes differ by block (Gemma-4's head
    widths).
    """
    text = config.get_text_config()
    if getattr(text, "is_heterogeneous", False):
        return [text.per_layer_config[i] for i in range(text.num_hidden_layers)]
    return [text] * text.num_hidden_layers


def narrowest_window(config: PreTrainedConfig) -> float:
    """How far back the shortest-sighted attention sees, in tokens; infinite where all see
    everything.

    By what configs call it: ``sliding_window``, ``attention_chunk_size``, GPT-Neo's
    ``window_size``, lists of those.
    """
    text = config.get_text_config()
    seen = [math.inf]
    for name, value in vars(text).items():
        if name == "attention_chunk_size" or (
            "window" in name and not re.search("pattern|layers|use_", name)
        ):
            sizes = value if isinstance(value, (list, tuple)) else [value]
            seen += [size for size in sizes if isinstance(size, int) and size > 0]  # 0 is no window
    return float(min(seen))


def widest(config: PreTrainedConfig) -> int:
    """Numbers of the widest tensor of a block for one token, inside the MLP."""
    found = [1]
    for layer in _by_layer(config):
        inner = getattr(layer, "intermediate_size", None) or 4 * layer.hidden_size
        # a list holds that of each block: Gemma-3n
        found += inner if isinstance(inner, (list, tuple)) else [int(inner)]
    return max(found)


def activation_bytes(d_model: int, inner: int, itemsize: int) -> int:
    """Of one token in one block, from above: copies of the stream, some in float32, and the widest
    MLP tensors.
    """
    return itemsize * (12 * d_model + 4 * inner) + 16 * d_model


def active_parameters(model: PreTrainedModel) -> int:
    """Parameters that a token of the blocks meets: without embedding and head, of experts the share
    it is sent to.
    """
    share = _active_share(_by_layer(model.config)[0])
    vocabulary = {id(model.get_input_embeddings().weight)}
    head = model.get_output_embeddings()
    if head is not None:
        vocabulary.add(id(head.weight))
    kept = ((name, count(p)) for name, p in model.named_parameters() if id(p) not in vocabulary)
    return sum(int(n * share) if ".experts." in name else n for name, n in kept)


def count(parameter: Tensor) -> int:
    """Numbers in a parameter, also where bitsandbytes holds two of them in a byte."""
    state = getattr(parameter, "quant_state", None)
    return parameter.numel() if state is None else int(math.prod(state.shape))


def held_bytes(parameter: Tensor) -> int:
    """Bytes of a parameter in this process's memory: none of one on the disk, a part of one that is
    split.
    """
    if parameter.is_meta:
        return 0
    part = parameter.to_local() if isinstance(parameter, DTensor) else parameter
    return part.numel() * part.element_size()


def _active_share(config: PreTrainedConfig) -> float:
    """Experts that a token meets, of all."""
    met = getattr(config, "num_experts_per_tok", None)
    names = ("num_local_experts", "num_experts", "n_routed_experts")
    there = next((n for name in names if (n := getattr(config, name, None))), None)
    return met / there if met and there else 1.0
