"""Many clients at once, of every kind: no answer is another's, memory stays, nothing is left."""

import gc
import json
import random
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psutil
import pytest
import tiny_models
from running import LONG, Running, asking, content, direction, running, until

from refusal.core.sampling import Sampling
from refusal.interventions.conditions import interventions_for
from refusal.model.reply import reply

REQUESTS, AT_ONCE = 500, 16
CONDITIONS = (
    *("baseline", "ablation", "addition", "addition@0.5", "addition@-0.25", "subtraction"),
    *("affine", "projected", "per_layer", "kernel@1,0.7,0.2,0.5", "ablation@0.3"),
)
WORDS = ("the", "sea", "has", "a colour", "that no", "river", "of this town", "will ever have")
BAD: tuple[tuple[Any, int], ...] = (
    (b"{", 400),
    (b"[]", 400),
    (b"\xff", 400),
    (b"x" * (2**20 + 1), 413),
    (asking("Hi", "tiny:nothing"), 404),
    (asking("Hi", n=2), 400),
    (asking("Hi", colour="red"), 400),
    (asking("a" * 600), 400),
    ({"model": "tiny"}, 400),
    ({**asking("Hi"), "messages": [{"role": "tool", "content": "x"}]}, 400),
)
MEGABYTES = 40  # more than this is a leak: 250 requests' worth of what one could hold


def one_request(draw: random.Random) -> dict[str, Any]:
    """A good request, of any condition and length."""
    condition = draw.choice(CONDITIONS)
    text = " ".join(draw.choices(WORDS, k=draw.randrange(1, 12)))
    body = asking(text, "tiny" if condition == "baseline" else f"tiny:{condition}")
    body["max_tokens"] = draw.randrange(1, 12)
    if draw.random() < 0.3:
        body |= {"temperature": draw.choice((0.5, 1.0)), "seed": draw.randrange(9)}
    if draw.random() < 0.3:
        body["refusal"] = {"projection": True, "verdict": draw.random() < 0.5}
    return body


def ask(here: Running, kind: str, body: Any, status: int) -> str | None:
    """Ask, and look at what comes; the content of an answer."""
    if kind == "stream":
        return content(here.stream(body))
    if kind == "cancel":
        hang_up(here, body)
        return None
    found, answer, headers = here.post(body)
    assert found == status, answer
    assert headers["content-type"] == "application/json"
    if kind == "bad":
        assert set(answer) == {"error"}
        assert set(answer["error"]) == {"message", "type", "param", "code"}
        return None
    return str(answer["choices"][0]["message"]["content"])


def hang_up(here: Running, body: dict[str, Any]) -> None:
    """Ask for a stream, read a little of it or nothing, and go."""
    host, port = here.url.removeprefix("http://").split(":")
    sent = json.dumps({**body, "max_tokens": 200, "stream": True}).encode()
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
    )
    with socket.create_connection((host, int(port)), timeout=LONG) as connection:
        connection.sendall(f"{head}Content-Length: {len(sent)}\r\n\r\n".encode() + sent)
        if len(sent) % 2:
            connection.recv(200)


@pytest.mark.slow
def test_five_hundred_requests_sixteen_at_once() -> None:
    draw, along = random.Random(7), direction()
    kinds = ["whole", "stream", "cancel", "bad"]
    jobs: list[tuple[str, Any, int]] = []
    for _ in range(REQUESTS):
        kind = draw.choices(kinds, weights=(4, 4, 1, 1))[0]
        body, status = draw.choice(BAD) if kind == "bad" else (one_request(draw), 200)
        jobs.append((kind, body, status))
    with running(tiny_models.chat_model(), along) as here:
        threads, used = threading.active_count(), []
        found: list[str | None] = []
        with ThreadPoolExecutor(AT_ONCE) as pool:
            for first in range(0, REQUESTS, REQUESTS // 4):
                part = jobs[first : first + REQUESTS // 4]
                found += pool.map(lambda job: ask(here, *job), part)
                gc.collect()
                used.append(psutil.Process().memory_info().rss / 2**20)
        worker = here.service.worker
        until(lambda: not (here.service.answering or worker.rows))
        assert (here.service.answering, worker.rows, [*worker.line, *worker.inbox]) == ({}, {}, [])
        assert not worker.began
        assert worker.figures.rows > 2 * worker.figures.steps
        assert threading.active_count() <= threads + 40  # those that judge are kept for the next
        assert here.get("/health")[0] == 200
    assert used[-1] - used[1] < MEGABYTES, used
    ref = tiny_models.chat_model()
    for (kind, body, _), text in zip(jobs, found, strict=True):
        if kind in ("whole", "stream"):
            condition = body["model"].partition(":")[2] or "baseline"
            sampling = Sampling(body.get("temperature", 0.0), 1, body.get("seed", 0))
            with ref.apply(*interventions_for(condition, along)):
                asked = body["messages"][0]["content"]
                assert text == reply(ref, asked, body["max_tokens"], sampling).text
