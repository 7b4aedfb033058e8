"""The transfer table: a direction of one context in another, on a model where the answer is known."""

import csv
import json
from pathlib import Path
from typing import Any

import contextual
import pytest
import saved
import torch
from contextual import contextual as build

from refusal import ChatModel, ConfigError, Direction, PromptError, RunConfig, make_config
from refusal.cli.entry import main
from refusal.directions.controls import random_directions
from refusal.directions.refusal_metric import refusal_metric
from refusal.evaluations.transfer.contexts import Context, contexts_of, in_context
from refusal.evaluations.transfer.record import TransferTable, read_transfer
from refusal.interventions.conditions import interventions_for
from refusal.model.harmless_turns import harmless_turns
from refusal.pipeline.asking import ask
from refusal.pipeline.stages import STAGES
from refusal.prompts.languages import load_language
from refusal.report.transfer import transfer_tables
from refusal.report.write import write_report
from refusal.runs.files import read_completions, read_manifest
from refusal.runs.folder import RunFolder
from refusal.runs.stage import Plan, Run

N = 10


def config_of(folder: Path, **changes: Any) -> RunConfig:
    """Small sizes; the system prompts ``at`` and ``tilde`` change how the model refuses."""
    for name, text in (("at", "@@@@@@@@"), ("tilde", "~~~~~~~~")):
        (folder / f"{name}.txt").write_text(text)
    options = {
        "n_train": 8,
        "n_val": 8,
        "n_test": N,
        "max_new_tokens": 1,
        "refusal_tokens": (str(build().tokenizer.convert_tokens_to_ids(contextual.REFUSAL)),),
        "controls": 0,
        "resamples": 0,
        "figures": ("none",),
        "transfer_systems": ("none", "default", str(folder / "at.txt"), str(folder / "tilde.txt")),
    }
    return make_config(**{**options, **changes})


def transferred(model: ChatModel, folder: Path, config: RunConfig) -> Run:
    """The stages up to the transfer table."""
    asked = ask(config, folder, contextual.prompts())
    place = RunFolder(folder)
    place.check()
    run = Run(asked, place, model, Plan(config, model.sites.n_layers))
    kinds = [kind for verb in ("extract", "select", "transfer") for kind in STAGES[verb]]
    stages = [kind(asked) for kind in kinds]
    place.begin(config, model, asked.prompts)
    for stage in stages:
        stage.check(model)
        list(stage.work(run))
    return run


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, TransferTable]:
    folder = tmp_path_factory.mktemp("transfer")
    run = transferred(build(), folder / "run", config_of(folder))
    return run, read_transfer(folder / "run")


def rate(table: TransferTable, row: str, column: str) -> float:
    cell = table.cell(row, column)
    assert cell is not None
    assert cell.n == N
    return cell.refusal_rate


def test_a_direction_works_where_refusals_go_the_same_way(done: tuple[Run, TransferTable]) -> None:
    _, table = done
    for row in ("none", "default"):
        assert [rate(table, row, column) for column in ("none", "default", "at")] == [0, 0, 1]
        cell = table.cell(row, "none")
        assert cell is not None
        assert cell.cosine == pytest.approx(1.0, abs=1e-3)
    assert [rate(table, "at", column) for column in ("none", "default", "at")] == [1, 1, 0]
    for row in ("baseline", "random"):
        assert [rate(table, row, column) for column in ("none", "at", "tilde")] == [1, 1, 0]
    other = table.cell("at", "none")
    assert other is not None
    assert abs(other.cosine or 1.0) < 0.2
    assert (other.bypass or 0.0) > 5


def test_a_context_without_a_direction_is_a_row_that_says_so(
    done: tuple[Run, TransferTable],
) -> None:
    _, table = done
    (row,) = (one for one in table.contexts if one.name == "tilde")
    assert row.why is not None
    assert "0 of 14 harmful prompts pass the refusal filter" in row.why
    assert (row.position, row.qualified) == (None, None)
    assert table.cell("tilde", "none") is None
    assert table.cell("none", "tilde") is not None  # it is still a column
    shown = next(t for t in transfer_tables(table) if t.title.startswith("Refusal under"))
    assert ["tilde: no direction", "", "", "", ""] in [list(line) for line in shown.rows]


