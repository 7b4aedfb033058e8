"""An answer to a client that is still sending.

Where a connection is closed while bytes lie there unread, the kernel resets it, and a client that
sends all of its request before it reads finds the reset in place of the answer. So what it still
sends is read and thrown away, between the answer and the close.
"""

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

Message = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

MOST_BYTES = 16 * 2**20  # thrown away of one request
MOST_SECONDS = 30.0
CLOSE = (b"connection", b"close")


class Linger:
    """The two ends of one request, its answer held open while the client sends.

    An answer that begins before the body was read to its end says that the connection closes
    (`RFC 9112, 9.6 <https://www.rfc-editor.org/rfc/rfc9112#section-9.6>`_), and is sent at once, so
    that a client that waits for leave to send is not made to. Its end is told to the server when
    the client has sent everything or hung up, or at the bounds of this module.
    """

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = dict(scope["headers"])
        length = headers.get(b"content-length", b"0")
        self.sending = b"transfer-encoding" in headers or length.strip(b"0 ") != b""
        self._receive, self._send = receive, send

    async def receive(self) -> Message:
        """The next part of the body, or that the client has gone."""
        message = await self._receive()
        self.sending = message["type"] == "http.request" and message.get("more_body", False)
        return message

    async def send(self, message: Message) -> None:
        """Send a part of the answer; after the last, wait until the client has sent its request."""
        if not self.sending:
            await self._send(message)
        elif message["type"] == "http.response.start":
            rest = [pair for pair in message["headers"] if pair[0].lower() != CLOSE[0]]
            await self._send({**message, "headers": [*rest, CLOSE]})
        elif message.get("more_body", False):
            await self._send(message)
        else:
            await self._send({**message, "more_body": True})
            await self._throw_away()
            await self._send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _throw_away(self) -> None:
        thrown = 0
        try:
            async with asyncio.timeout(MOST_SECONDS):
                while self.sending and thrown < MOST_BYTES:
                    thrown += len((await self.receive()).get("body", b""))
        except TimeoutError:
            return
