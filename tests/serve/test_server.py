"""The server over HTTP: OpenAI's answers, streams and errors; who may ask; how it ends."""

import http.client
import json
import signal
import socket
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import saved
import tiny_models
from running import LONG, Running, asking, content, direction, held, running, until

from refusal import ChatModel, ConfigError
from refusal.config.serve import ServeOptions
from refusal.detector.verdict import refusal_verdict
from refusal.engines.serve.guard import Rate, check_host
from refusal.engines.serve.server import Server
from refusal.engines.serve.service import Service
from refusal.interventions import INTERVENTIONS
from refusal.interventions.conditions import interventions_for


@pytest.fixture(scope="module")
def here() -> Iterator[Running]:
    with running(tiny_models.chat_model(), direction(), most_tokens=300) as found:
        yield found


@pytest.fixture(scope="module")
def ref() -> ChatModel:
    return tiny_models.chat_model()


def by_library(ref: ChatModel, question: Any, condition: str, most: int) -> str:
    with ref.apply(*interventions_for(condition, direction())):
        return ref.generate([question], most)[0]


def is_error(found: Any) -> bool:
    return set(found) == {"error"} and set(found["error"]) == {"message", "type", "param", "code"}


def test_models_are_the_conditions(here: Running) -> None:
    status, found = here.get("/v1/models")
    assert status == 200
    assert found["object"] == "list"
    names = [one["id"] for one in found["data"]]
    # kernel needs numbers, and is not listed
    assert names == ["tiny", *(f"tiny:{name}" for name in INTERVENTIONS if name != "kernel")]
    assert {one["object"] for one in found["data"]} == {"model"}
    assert here.get("/v1/models/tiny:addition@0.5")[1]["id"] == "tiny:addition@0.5"
    assert here.get("/v1/models/other")[0] == 404


def test_an_answer_is_openais_and_nothing_more(here: Running, ref: ChatModel) -> None:
    status, found, headers = here.post(asking("Name a colour.", max_tokens=7))
    assert status == 200
    assert headers["content-type"] == "application/json"
    assert set(found) == {"id", "object", "created", "model", "choices", "usage"}
    (choice,) = found["choices"]
    assert choice == {
        "index": 0,
        "message": {
            "role": "assistant",
            "content": by_library(ref, "Name a colour.", "baseline", 7),
            "refusal": None,
        },
        "logprobs": None,
        "finish_reason": "length",
    }
    n = len(ref.tokenize(["Name a colour."])[0])
    assert found["usage"] == {"prompt_tokens": n, "completion_tokens": 7, "total_tokens": n + 7}


@pytest.mark.parametrize(
    "condition", ["baseline", "ablation", "addition@0.5", "kernel@1,0.7,0.2,0.5"]
)
def test_conditions_whole_and_streamed_are_the_librarys(
    here: Running, ref: ChatModel, condition: str
) -> None:
    name = "tiny" if condition == "baseline" else f"tiny:{condition}"
    want = by_library(ref, "Why is the sky blue?", condition, 12)
    assert here.say("Why is the sky blue?", name, max_tokens=12) == want
    events = here.stream(asking("Why is the sky blue?", name, max_tokens=12))
    assert content(events) == want
    keys = {"id", "object", "created", "model", "choices"}
    assert all(set(event) == keys for event in events)
    assert len({event["id"] for event in events}) == 1
    reasons = [event["choices"][0]["finish_reason"] for event in events]
    assert reasons == [None] * (len(events) - 1) + ["length"]


def test_a_conversation_is_read_by_the_template(here: Running, ref: ChatModel) -> None:
    turns = (("system", "Be curt."), ("user", "Hi"), ("assistant", "Yes."), ("user", "And?"))
    messages = [{"role": role, "content": text} for role, text in turns]
    status, found, _ = here.post({"model": "tiny:ablation", "messages": messages, "max_tokens": 9})
    assert status == 200
    want = by_library(ref, turns, "ablation", 9)
    assert found["choices"][0]["message"]["content"] == want


