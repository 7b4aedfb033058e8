"""Clients that exist, against the server: the openai package, lm-eval, curl."""

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest
import tiny_models
from running import Running, asking, direction, running

from refusal import ChatModel
from refusal.interventions.conditions import interventions_for

TEXTS = ("Sing a song", "Name a colour.", "Why?", "List ten rivers of Europe.")


@pytest.fixture(scope="module")
def here() -> Iterator[Running]:
    with running(tiny_models.chat_model(), direction(), key="k3y", most_tokens=64) as found:
        yield found


def by_library(text: str, condition: str, most: int) -> str:
    model: ChatModel = tiny_models.chat_model()
    with model.apply(*interventions_for(condition, direction())):
        return model.generate([text], most)[0]


def test_the_openai_package(here: Running) -> None:
    openai = pytest.importorskip("openai")
    client: Any = openai.OpenAI(base_url=f"{here.url}/v1", api_key="k3y", max_retries=0)
    assert "tiny:ablation" in [model.id for model in client.models.list()]
    assert client.models.retrieve("tiny:ablation").id == "tiny:ablation"
    how = {"messages": [{"role": "user", "content": TEXTS[0]}], "max_tokens": 9}
    want = by_library(TEXTS[0], "ablation", 9)
    whole = client.chat.completions.create(model="tiny:ablation", **how)
    assert whole.choices[0].message.content == want
    assert whole.choices[0].finish_reason == "length"
    assert whole.usage.completion_tokens == 9
    usage = {"include_usage": True}
    extra = {"refusal": {"projection": True, "verdict": True}}
    parts = list(
        client.chat.completions.create(
            model="tiny:ablation", stream=True, stream_options=usage, extra_body=extra, **how
        )
    )
    assert "".join(p.choices[0].delta.content or "" for p in parts if p.choices) == want
    assert parts[-1].usage == whole.usage
    assert parts[-2].refusal["verdict"]["by"] == "detector"
    with pytest.raises(openai.NotFoundError, match="There is no intervention 'none'"):
        client.chat.completions.create(model="tiny:none", **how)
    with pytest.raises(openai.BadRequestError, match="n = 3") as error:
        client.chat.completions.create(model="tiny", n=3, **how)
    assert (error.value.param, error.value.code) == ("n", "unsupported_value")
    with pytest.raises(openai.AuthenticationError):
        openai.OpenAI(base_url=f"{here.url}/v1", api_key="no", max_retries=0).models.list()


def test_lm_eval_as_a_served_chat_model(here: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own client, `local-chat-completions`, eight requests at a time, as a task asks it."""
    pytest.importorskip("tenacity")  # of lm-eval[api]
    models = pytest.importorskip("lm_eval.models.openai_completions")
    from lm_eval.api.instance import Instance
    from lm_eval.models.api_models import JsonChatStr

    monkeypatch.setenv("OPENAI_API_KEY", "k3y")
    model = models.LocalChatCompletion(
        model="tiny:addition@0.5",
        base_url=f"{here.url}/v1/chat/completions",
        num_concurrent=8,
        max_retries=1,
    )
    requests = []
    for i, text in enumerate(TEXTS):
        asked = model.apply_chat_template([{"role": "user", "content": text}])
        assert isinstance(asked, JsonChatStr)
        how = {"until": ["never there"], "max_gen_toks": 9, "do_sample": False, "temperature": 0.0}
        requests.append(Instance("generate_until", {}, (asked, how), i))
    found = model.generate_until(requests, disable_tqdm=True)
    assert found == [by_library(text, "addition@0.5", 9) for text in TEXTS]


@pytest.mark.skipif(shutil.which("curl") is None, reason="there is no curl")
def test_curl(here: Running) -> None:
    body = json.dumps(asking(TEXTS[1], "tiny:affine", max_tokens=9))
    kind, key = "Content-Type: application/json", "Authorization: Bearer k3y"
    url = f"{here.url}/v1/chat/completions"
    command = ["curl", "-sS", url, "-H", kind, "-H", key, "-d", body]
    # no proxy stands between this machine and itself
    done = subprocess.run(
        command, capture_output=True, check=True, env={**os.environ, "NO_PROXY": "127.0.0.1"}
    )
    found = json.loads(done.stdout)["choices"][0]["message"]["content"]
    assert found == by_library(TEXTS[1], "affine", 9)
