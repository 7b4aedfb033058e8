"""Pages in a real browser: Debian's chromium (``apt-get install chromium``) through playwright."""

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import resources
from typing import Any, TypeVar

import pytest

CHROMIUM = shutil.which("chromium")
needed = pytest.mark.skipif(CHROMIUM is None, reason="no chromium here: apt-get install chromium")
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run "
    "--disable-background-networking --disable-component-update --disable-sync "
    "--disable-dev-shm-usage"
)
IMPACTS = ("serious", "critical")  # what keeps some people from using the page
Page = TypeVar("Page", bound="Opened")


@contextmanager
def launched(*flags: str) -> Iterator[Any]:
    """The system's browser, headless, with a new profile."""
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as running:
        browser = running.chromium.launch(executable_path=CHROMIUM, args=[*FLAGS.split(), *flags])
        yield browser
        browser.close()


class Opened:
    """A page that is open, and everything that it complained of or asked for."""

    patience = 30.0  # seconds that anything on it may take

    def __init__(self, chromium: Any, url: str, width: int, **how: Any) -> None:
        self.context = chromium.new_context(viewport={"width": width, "height": 900}, **how)
        self.context.set_default_timeout(1000 * self.patience)
        self.page = self.context.new_page()
        self.complaints: list[str] = []
        self.requests: list[str] = []
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(url)


@contextmanager
def opening(chromium: Any, kind: Callable[..., Page]) -> Iterator[Callable[..., Page]]:
    """What opens pages of a kind; they are closed at the end."""
    found: list[Page] = []

    def call(*what: Any, **how: Any) -> Page:
        found.append(kind(chromium, *what, **how))
        return found[-1]

    yield call
    for one in found:
        one.context.close()


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
