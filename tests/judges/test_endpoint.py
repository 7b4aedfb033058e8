"""A judge behind an address, against a server on loopback that does what servers do: nothing is
lost or guessed.
"""

import asyncio
import json
import random
import socket
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from loopback import Reply, Server, items, says, serving

from refusal import ConfigError, JudgeError
from refusal.config.judges import JudgeOptions
from refusal.core.endpoint_records import Usage
from refusal.core.records import to_json
from refusal.evaluations.judges.endpoint import EndpointJudge
from refusal.evaluations.judges.judgement import Judgement
from refusal.evaluations.judges.make import make_judge
from refusal.evaluations.judges.rates import judge_metrics
from refusal.evaluations.judges.reading import read_judgements, unjudged

WORDS = ("refusal", "partial", "compliance")


@pytest.fixture(autouse=True)
def no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


def judge_at(
    server: Server | str, spec: str = "endpoint-refusal=some-model", **options: Any
) -> EndpointJudge:
    url = server if isinstance(server, str) else server.url
    judge = make_judge(
        spec, JudgeOptions(judge_url=url, **{"judge_timeout": 5, "judge_retries": 1, **options})
    )
    assert isinstance(judge, EndpointJudge)
    return judge


def ids(judgements: list[Judgement]) -> list[str]:
    return sorted(j.prompt_id for j in judgements)


# --- a server that works


def test_each_completion_gets_the_answer_that_was_given_to_it() -> None:
    with serving(lambda item, n: says(WORDS[item % 3])) as server:
        judge = judge_at(server)
        found = list(judge.judge(items(12)))
    assert {j.prompt_id: j.label for j in found} == {f"p{i}": WORDS[i % 3] for i in range(12)}
    assert len(found) == 12
    assert not any(j.failed for j in found)
    assert {body["model"] for body in server.bodies} == {"some-model"}
    assert {body["temperature"] for body in server.bodies} == {0}
    assert all("Request" in body["messages"][-1]["content"] for body in server.bodies)


def test_requests_run_side_by_side_but_never_more_than_allowed() -> None:
    with serving(lambda item, n: says("refusal", seconds=0.05)) as server:
        found = list(judge_at(server, judge_concurrency=3).judge(items(13)))
    assert len(found) == 13
    assert server.most == 3


def test_tokens_and_money_are_summed() -> None:
    with serving(lambda item, n: says("refusal", tokens=(1000 + item, 10))) as server:
        judge = judge_at(server, judge_price_in=2.0, judge_price_out=10.0)
        list(judge.judge(items(4)))
        assert judge.usage == Usage(answers=4, tokens_in=4006, tokens_out=40, unknown=0)
        assert judge.cost == pytest.approx((4006 * 2 + 40 * 10) / 1e6)
        assert judge_at(server).cost is None


def test_no_cost_is_made_up_where_the_server_does_not_say() -> None:
    with serving(lambda item, n: says("refusal", tokens=None)) as server:
        judge = judge_at(server, judge_price_in=2.0, judge_price_out=10.0)
        list(judge.judge(items(2)))
    assert judge.usage == Usage(answers=2, unknown=2)
    assert judge.cost is None


def test_the_strongreject_rubric() -> None:
    def behave(item: int, n: int) -> Reply:
        return says(
            ("refused: 0\nconvincing: 5\nspecific: 4", "refused: 1\nconvincing: 5\nspecific: 5")[
                item
            ]
        )

    with serving(behave) as server:
        judge = judge_at(server, "endpoint-strongreject=m")
        found = sorted(judge.judge(items(2)), key=lambda j: j.prompt_id)
    assert found == [Judgement("p0", "compliance", 0.875), Judgement("p1", "refusal", 0.0)]
    assert judge.kind == "score"


def test_it_works_inside_a_running_loop() -> None:
    """As in a notebook."""

    async def cell() -> list[Judgement]:
        return list(judge.judge(items(3)))

    with serving(lambda item, n: says("refusal")) as server:
        judge = judge_at(server)
        assert len(asyncio.run(cell())) == 3


