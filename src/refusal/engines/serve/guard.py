"""Who may ask, and how often: what stands before every request."""

import hmac
import ipaddress
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable

from fastapi.responses import JSONResponse

from refusal.core.errors import ConfigError
from refusal.engines.serve.errors import ApiError
from refusal.engines.serve.linger import Linger, Message, Receive, Scope, Send

App = Callable[[Scope, Receive, Send], Awaitable[None]]

KEY = "REFUSAL_API_KEY"
OPEN = ("/", "/health")  # without a key; and what is below /page/
CLIENTS = 4096  # whose requests are counted at a time
HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cache-control", b"no-store"),
)


def check_host(host: str, key: str | None) -> None:
    """Raise ConfigError where other machines could ask without a key."""
    if key is None and not is_loopback(host):
        raise ConfigError(
            f"--host {host} can be reached by others. Put a key into the environment variable "
            f"{KEY}, which clients send as their API key, or leave --host out."
        )


def is_loopback(host: str) -> bool:
    """Whether an address is this machine's own."""
    try:
        return host == "localhost" or ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


class Rate:
    """So many requests a minute of each client, in a bucket that fills evenly."""

    def __init__(self, per_minute: int | None) -> None:
        self.per_minute = per_minute
        self.left: OrderedDict[str, tuple[float, float]] = OrderedDict()  # requests, and since when

    def wait(self, client: str, now: float) -> float:
        """Seconds until the client may ask; 0 counts a request."""
        if self.per_minute is None:
            return 0.0
        per_second = self.per_minute / 60
        left, since = self.left.pop(client, (float(self.per_minute), now))
        left = min(float(self.per_minute), left + (now - since) * per_second)
        ask = left >= 1
        self.left[client] = (left - 1 if ask else left, now)
        if len(self.left) > CLIENTS:
            self.left.popitem(last=False)
        return 0.0 if ask else (1 - left) / per_second


class Guard:
    """Lets requests through to the app that may be answered, and lets every answer be read.

    Args:
        local: the server has no key and listens on loopback. A page of another site could reach it
            by a name of its own that leads here, so the host that was asked for must be loopback's.
        count: is told path and status of every answer.
    """

    def __init__(
        self,
        app: App,
        *,
        key: str | None,
        local: bool,
        rate: Rate,
        count: Callable[[str, int], object],
    ) -> None:
        self.app, self.key, self.local, self.rate, self.count = app, key, local, rate, count

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer with an error, or hand the request on."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        path, headers = scope["path"], dict(scope["headers"])
        linger = Linger(scope, receive, send)

        async def counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                self.count(path, message["status"])
                there = {name for name, _ in message["headers"]}
                more = [pair for pair in HEADERS if pair[0] not in there]
                message["headers"] = [*message["headers"], *more]
            await linger.send(message)

        try:
            self._check(scope, path, headers)
        except ApiError as error:
            response = JSONResponse(error.body, error.status, error.headers)
            await response(scope, linger.receive, counted)
            return
        await self.app(scope, linger.receive, counted)

    def _check(self, scope: Scope, path: str, headers: dict[bytes, bytes]) -> None:
        """Raise ApiError where a request may not be answered."""
        if self.local and not is_loopback(
            _without_port(headers.get(b"host", b"").decode("latin-1"))
        ):
            raise ApiError(
                400, "This server answers to localhost and 127.0.0.1 only.", code="wrong_host"
            )
        if self.key is not None and path not in OPEN and not path.startswith("/page/"):
            given = headers.get(b"authorization", b"")
            if not hmac.compare_digest(given, b"Bearer " + self.key.encode()):
                what = "is wrong" if given else "is missing"
                raise ApiError(
                    401,
                    f"The API key {what}. Send it as 'Authorization: Bearer KEY'.",
                    code="invalid_api_key",
                )
        if scope["method"] == "POST":
            client = scope["client"][0] if scope.get("client") else ""
            wait = self.rate.wait(client, time.monotonic())
            if wait > 0:
                raise ApiError(
                    429,
                    f"More than {self.rate.per_minute} requests in a minute. Wait {wait:.1f} s.",
                    kind="rate_limit_error",
                    code="rate_limit_exceeded",
                    wait=max(1, round(wait + 0.5)),
                )


def _without_port(host: str) -> str:
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0]
