"""What is asked for: nothing that would change an answer is left out silently."""

import json
from typing import Any

import pytest
from running import asking

from refusal.engines.serve.errors import ApiError
from refusal.engines.serve.requests import ChatRequest, read_request


def read(body: Any) -> ChatRequest:
    return read_request(json.dumps(body).encode(), 64)


def test_a_request_becomes_what_the_worker_is_asked() -> None:
    body = asking("Hi", temperature=0.5, seed=7, stop="\n", max_completion_tokens=9, stream=True)
    body["messages"].insert(0, {"role": "developer", "content": [{"type": "text", "text": "Be"}]})
    found = read(body).asked("ablation")
    assert found.turns == (("system", "Be"), ("user", "Hi"))
    assert (found.condition, found.most, found.stops) == ("ablation", 9, ("\n",))
    assert (found.sampling.temperature, found.sampling.seed, found.streams) == (0.5, 7, True)
    assert not found.projects
    assert not found.watched


def test_without_a_temperature_answers_are_greedy_and_without_a_seed_they_differ() -> None:
    assert read(asking("Hi")).asked("baseline").sampling.greedy
    seeds = {read(asking("Hi", temperature=1)).asked("baseline").sampling.seed for _ in range(3)}
    assert len(seeds) == 3


@pytest.mark.parametrize(
    "more",
    [
        {"n": 1},
        {"n": None},
        {"top_p": 1.0, "frequency_penalty": 0, "presence_penalty": 0.0, "logit_bias": {}},
        {
            "tools": [],
            "tool_choice": "auto",
            "logprobs": False,
            "response_format": {"type": "text"},
        },
        {"user": "me", "metadata": {"a": "b"}, "store": False, "parallel_tool_calls": True},
        {"max_tokens": 64, "temperature": 0, "stop": None, "seed": 0},
        {"refusal": {"monitor": True, "verdict": True, "projection": True}},
        {"refusal": None},
        {"stream": True, "stream_options": {"include_usage": True}},
    ],
)
def test_what_changes_nothing_is_taken(more: dict[str, Any]) -> None:
    read(asking("Hi", **more))


@pytest.mark.parametrize(
    ("more", "param"),
    [
        ({"n": 2}, "n"),
        ({"n": True}, "n"),
        ({"top_p": 0.9}, "top_p"),
        ({"logprobs": True}, "logprobs"),
        ({"tools": [{"type": "function"}]}, "tools"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"frequency_penalty": 0.1}, "frequency_penalty"),
        ({"temperature": -1}, "temperature"),
        ({"temperature": 2.5}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 65}, "max_tokens"),
        ({"max_completion_tokens": 65}, "max_completion_tokens"),
        ({"max_tokens": True}, "max_tokens"),
        ({"stop": ""}, "stop"),
        ({"stop": ["a"] * 17}, "stop"),
        ({"seed": 1.5}, "seed"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"refusal": {"mood": True}}, "refusal.mood"),
        ({"colour": "red"}, "colour"),
        ({"model": ""}, "model"),
        ({"messages": []}, "messages"),
        ({"messages": "Hi"}, "messages"),
        ({"messages": [{"role": "tool", "content": "Hi"}]}, "messages.0.role"),
        ({"messages": [{"role": "user"}]}, "messages.0.content"),
        ({"messages": [{"role": "user", "content": "Hi", "name": "me"}]}, "messages.0.name"),
        ({"messages": [{"role": "assistant", "content": "Hi"}]}, "messages"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
            "messages.0.content",
        ),
    ],
)
def test_what_cannot_be_done_is_said_with_its_place(more: dict[str, Any], param: str) -> None:
    with pytest.raises(ApiError) as error:
        read({**asking("Hi"), **more})
    assert error.value.status == 400
    assert (error.value.param or "").startswith(param)
    assert set(error.value.body["error"]) == {"message", "type", "param", "code"}


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"\xff\xfe",
        b'{"model": NaN}',
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b'{"model": "tiny", "max_tokens": ' + b"9" * 5000 + b"}",
        json.dumps(asking("half \ud83d of a pair")).encode(),
        json.dumps(asking("Hi", stop="\udc00")).encode(),
    ],
)
def test_a_body_that_is_none_is_a_bad_request(body: bytes) -> None:
    with pytest.raises(ApiError) as error:
        read_request(body, 64)
    assert error.value.status == 400


def test_an_assistants_turn_may_carry_what_openai_puts_there() -> None:
    body = asking("And then?")
    said = {"role": "assistant", "content": "Yes.", "refusal": None, "tool_calls": None}
    body["messages"] = [{"role": "user", "content": "Is it?"}, said, *body["messages"]]
    assert read(body).turns == (("user", "Is it?"), ("assistant", "Yes."), ("user", "And then?"))
