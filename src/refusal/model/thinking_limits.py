"""How long a thought and an answer may become where a model thinks freely."""

from collections.abc import Callable, Sequence

from refusal.model.base import LoadedModel
from refusal.model.chat_template import tokenize


def limits(
    model: LoadedModel, max_new_tokens: int
) -> tuple[int, Callable[[Sequence[int]], bool] | None]:
    """The most tokens that a completion may have in all, and what says that it is over before.

    Under `--thinking on` a thought may have so many tokens of its own, its marks included, and the
    answer ``max_new_tokens`` after it.
    """
    thinking = model.chat.thinking
    if thinking.mode != "on":
        return max_new_tokens, None
    return thinking.tokens + max_new_tokens, Limits(model, max_new_tokens)


class Limits:
    """Says of a completion's tokens whether the thought or the answer has reached its limit."""

    def __init__(self, model: LoadedModel, answer: int) -> None:
        thinking, tokenizer = model.chat.thinking, model.tokenizer
        assert thinking.marks is not None
        self.tokenizer, self.opened = tokenizer, model.chat.opened
        self.thought, self.answer = thinking.tokens, answer
        self.open, self.close = thinking.marks
        ids = tokenize(tokenizer, self.close)
        added = tokenizer.added_tokens_decoder
        # Between tokens of its own a mark is always the same tokens; in plain text it may melt into
        # what stands around it.
        self.ids = ids if ids[0] in added and ids[-1] in added else []

    def __call__(self, tokens: Sequence[int]) -> bool:
        """Whether a completion that has come so far is over."""
        if len(tokens) < min(self.thought, self.answer):
            return False
        start = self.start(tokens)
        if start is None:
            return len(tokens) >= self.thought
        return len(tokens) - start >= self.answer

    def start(self, tokens: Sequence[int]) -> int | None:
        """How many tokens stand before the answer; ``None`` while the thought goes on."""
        if (closed := self._closed(tokens)) is not None:
            return closed
        begin = self._text(tokens[: 4 * len(self.open)]).lstrip()
        thinks = self.opened or begin.startswith(self.open) or self.open.startswith(begin)
        return None if thinks else 0

    def cut(self, tokens: Sequence[int]) -> list[int]:
        """Tokens that somebody else has written, as far as the limits go."""
        start = self.start(tokens)
        if start is None:
            return list(tokens)
        if start > self.thought + len(self.ids):
            return list(tokens[: self.thought])
        return list(tokens[: start + self.answer])

    def _closed(self, tokens: Sequence[int]) -> int | None:
        """How many tokens there are up to the end of the mark that closes the thought."""
        if self.ids:
            n = len(self.ids)
            places = (i for i, token in enumerate(tokens) if token == self.ids[0])
            return next((i + n for i in places if list(tokens[i : i + n]) == self.ids), None)
        if self.close not in self._text(tokens):
            return None
        low, high = 0, len(tokens)  # the shortest beginning that holds the mark
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (
                (low, middle) if self.close in self._text(tokens[:middle]) else (middle, high)
            )
        return high

    def _text(self, tokens: Sequence[int]) -> str:
        return str(self.tokenizer.decode(list(tokens), skip_special_tokens=False))
