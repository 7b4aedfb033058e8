"""`refusal monitor fit | score | evaluate` on a tiny model, as the command line has them."""

import json
import re
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from saved import save_model

from refusal import Direction, LeakageError, Monitor, Prompt, PromptError, load
from refusal.cli.entry import main
from refusal.core.records import Label
from refusal.directions.monitor.reading import score_prompts
from refusal.evaluations.monitor.evaluate import PromptSet, evaluate_monitor
from refusal.pipeline.monitor import WRITTEN_OUT
from refusal.report.monitor_page import monitor_tables

SYLLABLES = ("ba", "ke", "li", "mo", "nu", "ra", "se", "ti", "vo", "zu")


def texts(n: int, seed: int) -> list[str]:
    """Texts of six words that share none, as a rule: no near-duplicates."""
    random = np.random.default_rng(seed)
    return [" ".join("".join(random.choice(SYLLABLES, 3)) for _ in range(6)) for _ in range(n)]


def some(label: Label, n: int, seed: int) -> tuple[Prompt, ...]:
    return tuple(Prompt(f"{label}-{i}", text, label) for i, text in enumerate(texts(n, seed)))


class Made(NamedTuple):
    model: Path
    prompts: tuple[str, ...]
    calibration: Path
    monitor: Path


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tmp_path_factory.mktemp("monitor")
    for name, n, seed in (("harmful", 60, 1), ("harmless", 60, 2), ("traffic", 120, 3)):
        (folder / f"{name}.txt").write_text("\n".join(texts(n, seed)), encoding="utf-8")
    prompts = tuple(f"{label}={folder / label}.txt" for label in ("harmful", "harmless"))
    model, calibration = save_model(folder / "model", "chatml"), folder / "traffic.txt"
    found = Made(model, prompts, calibration, folder / "watch")
    assert main(fit_words(found)) == 0
    return found


def fit_words(made: Made, *more: str) -> list[str]:
    words = ["monitor", "fit", str(made.model), "--out", str(made.monitor)]
    words += ["--prompts", *made.prompts, "--calibration", str(made.calibration)]
    return [*words, "--n-train", "16", "--n-val", "10", "--dtype", "float32", "--quiet", *more]


