"""Tables are built once and shown everywhere; figures are drawn once, for the page and as files."""

import importlib.util
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import report_runs
from lxml import html

from refusal import ConfigError, Evaluation, Metric
from refusal import run as run_stages
from refusal.cli import console
from refusal.cli.drawing import drawn
from refusal.cli.entry import main
from refusal.cli.present import present
from refusal.core.tables import Bar, Found, Table, table
from refusal.report import tables
from refusal.report.data import read_run
from refusal.report.draw import figure_file
from refusal.report.figures import figures
from refusal.report.tables import all_tables, tables_by_section
from refusal.report.write import write_report

SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return report_runs.make(tmp_path_factory.mktemp("tables"))


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run"))


def add(run: Path, *metrics: Metric) -> None:
    path = run / "metrics.json"
    rows = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps([*rows, *(vars(m) for m in metrics)]), encoding="utf-8")


def test_a_column_without_anything_in_it_is_left_out() -> None:
    bar = Bar(0.5, 0.4, 0.6)
    found = table(
        "t", ("who",), ("bar", "value", "change"), [("a", bar, "1", ""), ("b", bar, "2", "")]
    )
    assert found.columns == ("who", "bar", "value")
    assert found.rows == (("a", bar, "1"), ("b", bar, "2"))
    assert found.numeric == {"value", "change"}  # a bar is not set to the right


def test_cells_that_repeat_the_row_above_are_counted_from_the_left() -> None:
    rows = (("a", "x", "1"), ("a", "x", "2"), ("a", "y", "2"), ("b", "y", "2"))
    found = Table("t", ("p", "q", "r"), rows, grouped=True)
    assert [found.repeated(i) for i in range(4)] == [0, 2, 1, 0]
    assert Table("t", ("p", "q", "r"), rows).repeated(1) == 0


def test_the_terminal_leaves_out_bars_and_shows_title_and_note(
    capsys: pytest.CaptureFixture[str],
) -> None:
    long = "A title that is a good deal longer than the table itself"
    console.out.print(
        drawn(table(long, ("who",), ("0 to 1", "n"), [("a", Bar(0, 0, 1), "7")], note="So."))
    )
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [long.split(), ["who", "n"], ["a", "7"], ["So."]] == [
        line for line in lines if line and "─" not in line[0]
    ]


NEW = Metric("loudness_rate", "shouts", "ablation", 0.25, 0.2, 0.3, 100)


def test_a_metric_that_nobody_knows_is_shown_everywhere(run: Path) -> None:
    add(run, NEW)
    page = html.parse(str(write_report(run, formats=()))).getroot()
    (found,) = [t for t in page.iter("table") if "Other measures" in t.find("caption").text]
    assert [td.text for td in found.iter("td")] == ["loudness rate", "shouts", "ablation", "25% (20–30)", "100"]  # fmt: skip
    assert "loudness rate" in str(Evaluation({}, (NEW,))._repr_html_())
    assert [t.rows for t in all_tables([NEW])] == [(("loudness rate", "shouts", "ablation", "25% (20–30)", "100"),)]  # fmt: skip
    assert "loudness_rate" in (run / "tables" / "metrics.csv").read_text(encoding="utf-8")


def test_what_a_run_measures_leaves_nothing_over(finished: Path) -> None:
    metrics = read_run(finished).metrics
    assert len({m.name for m in metrics}) > 15
    assert not any(t.title.startswith("Other measures") for t in all_tables(metrics))


