"""A general model behind an OpenAI-compatible address as a judge.

Requests run side by side, bounded in number, in tries and in time. What concerns the endpoint as a whole (no such
model, no valid key, nobody there) ends the run before much is spent; what concerns one completion becomes a failed
judgement. The key is read from the environment, goes into requests only, and is cut out of every message.
"""

import asyncio
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from queue import SimpleQueue
from typing import Any

from pydantic import BaseModel, ValidationError

from refusal.errors import ConfigError, JudgeError
from refusal.evaluate.judges.options import OPENAI_URL, JudgeOptions
from refusal.evaluate.judges.protocol import JudgeKind, Judgement
from refusal.evaluate.judges.rubrics import Rubric
from refusal.records import Completion

Put = Callable[[Judgement], None]

# The endpoint is given up when it turns down this many first requests, and no other has been answered.
FIRST_REFUSED = 3
NOT_FOUND, NO_CREDIT = "model_not_found", "insufficient_quota"
LONGEST_PAUSE = 120.0  # seconds between two tries that the openai client grants a server that asks for them


@dataclass(frozen=True)
class Usage:
    """What the answers have cost so far: tokens read and written, and answers whose server did not say."""

    answers: int = 0
    tokens_in: int = 0
    tokens_out: int = 0
    unknown: int = 0

    def cost(self, price_in: float | None, price_out: float | None) -> float | None:
        """Money, from the prices of a million tokens; ``None`` without both prices, or where usage is not known."""
        if price_in is None or price_out is None or self.unknown:
            return None
        return (self.tokens_in * price_in + self.tokens_out * price_out) / 1e6


class _Message(BaseModel):
    content: str


class _Choice(BaseModel):
    message: _Message


class _Tokens(BaseModel):
    prompt_tokens: int
    completion_tokens: int


class _Answer(BaseModel):
    """The part of a chat completion that is needed; anything else than this is no answer."""

    choices: list[_Choice]
    usage: _Tokens | None = None


class _Failed(Exception):
    """No valid answer to this request, after all tries."""


class _Refused(_Failed):
    """The endpoint turned the request itself down, and would do so again."""


