"""Answers as OpenAI's clients expect them, whole and in pieces."""

import json
import secrets
import time
from dataclasses import dataclass, field
from typing import Any

from refusal.core.records import Verdict
from refusal.engines.serve.events import Ended, Grown, Told

DONE = b"data: [DONE]\n\n"


@dataclass(frozen=True)
class Watched:
    """What a monitor says of a prompt."""

    score: float
    threshold: float
    fires: bool

    @property
    def value(self) -> dict[str, Any]:
        """As it is sent."""
        return {"score": self.score, "threshold": self.threshold, "fires": self.fires}


@dataclass(frozen=True)
class Extras:
    """What an answer carries beside OpenAI's fields, as far as it was asked for."""

    condition: str
    watched: Watched | None = None
    verdict: Verdict | None = None
    told: tuple[Told, ...] | None = None

    @property
    def value(self) -> dict[str, Any]:
        """As it is sent."""
        return {
            "condition": self.condition,
            "monitor": None if self.watched is None else self.watched.value,
            "verdict": _verdict(self.verdict),
            "projections": None if self.told is None else _pairs(self.told),
        }


def _verdict(verdict: Verdict | None) -> dict[str, Any] | None:
    if verdict is None:
        return None
    found = {"refused": verdict.refused, "kind": verdict.label, "by": "detector"}
    return {**found, "evidence": verdict.evidence}


def _pairs(told: tuple[Told, ...]) -> list[list[Any]]:
    return [[text, value] for text, value in told]


@dataclass(frozen=True)
class Reply:
    """What all that is sent of an answer has in common; ``model`` is as the client called it."""

    model: str
    id: str = field(default_factory=lambda: f"chatcmpl-{secrets.token_hex(12)}")
    created: int = field(default_factory=lambda: int(time.time()))

    def whole(self, prompt: int, ended: Ended, extras: Extras | None) -> dict[str, Any]:
        """An answer that is not streamed."""
        message = {"role": "assistant", "content": ended.text, "refusal": None}
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": _why(ended)}
        found = self._object("chat.completion", [choice])
        found["usage"] = _usage(prompt, ended)
        return _with(found, extras)

    def first(self, usage: bool, extra: dict[str, Any] | None) -> bytes:
        """The event that opens a stream."""
        return self._event({"role": "assistant", "content": ""}, None, usage, extra)

    def piece(self, grown: Grown, projects: bool, usage: bool) -> bytes:
        """An event with some text."""
        extra = {"projections": _pairs(grown.told)} if projects else None
        return self._event({"content": grown.text}, None, usage, extra)

    def last(self, ended: Ended, usage: bool, extras: Extras | None) -> bytes:
        """The event that says why it ended."""
        return self._event({}, _why(ended), usage, None if extras is None else extras.value)

    def counted(self, prompt: int, ended: Ended) -> bytes:
        """The event with the number of tokens."""
        found = self._object("chat.completion.chunk", [])
        return event({**found, "usage": _usage(prompt, ended)})

    def _event(
        self,
        delta: dict[str, Any],
        why: str | None,
        usage: bool,
        extra: dict[str, Any] | None,
    ) -> bytes:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": why}
        found = self._object("chat.completion.chunk", [choice])
        if usage:
            found["usage"] = None
        return event(found if extra is None else {**found, "refusal": extra})

    def _object(self, kind: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
        about = {"id": self.id, "object": kind, "created": self.created, "model": self.model}
        return {**about, "choices": choices}


def event(value: dict[str, Any]) -> bytes:
    """A server-sent event; all of it in ASCII, so that no proxy cuts a character."""
    return b"data: " + json.dumps(value, separators=(",", ":")).encode() + b"\n\n"


def _why(ended: Ended) -> str:
    return "length" if ended.cut else "stop"


def _usage(prompt: int, ended: Ended) -> dict[str, int]:
    total = prompt + ended.tokens
    counts = {"prompt_tokens": prompt, "completion_tokens": ended.tokens}
    return {**counts, "total_tokens": total}


def _with(found: dict[str, Any], extras: Extras | None) -> dict[str, Any]:
    return found if extras is None else {**found, "refusal": extras.value}
