"""The page in a real browser: opened from disk with the network off, pointed at, clicked, read by
axe-core.

Needs Debian's chromium (``apt-get install chromium``) and playwright; skipped without them.
"""

import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import browser
import pytest
import report_runs

from refusal.report.compare_page import write_comparison
from refusal.report.write import write_report

pytestmark = browser.needed


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A report of everything with a nasty and a long completion, one of an unfinished run, and a
    comparison.
    """
    base = tmp_path_factory.mktemp("browser")
    run = report_runs.make(base)
    half = Path(shutil.copytree(run, base / "half"))
    other = Path(shutil.copytree(run, base / "other"))
    nasty = [report_runs.NASTY, report_runs.LONG, "x" * 2000]
    report_runs.rewrite(run, "harmless.baseline.jsonl", completion=nasty, prompt=nasty)
    report_runs.rates(run, harmful_ablation=(0.03, 0.01, 0.085))
    (half / "metrics.json").unlink()
    (half / "projections.json").unlink()
    return {
        "report": write_report(run, formats=()),
        "unfinished": write_report(half, formats=()),
        "comparison": write_comparison([run, other], base / "compared.html"),
    }


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    with browser.launched() as found:
        yield found


class Opened(browser.Opened):
    """A page from disk, with the network off."""

    def __init__(self, chromium: Any, file: Path, width: int = 1100, scheme: str = "light") -> None:
        super().__init__(chromium, file.as_uri(), width, offline=True, color_scheme=scheme)

    def cell(self, at: str, mapping: int = 1) -> Any:
        """A cell of one of the score maps."""
        return (
            self.page.locator("[data-group=scores] .map").nth(mapping).locator(f'[data-at="{at}"]')
        )

    def lines(self, kind: str) -> list[list[str]]:
        """Rows of the table under the maps: ``live`` or ``keeping``."""
        rows = self.page.locator(f"[data-group=scores] .kept tr.{kind}").all()
        return [[cell.inner_text() for cell in row.locator("td").all()] for row in rows]


@pytest.fixture
def opened(chromium: Any) -> Iterator[Any]:
    """Open a page; closed at the end."""
    with browser.opening(chromium, Opened) as found:
        yield found


@pytest.mark.parametrize("name", ["report", "unfinished", "comparison"])
def test_it_opens_at_once_asks_for_nothing_and_complains_of_nothing(
    opened: Any, pages: dict[str, Path], name: str
) -> None:
    first = opened(pages[name])
    start = time.perf_counter()
    first.page.reload()
    assert time.perf_counter() - start < 3  # a second on a machine that does nothing else
    assert first.complaints == []
    assert set(first.requests) == {pages[name].as_uri()}
    assert first.page.title().startswith("Refusal: ")  # no script of a completion has run


def test_pointing_shows_a_cells_numbers_and_leaving_brings_the_chosen_back(
    opened: Any, pages: dict[str, Path]
) -> None:
    one = opened(pages["report"])
    start = one.lines("live")
    assert start[0][5] == "chosen"
    for at in ("0,0", "3,2"):
        one.cell(at).hover()
        (live,) = one.lines("live")
        heads = ("position", "layer", "bypass", "induce", "KL", "outcome")
        said = ", ".join(f"{head} {value}" for head, value in zip(heads, live, strict=False))
        assert said == one.cell(at).get_attribute("aria-label")
        here = one.page.locator("[data-group=scores] .cell.here").all()
        assert [cell.get_attribute("data-at") for cell in here] == [at] * 4  # in every map
    one.page.locator("h1").hover()
    assert one.lines("live") == start


def test_a_click_keeps_and_drops(opened: Any, pages: dict[str, Path]) -> None:
    one = opened(pages["report"])
    one.cell("0,0").click()
    one.cell("2,1", mapping=3).click()
    kept = one.lines("keeping")
    assert [row[:2] for row in kept] == [["−1", "0"], ["−3", "1"]]
    one.page.locator("h1").hover()
    assert one.lines("keeping") == kept
    one.page.locator(".keeping button").first.click()
    assert one.lines("keeping") == kept[1:]
    one.cell("2,1").click()
    assert one.lines("keeping") == []


def test_the_keyboard_does_what_the_pointer_does(opened: Any, pages: dict[str, Path]) -> None:
    one = opened(pages["report"])
    in_order = one.page.locator("[data-group=scores] .map").nth(1).locator(".cell[tabindex='0']")
    assert in_order.count() == 1  # the arrows go on from there
    i, j = map(int, in_order.get_attribute("data-at").split(","))
    in_order.focus()
    for key in ("ArrowUp", "ArrowLeft", "Enter"):
        one.page.keyboard.press(key)
    assert [row[:2] for row in one.lines("keeping")] == [[f"−{i}", str(j - 1)]]
    assert one.lines("live")[0][:2] == [f"−{i}", str(j - 1)]
    covered = one.page.evaluate(
        "document.activeElement.getBoundingClientRect().bottom > "
        "document.querySelector('[data-group=scores] .kept').getBoundingClientRect().top"
    )
    assert not covered
    one.page.keyboard.press(" ")
    assert one.lines("keeping") == []


@pytest.mark.parametrize("name", ["report", "unfinished", "comparison"])
def test_a_narrow_page_scrolls_only_in_its_boxes(
    opened: Any, pages: dict[str, Path], name: str
) -> None:
    page = opened(pages[name], width=400).page
    assert browser.width(page) <= 400


@pytest.mark.parametrize(
    ("name", "scheme"),
    [("report", "light"), ("report", "dark"), ("unfinished", "light"), ("comparison", "dark")],
)
def test_axe_finds_nothing_serious(
    opened: Any, pages: dict[str, Path], name: str, scheme: str
) -> None:
    page = opened(pages[name], scheme=scheme).page
    page.evaluate("for (const one of document.querySelectorAll('details')) one.open = true")
    assert browser.seriously_wrong(page) == []


def test_it_prints(opened: Any, pages: dict[str, Path]) -> None:
    page = opened(pages["report"]).page
    assert page.pdf(prefer_css_page_size=True).startswith(b"%PDF")
    page.emulate_media(media="print")
    shown = page.evaluate(
        "['nav', '.kept', '.verdict', '.map'].map(s => "
        "getComputedStyle(document.querySelector(s)).display)"
    )
    assert shown == ["none", "none", "block", "block"]
