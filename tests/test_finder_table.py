"""Several finders side by side: every number of the table from the files and from plain loops."""

import csv
import json
from pathlib import Path

import numpy as np
import plain
import pytest
from saved import save_model, small_config, times, write_prompts

from refusal import Direction, load, run
from refusal.core.errors import ConfigError
from refusal.core.stats import auroc, auroc_estimate
from refusal.evaluations.finders import Finders
from refusal.pipeline.asking import ask
from refusal.runs.files import read_completions, read_metrics
from refusal.runs.stage import Plan

METHODS = ("dim", "cosmic", "lda", "kmeans", "harmfulness")


def test_the_table_is_what_the_files_say(tmp_path: Path) -> None:
    model, prompts = save_model(tmp_path / "model"), write_prompts(tmp_path)
    config = small_config(model, prompts, method=METHODS, n_test=6, layer_step=1)
    out = tmp_path / "run"
    result = run(config, out, until="select")
    metrics = {(m.name, m.condition): m for m in result.metrics}
    assert tuple(metrics.values()) == read_metrics(out / "finders.json")
    files = {name: out / "finders" / f"{name}.direction.safetensors" for name in METHODS[1:]}
    files["dim"] = out / "direction.safetensors"
    directions = {name: Direction.load(file) for name, file in files.items()}
    loaded = load(str(model), dtype="float32")
    suffix = len(loaded.chat.suffix)
    assert directions["harmfulness"].position == -suffix - 1
    blocks = [loaded.hf.get_submodule(name) for name in loaded.sites.blocks]
    test = ask(config, out).measured
    streams = {}
    for label in ("harmful", "harmless"):
        rows = loaded.tokenize([p.question for p in test[label]])
        streams[label] = [plain.block_inputs(loaded.hf, blocks, row) for row in rows]
    for name, d in directions.items():
        assert metrics["finder_position", name].value == d.position
        assert metrics["finder_layer", name].value == d.layer
        along = {
            label: [float(x[d.layer][d.position] @ d.vector) for x in some]
            for label, some in streams.items()
        }
        expected = auroc(along["harmful"], along["harmless"])
        assert metrics["finder_auroc", name].value == pytest.approx(expected)
        cosine = metrics["finder_cosine", f"dim/{name}"].value
        assert cosine == pytest.approx(float(directions["dim"].vector @ d.vector), abs=1e-5)
        rows_of = read_completions(out / "finders" / f"{name}.jsonl")
        assert [row.prompt_id for row in rows_of] == [p.id for p in test["harmful"]]
        share = sum(row.verdict == "refusal" for row in rows_of) / 6
        assert metrics["finder_refusal_rate", name].value == share
    assert metrics["finder_refusal_rate", "baseline"].n == 6
    assert ("finder_auroc", "baseline") not in metrics
    assert ("finder_auroc", "random") in metrics
    # the same as a run of that method alone
    alone = run(config.model_copy(update={"method": ("lda",)}), tmp_path / "alone", until="select")
    assert alone.selection is not None
    assert alone.selection.score.bypass == metrics["finder_bypass", "lda"].value

    page = (out / "report.html").read_text("utf-8")
    assert "Finders" in page
    assert "Cosines of the chosen directions" in page
    with (out / "tables" / "finders.csv").open(encoding="utf-8") as file:
        table = {row["method"]: row for row in csv.DictReader(file)}
    assert set(table) == {*METHODS, "random", "baseline"}
    assert float(table["lda"]["auroc_low"]) == pytest.approx(metrics["finder_auroc", "lda"].low)

    before = times(out)
    run(config, out, until="select")
    assert times(out) == before
    more = config.model_copy(update={"method": (*METHODS, "pca")})
    run(more, out, until="select")
    after = times(out)
    changed = {name for name in after if before.get(name) != after[name]}
    assert changed >= {"finders.json", "finders/pca.json", "finders/pca.jsonl"}
    assert not changed & {f"finders/{name}.jsonl" for name in METHODS}


def test_costs_are_counted_and_names_are_checked(tmp_path: Path) -> None:
    config = small_config("model", write_prompts(tmp_path), method=METHODS)
    assert Finders.costs(Plan(config.model_copy(update={"method": ("dim",)}), 5)) == ()
    one = Finders.costs(Plan(config.model_copy(update={"method": ("dim", "lda")}), 5))
    two = Finders.costs(Plan(config.model_copy(update={"method": ("dim", "lda", "pca")}), 5))
    chosen = config.model_copy(update={"method": ("dim", "pca")})
    assert len(two) - len(one) < len(Finders.costs(Plan(chosen, 5)))  # the pass is shared
    with pytest.raises(ConfigError, match="There is no method 'nothing'"):
        Finders(ask(config.model_copy(update={"method": ("dim", "nothing")}), tmp_path))
    with pytest.raises(ConfigError, match="each once"):
        small_config("model", ("builtin",), method=("dim", "dim"))


def test_the_interval_of_an_auroc() -> None:
    apart = auroc_estimate([2.0] * 30, [1.0] * 30)
    assert (apart.value, apart.high) == (1.0, 1.0)
    assert 0.9 < apart.low < 0.99
    assert auroc_estimate([1.0] * 9, [2.0] * 9).low == 0.0
    assert (auroc_estimate([], [1.0]).low, auroc_estimate([], [1.0]).high) == (0.0, 1.0)
    first, second = [1.0, 2.0, 4.0], [3.0, 0.0, 5.0]
    low, high = auroc_estimate(first, second), auroc_estimate(second, first)
    assert low.low == pytest.approx(1 - high.high)
    assert low.high == pytest.approx(1 - high.low)
    draws, truth, covered = np.random.default_rng(0), 0.9213503964748574, 0  # Phi(1)... of sqrt 2
    for _ in range(300):
        found = auroc_estimate(
            draws.normal(2.0, 1.0, 40).tolist(), draws.normal(0, 1.0, 40).tolist()
        )
        covered += found.low <= truth <= found.high
    assert 0.92 <= covered / 300 <= 0.985


def test_one_file_has_all_numbers_as_json(tmp_path: Path) -> None:
    config = small_config(
        save_model(tmp_path / "model"), write_prompts(tmp_path), method=("dim", "pca")
    )
    out = tmp_path / "run"
    result = run(config, out)
    rows = json.loads((out / "metrics.json").read_text("utf-8"))
    names = {row["name"] for row in rows if row["set"] == "finders"}
    assert names >= {"finder_auroc", "finder_refusal_rate", "finder_cosine", "finder_kl"}
    assert any(m.name == "finder_auroc" for m in result.metrics)
    page = (out / "report.html").read_text("utf-8")
    assert "finder auroc" not in page  # in its own table, not among other measures
