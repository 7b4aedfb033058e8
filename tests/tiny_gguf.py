"""A tiny GGUF file: random weights in float32 and the byte-level tokenizer, as llama.cpp's
converter does it.
"""

from collections.abc import Sequence
from pathlib import Path

import gguf
import numpy as np
import tiny_models
from transformers import PreTrainedModel

NORMAL, CONTROL = 1, 3  # GGUF's token types


def write(
    path: Path,
    network: PreTrainedModel | None = None,
    factors: Sequence[float] = (),
    scaling: str | None = None,
) -> PreTrainedModel:
    """Write the file and return the network that is in it: a qwen2, or a given llama.

    Args:
        path: of the file.
        network: what to write.
        factors: by which its rotary frequencies are divided.
        scaling: what the metadata says of that.
    """
    network, tokenizer = network or tiny_models.network("qwen2"), tiny_models.tokenizer("chatml")
    kind = network.config.model_type
    config = network.config
    tokens = sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().__getitem__)
    filler = [
        "ĀĀ",
        *(f"<|{i}|>" for i in range(config.vocab_size - len(tokens) - 1)),
    ]  # the format wants a merge
    special = len(tiny_models.SPECIAL)
    out = gguf.GGUFWriter(str(path), kind)
    out.add_context_length(config.max_position_embeddings)
    out.add_embedding_length(config.hidden_size)
    out.add_block_count(config.num_hidden_layers)
    out.add_feed_forward_length(config.intermediate_size)
    out.add_head_count(config.num_attention_heads)
    out.add_head_count_kv(config.num_key_value_heads)
    out.add_layer_norm_rms_eps(config.rms_norm_eps)
    out.add_rope_freq_base(config.rope_parameters["rope_theta"])
    if kind == "llama":
        out.add_rope_dimension_count(config.head_dim)
    if scaling is not None:
        out.add_string(f"{kind}.rope.scaling.type", scaling)
    out.add_tokenizer_model("gpt2")
    out.add_tokenizer_pre("qwen2")
    out.add_token_list([*tokens, *filler])
    out.add_token_types(
        [CONTROL] * special + [NORMAL] * (len(tokens) - special + 1) + [CONTROL] * (len(filler) - 1)
    )
    out.add_token_merges(["Ā Ā"])
    out.add_bos_token_id(config.bos_token_id)
    out.add_eos_token_id(config.eos_token_id)
    out.add_pad_token_id(config.pad_token_id)
    out.add_chat_template(tokenizer.chat_template)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH[kind.upper()], config.num_hidden_layers)
    for name, tensor in network.state_dict().items():
        array = tensor.numpy()
        if kind == "llama" and (
            "q_proj" in name or "k_proj" in name
        ):  # halves of a head become neighbours
            heads = config.num_attention_heads if "q_proj" in name else config.num_key_value_heads
            array = (
                array.reshape(heads, 2, -1, *array.shape[1:])
                .swapaxes(1, 2)
                .reshape(array.shape)
                .copy()
            )
        out.add_tensor(str(names.get_name(name, try_suffixes=(".weight", ".bias"))), array)
    if factors:
        out.add_tensor("rope_freqs.weight", np.array(factors, dtype=np.float32))
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()
    return network
