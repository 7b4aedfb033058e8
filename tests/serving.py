"""`transformers serve` on a free port, started and stopped here."""

import socket
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def free_port() -> int:
    """A port of loopback that nobody has."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@contextmanager
def served(folder: Path | None = None, dtype: str = "auto") -> Iterator[str]:
    """The server while the block runs, of one model or of any folder that a request names; its
    address.
    """
    from transformers.cli.serve import Serve

    port = free_port()
    server = Serve(
        force_model=str(folder) if folder is not None else None,
        host="127.0.0.1",
        port=port,
        device="cpu",
        dtype=dtype,
        log_level="error",
        non_blocking=True,
    )
    try:
        for _ in range(100):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5).close()
                break
            except urllib.error.URLError:
                time.sleep(0.1)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        server.kill_server()
