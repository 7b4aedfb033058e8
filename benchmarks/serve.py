"""Throughput of `refusal serve` beside `transformers serve`, for the same model and the same requests.

    python benchmarks/serve.py                          # a tiny model
    python benchmarks/serve.py --model ./my-model --requests 64 --tokens 64

Each server is a process of its own, asked over HTTP by as many clients at once, greedily; in turns,
the order reversed every round, and the best round counts. Tokens are what the servers say they have
written. ``mixed`` asks `refusal serve` for four conditions in turn with a random direction. Beside
the rates stands the memory of the server's process before and after.
"""

import argparse
import json
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from saved import save_model

from refusal import Direction, load

MIXED = ("", ":ablation", ":addition", ":subtraction@0.5")


def main() -> None:
    """Parse the options and measure."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default=None, help="a folder; by default a tiny model is made")
    parser.add_argument("--requests", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--rounds", type=int, default=2)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as made:
        folder = Path(options.model or save_model(Path(made) / "tiny", "chatml"))
        along = Path(made) / "direction.safetensors"
        direction_for(folder).save(along)
        servers = {
            "refusal serve": ours(folder, along),
            "refusal serve, mixed": ours(folder, along),
            "transformers serve": theirs(folder),
        }
        best: dict[tuple[str, int], float] = defaultdict(float)
        for turn in range(options.rounds):
            for name in list(servers)[:: 1 if turn % 2 == 0 else -1]:
                model = str(folder) if name.startswith("transformers") else "served"
                models = [model + m for m in (MIXED if name.endswith("mixed") else ("",))]
                with started(servers[name]) as (url, process):
                    asked = [
                        (url, models[i % len(models)], i, options.tokens)
                        for i in range(options.requests)
                    ]
                    ask(*asked[0])  # loads the model, where that waits for the first request
                    before = process.memory_info().rss
                    for clients in options.clients:
                        rate = rate_of(asked, clients)
                        best[name, clients] = max(best[name, clients], rate)
                    grown = (process.memory_info().rss - before) / 2**20
                print(f"round {turn + 1}: {name}: memory grew by {grown:+.0f} MB", flush=True)
    show(best, options.clients)


def direction_for(folder: Path) -> Direction:
    """A random one, a tenth as long as what block 1 reads."""
    width = load(str(folder)).sites.d_model
    vector = torch.randn(width, generator=torch.Generator().manual_seed(0))
    return Direction(vector / vector.norm(), 1.0, -1, 1)


def ours(folder: Path, along: Path) -> list[str]:
    """The command of this package's server, without the port."""
    command = [sys.executable, "-m", "refusal", "serve", str(folder), "--direction", str(along)]
    return [*command, "--name", "served", "--dtype", "float32"]


def theirs(folder: Path) -> list[str]:
    """The command of transformers' server, without the port."""
    run = "from transformers.cli.transformers import main; main()"
    return [
        sys.executable,
        "-c",
        run,
        "serve",
        str(folder),
        "--device",
        "cpu",
        "--dtype",
        "float32",
    ]


@contextmanager
def started(command: Sequence[str]) -> Iterator[tuple[str, psutil.Process]]:
    """A server while the block runs: its address and its process."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    process = subprocess.Popen(
        [*command, "--port", str(port)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        for _ in range(1200):
            try:
                urllib.request.urlopen(f"{url}/health", timeout=5).close()
                break
            except OSError:
                if process.poll() is not None:
                    raise SystemExit(
                        f"{' '.join(command)} ended with {process.returncode}"
                    ) from None
                time.sleep(0.1)
        yield url, psutil.Process(process.pid)
    finally:
        process.terminate()
        process.wait(60)


def ask(url: str, model: str, i: int, tokens: int) -> int:
    """One completion; how many tokens it has."""
    text = f"{i}. " + "Tell me about the sea. " * (1 + i % 4)
    body: dict[str, Any] = {
        "model": model,
        "messages": [{"role": "user", "content": text}],
        "max_tokens": tokens,
        "temperature": 0,
    }
    request = urllib.request.Request(
        f"{url}/v1/chat/completions",
        json.dumps(body).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=600) as answer:
        return int(json.load(answer)["usage"]["completion_tokens"])


def rate_of(asked: Sequence[tuple[str, str, int, int]], clients: int) -> float:
    """Tokens a second with so many clients at once."""
    start = time.perf_counter()
    with ThreadPoolExecutor(clients) as pool:
        tokens = sum(pool.map(lambda one: ask(*one), asked))
    return tokens / (time.perf_counter() - start)


def show(best: dict[tuple[str, int], float], clients: Sequence[int]) -> None:
    """Tokens a second, and how many times transformers' own."""
    print(f"{'tokens a second':30}" + "".join(f"{n:>4} at once      " for n in clients))
    for name in dict.fromkeys(name for name, _ in best):
        row = ""
        for n in clients:
            ratio = best[name, n] / best["transformers serve", n]
            row += f"{best[name, n]:8.0f} ({ratio:5.2f})  "
        print(f"{name:30}{row}")


if __name__ == "__main__":
    main()