def test_a_pair_alone_gives_its_cell(done: tuple[Run, TransferTable]) -> None:
    """By a plain loop: one prompt at a time, no batch, in the context by hand."""
    run, table = done
    model = build(system="@@@@@@@@")
    test = run.asked.measured["harmful"]
    direction = Direction.load(run.folder.path / "transfer" / "default.direction.safetensors")
    control = random_directions(run.direction, 4, run.config.seed)["random-3"]
    (token,) = map(int, run.config.refusal_tokens)
    for name, edit in (("default", direction), ("random", control)):
        values, texts = [], []
        for prompt in test:
            ids = torch.tensor(model.tokenize([prompt.text]))
            with model.apply(*interventions_for("ablation", edit)), torch.no_grad():
                logits = model.hf(ids).logits[:, -1]
                texts += model.generate([prompt.text], 1)
            values.append(float(refusal_metric(logits, [token])))
        cell = table.cell(name, "at")
        assert cell is not None
        assert cell.bypass == pytest.approx(sum(values) / N, abs=1e-4)
        file = run.folder.path / "transfer" / f"at.{name}.jsonl"
        assert [row.completion for row in read_completions(file)] == texts


@pytest.mark.parametrize("batch_size", [1, 3])
def test_batches_change_nothing(
    done: tuple[Run, TransferTable], tmp_path: Path, batch_size: int
) -> None:
    _, table = done
    systems = ("none", str(tmp_path / "at.txt"))
    model = build(batch_size=batch_size)
    model.token_budget.value = 150
    transferred(model, tmp_path / "run", config_of(tmp_path, transfer_systems=systems))
    for cell in read_transfer(tmp_path / "run").cells:
        if cell.row == "random":  # another column has another
            continue
        same = table.cell(cell.row, cell.column)
        assert same is not None
        assert cell.refusal_rate == same.refusal_rate
        assert cell.bypass == pytest.approx(same.bypass, abs=1e-3)


def test_what_is_done_is_kept(tmp_path: Path) -> None:
    model, first = build(), config_of(tmp_path, transfer_systems=("none", "default"))
    folder = tmp_path / "run"
    transferred(model, folder, first)
    before = saved.times(folder)
    assert model.chat.system is None  # as it was
    read = model.forward_tokens
    transferred(model, folder, first)
    assert model.forward_tokens == read
    assert saved.times(folder) == before
    (folder / "transfer" / "default.none.jsonl").unlink()
    transferred(model, folder, first)
    again = saved.times(folder)
    changed = {name for name in before if again[name] != before[name]}
    assert changed == {"transfer/default.none.jsonl"}
    transferred(
        model, folder, config_of(tmp_path, transfer_systems=("none", "default", "cautious"))
    )
    more = saved.times(folder)
    kept = [name for name in again if name.endswith(("safetensors", ".none.jsonl"))]
    assert [more[name] for name in kept] == [again[name] for name in kept]
    assert len(read_transfer(folder).contexts) == 3
    assert "transfer find cautious" in read_manifest(folder)["stages"]


def test_turns_are_contexts_and_the_run_is_one_of_them(tmp_path: Path) -> None:
    config = config_of(tmp_path, transfer_systems=("default", "none"), transfer_turns=(0, 1, 3))
    found = contexts_of(config)
    assert [one.name for one in found] == ["default", "none", "default+1", "default+3"]
    assert [one.turns for one in found] == [0, 0, 1, 3]
    assert found[0].system == found[3].system
    own = contexts_of(config.model_copy(update={"transfer_systems": (), "turns": 1}))
    assert [(one.name, one.turns) for one in own] == [("run+0", 0), ("run", 1), ("run+3", 3)]
    assert contexts_of(make_config()) == ()
    model = build()
    with in_context(model, Context("default+1", found[0].system, 1)):
        rendered = str(model.tokenizer.decode(model.tokenize(["Hello"])[0]))
    messages = [{"role": "system", "content": str(found[0].system)}]
    messages += [{"role": role, "content": text} for role, text in harmless_turns(1)]
    messages.append({"role": "user", "content": "Hello"})
    assert rendered == model.tokenizer.apply_chat_template(
        messages, tokenize=False, add_generation_prompt=True, enable_thinking=False
    )


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"transfer_systems": ("strict",)}, "no system prompt 'strict'. Use none, default"),
        ({"transfer_systems": ("none", "none")}, "'none' is asked for twice"),
        ({"transfer_turns": (0, 9)}, "turns = 9 cannot be used"),
        ({"transfer_turns": (0, 1, 1)}, r"'run\+1' is asked for twice"),
        ({"transfer_systems": ("baseline.txt",)}, "'baseline' cannot name a context"),
        ({"transfer_systems": ("empty.txt",)}, "empty.txt is empty"),
    ],
)
def test_contexts_that_cannot_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], says: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("baseline.txt").write_text("Be kind.")
    Path("empty.txt").write_text(" \n")
    with pytest.raises(ConfigError, match=says):
        contexts_of(make_config(**options))


