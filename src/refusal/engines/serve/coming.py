"""Rows that come and go, each with its own condition, length and draws, for the one loop that
writes (`model/writing.py`).
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from refusal.engines.serve.conditions import Conditions
from refusal.engines.serve.reading import Reading
from refusal.engines.serve.row import Row
from refusal.model.base import LoadedModel
from refusal.model.draw import Draw
from refusal.model.generation import write_alone
from refusal.model.writing import Wanted

Finished = Callable[[int, list[int]], object]


@dataclass(frozen=True)
class Coming(Wanted):
    """Rows by their number, as long as somebody waits for them."""

    conditions: Conditions = field(kw_only=True)
    reading: Reading = field(kw_only=True)
    wanted: dict[int, Row] = field(kw_only=True)

    def ids(self, row: int) -> Sequence[int]:
        """A row's prompt."""
        return self.wanted[row].prompt

    def room(self, row: int) -> int:
        """Tokens that a row may get."""
        return self.wanted[row].room

    def over(self, row: int, tokens: Sequence[int]) -> bool:
        """Whether a row needs no more than these."""
        return self.wanted[row].over(tokens)

    def tell(self, rows: Sequence[int]) -> None:
        """Have the coming calls be of these rows, each under its condition."""
        self.conditions.lay_out([self.wanted[row].asked.condition for row in rows])

    def tokens(self, logits: Tensor, rows: Sequence[int], steps: Sequence[int]) -> list[int]:
        """The next token of each row, of which so many are written: drawn at its own temperature,
        or the likeliest. The one before it was read just now, and lies somewhere.
        """
        self._place(rows, steps)
        found: list[int] = logits.argmax(-1).tolist()
        drawn: dict[float, list[int]] = {}
        for place, row in enumerate(rows):
            if not (sampling := self.wanted[row].asked.sampling).greedy:
                drawn.setdefault(sampling.temperature, []).append(place)
        for temperature, places in drawn.items():
            some = [rows[place] for place in places]
            draw = Draw(temperature, {row: self.wanted[row].key for row in some})
            new = draw.tokens(logits[places], some, [steps[place] for place in places])
            for place, token in zip(places, new, strict=True):
                found[place] = token
        return found

    def _place(self, rows: Sequence[int], steps: Sequence[int]) -> None:
        new = [i for i, row in enumerate(rows) if not steps[i] and self.wanted[row].asked.watched]
        for i, score in zip(new, self.reading.scores(new), strict=self.reading.gate is not None):
            self.wanted[rows[i]].watch(score)
        asked = [i for i, row in enumerate(rows) if steps[i] and self.wanted[row].asked.projects]
        for i, value in zip(asked, self.reading.projections(asked), strict=True):
            self.wanted[rows[i]].placed(steps[i] - 1, value)


class OneByOne:
    """Rows one after the other, for models whose state cannot be padded or thinned out; what of
    `Writer` the worker needs.
    """

    def __init__(
        self, model: LoadedModel, wanted: Coming, follow: Callable[[], object], finished: Finished
    ) -> None:
        """``follow`` is called after each token."""
        self.model, self.wanted = model, wanted
        self.follow, self.finished = follow, finished
        self.queue: list[int] = []

    @property
    def busy(self) -> bool:
        """Whether there is anything left to write."""
        return bool(self.queue)

    def enter(self, rows: Sequence[int]) -> None:
        """Write these rows too."""
        self.queue.extend(rows)

    def turn(self) -> None:
        """Write a row."""
        number = self.queue.pop(0)
        row, reading = self.wanted.wanted[number], self.wanted.reading

        def ended(tokens: Sequence[int]) -> bool:
            if len(tokens) == 1 and row.asked.watched:
                for score in reading.scores([0]):
                    row.watch(score)
            if len(tokens) > 1 and row.asked.projects:
                row.placed(len(tokens) - 2, reading.projections([0])[0])
            over = row.over(tokens)
            self.follow()
            return over or number not in self.wanted.wanted

        sampling = row.asked.sampling
        draw = None if sampling.greedy else Draw(sampling.temperature, [row.key])
        one = Wanted([row.prompt], row.room, ended=ended, draw=draw)
        self.wanted.tell([number])
        tokens = write_alone(self.model, one, 0, lambda n: None)
        if number in self.wanted.wanted:
            self.finished(number, tokens)

    def drop(self, rows: Collection[int]) -> None:
        """Let go of rows."""
        self.queue = [row for row in self.queue if row not in rows]
