"""Thoughts in tokens: what a model has generated as the text that a user would read, and back.

Marks of thinking that are special tokens of the tokenizer, or that the template has already written
into the prompt, become `<think>…</think>`; other special tokens are dropped.
"""

from collections.abc import Sequence
from functools import lru_cache

from transformers import PreTrainedTokenizerBase

from refusal.core.thinking import CLOSE, OPEN, marked, thought_mark
from refusal.core.thinking_marks import SPECIAL

# What stands before and after a thought in families where that is more than one token each.
AROUND = {
    "<|channel|>": (
        "<|channel|>analysis<|message|>",
        "<|end|><|start|>assistant<|channel|>final<|message|>",
    ),
    "<|channel>": ("<|channel>thought\n", "<channel|>"),
    "<|START_RESPONSE|>": ("<|START_THINKING|>", "<|END_THINKING|><|START_RESPONSE|>"),
}


def readable(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], opened: bool = False) -> str:
    """Generated tokens as the text that a user would read, thoughts as ``<think>…</think>``.

    Args:
        opened: the prompt ends inside a thought (`opens`), so the tokens begin there.
    """
    marks, ids = special_marks(tokenizer), list(ids)
    while ids and ids[-1] in marks and not thought_mark(marks[ids[-1]]):
        ids.pop()
    if not opened and not any(token in marks for token in ids):
        return str(tokenizer.decode(ids, skip_special_tokens=True))
    raw, run = "", []
    for token in [*ids, None]:
        if token is not None and token not in marks:
            run.append(token)
            continue
        raw += str(tokenizer.decode(run, skip_special_tokens=True)) if run else ""
        raw, run = raw + (marks[token] if token is not None else ""), []
    return marked(raw, opened)


@lru_cache(maxsize=8)
def special_marks(tokenizer: PreTrainedTokenizerBase) -> dict[int, str]:
    """The tokenizer's own tokens that mark thoughts, answers or turns, by id."""
    added = {token: content.content for token, content in tokenizer.added_tokens_decoder.items()}
    found = {}
    for token, text in added.items():
        if thought_mark(text) or SPECIAL.fullmatch(text):
            found[token] = text
    return found


def loses_marks(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether thoughts run into answers where this tokenizer's special tokens are dropped."""
    special = [added.content for added in tokenizer.added_tokens_decoder.values() if added.special]
    return any(
        content in ("<|channel|>", "<|channel>") or thought_mark(content) for content in special
    )


def as_written(tokenizer: PreTrainedTokenizerBase, text: str, opened: bool = False) -> str:
    """`readable` undone: the marks as this model writes them, so that it can be made to read its
    own completion.
    """
    if not text.startswith(OPEN):
        return text
    own = list(special_marks(tokenizer).values())
    kinds = {mark.kind: content for content in own if (mark := thought_mark(content)) is not None}
    begin, end = kinds.get("open", OPEN), kinds.get("close", CLOSE)
    begin, end = (
        (OPEN, CLOSE)
        if OPEN in own
        else next((AROUND[mark] for mark in own if mark in AROUND), (begin, end))
    )
    text = text.replace(CLOSE, end)
    return text.removeprefix(OPEN) if opened else text.replace(OPEN, begin)
