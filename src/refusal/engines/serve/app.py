"""The server's addresses: OpenAI's, and a few of its own."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from fastapi.staticfiles import StaticFiles
from starlette.exceptions import HTTPException

from refusal.core.errors import Error
from refusal.detector.verdict import refusal_verdict
from refusal.engines.serve.answers import DONE, Extras, event
from refusal.engines.serve.errors import FAULT, INVALID, ApiError, as_answer
from refusal.engines.serve.events import Began, Ended, Failed, Grown
from refusal.engines.serve.guard import Guard, Rate, is_loopback
from refusal.engines.serve.linger import Receive, Scope, Send
from refusal.engines.serve.requests import ChatRequest, read_request
from refusal.engines.serve.service import Answering, Service

PAGE = Path(__file__).parent / "page"
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
# A proxy in between must not collect a stream.
Happened = Began | Grown | Ended
STREAM = {"content-type": "text/event-stream; charset=utf-8", "x-accel-buffering": "no"}


def make_app(service: Service) -> Guard:
    """The whole application, the guard before it."""
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)

    @app.get("/health")
    async def health() -> Response:
        alive = service.worker.thread.is_alive()
        return JSONResponse({"status": "ok" if alive else "stopped"}, 200 if alive else 503)

    @app.get("/metrics")
    async def metrics() -> Response:
        return Response(service.metrics.text(), media_type="text/plain; version=0.0.4")

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": service.models()}

    @app.get("/v1/models/{name:path}")
    async def model(name: str) -> dict[str, Any]:
        service.condition(name)
        return service.model(name)

    @app.get("/refusal/info")
    async def info() -> dict[str, Any]:
        return service.info()

    @app.post("/v1/chat/completions")
    async def chat(request: Request) -> Response:
        body = await _body(request, service.options.most_bytes)
        asked = read_request(body, service.options.most_tokens)
        return await _chat(service, request, asked)

    if PAGE.is_dir():
        _add_page(app)
    _add_errors(app)
    options = service.options
    known = {getattr(route, "path", "") for route in app.routes}

    def count(path: str, status: int) -> None:
        service.metrics.requests.labels(path if path in known else "other", str(status)).inc()

    return Guard(
        app,
        key=service.key,
        local=service.key is None and is_loopback(options.host),
        rate=Rate(options.requests_per_minute),
        count=count,
    )


async def _body(request: Request, most: int) -> bytes:
    """What was sent, if it is JSON and not too large.

    Raises:
        ApiError: it is neither.
    """
    if request.headers.get("content-type", "").partition(";")[0].strip() != "application/json":
        raise ApiError(400, "Send the body as application/json.", code="invalid_content_type")
    length = request.headers.get("content-length", "0")
    if not length.isdigit() or int(length) > most:
        raise _too_large(most)
    found = bytearray()
    async for part in request.stream():
        found += part
        if len(found) > most:
            raise _too_large(most)
    return bytes(found)


def _too_large(most: int) -> ApiError:
    return ApiError(413, f"The body is larger than {most} bytes.", code="request_too_large")


async def _chat(service: Service, request: Request, asked: ChatRequest) -> Response:
    """A chat completion, whole or as a stream."""
    answering = service.begin(asked)
    gone = asyncio.ensure_future(_gone(request))
    try:
        first = await _next(answering, gone)
        if asked.stream:
            return _Stream(service, answering, first, gone)
        while not isinstance(first, Ended):
            first = await _next(answering, gone)
    except BaseException:
        service.end(answering, "error")
        gone.cancel()
        raise
    gone.cancel()
    service.end(answering, "cut" if first.cut else "whole")
    extras = await _extras(answering, first)
    return JSONResponse(answering.reply.whole(answering.prompt_tokens, first, extras))


async def _gone(request: Request) -> None:
    """Wait until the client has hung up."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


class _HungUp(Exception):
    """Nobody waits for the answer."""


