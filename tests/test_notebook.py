"""Records in a notebook: what they show, what a data frame of them holds; and the example notebook,
run whole.
"""

import builtins
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import nbformat
import pytest
import saved
from lxml import html
from nbclient import NotebookClient

import refusal
from refusal import Evaluation, Metric, Selection, UsageError, compare
from refusal.runs.result import RunResult

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> RunResult:
    base = tmp_path_factory.mktemp("notebook")
    config = saved.small_config(
        saved.save_model(base / "model"), saved.write_prompts(base), full_map=True
    )
    return refusal.run(config, base / "run")


@pytest.fixture(scope="module")
def selection(finished: RunResult) -> Selection:
    assert finished.selection is not None
    return finished.selection


def parsed(record: Any) -> html.HtmlElement:
    return html.fromstring(record._repr_html_())


def test_a_selection_shows_its_maps(selection: Selection) -> None:
    page = parsed(selection)
    assert [b.text.partition(":")[0] for b in page.findall(".//b")] == ["Bypass", "Induce", "KL"]
    for name, drawn in zip(("bypass", "induce", "kl"), page.findall(".//svg"), strict=True):
        shown = [cell for cell in drawn.iter("g") if cell.get("role") == "gridcell"]
        assert len(shown) == len(selection.scores)
        filled = [rect for rect in drawn.iter("rect") if rect.get("class") == "value"]
        assert len(filled) == sum(getattr(score, name) is not None for score in selection.scores)
    tips = {tip.text for tip in page.iter("title")}
    s = selection.score
    assert f"({s.position}, {s.layer}): bypass {s.bypass:+.2f}".replace("-", "−") in " ".join(
        map(str, tips)
    )


def test_an_unqualified_selection_says_so(selection: Selection) -> None:
    assert "No candidate qualifies" in parsed(replace(selection, qualified=False)).text_content()


def test_results_show_the_terminals_table(finished: RunResult) -> None:
    text = parsed(finished).text_content()
    rate = next(
        m
        for m in finished.metrics
        if (m.name, m.set, m.condition) == ("refusal_rate", "harmful", "baseline")
    )
    assert f"{100 * rate.low:.0f}–{100 * rate.high:.0f} ({rate.value:.0%})" in text
    assert "Bypass" in text
    results = Evaluation({}, finished.metrics)
    assert "Share of completions that refuse" in parsed(results).text_content()


def test_what_comes_from_outside_is_escaped(selection: Selection) -> None:
    nasty = replace(selection.direction, model="<script>alert(1)</script>\x1b[31m")
    for record in (nasty, replace(selection, direction=nasty)):
        shown = record._repr_html_()
        assert shown is not None
        assert "<script" not in shown
        assert "\x1b" not in shown
    (found,) = parsed(
        Evaluation({}, (Metric("refusal_rate", "<b>x</b>", "baseline", 0.5, 0.4, 0.6, 40),))
    ).iter("table")
    assert "<b>x</b>" in found.text_content()


def test_data_frames_hold_the_records(finished: RunResult, selection: Selection) -> None:
    scores = selection.to_dataframe()
    assert list(scores.columns[:5]) == ["position", "layer", "bypass", "induce", "kl"]
    assert len(scores) == len(selection.scores)
    metrics = finished.to_dataframe()
    assert list(metrics.value) == [m.value for m in finished.metrics]
    assert metrics.equals(Evaluation({}, finished.metrics).to_dataframe())
    assert list(Evaluation({}, ()).to_dataframe().columns) == list(metrics.columns)


def test_a_comparison_has_both(finished: RunResult) -> None:
    found = compare([finished.folder, finished.folder])
    assert "Runs" in [text.text for text in parsed(found).iter("caption")]
    frame = found.to_dataframe()
    assert set(frame.run) == {1, 2}
    assert len(frame) == 2 * len(found.rows)


def test_without_pandas_a_data_frame_says_what_to_install(
    selection: Selection, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "pandas":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(UsageError, match=re.escape("pip install 'refusal[notebook]'")):
        selection.to_dataframe()


def test_the_example_runs_from_top_to_bottom(tmp_path: Path) -> None:
    """On a tiny model, which writes noise: that it runs, shows its maps and tables, and holds no
    output itself.
    """
    notebook = nbformat.read(ROOT / "examples" / "quickstart.ipynb", as_version=4)  # type: ignore[no-untyped-call]
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert not any(cell.outputs for cell in cells)
    folder = saved.save_model(tmp_path / "model")
    setting = next(cell for cell in cells if 'MODEL = "embedded"' in cell.source)
    setting.source = (
        f"import refusal\nMODEL = {str(folder)!r}\nN_TRAIN, N_VAL, N_TEST, LENGTH = 4, 3, 2, 3"
    )
    collecting = next(cell for cell in cells if "refusal.collect(" in cell.source)
    collecting.source = collecting.source.replace("n=N_TRAIN", 'n=N_TRAIN, filtered=False, tokens=refusal.tokens_for('
                                                  'model, prompts.train, ("I",))')  # fmt: skip
    selecting = next(cell for cell in cells if "refusal.select(" in cell.source)
    selecting.source = selecting.source.replace(
        "n=N_VAL", "n=N_VAL, filtered=False, rule=refusal.Rule(-99, 99)"
    )
    NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(tmp_path)}}).execute()
    shown = [
        str(out.get("data", {}).get("text/html", "")) for cell in cells for out in cell.outputs
    ]
    assert sum("<svg" in page for page in shown) >= 1
    assert sum("Share of completions that refuse" in page for page in shown) == 1
    assert (tmp_path / "direction.safetensors").is_file()
