"""The worker without HTTP: what it writes is what the library writes, whatever runs beside it."""

import threading
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import tiny_models
import torch
from running import LONG, direction, held, until
from thinkers import BREAD, LOCK, thinker

from refusal import ChatModel, Direction
from refusal.core.errors import ChatTemplateError, ConfigError, Error, OutOfMemoryError
from refusal.core.sampling import Sampling
from refusal.engines.serve.events import Asked, Began, Busy, Ended, Event, Failed, Grown, TooLong
from refusal.engines.serve.worker import Worker
from refusal.interventions.conditions import interventions_for
from refusal.model import prefill
from refusal.model.reply import along, reply

TEXTS = ("Hi", "Why is the sky blue on most days?", "List ten rivers.", "Sing!", "Name a colour.")
CONDITIONS = (
    *("baseline", "ablation", "addition@0.5", "subtraction", "affine", "projected", "per_layer"),
    *("addition", "kernel@1,0.7,0.2,0.5", "ablation@0.3", "subtraction@2", "affine@0.4"),
    *("addition@0.25", "addition@0.75"),
)


class Heard:
    """What a worker has told, by request."""

    def __init__(self) -> None:
        self.events: dict[int, list[Event]] = defaultdict(list)
        self.changed = threading.Condition()

    def tell(self, events: list[tuple[int, Event]]) -> None:
        with self.changed:
            for number, event in events:
                self.events[number].append(event)
            self.changed.notify_all()

    def wait(self, number: int, seconds: float = LONG) -> Ended:
        """The end of a request."""
        with self.changed:
            assert self.changed.wait_for(lambda: self._over(number), seconds)
            last = self.events[number][-1]
        if isinstance(last, Failed):
            raise last.error
        assert isinstance(last, Ended)
        return last

    def _over(self, number: int) -> bool:
        events = self.events[number]
        return bool(events) and isinstance(events[-1], Ended | Failed)


@contextmanager
def working(
    model: ChatModel, along: Direction | None, **options: Any
) -> Iterator[tuple[Worker, Heard]]:
    heard = Heard()
    worker = Worker(model, along, heard.tell, **options)
    worker.start()
    try:
        yield worker, heard
    finally:
        worker.stop(0)
        worker.join()


def user(text: str, condition: str = "baseline", most: int | None = 12, **more: Any) -> Asked:
    return Asked((("user", text),), condition, most, **more)


def written(model: ChatModel, along: Direction, asked: Asked) -> str:
    """By the library, alone."""
    with model.apply(*interventions_for(asked.condition, along)):
        return reply(model, asked.turns, asked.most or 256, asked.sampling).text


def streamed(events: list[Event]) -> str:
    pieces = [e.text for e in events if isinstance(e, Grown)]
    return "".join(pieces) + "".join(e.last.text for e in events if isinstance(e, Ended))


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2", "mamba", "qwen3_moe"])
def test_a_mixed_batch_writes_what_each_writes_alone(family: str) -> None:
    """Conditions, lengths, temperatures, streams and projections side by side; more conditions than
    keep their hooks. Mamba's rows cannot be padded, and run one by one.
    """
    conditions = CONDITIONS if family == "llama" else CONDITIONS[:4]
    drawn = Sampling(0.8, 1, 3)
    asked = []
    for i, condition in enumerate(conditions):
        how = {"streams": i % 2 == 0, "projects": i % 3 == 0}
        sampling = drawn if i % 4 == 1 else Sampling()
        for j, text in enumerate(TEXTS[:2]):
            asked.append(user(text, condition, 3 + 4 * j + i % 3, sampling=sampling, **how))
    ref, found = tiny_models.chat_model(family), direction()
    model = tiny_models.chat_model(family)
    with working(model, found) as (worker, heard):
        with held(model, 0):
            numbers = [worker.submit(one) for one in asked]
        ends = [heard.wait(number) for number in numbers]
        events = [heard.events[number] for number in numbers]
    for one, end, said in zip(asked, ends, events, strict=True):
        want = written(ref, found, one)
        assert end.text == want
        if one.streams:
            assert streamed(said) == want
        assert isinstance(said[0], Began)
        assert said[0].prompt_tokens == len(ref.tokenize([one.turns])[0])
    if family != "mamba":
        assert worker.figures.rows > 1.5 * worker.figures.steps  # they did run side by side


