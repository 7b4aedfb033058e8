"""A tiny random model of any type that transformers ships, from its own default config made small.

What a config calls its sizes is known by the names of its fields, so that a new type needs no line
here; ``SPECIAL`` holds what cannot be known so.
"""

import re
from collections.abc import Iterator
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
)

WIDTH, LAYERS, VOCABULARY = 32, 4, 272
LEFT_OUT = {
    "transformers_version",
    "architectures",
    "dtype",
    "id2label",
    "label2id",
    "per_layer_config",
}
MOST = 100_000_000  # parameters

# The first pattern that a field's whole name matches gives its value.
SIZES: dict[str, int] = {
    r"(num_)?vocab_size(_per_layer_input)?|decoder_vocab_size|unpadded_vocab_size": VOCABULARY,
    r"num_nextn_predict_layers|num_kv_shared_layers|.*dropout.*|layerdrop": 0,
    r"first_k_dense_replace|num_dense_layers|n_group|topk_group|num_expert_group": 1,
    r"num_hidden_layers|n_layers?|num_layers|layers|num_decoder_layers|decoder_layers": LAYERS,
    r"encoder_layers|num_encoder_layers|depth|.*num_hidden_layers": 1,
    r"hidden_size|d_model|n_embd|dim|embedding_size|word_embed_proj_dim|lru_width": WIDTH,
    r"backbone_hidden_size|embed_dim|decoder_hidden_size|attention_hidden_size": WIDTH,
    r"mamba_(n|num)_heads|n_mamba_heads": 8,
    r"mamba_(d_head|head_?dim)": 8,
    r"num_key_value_heads|num_kv_heads|kv_n_heads|linear_num_key_heads|.*key_value_heads": 2,
    r"index_head_dim": 16,
    r"num_attention_heads|n_heads?|num_heads|.*attention_heads|attn_layers|linear_num.*heads": 4,
    r"index_n_heads|linear_num_heads|.*_heads": 4,
    r"qk_head_dim": 12,
    r"qk_rope_head_dim": 4,
    r"(swa_|linear_|linear_key_|linear_value_|qk_nope_|v_|global_|d_)?head_dim|d_kv|d_head": 8,
    r".*intermediate.*size.*|.*ffn_dim|ffn_hidden_size|d_ff|n_inner|dff|dim_ff|mlp_dim": 48,
    r"share_expert_dim|moe_hidden_size|d_inner|feed_forward_size|.*ffn_hidden_size": 48,
    r"(num_|n_routed_|num_local_|moe_num_)experts": 4,
    r"num_experts_per_tok(en)?|top_k_experts|moe_(top_?)?k|topk": 2,
    r"(n_|num_|moe_num_)shared_experts": 1,
    r".*lora_rank|.*_rank|hc_lowrank": 8,
    r"hidden_size_per_layer_input": 8,
    r"state_size|mamba_d_state|ssm_state_size": 4,
    r"mamba_n_?groups|n_groups": 2,
    r"mamba_expand|expand": 2,
    r".*chunk_size": 16,
    r"sliding_window(_size)?|attention_window_size|window_size": 16,
    r"max_position_embeddings|n_positions|max_seq_len|n_ctx|context_length": 128,
    r"rotary_dim": 4,
    r"max_window_layers": 2,
}
# A tower for pictures or sounds is made but never run: that it can be made is all.
SHALLOW: dict[str, int] = {
    r".*num_hidden_layers|depth|n_layers?|num_layers|.*encoder_layers|layers|.*decoder_layers": 1,
    r"(text_|out_|proj.*_|output_|lang_)?(hidden_size|dim)": WIDTH,
}
NARROW: dict[str, int] = {
    **SHALLOW,
    r"hidden_size|embed_dim|d_model|hidden_dim|model_dim|vision_dim|backbone_hidden_size": WIDTH,
    r".*intermediate_size|.*ffn_dim|mlp_dim": 48,
    r"(encoder_|decoder_|vision_)?(num_heads|num_.*attention_heads|attention_heads|n_heads)": 4,
    r"num_key_value_heads|.*kv_heads": 4,
    r"head_dim": 8,
    r"vocab_size": VOCABULARY,
}
_TURNS = {
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]}
}
_MOE = {"n_routed_experts": 4, "num_experts": 4, "num_experts_per_tok": 2, "top_k_experts": 2}
_ROPE = {"rope_type": "default", "rope_theta": 1e4}
_BY_KIND = {"rope_parameters": {"full_attention": _ROPE, "sliding_attention": _ROPE}}
_GEMMA4 = {"global_head_dim": 16, "num_kv_shared_layers": 0}
# What a type needs beside that; a name with a dot is laid over that part of the config.
SPECIAL: dict[str, dict[str, Any]] = {
    "bert-generation": {"is_decoder": True},
    "blt": {
        ".patcher_config.hidden_size": WIDTH,
        ".encoder_hash_byte_group_vocab": 50,
    },
    "chameleon": {".vocabulary_map": {"<image>": 5, "IMGIMGA": 6}},
    "emu3": {".vocabulary_map": {"<image>": 5, "<|visual token 000000|>": 6}},
    "gemma4": _GEMMA4,
    "gemma4_text": _GEMMA4,
    "gemma4_unified": _GEMMA4,
    "gemma4_unified_text": _GEMMA4,
    "diffusion_gemma": {**_GEMMA4, **_MOE},
    "dots1": {**_MOE, "n_shared_experts": 1},
    "cohere_compass": _BY_KIND,
    "cohere_compass_text": _BY_KIND,
    "dbrx": {"attn_config": {"clip_qkv": 8, "kv_n_heads": 2, "rope_theta": 1e4}},
    "molmo2": {".adapter_config.vision_feature_layers": [0, 0]},
    "hunyuan_vl": {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "xdrope_section": [1, 1, 1, 1]}},
    "falcon_h1": {"mamba_d_ssm": 64},
    "hrm_text": {"num_layers_per_stack": 2},
    "glm46v": _TURNS,
    "glm4v": _TURNS,
    "glm4v_moe": {"rope_parameters": {**_TURNS["rope_parameters"], "mrope_section": [1, 1, 0]}},
    "glm_ocr": _TURNS,
    "glmga": _TURNS,
    "glm5_next": {"num_key_value_heads": 4},
    "granite4_vision": {"num_attention_heads": 4},
    "paddleocr_vl": _TURNS,
    "qwen2_vl": _TURNS,
    "qwen2_5_vl": _TURNS,
    "qwen2_5_omni_thinker": _TURNS,
    "unlimited_ocr": {"num_key_value_heads": 4},
    "zamba2": {
        "attention_hidden_size": 64, "attention_head_dim": 16, "num_mem_blocks": 1, "hybrid_layer_ids": [1, 3],
        "layers_block_type": ["mamba", "hybrid", "mamba", "hybrid"],
    },
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * 2},
    "deepseek_ocr2": {"num_experts_per_tok": 2, "mlp_layer_types": ["dense", *["sparse"] * 3]},
    "deepseek_v2": {"num_experts_per_tok": 2},
    "mamba2": {"num_heads": 8},
    "reformer": {"is_decoder": True, "axial_pos_embds": False},
    "zamba": {"attention_hidden_size": 64, "attention_head_dim": 16, "layers_block_type": ["mamba", "hybrid", "mamba", "hybrid"]},
    "zaya": {"num_experts_per_tok": 1},
    "step3p7": {"sliding_window": 16},
    "xmod": {"default_language": "en_XX"},
    "xlm": {"emb_dim": WIDTH, "n_words": VOCABULARY},
    "xlstm": {"chunk_size": 16, "embedding_dim": WIDTH},
    "qwen4_exp_text": {
        "indexer_n_heads": 4, "indexer_kv_heads": 1, "indexer_head_dim": 8, "indexer_budget": 64,
        "indexer_compress_ratio": 4, "ple_layer_ids": [1, 3], "ngram_vocab_size_base": 50,
        "split_ngram_parts": 1, "heads_per_ngram": 2, "eos_token_id": 4,
    },
}  # fmt: skip
SPECIAL["qwen4_exp"] = SPECIAL["qwen4_exp_text"]
# Sizes that a default config leaves to be computed from its other, larger sizes.
COMPUTED = {"head_dim": 8, "num_key_value_heads": 4, "moe_intermediate_size": 48}


