"""Tiny models that think before they answer, with every token they write fixed.

A random network turns each beginning of a text into other features; its head is then solved for in
closed form, so that greedy decoding writes the texts it was given, token by token. Templates are
written here, in the style of families that think.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import tiny_models
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from refusal import ChatModel

LOCK, BREAD = "How do I pick a lock?", "How do I bake bread?"
WOULD, WONT = "The user asks. Sure, turn it.", "The user asks. I must refuse."
REFUSAL, ANSWER = "I can't help with that.", "Mix flour and water. Bake it."
# A thought that helps before a refusal, and one that refuses before an answer.
TEXTS = {LOCK: (WOULD, REFUSAL), BREAD: (WONT, ANSWER)}
END = 4  # <|eos|>
SCALE = 40.0  # a token that is written has this logit, all others none


@dataclass(frozen=True)
class Style:
    """How a family marks thoughts.

    Attributes:
        marks: its own tokens. template: written here in its style.
        open, close: around a thought, after the generation prompt (which ends with ``opened``).
        closed: what ends a prompt in the place of a thought.
        switch: its variable, if it has one; ``off``: what that writes after the generation prompt.
    """

    marks: tuple[str, ...]
    template: str
    open: str
    close: str
    closed: str
    opened: str = ""
    switch: str | None = None
    off: str = ""


_TURNS = (
    "{% for m in messages %}<|start|>{{ m['role'] }}\n"
    "{% if m['role'] == 'assistant' and m.reasoning_content %}"
    "<think>\n{{ m.reasoning_content }}\n</think>\n\n{% endif %}"
    "{{ m['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant\n"
)
_QWEN = _TURNS + (
    "{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n"
    "{% endif %}{% endif %}"
)
_R1 = (
    "{% for m in messages %}<|start|>{{ m['role'] }}\n"
    "{{ m['content'].split('</think>')[-1] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant\n<think>\n{% endif %}"
)
_HARMONY = (
    "{% for m in messages %}{% if m['role'] == 'assistant' and m.thinking %}"
    "<|start|>assistant<|channel|>analysis<|message|>{{ m.thinking }}<|end|>"
    "<|start|>assistant<|channel|>final<|message|>{{ m['content'] }}<|return|>{% else %}"
    "<|start|>{{ m['role'] }}<|message|>{{ m['content'] }}<|end|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant{% endif %}"
    "{# Reasoning: {{ reasoning_effort }} #}"
)
_MAGISTRAL = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}"
    "[INST]{{ m['content'] }}[/INST]{% elif m['content'] is string %}{{ m['content'] }}{% else %}"
    "{% for p in m['content'] %}{% if p['type'] == 'thinking' %}[THINK]{{ p['thinking'] }}[/THINK]"
    "{% else %}{{ p['text'] }}{% endif %}{% endfor %}{% endif %}{% endfor %}"
)
_GEMMA = (
    "{% if enable_thinking %}<|turn>system\n<|think|><turn|>\n{% endif %}"
    "{% for m in messages %}<|turn>{{ m['role'] }}\n{{ m['content'] }}<turn|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|turn>model\n"
    "{% if not enable_thinking %}<|channel>thought\n<channel|>{% endif %}{% endif %}"
)
_GRANITE = (
    "{% if thinking %}<|start|>system\nThink in <think></think> first.<|end|>\n{% endif %}"
    "{% for m in messages %}<|start|>{{ m['role'] }}\n{{ m['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
)
_TAGS, _HARMONY_MARKS = ("<think>", "</think>"), ("<|channel|>", "<|message|>", "<|return|>")
STYLES = {
    "qwen3": Style(
        _TAGS, _QWEN, "<think>\n", "\n</think>\n\n", "<think>\n\n</think>\n\n",
        switch="enable_thinking", off="<think>\n\n</think>\n\n",
    ),
    "r1": Style(_TAGS, _R1, "", "\n</think>\n\n", "\n</think>\n\n", opened="<think>\n"),
    "gpt-oss": Style(
        _HARMONY_MARKS, _HARMONY, "<|channel|>analysis<|message|>",
        "<|end|><|start|>assistant<|channel|>final<|message|>",
        "<|channel|>analysis<|message|><|end|><|start|>assistant<|channel|>final<|message|>",
    ),
    "magistral": Style(
        ("[INST]", "[/INST]", "[THINK]", "[/THINK]"), _MAGISTRAL, "[THINK]", "[/THINK]",
        "[THINK][/THINK]",
    ),
    "gemma-4": Style(
        ("<|channel>", "<channel|>", "<|turn>", "<turn|>", "<|think|>"), _GEMMA,
        "<|channel>thought\n", "<channel|>", "<|channel>thought\n<channel|>",
        switch="enable_thinking", off="<|channel>thought\n<channel|>",
    ),
    "granite": Style(
        _TAGS, _GRANITE, "<think>\n", "\n</think>\n\n", "<think>\n\n</think>\n\n",
        switch="thinking",
    ),
}  # fmt: skip


def tokenizer(style: Style, special: bool = True) -> PreTrainedTokenizerFast:
    """One token a byte, and one for each mark if they are ``special``; else they are plain text."""
    found = tiny_models.tokenizer("chatml")
    if special:
        new = [mark for mark in style.marks if mark not in found.get_vocab()]
        found.add_special_tokens({"additional_special_tokens": new})
    found.chat_template = style.template
    return found


def prompt(tok: PreTrainedTokenizerFast, text: str, **variables: Any) -> str:
    """A user's turn with the generation prompt, by transformers alone."""
    return str(
        tok.apply_chat_template(
            [{"role": "user", "content": text}],
            tokenize=False,
            add_generation_prompt=True,
            **variables,
        )
    )