@pytest.mark.parametrize("family", ["llama", "mamba"])
def test_every_token_is_where_the_block_reads_it(family: str) -> None:
    """Against a pass over the whole text; before the edit at that block, so an addition there is
    taken off again.
    """
    ref, found = tiny_models.chat_model(family), direction()
    conditions = {"baseline": 0.0, "ablation": 0.0, "addition@0.5": 0.5 * found.norm}
    with working(tiny_models.chat_model(family), found) as (worker, heard):
        for streams in (False, True):
            asked = [user(TEXTS[1], c, 9, streams=streams, projects=True) for c in conditions]
            numbers = [worker.submit(one) for one in asked]
            for number, (condition, added) in zip(numbers, conditions.items(), strict=True):
                end = heard.wait(number)
                with ref.apply(*interventions_for(condition, found)):
                    made = reply(ref, asked[0].turns, 9, Sampling())
                    expected = along(ref, (*made.prompt, *made.tokens), found)[len(made.prompt) :]
                got = torch.tensor([value for _, value in end.told])
                torch.testing.assert_close(got, expected - added, atol=1e-4, rtol=1e-4)
                assert "".join(text for text, _ in end.told) == end.text == made.text
                if streams:
                    events = heard.events[number]
                    told = [pair for e in events if isinstance(e, Grown) for pair in e.told]
                    told += end.last.told
                    assert "".join(text for text, _ in told) == end.text
                    assert [value for _, value in told][:9] == got.tolist()
                    assert len(told) <= 10  # one more for the rest of a broken character


def test_an_answer_ends_before_its_stop() -> None:
    ref, found = tiny_models.chat_model(), direction()
    whole = written(ref, found, user(TEXTS[4], most=40))
    stop = whole[12:14]
    asked = [
        user(TEXTS[4], most=40, stops=("never there", stop), streams=streams, projects=projects)
        for streams in (False, True)
        for projects in (False, True)
    ]
    with working(tiny_models.chat_model(), found) as (worker, heard):
        numbers = [worker.submit(one) for one in asked]
        for number, one in zip(numbers, asked, strict=True):
            end = heard.wait(number)
            assert end.text == whole[: whole.index(stop)]
            assert not end.cut
            assert end.tokens < 40
            if one.streams:
                assert streamed(heard.events[number]) == end.text


def test_a_model_that_thinks_is_given_its_thought() -> None:
    with working(thinker("qwen3", thinking="on", thinking_tokens=99), None) as (worker, heard):
        numbers = [
            worker.submit(user(text, most=64, streams=streams))
            for text in (LOCK, BREAD)
            for streams in (False, True)
        ]
        texts = [heard.wait(number).text for number in numbers]
        said = [streamed(heard.events[number]) for number in numbers[1::2]]
    want = thinker("qwen3", thinking="on", thinking_tokens=99).generate([LOCK, BREAD], 64)
    assert texts == [want[0], want[0], want[1], want[1]]
    assert said == want
    assert all(text.startswith("<think>") for text in want)


def test_rows_that_nobody_waits_for_leave_and_the_others_do_not_notice() -> None:
    ref, found = tiny_models.chat_model(), direction()
    model = tiny_models.chat_model()
    with working(model, found) as (worker, heard):
        with held(model, 50):
            long = [worker.submit(user(TEXTS[1], "ablation", 400, streams=True)) for _ in range(3)]
            short = worker.submit(user(TEXTS[0], "addition", 60))
            with heard.changed:
                assert heard.changed.wait_for(lambda: all(heard.events[n] for n in long), LONG)
            for number in long:
                worker.cancel(number)
        assert heard.wait(short).text == written(ref, found, user(TEXTS[0], "addition", 60))
        until(lambda: not worker.rows)
        assert not any(isinstance(heard.events[n][-1], Ended) for n in long)
        assert not worker.began
    assert not worker.wanted.wanted


