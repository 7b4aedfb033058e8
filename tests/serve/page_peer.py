"""A server on loopback that hands out the page and answers as a test says: what the real one says
only by chance (a stream that breaks off, a projection of a given size) or slowly.
"""

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import resources
from typing import Any

from running import LONG

CSP = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' data:"
)
TYPES = {"html": "text/html", "css": "text/css", "js": "text/javascript"}
KINDS = {"baseline": False, "ablation": True, "addition": False, "conditional": False}
INFO: dict[str, Any] = {
    "model": "tiny",
    "conditions": [
        {
            "id": "tiny" if name == "baseline" else f"tiny:{name}",
            "condition": name,
            "takes_number": name in ("ablation", "addition"),
            "stops": stops,
            "about": f"What {name} does, in one line.",
        }
        for name, stops in KINDS.items()
    ],
    "direction": {
        "layer": 12,
        "position": -1,
        "norm": 8.0,
        "mean_harmful": 5.0,
        "mean_harmless": -3.0,
    },
    "monitor": {"threshold": 1.25, "eps": 0.01},
    "limits": {"max_tokens": 512, "max_prompt_tokens": 2048},
}


def error(message: str, code: str | None = None) -> dict[str, Any]:
    """The body of every error."""
    return {"error": {"message": message, "type": "error", "param": None, "code": code}}


def answer(
    tokens: list[tuple[str, float]], kind: str = "compliance", finish: str = "stop"
) -> list[dict[str, Any]]:
    """The events of an answer: monitor, tokens, verdict, usage."""
    monitor = {"score": -2.5, "threshold": 1.25, "fires": False}
    verdict = {"refused": kind == "refusal", "kind": kind, "by": "the built-in detector"}
    found = [_event({"role": "assistant", "content": ""}, {"monitor": monitor})]
    found += [_event({"content": text}, {"projections": [[text, x]]}) for text, x in tokens]
    found.append(_event({}, {"condition": "?", "monitor": monitor, "verdict": verdict}, finish))
    usage = {"prompt_tokens": 9, "completion_tokens": len(tokens), "total_tokens": 9 + len(tokens)}
    return [*found, {"object": "chat.completion.chunk", "choices": [], "usage": usage}]


def _event(
    delta: dict[str, str], refusal: dict[str, Any], finish: str | None = None
) -> dict[str, Any]:
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    return {"object": "chat.completion.chunk", "choices": [choice], "refusal": refusal}


@dataclass
class Peer:
    """``reply`` gives the events of a request's answer, or a status and an error's body.

    Each event waits for ``pause`` seconds, all after the first ``holds`` wait for ``go``; a stream
    in ``breaks`` ends without ``[DONE]``. ``gone`` has the events after which a client was found to
    have hung up.
    """

    reply: Callable[[dict[str, Any]], list[dict[str, Any]] | tuple[int, dict[str, Any]]]
    info: dict[str, Any] = field(default_factory=lambda: dict(INFO))
    key: str | None = None
    pause: float = 0.0
    holds: int | None = None
    breaks: bool = False
    url: str = ""
    bodies: list[dict[str, Any]] = field(default_factory=list)
    go: threading.Event = field(default_factory=threading.Event)
    gone: list[int] = field(default_factory=list)


@contextmanager
def peer(made: Peer) -> Iterator[Peer]:
    """Run it on a free port of loopback inside the block."""

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

        def send(self, status: int, kind: str, body: bytes = b"", **more: str) -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Security-Policy", CSP)
            for name, value in more.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def let_in(self) -> bool:
            allowed = made.key is None or self.headers["Authorization"] == f"Bearer {made.key}"
            if not allowed:
                self.json(401, error("There is no such key.", "invalid_api_key"))
            return allowed

        def json(self, status: int, body: object) -> None:
            self.send(status, "application/json", json.dumps(body).encode())

        def do_GET(self) -> None:
            if self.path == "/refusal/info":
                if self.let_in():
                    self.json(200, made.info)
                return
            name = "index.html" if self.path == "/" else self.path.removeprefix("/page/")
            page = resources.files("refusal.engines.serve") / "page" / name
            self.send(200, TYPES[name.rpartition(".")[2]], page.read_bytes())

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if not self.let_in():
                return
            made.bodies.append(body)
            reply = made.reply(body)
            if isinstance(reply, tuple):
                self.json(*reply)
                return
            self.send(200, "text/event-stream")
            try:
                for i, event in enumerate(reply):
                    time.sleep(made.pause)
                    if i == made.holds:
                        made.go.wait(LONG)
                    self.wfile.write(f"data: {json.dumps(event)}\n\n".encode())
                    self.wfile.flush()
                if not made.breaks:
                    self.wfile.write(b"data: [DONE]\n\n")
            except (BrokenPipeError, ConnectionResetError):
                made.gone.append(i)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    made.url = f"http://127.0.0.1:{server.server_address[1]}/"
    try:
        yield made
    finally:
        server.shutdown()
        server.server_close()
