"""One model under its conditions, as a service: what it offers, and requests under way."""

import asyncio
import time
from dataclasses import dataclass, field
from typing import Any

from refusal.config.serve import ServeOptions
from refusal.core.direction import Direction
from refusal.core.errors import ConfigError
from refusal.core.monitor import Monitor
from refusal.engines.serve.answers import Reply, Watched
from refusal.engines.serve.errors import ApiError
from refusal.engines.serve.events import Began, Event
from refusal.engines.serve.metrics import Metrics, plain
from refusal.engines.serve.requests import ChatRequest
from refusal.engines.serve.worker import Worker
from refusal.interventions.conditional import Gate
from refusal.interventions.conditions import BASELINE, action_of
from refusal.model.base import LoadedModel
from refusal.model.contexts import context_length

ALIASES = {"conditional": "conditional-addition"}  # refuse where the monitor fires


@dataclass
class Answering:
    """A request under way."""

    number: int
    asked: ChatRequest
    condition: str
    reply: Reply
    monitor: Monitor | None = None
    events: "asyncio.Queue[Event]" = field(default_factory=asyncio.Queue)
    began: float = field(default_factory=time.monotonic)
    prompt_tokens: int = 0
    watched: Watched | None = None
    first: float | None = None  # seconds until the first token
    over: bool = False

    def saw(self, event: Event) -> None:
        """Keep what an event says of the prompt."""
        if isinstance(event, Began):
            self.prompt_tokens = event.prompt_tokens
            if event.monitored is not None and self.monitor is not None:
                fires = bool(self.monitor.fires(event.monitored))
                self.watched = Watched(event.monitored, self.monitor.threshold, fires)
            self.first = time.monotonic() - self.began


class Service:
    """A loaded model, its direction, and the worker that writes.

    Args:
        direction: ``None``: only the baseline is served.
        name: what the model is called; its conditions are called after it.
        gate: the monitor whose score answers carry, and by which conditional interventions act.
        key: what clients must send; ``None``: nothing.
    """

    def __init__(
        self,
        model: LoadedModel,
        direction: Direction | None,
        name: str,
        options: ServeOptions,
        *,
        gate: Gate | None = None,
        key: str | None = None,
    ) -> None:
        self.model_, self.direction, self.name = model, direction, name
        self.monitor = None if gate is None else gate.monitor
        self.options, self.key = options, key
        self.worker = Worker(
            model,
            direction,
            self._told,
            gate=gate,
            answer=min(options.answer_tokens, options.most_tokens),
            prompt=options.most_prompt_tokens,
            waiting=options.most_waiting,
        )
        self.offered = self.worker.conditions.offered()
        self.metrics = Metrics(self.worker)
        self.created = int(time.time())
        self.loop: asyncio.AbstractEventLoop | None = None
        self.answering: dict[int, Answering] = {}

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Begin to work for a loop."""
        self.loop = loop
        self.worker.start()

    def condition(self, model: str) -> str:
        """The condition that a model's name stands for.

        Raises:
            ApiError: there is none.
        """
        name, colon, condition = model.partition(":")
        try:
            if name == self.name and not colon:
                return BASELINE
            if name == self.name:
                condition = ALIASES.get(condition, condition)
                action_of(condition)
                return condition
            message = f"There is no model {model[:200]!r}."
        except ConfigError as error:
            message = str(error)[:1000]
        known = ", ".join(self._id(one.name) for one in self.offered)
        raise ApiError(
            404,
            f"{message} This server has {known}.",
            param="model",
            code="model_not_found",
        )

    def begin(self, asked: ChatRequest) -> Answering:
        """Have a request answered.

        Raises:
            ApiError: there is no such model. Error: it cannot be taken now.
        """
        condition = self.condition(asked.model)
        self._check_thinking(asked)
        number = self.worker.submit(asked.asked(condition))
        found = Answering(number, asked, condition, Reply(asked.model), self.monitor)
        self.answering[number] = found  # the events come through this loop, so none was missed
        return found

    def end(self, answering: Answering, how: str) -> None:
        """A request is over; where the answer was not, nobody waits for it any more."""
        if answering.over:
            return
        answering.over = True
        self.answering.pop(answering.number, None)
        if how == "error":
            self.worker.cancel(answering.number)
        self.metrics.completions.labels(plain(answering.condition), how).inc()
        if answering.first is not None:
            self.metrics.first.observe(answering.first)
        self.metrics.whole.observe(time.monotonic() - answering.began)

    def models(self) -> list[dict[str, Any]]:
        """The conditions as OpenAI lists models."""
        return [self.model(self._id(one.name)) for one in self.offered]

    def model(self, name: str) -> dict[str, Any]:
        """One of them."""
        return {"id": name, "object": "model", "created": self.created, "owned_by": "refusal"}

    def info(self) -> dict[str, Any]:
        """What is served, for a page that shows it."""
        offered = []
        for one in self.offered:
            about = {"takes_number": one.takes_number, "stops": one.stops, "about": one.about}
            offered.append({"id": self._id(one.name), "condition": one.name, **about})
        prompt = self.options.most_prompt_tokens
        context = context_length(self.model_.hf.config)
        limits = {
            "max_tokens": self.options.most_tokens,
            "max_prompt_tokens": context if prompt is None else prompt,
        }
        return {
            "model": self.name,
            "conditions": offered,
            "direction": _direction(self.direction),
            "monitor": None
            if self.monitor is None
            else {"threshold": self.monitor.threshold, "eps": self.monitor.eps},
            "limits": limits,
        }

    def _id(self, condition: str) -> str:
        return self.name if condition == BASELINE else f"{self.name}:{condition}"

    def _check_thinking(self, asked: ChatRequest) -> None:
        """Raise ApiError where the template is to be told what it is not told here."""
        chat = self.model_.chat
        told = dict(chat.thinking.variables)
        for name, value in (asked.chat_template_kwargs or {}).items():
            if name not in told or told[name] != value:
                raise ApiError(
                    400,
                    f"The template cannot be told {name} = {value!r} by a request. Start the "
                    "server with --thinking or --date.",
                    param="chat_template_kwargs",
                    code="unsupported_value",
                )
        if chat.system is not None and any(role == "system" for role, _ in asked.turns):
            raise ApiError(
                400,
                "The server was started with a system prompt. Leave yours out.",
                param="messages",
                code="system_prompt_given",
            )

    def _told(self, events: list[tuple[int, Event]]) -> None:
        """What the worker tells, in its thread: handed to the loop."""
        assert self.loop is not None
        try:
            self.loop.call_soon_threadsafe(self._hand_out, events)
        except RuntimeError:  # the loop has ended, and nobody waits
            return

    def _hand_out(self, events: list[tuple[int, Event]]) -> None:
        for number, event in events:
            if (found := self.answering.get(number)) is not None:
                found.events.put_nowait(event)


def _direction(direction: Direction | None) -> dict[str, Any] | None:
    """Where it was found, and where prompts lie on it: it is the difference of the two means."""
    if direction is None:
        return None
    harmless = None
    if direction.harmless_mean is not None:
        harmless = float(direction.harmless_mean.double() @ direction.vector.double())
    return {
        "layer": direction.layer,
        "position": direction.position,
        "norm": direction.norm,
        "mean_harmful": None if harmless is None else harmless + direction.norm,
        "mean_harmless": harmless,
    }
