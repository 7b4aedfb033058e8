"""Tiny chat models with random weights, one per family, and a byte-level tokenizer: no download,
milliseconds a pass.

Gains and biases are random too, not ones and zeros, so that a mistake in their place shows.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from refusal import ChatModel

CHATML = (
    "{% if messages[0]['role'] != 'system' %}<|start|>system\nBe of help.<|end|>\n{% endif %}"
    "{% for m in messages %}<|start|>{{ m['role'] }}\n{{ m['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant\n{% if enable_thinking is defined and "
    "enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
NO_SYSTEM = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'system' %}"
    "{{ raise_exception('System role not supported') }}{% endif %}"
    "<|start|>{{ m['role'] }}\n{{ m['content'] | trim }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|start|>model\n{% endif %}"
)
# no prefix worth sharing, no specials
BARE = "{% for m in messages %}[INST] {{ m['content'] }} [/INST]{% endfor %}"
TEMPLATES = {"chatml": CHATML, "no-system": NO_SYSTEM, "bare": BARE}

SPECIAL = ("<|pad|>", "<|bos|>", "<|start|>", "<|end|>", "<|eos|>")
WIDTH, LAYERS, VOCABULARY = 32, 5, 272
OMIT = object()  # a config value that this family computes itself

_COMMON: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": WIDTH,
    "intermediate_size": 48,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 512,
    "bos_token_id": 1,
    "eos_token_id": 4,
    "pad_token_id": 0,
}
_EXPERTS: dict[str, Any] = {
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "intermediate_size": 48,
}
_LATENT: dict[str, Any] = {  # multi-head latent attention
    "num_key_value_heads": 4,
    "head_dim": 4,
    "kv_lora_rank": 12,
    "q_lora_rank": 12,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 4,
    "v_head_dim": 8,
}
_MAMBA: dict[str, Any] = {
    "mamba_n_heads": 8,
    "mamba_d_head": 8,
    "mamba_n_groups": 2,
    "mamba_d_state": 4,
    "mamba_expand": 2,
    "mamba_chunk_size": 16,
}
_FALCON: dict[str, Any] = {
    "head_dim": OMIT,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
}
_VISION: dict[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 8,
    "patch_size": 4,
    "projection_dim": 16,
}


@dataclass(frozen=True)
class Family:
    """What makes a tiny model of one family, and what it is like.

    ``config`` is laid over the common values. With ``wrapper`` the language model sits inside a
    vision-language model whose own config this is, and ``config`` describes the text part.
    ``post_norms``: a norm stands between sublayer and residual add. ``recurrent``: some mixer
    carries a state from token to token, so rows cannot be shared. ``experts``: mixture of experts.
    ``tied``: the head shares the embedding's weights (in this tiny model).
    """

    config: dict[str, Any] = field(default_factory=dict)
    model_type: str = ""  # default: the family's name
    wrapper: dict[str, Any] | None = None
    post_norms: bool = False
    recurrent: bool = False
    experts: bool = False
    tied: bool = False


# Attention over positions that the caller gives: prompts can share rows.
FAMILIES: dict[str, Family] = {
    "llama": Family({"mlp_bias": True, "attention_bias": True}),
    "mistral": Family({"sliding_window": None}),
    "qwen2": Family(),
    "qwen3": Family(),
    "gemma": Family(tied=True),
    "gemma2": Family({"sliding_window": 8, "query_pre_attn_scalar": 8}, post_norms=True, tied=True),
    "gemma3_text": Family(
        {"sliding_window": 8, "query_pre_attn_scalar": 8}, post_norms=True, tied=True
    ),
    "phi": Family({"num_key_value_heads": 4}),
    "phi3": Family({"num_key_value_heads": 4, "sliding_window": None}),
    "gpt2": Family(tied=True),
    "gpt_neox": Family(),
    "gpt_neox-sequential": Family({"use_parallel_residual": False}, "gpt_neox"),
    "falcon": Family({**_FALCON, "multi_query": True, "bias": True}, tied=True),
    "falcon-new": Family(
        {**_FALCON, "new_decoder_architecture": True, "num_kv_heads": 2}, "falcon", tied=True
    ),
    "falcon-sequential": Family(
        {**_FALCON, "parallel_attn": False, "multi_query": False}, "falcon", tied=True
    ),
    "olmo2": Family(post_norms=True),
    "cohere": Family(tied=True),
    "granite": Family(
        {
            "residual_multiplier": 0.22,
            "embedding_multiplier": 12.0,
            "attention_multiplier": 0.3,
            "logits_scaling": 8.0,
        },
    ),
    "stablelm": Family({"use_qkv_bias": True}),
    "starcoder2": Family({"sliding_window": None}, tied=True),
    "glm4": Family(post_norms=True),
    "mixtral": Family({**_EXPERTS, "num_local_experts": 4, "sliding_window": None}, experts=True),
    "qwen2_moe": Family(
        {**_EXPERTS, "num_experts": 4, "shared_expert_intermediate_size": 16}, experts=True
    ),
    "qwen3_moe": Family(
        {**_EXPERTS, "num_experts": 4, "norm_topk_prob": True, "mlp_only_layers": [1]}, experts=True
    ),
    "gpt_oss": Family({**_EXPERTS, "num_local_experts": 4, "sliding_window": 512}, experts=True),
    "deepseek_v2": Family(
        {
            **_EXPERTS,
            **_LATENT,
            "n_routed_experts": 4,
            "n_shared_experts": 1,
            "first_k_dense_replace": 1,
        },
        experts=True,
    ),
    "deepseek_v3": Family(
        {
            **_EXPERTS,
            **_LATENT,
            "n_routed_experts": 4,
            "n_shared_experts": 1,
            "first_k_dense_replace": 1,
            "n_group": 2,
            "topk_group": 1,
        },
        experts=True,
    ),
    "glm4_moe": Family(
        {**_EXPERTS, "n_routed_experts": 4, "n_shared_experts": 1, "first_k_dense_replace": 1},
        experts=True,
    ),
    "qwen2_5_vl": Family(
        {
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 10000.0,
                "mrope_section": [1, 1, 2],
            }
        },
        wrapper={
            "vision_config": {
                **_VISION,
                "depth": 2,
                "num_heads": 2,
                "out_hidden_size": WIDTH,
                "num_hidden_layers": 2,
            },
            "image_token_id": 268,
            "video_token_id": 269,
            "vision_start_token_id": 270,
            "vision_end_token_id": 271,
        },
    ),
    "llama4": Family(
        {
            **_EXPERTS,
            "intermediate_size_mlp": 48,
            "num_local_experts": 4,
            "interleave_moe_layer_step": 2,
            "attention_chunk_size": 512,
        },
        wrapper={
            "vision_config": {
                **_VISION,
                "projector_input_dim": 16,
                "projector_output_dim": 16,
                "vision_output_dim": 16,
                "pixel_shuffle_ratio": 0.5,
            },
            "image_token_index": 268,
            "boi_token_index": 269,
            "eoi_token_index": 270,
        },
        experts=True,
    ),
    "gemma3": Family(
        {"sliding_window": 512, "query_pre_attn_scalar": 8},
        wrapper={
            "vision_config": {**_VISION, "model_type": "siglip_vision_model"},
            "image_token_index": 268,
            "boi_token_index": 269,
            "eoi_token_index": 270,
            "mm_tokens_per_image": 4,
        },
        post_norms=True,
        tied=True,
    ),
    "llava": Family(
        {"model_type": "llama"},
        wrapper={
            "vision_config": {**_VISION, "model_type": "clip_vision_model"},
            "image_token_index": 268,
            "image_seq_length": 4,
        },
    ),
}
# A state carried from token to token, alone or beside attention: prompts cannot share rows.
OTHERS: dict[str, Family] = {
    "mamba": Family({"state_size": 4, "time_step_rank": 4}, recurrent=True, tied=True),
    "mamba2": Family(
        {"state_size": 4, "num_heads": 8, "head_dim": 8, "n_groups": 2, "chunk_size": 16},
        recurrent=True,
    ),
    "jamba": Family(
        {
            "attn_layer_period": 2,
            "attn_layer_offset": 1,
            "expert_layer_period": 2,
            "expert_layer_offset": 1,
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "mamba_d_state": 4,
            "mamba_dt_rank": 4,
            "use_mamba_kernels": False,
        },
        recurrent=True,
        experts=True,
    ),
    "bamba": Family({**_MAMBA, "attn_layer_indices": [1, 3]}, recurrent=True),
    "qwen3_next": Family(
        {
            **_EXPERTS,
            "num_experts": 4,
            "shared_expert_intermediate_size": 16,
            "linear_num_key_heads": 2,
            "linear_num_value_heads": 4,
            "linear_key_head_dim": 8,
            "linear_value_head_dim": 8,
            "full_attention_interval": 2,
        },
        recurrent=True,
        experts=True,
    ),
    "qwen3_5": Family(
        {
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 10000.0,
                "mrope_section": [1, 1, 2],
            },
            "linear_num_key_heads": 2,
            "linear_num_value_heads": 4,
            "linear_key_head_dim": 8,
            "linear_value_head_dim": 8,
            "full_attention_interval": 2,
        },
        wrapper={
            "vision_config": {**_VISION, "depth": 2, "num_heads": 2, "out_hidden_size": WIDTH},
            "image_token_id": 268,
            "video_token_id": 269,
            "vision_start_token_id": 270,
            "vision_end_token_id": 271,
        },
        recurrent=True,
    ),
    "zamba2": Family(
        {
            "num_key_value_heads": 4,
            "mamba_d_state": 4,
            "mamba_ngroups": 2,
            "n_mamba_heads": 8,
            "chunk_size": 16,
            "num_mem_blocks": 1,
            "layers_block_type": ["mamba", "hybrid", "mamba", "hybrid", "mamba"],
            "adapter_rank": 4,
            "head_dim": OMIT,
            "use_mem_rope": True,
        },
        recurrent=True,
        tied=True,
    ),
    "falcon_h1": Family(
        {
            **_MAMBA,
            "mamba_d_ssm": 64,
            "attention_out_multiplier": 0.6,
            "ssm_out_multiplier": 0.4,
            "attention_in_multiplier": 0.9,
            "embedding_multiplier": 3.0,
            "mlp_multipliers": [0.8, 0.7],
            "lm_head_multiplier": 0.5,
        },
        recurrent=True,
    ),
    "lfm2": Family(
        {"full_attn_idxs": [1, 3], "conv_bias": True, "block_auto_adjust_ff_dim": False},
        recurrent=True,
        tied=True,
    ),
}

# A vision-language model with a sliding window and a mixture of experts, for the exports.
WRAPPED: dict[str, Family] = {
    "step3p7": Family(
        {
            "num_local_experts": 4,
            "n_routed_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 16,
            "share_expert_dim": 16,
            "sliding_window": 64,
            "num_sliding_attention_heads": 4,
            "layer_types": ["full_attention", "sliding_attention"] * 2 + ["full_attention"],
            "mlp_layer_types": ["dense", *["sparse"] * 4],
        },
        wrapper={
            "vision_config": {
                "hidden_size": WIDTH,
                "intermediate_size": WIDTH,
                "num_hidden_layers": 1,
                "num_attention_heads": 2,
                "image_size": 28,
                "patch_size": 14,
            },
        },
    ),
}

# Padding changes what these say, or would if rows shared a start: no padding, no sharing.
UNPADDED: dict[str, Family] = {
    "paligemma": Family(
        {"model_type": "gemma"},
        wrapper={
            "vision_config": {**_VISION, "model_type": "siglip_vision_model"},
            "image_token_index": 268,
            "projection_dim": 16,
        },
        tied=True,
    ),
    "gpt_neo": Family(
        {
            "num_layers": LAYERS,
            "num_heads": 4,
            "attention_types": [[["global", "local"], 2], [["global"], 1]],
        }
        | {"window_size": 8, "num_hidden_layers": OMIT, "num_attention_heads": OMIT},
        tied=True,
    ),
}
SLIDING = {"mistral-sliding": ("mistral", {"sliding_window": 8})}
ZERO_CENTRED = ("gemma", "qwen3_next")  # norms multiply by 1 + weight


def family(name: str) -> Family:
    """The family of that name, of either kind."""
    return {**FAMILIES, **OTHERS, **WRAPPED, **UNPADDED}[name]


def tokenizer(template: str | None = "chatml") -> PreTrainedTokenizerFast:
    """One token per byte, plus the special tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate([*SPECIAL, *alphabet])}
    core = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens(list(SPECIAL))
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<|pad|>", bos_token="<|bos|>", eos_token="<|eos|>"
    )
    wrapped.chat_template = TEMPLATES[template] if template is not None else None
    return wrapped