def test_what_cannot_be_asked_is_told_and_nothing_else_ends() -> None:
    system = (("system", "Be curt."), ("user", "Hi"))
    with working(tiny_models.chat_model(template="no-system"), None, prompt=100) as (worker, heard):
        good = worker.submit(user("Hi"))
        bad = {
            worker.submit(user("Hi", "ablation")): ConfigError,
            worker.submit(user("Hi", projects=True)): ConfigError,
            worker.submit(user("a" * 101)): TooLong,
            worker.submit(user("Hi", most=600)): TooLong,
            worker.submit(Asked(system, "baseline", 4)): ChatTemplateError,
        }
        for number, kind in bad.items():
            with pytest.raises(kind):
                heard.wait(number)
        assert heard.wait(good).tokens


def test_only_so_many_may_wait() -> None:
    model = tiny_models.chat_model()
    model.batch_size.value = 1
    with working(model, None, waiting=3) as (worker, heard):
        numbers, turned_away = [], 0
        with held(model, 0):
            for _ in range(20):
                try:
                    numbers.append(worker.submit(user(TEXTS[1], most=30)))
                except Busy:
                    turned_away += 1
        assert turned_away
        assert len({heard.wait(number).text for number in numbers}) == 1


def test_when_memory_runs_out_rows_are_written_anew_and_told_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The third step of the first batch fails, so all of its rows begin again."""
    ref, found = tiny_models.chat_model(), direction()
    model = tiny_models.chat_model()
    asked = [
        user(text, "ablation", 10, streams=True, projects=i % 2 == 0)
        for i, text in enumerate(TEXTS)
    ]
    true = prefill.Standing.step
    failed: list[Any] = []

    def failing(self: Any, one: Any, tokens: Any) -> None:
        if len(tokens) == len(asked) and self.mask.shape[1] > 80 and not failed:
            failed.append(self)
            raise RuntimeError("out of memory")
        true(self, one, tokens)

    with working(model, found) as (worker, heard):
        monkeypatch.setattr(prefill.Standing, "step", failing)
        with held(model, 0):
            numbers = [worker.submit(one) for one in asked]
        for number, one in zip(numbers, asked, strict=True):
            assert heard.wait(number).text == written(ref, found, one)
            assert streamed(heard.events[number]) == heard.wait(number).text
    assert failed
    assert model.batch_size.value < len(asked)


def test_a_step_that_fails_ends_its_rows_and_the_next_are_served(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    true, says = prefill.Standing.step, ["a kernel has failed"]

    def failing(self: Any, *args: Any) -> None:
        if says[0]:
            raise RuntimeError(says[0])
        true(self, *args)

    with working(tiny_models.chat_model(), direction()) as (worker, heard):
        monkeypatch.setattr(prefill.Standing, "step", failing)
        with pytest.raises(Error, match="step failed"):
            heard.wait(worker.submit(user("Hi", "ablation")))
        says[0] = "out of memory"
        with pytest.raises(OutOfMemoryError):
            heard.wait(worker.submit(user("Hi", "ablation")))
        says[0] = ""
        want = written(tiny_models.chat_model(), direction(), user("Hi", "addition"))
        assert heard.wait(worker.submit(user("Hi", "addition"))).text == want


def test_told_to_stop_it_ends_what_it_writes_within_the_grace() -> None:
    with working(tiny_models.chat_model(), None) as (worker, heard):
        short = worker.submit(user("Hi", most=5))
        worker.stop(LONG)
        assert heard.wait(short).tokens == 5
        worker.join()
        with pytest.raises(Error, match="being stopped"):
            worker.submit(user("Hi"))
    model = tiny_models.chat_model()
    with working(model, None) as (worker, heard):
        with held(model, 50):
            long = worker.submit(user("Hi", most=400, streams=True))
            with heard.changed:
                assert heard.changed.wait_for(lambda: bool(heard.events[long]), LONG)
            worker.stop(0)
        with pytest.raises(Error, match="was stopped"):
            heard.wait(long)