async def _next(answering: Answering, gone: "asyncio.Future[None]") -> Happened:
    """The next event of a request.

    Raises:
        ApiError: it has failed. _HungUp: the client has gone.
    """
    waiting = asyncio.ensure_future(answering.events.get())
    try:
        await asyncio.wait((waiting, gone), return_when=asyncio.FIRST_COMPLETED)
        if not waiting.done():
            raise _HungUp
        found = waiting.result()
    finally:
        waiting.cancel()
    if isinstance(found, Failed):
        raise as_answer(found.error)
    answering.saw(found)
    return found


class _Stream(Response):
    """The events of an answer as they come; where it fails on the way, the last is the error."""

    def __init__(
        self, service: Service, answering: Answering, first: Happened, gone: "asyncio.Future[None]"
    ) -> None:
        super().__init__(headers=STREAM)
        del self.headers["content-length"]
        self.service, self.answering, self.first, self.gone = service, answering, first, gone
        self.end = "error"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the events; whatever happens, the request is over then."""
        start = {"type": "http.response.start", "status": 200, "headers": self.raw_headers}
        try:
            await send(start)
            async for part in self._events():
                await send({"type": "http.response.body", "body": part, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            self.gone.cancel()
            self.service.end(self.answering, self.end)

    async def _events(self) -> AsyncIterator[bytes]:
        try:
            async for part in self._answer():
                yield part
        except ApiError as error:
            yield event(error.body)
        except _HungUp:
            return

    async def _answer(self) -> AsyncIterator[bytes]:
        answering, reply, found = self.answering, self.answering.reply, self.first
        asked = answering.asked
        usage = asked.stream_options is not None and asked.stream_options.include_usage
        watched = answering.watched
        yield reply.first(usage, None if watched is None else {"monitor": watched.value})
        while not isinstance(found, Ended):
            if isinstance(found, Grown):
                yield reply.piece(found, asked.refusal.projection, usage)
            found = await _next(answering, self.gone)
        if found.last.text or found.last.told:
            yield reply.piece(found.last, asked.refusal.projection, usage)
        extras = await _extras(answering, found)
        self.end = "cut" if found.cut else "whole"
        yield reply.last(found, usage, extras)
        if usage:
            yield reply.counted(answering.prompt_tokens, found)
        yield DONE


async def _extras(answering: Answering, ended: Ended) -> Extras | None:
    """What was asked for beside the answer."""
    wanted = answering.asked.refusal
    if not wanted.any:
        return None
    verdict = None
    if wanted.verdict:
        question = answering.asked.turns[-1][1]
        verdict = await asyncio.to_thread(refusal_verdict, question, ended.text)
    told = ended.told if wanted.projection and not answering.asked.stream else None
    return Extras(answering.condition, answering.watched, verdict, told)


def _add_page(app: FastAPI) -> None:
    """The page, and the files that it is made of."""

    @app.get("/")
    async def page() -> Response:
        text = (PAGE / "index.html").read_bytes()
        return Response(
            text, media_type="text/html; charset=utf-8", headers={"Content-Security-Policy": POLICY}
        )

    app.mount("/page", StaticFiles(directory=PAGE))


def _add_errors(app: FastAPI) -> None:
    """Every error as OpenAI's clients expect it."""

    @app.exception_handler(ApiError)
    async def ours(request: Request, error: ApiError) -> Response:
        return JSONResponse(error.body, error.status, error.headers)

    @app.exception_handler(Error)
    async def known(request: Request, error: Error) -> Response:
        answer = as_answer(error)
        return JSONResponse(answer.body, answer.status, answer.headers)

    @app.exception_handler(_HungUp)
    async def hung_up(request: Request, error: _HungUp) -> Response:
        return Response(status_code=499)  # nobody reads it

    @app.exception_handler(HTTPException)
    async def http(request: Request, error: HTTPException) -> Response:
        text = f"{request.method} {request.url.path}: {error.detail}."
        answer = ApiError(error.status_code, text, kind=INVALID)
        return JSONResponse(answer.body, answer.status, error.headers)

    @app.exception_handler(Exception)
    async def unknown(request: Request, error: Exception) -> Response:
        return JSONResponse(ApiError(500, "The server failed.", kind=FAULT, code=FAULT).body, 500)
