"""Rows continued side by side, as many at once as there is room for: where one has ended the next
enters.

A step costs nearly as much for a few rows as for many, so a batch that only thins out wastes most
of its steps. Rows enter a few at a time, since reading one prompt costs a pass too.
"""

from collections import deque
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from refusal.model.base import LoadedModel
from refusal.model.batch_size import BatchSize, is_out_of_memory, too_large
from refusal.model.draw import Draw
from refusal.model.edits import RowWise
from refusal.model.endings import end_tokens
from refusal.model.prefill import Standing, Starts, read_tails

ENTER = 8  # rows enter when an eighth of the room is free

Ended = Callable[[Sequence[int]], bool]
Read = Callable[[Sequence[int], Tensor], object]


@dataclass(frozen=True)
class Wanted:
    """Rows to be continued.

    Attributes:
        rows: token ids. new: tokens that each may get.
        shared: how many of their first tokens are read once for all.
        interventions: those that differ by row; ``which`` each row is under.
        ended: says of the tokens written so far whether more are not needed (a stop string is among
            them).
        read: is told the logits that follow some rows, as soon as those are read.
        draw: how the next tokens are drawn; ``None``: greedily.
    """

    rows: Sequence[Sequence[int]]
    new: int
    shared: int = 0
    interventions: RowWise | None = None
    which: Sequence[int] = ()
    ended: Ended | None = None
    read: Read | None = None
    draw: Draw | None = None

    def tokens(self, logits: Tensor, rows: Sequence[int], steps: Sequence[int]) -> list[int]:
        """The next token of some rows, of each of which so many are written."""
        if self.draw is not None:
            return self.draw.tokens(logits, rows, steps)
        likeliest: list[int] = logits.argmax(-1).tolist()
        return likeliest

    def ids(self, row: int) -> Sequence[int]:
        """A row's token ids."""
        return self.rows[row]

    def room(self, row: int) -> int:
        """Tokens that a row may get."""
        return self.new

    def over(self, row: int, tokens: Sequence[int]) -> bool:
        """Whether a row needs no more than these; asked once after each of its tokens."""
        return len(tokens) == self.new or (self.ended is not None and self.ended(tokens))

    def prompt(self, row: int) -> object:
        """What rows have in common that are samples of one prompt, and are read as one."""
        return row if self.draw is None else (self.under([row])[0], tuple(self.rows[row]))

    def under(self, rows: Sequence[int]) -> list[int]:
        """Which intervention each of some rows is under; 0 where all are under the same."""
        return [self.which[i] if self.which else 0 for i in rows]

    def tell(self, rows: Sequence[int]) -> None:
        """Have the coming calls be of these rows."""
        if self.interventions is not None:
            self.interventions.rows(self.under(rows))