def test_nothing_to_judge() -> None:
    assert list(judge_at("http://127.0.0.1:9/v1").judge([])) == []


# --- a server that fails


def test_a_failure_is_tried_again() -> None:
    with serving(lambda item, n: says("refusal") if n == 1 else Reply("{}", 500)) as server:
        found = list(judge_at(server).judge(items(10)))
    assert [j.label for j in found] == ["refusal"] * 10
    assert Counter(server.asked) == dict.fromkeys(range(10), 2)


def test_a_server_that_fails_half_of_the_time() -> None:
    coin = random.Random(1)
    with serving(
        lambda item, n: Reply("{}", 500) if coin.random() < 0.5 else says("partial")
    ) as server:
        found = list(judge_at(server, judge_retries=0).judge(items(60)))
    broken = server.statuses.count(500)
    assert 10 < broken < 50
    assert ids(found) == sorted(f"p{i}" for i in range(60))
    assert sum(j.failed for j in found) == broken
    assert sum(j.label == "partial" for j in found) == 60 - broken
    metrics = {m.name: m for m in judge_metrics("j", "refusal", found, "harmful", "baseline")}
    assert metrics["j_failed_rate"].value == broken / 60
    assert (metrics["j_refusal_rate"].value, metrics["j_refusal_rate"].n) == (1.0, 60 - broken)


def test_a_server_that_times_out_or_hangs_up() -> None:
    def behave(item: int, n: int) -> Reply:
        kinds = (says("compliance"), says("compliance", seconds=1.0), Reply(drop=True))
        return kinds[item % 3]

    with serving(behave) as server:
        judge = judge_at(server, judge_timeout=0.3, judge_retries=1)
        found = {j.prompt_id: j for j in judge.judge(items(9))}
    assert len(found) == 9
    for i in range(9):
        assert found[f"p{i}"].label == (None if i % 3 else "compliance")
    assert found["p1"].error == "no answer in 2 tries of 0.3 seconds"
    assert found["p2"].error == "no connection in 2 tries"


def test_a_server_that_drips_is_not_waited_for_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(lambda item, n: says("refusal", dribble=item == 1)) as server:
        start = time.perf_counter()
        found = {
            j.prompt_id: j
            for j in judge_at(server, judge_timeout=0.4, judge_retries=0).judge(items(2))
        }
        assert time.perf_counter() - start < 3
    assert found["p0"].label == "refusal"
    assert found["p1"].failed


NONSENSE = (
    Reply("<html>Bad gateway</html>"),
    Reply('{"choices": "none"}'),
    Reply("{}"),
    Reply('{"choices": []}'),
    says(None),
    says(""),
    says("It is a refusal, I think."),
    says("refusal or compliance"),
)


def test_nonsense_is_counted_and_never_guessed() -> None:
    with serving(lambda item, n: NONSENSE[item]) as server:
        judge = judge_at(server)
        found = list(judge.judge(items(len(NONSENSE))))
    assert ids(found) == sorted(f"p{i}" for i in range(len(NONSENSE)))
    assert all(j.label is None and j.score is None and j.error for j in found)
    assert len(server.asked) == len(NONSENSE)  # at temperature 0 a second try would say the same
    assert (
        judge.usage.answers == 4
    )  # of those that are chat completions: no choices, "", and two texts


def test_interrupted_and_taken_up_again(tmp_path: Path) -> None:
    """What was written is kept, and only what is missing or failed is asked again."""
    down = True
    file, all_items = tmp_path / "judge.jsonl", items(20)
    with serving(
        lambda item, n: Reply("{}", 500) if down and item % 2 else says("refusal")
    ) as server:
        judge = judge_at(server, judge_retries=0, judge_concurrency=2)
        running = judge.judge(all_items)
        with file.open("a", encoding="utf-8") as out:
            for _ in range(8):
                out.write(json.dumps(to_json(next(running))) + "\n")
            out.write('{"prompt_id": "p1')  # cut off
        running.close()  # type: ignore[attr-defined]
        done = read_judgements(file)
        assert len(done) == 8
        failed = sum(j.failed for j in done)
        left = unjudged(done, all_items, "file")
        assert 0 < failed < 8
        assert len(left) == 12 + failed
        assert len(server.asked) <= 8 + 2 + 2
        down = False
        done += judge.judge(left)
    assert unjudged(done, all_items, "file") == []


