"""A client that sends all of its request before it reads finds the answer, whatever it sent."""

import asyncio
import http.client
import json
import socket
import tracemalloc
from collections.abc import Iterator
from typing import Any

import pytest
import tiny_models
from running import Running, running

from refusal.engines.serve import linger
from refusal.engines.serve.linger import CLOSE, Linger, Message

PART = b"x" * 2**16
PARTS = 64  # 4 MiB: more than any socket holds
CHAT, KEY = "/v1/chat/completions", "k3y"


@pytest.fixture(scope="module")
def here() -> Iterator[Running]:
    with running(tiny_models.chat_model(), None) as found:
        yield found


@pytest.fixture(scope="module")
def locked() -> Iterator[Running]:
    """One that asks for a key, and has been asked as often as it may be."""
    with running(tiny_models.chat_model(), None, key=KEY, requests_per_minute=1) as found:
        found.post({}, headers={"Authorization": f"Bearer {KEY}"})
        yield found


def connected(here: Running) -> socket.socket:
    """A connection that holds little of what the server does not read."""
    host, port = here.url.removeprefix("http://").split(":")
    found = socket.socket()
    found.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2**15)
    found.settimeout(120)
    found.connect((host, int(port)))
    return found


def head(method: str, path: str, **headers: str) -> bytes:
    """The beginning of a request of a client that asks once a connection, as urllib does."""
    given = {"Host": "localhost", "Content-Type": "application/json", "Connection": "close"}
    given |= {name.replace("_", "-"): value for name, value in headers.items()}
    lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in given.items())]
    return "\r\n".join([*lines, "\r\n"]).encode()


def answer(connection: socket.socket, method: str) -> tuple[int, Any]:
    """Status and JSON."""
    found = http.client.HTTPResponse(connection, method=method)
    found.begin()
    assert found.headers["Content-Type"] == "application/json"
    assert found.headers["Connection"] == "close"
    return found.status, json.loads(found.read())


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize(
    ("server", "method", "path", "headers", "status", "code"),
    [
        ("here", "POST", CHAT, {}, 413, "request_too_large"),
        ("here", "POST", CHAT, {"Connection": "keep-alive"}, 413, "request_too_large"),
        ("here", "POST", CHAT, {"Content_Type": "text/plain"}, 400, "invalid_content_type"),
        ("here", "POST", CHAT, {"Host": "evil.example"}, 400, "wrong_host"),
        ("here", "POST", "/v1/nothing", {}, 404, None),
        ("here", "PUT", CHAT, {}, 405, None),
        ("locked", "POST", CHAT, {}, 401, "invalid_api_key"),
        ("locked", "POST", CHAT, {"Authorization": f"Bearer {KEY}"}, 429, "rate_limit_exceeded"),
    ],
)
def test_an_error_reaches_a_client_that_sends_everything_first(
    request: pytest.FixtureRequest,
    server: str,
    method: str,
    path: str,
    headers: dict[str, str],
    status: int,
    code: str | None,
    chunked: bool,
) -> None:
    length = {"Transfer_Encoding": "chunked"} if chunked else {"Content_Length": str(PARTS * 2**16)}
    with connected(request.getfixturevalue(server)) as connection:
        connection.sendall(head(method, path, **headers, **length))
        for _ in range(PARTS):
            connection.sendall(b"10000\r\n" + PART + b"\r\n" if chunked else PART)
        if chunked:
            connection.sendall(b"0\r\n\r\n")
        found, error = answer(connection, method)
        assert found == status
        assert set(error["error"]) == {"message", "type", "param", "code"}
        assert error["error"]["code"] == code
        assert connection.recv(1) == b""  # closed in order, and not reset


def test_so_does_an_answer_that_needed_no_body(here: Running) -> None:
    with connected(here) as connection:
        connection.sendall(head("GET", "/v1/models", Content_Length=str(PARTS * 2**16)))
        for _ in range(PARTS):
            connection.sendall(PART)
        assert answer(connection, "GET")[0] == 200


def test_a_client_that_waits_for_leave_to_send_is_answered_before_it_does(here: Running) -> None:
    with connected(here) as connection:
        length = str(2**30)
        connection.sendall(head("POST", CHAT, Content_Length=length, Expect="100-continue"))
        assert answer(connection, "POST")[0] == 413  # HTTPResponse passes over a 100


def test_what_is_sent_beyond_the_bound_is_not_read(
    here: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who reads while it sends has the answer all the same."""
    monkeypatch.setattr(linger, "MOST_BYTES", 2**20)
    parts, sent = 2**10, 0
    with connected(here) as connection:
        connection.sendall(head("POST", CHAT, Content_Length=str(parts * len(PART))))
        assert answer(connection, "POST")[0] == 413
        with pytest.raises(ConnectionError):
            for _ in range(parts):
                sent += connection.send(PART)
    assert sent < 2**24  # what the sockets hold is beyond the bound


def test_a_connection_is_kept_where_the_body_was_read(here: Running) -> None:
    with connected(here) as connection:
        for _ in range(2):
            beginning = head("POST", CHAT, Content_Length="1", Connection="keep-alive")
            connection.sendall(beginning + b"{")
            found = http.client.HTTPResponse(connection, method="POST")
            found.begin()
            assert found.status == 400
            assert found.headers["Connection"] is None
            found.read()


class Ends:
    """A server's ends of a request: a body without an end, of which every part is new."""

    def __init__(self, silent: bool = False) -> None:
        self.silent, self.parts, self.sent = silent, 0, list[Message]()

    async def receive(self) -> Message:
        if self.silent:
            await asyncio.Event().wait()
        self.parts += 1
        return {"type": "http.request", "body": bytes(2**20), "more_body": True}

    async def send(self, message: Message) -> None:
        self.sent.append(message)


def lingered(ends: Ends) -> None:
    """An answer that reads nothing of the body."""
    scope = {"headers": [(b"transfer-encoding", b"chunked")]}
    made = Linger(scope, ends.receive, ends.send)

    async def answered() -> None:
        await made.send({"type": "http.response.start", "status": 413, "headers": []})
        await made.send({"type": "http.response.body", "body": b"{}"})

    asyncio.run(answered())
    assert ends.sent[0]["headers"] == [CLOSE]
    assert [message.get("body") for message in ends.sent[1:]] == [b"{}", b""]
    assert [message["more_body"] for message in ends.sent[1:]] == [True, False]


def test_what_is_thrown_away_takes_no_memory() -> None:
    ends = Ends()
    tracemalloc.start()
    try:
        lingered(ends)
        most = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert ends.parts == linger.MOST_BYTES // 2**20
    assert most < 4 * 2**20


def test_who_sends_no_more_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linger, "MOST_SECONDS", 0.01)
    lingered(Ends(silent=True))