def lines_of(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def test_the_folder_holds_a_monitor_of_these_prompts(made: Made) -> None:
    monitor = Monitor.load(made.monitor)
    assert monitor.model == str(made.model)
    assert len(monitor.calibration) + (16 + 10) * 2 == len(monitor.seen)
    assert monitor.eps == 0.01
    assert sorted(path.name for path in made.monitor.iterdir()) == [
        "monitor.json",
        "monitor.safetensors",
    ]


def test_the_same_command_gives_the_same_bytes(made: Made) -> None:
    before = [path.read_bytes() for path in sorted(made.monitor.iterdir())]
    assert main(fit_words(made)) == 0
    assert [path.read_bytes() for path in sorted(made.monitor.iterdir())] == before


def test_one_line_of_json_a_prompt(
    made: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "asked.jsonl"
    rows = [{"prompt": p.text, "id": f"row-{i}"} for i, p in enumerate(some("harmless", 30, 9))]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    assert (
        main(
            [
                "monitor",
                "score",
                str(made.monitor),
                str(file),
                "Why is it so?",
                "--dtype",
                "float32",
            ]
        )
        == 0
    )
    said = capsys.readouterr()
    found = lines_of(said.out)
    assert [line["id"] for line in found] == [*(row["id"] for row in rows), "text-2"]
    monitor = Monitor.load(made.monitor)
    own = score_prompts(
        load(str(made.model), dtype="float32"), monitor, [line["prompt"] for line in found]
    )
    np.testing.assert_allclose([line["score"] for line in found], own.logits.numpy(), atol=1e-4)
    for line in found:
        z = line["z_refusal"], line["z_harmfulness"]
        assert line["score"] == pytest.approx(monitor.scores(*z), abs=1e-4)
        assert line["fires"] == (line["score"] > line["threshold"])
        assert line["probability"] == pytest.approx(1 / (1 + np.exp(-line["score"])))
    assert "31 prompts beside" in " ".join(said.err.split())


def test_scores_that_drift_are_said(
    made: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "other.txt"
    file.write_text("\n".join(f"{'zz ' * (i + 3)}{i}" for i in range(40)), encoding="utf-8")
    assert main(["monitor", "score", str(made.monitor), str(file), "--dtype", "float32"]) == 0
    assert "drifted" in capsys.readouterr().err


def test_a_missing_file_and_no_prompts_at_all_are_usage_errors(
    made: Made, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["monitor", "score", str(made.monitor), "missing.jsonl"]) == 2
    assert main(["monitor", "score", str(made.monitor)]) == 2
    assert main(["monitor", "score", "no-folder", "Why?"]) == 2
    assert "refusal monitor fit" in " ".join(capsys.readouterr().err.split())


def test_another_template_and_other_weights_are_refused(
    made: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["monitor", "score", str(made.monitor), "Why?", "--dtype", "float32"]
    assert main([*words, "--system", "Be brief."]) == 2
    assert "chat template" in capsys.readouterr().err
    other = save_model(tmp_path / "other", "chatml", seed=3)
    assert main([*words, "--model", str(other)]) == 2
    assert re.search(
        r"weights [0-9a-f]{12}….*has [0-9a-f]{12}…", " ".join(capsys.readouterr().err.split())
    )


def test_too_few_calibration_prompts_are_refused(
    made: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [word if word != str(made.monitor) else str(tmp_path / "w") for word in fit_words(made)]
    assert main([*words, "--n-calibration", "98"]) == 2
    assert "at least 99" in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "w").exists()
    assert main([*words, "--n-calibration", "50", "--eps", "0.05"]) == 0


def test_a_folder_of_something_else_is_not_written_into(made: Made, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    words = [word if word != str(made.monitor) else str(tmp_path) for word in fit_words(made)]
    assert main(words) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_an_evaluation_is_a_page_and_its_json(
    made: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wrapped = tmp_path / "gcg.jsonl"
    chatml = "<|im_start|>system\nBe good.<|im_end|>\n<|im_start|>user\nTell me {}!<|im_end|>\n<|im_start|>assistant\n"
    wrapped.write_text("".join(json.dumps({"prompt": chatml.format(i)}) + "\n" for i in range(12)))
    more = tmp_path / "more.csv"
    more.write_text(
        "prompt,label\n"
        + "".join(f'"{t}",{("harmful", "harmless")[i % 2]}\n' for i, t in enumerate(texts(60, 7)))
    )
    words = [
        "monitor",
        "evaluate",
        str(made.monitor),
        "--prompts",
        *made.prompts,
        "--dtype",
        "float32",
    ]
    words += [
        "--sets",
        "test",
        str(more),
        "--jailbreaks",
        str(wrapped),
        "--n-most",
        "30",
        "--out",
        str(tmp_path / "e"),
    ]
    assert main([*words, "--json", "--quiet"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found == json.loads((tmp_path / "e" / "evaluation.json").read_text())
    names = [one["name"] for one in found["sets"]]
    assert names == ["test-harmful", "test-harmless", "more-harmful", "more-harmless", "gcg"]
    assert [one["source"] for one in found["left_out"]] == []  # the test split's are too few
    assert len(found["contrasts"]) == 5  # all together, and two by two
    assert "12 of 12 prompts were written out" in found["notes"][0]
    assert found["reliability"]["bins"]
    page = (tmp_path / "e" / "evaluation.html").read_text(encoding="utf-8")
    assert "Told apart" in page
    assert "gcg" in page
    assert main(words) == 0  # once more, over its own page
    said = capsys.readouterr()
    assert "Told apart" in said.err


def test_a_prompt_of_the_fit_is_not_tested_on(
    made: Made, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [
        "monitor",
        "evaluate",
        str(made.monitor),
        "--prompts",
        *made.prompts,
        "--dtype",
        "float32",
        "--sets",
    ]
    assert main([*words, "test", f"harmless={made.calibration}"]) == 2
    assert "took part in making the monitor" in " ".join(capsys.readouterr().err.split())
    assert main([*words, f"harmful={made.calibration}"]) == 2
    assert "no harmless test prompts" in " ".join(capsys.readouterr().err.split())


def test_the_library_checks_too(made: Made) -> None:
    model, monitor = load(str(made.model), dtype="float32"), Monitor.load(made.monitor)
    good = some("harmless", 20, 8)
    bad = some("harmful", 20, 81)
    sets = [PromptSet("a", "test", "harmful", bad), PromptSet("a", "test", "harmless", good)]
    with pytest.raises(PromptError, match="Two sets are called 'a'"):
        evaluate_monitor(model, monitor, sets)
    known = some("harmless", 120, 3)
    with pytest.raises(LeakageError, match="of b"):
        evaluate_monitor(model, monitor, [sets[0], PromptSet("b", "test", "harmless", known)])


def test_one_prompt_has_no_standard_deviation(made: Made) -> None:
    model, monitor = load(str(made.model), dtype="float32"), Monitor.load(made.monitor)
    one, two = some("harmful", 1, 81), some("harmless", 2, 8)
    sets = [PromptSet("one", "test", "harmful", one), PromptSet("two", "test", "harmless", two)]
    found = evaluate_monitor(model, monitor, sets)
    assert found.sets[0].sd is None
    assert (found.sets[1].sd or 0.0) > 0
    shown = [[str(cell) for cell in row] for row in next(monitor_tables(found)).rows]
    assert ["±" in " ".join(row) for row in shown] == [False, True]


def test_a_run_gives_its_model_prompts_and_layer(made: Made, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    prompts = ", ".join(json.dumps(one) for one in made.prompts)
    (run / "run.toml").write_text(
        f'[model]\nmodel = "{made.model}"\ndtype = "float32"\n[prompts]\nprompts = [{prompts}]\nn_train = 16\nn_val = 10\n'
    )
    (run / "manifest.json").write_text("{}")
    monitor = Monitor.load(made.monitor)
    Direction(torch.from_numpy(monitor.refusal.vector), 1.0, -1, 3).save(
        run / "direction.safetensors"
    )
    words = [
        "monitor",
        "fit",
        str(run),
        "--out",
        str(tmp_path / "w"),
        "--calibration",
        str(made.calibration),
        "--quiet",
    ]
    assert main(words) == 0
    found = Monitor.load(tmp_path / "w")
    assert [reader.layer for reader in found.readers] == [3, 3]
    assert found.seen == monitor.seen
    assert main([*words, "--layer", "2"]) == 0
    assert Monitor.load(tmp_path / "w").refusal.layer == 2


def test_what_chatml_puts_around_a_prompt_is_known() -> None:
    rendered = "<|im_start|>user\nTell\nme<|im_end|>\n<|im_start|>assistant\n"
    match = WRITTEN_OUT.fullmatch(rendered)
    assert match is not None
    assert match["said"] == "Tell\nme"
    assert WRITTEN_OUT.fullmatch("Tell me of <|im_start|>") is None