class Writer:
    """Continues rows, the ending token left out.

    Args:
        size: rows at once; halved when memory runs out, and what was running is begun anew.
        count: is told of tokens written, and of those that a row which has ended will not need.
        finished: is told each row and what was written, as soon as it has ended.
    """

    def __init__(
        self,
        model: LoadedModel,
        wanted: Wanted,
        size: BatchSize,
        count: Callable[[int], object],
        finished: Callable[[int, list[int]], object],
    ) -> None:
        self.model, self.wanted, self.size = model, wanted, size
        self.count, self.finished = count, finished
        self.ends = frozenset(end_tokens(model))
        start = wanted.rows[0][: wanted.shared] if wanted.rows else ()
        self.starts = Starts(model, start, wanted.interventions)
        self.queue: deque[int] = deque()
        self.written: dict[int, list[int]] = {}  # of rows that are running
        self.running: list[int] = []
        self.entering: list[int] = []
        self.batch: Standing | None = None
        self.done: list[tuple[int, list[int]]] = []

    def write(self, order: Sequence[int]) -> None:
        """Continue the rows with these numbers, in this order.

        Raises:
            OutOfMemoryError: one row alone does not fit.
        """
        self.enter(order)
        while self.busy:
            self.turn()

    def enter(self, rows: Sequence[int]) -> None:
        """Put rows at the end of the queue."""
        self.queue.extend(rows)

    @property
    def busy(self) -> bool:
        """Whether there is anything left to write."""
        return bool(self.queue or self.running)

    def turn(self) -> None:
        """Let rows of the queue enter, and give every row that is running one more token.

        Raises:
            OutOfMemoryError: one row alone does not fit.
        """
        try:
            self._fill()
            self._step()
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            self._begin_anew(error)
        for row, tokens in self.done:
            self.finished(row, tokens)
        self.done = []

    @torch.inference_mode()
    def drop(self, rows: Collection[int]) -> None:
        """Let go of rows, between two turns; nobody is told of them."""
        self.queue = deque(row for row in self.queue if row not in rows)
        stay = [place for place, row in enumerate(self.running) if row not in rows]
        if len(stay) < len(self.running):
            self.running = self._stay(self.running, self.batch, stay)
        for row in rows:
            self.written.pop(row, None)
        if not self.running:
            self.batch = None

    @torch.inference_mode()
    def _fill(self) -> None:
        """Let rows enter, if there is room for enough of them."""
        while self.queue:
            free = self.size.value - len(self.running)
            if free < min(len(self.queue), max(1, self.size.value // ENTER)):
                return
            self.entering = self._next(free)
            new = self._read(self.entering)
            if self.wanted.read is not None:
                self.wanted.read(self.entering, new.logits)
            self.entering = self._kept(self.entering, new)
            if self.entering and self.batch is not None:
                self.batch.join(new)
            elif self.entering:
                self.batch = new
            self.running, self.entering = self.running + self.entering, []
            self.starts.forget_all_but(set(self.wanted.under(self.queue)))

    def _read(self, rows: Sequence[int]) -> Standing:
        """Read the prompts of rows; one that several are samples of once for all of them."""
        once: dict[object, int] = {}
        places, first = [], []
        for i in rows:
            prompt = self.wanted.prompt(i)
            if prompt not in once:
                once[prompt] = len(once)
                first.append(i)
            places.append(once[prompt])
        cache = self.starts.under(self.wanted.under(first))
        self.wanted.tell(first)
        prompts = [self.wanted.ids(i) for i in first]
        new = read_tails(self.model, prompts, self.wanted.shared, cache)
        if len(first) < len(rows):
            new.spread(places)
        return new

    def _next(self, most: int) -> list[int]:
        """The next rows, as many as a pass may read at once."""
        some: list[int] = []
        width, prompts = 0, set[object]()
        while self.queue and len(some) < most:
            width = max(width, len(self.wanted.ids(self.queue[0])) - self.wanted.shared)
            prompts.add(self.wanted.prompt(self.queue[0]))
            if some and width * len(prompts) > self.model.token_budget.value:
                break
            some.append(self.queue.popleft())
        return some

    @torch.inference_mode()
    def _step(self) -> None:
        """One more token for every row that is running."""
        if self.batch is None:
            return
        self.wanted.tell(self.running)
        self.batch.step(self.model, [self.written[i][-1] for i in self.running])
        self.running = self._kept(self.running, self.batch)
        if not self.running:
            self.batch = None

    def _kept(self, rows: Sequence[int], batch: Standing) -> list[int]:
        """Write the next token of each row; those that go on, which alone stay in the batch."""
        steps = [len(self.written.get(row, ())) for row in rows]
        tokens = self.wanted.tokens(batch.logits, rows, steps)
        stay = []
        for place, (row, token) in enumerate(zip(rows, tokens, strict=True)):
            if self._goes_on(row, token):
                stay.append(place)
        return self._stay(rows, batch, stay)

    def _stay(self, rows: Sequence[int], batch: Standing | None, stay: Sequence[int]) -> list[int]:
        """Those of the rows of a batch that are at these places, which alone stay in it."""
        going = [rows[place] for place in stay]
        if batch is not None and going and len(going) < len(rows):
            width = max(len(self.wanted.ids(i)) + len(self.written[i]) - 1 for i in going)
            batch.keep(stay, width)
        return going

    def _goes_on(self, row: int, token: int) -> bool:
        tokens = self.written.setdefault(row, [])
        over = token in self.ends
        if not over:
            tokens.append(token)
            over = self.wanted.over(row, tokens)
            self.count(1)
        if over:
            self.count(self.wanted.room(row) - len(tokens))
            self.done.append((row, self.written.pop(row)))
        return not over

    def _begin_anew(self, error: BaseException) -> None:
        """Half as many rows at once, what was running first.

        Raises:
            OutOfMemoryError: it was one row.
        """
        tried, ended = self.running + self.entering, {row for row, _ in self.done}
        if len(tried) == 1:
            raise too_large(len(self.wanted.ids(tried[0]))) from error
        self.size.halve(len(tried))
        again = [row for row in tried if row not in ended]
        for row in again:
            self.count(-len(self.written.pop(row, [])))
        self.queue.extendleft(reversed(again))
        self.running, self.entering, self.batch = [], [], None