def test_an_evaluation_adds_its_table_in_one_place(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def loudness(found: Found) -> Iterator[Table]:
        rows = [(m.set, f"{m.value:.2f}") for m in found.named("loudness_rate")]
        yield table("Loudness", ("prompts",), ("loudness",), rows)

    before = tables.TABLES["side-effects"]
    monkeypatch.setitem(tables.TABLES, "side-effects", (loudness, *before))
    add(run, NEW)
    page = html.parse(str(write_report(run, formats=()))).getroot()
    captions = [caption.text for caption in page.iter("caption")]
    assert "Loudness" in captions
    assert not any("Other measures" in caption for caption in captions)
    config = read_run(run).config
    present(run_stages(config, run), False)
    assert "Other measures" not in capsys.readouterr().err
    assert "Loudness" in str(Evaluation({}, (NEW,))._repr_html_())


def test_new_interventions_are_rows_of_the_rates() -> None:
    names = ("baseline", "affine", "random-affine", "random-1-affine", "seed-43-ablation")
    found = [Metric("refusal_rate", "harmful", name, 0.5, 0.4, 0.6, 100) for name in names]
    rates, controls = tables_by_section(found)["rates"]
    assert [row[1] for row in rates.rows] == ["baseline", "affine"]
    assert [row[1] for row in controls.rows] == ["affine, random"]
    assert all_tables(found) == [rates]  # each control's own rates are for the page


def test_a_judge_is_not_taken_for_the_rule_of_its_name() -> None:
    """The paper's rule is a metric ``substring_refusal_rate`` of its own where no judge is."""
    found = [
        Metric("substring_refusal_rate", "harmful", "baseline", 0.5, 0.4, 0.6, 100),
        Metric("substring_failed_rate", "harmful", "baseline", 0.0, 0.0, 0.1, 100),
        Metric("substring_refusal_rate", "harmful", "random-1-ablation", 0.5, 0.4, 0.6, 50),
    ]
    (judges,) = all_tables(found)
    assert [row[2] for row in judges.rows] == ["baseline"]


def test_a_figure_file_needs_no_other_file(finished: Path) -> None:
    for figure in figures(read_run(finished)):
        text = figure_file(figure)
        root = ElementTree.fromstring(text)
        assert root.tag == f"{SVG}svg"
        assert "var(" not in text
        assert "url(" not in text
        assert figure.title in [node.text for node in root.iter(f"{SVG}text")]
        assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e]", text)


def test_the_figure_of_rates_is_where_its_numbers_are(run: Path) -> None:
    report_runs.rates(run, harmful_baseline=(0.5, 0.25, 1.0))
    write_report(run, formats=("svg",))
    root = ElementTree.parse(run / "figures" / "refusal-rates.svg").getroot()
    by_class: dict[str, list[Any]] = {}
    for node in root.iter():
        by_class.setdefault(node.get("class", "").split(" ")[0], []).append(node)
    ends = [float(line.get("x1")) for line in by_class["gridline"]]
    dot, whisker = by_class["dot"][0], by_class["whisker"][0]
    places = [float(x) for x in (dot.get("cx"), whisker.get("x1"), whisker.get("x2"))]
    shares = [(x - ends[0]) / (ends[-1] - ends[0]) for x in places]
    assert shares == pytest.approx([0.5, 0.25, 1.0], abs=0.01)


def test_a_methods_own_score_has_its_map_until_it_is_gone(run: Path) -> None:
    path = run / "scores.json"
    before = path.read_text(encoding="utf-8")
    rows = [{**row, "more": {"cosmic": 0.5}} for row in json.loads(before)]
    path.write_text(json.dumps(rows), encoding="utf-8")
    write_report(run)
    assert (run / "figures" / "map-cosmic.svg").is_file()
    path.write_text(before, encoding="utf-8")
    write_report(run)
    assert not (run / "figures" / "map-cosmic.svg").exists()
    assert (run / "figures" / "map-kl.svg").is_file()


def test_other_formats_say_what_to_install_before_anything_is_done(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(
        "refusal.report.draw.find_spec", lambda name: None if name == "vl_convert" else real(name)
    )
    (run / "report.html").unlink()
    assert main(["report", str(run), "--figures", "svg", "pdf"]) == 2
    assert "pip install 'refusal[figures]'" in " ".join(capsys.readouterr().err.split())
    assert not (run / "report.html").exists()
    config = read_run(run).config.model_copy(update={"figures": ("png",), "n_test": 2})
    with pytest.raises(ConfigError, match="Figures as png"):
        run_stages(config, run)
    assert read_run(run).config.n_test != 2


def test_controls_stand_beside_the_direction() -> None:
    change = "refusal_rate_change"
    found = [
        Metric("refusal_rate", "harmful", "ablation", 0.1, 0.0, 0.2, 100),
        Metric(change, "harmful", "ablation", -0.8, -0.9, -0.7, 100),
        Metric(change, "harmful", "random-ablation", 0.01, -0.05, 0.07, 40),
        Metric(change, "harmful", "random-2-ablation", 0.5, 0.4, 0.6, 40),
        Metric(change, "harmless", "addition", 0.3, 0.2, 0.4, 100),  # no control has it
        Metric("cosine", "direction", "matched", 0.95, 0.95, 0.95, 1),
    ]
    (changes,) = [t for t in all_tables(found) if "first 40 prompts" in t.title]
    assert changes.columns == ("prompts", "condition", "this direction", "random", "matched")
    assert changes.rows == (
        ("harmful", "ablation", "-80 (-90 to -70)", "+1 (-5 to +7)", ""),
        ("cosine", "", "", "", "+0.95"),
    )