def network(family: str = "llama", seed: int = 0, **changes: Any) -> PreTrainedModel:
    """A float32 model of a family with random weights, gains and biases; ``changes`` are to the
    text config.
    """
    family, extra = SLIDING.get(family, (family, {}))
    kind = {**FAMILIES, **OTHERS, **WRAPPED, **UNPADDED}[family]
    model_type = kind.model_type or family
    values = {**_COMMON, **kind.config, **extra, **changes}
    text = {name: value for name, value in values.items() if value is not OMIT}
    if kind.wrapper is None:
        config = AutoConfig.for_model(model_type, **text)
        auto: Any = AutoModelForCausalLM
    else:
        ends = {name: _COMMON[name] for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
        tied = {"tie_word_embeddings": kind.tied}
        config = AutoConfig.for_model(
            model_type, text_config={**text, **tied}, **kind.wrapper, **tied, **ends
        )
        auto = AutoModelForImageTextToText
    torch.manual_seed(seed)
    model: PreTrainedModel = auto.from_config(config, dtype=torch.float32)
    model.eval()
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            tensor.copy_(_random(name, tensor, zero_centred=model_type.startswith(ZERO_CENTRED)))
        for name, buffer in model.named_buffers():
            if name.endswith(
                "correction_bias"
            ):  # of a router: which experts are chosen, not how much they weigh
                buffer.copy_(0.3 * torch.randn_like(buffer))
    return model


def _random(name: str, like: torch.Tensor, zero_centred: bool) -> torch.Tensor:
    """Values of a size that keeps the stream of order one and lets no state-space recurrence
    grow.
    """
    noise = torch.randn_like(like)
    match name.rsplit(".", 1)[-1]:
        case "A_log" | "dt_bias":  # decay rates near one; step sizes softplus(-1 ± 0.3)
            return 0.3 * noise - (1.0 if name.endswith("dt_bias") else 0.0)
        case "D":
            return 1.0 + 0.3 * noise
        case "weight" if like.dim() == 1:
            return 0.3 * noise + (0.0 if zero_centred else 1.0)
    if like.dim() == 1:
        return 0.3 * noise
    return 1.5 / float(like.shape[-1] ** 0.5) * noise


def chat_model(
    family: str = "llama", template: str = "chatml", seed: int = 0, **changes: Any
) -> ChatModel:
    """A tiny chat model, ready to use."""
    return ChatModel(network(family, seed, **changes), tokenizer(template), name=f"tiny-{family}")