# --- what ends a run at once


@pytest.mark.parametrize(
    ("reply", "words"),
    [
        (
            Reply(
                '{"error": {"message": "The model `some-model` does not exist", "code": "model_not_found"}}',
                404,
            ),
            "exist",
        ),
        (Reply("Not Found", 404), "no model 'some-model'"),
        (Reply('{"error": {"message": "Incorrect API key"}}', 401), "OPENAI_API_KEY is not set"),
        (Reply('{"error": {"message": "Pay first", "code": "insufficient_quota"}}', 429), "credit"),
    ],
)
def test_what_concerns_every_request_stops_before_the_second(reply: Reply, words: str) -> None:
    with serving(lambda item, n: reply) as server, pytest.raises(JudgeError, match=words) as caught:
        list(judge_at(server, judge_retries=0).judge(items(30)))
    assert caught.value.exit_code == 2
    assert len(server.asked) == 1


def test_nobody_there() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
    with pytest.raises(JudgeError, match="Nobody answers"):
        list(judge_at(url, judge_retries=0).judge(items(5)))
    with pytest.raises(ValueError, match="begins with http"):
        judge_at("no-address")


def test_an_endpoint_that_turns_every_request_down_is_given_up() -> None:
    with serving(lambda item, n: Reply('{"detail": "Server is pinned to another"}', 400)) as server:
        with pytest.raises(JudgeError, match="HTTP 400: Server is pinned to another"):
            list(judge_at(server).judge(items(30)))
        assert len(server.asked) == 3
        with pytest.raises(JudgeError, match="pinned"):
            list(judge_at(server).judge(items(1)))


def test_one_completion_that_is_turned_down_is_a_failure_of_its_own() -> None:
    """Too long for the model, say, or stopped by the provider's filter; also when it comes
    first.
    """
    bad = {
        0: Reply('{"error": {"message": "too long"}}', 400),
        5: Reply('{"error": {"message": "flagged"}}', 403),
    }
    with serving(lambda item, n: bad.get(item, says("refusal"))) as server:
        found = {j.prompt_id: j for j in judge_at(server).judge(items(8))}
    assert len(found) == 8
    assert {key for key, j in found.items() if j.failed} == {"p0", "p5"}
    assert found["p0"].error == "HTTP 400: too long"


# --- the key


def test_the_key_is_sent_and_shown_nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", "sk-secret-123")
    echo = Reply('{"error": {"message": "no such thing for sk-secret-123"}}', 403)
    with serving(lambda item, n: echo if item else says("your key is sk-secret-123")) as server:
        judge = judge_at(server, judge_key_env="MY_KEY")
        found = list(judge.judge(items(3)))
        assert server.keys == {"Bearer sk-secret-123"}
    assert all(j.failed for j in found)
    assert "secret" not in repr(found)
    assert "[key]" in repr(found)
    with (
        serving(lambda item, n: Reply("sk-secret-123", 401)) as server,
        pytest.raises(JudgeError, match="MY_KEY is not accepted") as caught,
    ):
        list(judge_at(server, judge_key_env="MY_KEY").judge(items(3)))
    assert "secret" not in str(caught.value)


def test_a_missing_key_shows_before_anything_is_asked() -> None:
    with pytest.raises(
        ConfigError, match=r"OPENAI_API_KEY holds no key for https://api\.openai\.com"
    ):
        make_judge("endpoint-refusal=gpt")
    with pytest.raises(ConfigError, match="MY_KEY holds no key"):
        judge_at("http://127.0.0.1:9/v1", judge_key_env="MY_KEY")


def test_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("refusal.core.endpoint.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'refusal\[judges\]'"):
        judge_at("http://127.0.0.1:9/v1")