class EndpointJudge:
    """A judge behind an address.

    Attributes:
        name, kind: as in ``Judge``.
        model: the model's name at the endpoint.
        usage: what the answers of this object have cost so far.
    """

    def __init__(self, name: str, rubric: Rubric, model: str, options: JudgeOptions) -> None:
        """Nothing is sent yet.

        Raises:
            ConfigError: the openai package is missing, or the environment holds no key.
        """
        if find_spec("openai") is None:
            raise ConfigError(
                "A judge at an endpoint needs the openai package. Install it with: pip install 'refusal[judges]'."
            )
        self.name = name
        self.kind: JudgeKind = rubric.kind
        self.model = model
        self.usage = Usage()
        self._rubric = rubric
        self._options = options
        self._key = _key(options)
        self._reached = False

    @property
    def cost(self) -> float | None:
        """Money spent so far, in the currency of the prices; ``None`` where it is not known."""
        return self.usage.cost(self._options.judge_price_in, self._options.judge_price_out)

    def judge(self, items: Sequence[Completion]) -> Iterator[Judgement]:
        """One judgement per item as the answers come. When the caller stops, requests under way are dropped.

        Raises:
            JudgeError: no such model, no valid key or credit, nobody there, or the first requests are turned down.
        """
        from anyio.from_thread import start_blocking_portal  # comes with openai; works inside a notebook's loop too

        done: SimpleQueue[Judgement | None] = SimpleQueue()
        with start_blocking_portal() as portal:
            work = portal.start_task_soon(partial(self._ask_all, list(items), done.put))
            work.add_done_callback(lambda _: done.put(None))
            try:
                while (judgement := done.get()) is not None:
                    yield judgement
            finally:
                work.cancel()
            work.result()

    async def _ask_all(self, items: Sequence[Completion], put: Put) -> None:
        """One request alone until one is not turned down, then all others side by side."""
        from openai import AsyncOpenAI

        waiting = iter(items)
        async with AsyncOpenAI(
            api_key=self._key or "none",  # the client wants one
            base_url=self._options.judge_url,
            timeout=self._options.judge_timeout,
            max_retries=self._options.judge_retries,
        ) as client:
            refused = []
            for item in waiting:
                judgement, turned_down = await self._ask(client, item)
                if not turned_down:
                    put(judgement)
                    break
                refused.append(judgement)
                if len(refused) in (FIRST_REFUSED, len(items)):
                    raise JudgeError(
                        f"{self._options.judge_url} turns requests to {self.model!r} down: {judgement.error}. "
                        "Check the model's name and the endpoint."
                    )
            for judgement in refused:
                put(judgement)

            async def work() -> None:
                for item in waiting:  # shared by all workers
                    put((await self._ask(client, item))[0])

            await _together([work() for _ in range(self._options.judge_concurrency)])

    async def _ask(self, client: Any, item: Completion) -> tuple[Judgement, bool]:
        """The judgement of one completion, and whether the request itself was turned down.

        Raises:
            JudgeError: what concerns every request.
        """
        tries, timeout = self._options.judge_retries + 1, self._options.judge_timeout
        try:
            # The client's timeout starts anew with every byte that comes; this one does not.
            async with asyncio.timeout(tries * timeout + (tries - 1) * LONGEST_PAUSE):
                text = await self._answer(client, item)
        except _Failed as error:
            return Judgement(item.prompt_id, error=str(error)), isinstance(error, _Refused)
        except TimeoutError:
            return Judgement(item.prompt_id, error=f"no answer in {tries} tries of {timeout:g} seconds"), False
        answer = self._rubric.read(text)
        if answer is None:
            return Judgement(item.prompt_id, error=f"answered {self._clean(text)!r}"), False
        return Judgement(item.prompt_id, answer.label, answer.score), False

    async def _answer(self, client: Any, item: Completion) -> str:
        """What the model writes, its tokens counted."""
        import openai

        question = self._rubric.template.format(prompt=item.prompt, completion=item.completion)
        tries = self._options.judge_retries + 1
        try:
            raw = await client.chat.completions.with_raw_response.create(
                model=self.model,
                messages=[{"role": "user", "content": question}],
                temperature=0,
                max_tokens=self._options.judge_max_tokens,
            )
        except openai.APIConnectionError as error:
            connected = isinstance(error, openai.APITimeoutError) and type(error.__cause__).__name__ != "ConnectTimeout"
            if not connected and not self._reached:
                cause = self._clean(str(error.__cause__ or error)) or type(error.__cause__).__name__
                raise JudgeError(
                    f"Nobody answers at {self._options.judge_url} ({cause}). Start the server, or check the address."
                ) from error
            what = f"answer in {tries} tries of {self._options.judge_timeout:g} seconds"
            raise _Failed(f"no {what if connected else f'connection in {tries} tries'}") from error
        except openai.APIStatusError as error:
            self._reached = True
            raise self._status(error) from error
        self._reached = True
        try:
            answer = _Answer.model_validate_json(raw.content)
        except ValidationError as error:
            raise _Failed("answered with something else than a chat completion") from error
        self._count(answer.usage)
        if not answer.choices:
            raise _Failed("answered with no choice")
        return answer.choices[0].message.content

    def _status(self, error: Any) -> Exception:
        """What an HTTP error means: for every request, for this one for good, or after all tries."""
        status, said = error.status_code, self._clean(_words(error))
        if status == 401:
            held = "is not accepted" if self._key else "is not set"
            return JudgeError(
                f"{self._options.judge_url} wants a valid key, and {self._options.judge_key_env} {held}. "
                "Put the key into that environment variable, or name another one with --judge-key-env."
            )
        if status == 402 or error.code == NO_CREDIT:
            return JudgeError(f"{self._options.judge_url} gives no more credit: {said}. Raise the limit, then go on.")
        if status == 404 or error.code == NOT_FOUND:
            return JudgeError(
                f"{self._options.judge_url} has no model {self.model!r}: {said}. "
                "Check the model's name, and the address up to and with /v1."
            )
        if status in (400, 405, 415, 422) and error.code != "content_filter":
            return _Refused(f"HTTP {status}: {said}")
        return _Failed(f"HTTP {status}: {said}")

    def _count(self, tokens: _Tokens | None) -> None:
        before = self.usage
        self.usage = Usage(
            before.answers + 1,
            before.tokens_in + (tokens.prompt_tokens if tokens else 0),
            before.tokens_out + (tokens.completion_tokens if tokens else 0),
            before.unknown + (tokens is None),
        )

    def _clean(self, text: str) -> str:
        """The beginning of what a server says, on one line and without the key."""
        hidden = text.replace(self._key, "[key]") if self._key else text
        return " ".join(hidden.split())[:120].rstrip(". ")


def _words(error: Any) -> str:
    """What a server says about an error, in one of the usual places."""
    body = error.body if isinstance(error.body, dict) else {}
    return str(body.get("message") or body.get("detail") or error.response.text or error.response.reason_phrase)


async def _together(work: Sequence[Any]) -> None:
    """Run coroutines side by side; the first error stops the others and is raised as it is."""
    tasks = [asyncio.ensure_future(coroutine) for coroutine in work]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _key(options: JudgeOptions) -> str:
    """The key from the environment; empty where none is needed."""
    key = os.environ.get(options.judge_key_env, "")
    fields = JudgeOptions.model_fields
    if not key and (options.judge_url == OPENAI_URL or options.judge_key_env != fields["judge_key_env"].default):
        raise ConfigError(
            f"The environment variable {options.judge_key_env} holds no key for {options.judge_url}. "
            "Set it, or name another one with --judge-key-env."
        )
    return key