def test_draws_depend_on_the_seed_alone(here: Running) -> None:
    texts = [here.say("Sing!", seed=seed, temperature=1.2, max_tokens=12) for seed in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]


def test_what_is_asked_for_beside_the_answer_is_there(here: Running) -> None:
    wanted = {"verdict": True, "projection": True}
    body = asking("Sing!", "tiny:ablation", max_tokens=6, refusal=wanted)
    found = here.post(body)[1]
    extra, text = found["refusal"], found["choices"][0]["message"]["content"]
    verdict = refusal_verdict("Sing!", text)
    assert extra["condition"] == "ablation"
    assert extra["monitor"] is None
    assert extra["verdict"]["refused"] == verdict.refused
    assert extra["verdict"]["kind"] == verdict.label
    assert len(extra["projections"]) == 6
    assert "".join(piece for piece, _ in extra["projections"]) == text
    assert all(abs(value) < 1e-4 for _, value in extra["projections"])  # it was projected out
    events = here.stream({**body, "stream_options": {"include_usage": True}})
    assert content(events) == text
    assert events[-1]["choices"] == []
    assert events[-1]["usage"] == found["usage"]
    assert events[-2]["refusal"] == {**extra, "projections": None}
    for event in events[1:-2]:
        pairs = event["refusal"]["projections"]
        assert "".join(piece for piece, _ in pairs) == event["choices"][0]["delta"]["content"]


def test_an_answer_without_a_length_gets_what_the_server_gives() -> None:
    with running(tiny_models.chat_model(), None, answer_tokens=5) as here:
        assert here.post(asking("Hi"))[1]["usage"]["completion_tokens"] == 5
        prompt = "a" * (512 - 3 - len(tiny_models.chat_model().tokenize([""])[0]))
        assert here.post(asking(prompt))[1]["usage"]["completion_tokens"] == 3


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (asking("Hi", "other"), 404, "model_not_found"),
        (asking("Hi", "tiny:"), 404, "model_not_found"),
        (asking("Hi", "tiny:nothing"), 404, "model_not_found"),
        (asking("Hi", "tiny:ablation@0.50"), 404, "model_not_found"),
        (asking("Hi", "tiny:ablation@1,2"), 404, "model_not_found"),
        (asking("Hi", "tiny:random-1-ablation"), 404, "model_not_found"),
        (asking("Hi", "tiny:baseline:x"), 404, "model_not_found"),
        (asking("a" * 600), 400, "context_length_exceeded"),
        (asking("a" * 400, max_tokens=200), 400, "context_length_exceeded"),
        (asking("Hi", max_tokens=301), 400, "invalid_value"),
        (asking("Hi", n=2), 400, "unsupported_value"),
        (asking("Hi", colour="red"), 400, "unknown_parameter"),
        (asking("Hi", chat_template_kwargs={"enable_thinking": True}), 400, "unsupported_value"),
        (b"{", 400, None),
        (b"x" * (2**20 + 1), 413, "request_too_large"),
    ],
)
def test_errors_are_openais(here: Running, body: Any, status: int, code: str | None) -> None:
    found, error, headers = here.post(body)
    assert found == status
    assert is_error(error)
    assert error["error"]["code"] == code
    assert headers["content-type"] == "application/json"
    if isinstance(body, dict):  # a stream fails before it begins
        assert here.post({**body, "stream": True})[:2] == (status, error)


def test_other_addresses_and_methods_and_kinds_of_body(here: Running) -> None:
    for path, status in (("/v1/nothing", 404), ("/v1/chat/completions", 405), ("/docs", 404)):
        found, error = here.get(path)
        assert found == status
        assert is_error(error)
    found, error, _ = here.post(asking("Hi"), headers={"Content-Type": "text/plain"})
    assert found == 400
    assert is_error(error)
    assert here.get("/health") == (200, {"status": "ok"})


def test_a_template_without_a_system_role_is_a_bad_request() -> None:
    model = tiny_models.chat_model(template="no-system")
    system = {"role": "system", "content": "Be curt."}
    body = asking("Hi", max_tokens=2)
    with running(model, None) as here:
        status, error, _ = here.post({**body, "messages": [system, *body["messages"]]})
        assert status == 400
        assert error["error"]["code"] == "template_rejects"
        assert here.post(body)[0] == 200
        assert here.post(asking("Hi", "tiny:ablation"))[0] == 404  # no direction
        assert here.get("/refusal/info")[1]["direction"] is None


