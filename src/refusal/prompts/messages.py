"""Conversations in prompt files, OpenAI's (role, content) or ShareGPT's (from, value).

The last turn is what is asked, and must be the user's. Of a single question the answer of whoever
wrote the file may follow it, which is no part of the prompt. What is unclear is refused, never
mended.
"""

import reprlib
from collections.abc import Sequence
from typing import Any, NamedTuple

from refusal.core.errors import PromptError
from refusal.core.turns import Turns

ROLES = {
    "user": "user",
    "human": "user",
    "system": "system",
    "developer": "system",
    "assistant": "assistant",
    "gpt": "assistant",
    "model": "assistant",
}


class Conversation(NamedTuple):
    """What is asked, the turns before it, and the system prompt, if there is one."""

    text: str
    before: Turns = ()
    system: str | None = None


def conversation(messages: Sequence[Any], where: str) -> Conversation:
    """A list of messages as a prompt.

    Raises:
        PromptError: no user turn, one that is not the last of several, an unknown role, a system
            message that is not the first, or content that is empty or no text.
    """
    turns = []
    for number, message in enumerate(messages, start=1):
        turns.append(_turn(message, f"{where}, message {number}"))
    roles = [role for role, _ in turns]
    if "user" not in roles:
        raise PromptError(f"{where}: no message is a user's. Give one whose role is user.")
    system = turns.pop(0)[1] if roles[0] == "system" else None
    if any(role == "system" for role, _ in turns):
        raise PromptError(
            f"{where}: a system message stands after the first message. Give one system message, "
            "first."
        )
    if turns[0][0] == "user" and roles.count("user") == 1:  # a question, perhaps with its answer
        return Conversation(turns[0][1], (), system)
    for number, (role, text) in enumerate(turns, start=1 + len(messages) - len(turns)):
        if not text.strip():
            raise PromptError(
                f"{where}, message {number}: the content of this {role} turn is {text!r}. Write "
                "what was said, or leave such rows out."
            )
    *before, (role, text) = turns
    if role != "user":
        raise PromptError(
            f"{where}: the conversation ({', '.join(roles)}) ends with the {role} turn "
            f"{reprlib.repr(text)}. The last turn is what is asked: leave out what follows the "
            "user's."
        )
    return Conversation(text, tuple((role, said.strip()) for role, said in before), system)


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
