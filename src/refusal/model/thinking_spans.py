"""Where the thought of a completion lies among its tokens, and where its answer begins."""

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from typing import NamedTuple

from refusal.core.thinking import CLOSE, OPEN
from refusal.model.base import LoadedModel
from refusal.model.chat_template import tokenize
from refusal.model.endings import thought_opened
from refusal.model.thinking_tokens import as_written


class ThoughtSpan(NamedTuple):
    """Places in a completion's tokens: those of the thought are ``begin .. end - 1``, its marks and
    blank space beside them left out; ``answer`` is the first token of the answer's first word.
    """

    begin: int
    end: int
    answer: int


def written_thought(model: LoadedModel, completion: str) -> tuple[list[int], ThoughtSpan] | None:
    """A completion's tokens with its marks as the model writes them, and where its thought is;
    ``None`` where it has none, or no answer after it.
    """
    ids = completion_tokens(model, completion)
    span = thought_span(model, ids)
    return None if span is None else (ids, span)


def completion_tokens(model: LoadedModel, completion: str) -> list[int]:
    """A completion's tokens, with its thought in the marks that this model writes, be they special
    tokens or plain text.
    """
    opening, closings = _marks(model)
    text = as_written(model.tokenizer, completion, thought_opened(model))
    if completion.startswith(OPEN) and not any(mark in text for mark in closings):
        text = text.replace(CLOSE, closings[0]) if closings else text
        text = text.replace(OPEN, opening) if opening else text
    return tokenize(model.tokenizer, text)


def thought_span(model: LoadedModel, ids: Sequence[int]) -> ThoughtSpan | None:
    """Where the thought of a completion's tokens is; ``None`` where it has none that has words and
    an end, or no answer. A token that also holds a part of a mark is not one of the thought's.
    """

    def decoded(count: int) -> str:
        return str(model.tokenizer.decode(list(ids[:count]), skip_special_tokens=False))

    def length(count: int) -> int:
        return len(decoded(count))

    text, opened = decoded(len(ids)), thought_opened(model)
    opening, closings = _marks(model)
    start = 0 if opened else text.find(opening)
    found = ((text.find(mark, max(0, start)), mark) for mark in closings)
    close, closing = next((one for one in found if one[0] >= 0), (-1, ""))
    if start < 0 or close < 0:
        return None
    start += 0 if opened else len(opening)
    thought, rest = text[start:close], text[close + len(closing) :]
    if not thought.strip() or not rest.strip():
        return None
    start += len(thought) - len(thought.lstrip())
    close -= len(thought) - len(thought.rstrip())
    word = len(text) - len(rest.lstrip())
    every = range(len(ids) + 1)
    begin = bisect_left(every, start, key=length)
    end = bisect_right(every, close, key=length) - 1
    answer = bisect_right(every, word, key=length) - 1
    return ThoughtSpan(begin, end, answer) if begin < end else None


def _marks(model: LoadedModel) -> tuple[str, tuple[str, ...]]:
    """What opens a thought, and what ends one: all that the closed block has after its opening (the
    end of harmony's turn, too), or else the closing mark alone.
    """
    thinking = model.chat.thinking
    if thinking.marks is None:
        return "", ()
    opening, closing = thinking.marks
    _, has_it, after = thinking.block.rpartition(opening)
    whole = (after if has_it else thinking.block).strip()
    return opening, (whole, closing)
