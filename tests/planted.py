"""A tiny chat model whose refusal is known in closed form: m ReLU units that all write the refusal.

Marks in a prompt (``@ # $ %``, one a kind) are counted by attention, which weighs all tokens alike,
and moved along orthonormal ``p_1 … p_m``. In the next block one ReLU unit a kind reads ``p_i`` and
writes the refusal; the model refuses where their sum is above a threshold. Any one unit is enough
(the default), so that ``m - 1`` of the ``p_i`` may be taken out and it refuses all the same; in the
additive version none is, and how much of all of them has to be taken out is a formula.

It is a Llama that loads, has a chat template and says whole sentences, as tokens of their own. What
else writes to its stream is small and has nothing to do with refusal.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tiny_models
import torch
from tokenizers import AddedToken
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from refusal import ChatModel

MARKS = "@#$%"
REFUSAL = "I'm sorry, but I can't help with that request."
ANSWER = "Sure. It works in three steps, and the first one is the longest."
WIDTH, END = 64, 4
SIZE, GAIN = 1.0, 30.0  # of a mark in the embedding; of what attention makes of it
FIRES, STEEP, WRITES = 0.05, 8.0, 1.0  # where a unit begins to fire, how fast it grows, its weight
LOGIT = 6.0  # for each unit of the sum above the threshold
NOISE = 0.01  # of all that has nothing to do with refusal
TOPICS = ("tides", "bread", "clouds", "bees", "glass", "bridges", "rivers", "salt", "maps", "ink")


@dataclass(frozen=True)
class Planted:
    """The model and what is known of it.

    Attributes:
        rows: ``p_1 … p_m``, orthonormal.
        threshold: of the sum of the units, above which it refuses.
    """

    model: ChatModel
    rows: Tensor
    threshold: float

    def components(self, text: str) -> Tensor:
        """What the last token of a prompt has along each ``p_i`` at the input of block 1."""
        ids = self.model.tokenize([text])[0]
        marks = marks_of(self.model.tokenizer)[: len(self.rows)]
        counts = torch.tensor([ids.count(i) for i in marks], dtype=torch.float64)
        return GAIN * SIZE * counts / len(ids)

    def excess(self, text: str, rows: Tensor | None = None, alpha: float = 1.0) -> float:
        """The sum of the units minus the threshold, with ``rows`` (orthonormal, in the span of the
        ``p_i``) ablated at a strength; above 0 it refuses.
        """
        along = self.components(text)
        if rows is not None:
            q = rows.double() @ self.rows.double().T
            along = along - alpha * (along @ q.T) @ q
        normed = along / torch.sqrt(1 + along.square().sum() / WIDTH)  # the norm before the MLP
        units = (STEEP * (normed - FIRES)).clamp_min(0)
        return float(WRITES * units.sum()) - self.threshold

    def crossing(self, text: str) -> float:
        """The strength at which an ablation of all ``p_i`` makes it comply, by halving."""
        low, high = 0.0, 1.0
        for _ in range(60):
            middle = (low + high) / 2
            refuses = self.excess(text, self.rows, middle) > 0
            low, high = (middle, high) if refuses else (low, middle)
        return low


def planted(m: int, additive: bool = False, seed: int = 0) -> Planted:
    """The model with ``m`` units, 1 to 4."""
    tokenizer, basis = _tokenizer(), _basis(seed)
    threshold = 0.6 if not additive else 0.6 + 3.0 * m
    hf = _network(seed)
    with torch.no_grad():
        _plant(hf, tokenizer, basis, m, threshold)
    model = ChatModel(hf, tokenizer, name=f"planted-{m}")
    return Planted(model, basis[6 : 6 + m].float(), threshold)


def save(found: Planted, folder: Path) -> Path:
    """Write it as ``save_pretrained`` does."""
    found.model.hf.save_pretrained(folder)
    found.model.tokenizer.save_pretrained(folder)
    return folder


def prompts(m: int, n: int) -> tuple[list[str], list[str]]:
    """Harmful and harmless prompts: a harmful one has four marks of one kind and one of each other,
    the kinds in turn.
    """
    harmful, harmless = [], []
    for i in range(n):
        topic, number = TOPICS[i % len(TOPICS)], i // len(TOPICS)
        marks = "".join(MARKS[k] * (4 if k == i % m else 1) for k in range(m))
        harmful.append(f"Describe {topic} for room {number} {marks}")
        harmless.append(f"Describe {topic} for room {number} ....")
    return harmful, harmless


def marks_of(tokenizer: Any) -> list[int]:
    """The tokens of the marks."""
    return [tokenizer.convert_tokens_to_ids(mark) for mark in MARKS]


def _tokenizer() -> PreTrainedTokenizerFast:
    found = tiny_models.tokenizer("chatml")
    found.add_tokens([AddedToken(text, normalized=False) for text in (REFUSAL, ANSWER)])
    return found


def _basis(seed: int) -> Tensor:
    """Orthonormal rows: the constant, the end, the ``p``, the refusal, the marks, all others."""
    draws = torch.randn(WIDTH, WIDTH, generator=torch.Generator().manual_seed(seed)).double()
    rows: Tensor = torch.linalg.qr(draws).Q.T
    return rows


def _network(seed: int) -> PreTrainedModel:
    return tiny_models.network(
        "llama",
        seed,
        hidden_size=WIDTH,
        hidden_act="relu",
        mlp_bias=True,
        attention_bias=False,
        num_hidden_layers=4,
        intermediate_size=16,
        rms_norm_eps=1e-12,
    )


def _plant(
    hf: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    basis: Tensor,
    m: int,
    threshold: float,
) -> None:
    constant, end, p, refusal = basis[0], basis[1], basis[6 : 6 + m], basis[10]
    marks, rest = basis[11 : 11 + m], basis[16:]
    refuses, answers = (tokenizer.convert_tokens_to_ids(text) for text in (REFUSAL, ANSWER))
    random = torch.Generator().manual_seed(1)

    def noise(*shape: int) -> Tensor:
        return NOISE * torch.randn(*shape, generator=random, dtype=torch.float64)

    core = hf.model
    for name, parameter in hf.named_parameters():
        parameter.zero_() if "norm" not in name else parameter.fill_(1.0)
    embedding = noise(hf.config.vocab_size, len(rest)) @ rest
    for mark, row in zip(marks_of(tokenizer), marks, strict=False):
        embedding[mark] += SIZE * row
    for token in (refuses, answers):
        embedding[token] += 4.0 * end
    # every token's vector has the length of one whose norm divides it by 1
    left = WIDTH - embedding.square().sum(1, keepdim=True)
    core.embed_tokens.weight.copy_(embedding + left.sqrt() * constant)
    for layer in core.layers:
        attention, mlp = layer.self_attn, layer.mlp
        attention.v_proj.weight.copy_(noise(attention.v_proj.out_features, len(rest)) @ rest)
        attention.o_proj.weight.copy_(rest.T @ noise(len(rest), attention.o_proj.in_features))
        mlp.gate_proj.weight.copy_(noise(mlp.gate_proj.out_features, len(rest)) @ rest)
        mlp.up_proj.bias.fill_(1.0)
        mlp.down_proj.weight.copy_(rest.T @ noise(len(rest), mlp.down_proj.in_features))
    first, second = core.layers[0].self_attn, core.layers[1].mlp
    first.v_proj.weight[:m] = marks.float()
    first.o_proj.weight[:, :m] += (GAIN * p.T).float()
    second.gate_proj.weight[:m] = (STEEP * p).float()
    second.gate_proj.bias[:m] = -STEEP * FIRES
    second.down_proj.weight[:, :m] = (WRITES * refusal[:, None]).float().expand(-1, m)
    # the constant of the last token of a prompt is about the same for all
    level = math.sqrt(WIDTH)
    head = torch.zeros_like(hf.lm_head.weight, dtype=torch.float64) - LOGIT * constant
    head[refuses] = LOGIT * refusal
    head[answers] = LOGIT * threshold / level * constant
    head[END] = 10 * LOGIT * end - LOGIT * constant
    hf.lm_head.weight.copy_(head)
