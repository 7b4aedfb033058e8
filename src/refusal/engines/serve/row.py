"""One request while it is written: when it is over, and what of it can be told."""

import math
from collections.abc import Callable, Sequence

from refusal.core.errors import Error, NonFiniteError, RunFailure
from refusal.engines.serve.events import Asked, Ended, Grown, Told
from refusal.engines.serve.growing import Growing, Stops, first_of
from refusal.model.base import LoadedModel
from refusal.model.endings import read_outputs

Limit = Callable[[Sequence[int]], bool]


class Row:
    """A request whose prompt is tokens.

    A token's place on the direction is known when the next is read, so where places are asked for a
    row goes on for one token more than it needs, which is left out.

    Args:
        most: tokens that the answer may have. limit: of the thought or the answer, where the model
            thinks freely.
    """

    def __init__(
        self, model: LoadedModel, asked: Asked, prompt: list[int], most: int, limit: Limit | None
    ) -> None:
        self.model, self.asked, self.prompt = model, asked, prompt
        self.most, self.limit = most, limit
        self.key = 0 if asked.sampling.greedy else asked.sampling.keys([asked.turns])[0]
        self.follows = asked.streams or asked.projects or bool(asked.stops)
        self.growing, self.stops = Growing(model), Stops(asked.stops)
        self.tokens: list[int] = []
        self.end: int | None = None  # tokens that the answer has, once it is over
        self.cut = False
        self.error: Error | None = None
        self.monitored: float | None = None
        self.pieces: list[str] = []  # what each token added
        self.values: list[float] = []  # each token's place on the direction
        self.let_through = 0  # characters
        self.told = 0  # pieces
        self.sent = ""

    @property
    def room(self) -> int:
        """Tokens to be written at most."""
        return self.most + 1 if self.asked.projects else self.most

    def over(self, tokens: Sequence[int]) -> bool:
        """Whether these tokens are enough; asked after each of them, and of all of them again
        where memory has run out. Where others were written at the second try it is over too, with
        an ``error``.
        """
        n = len(tokens)
        if self.error is not None:
            return True
        if n <= len(self.tokens):
            if tokens[-1] != self.tokens[n - 1]:
                self.error = RunFailure("Memory ran out, and another answer came of it. Ask again.")
            return self.error is not None
        self.tokens.append(tokens[-1])
        if self.end is not None:
            return True
        if self.follows:
            piece = self.growing.add(tokens[-1])
            self.pieces.append(piece)
            self.let_through += len(self.stops.through(piece))
        self.cut = n >= self.most or (self.limit is not None and self.limit(tokens))
        if self.cut or self.stops.found:
            self.end = n
        return self.end is not None and not self.asked.projects

    def watch(self, score: float) -> None:
        """The monitor says this of the prompt; where that is no number, there is no answer."""
        self.monitored = score
        if not math.isfinite(score):
            self.error = NonFiniteError(
                "The monitor's score is not finite. Serve the model with --dtype float32."
            )

    def placed(self, index: int, value: float) -> None:
        """Token ``index`` lies there on the direction."""
        if index == len(self.values):
            self.values.append(value)

    def grown(self) -> Grown | None:
        """What can be told that was not told before."""
        if not self.asked.streams:
            return None
        found, told = self._next()
        return Grown(found, told) if found or told else None

    def ended(self, tokens: Sequence[int]) -> Ended:
        """The whole answer."""
        answer = list(tokens[: self.end])
        text = read_outputs(self.model, [answer], freely=True)[0]
        stop = first_of(self.asked.stops, text)
        text = text if stop is None else text[:stop]
        last, told = Grown(""), tuple(self._all_told(text))
        if self.asked.streams:
            start = len(self.sent) if text.startswith(self.sent) else _common(text, self.sent)
            rest = text[start:]
            if rest and told and len(told) == self.told:  # of a character that was never whole
                last = Grown(rest, ((rest, told[-1][1]),))
            else:
                last = Grown(rest, told[self.told :])
        return Ended(last, text, told, len(answer), self.cut and stop is None)

    def _next(self) -> tuple[str, tuple[Told, ...]]:
        """Pieces that are let through and, where that is asked for, placed."""
        text, told, first = "", [], self.told
        for i in range(first, len(self.pieces)):
            piece = self.pieces[i]
            known = not self.asked.projects or i < len(self.values)
            if not known or len(self.sent) + len(text) + len(piece) > self.let_through:
                break
            text, self.told = text + piece, i + 1
            if self.asked.projects:
                told.append((piece, self.values[i]))
        self.sent += text
        return text, tuple(told)

    def _all_told(self, text: str) -> list[Told]:
        """Every token's piece of the text and place; the last has what is left of it."""
        if not self.asked.projects:
            return []
        found, at = [], 0
        count = min(len(self.pieces), len(self.values))
        for i in range(count):
            end = len(text) if i == count - 1 else min(at + len(self.pieces[i]), len(text))
            found.append((text[at:end], self.values[i]))
            at = end
        return found


def _common(one: str, other: str) -> int:
    """How many characters two texts begin with alike."""
    pairs = zip(one, other, strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))
