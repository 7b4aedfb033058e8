"""Monitor and conditional interventions at the server: decided of each row alone, whatever comes and
goes beside it.
"""

import pytest
import tiny_models
from running import asking, direction, running
from test_conditional import PROMPTS, halved, logits_of
from test_worker import user, working

from refusal.core.errors import ConfigError, PromptError
from refusal.core.sampling import GREEDY
from refusal.interventions.conditional import Gate
from refusal.interventions.conditions import interventions_for
from refusal.model.reply import reply

CONDITIONS = (
    *(
        "conditional-addition",
        "baseline",
        "unless-ablation",
        "addition@0.5",
        "conditional-ablation",
    ),
    *("affine", "conditional-addition@0.5", "ablation"),
)


@pytest.mark.parametrize("family", ["llama", "mamba"])
def test_rows_are_decided_each_by_its_prompt_and_keep_that(family: str) -> None:
    """Few rows at once and answers of many lengths, so that rows come and go all the time, and the
    conditions that have hooks change under rows that are decided.
    """
    ref, along = tiny_models.chat_model(family), direction()
    found, fires = halved(ref)
    model = tiny_models.chat_model(family)
    model.batch_size.value = 3
    of_each = 2 if family == "llama" else 1
    texts = []
    for fired in (False, True):
        texts += [text for text, fire in zip(PROMPTS, fires, strict=True) if fire == fired][
            :of_each
        ]
    asked = []
    for i, condition in enumerate(CONDITIONS):
        for j, text in enumerate(texts):
            how = {"streams": j % 2 == 0, "watched": condition == "baseline"}
            asked.append(user(text, condition, 2 + (5 * i + 3 * j) % 9, **how))
    with working(model, along, gate=found) as (worker, heard):
        numbers = [worker.submit(one) for one in asked]
        ends = [heard.wait(number) for number in numbers]
    texts_of: dict[str, set[str]] = {}
    for one, end in zip(asked, ends, strict=True):
        with ref.apply(*interventions_for(one.condition, along, found)):
            want = reply(ref, one.turns, one.most or 1, GREEDY).text
        assert end.text == want, (one, end)
        texts_of.setdefault(one.condition, set()).add(want)
    assert texts_of["conditional-addition"] != texts_of["baseline"]


def test_the_monitors_score_is_that_of_a_pass_of_its_own() -> None:
    ref, along = tiny_models.chat_model(), direction()
    found, fires = halved(ref)
    with running(tiny_models.chat_model(), along, gate=found) as here:
        for text, score, fired in zip(
            PROMPTS, logits_of(ref, found.monitor, PROMPTS), fires, strict=True
        ):
            body = asking(text, max_tokens=3, refusal={"monitor": True})
            want = {"score": pytest.approx(score, abs=1e-4), "fires": fired}
            want["threshold"] = found.monitor.threshold
            assert here.post(body)[1]["refusal"]["monitor"] == want
            events = here.stream(body)
            assert events[0]["refusal"]["monitor"] == want
            assert events[-1]["refusal"]["monitor"] == want
        assert here.get("/refusal/info")[1]["monitor"] == {
            "threshold": found.monitor.threshold,
            "eps": found.monitor.eps,
        }
        names = [one["id"] for one in here.get("/v1/models")[1]["data"]]
        assert "tiny:conditional-addition" in names
        texts = [
            here.say(PROMPTS[0], f"tiny:{name}", max_tokens=8)
            for name in ("conditional", "conditional-addition")
        ]
        assert texts[0] == texts[1]


def test_what_a_monitor_cannot_read_is_refused() -> None:
    ref = tiny_models.chat_model()
    found, _ = halved(ref)
    other = Gate(found.monitor, (*found.suffix[:-1], found.suffix[-1] + 1))
    with working(tiny_models.chat_model(), direction(), gate=other) as (worker, heard):
        for one in (user("Hi", "conditional-addition"), user("Hi", watched=True)):
            with pytest.raises(PromptError, match="does not end"):
                heard.wait(worker.submit(one))
        assert heard.wait(worker.submit(user("Hi"))).tokens
    with working(tiny_models.chat_model(), direction()) as (worker, heard):
        with pytest.raises(ConfigError):
            heard.wait(worker.submit(user("Hi", "conditional-addition")))
        assert heard.wait(worker.submit(user("Hi", watched=True))).tokens