def test_info_says_what_a_page_shows(here: Running) -> None:
    found = here.get("/refusal/info")[1]
    assert set(found) == {"model", "conditions", "direction", "monitor", "limits"}
    along = direction()
    assert along.harmless_mean is not None
    mean = float(along.harmless_mean @ along.vector)
    assert found["direction"]["layer"] == 2
    assert found["direction"]["mean_harmless"] == pytest.approx(mean, abs=1e-5)
    assert found["direction"]["mean_harmful"] == pytest.approx(mean + 4.0, abs=1e-5)
    assert found["limits"] == {"max_tokens": 300, "max_prompt_tokens": 512}
    assert found["conditions"][0]["condition"] == "baseline"
    assert all(one["about"].endswith(".") for one in found["conditions"])


def test_a_key_is_asked_for() -> None:
    with running(tiny_models.chat_model(), None, key="k3y") as here:
        for path in ("/v1/models", "/refusal/info", "/metrics"):
            status, error = here.get(path)
            assert status == 401
            assert is_error(error)
            assert here.get(path, {"Authorization": "Bearer k3y"})[0] == 200
        for wrong in ("Bearer k3", "k3y", "Bearer k3y2", "Bearer é"):
            assert here.post(asking("Hi"), headers={"Authorization": wrong})[0] == 401
        for path in ("/health", "/", "/page/page.js"):
            assert here.get(path)[0] == 200


def test_the_page_may_load_nothing_but_its_own_files(here: Running) -> None:
    with urllib.request.urlopen(f"{here.url}/", timeout=LONG) as answer:
        policy = answer.headers["Content-Security-Policy"]
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert b"<html" in answer.read()
    assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self'; ")
    for path in ("/page/nothing.js", "/page/../service.py", "/page/%2e%2e/service.py"):
        status, error = here.get(path)
        assert status == 404
        assert is_error(error)


def test_others_are_not_listened_to_without_a_key() -> None:
    for host in ("0.0.0.0", "::", "192.168.1.5", "example.org", "localhost.example.org"):
        with pytest.raises(ConfigError, match="REFUSAL_API_KEY"):
            check_host(host, None)
        check_host(host, "key")
    for host in ("127.0.0.1", "127.1.2.3", "::1", "localhost"):
        check_host(host, None)
    service = Service(tiny_models.chat_model(), None, "tiny", ServeOptions(host="0.0.0.0"))
    with pytest.raises(ConfigError, match="REFUSAL_API_KEY"):
        Server(service, lambda address: None)


def test_a_name_that_leads_here_is_not_answered(here: Running) -> None:
    """A page of another site may have its own name lead to 127.0.0.1."""
    assert here.get("/v1/models", {"Host": "evil.example"})[0] == 400
    port = here.url.rpartition(":")[2]
    for host in ("localhost", f"localhost:{port}", f"127.0.0.1:{port}", f"[::1]:{port}"):
        assert here.get("/v1/models", {"Host": host})[0] == 200


def test_a_client_may_ask_so_often() -> None:
    rate = Rate(60)
    assert [rate.wait("a", 0.0) for _ in range(60)] == [0.0] * 60
    assert rate.wait("a", 0.0) == pytest.approx(1.0)
    assert rate.wait("b", 0.0) == 0
    assert rate.wait("a", 1.0) == 0
    assert rate.wait("a", 1.5) == pytest.approx(0.5)
    with running(tiny_models.chat_model(), None, requests_per_minute=2) as here:
        found = [here.post(asking("Hi", max_tokens=1)) for _ in range(3)]
        assert [status for status, _, _ in found] == [200, 200, 429]
        assert is_error(found[2][1])
        assert 1 <= int(found[2][2]["retry-after"]) <= 31
        assert here.get("/health")[0] == 200


