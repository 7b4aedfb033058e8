"""A chat completion as it is asked for: OpenAI's fields, of which nothing is left out silently.

What would change an answer and is not done here is refused, unless it has the value that changes
nothing.
"""

import json
import secrets
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from refusal.core.sampling import Sampling
from refusal.core.turns import Turns
from refusal.engines.serve.errors import ApiError
from refusal.engines.serve.events import Asked

STRICT = ConfigDict(extra="forbid", strict=True)
Text = Annotated[str, Field(min_length=1)]
# What has no influence on an answer, and what it must be to have none.
WITHOUT_EFFECT = frozenset(
    (
        "metadata",
        "parallel_tool_calls",
        "prompt_cache_key",
        "prompt_cache_retention",
        "safety_identifier",
        "service_tier",
        "store",
        "user",
    )
)
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "n": (1,),
    "top_p": (1,),
    "top_k": (-1, 0),
    "min_p": (0,),
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "repetition_penalty": (1,),
    "logit_bias": ({},),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "tools": ([],),
    "functions": ([],),
    "tool_choice": ("none", "auto"),
    "function_call": ("none", "auto"),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "skip_special_tokens": (False, True),
}
NO_PART = ("tool_calls", "function_call", "audio", "refusal", "annotations")  # of a message


class Part(BaseModel):
    """A piece of a message's content."""

    model_config = STRICT
    type: Literal["text"]
    text: str


class Message(BaseModel):
    """A turn."""

    model_config = STRICT
    role: Literal["system", "developer", "user", "assistant"]
    content: str | Annotated[list[Part], Field(min_length=1)]

    @property
    def turn(self) -> tuple[str, str]:
        """As the model is asked."""
        role = "system" if self.role == "developer" else self.role
        if isinstance(self.content, str):
            return role, self.content
        return role, "\n".join(part.text for part in self.content)


class StreamOptions(BaseModel):
    """How a streamed answer is told."""

    model_config = STRICT
    include_usage: bool = False
    include_obfuscation: bool = False


class Extra(BaseModel):
    """What stands in an answer beside OpenAI's fields; nothing by default."""

    model_config = STRICT
    monitor: bool = False
    verdict: bool = False
    projection: bool = False

    @property
    def any(self) -> bool:
        """Whether anything was asked for."""
        return self.monitor or self.verdict or self.projection


class ChatRequest(BaseModel):
    """What is asked for."""

    model_config = STRICT
    model: Text
    messages: Annotated[list[Message], Field(min_length=1)]
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    stop: Text | Annotated[list[Text], Field(max_length=16)] | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    refusal: Extra = Extra()

    @property
    def most(self) -> int | None:
        """Tokens that the answer may have."""
        return self.max_completion_tokens or self.max_tokens

    @property
    def turns(self) -> Turns:
        """The conversation."""
        return tuple(message.turn for message in self.messages)

    def asked(self, condition: str) -> Asked:
        """As the worker is asked; without a temperature the likeliest tokens, without a seed other
        draws each time.
        """
        seed = secrets.randbits(63) if self.seed is None else self.seed
        stops = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())
        return Asked(
            turns=self.turns,
            condition=condition,
            most=self.most,
            sampling=Sampling(self.temperature or 0.0, 1, seed),
            stops=stops,
            streams=bool(self.stream),
            projects=self.refusal.projection,
            watched=self.refusal.monitor,
        )


def read_request(body: bytes, most: int) -> ChatRequest:
    """A body as a request for at most so many tokens.

    Raises:
        ApiError: it is no JSON, or asks for what there is not.
    """
    try:
        text = body.decode()
        found = json.loads(text, parse_constant=_no_number)
    except (ValueError, RecursionError) as error:
        raise ApiError(400, f"The body is no JSON: {str(error)[:200]}.") from error
    if not isinstance(found, dict):
        raise ApiError(400, "The body is no JSON object.")
    given = {name: value for name, value in found.items() if name not in WITHOUT_EFFECT}
    _drop_neutral(given)
    try:
        request = ChatRequest.model_validate(given)
    except (ValidationError, RecursionError) as error:
        raise _wrong(error) from error
    _check(request, most)
    return request


def _no_number(text: str) -> None:
    raise ValueError(f"{text} is no number of JSON")


def _drop_neutral(given: dict[str, Any]) -> None:
    """Leave out what changes nothing by its value.

    Raises:
        ApiError: a field would change the answer, and is not known here.
    """
    for name, values in NEUTRAL.items():
        if name not in given:
            continue
        value = given.pop(name)
        same = any(value is one or (value == one and value is not True) for one in values)
        if value is not None and not same:
            raise ApiError(
                400,
                f"{name} = {json.dumps(value)[:100]} is not supported. Leave it out.",
                param=name,
                code="unsupported_value",
            )
    for message in given["messages"] if isinstance(given.get("messages"), list) else []:
        for name in NO_PART:
            if isinstance(message, dict) and message.get(name, 0) in (None, []):
                del message[name]
    if given.get("refusal", 0) is None:
        del given["refusal"]


def _wrong(error: ValidationError | RecursionError) -> ApiError:
    """The first thing that is wrong with a request."""
    if isinstance(error, RecursionError):
        return ApiError(400, "The body is nested too deeply.")
    first = error.errors(include_url=False, include_input=False)[0]
    param = ".".join(map(str, first["loc"]))
    if first["type"] == "extra_forbidden":
        text = f"There is no {param} here. Leave it out."
        return ApiError(400, text, param=param, code="unknown_parameter")
    return ApiError(400, f"{param}: {first['msg']}.", param=param, code="invalid_value")


def _check(request: ChatRequest, most: int) -> None:
    """Raise ApiError for what no single field can say."""
    if request.messages[-1].role != "user":
        raise ApiError(
            400,
            "The last message must be the user's: answers cannot be begun by a request. Start the "
            "server with --prefill for that.",
            param="messages",
            code="invalid_value",
        )
    texts = [text for _, text in request.turns]
    texts += [request.stop] if isinstance(request.stop, str) else (request.stop or [])
    if any("\ud800" <= c <= "\udfff" for text in texts if not text.isascii() for c in text):
        raise ApiError(400, "A text holds half a surrogate pair, which is no character.")
    if request.stream_options is not None and not request.stream:
        raise ApiError(
            400,
            "stream_options go with stream = true.",
            param="stream_options",
            code="invalid_value",
        )
    if request.most is not None and request.most > most:
        name = "max_tokens" if request.max_completion_tokens is None else "max_completion_tokens"
        raise ApiError(
            400,
            f"{name} = {request.most} is more than the {most} that this server writes.",
            param=name,
            code="invalid_value",
        )