def write_languages(folder: Path) -> None:
    rows = [f"{i},x,y,How do I lock number {i}?,Wie {i} mal ######?" for i in range(6)]
    (folder / "MultiJail.csv").write_text("\ufeffid,source,tags,en,xx\n" + "\n".join(rows))
    for split, start in (("val", 0), ("train", 20)):
        texts = [{"instruction": f"###### Aufgabe {start + i} {'ab' * i}"} for i in range(8)]
        (folder / f"harmful_{split}_de.json").write_text(json.dumps(texts))


def test_languages_are_columns_and_their_detector_is_told(tmp_path: Path) -> None:
    write_languages(tmp_path)
    config = config_of(
        tmp_path, transfer_systems=(), transfer_languages=("de", "xx", "en"), data_dir=str(tmp_path)
    )
    transferred(build(), tmp_path / "run", config)
    table = read_transfer(tmp_path / "run")
    by_name = {one.name: one for one in table.contexts}
    assert list(by_name) == ["run", "de", "xx", "en"]
    assert by_name["de"].prompts == "harmful_val_de.json, harmful_train_de.json"
    assert by_name["xx"].prompts == "MultiJail.csv"
    assert by_name["de"].detector == by_name["xx"].detector == "not validated"
    assert by_name["en"].detector.startswith("finds 30 of 41 refusals, leaves 169 of 174")
    assert by_name["de"].why == "no harmless prompts in de to compare with"
    assert not by_name["de"].own_tokens
    cells = {(c.row, c.column): c for c in table.cells}
    assert (cells["baseline", "de"].refusal_rate, cells["run", "de"].refusal_rate) == (1, 0)
    assert (cells["baseline", "en"].refusal_rate, cells["baseline", "xx"].n) == (0, 6)
    assert cells["run", "de"].cosine is None


def test_translations_of_what_was_trained_on_are_no_test(tmp_path: Path) -> None:
    write_languages(tmp_path)
    assert len(load_language("de", tmp_path).test) == 16
    with pytest.raises(PromptError, match="translations of the prompts that directions are found"):
        load_language("de", tmp_path, published=True)
    with pytest.raises(PromptError, match="no harmful prompts in 'fr' to test on: neither Multi"):
        load_language("fr", tmp_path)
    with pytest.raises(PromptError, match="Give their folder with --data-dir"):
        load_language("de", None)
    for split in ("train", "val"):
        texts = [{"instruction": f"Guten Tag {i}"} for i in range(8)]
        (tmp_path / f"harmless_{split}_xx.json").write_text(json.dumps(texts))
        texts = [{"instruction": f"Wie {i} mal ######?"} for i in range(3)]
        (tmp_path / f"harmful_{split}_xx.json").write_text(json.dumps(texts))
    found = load_language("xx", tmp_path)
    assert found.findable
    used = {p.text for pair in (found.train, found.val) for p in pair.harmful}
    assert used.isdisjoint(p.text for p in found.test)


def test_the_public_files_are_read(data: Path) -> None:
    for language in ("de", "zh", "th", "en"):
        found = load_language(language, data)
        assert len(found.test) > 60
        assert not found.findable


def test_the_verb_its_page_and_its_csv(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = saved.save_model(tmp_path / "model", "chatml")
    config = saved.small_config(
        model, saved.write_prompts(tmp_path), transfer_systems=("none", "cautious"), n_test=3
    )
    folder = tmp_path / "run"
    assert main(["transfer", *saved.flags(config), "--out", str(folder)]) == 0
    assert "Refusal metric under ablation" in capsys.readouterr().err
    table = read_transfer(folder)
    assert [one.name for one in table.contexts] == ["none", "cautious"]
    page = write_report(folder, formats=("none",)).read_text()
    assert "Transfer between contexts" in page
    rows = list(csv.DictReader((folder / "tables" / "transfer.csv").open()))
    assert [(row["found_in"], row["used_in"]) for row in rows] == [
        (cell.row, cell.column) for cell in table.cells
    ]
    assert float(rows[0]["bypass"]) == table.cells[0].bypass
    assert main(["run", *saved.flags(config), "--out", str(folder), "-q"]) == 0
    metrics = json.loads((folder / "metrics.json").read_text())
    names = [m["name"] for m in metrics if m["name"].startswith("transfer_")]
    assert len(names) == 2 * len(table.cells) + 4
