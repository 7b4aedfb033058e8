"""Texts that must not be written or shown: passwords in addresses, keys among arguments, hosts that
are none.
"""

import re
from collections.abc import Sequence
from typing import Annotated
from urllib.parse import urlsplit

from pydantic import AfterValidator

from refusal.core.errors import UsageError

_USER = re.compile(r"(?<=://)[^/\s@]*(?:@[^/\s@]*)*@")
_NAME = r"(?:[\w-]*[-_])?(?:api[-_]?keys?|token|password|passwd|secret|bearer)"
_SECRET = re.compile(rf"^(-*{_NAME})(?:[=:\s].*)?$", re.IGNORECASE | re.DOTALL)
HIDDEN = "[hidden]"


def without_secrets(text: str) -> str:
    """A text without passwords in its addresses."""
    return _USER.sub(f"{HIDDEN}@", text)


def check_arguments(arguments: Sequence[str]) -> None:
    """Raise UsageError for an argument that is no text: all that is written down is UTF-8, names of
    files included.
    """
    for argument in arguments:
        if "\0" in argument:
            raise UsageError(
                f"The argument {argument[:200]!r} holds a NUL character. Leave it out."
            )
        if not argument.isascii() and any(
            "\ud800" <= character <= "\udfff" for character in argument
        ):
            raise UsageError(
                f"The argument {argument[:200]!r} is not UTF-8. Rename the file, or give it in "
                "UTF-8."
            )


def shown_arguments(arguments: Sequence[str]) -> list[str]:
    """Arguments of a command line as they may be written down."""
    out: list[str] = []
    value = False  # whether the argument before was a secret's name
    for argument in arguments:
        found = _SECRET.match(argument)
        if value and not argument.startswith("-"):
            out.append(HIDDEN)
        elif found is not None:
            out.append(argument if argument == found[1] else f"{found[1]}={HIDDEN}")
        else:
            out.append(without_secrets(argument))
        value = found is not None and argument == found[1] and argument.startswith("-")
    return out


def _address(text: str) -> str:
    if any(character.isspace() or not character.isprintable() for character in text):
        raise ValueError("an address holds no spaces and no control characters")
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError as error:
        raise ValueError(f"this is no address ({error})") from error
    if "@" in parts.netloc:
        raise ValueError(
            "an address with a user or a password would be written to run.toml, the manifest and "
            "the report; put the key into the environment variable that --judge-key-env or "
            "--engine-key-env names"
        )
    if parts.scheme not in ("http", "https") or not parts.hostname or port == 0:
        raise ValueError(
            "an address begins with http:// or https://, then the host, as http://127.0.0.1:8000/v1"
        )
    if parts.query or parts.fragment:
        raise ValueError("an address goes up to and with /v1; nothing follows it")
    return text


def _no_secret(argument: str) -> str:
    if _SECRET.match(argument):
        raise ValueError(
            "it would be written to run.toml, the manifest and the report; set the key in the "
            "environment (VLLM_API_KEY, HF_TOKEN) instead"
        )
    return argument


Url = Annotated[str, AfterValidator(_address)]
ServerArgument = Annotated[str, AfterValidator(_no_secret)]