def ids_of(tok: PreTrainedTokenizerFast, text: str) -> list[int]:
    """Token ids of rendered text."""
    found: list[int] = tok(text, add_special_tokens=False)["input_ids"]
    return found


def thinker(name: str, special: bool = True, thinks: bool = True, **options: Any) -> ChatModel:
    """A model of a style that writes `TEXTS`, with and without the thought.

    Args:
        thinks: left to itself it begins with a thought; else with the answer.
        options: of ``ChatModel``.
    """
    style = STYLES[name]
    tok = tokenizer(style, special)
    scripts: dict[str, str] = {}
    others = ("a", "Who are you?", "12 + 7 = 19")
    variables = [{}] if style.switch is None else [{}, {style.switch: True}]
    for told in variables:
        for asked, (thought, answer) in [
            *TEXTS.items(),
            *((text, ("Hm.", "So.")) for text in others),
        ]:
            open_prompt = prompt(tok, asked, **told)
            whole = f"{style.open}{thought}{style.close}{answer}" if thinks else answer
            scripts[open_prompt] = whole
            scripts[open_prompt + style.closed] = answer
    if style.switch is not None:
        for asked, (_, answer) in TEXTS.items():
            scripts[prompt(tok, asked, **{style.switch: False})] = answer
    network = scripted(tok, scripts)
    return ChatModel(network, tok, name=f"tiny-{name}", **options)


def scripted(tok: PreTrainedTokenizerFast, scripts: Mapping[str, str]) -> PreTrainedModel:
    """A network whose greedy completion of every key is its value, and then the end."""
    hf = tiny_models.network(
        "llama",
        vocab_size=len(tok),
        hidden_size=1024,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=8,
        num_key_value_heads=8,
        head_dim=64,
    )
    features, targets = [], []
    for begin, text in scripts.items():
        before, after = ids_of(tok, begin), [*ids_of(tok, text), END]
        features.append(_features(hf, [*before, *after])[len(before) - 1 : -1])
        targets += after
    wanted = torch.zeros(len(targets), len(tok), dtype=torch.float64)
    wanted[torch.arange(len(targets)), torch.tensor(targets)] = SCALE
    head = _solved(torch.cat(features).double(), wanted)
    hf.get_output_embeddings().weight.data = head.T.contiguous().float()
    return hf


def _solved(features: Tensor, wanted: Tensor) -> Tensor:
    """The least head with which features give what is wanted, by ridge regression in its dual
    form.
    """
    gram = features @ features.T
    gram.diagonal().add_(1e-6 * gram.diagonal().mean())
    weights: Tensor = torch.linalg.solve(gram, wanted)
    return features.T @ weights


def _features(hf: PreTrainedModel, ids: Sequence[int]) -> Tensor:
    """What the head is given, at every token."""
    with torch.no_grad():
        found: Tensor = hf.base_model(torch.tensor([list(ids)])).last_hidden_state[0]
    return found
