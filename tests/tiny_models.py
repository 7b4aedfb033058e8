"""Tiny chat models with random weights, one per family, and a byte-level tokenizer: no download, milliseconds a pass.

Gains and biases are random too, not ones and zeros, so that a mistake in their place shows.
"""

from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from refusal import ChatModel

CHATML = (
    "{% if messages[0]['role'] != 'system' %}<|start|>system\nBe of help.<|end|>\n{% endif %}"
    "{% for m in messages %}<|start|>{{ m['role'] }}\n{{ m['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant\n{% if enable_thinking is defined and enable_thinking is false %}"
    "<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
NO_SYSTEM = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'system' %}"
    "{{ raise_exception('System role not supported') }}{% endif %}"
    "<|start|>{{ m['role'] }}\n{{ m['content'] | trim }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|start|>model\n{% endif %}"
)
BARE = "{% for m in messages %}[INST] {{ m['content'] }} [/INST]{% endfor %}"  # no prefix worth sharing, no specials
TEMPLATES = {"chatml": CHATML, "no-system": NO_SYSTEM, "bare": BARE}

SPECIAL = ("<|pad|>", "<|bos|>", "<|start|>", "<|end|>", "<|eos|>")
WIDTH, LAYERS, VOCABULARY = 32, 5, 272

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
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {"mlp_bias": True, "attention_bias": True},
    "mistral": {"sliding_window": None},
    "qwen2": {},
    "qwen3": {},
    "gemma": {},
    "gemma2": {"sliding_window": 8, "query_pre_attn_scalar": 8},
    "gemma3_text": {"sliding_window": 8, "query_pre_attn_scalar": 8},
    "phi": {"num_key_value_heads": 4},
    "phi3": {"num_key_value_heads": 4, "sliding_window": None},
    "olmo2": {},
    "stablelm": {"use_qkv_bias": True},
    "starcoder2": {"sliding_window": None},
}
# Not attention over positions the caller gives: these cannot share rows.
OTHERS: dict[str, dict[str, Any]] = {
    "mamba": {"state_size": 4, "time_step_rank": 4},
}
SLIDING = {"mistral-sliding": ("mistral", {"sliding_window": 8})}


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
    """A float32 model of a family with random weights, gains and biases."""
    if family in SLIDING:
        family, extra = SLIDING[family]
    else:
        extra = {**FAMILIES, **OTHERS}[family]
    config = AutoConfig.for_model(family, **{**_COMMON, **extra, **changes})
    torch.manual_seed(seed)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            scale = 0.3 if parameter.dim() == 1 else 1.5 / parameter.shape[-1] ** 0.5
            centre = 1.0 if parameter.dim() == 1 and name.endswith("weight") and "gemma" not in family else 0.0
            parameter.copy_(centre + scale * torch.randn_like(parameter))
    return model


def chat_model(family: str = "llama", template: str = "chatml", seed: int = 0, **changes: Any) -> ChatModel:
    """A tiny chat model, ready to use."""
    return ChatModel(network(family, seed, **changes), tokenizer(template), name=f"tiny-{family}")
