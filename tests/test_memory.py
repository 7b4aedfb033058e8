"""What a stage says that it needs: before it starts, from above, and with a warning where it is not
there.
"""

import json
import logging
import subprocess
import sys
from pathlib import Path

import pytest
import saved
import tiny_models
import torch
from conftest import make_prompts

import refusal
from refusal import RefusalTokens
from refusal.config.run_config import RunConfig
from refusal.core.records import ClassCount
from refusal.core.work import Force, Read, Score, Search, Work, Write
from refusal.directions.pool import Passed
from refusal.directions.selection.score import Scorer
from refusal.evaluations.refusal.generate import Generate
from refusal.model.memory import Memory, Room, memory_of, room_of
from refusal.model.sizes import held_bytes, size_of
from refusal.runs.machine import peak_resident
from refusal.runs.stage import Plan


def test_every_stage_says_what_it_needs_before_it_starts(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = saved.small_config(saved.save_model(tmp_path / "model"), saved.write_prompts(tmp_path))
    with caplog.at_level(logging.INFO):
        refusal.run(config, tmp_path / "run", until="generate")
    stages = json.loads((tmp_path / "run" / "manifest.json").read_text(encoding="utf-8"))["stages"]
    said = [
        record.getMessage() for record in caplog.records if "needs weights" in record.getMessage()
    ]
    del stages["tokens"]  # which are given
    first, *others = [name for name in stages if name.startswith("generate")]
    together = f"{first} and {len(others)} more"
    assert [text.partition(": needs")[0] for text in said] == [
        *(name for name in stages if name not in (first, *others)),
        together,
    ]
    weights = sum(map(held_bytes, refusal.load(config.model, dtype="float32").hf.parameters()))
    for stage in stages.values():
        assert weights < stage["needed_memory_bytes"] < stage["peak_memory_bytes"]


def test_more_than_is_free_is_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = saved.small_config(saved.save_model(tmp_path / "model"), saved.write_prompts(tmp_path))
    monkeypatch.setattr("refusal.runs.folder.free_memory", lambda device: 1000)
    refusal.run(config, tmp_path / "run", until="extract")
    warnings = [
        record.getMessage() for record in caplog.records if record.levelno == logging.WARNING
    ]
    assert any(
        "extract: needs weights" in text and "Batches are halved" in text for text in warnings
    )


def test_what_selection_keeps_is_no_more_than_it_says() -> None:
    model = tiny_models.chat_model()
    prompts = make_prompts("harmless", 6)
    passed = Passed(prompts, tuple(-1.0 for _ in prompts), ClassCount(6, 6, -1.0))
    scorer = Scorer(
        model, passed, passed, RefusalTokens((65,), ("A",), "given"), model.sites.n_layers
    )
    tokens = sum(map(len, scorer.rows["induce"]))
    need = memory_of([Search(0, 1, kept=tokens, kept_prompts=6)], room_of(model))
    assert need is not None
    kept = sum(x.numel() * x.element_size() for x in scorer._inputs)
    assert need.cache / 3 < kept <= need.cache  # what prompts begin with in common is kept once
    assert scorer.base.numel() * scorer.base.element_size() == need.logits


def room(tokens: int = 100, rows: int = 1000) -> Room:
    size = size_of(model := tiny_models.network(), model.config)
    return Room(size, 100, 4, tokens, lambda length: rows)


def held(work: Work, where: Room) -> Memory:
    found = memory_of([work], where)
    assert found is not None
    assert found.total == 100 + found.working
    return found


def test_needs_grow_with_what_runs_at_once_and_not_with_the_prompts() -> None:
    few, many = Read(9, 20), Read(900, 20)
    assert held(many, room()) == held(few, room())
    assert held(few, room(tokens=200)).activations == 2 * held(few, room()).activations
    assert held(Write(8, 10, 20), room()).cache == 2 * held(Write(4, 10, 20), room()).cache
    assert held(Write(8, 10, 20), room(rows=4)) == held(Write(4, 10, 20), room())
    assert held(Force(1e6, 1e6), room()) == held(Force(1e7, 1e7), room())
    vocabulary = tiny_models.network().config.get_text_config().vocab_size
    assert held(Score(1), room()).logits == 2048 * vocabulary * 8  # a row of it for each token


def test_a_stage_holds_the_most_that_its_parts_do() -> None:
    read, write = Read(9, 20), Write(8, 10, 20)
    largest = max(held(read, room()).total, held(write, room()).total)
    both = memory_of([read, write], room())
    assert both is not None
    assert both.total == largest
    assert memory_of([], room()) is None


def test_of_a_parameter_on_the_disk_nothing_is_held() -> None:
    assert held_bytes(torch.empty(3, 5, dtype=torch.bfloat16)) == 30
    assert held_bytes(torch.empty(3, 5, device="meta")) == 0


def test_what_a_server_writes_is_not_held_here() -> None:
    def needs(**changes: object) -> list[Memory | None]:
        plan = Plan(RunConfig(n_test=8).model_copy(update=changes), 2)
        return [memory_of([one], room()) for one in Generate.costs(plan)]

    assert all(needs())
    # Of the six (set, condition) pairs subtraction and addition are left to the model here.
    assert len([need for need in needs(engine="openai") if need is None]) == 4


def test_the_peak_of_a_process_is_not_that_of_the_one_that_started_it() -> None:
    """By ``getrusage`` it would be: the count begins before the program does."""
    code = "from refusal.runs.machine import peak_resident as peak; print(peak())"
    held = torch.ones(3 * 2**27)  # 1.5 GiB, for a moment
    own = peak_resident()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert own is not None
    assert own > held.numel() * 4
    assert 2**26 < int(done.stdout) < 2**30
