"""Questions to a model behind an OpenAI-compatible address: judges ask it, and engines let it write
completions.

Requests run side by side, bounded in number, in tries and in time. What concerns the endpoint as a
whole (no such model, no valid key, nobody there) ends the run before much is spent; what concerns
one question becomes a reply that failed. The key is read from the environment, goes into requests
only, and is cut out of every message.
"""

import asyncio
import os
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from importlib.util import find_spec
from queue import SimpleQueue
from typing import Any

from pydantic import ValidationError

from refusal.core.endpoint_records import Address, Answer, Message, Messages, Reply, Tokens, Usage
from refusal.core.errors import ConfigError, UsageError

# The endpoint is given up when it turns down this many first requests, and no other has been
# answered.
FIRST_REFUSED = 3
NOT_FOUND, NO_CREDIT = "model_not_found", "insufficient_quota"
MOST_BYTES = 16_000_000  # of a response: far more than an answer has
LONGEST_PAUSE = (
    120.0  # seconds between two tries that the openai client grants a server that asks for them
)


class _Failed(Exception):
    """No valid answer to this request, after all tries."""


class _Refused(_Failed):
    """The endpoint turned the request itself down, and would do so again."""


class Endpoint:
    """A model behind an address.

    Attributes:
        address: where and how it is asked.
        usage: what the answers of this object have cost so far.
    """

    def __init__(self, address: Address, failure: type[UsageError]) -> None:
        """Nothing is sent yet; ``failure`` is raised for what concerns the endpoint as a whole.

        Raises:
            ConfigError: the openai package is missing, or the environment holds no key where one is
                needed.
        """
        if find_spec("openai") is None:
            raise ConfigError(
                "A model at an endpoint needs the openai package. Install it with: pip install "
                "'refusal[judges]'."
            )
        self.address = address
        self.usage = Usage()
        self._failure = failure
        self._key = os.environ.get(address.key_env, "")
        self._reached = False
        if address.key_needed and not self._key:
            raise ConfigError(
                f"The environment variable {address.key_env} holds no key for {address.url}. "
                f"Set it, or name another one with {address.key_option}."
            )

    def ask(self, questions: Sequence[Messages]) -> Iterator[Reply]:
        """One reply a question, as they come. When the caller stops, requests under way are
        dropped.

        Raises:
            UsageError: of the kind given to ``__init__``: no such model, no valid key or credit,
                nobody there, or the first requests are turned down.
        """
        from anyio.from_thread import (
            start_blocking_portal,
        )  # comes with openai; works inside a notebook's loop too

        done: SimpleQueue[Reply | None] = SimpleQueue()
        with start_blocking_portal() as portal:
            work = portal.start_task_soon(partial(self._ask_all, list(questions), done.put))
            work.add_done_callback(lambda _: done.put(None))
            try:
                while (reply := done.get()) is not None:
                    yield reply
            finally:
                work.cancel()
            work.result()

    def clean(self, text: str) -> str:
        """The beginning of what a server says, on one line and without the key."""
        hidden = text.replace(self._key, "[key]") if self._key else text
        return " ".join(hidden.split())[:120].rstrip(". ")

    async def _ask_all(self, questions: Sequence[Messages], put: Callable[[Reply], None]) -> None:
        """One request alone until one is not turned down, then all others side by side."""
        from openai import AsyncOpenAI, DefaultAsyncHttpxClient

        waiting = enumerate(questions)
        async with AsyncOpenAI(
            api_key=self._key or "none",  # the client wants one
            base_url=self.address.url,
            timeout=self.address.timeout,
            max_retries=self.address.retries,
            http_client=DefaultAsyncHttpxClient(
                follow_redirects=False, event_hooks={"response": [_read_capped]}
            ),
        ) as client:
            refused = []
            for index, question in waiting:
                reply, turned_down = await self._ask(client, index, question)
                if not turned_down:
                    put(reply)
                    break
                refused.append(reply)
                if len(refused) in (FIRST_REFUSED, len(questions)):
                    raise self._failure(
                        f"{self.address.url} turns requests to {self.address.model!r} down: "
                        f"{reply.error}. Check the model's name and the endpoint."
                    )
            for reply in refused:
                put(reply)

            async def work() -> None:
                for index, question in waiting:  # shared by all workers
                    put((await self._ask(client, index, question))[0])

            await _together([work() for _ in range(self.address.concurrency)])

    async def _ask(self, client: Any, index: int, question: Messages) -> tuple[Reply, bool]:
        """The reply to one question, and whether the request itself was turned down.

        Raises:
            UsageError: what concerns every request.
        """
        tries, timeout = self.address.retries + 1, self.address.timeout
        try:
            # The client's timeout starts anew with every byte that comes; this one does not.
            async with asyncio.timeout(tries * timeout + (tries - 1) * LONGEST_PAUSE):
                message, tokens = await self._answer(client, question)
        except _Failed as error:
            return Reply(index, error=str(error)), isinstance(error, _Refused)
        except TimeoutError:
            return Reply(index, error=f"no answer in {tries} tries of {timeout:g} seconds"), False
        return Reply(
            index, message.content or "", thought=message.thought or None, tokens_in=tokens
        ), False

    async def _answer(self, client: Any, question: Messages) -> tuple[Message, int | None]:
        """What the model writes, its tokens counted, and how many it has read."""
        import openai

        tries = self.address.retries + 1
        try:
            raw = await client.chat.completions.with_raw_response.create(
                model=self.address.model,
                messages=[dict(message) for message in question],
                temperature=0,
                max_tokens=self.address.max_tokens,
                extra_body=dict(self.address.extra),
            )
        except openai.APIConnectionError as error:
            if isinstance(error.__cause__, _Failed):  # of _read_capped
                raise error.__cause__ from None
            connected = (
                isinstance(error, openai.APITimeoutError)
                and type(error.__cause__).__name__ != "ConnectTimeout"
            )
            if not connected and not self._reached:
                cause = self.clean(str(error.__cause__ or error)) or type(error.__cause__).__name__
                raise self._failure(
                    f"Nobody answers at {self.address.url} ({cause}). Start the server, or check "
                    "the address."
                ) from error
            what = f"answer in {tries} tries of {self.address.timeout:g} seconds"
            raise _Failed(f"no {what if connected else f'connection in {tries} tries'}") from error
        except openai.APIStatusError as error:
            self._reached = True
            raise self._status(error) from error
        self._reached = True
        try:
            answer = Answer.model_validate_json(raw.content)
        except ValidationError as error:
            raise _Failed("answered with something else than a chat completion") from error
        self._count(answer.usage)
        if not answer.choices:
            raise _Failed("answered with no choice")
        message = answer.choices[0].message
        return message, answer.usage.prompt_tokens if answer.usage else None

    def _status(self, error: Any) -> Exception:
        """What an HTTP error means: for every request, for this one for good, or after all
        tries.
        """
        status, said, url = error.status_code, self.clean(_words(error)), self.address.url
        if 300 <= status < 400:
            where = self.clean(error.response.headers.get("location", "nowhere"))
            return self._failure(
                f"{url} sends requests on to {where}. They are not sent on, since prompts and key "
                "would go to another address: if that is the one that is meant, give it."
            )
        if status == 401:
            held = "is not accepted" if self._key else "is not set"
            return self._failure(
                f"{url} wants a valid key, and {self.address.key_env} {held}. "
                "Put the key into that environment variable, or name another one with "
                f"{self.address.key_option}."
            )
        if status == 402 or error.code == NO_CREDIT:
            return self._failure(
                f"{url} gives no more credit: {said}. Raise the limit, then go on."
            )
        if status == 404 or error.code == NOT_FOUND:
            return self._failure(
                f"{url} has no model {self.address.model!r}: {said}. "
                "Check the model's name, and the address up to and with /v1."
            )
        if status in (400, 405, 415, 422) and error.code != "content_filter":
            return _Refused(f"HTTP {status}: {said}")
        return _Failed(f"HTTP {status}: {said}")

    def _count(self, tokens: Tokens | None) -> None:
        before = self.usage
        self.usage = Usage(
            before.answers + 1,
            before.tokens_in + (tokens.prompt_tokens if tokens else 0),
            before.tokens_out + (tokens.completion_tokens if tokens else 0),
            before.unknown + (tokens is None),
        )


async def _read_capped(response: Any) -> None:
    """Read a response's body, as the client would without an end to it; raises _Failed where it is
    too long.
    """
    body = bytearray()
    async for part in response.aiter_bytes():
        body += part
        if len(body) > MOST_BYTES:
            raise _Failed(f"answered with more than {MOST_BYTES // 1_000_000} MB")
    response._content = bytes(body)  # where the client looks before it reads by itself


def _words(error: Any) -> str:
    """What a server says about an error, in one of the usual places."""
    body = error.body if isinstance(error.body, dict) else {}
    return str(
        body.get("message")
        or body.get("detail")
        or error.response.text
        or error.response.reason_phrase
    )


async def _together(work: Sequence[Any]) -> None:
    """Run coroutines side by side; the first error stops the others and is raised as it is."""
    tasks = [asyncio.ensure_future(coroutine) for coroutine in work]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
