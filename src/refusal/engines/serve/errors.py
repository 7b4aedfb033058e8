"""What goes wrong, as OpenAI's clients expect it."""

from typing import Any

from refusal.core.errors import (
    ChatTemplateError,
    ConfigError,
    DirectionError,
    Error,
    OutOfMemoryError,
    PromptError,
)
from refusal.engines.serve.events import Busy, Stopping, TooLong

INVALID, OVERLOADED, FAULT = "invalid_request_error", "server_overloaded", "server_error"
WAIT = 1  # seconds after which one who was turned away may ask again


class ApiError(Exception):
    """An answer that is an error.

    Args:
        status: HTTP's. param: the part of the request that is wrong. wait: seconds after which to
            ask again.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        kind: str = INVALID,
        param: str | None = None,
        code: str | None = None,
        wait: int | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message = status, message
        self.kind, self.param, self.code, self.wait = kind, param, code, wait

    @property
    def body(self) -> dict[str, Any]:
        """As it is sent."""
        about = {"type": self.kind, "param": self.param, "code": self.code}
        return {"error": {"message": self.message, **about}}

    @property
    def headers(self) -> dict[str, str]:
        """What is sent beside it."""
        found = {} if self.wait is None else {"Retry-After": str(self.wait)}
        return {**found, "WWW-Authenticate": "Bearer"} if self.status == 401 else found


def as_answer(error: Error) -> ApiError:
    """What the worker says of a request, as an answer."""
    text = str(error)
    match error:
        case TooLong():
            return ApiError(400, text, param="messages", code="context_length_exceeded")
        case PromptError():
            return ApiError(400, text, param="messages", code="unsupported_value")
        case ChatTemplateError():
            return ApiError(400, text, param="messages", code="template_rejects")
        case ConfigError() | DirectionError():
            return ApiError(404, text, param="model", code="model_not_found")
        case Busy() | Stopping() | OutOfMemoryError():
            return ApiError(503, text, kind=OVERLOADED, code=OVERLOADED, wait=WAIT)
        case _:
            return ApiError(500, text, kind=FAULT, code=FAULT)
