"""What goes to an endpoint and comes back: addresses, questions, replies, and what they cost."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel, model_validator

Messages = Sequence[Mapping[str, str]]


@dataclass(frozen=True)
class Address:
    """Where to ask, as whom, and how patiently.

    Attributes:
        url: up to and with /v1. model: its name there.
        key_env: environment variable that holds the key; needed only if ``key_needed``.
        key_option: the command line's option that names another one.
        concurrency: most requests under way at once. timeout: seconds to wait for an answer, each
            try.
        retries: further tries after a failed request. max_tokens: longest answer.
        extra: further fields of every request, for servers that know them.
    """

    url: str
    model: str
    key_env: str
    key_needed: bool
    key_option: str
    concurrency: int
    timeout: float
    retries: int
    max_tokens: int
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Usage:
    """What the answers have cost so far: tokens read and written, and answers whose server did not
    say.
    """

    answers: int = 0
    tokens_in: int = 0
    tokens_out: int = 0
    unknown: int = 0

    def cost(self, price_in: float | None, price_out: float | None) -> float | None:
        """Money, from the prices of a million tokens; ``None`` without both prices, or where usage
        is not known.
        """
        if price_in is None or price_out is None or self.unknown:
            return None
        return (self.tokens_in * price_in + self.tokens_out * price_out) / 1e6


@dataclass(frozen=True)
class Reply:
    """What came of the ``index``-th question: a text, or why there is none.

    Attributes:
        thought: what the server has taken out of the text as thinking, if it does.
        tokens_in: tokens that the server read for it, if it says so.
    """

    index: int
    text: str | None = None
    error: str | None = None
    thought: str | None = None
    tokens_in: int | None = None


class Message(BaseModel):
    """What a server says that its model wrote."""

    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None

    @model_validator(mode="after")
    def _says_something(self) -> "Message":
        if self.content is None and self.thought is None:
            raise ValueError("neither content nor reasoning")
        return self

    @property
    def thought(self) -> str | None:
        """Thinking, under either of the names that servers give it."""
        return self.reasoning_content if self.reasoning_content is not None else self.reasoning


class Choice(BaseModel):
    """One of a response's completions; one is asked for."""

    message: Message


class Tokens(BaseModel):
    """What a server counts."""

    prompt_tokens: int
    completion_tokens: int


class Answer(BaseModel):
    """The part of a chat completion that is needed; anything else than this is no answer."""

    choices: list[Choice]
    usage: Tokens | None = None