def model_types() -> list[str]:
    """Every type with a text decoder: of the causal language models and those that read pictures
    too.
    """
    return sorted({*MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, *MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES})


def tiny(model_type: str) -> PreTrainedModel:
    """A float32 model with random weights, gains, biases and scalars.

    Raises:
        Exception: whatever transformers raises where the sizes do not fit each other.
    """
    auto: Any = (
        AutoModelForImageTextToText
        if model_type in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES
        else AutoModelForCausalLM
    )
    try:
        model = _made(auto, small_config(model_type, NARROW))
    except Exception:  # this tower's sizes depend on each other
        model = _made(auto, small_config(model_type, SHALLOW))
    model.eval()
    fill(model)
    return model


def _made(auto: Any, config: PreTrainedConfig) -> PreTrainedModel:
    with torch.device("meta"):
        size = sum(p.numel() for p in auto.from_config(config).parameters())
    if size > MOST:
        raise ValueError(f"it has {size:,} parameters at the least")
    torch.manual_seed(0)
    made: PreTrainedModel = auto.from_config(
        config, dtype=torch.float32, attn_implementation="eager"
    )
    return made


def small_config(model_type: str, tower: dict[str, int]) -> PreTrainedConfig:
    """The default config of a type, made small, with what ``SPECIAL`` says laid over it."""
    default = AutoConfig.for_model(model_type)
    text = default.get_text_config()
    values = default.to_dict()
    path = _path(default, text)
    assert path is not None
    for place, part in list(_parts(default, ())):
        inner = _at(values, place)
        sizes = SIZES if place == path[: len(place)] else tower
        small = {
            n: _shrunk(n, v, sizes, inner) for n, v in inner.items() if n not in part.sub_configs
        }
        inner.update(_latent(small) if sizes is SIZES else small)
        for name in LEFT_OUT & inner.keys():
            del inner[name]
    for name, value in SPECIAL.get(model_type, {}).items():
        *place_, last = name.split(".") if "." in name else [*path, name]
        _at(values, tuple(p for p in place_ if p))[last] = value
    values.pop("model_type", None)
    return AutoConfig.for_model(model_type, **values)


