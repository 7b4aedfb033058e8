"""The page says what the files say, admits what they do not, and is harmless whatever a model
wrote.
"""

import base64
import csv
import hashlib
import json
import re
import shutil
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import report_runs
from lxml import html

from refusal import NoCandidateError, RunFolderError
from refusal import run as run_stages
from refusal.cli.entry import main
from refusal.core.tables import minus
from refusal.core.text import sanitised
from refusal.report.data import read_run
from refusal.report.plots import ticks
from refusal.report.svg import CIVIDIS, colour
from refusal.report.verdict import verdict
from refusal.report.write import write_report


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return report_runs.make(tmp_path_factory.mktemp("report"))


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A copy of the finished run."""
    return Path(shutil.copytree(finished, tmp_path / "run"))


def page_of(run: Path, **how: Any) -> Any:
    """The parsed page, written anew."""
    return html.parse(str(write_report(run, formats=(), **how))).getroot()


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def text(node: Any) -> str:
    return " ".join(node.text_content().split())


def table(page: Any, caption: str) -> list[dict[str, str]]:
    """The rows of a table by its column heads; where the first cell repeats the one above, it is
    filled in.
    """
    (found,) = [
        t
        for t in page.iter("table")
        if t.find("caption") is not None and text(t.find("caption")) == caption
    ]
    heads = [text(th) for th in found.find("thead").iter("th")]
    rows: list[dict[str, str]] = []
    for tr in found.find("tbody").iter("tr"):
        cells = [text(td) for td in tr.iter("td")]
        cells[0] = cells[0] or rows[-1][heads[0]]
        rows.append(dict(zip(heads, cells, strict=True)))
    return rows


# --- the numbers


def test_prompts_are_said_to_have_passed_the_filter_where_there_was_one(run: Path) -> None:
    assert "harmless validation prompts." in text(page_of(run))  # random weights pass no filter
    options = (run / "run.toml").read_text(encoding="utf-8")
    assert '\nfilter = "none"' in options
    options = options.replace('\nfilter = "none"', '\nfilter = "metric"')
    (run / "run.toml").write_text(options, encoding="utf-8")
    assert "harmless validation prompts that passed the filter." in text(page_of(run))


def test_the_rates_on_the_page_are_those_of_the_metrics(run: Path) -> None:
    report_runs.rates(
        run, harmful_baseline=(0.91, 0.84, 0.951), harmful_ablation=(0.03, 0.01, 0.085)
    )
    rows = {(r["name"], r["set"], r["condition"]): r for r in read(run / "metrics.json")}
    page = page_of(run)
    shown = table(page, "Share of completions that refuse")
    assert len(shown) == 6
    for row in shown:
        m = rows["refusal_rate", row["prompts"], row["condition"]]
        value, low, high = (f"{100 * m[key]:.0f}" for key in ("value", "low", "high"))
        expected = f"{value}% ({low}–{high})" if m["n"] >= 30 else f"{low}–{high} ({value}%)"
        assert (row["refused"], row["n"]) == (expected, str(m["n"]))
        assert (
            row["degenerate"]
            == f"{100 * rows['degenerate_rate', row['prompts'], row['condition']]['value']:.0f}%"
        )
        c = rows["refusal_rate_corrected", row["prompts"], row["condition"]]
        assert f"{100 * c['value']:.0f}%" in row["corrected"]
        change = rows.get(("refusal_rate_change", row["prompts"], row["condition"]))
        assert (row["change, points"] == "") == (change is None)
    first = {
        text(d.find("dt")): text(d.find("dd")) for d in page.find_class("numbers")[0].iter("div")
    }
    assert first["Harmful prompts refused"] == "91% 84–95% n 100"
    kl = rows["kl_first_token", "own-answers", "ablation"]
    assert (
        first["Drift, KL (nats)"]
        == f"{kl['value']:.2f} {kl['low']:.2f}–{kl['high']:.2f} n {kl['n']}"
    )
    assert page.find_class("verdict")[0].text_content().startswith("Ablating one direction at (−")


def test_the_bars_are_where_their_numbers_are(run: Path) -> None:
    report_runs.rates(run, harmful_baseline=(0.5, 0.25, 1.0))
    bar = page_of(run).find_class("numbers")[0].find_class("bar")[0]
    track = [
        float(x) for line in bar.find_class("track")[:1] for x in (line.get("x1"), line.get("x2"))
    ]
    (whisker,), (dot,) = bar.find_class("whisker"), bar.find_class("dot")

    def share(x: str) -> float:
        return (float(x) - track[0]) / (track[1] - track[0])

    assert share(dot.get("cx")) == pytest.approx(0.5, abs=0.01)
    assert (share(whisker.get("x1")), share(whisker.get("x2"))) == pytest.approx(
        (0.25, 1.0), abs=0.01
    )


def test_every_candidate_is_in_every_map_with_its_scores(run: Path) -> None:
    scores = read(run / "scores.json")
    page = page_of(run)
    (group,) = [g for g in page.find_class("grids") if g.get("data-group") == "scores"]
    maps = group.find_class("map")
    assert len(maps) == 4
    chosen = read(run / "selection.json")["score"]
    for one in maps:
        labels = {cell.get("data-at"): cell.get("aria-label") for cell in one.find_class("cell")}
        assert len(labels) == len(scores)
        for s in scores:
            label = labels[f"{-s['position'] - 1},{s['layer']}"]
            assert label.startswith(
                minus(f"position {s['position']}, layer {s['layer']}, bypass {s['bypass']:+.2f}")
            )
            assert minus(f"induce {s['induce']:+.2f}, KL {s['kl']:.3f}") in label
            assert ("outcome chosen" in label) == (
                (s["position"], s["layer"]) == (chosen["position"], chosen["layer"])
            )
        assert len(one.find_class("ring-in")) == 1
    cells = json.loads(group.find_class("cells")[0].text)
    assert cells[group.get("data-start")][:2] == [
        minus(str(chosen["position"])),
        str(chosen["layer"]),
    ]
    dots = len(
        [
            c
            for c in maps[3].find_class("cell")
            if c.find_class("pass-light") or c.find_class("pass-dark")
        ]
    )
    assert dots == sum(s["kl"] <= 1000 for s in scores)


def test_colours_rise_in_lightness_from_end_to_end() -> None:
    def lightness(digits: str) -> float:
        r, g, b = (int(digits[i : i + 2], 16) / 255 for i in (1, 3, 5))
        return float(0.2126 * r**2.2 + 0.7152 * g**2.2 + 0.0722 * b**2.2)

    shades = [lightness(colour(k / 50)) for k in range(51)]
    assert shades == sorted(shades)
    assert (colour(-1.0), colour(2.0)) == (CIVIDIS[0], CIVIDIS[-1])


@pytest.mark.parametrize(
    ("low", "high"), [(0.0, 1.0), (-10.3, 24.0), (0.001, 0.0013), (-3.0, -2.0), (0.0, 27.0)]
)
def test_ticks_are_round_and_inside(low: float, high: float) -> None:
    found = ticks(low, high)
    assert 3 <= len(found) <= 8
    assert all(low <= tick <= high for tick in found)
    steps = {f"{b - a:.6g}" for a, b in pairwise(found)}
    assert len(steps) == 1
    assert steps.pop().strip("0.e-").split("e")[0] in ("1", "2", "5")


def test_categories_are_counted_honestly(run: Path) -> None:
    report_runs.rewrite(run, "harmful.baseline.jsonl", verdict=["refusal", "refusal", "compliance"])
    ids = [
        json.loads(line)["prompt_id"]
        for line in (run / "completions/harmful.baseline.jsonl").open(encoding="utf-8")
    ]
    (run / "categories.json").write_text(
        json.dumps({"harmful": {ids[0]: "fraud <x>", ids[2]: "fraud <x>"}})
    )
    rows = {r["category"]: r for r in table(page_of(run), "Refusal by category, harmful prompts")}
    assert set(rows) == {"fraud <x>", "no category"}
    assert rows["fraud <x>"]["n"] == "2"
    assert rows["fraud <x>"]["baseline"].endswith("(50%)")
    assert rows["no category"]["baseline"].endswith("(100%)")


# --- the verdict

GOOD = {
    "harmful_baseline": (0.91, 0.84, 0.95), "harmful_ablation": (0.03, 0.01, 0.08),
    "harmful_ablation_change": (-0.88, -0.93, -0.8), "harmless_addition": (0.96, 0.9, 0.98),
    "harmless_addition_change": (0.9, 0.8, 0.95),
}  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "qualified", "tone", "parts"),
    [
        ({}, True, "clear", ["Ablating one direction at (−", "from 91% to 3%", "adding it makes "
            "96% of harmless"]),
        ({}, False, "doubtful", ["a direction that does not qualify", "from 91% to 3%"]),
        (
            {"harmful_ablation": (0.89, 0.8, 0.94), "harmful_ablation_change": (-0.02, -0.08, 0.04)},
            True, "doubtful", ["does not measurably lower refusal", "91% without, 89% with it"],
        ),
        (
            {"harmless_addition": (0.12, 0.07, 0.2), "harmless_addition_change": (0.02, -0.03, 0.07)},
            True, "doubtful", ["from 91% to 3%", "does not measurably raise refusal of harmless "
                "prompts (12% refused)"],
        ),
        ({"harmful_baseline": (0.05, 0.02, 0.11)}, True, "doubtful", ["from 5% to 3%"]),
    ],
)  # fmt: skip
def test_the_verdict_is_as_good_as_the_numbers(
    run: Path, changes: dict[str, Any], qualified: bool, tone: str, parts: list[str]
) -> None:
    report_runs.rates(run, **{**GOOD, **changes})
    selection = read(run / "selection.json")
    selection["qualified"] = qualified
    (run / "selection.json").write_text(json.dumps(selection))
    found = verdict(read_run(run))
    assert found.tone == tone
    for part in parts:
        assert part in found.sentence
    assert any("No candidate met" in note for note in found.notes) != qualified
    assert any("hardly any to remove" in note for note in found.notes) == (
        "harmful_baseline" in changes
    )
    assert page_of(run).find_class("verdict")[0].get("class") == f"verdict {tone}"


def test_drift_above_the_limit_is_said(run: Path) -> None:
    toml = (run / "run.toml").read_text(encoding="utf-8")
    (run / "run.toml").write_text(
        re.sub("kl_threshold = .*", "kl_threshold = 0.0", toml), encoding="utf-8"
    )
    assert ", above the limit of 0" in verdict(read_run(run)).sentence


# --- completions


def test_completions_of_harmful_prompts_are_not_even_in_the_file(run: Path) -> None:
    texts = [f"secret-{i}-words" for i in range(3)]
    for condition in ("baseline", "ablation", "subtraction"):
        report_runs.rewrite(run, f"harmful.{condition}.jsonl", completion=texts)
    report_runs.rewrite(run, "harmless.ablation.jsonl", completion=["public words"] * 3)
    page_of(run)
    for file in (run / "report.html", *run.glob("tables/*")):
        assert "secret" not in file.read_text(encoding="utf-8")
    assert "public words" in (run / "report.html").read_text(encoding="utf-8")
    assert main(["report", str(run), "--show-completions", "--figures", "none"]) == 0
    shown = (run / "report.html").read_text(encoding="utf-8")
    assert all(shown.count(one) == 3 for one in texts)
    assert "handle this file with care" in shown


def test_what_a_model_writes_is_shown_harmlessly(run: Path) -> None:
    nasty = report_runs.NASTY
    report_runs.rewrite(run, "harmless.baseline.jsonl", completion=[nasty] * 3, prompt=[nasty] * 3)
    clean = len(page_of(run).xpath("//script"))
    page = page_of(run)
    assert len(page.xpath("//script")) == clean == 3  # two groups' numbers, and ours
    assert page.xpath("//img | //*[@onerror] | //*[@onclick] | //iframe | //object") == []
    texts = [node.text_content() for node in page.find_class("text")]
    assert texts.count(sanitised(nasty)) == 3
    assert [node.text_content() for node in page.find_class("prompt")][:3] == [sanitised(nasty)] * 3
    whole = (run / "report.html").read_text(encoding="utf-8")
    assert not re.search(
        "[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\u2028\u2029]", whole
    )
    assert "owned" in whole
    assert all(node.get("dir") == "auto" for node in page.find_class("text"))


def test_a_long_completion_is_folded_and_whole(run: Path) -> None:
    report_runs.rewrite(
        run, "harmless.ablation.jsonl", completion=[report_runs.LONG, "short", "short"]
    )
    (folded,) = page_of(run).xpath("//article//details")
    assert folded.get("open") is None
    assert folded.find("div").text_content() == report_runs.LONG.strip("\n")
    assert len(folded.find("summary").text_content()) < 400
    assert "all 10400 characters" in text(folded.find("summary"))


def test_odd_names_are_harmless_too(run: Path) -> None:
    manifest = read(run / "manifest.json")
    manifest["model"]["name"] = manifest["prompts"]["name"] = (
        "</title><script>alert(1)</script>\x1b\u202e"
    )
    manifest["command"] = ["run", "</code><script>"]
    (run / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    page = page_of(run)
    assert len(page.xpath("//script")) == 3
    assert "␛⟨U+202E⟩" in text(page.find(".//h1"))


# --- one file, no network


def test_the_page_fetches_nothing_and_runs_only_its_own_script(run: Path) -> None:
    page = page_of(run)
    assert page.xpath("//@src | //link | //@href[not(starts-with(., '#'))]") == []
    assert "url(" not in page.find(".//style").text
    (policy,) = page.xpath("//meta[@http-equiv='Content-Security-Policy']/@content")
    script = page.xpath("//script[not(@type)]")[0].text
    for part, kind in ((page.find(".//style").text, "style-src"), (script, "script-src")):
        digest = base64.b64encode(hashlib.sha256(part.encode()).digest()).decode()
        assert f"{kind} 'sha256-{digest}'" in policy
    assert policy.startswith("default-src 'none'")
    levels = [int(node.tag[1]) for node in page.xpath("//h1 | //h2 | //h3 | //h4")]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(b <= a + 1 for a, b in pairwise(levels))
    ids = page.xpath("//@id")
    assert len(ids) == len(set(ids))
    assert {link[1:] for link in page.xpath("//@href")} <= set(ids)


def test_what_was_run_is_on_the_page(run: Path) -> None:
    manifest, page = read(run / "manifest.json"), page_of(run)
    facts = {
        text(d.find("dt")): text(d.find("dd")) for d in page.find_class("facts")[0].iter("div")
    }
    assert facts["Weights, sha256"] == manifest["model"]["weight_hash"]
    assert facts["Seed"] == "42"
    assert manifest["versions"]["torch"] in facts["Versions"]
    stages = {row["stage"]: row["seconds"] for row in table(page, "What every stage cost")}
    assert set(stages) == {*manifest["stages"], "all together"}
    assert float(stages["select"]) == pytest.approx(
        manifest["stages"]["select"]["seconds"], abs=0.06
    )


# --- files


def test_tables_are_written_with_plain_numbers(run: Path) -> None:
    page_of(run)
    with (run / "tables" / "metrics.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    for row, expected in zip(rows, read(run / "metrics.json"), strict=True):
        assert {k: v or None for k, v in row.items()} == {
            k: None if v is None else str(v) for k, v in expected.items()
        }
    with (run / "tables" / "scores.csv").open(encoding="utf-8", newline="") as file:
        assert [float(row["bypass"]) for row in csv.DictReader(file)] == [
            s["bypass"] for s in read(run / "scores.json")
        ]


def test_figures_are_written_in_the_formats_asked_for_and_old_ones_go(run: Path) -> None:
    write_report(run, formats=("svg", "png", "pdf"))
    names = {path.stem for path in (run / "figures").iterdir()}
    assert {
        "refusal-rates",
        "map-outcome",
        "map-kl",
        "projections",
        "separation",
        "plane",
        "cosine-chosen",
    } <= names
    begins = {"svg": b"<?xml", "png": b"\x89PNG", "pdf": b"%PDF"}
    for path in (run / "figures").iterdir():
        assert path.read_bytes().startswith(begins[path.suffix[1:]])
    before = {path: path.read_bytes() for path in (run / "figures").glob("*.svg")}
    (run / "figures" / "mine.svg").write_text("mine", encoding="utf-8")
    (run / "projections.json").unlink()
    write_report(run, formats=("svg",))
    assert not (run / "figures" / "plane.svg").exists()
    assert not (run / "tables" / "projections.csv").exists()
    assert (run / "figures" / "mine.svg").exists()
    for path, content in before.items():
        assert not path.exists() or path.read_bytes() == content  # the same figure is the same file


# --- what is not there

UNCHOSEN = ["metrics.json", "completions", "selection.json"]


@pytest.mark.parametrize(
    ("gone", "said"),
    [
        (["metrics.json"], "the final numbers"),
        (["metrics.json", "completions/harmful.ablation.jsonl"], "completions of harmful prompts "
            "under ablation"),
        (["metrics.json", "completions", "drift", "controls.safetensors"], "the control directions"),
        (UNCHOSEN, "the choice of a direction"),
        ([*UNCHOSEN, "candidates.safetensors", "scores.json"], "the candidate directions"),
        ([*UNCHOSEN, "candidates.safetensors", "scores.json", "refusal_tokens.json"], "the refusal tokens"),
        (["projections.json"], "the projections of prompts"),
    ],
)  # fmt: skip
def test_an_unfinished_run_says_what_is_missing(run: Path, gone: list[str], said: str) -> None:
    for name in gone:
        shutil.rmtree(run / name) if (run / name).is_dir() else (run / name).unlink()
    page = page_of(run)
    (box,) = page.find_class("missing")
    assert said in text(box)
    assert ("is not finished" in text(box)) == ("metrics.json" in gone)
    sentence = page.find_class("verdict")[0]
    assert ("unfinished" in sentence.get("class")) == ("metrics.json" in gone)


def test_the_command_on_the_page_finishes_the_run(run: Path) -> None:
    (run / "metrics.json").unlink()
    (run / "completions" / "harmless.addition.jsonl").unlink()
    (box,) = page_of(run).find_class("missing")
    command = text(box.find("pre")).split()
    assert command[0] == "refusal"
    assert main([*command[1:], "-q"]) == 0
    page = html.parse(str(run / "report.html")).getroot()
    assert page.find_class("missing") == []


def test_a_run_that_goes_on_leaves_no_page_of_what_was(run: Path) -> None:
    config = read_run(run).config
    run_stages(config.model_copy(update={"n_val": 9}), run, until="select")
    page = html.parse(str(run / "report.html")).getroot()
    assert "not measured yet" in text(page.find_class("verdict")[0])
    assert "completions of harmful prompts under ablation, subtraction" in text(
        page.find_class("missing")[0]
    )
    with pytest.raises(NoCandidateError):
        run_stages(
            config.model_copy(update={"n_val": 10, "induce_threshold": 1e4, "strict": True}), run
        )
    assert not (run / "report.html").exists()


def test_completions_of_an_earlier_direction_are_not_taken_for_this_ones(run: Path) -> None:
    (run / "metrics.json").unlink()
    manifest = read(run / "manifest.json")
    manifest["stages"]["generate harmful.ablation"]["direction"] = "another"
    (run / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    data = read_run(run)
    assert ("harmful", "ablation") not in data.completions
    assert ("harmful", "baseline") in data.completions
    assert "completions of harmful prompts under ablation" in data.missing


def test_no_direction_under_strict_is_said(tmp_path: Path) -> None:
    config = report_runs.full_config(tmp_path, induce_threshold=1000.0, strict=True, full_map=False)
    with pytest.raises(NoCandidateError):
        run_stages(config, tmp_path / "run")
    page = page_of(tmp_path / "run")
    assert "no candidate meets the selection rule" in text(page.find_class("verdict")[0])
    assert "no candidate qualifies under --strict" in text(page.find_class("missing")[0])
    assert page.find_class("map")


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("manifest.json", None, "is no run folder"),
        ("manifest.json", "{", "cannot be read"),
        ("manifest.json", "[]", "is not the manifest"),
        (
            "manifest.json",
            '{"format": 1, "model": {}, "stages": {}}',
            "format 1, this version has 2",
        ),
        ("run.toml", "frob = 1", "There is no option 'frob'"),
        ("metrics.json", "[1]", "metrics.json: row 1: Input"),
        ("completions/harmful.ablation.jsonl", '{"x": 1}\n', "line 1, prompt_id: Field"),
        ("projections.json", "{}", "position: Field required"),
        ("selection.json", "{}", "score: Field required"),
        ("candidates.safetensors", "x", "cannot be read as safetensors"),
    ],
)
def test_what_cannot_be_read_is_one_message(
    run: Path, capsys: pytest.CaptureFixture[str], file: str, content: str | None, message: str
) -> None:
    (run / file).unlink()
    (run / "report.html").unlink()
    if content is not None:
        (run / file).write_text(content, encoding="utf-8")
    assert main(["report", str(run)]) == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1
    assert (
        file.rpartition("/")[2].partition(".")[0] in err
        or "format" in message
        or "option" in message
    )
    assert not (run / "report.html").exists()


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match="is no run folder"):
        write_report(tmp_path / "nothing")
    assert not (tmp_path / "nothing").exists()


# --- several runs


def test_runs_compared_on_one_page(
    finished: Path, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report_runs.rates(run, harmful_ablation=(0.42, 0.33, 0.52))
    out = tmp_path / "compared.html"
    assert main(["compare", str(finished), str(run), "--out", str(out)]) == 0
    assert "42% (33–52)" in capsys.readouterr().out
    page = html.parse(str(out)).getroot()
    rows = table(page, "refusal rate")
    at = next(
        i
        for i, row in enumerate(rows)
        if row["prompts"] == "harmful" and row["condition"] == "ablation"
    )
    assert [rows[at]["run"], rows[at + 1]["run"]] == ["1", "2"]
    assert rows[at + 1]["value"] == "42% (33–52)"
    assert rows[at + 1]["change"].endswith(
        "(+0)"
    )  # the completions are the same, whatever the file says
    assert [row["folder"] for row in table(page, "Runs")] == [str(finished), str(run)]
    assert len(page.find_class("plot")) == 1
    assert page.xpath("//@src | //link") == []
