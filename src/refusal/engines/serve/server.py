"""The server as a process: it listens until it is told to stop, and ends with nothing left open."""

import asyncio
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import uvicorn

from refusal.core.errors import ConfigError
from refusal.engines.serve.app import make_app
from refusal.engines.serve.guard import check_host
from refusal.engines.serve.service import Service

HANGING = 5.0  # seconds after the grace in which connections are closed
SIGNALS = (signal.SIGINT, signal.SIGTERM)


def serve(service: Service, ready: Callable[[str], object] = lambda address: None) -> None:
    """Answer requests until SIGINT or SIGTERM; a second one ends it at once.

    Args:
        ready: is told the address when it can be asked.

    Raises:
        ConfigError: others could reach it without a key, or the address cannot be listened at.
    """
    Server(service, ready).run()


class Server(uvicorn.Server):
    """uvicorn's server, which tells the worker to end before it closes connections."""

    def __init__(self, service: Service, ready: Callable[[str], object]) -> None:
        options = service.options
        check_host(options.host, service.key)
        self.service, self.ready = service, ready
        self.socket = _listen(options.host, options.port)
        super().__init__(
            uvicorn.Config(
                make_app(service),
                log_config=None,
                access_log=False,
                lifespan="off",
                ws="none",
                server_header=False,
                proxy_headers=False,
                timeout_graceful_shutdown=int(options.grace_seconds + HANGING),
            )
        )

    @property
    def address(self) -> str:
        """Where it listens."""
        host, port = self.socket.getsockname()[:2]
        return f"http://{f'[{host}]' if ':' in host else host}:{port}"

    def run(self, sockets: list[socket.socket] | None = None) -> None:
        """Serve until it is told to stop."""
        super().run([self.socket])

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to listen, and say so."""
        self.service.start(asyncio.get_running_loop())
        address = self.address
        await super().startup(sockets)
        self.ready(address)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """End what is being written within the grace, then close."""
        self.service.worker.stop(0.0 if self.force_exit else self.service.options.grace_seconds)
        await super().shutdown(sockets)
        self.service.worker.stop(0.0)
        self.service.worker.join()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Be told to stop, which is no failure: unlike in uvicorn, signals are not raised again."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self.handle_exit) for number in SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def _listen(host: str, port: int) -> socket.socket:
    """A socket that listens.

    Raises:
        ConfigError: it cannot.
    """
    name = host.strip("[]")
    try:
        kind, _, _, _, place = socket.getaddrinfo(name, port, type=socket.SOCK_STREAM)[0]
        found = socket.socket(kind, socket.SOCK_STREAM)
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind(place)
    except OSError as error:
        raise ConfigError(
            f"Nothing can listen at {host}, port {port} ({error.strerror or error}). Give another "
            "--host or --port."
        ) from error
    return found
