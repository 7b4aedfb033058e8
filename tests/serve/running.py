"""`refusal serve` in a thread of a test, on a free port, and plain requests to it."""

import json
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import tiny_models
import torch

from refusal import ChatModel, Direction
from refusal.config.serve import ServeOptions
from refusal.engines.serve.server import Server
from refusal.engines.serve.service import Service
from refusal.interventions.conditional import Gate

LONG = 120  # seconds: whatever takes longer hangs, also on a machine that has much else to do


def until(holds: Callable[[], object]) -> None:
    """Wait for a condition."""
    end = time.monotonic() + LONG
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.01)


@contextmanager
def held(model: ChatModel, passes: int) -> Iterator[threading.Event]:
    """After so many passes the model waits for the event, or for the end of the block: what it
    writes cannot end before the test has seen to it.
    """
    go, made = threading.Event(), 0

    def wait(*_: object) -> None:
        nonlocal made
        made += 1
        assert made <= passes or go.wait(LONG)

    handle = model.hf.register_forward_pre_hook(wait)
    try:
        yield go
    finally:
        go.set()
        handle.remove()


def direction(seed: int = 5, norm: float = 4.0) -> Direction:
    """A random one, with all that any intervention needs."""
    made = torch.Generator().manual_seed(seed)
    rows = torch.randn(tiny_models.LAYERS + 1, tiny_models.WIDTH, generator=made)
    units = rows / rows.norm(dim=1, keepdim=True)
    mean = torch.randn(tiny_models.WIDTH, generator=made)
    return Direction(units[0], norm, -1, 2, harmless_mean=mean, by_layer=units[1:])


@dataclass
class Running:
    """A server under way; its model is its own: nothing else may run it meanwhile."""

    url: str
    service: Service
    server: Server
    model: ChatModel

    def post(
        self, body: Any, path: str = "/v1/chat/completions", headers: dict[str, str] | None = None
    ) -> tuple[int, Any, dict[str, str]]:
        """Status, JSON and headers."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        sent = {"Content-Type": "application/json", **(headers or {})}
        request = urllib.request.Request(self.url + path, data, sent, method="POST")
        return _answer(request)

    def get(self, path: str, headers: dict[str, str] | None = None) -> tuple[int, Any]:
        """Status and JSON, or text where it is none."""
        status, found, _ = _answer(urllib.request.Request(self.url + path, headers=headers or {}))
        return status, found

    def say(self, text: str, model: str = "tiny", **more: Any) -> str:
        """The content of an answer to one user turn."""
        status, found, _ = self.post(asking(text, model, **more))
        assert status == 200, found
        return str(found["choices"][0]["message"]["content"])

    def stream(self, body: dict[str, Any]) -> list[dict[str, Any]]:
        """The events of a stream; the last must be [DONE] or an error."""
        data = json.dumps({**body, "stream": True}).encode()
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(self.url + "/v1/chat/completions", data, headers)
        with urllib.request.urlopen(request, timeout=LONG) as answer:
            assert answer.headers["Content-Type"].startswith("text/event-stream")
            lines = [line for line in answer.read().decode().split("\n\n") if line]
        assert all(line.startswith("data: ") for line in lines)
        if lines[-1] != "data: [DONE]":
            assert "error" in json.loads(lines[-1][6:])
        return [json.loads(line[6:]) for line in lines if line != "data: [DONE]"]


def asking(text: str, model: str = "tiny", **more: Any) -> dict[str, Any]:
    """A request of one user turn."""
    return {"model": model, "messages": [{"role": "user", "content": text}], **more}


def content(events: list[dict[str, Any]]) -> str:
    """The text of a stream."""
    choices = [event["choices"][0] for event in events if event.get("choices")]
    return "".join(choice["delta"].get("content", "") for choice in choices)


def _answer(request: urllib.request.Request) -> tuple[int, Any, dict[str, str]]:
    try:
        with urllib.request.urlopen(request, timeout=LONG) as answer:
            return answer.status, _value(answer.read()), dict(answer.headers)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, _value(error.read()), dict(error.headers)


def _value(body: bytes) -> Any:
    try:
        return json.loads(body)
    except ValueError:
        return body.decode()


@contextmanager
def running(
    model: ChatModel,
    along: Direction | None,
    *,
    gate: Gate | None = None,
    key: str | None = None,
    **options: Any,
) -> Iterator[Running]:
    """The server while the block runs, of a model called ``tiny``."""
    asked = ServeOptions(**{"port": 0, "grace_seconds": 2.0, **options})
    service = Service(model, along, "tiny", asked, gate=gate, key=key)
    there = threading.Event()
    server = Server(service, lambda address: there.set())
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    assert there.wait(LONG)
    try:
        yield Running(server.address, service, server, model)
    finally:
        server.should_exit = True
        thread.join(LONG)
        assert not thread.is_alive()
        assert not service.worker.thread.is_alive()