def test_too_many_that_wait_are_turned_away() -> None:
    model = tiny_models.chat_model()
    model.batch_size.value = 1
    with running(model, None, most_waiting=1) as here, held(model, 0) as go:
        found: list[int] = []
        bodies = [asking(f"Hi {i}", max_tokens=40) for i in range(12)]
        threads = [
            threading.Thread(target=lambda body=body: found.append(here.post(body)[0]))
            for body in bodies
        ]
        for thread in threads:
            thread.start()
        until(lambda: 503 in found)
        go.set()
        for thread in threads:
            thread.join()
        assert set(found) == {200, 503}


def _hang_up(here: Running, body: dict[str, Any], wait_for: bytes) -> None:
    """Ask, read until something is there, and close the connection."""
    host, port = here.url.removeprefix("http://").split(":")
    sent = json.dumps(body).encode()
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
    )
    with socket.create_connection((host, int(port)), timeout=LONG) as connection:
        connection.sendall(f"{head}Content-Length: {len(sent)}\r\n\r\n".encode() + sent)
        seen = b""
        while wait_for not in seen:
            seen += connection.recv(4096)
        until(lambda: here.service.worker.rows)


def test_who_hangs_up_is_not_written_for(here: Running) -> None:
    for stream, wait_for in ((True, b'"content":"'), (False, b"")):
        with held(here.model, 50):
            _hang_up(here, asking("Hi", max_tokens=300, stream=stream), wait_for)
            until(lambda: not here.service.answering)
            written = here.service.worker.figures.steps
        until(lambda: not here.service.worker.rows)
        assert here.service.worker.figures.steps - written < 250
    assert here.say("Hi", max_tokens=2)


def test_numbers_for_prometheus(here: Running) -> None:
    here.say("Hi", "tiny:addition@0.25", max_tokens=3)
    status, text = here.get("/metrics")
    assert status == 200
    values = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    assert float(values['refusal_completions_total{condition="addition",end="cut"}']) >= 1
    assert float(values['refusal_written_tokens_total{condition="addition"}']) >= 3
    assert float(values["refusal_running"]) == 0
    assert float(values["refusal_first_token_seconds_count"]) >= 1
    assert "@" not in text


def test_told_to_stop_streams_end_with_an_error_and_new_ones_are_turned_away() -> None:
    model = tiny_models.chat_model()
    with running(model, None, grace_seconds=0) as here, held(model, 50) as go:
        host, port = here.url.removeprefix("http://").split(":")
        connection = http.client.HTTPConnection(host, int(port), timeout=LONG)
        body = json.dumps(asking("Hi", max_tokens=400, stream=True))
        connection.request(
            "POST", "/v1/chat/completions", body, {"Content-Type": "application/json"}
        )
        answer = connection.getresponse()
        assert answer.readline().startswith(b"data: ")
        here.server.should_exit = True
        until(lambda: here.service.worker.ends is not None)
        go.set()
        last = answer.read().decode().rstrip().rpartition("\n\n")[2]
        connection.close()
    error = json.loads(last.removeprefix("data: "))
    assert is_error(error)
    assert error["error"]["code"] == "server_overloaded"


@pytest.mark.slow
def test_as_a_program_it_is_killed_and_started_again_and_ends_with_zero(tmp_path: Path) -> None:
    folder = saved.save_model(tmp_path / "tiny", template="chatml")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "refusal", "serve", str(folder), "--port", str(port)]
    texts = []
    for how, code in ((signal.SIGKILL, -9), (signal.SIGTERM, 0), (signal.SIGINT, 0)):
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        try:
            assert process.stderr is not None
            for line in process.stderr:
                if f"http://127.0.0.1:{port}" in line:
                    break
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=LONG)
            headers = {"Content-Type": "application/json"}
            body = json.dumps(asking("Hi", max_tokens=8))
            connection.request("POST", "/v1/chat/completions", body, headers)
            texts.append(json.loads(connection.getresponse().read())["choices"])
            process.send_signal(how)
            assert process.wait(LONG) == code
            connection.close()
        finally:
            process.kill()
            process.communicate()
    assert texts[0] == texts[1] == texts[2]
