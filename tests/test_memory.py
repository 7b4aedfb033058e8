"""What a stage says that it needs: before it starts, from above, and with a warning where it is not
there.
"""

import json
import logging
from pathlib import Path

import pytest
import saved
import tiny_models
import torch
from conftest import make_prompts

import refusal
from refusal import RefusalTokens
from refusal.core.records import ClassCount
from refusal.directions.pool import Passed
from refusal.directions.selection.score import Scorer
from refusal.model.sizes import held_bytes, size_of
from refusal.pipeline.costs.memory import Memory, choosing, forcing, reading, stage_memory, writing


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
    assert [text.partition(": needs")[0] for text in said] == list(stages)
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
    size, tokens = size_of(model.hf, model.hf.config), sum(map(len, scorer.rows["induce"]))
    need = choosing(size, Memory(0), 4, tokens, 6)
    kept = sum(x.numel() * x.element_size() for x in scorer._inputs)
    assert need.cache / 3 < kept <= need.cache  # what prompts begin with in common is kept once
    assert scorer.base.numel() * scorer.base.element_size() == need.logits


def test_needs_grow_with_what_runs_at_once_and_not_with_the_prompts() -> None:
    size = size_of(model := tiny_models.network(), model.config)
    assert reading(size, 100, 4, 200).activations == 2 * reading(size, 100, 4, 100).activations
    assert writing(size, 100, 4, 8, 50).cache == 2 * writing(size, 100, 4, 4, 50).cache
    assert forcing(size, 100, 4, 10**6) == forcing(size, 100, 4, 10**7)
    assert all(
        stage.total == 100 + stage.working
        for stage in (reading(size, 100, 4, 9), forcing(size, 100, 4, 9))
    )


def test_of_a_parameter_on_the_disk_nothing_is_held() -> None:
    assert held_bytes(torch.empty(3, 5, dtype=torch.bfloat16)) == 30
    assert held_bytes(torch.empty(3, 5, device="meta")) == 0


def test_a_stage_needs_what_its_kind_of_work_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_models.chat_model()
    config = saved.small_config(tmp_path, saved.write_prompts(tmp_path), n_test=8)

    def need(stage: str, **changes: object) -> Memory:
        found = stage_memory(model, config.model_copy(update=changes), stage)
        assert found is not None
        return found

    assert stage_memory(model, config, "evaluate") is None
    whole = need("generate harmful.ablation")
    assert whole.cache > 0
    served = config.model_copy(update={"engine": "openai"})
    assert (
        stage_memory(model, served, "generate harmful.ablation") is None
    )  # another process writes them
    assert stage_memory(model, served, "generate harmful.subtraction") is not None
    monkeypatch.setattr("refusal.pipeline.costs.memory.row_budget", lambda device, each: 2)
    assert (
        need("generate harmful.ablation").cache == whole.cache // 4
    )  # as many rows as will really run at once
    vocabulary = model.hf.config.get_text_config().vocab_size
    assert (
        need("capability arc_easy.baseline").logits == 2048 * vocabulary * 8
    )  # a row of it for each token
    assert need("tokens").total >= need("extract").total
    assert need("seed 2").total >= need("select").total >= need("extract").total
