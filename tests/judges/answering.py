"""A hand-made Llama that answers one thing where the text holds MARK and another where it does not.

Attention is uniform over what is not masked, so that a wrong mask or a lost text shows; the head
turns "was MARK seen" into the first token, and that token into the end of the text. No training, no
download.
"""

import math
from collections.abc import Sequence
from pathlib import Path

import tiny_models
import torch
from transformers import LlamaConfig, LlamaForCausalLM

MARK = "MARK"
# The way Llama Guard's templates go: the roles are renamed, the assistant's turn is what is judged.
GUARD = (
    "<|bos|>Judge the Agent.\n{% for m in messages %}{{ 'User' if m['role'] == 'user' else "
    "'Agent' }}: {{ m['content'] | trim }}\n{% endfor %}Say 'safe' or 'unsafe'.\n"
)
# As that of Llama Guard 3 1B: with plain strings it shows nothing, and says nothing.
GUARD_PARTS = GUARD.replace(
    "{{ m['content'] | trim }}",
    "{% for part in m['content'] %}{% if part['type'] == 'text' %}{{ part['text'] | trim }}{% "
    "endif %}{% endfor %}",
)


def save_answering(folder: Path, marked: str, plain: str, template: str | None = GUARD) -> Path:
    """Write a model that answers ``marked`` where MARK is somewhere in the prompt, else
    ``plain``.
    """
    _save(folder, {marked: (1.0, 0.0), plain: (0.0, 1.0)}, template)
    return folder


def save_certain(folder: Path, marked: str, plain: str, template: str) -> Path:
    """Write a model whose next token is ``marked`` for sure where MARK is in the prompt, else
    ``plain`` for sure.
    """
    _save(folder, {marked: (1.0, 0.0), plain: (0.0, 20.0)}, template)
    return folder


def save_grading(folder: Path, shares: Sequence[float], lift: float) -> Path:
    """Write a model whose next token is 1 to 5 with these shares, ``e^lift`` times likelier than
    any other token.

    Where MARK is in the prompt it is 5 for sure.
    """
    grades = {str(i + 1): (0.0, lift + math.log(share)) for i, share in enumerate(shares)}
    _save(folder, grades | {"5": (1.0, grades["5"][1])}, None)
    return folder


def _save(folder: Path, answers: dict[str, tuple[float, float]], template: str | None) -> None:
    """``answers``: each answer's logit per MARK seen, and its logit always."""
    tokenizer = tiny_models.tokenizer(None)
    tokenizer.chat_template = template
    tokenizer.add_tokens([answer for answer in (*answers, MARK) if len(answer) > 1])
    vocabulary = tokenizer.get_vocab()
    n = len(tokenizer)
    constant, seen = n, n + 1
    width = n + 2 + n % 2
    config = LlamaConfig(
        vocab_size=n, hidden_size=width, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1,
        num_key_value_heads=1, head_dim=width, max_position_embeddings=8192, tie_word_embeddings=False,
        bos_token_id=1, eos_token_id=4, pad_token_id=0,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    norm = math.sqrt(width / 2)  # what a norm makes of each of the two ones of an embedding
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.fill_(1.0 if "norm" in name else 0.0)
        embedding = model.model.embed_tokens.weight
        embedding[torch.arange(n), torch.arange(n)] = 1.0
        embedding[:, constant] = 1.0
        attention = model.model.layers[0].self_attn
        attention.v_proj.weight[seen, vocabulary[MARK]] = 1e4
        attention.o_proj.weight[seen, seen] = 1.0
        head = model.lm_head.weight
        for answer, (if_seen, always) in answers.items():
            head[vocabulary[answer], seen] = 1e3 * if_seen
            head[vocabulary[answer], constant] = always / norm
            if len(answer) > 1:
                head[4, vocabulary[answer]] = 1e9  # stronger than any MARK
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
