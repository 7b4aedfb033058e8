"""Pages in a real browser: Debian's chromium (``apt-get install chromium``) through playwright."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import resources
from typing import Any

import pytest

CHROMIUM = shutil.which("chromium")
needed = pytest.mark.skipif(CHROMIUM is None, reason="no chromium here: apt-get install chromium")
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run "
    "--disable-background-networking --disable-component-update --disable-sync "
    "--disable-dev-shm-usage"
)
IMPACTS = ("serious", "critical")  # what keeps some people from using the page


@contextmanager
def launched(*flags: str) -> Iterator[Any]:
    """The system's browser, headless, with a new profile."""
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as running:
        browser = running.chromium.launch(executable_path=CHROMIUM, args=[*FLAGS.split(), *flags])
        yield browser
        browser.close()


def width(page: Any) -> int:
    """Of all that the page holds: more than its window's, and it scrolls sideways."""
    return int(
        page.evaluate("Math.max(document.documentElement.scrollWidth, document.body.scrollWidth)")
    )


def seriously_wrong(page: Any) -> list[tuple[Any, ...]]:
    """What axe-core finds that is serious or critical."""
    page.evaluate(
        resources.files("axe_playwright_python").joinpath("axe.min.js").read_text("utf-8")
    )
    found = page.evaluate("axe.run()")
    assert len(found["passes"]) > 15
    return [
        (rule["id"], rule["impact"], node["target"], node["failureSummary"])
        for rule in found["violations"]
        if rule["impact"] in IMPACTS
        for node in rule["nodes"][:3]
    ]
