"""What is asked of the worker that owns the model, and what it tells of each request. No model, no
HTTP.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

from refusal.core.errors import Error, RunFailure, UsageError
from refusal.core.sampling import GREEDY, Sampling
from refusal.core.turns import Turns

Told = tuple[str, float]  # a token's text, and where it lies on the direction


class TooLong(UsageError):
    """There is no room in the model's context for a prompt and the answer that is asked for."""


class Busy(RunFailure):
    """As many requests wait as may."""


class Stopping(RunFailure):
    """The server is about to end, or has lost its model."""


@dataclass(frozen=True)
class Asked:
    """A request, as far as the model is concerned.

    Attributes:
        condition: by its name, ``baseline`` or an intervention's.
        most: tokens that the answer may have; ``None``: what the server gives by itself.
        stops: texts that end an answer before they are written.
        streams: whether pieces of the answer are told as they come.
        projects: whether every token's place on the direction is told.
        watched: whether the monitor reads the prompt.
    """

    turns: Turns
    condition: str
    most: int | None = None
    sampling: Sampling = GREEDY
    stops: tuple[str, ...] = ()
    streams: bool = False
    projects: bool = False
    watched: bool = False


@dataclass(frozen=True)
class Began:
    """A prompt is read.

    Attributes:
        monitored: the monitor's score of it.
    """

    prompt_tokens: int
    monitored: float | None = None


@dataclass(frozen=True)
class Grown:
    """A piece of the answer; ``told`` has the tokens that it is made of, where those were asked
    for.
    """

    text: str
    told: tuple[Told, ...] = ()


@dataclass(frozen=True)
class Ended:
    """The answer is whole.

    Attributes:
        last: what was not told before of a streamed answer. text: all of it.
        told: every token's, where those were asked for.
        tokens: how many were written. cut: the length was at its limit.
    """

    last: Grown
    text: str
    told: tuple[Told, ...]
    tokens: int
    cut: bool


@dataclass(frozen=True)
class Failed:
    """There will be no answer, or no more of it."""

    error: Error


Event = Began | Grown | Ended | Failed
Tell = Callable[[list[tuple[int, Event]]], object]


@dataclass
class Figures:
    """What the worker counts, for whoever wants to show it; written by its thread alone."""

    waiting: int = 0
    running: int = 0
    steps: int = 0
    rows: int = 0  # over all steps
    prompt_tokens: int = 0
    written: dict[str, int] = field(default_factory=dict)  # tokens, by intervention
