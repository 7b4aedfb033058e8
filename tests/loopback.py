"""A small server on loopback that answers chat completions as a test says, and remembers what it
was asked.
"""

import json
import re
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from refusal import Completion


@dataclass
class Reply:
    """What is sent back: a status and a body, after some seconds; ``drop`` closes the connection
    instead.
    """

    body: str = ""
    status: int = 200
    seconds: float = 0.0
    drop: bool = False
    dribble: bool = False


def says(text: Any, tokens: tuple[int, int] | None = (100, 5), **more: Any) -> Reply:
    """A chat completion with that content."""
    usage = (
        {"prompt_tokens": tokens[0], "completion_tokens": tokens[1], "total_tokens": sum(tokens)}
        if tokens
        else None
    )
    return Reply(
        json.dumps(
            {"choices": [{"message": {"role": "assistant", "content": text}}], "usage": usage}
        ),
        **more,
    )


@dataclass
class Server:
    """``behave(item, n)`` is asked for the reply to the ``n``-th request about that item (both from
    0).

    The item is the number after ITEM in the request; without one, a number that only the same
    request has.
    """

    behave: Callable[[int, int], Reply]
    url: str = ""
    asked: list[int] = field(default_factory=list)
    bodies: list[dict[str, Any]] = field(default_factory=list)
    keys: set[str | None] = field(default_factory=set)
    statuses: list[int] = field(default_factory=list)
    under_way: int = 0
    most: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)


def items(n: int) -> list[Completion]:
    """Completions that say which they are, so that the server can tell."""
    return [Completion(f"p{i}", f"Request {i}.", f"Reply ITEM{i}.", "compliance") for i in range(n)]


@contextmanager
def serving(behave: Callable[[int, int], Reply]) -> Iterator[Server]:
    """Run the server on a free port of loopback inside the block."""
    server = Server(behave)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            found = re.search(r"ITEM(\d+)", str(body))
            item = int(found[1]) if found else zlib.crc32(str(body).encode())
            with server.lock:
                n = server.asked.count(item)
                server.asked.append(item)
                server.bodies.append(body)
                server.keys.add(self.headers["Authorization"])
                server.under_way += 1
                server.most = max(server.most, server.under_way)
            reply = server.behave(item, n)
            time.sleep(reply.seconds)
            with server.lock:
                server.under_way -= 1
                server.statuses.append(reply.status)
            if not reply.drop:
                self.send(reply)
            self.close_connection = True

        def send(self, reply: Reply) -> None:
            try:
                self.send_response(reply.status)
                self.send_header("Content-Type", "application/json")
                self.send_header(
                    "retry-after-ms", "5"
                )  # the client would wait half a second or more
                self.send_header("Connection", "close")
                self.end_headers()
                for _ in range(40 if reply.dribble else 0):
                    self.wfile.write(b" ")
                    self.wfile.flush()
                    time.sleep(0.1)
                self.wfile.write(reply.body.encode())
            except OSError:
                pass  # the client has hung up

        def log_message(self, form: str, *args: Any) -> None:
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    http.daemon_threads = True
    server.url = f"http://127.0.0.1:{http.server_port}/v1"
    thread = threading.Thread(
        target=http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True
    )
    thread.start()
    try:
        yield server
    finally:
        http.shutdown()
        http.server_close()
        thread.join(5)
