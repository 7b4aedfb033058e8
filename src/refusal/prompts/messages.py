"""Conversations in prompt files, OpenAI's (role, content) or ShareGPT's (from, value), as one
prompt.

A run asks single questions: one user turn, before it perhaps a system prompt, after it perhaps the
answer of whoever wrote the file, which is no part of the prompt. A conversation of several turns is
refused, never cut to its last one.
"""

import reprlib
from collections.abc import Sequence
from typing import Any

from refusal.core.errors import PromptError

ROLES = {
    "user": "user",
    "human": "user",
    "system": "system",
    "developer": "system",
    "assistant": "assistant",
    "gpt": "assistant",
    "model": "assistant",
}


def single_turn(messages: Sequence[Any], where: str) -> tuple[str, str | None]:
    """The user turn and the system prompt, if there is one, of a list of messages.

    Raises:
        PromptError: several user turns, none, an unknown role, or content that is no text.
    """
    turns = []
    for number, message in enumerate(messages, start=1):
        turns.append(_turn(message, f"{where}, message {number}"))
    users = [i for i, (role, _) in enumerate(turns) if role == "user"]
    if not users:
        raise PromptError(f"{where}: no message is a user's. Give one whose role is user.")
    before = turns[: users[-1]]
    if any(role != "system" for role, _ in before):
        raise PromptError(
            f"{where} is a conversation of several turns "
            f"({', '.join(role for role, _ in turns)}). A prompt is one user turn, and without "
            "the turns before it would ask something else. Leave such rows out."
        )
    systems = [text for _, text in before]
    if len(systems) > 1 or any(role == "system" for role, _ in turns[users[-1] :]):
        raise PromptError(
            f"{where}: a system message stands after the first message. Give one system message, "
            "first."
        )
    return turns[users[-1]][1], systems[0] if systems else None


def _turn(message: Any, where: str) -> tuple[str, str]:
    if not isinstance(message, dict):
        raise PromptError(
            f"{where} is {reprlib.repr(message)}. Give an object with role and content."
        )
    speaker, said = ("from", "value") if "from" in message else ("role", "content")
    role, content = message.get(speaker), message.get(said)
    if not isinstance(role, str) or role.lower() not in ROLES:
        raise PromptError(
            f"{where}: unknown {speaker} {reprlib.repr(role)}. Use one of {', '.join(ROLES)}."
        )
    if isinstance(content, list):  # in parts, as vision-language models have it
        parts = []
        for p in content:
            is_text = isinstance(p, dict) and p.get("type") == "text"
            parts.append(p.get("text") if is_text else None)
        content = "".join(parts) if all(isinstance(p, str) for p in parts) else content  # type: ignore[arg-type]
    if not isinstance(content, str):
        raise PromptError(
            f"{where}: {said} is {reprlib.repr(content)}, not a text. Only text is read."
        )
    return ROLES[role.lower()], content
