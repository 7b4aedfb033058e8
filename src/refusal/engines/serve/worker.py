"""The thread that owns the model: it takes requests, writes them side by side, and tells of them.

Nothing else touches the model or its tokenizer while it runs. Rows enter as soon as there is room
and leave when they have ended; one that nobody waits for leaves before the next step.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Collection, Sequence

from refusal.core.direction import Direction
from refusal.core.errors import Error, PromptError, RunFailure
from refusal.engines.serve.coming import Coming, OneByOne
from refusal.engines.serve.conditions import Conditions
from refusal.engines.serve.events import (
    Asked,
    Began,
    Busy,
    Event,
    Failed,
    Figures,
    Stopping,
    Tell,
    TooLong,
)
from refusal.engines.serve.reading import Reading
from refusal.engines.serve.row import Row
from refusal.interventions.action import WHEN
from refusal.interventions.conditional import Gate
from refusal.model.base import LoadedModel
from refusal.model.batch_size import SHARE, free_memory, keeping_memory
from refusal.model.caches import cache_bytes_per_token
from refusal.model.contexts import check_rows, context_length
from refusal.model.generation import batching
from refusal.model.thinking_limits import limits
from refusal.model.writing import Writer

log = logging.getLogger(__name__)
NAP = 0.5  # seconds that an idle worker sleeps at most


class Worker:
    """Writes whatever is submitted, from `start` to `stop`.

    Args:
        direction: what conditions and projections are about; ``None``: only the baseline.
        gate: the monitor that reads prompts, and decides where conditional interventions act.
        tell: is given the events of a turn with the numbers of their requests, in the worker's
            thread.
        answer: tokens of an answer that names no length. prompt: most tokens of a prompt.
        waiting: most requests that wait for room.
    """

    def __init__(
        self,
        model: LoadedModel,
        direction: Direction | None,
        tell: Tell,
        *,
        gate: Gate | None = None,
        answer: int = 256,
        prompt: int | None = None,
        waiting: int = 256,
    ) -> None:
        self.model, self.tell = model, tell
        self.answer, self.prompt, self.waiting = answer, prompt, waiting
        self.reading = Reading(direction, gate)
        self.conditions = Conditions(model, direction, gate, self.reading)
        self.figures = Figures()
        self.rows: dict[int, Row] = {}  # those that the writer has
        self.events: list[tuple[int, Event]] = []
        self.wanted = Coming(
            rows=(), new=0, conditions=self.conditions, reading=self.reading, wanted=self.rows
        )
        self.lock = threading.Condition()
        self.inbox: deque[tuple[int, Asked]] = deque()
        self.gone: set[int] = set()
        self.line: deque[tuple[int, Row]] = deque()  # read, and waiting for room
        self.began: set[int] = set()
        self.numbers = 0
        self.ends: float | None = None  # when it must have stopped
        self.room = max(1, int(free_memory(model.device) * SHARE) // cache_bytes_per_token(model))
        self.writer = self._new_writer()
        self.thread = threading.Thread(target=self._run, name="refusal-serve", daemon=True)

    def start(self) -> None:
        """Begin to work."""
        self.thread.start()

    def submit(self, asked: Asked) -> int:
        """Take a request; the number that its events will carry.

        Raises:
            Busy: too many wait. Stopping: the server is about to end.
        """
        with self.lock:
            if self.ends is not None or not self.thread.is_alive():
                raise Stopping("The server is being stopped. Ask another one, or later.")
            if len(self.inbox) + len(self.line) > self.waiting:
                raise Busy(f"{self.waiting} requests are waiting already. Ask again in a while.")
            self.numbers += 1
            self.inbox.append((self.numbers, asked))
            self.lock.notify()
            return self.numbers

    def cancel(self, number: int) -> None:
        """Nobody waits for this request any more."""
        with self.lock:
            self.gone.add(number)
            self.lock.notify()

    def stop(self, grace: float) -> None:
        """Take no more requests; those that are there have so many seconds."""
        with self.lock:
            if self.ends is None:
                self.ends = time.monotonic() + grace
            self.lock.notify()

    def join(self) -> None:
        """Wait for the end."""
        self.thread.join()

    def _run(self) -> None:
        with keeping_memory():
            try:
                while self._goes_on():
                    self._turn()
            finally:
                self._fail(self._everyone(), Stopping("The server was stopped."))
                self._send()
                self.conditions.rest()

    def _goes_on(self) -> bool:
        """Wait for something to do; whether there is."""
        with self.lock:
            if not self.writer.busy and not self.line:
                self.conditions.rest()
                while not self.inbox and self.ends is None:
                    self.gone.clear()
                    self.lock.wait(NAP)
            if self.ends is None:
                return True
            busy = self.writer.busy or self.line or self.inbox
            return bool(busy) and time.monotonic() < self.ends

    def _turn(self) -> None:
        """Let rows come and go, and write a token of each that is there."""
        self._take()
        self._let_in()
        try:
            if self.writer.busy:
                self.figures.steps += 1
                self.figures.rows += len(self.rows)
                self.writer.turn()
        except Exception as error:  # whatever it is, those who wait are told, and others served
            log.exception("a step failed")
            known = error if isinstance(error, Error) else RunFailure("The model's step failed.")
            self._fail(list(self.rows), known)
            self.writer = self._new_writer()
            self.conditions.rest()
        self._follow()

    def _follow(self) -> None:
        """Tell what came of the step."""
        self.figures.waiting, self.figures.running = len(self.line), len(self.rows)
        for number, row in self.rows.items():
            if not row.tokens:
                continue
            self._begin(number, row)
            if (grown := row.grown()) is not None:
                self.events.append((number, grown))
        self._send()

    def _begin(self, number: int, row: Row) -> None:
        if number not in self.began:
            self.began.add(number)
            self.figures.prompt_tokens += len(row.prompt)
            self.events.append((number, Began(len(row.prompt), row.monitored)))

    def _take(self) -> None:
        """Read what was submitted, and let go of what nobody waits for."""
        with self.lock:
            new, gone = list(self.inbox), set(self.gone)
            self.inbox.clear()
            self.gone.clear()
        for number, asked in new:
            if number not in gone and (row := self._read(number, asked)) is not None:
                self.line.append((number, row))
        if gone:
            self.line = deque(one for one in self.line if one[0] not in gone)
            self._forget(gone & self.rows.keys())

    def _read(self, number: int, asked: Asked) -> Row | None:
        """A request as tokens; ``None`` where it cannot be answered, which is told."""
        try:
            if asked.projects:
                self.reading.check()
            self.conditions.check(asked.condition)
            prompt = self.model.tokenize([asked.turns], freely=True)[0]
            self._check_end(asked, prompt)
            new = self._length(asked, len(prompt))
            most, limit = limits(self.model, new)
            try:
                check_rows(self.model, [prompt], most)
            except PromptError as error:
                raise TooLong(str(error)) from error
        except Error as error:
            self.events.append((number, Failed(error)))
            return None
        return Row(self.model, asked, prompt, most, limit)

    def _check_end(self, asked: Asked, prompt: Sequence[int]) -> None:
        """Raise PromptError where a monitor is to read a prompt that it was not fitted for."""
        gate = self.reading.gate
        if gate is None or not (asked.watched or asked.condition.startswith(WHEN)):
            return
        if tuple(prompt[-len(gate.suffix) :]) != gate.suffix:
            raise PromptError(
                "This prompt does not end as those that the monitor was fitted on: with --thinking "
                "on none does. Serve the model with its thoughts off or closed."
            )

    def _length(self, asked: Asked, prompt: int) -> int:
        """Tokens that an answer may have; one that names no length gets what the context holds."""
        if self.prompt is not None and prompt > self.prompt:
            raise TooLong(f"The prompt has {prompt:,} tokens; {self.prompt:,} may be asked.")
        if asked.most is not None:
            return asked.most
        context = context_length(self.model.hf.config)
        return self.answer if context is None else max(1, min(self.answer, context - prompt))

    def _let_in(self) -> None:
        """Hand rows to the writer, in their order, while they fit beside those that it has."""
        some = []
        while self.line and self._fits(self.line[0][1]):
            number, row = self.line.popleft()
            self.rows[number] = row
            some.append(number)
        if some:
            self.writer.enter(some)

    def _fits(self, row: Row) -> bool:
        """Whether there is room for a row: every row takes as much as the longest."""
        n = len(self.rows) + 1
        longest = max(len(one.prompt) + one.room for one in (*self.rows.values(), row))
        return n == 1 or (n <= self.model.batch_size.value and n * longest <= self.room)

    def _new_writer(self) -> "Writer | OneByOne":
        if batching(self.model) == "alone":
            return OneByOne(self.model, self.wanted, self._between, self._finished)
        size = self.model.batch_size
        return Writer(self.model, self.wanted, size, lambda n: None, self._finished)

    def _between(self) -> None:
        """Between two tokens of a row that is written alone."""
        self._take()
        self._follow()

    def _finished(self, number: int, tokens: list[int]) -> None:
        row = self.rows.pop(number)
        self._begin(number, row)
        written = self.figures.written
        name = row.asked.condition.partition("@")[
            0
        ]  # or there would be as many as there are numbers
        written[name] = written.get(name, 0) + len(tokens)
        event = row.ended(tokens) if row.error is None else Failed(row.error)
        self.events.append((number, event))
        self.began.discard(number)

    def _forget(self, numbers: Collection[int]) -> None:
        if numbers:
            self.writer.drop(numbers)
            for number in numbers:
                del self.rows[number]
                self.began.discard(number)

    def _everyone(self) -> Sequence[int]:
        with self.lock:
            self.ends = self.ends or time.monotonic()
            waiting = [number for number, _ in (*self.line, *self.inbox)]
            self.inbox.clear()
        self.line.clear()
        return [*self.rows, *waiting]

    def _fail(self, numbers: Sequence[int], error: Error) -> None:
        for number in numbers:
            self.rows.pop(number, None)
            self.began.discard(number)
            self.events.append((number, Failed(error)))

    def _send(self) -> None:
        """Hand the events on."""
        events, self.events = self.events, []
        if events:
            self.tell(events)