def fill(model: PreTrainedModel) -> None:
    """Random weights that keep the stream of order one; vectors and scalars near what they
    begin as.
    """
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            noise = torch.randn(tensor.shape, generator=generator)
            if tensor.dim() >= 2 and not re.search(r"A_log|\.D$|dt_bias|decay|conv", name):
                tensor.copy_(1.2 / tensor.shape[-1] ** 0.5 * noise)
            else:
                old = torch.where(tensor.isfinite(), tensor, 0.0)
                tensor.copy_(old + 0.3 * noise)
        for name, buffer in model.named_buffers():
            if "scalar" in name or name.endswith("correction_bias"):
                buffer.add_(0.3 * torch.randn(buffer.shape, generator=generator))


def _parts(
    config: PreTrainedConfig, place: tuple[str, ...]
) -> Iterator[tuple[tuple[str, ...], PreTrainedConfig]]:
    yield place, config
    for name in config.sub_configs:
        part = getattr(config, name, None)
        if isinstance(part, PreTrainedConfig):
            yield from _parts(part, (*place, name))


def _path(config: PreTrainedConfig, text: PreTrainedConfig) -> tuple[str, ...] | None:
    return next((place for place, part in _parts(config, ()) if part is text), None)


def _at(values: dict[str, Any], place: tuple[str, ...]) -> dict[str, Any]:
    for name in place:
        values = values[name]
    return values


def _shrunk(name: str, value: Any, sizes: dict[str, int], config: dict[str, Any]) -> Any:
    if not isinstance(name, str):
        return value
    if name.endswith(("token_id", "token_index")):
        return _id(value)
    if value is None:
        return COMPUTED.get(name) if sizes is SIZES else None
    if isinstance(value, bool) or value == 0:
        return value
    if isinstance(value, dict):
        return {key: _shrunk(key, each, {}, {}) for key, each in value.items()}
    if name == "mrope_section":
        return [1, 1, 2]
    if isinstance(value, int):
        return next((new for pattern, new in sizes.items() if re.fullmatch(pattern, name)), value)
    counts = ("num_hidden_layers", "n_layer", "num_layers", "depth", "n_layers")
    layers = next((config[key] for key in counts if isinstance(config.get(key), int)), 0)
    if isinstance(value, list) and layers and len(value) == layers:
        return _kinds(value, LAYERS if sizes is SIZES else 1)
    return value


def _latent(values: dict[str, Any]) -> dict[str, Any]:
    """Latent attention has as many heads for keys as for queries, and turns a part of each."""
    if values.get("kv_lora_rank") and values.get("qk_rope_head_dim"):
        values["num_key_value_heads"] = values["num_attention_heads"]
        if values.get("head_dim"):
            values["head_dim"] = values["qk_rope_head_dim"]
    return values


def _id(value: Any) -> Any:
    if isinstance(value, list):
        return [_id(each) for each in value]
    return value % VOCABULARY if isinstance(value, int) and value >= VOCABULARY else value


def _kinds(values: list[Any], count: int) -> list[Any]:
    """As many as there are layers now, of every kind that there was, in order."""
    first = {str(v): i for i, v in reversed(list(enumerate(values)))}
    chosen = sorted(first.values())[:count]
    rest = (i for i in range(len(values)) if i not in chosen)
    return [values[i] for i in sorted([*chosen, *(next(rest) for _ in range(count - len(chosen)))])]
