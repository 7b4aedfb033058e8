"""The page in a real browser: asked, read, stopped, copied from, without a mouse, on a narrow screen.

A stand-in says what a test needs to the letter; at the end of the file is the server itself.
"""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import resources
from typing import Any

import browser
import page_peer
import pytest
import tiny_models
from page_peer import INFO, Peer, answer, error, peer
from running import LONG, Running, asking, direction, held, running, until

from refusal.core.text import sanitised

sync_api = pytest.importorskip("playwright.sync_api")
expect = sync_api.expect

pytestmark = browser.needed

ANY_NAME = "page.test"  # of this machine, for this browser: a page that is not on loopback by name
TOKENS = [("Hello", -9.0), (" there", -3.0), (",", 1.0), (" friend", 4.9), (".", 99.0)]
TEXT = "".join(text for text, _ in TOKENS)
PROMPT = "How does a lock work?"


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    with browser.launched(f"--host-resolver-rules=MAP {ANY_NAME} 127.0.0.1") as found:
        expect.set_options(timeout=1000 * LONG)
        yield found


class Opened(browser.Opened):
    """The page of a server."""

    patience = LONG

    def __init__(self, chromium: Any, url: str, width: int = 1400, **how: Any) -> None:
        super().__init__(chromium, url, width, **how)

    def ask(self, prompt: str | None = PROMPT) -> None:
        """Or what stands there."""
        if prompt is not None:
            self.page.fill("#prompt", prompt)
        self.page.click("#run")

    def wait(self) -> None:
        """Until there are answers that were not waited for before, and none is being written."""
        new = "body:has(article:not([data-known]))"
        self.page.wait_for_selector(f"{new}:has(#stop[aria-disabled=true])", state="attached")
        self.page.evaluate(
            "for (const one of document.querySelectorAll('article')) one.dataset.known = ''"
        )

    def rows(self, i: int = 0, n: int = len(TOKENS)) -> list[Any]:
        """Of the table of tokens: it is filled a moment after it is opened."""
        found = self.answer(i).locator("tbody tr")
        expect(found).to_have_count(n)
        return list(found.all())

    def choose(self, *conditions: str) -> None:
        """One a column; ``none`` in the columns that are left."""
        for i, select in enumerate(self.page.locator("select").all()):
            select.select_option(conditions[i] if i < len(conditions) else "none")

    def answer(self, i: int = 0) -> Any:
        return self.page.locator("article").nth(i)

    def text(self, i: int = 0) -> str:
        return str(self.answer(i).locator(".text").text_content())

    def expect_shown(self, *which: bool) -> None:
        """Whose text can be read."""
        for i, shown in enumerate(which):
            expect(self.answer(i).locator(".text")).to_be_visible(visible=shown)


Open = Callable[..., Opened]


@pytest.fixture
def opened(chromium: Any) -> Iterator[Open]:
    """Open a page; closed at the end."""
    with browser.opening(chromium, Opened) as found:
        yield found


def same(_: dict[str, Any]) -> list[dict[str, Any]]:
    return answer(TOKENS)


@contextmanager
def asked(opened: Open, reply: Any = same, how: dict[str, Any] | None = None, **peers: Any) -> Any:
    """A page that has its three answers, and the server."""
    with peer(Peer(reply, **peers)) as server:
        one = opened(server.url, **(how or {}))
        one.page.wait_for_selector("#ask", state="visible")
        one.ask()
        one.wait()
        yield one, server


def test_it_says_what_is_served_and_has_three_conditions_chosen(opened: Open) -> None:
    with peer(Peer(same)) as server:
        one = opened(server.url)
        one.page.wait_for_selector("#ask", state="visible")
        assert one.page.title() == "tiny · refusal serve"
        facts = str(one.page.locator("#facts").text_content())
        assert "layer 12, position −1, norm 8.00" in facts
        assert "threshold 1.25, at most 1 % false alarms" in facts
        chosen = [box.input_value() for box in one.page.locator("select").all()]
        assert chosen == ["tiny", "tiny:ablation", "tiny:addition"]
        sliders = [box.is_visible() for box in one.page.locator("input[type=range]").all()]
        assert sliders == [False, True, True]


def test_one_prompt_is_asked_under_every_condition_and_streamed(opened: Open) -> None:
    with peer(Peer(same, holds=3)) as server:
        one = opened(server.url)
        one.page.wait_for_selector("#ask", state="visible")
        one.page.locator("summary", has_text="System prompt").click()
        one.page.fill("#system", "Be brief.")
        one.page.fill("#most", "40")
        one.ask()
        expect(one.answer().locator(".text")).to_have_text("Hello there")
        assert one.answer().get_attribute("aria-busy") == "true"
        server.go.set()
        one.wait()
        assert [one.text(i) for i in range(3)] == [TEXT] * 3
        assert one.answer().get_attribute("aria-busy") == "false"
        assert "done, 5 tokens" in one.answer().locator(".state").text_content()
        assert one.answer().locator(".badge").text_content() == "no refusal"
        assert one.complaints == []
        assert all(url.startswith(server.url) for url in one.requests)
        bodies = sorted(server.bodies, key=lambda body: str(body["model"]))
        assert [body["model"] for body in bodies] == ["tiny", "tiny:ablation", "tiny:addition"]
        assert bodies[0] == {
            "model": "tiny",
            "messages": [
                {"role": "system", "content": "Be brief."},
                {"role": "user", "content": PROMPT},
            ],
            "max_tokens": 40,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
            "refusal": {"monitor": True, "verdict": True, "projection": True},
        }


def test_the_slider_is_the_number_behind_the_condition(opened: Open) -> None:
    with peer(Peer(same)) as server:
        one = opened(server.url)
        one.page.wait_for_selector("#ask", state="visible")
        slider = one.page.locator("input[type=range]").nth(1)
        slider.focus()
        for _ in range(3):
            one.page.keyboard.press("ArrowLeft")
        expect(one.page.locator(".strength output").nth(1)).to_have_text("0.85")
        one.ask()
        one.wait()
        models = {body["model"] for body in server.bodies}
        assert models == {"tiny", "tiny:ablation@0.85", "tiny:addition"}
        assert one.answer(1).locator("h3").text_content() == "ablation@0.85"
        slider.fill("1")
        one.choose("baseline", "ablation")
        one.ask()
        one.wait()
        assert {body["model"] for body in server.bodies[3:]} == {"tiny", "tiny:ablation"}
        assert one.page.locator("article").count() == 2


def level(x: float) -> int:
    """The means, -3 and 5, are two steps from the middle; what is further is cut off at three."""
    return max(-3, min(3, round((x - 1) / 2)))


def test_tokens_have_the_colour_the_line_and_the_number_of_their_projection(opened: Open) -> None:
    values = [-50.0, -4.1, -3.9, -1.2, 0.1, 1.0, 1.9, 2.1, 4.4, 5.9, 6.1, 1e4]
    tokens = [(f" t{i}", x) for i, x in enumerate(values)]
    with asked(opened, lambda _: answer(tokens)) as (one, _):
        looks = one.page.evaluate(
            "[...document.querySelectorAll('article:first-child .text span')].map(span => {"
            "const look = getComputedStyle(span);"
            "return [span.title, look.backgroundColor, look.borderBottomStyle] })"
        )
        background: dict[int, str] = {}
        for (title, colour, line), x in zip(looks, values, strict=True):
            at = level(x)
            assert title.endswith(f"{x:.2f}".replace("-", "−"))
            assert background.setdefault(at, colour) == colour
            assert line == ("none" if at == 0 else "dotted" if at < 0 else "solid")
        assert len(set(background.values())) == 7
        legend = [box.text_content() for box in one.page.locator("#scale-levels li").all()]
        assert legend == [
            "below −4.00",
            "−3.00 harmless mean",
            "−1.00",
            "1.00",
            "3.00",
            "5.00 harmful mean",
            "above 6.00",
        ]
        one.answer().locator("summary", has_text="every token").click()
        rows = one.rows(n=len(values))
        assert rows[0].inner_text().split("\t") == ["␣t0", "−50.00"]


def test_without_means_the_middle_is_zero_and_without_a_direction_nothing_is_asked(
    opened: Open,
) -> None:
    blind = {**INFO["direction"], "mean_harmful": None, "mean_harmless": None}
    with asked(opened, info={**INFO, "direction": blind}) as (one, _):
        legend = [box.text_content() for box in one.page.locator("#scale-levels li").all()]
        assert legend[3:] == ["0.00", "2.00", "4.00", "above 5.00"]
    plain = {**INFO, "direction": None, "monitor": None, "conditions": INFO["conditions"][:1]}
    with asked(opened, info=plain) as (one, server):
        assert not one.page.locator("#scale").is_visible()
        (body,) = server.bodies
        assert body["refusal"] == {"monitor": False, "verdict": True, "projection": False}


def test_tokens_that_are_told_before_their_character_is_whole_share_a_span(opened: Open) -> None:
    events = answer([("a", 5.0)])
    halves = [["\ufffd", 2.0], ["\ufffd", 8.0]]
    for projections, text in ((halves[:1], ""), (halves[1:], "é")):
        choice = {"index": 0, "delta": {"content": text}, "finish_reason": None}
        events.insert(-2, {"choices": [choice], "refusal": {"projections": projections}})
    with asked(opened, lambda _: events) as (one, _):
        assert one.text() == "aé"
        spans = one.answer().locator(".text span").all()
        assert [span.get_attribute("class") for span in spans] == ["more-2", "more-2"]
        assert spans[1].get_attribute("title").count("\n") == 1


def test_what_cannot_be_seen_is_shown_as_everywhere_else(opened: Open) -> None:
    nasty = "a\x1b[2J b\u202ec\u2066 d\u200be\ue000 f\u2028g\x7f\x85 <b>h</b> \u0633\u200c\u0639 👩\u200d💻 \t\r\n."
    with asked(opened, lambda _: answer([(nasty, 1.0)])) as (one, _):
        assert one.text() == sanitised(nasty)
        assert one.answer().locator("b").count() == 0
        assert one.complaints == []


def test_the_monitor_stands_against_its_threshold(opened: Open) -> None:
    def reply(body: dict[str, Any]) -> list[dict[str, Any]]:
        score = {"tiny": 1.25, "tiny:ablation": -1.75, "tiny:addition": 99.0}[body["model"]]
        events = answer(TOKENS)
        events[0]["refusal"]["monitor"] = {
            "score": score,
            "threshold": 1.25,
            "fires": score >= 1.25,
        }
        del events[-2]["refusal"]["monitor"]
        return events

    with asked(opened, reply) as (one, _):
        words = [one.answer(i).locator(".monitor p").text_content() for i in range(3)]
        assert words == [
            "Monitor fires: score 1.25, threshold 1.25",
            "Monitor is silent: score −1.75, threshold 1.25",
            "Monitor fires: score 99.00, threshold 1.25",
        ]
        one.page.locator("article .score").nth(2).scroll_into_view_if_needed()
        places = one.page.evaluate(
            "[...document.querySelectorAll('.gauge')].map(g => { const b = g.getBoundingClientRect(),"
            "s = g.querySelector('.score').getBoundingClientRect();"
            "return ((s.left + s.right) / 2 - b.left) / b.width })"
        )
        assert places == pytest.approx([0.5, 0.25, 1.0], abs=0.02)


def test_what_is_written_without_refusal_stays_hidden_until_one_click_a_prompt(
    opened: Open,
) -> None:
    with asked(opened) as (one, _):
        one.expect_shown(True, False, True)
        assert "takes refusal out" in one.answer(1).locator(".veil").inner_text()
        assert TOKENS[-1][0] in one.text(1)  # it was written, and is not read out
        one.choose("ablation", "ablation", "baseline")
        one.ask()
        one.wait()
        one.expect_shown(False, False, True)
        one.answer(0).locator(".veil button").click()
        one.expect_shown(True, True, True)
        expect(one.answer(0).locator(".text")).to_be_focused()
        one.ask()
        one.wait()
        one.expect_shown(True, True, True)  # the same prompt, asked once more
        one.ask(PROMPT + " Quickly.")
        one.wait()
        one.expect_shown(False, False, True)


def test_a_condition_of_which_nothing_is_known_is_hidden(opened: Open) -> None:
    unknown = [{k: v for k, v in one.items() if k != "stops"} for one in INFO["conditions"]]
    with asked(opened, info={**INFO, "conditions": unknown}) as (one, _):
        one.expect_shown(True, False, False)


def test_stop_ends_the_answers_and_the_server_is_told(opened: Open) -> None:
    with peer(Peer(lambda _: answer(TOKENS * 400), pause=0.02)) as server:
        one = opened(server.url)
        one.page.wait_for_selector("#ask", state="visible")
        one.ask()
        expect(one.answer().locator(".text span").nth(20)).to_be_visible()
        one.page.click("#run", force=True)  # nothing: the answers are not done
        one.page.click("#stop")
        one.wait()
        until(lambda: len(server.gone) == 3)  # long before the last event
        assert one.answer().locator(".state").text_content().startswith("stopped after ")
        assert not one.answer().locator(".error").is_visible()
        assert one.complaints == []
        server.pause, server.reply = 0.0, same
        one.ask(None)
        one.wait()
        assert "done, 5 tokens" in one.answer().locator(".state").text_content()
        assert len(server.bodies) == 6


def test_a_result_is_copied_as_json(opened: Open) -> None:
    grant = {"permissions": ["clipboard-read", "clipboard-write"]}
    with asked(opened, how=grant) as (one, server):
        one.answer(1).locator(".copy button").click()
        expect(one.page.locator("#status")).to_have_text("Copied as JSON.")
        copied = json.loads(one.page.evaluate("navigator.clipboard.readText()"))
        assert set(copied.pop("refusal")) == {"condition", "monitor", "verdict", "projections"}
        assert copied.pop("seconds") > 0
        assert copied.pop("time").endswith("Z")
        request = next(body for body in server.bodies if body["model"] == "tiny:ablation")
        usage = {"prompt_tokens": 9, "completion_tokens": 5, "total_tokens": 14}
        assert copied == {
            "request": request,
            "answer": TEXT,
            "finish_reason": "stop",
            "usage": usage,
            "stopped": False,
            "error": None,
        }
        one.page.click("#copy-all")
        expect(one.page.locator("#copy-all")).to_have_text("Copied")
        every = json.loads(one.page.evaluate("navigator.clipboard.readText()"))
        assert [found["request"]["model"] for found in every] == [
            "tiny",
            "tiny:ablation",
            "tiny:addition",
        ]
        assert every[0]["refusal"]["projections"] == [list(pair) for pair in TOKENS]


def test_where_the_clipboard_is_closed_the_json_is_in_a_box(opened: Open) -> None:
    """As on any page that is neither on loopback nor https: there is no clipboard there."""
    with peer(Peer(same)) as server:
        one = opened(server.url.replace("127.0.0.1", ANY_NAME))
        one.page.wait_for_selector("#ask", state="visible")
        one.ask()
        one.wait()
        assert one.page.evaluate("navigator.clipboard === undefined")
        for _ in range(2):  # a second click makes no second box
            one.answer().locator(".copy button").click()
            box = one.answer().locator("textarea")
            box.wait_for()
        assert json.loads(box.input_value())["answer"] == TEXT
        chosen = one.page.evaluate(
            "(() => { const b = document.activeElement; return b.selectionEnd - b.selectionStart })()"
        )
        assert chosen == len(box.input_value())


# What the server says, and what a reader of the page is told.
ERRORS: list[tuple[Any, str]] = [
    ((400, error("The prompt has 3,011 tokens.")), "The prompt has 3,011 tokens."),
    ((413, error("At most 9 bytes.")), "That is too long for this server. At most 9 bytes."),
    (
        (429, error("Wait 5 s.")),
        "The server has too much to do just now; try again in a moment. Wait 5 s.",
    ),
    ((500, {"detail": "?"}), "The server answered with status 500 and no word why."),
    ([*answer(TOKENS)[:3], error("It ran out of memory.")], "It ran out of memory."),
]


def test_an_error_is_said_in_plain_words(opened: Open) -> None:
    with asked(opened) as (one, server):
        for reply, words in ERRORS:
            server.reply = lambda _, reply=reply: reply
            one.ask(None)
            one.wait()
            for i in range(3):
                assert one.answer(i).locator(".error").text_content() == words
                assert one.answer(i).locator(".error").get_attribute("role") == "alert"
            written = isinstance(reply, list)
            assert one.answer(1).locator(".veil").is_visible() == written  # nothing to be hidden
            assert one.text() == ("Hello there" if written else "")


def test_a_stream_that_breaks_off_is_said_and_what_was_written_stays(opened: Open) -> None:
    with asked(opened, breaks=True) as (one, _):
        said = one.answer().locator(".error").text_content()
        assert said == "The connection ended before the answer did."
        assert one.text() == TEXT
        assert one.answer().locator(".state").text_content().startswith("broken off after 5 tokens")


def test_a_server_that_is_gone_is_said(opened: Open) -> None:
    with asked(opened) as (one, _):
        pass
    one.ask(None)
    one.wait()
    assert "cannot be reached" in one.answer().locator(".error").text_content()


def test_a_key_is_asked_for_used_and_kept_nowhere(opened: Open) -> None:
    with peer(Peer(same, key="secret")) as server:
        one = opened(server.url)
        one.page.wait_for_selector("#connect", state="visible")
        assert not one.page.locator("#ask").is_visible()
        one.page.get_by_label("API key").fill("wrong")
        with one.page.expect_response("**/refusal/info"):
            one.page.keyboard.press("Enter")
        expect(one.page.locator("#model")).to_have_text("Not connected")
        one.page.fill("#key", "secret")
        one.page.keyboard.press("Enter")
        one.page.wait_for_selector("#ask", state="visible")
        expect(one.page.locator("#prompt")).to_be_focused()
        one.ask()
        one.wait()
        assert one.text() == TEXT
        kept = one.page.evaluate("[localStorage.length, sessionStorage.length, document.cookie]")
        assert kept == [0, 0, ""]
        assert "secret" not in one.page.url
        server.key = "another"
        one.page.click("#run")
        one.page.wait_for_selector("#connect", state="visible")
        one.page.reload()
        one.page.wait_for_selector("#connect", state="visible")
        assert one.page.locator("#key").input_value() == ""


def test_the_keyboard_is_enough_and_says_where_it_is(opened: Open) -> None:
    with peer(Peer(same)) as server:
        one = opened(server.url)
        one.page.wait_for_selector("#ask", state="visible")
        one.page.keyboard.press("Tab")
        one.page.keyboard.press("Enter")  # the skip link
        expect(one.page.locator("#prompt")).to_be_focused()
        one.page.keyboard.type(PROMPT)
        one.page.keyboard.press("Control+Enter")
        one.wait()
        assert len(server.bodies) == 3
        passed = []
        for _ in range(16):
            one.page.keyboard.press("Tab")
            passed.append(
                one.page.evaluate(
                    "(() => { const e = document.activeElement, s = getComputedStyle(e);"
                    "return [e.id || e.type || e.tagName, s.outlineStyle !== 'none'] })()"
                )
            )
        names = [name for name, _ in passed]
        assert [name for name, outlined in passed if not outlined] == []
        order = ["SUMMARY", "select-one", "range", "run", "stop", "most", "copy-all", "button"]
        assert [names.index(name) for name in order] == sorted(names.index(name) for name in order)


def test_a_screen_reader_hears_the_beginning_and_the_end_and_no_token(opened: Open) -> None:
    with peer(Peer(lambda _: answer(TOKENS * 10), pause=0.01)) as server:
        one = opened(server.url)
        one.page.wait_for_selector("#ask", state="visible")
        one.page.evaluate(
            "window.heard = []; new MutationObserver(() => heard.push(document.querySelector('#status')"
            ".textContent)).observe(document.querySelector('#status'), {childList: true})"
        )
        one.ask()
        one.wait()
        assert one.page.evaluate("heard") == [
            "Writing 3 answers …",
            "baseline: done, 50 tokens, no refusal; ablation: done, 50 tokens, no refusal; "
            "addition: done, 50 tokens, no refusal.",
        ]
        live = "[aria-live], [role=status], [role=alert], [role=log]"
        assert one.page.evaluate(f"document.querySelector('.text').closest('{live}')") is None


LONG_TOKENS = [("x" * 300, 3.0), (" Donaudampfschifffahrtselektrizität" * 3, -3.0)]


def test_a_narrow_page_does_not_scroll_sideways(opened: Open) -> None:
    far = "-".join(["a-model-with-a-very-long-name"] * 4)
    with asked(
        opened, lambda _: answer(LONG_TOKENS), {"width": 400}, info={**INFO, "model": far}
    ) as (one, server):  # fmt: skip
        assert browser.width(one.page) <= 400
        one.answer(1).locator(".veil button").click()
        for i, summary in enumerate(one.page.locator("details.numbers summary").all()):
            summary.click()
            one.rows(i, len(LONG_TOKENS))
        assert browser.width(one.page) <= 400
        tops = [one.answer(i).bounding_box()["x"] for i in range(3)]
        assert len(set(tops)) == 1  # one under another
        server.reply = lambda _: (400, error("y" * 500))
        one.ask(None)
        one.wait()
        expect(one.answer().locator(".error")).to_be_visible()
        assert browser.width(one.page) <= 400


def test_a_wide_page_has_the_answers_side_by_side(opened: Open) -> None:
    with asked(opened, how={"width": 1400}) as (one, _):
        tops = [one.answer(i).bounding_box()["y"] for i in range(3)]
        assert len(set(tops)) == 1


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_serious(opened: Open, scheme: str) -> None:
    values = [("token ", float(x)) for x in range(-6, 9)]
    with asked(opened, lambda _: answer(values), {"color_scheme": scheme}) as (one, server):
        one.page.evaluate("for (const one of document.querySelectorAll('details')) one.open = true")
        for i in range(3):
            one.rows(i, len(values))
        assert browser.seriously_wrong(one.page) == []  # an answer is hidden, two are coloured
        server.key = "secret"
        one.ask(None)
        one.wait()
        one.page.wait_for_selector("#connect", state="visible")
        assert browser.seriously_wrong(one.page) == []


def test_nothing_moves_for_those_who_want_no_motion(opened: Open) -> None:
    look = "getComputedStyle(document.querySelector('.state'), '::before').animationName"
    for wanted, name in (("no-preference", "pulse"), ("reduce", "none")):
        with peer(Peer(lambda _: answer(TOKENS * 20), pause=0.1)) as server:
            one = opened(server.url, reduced_motion=wanted)
            one.page.wait_for_selector("#ask", state="visible")
            one.ask()
            one.page.wait_for_selector("article[aria-busy=true]")
            assert one.page.evaluate(look) == name
            one.page.click("#stop")
            one.wait()


def test_the_files_name_no_other_host_and_hold_no_script_or_style_of_their_own() -> None:
    folder = resources.files("refusal.engines.serve") / "page"
    files = {file.name: file.read_text(encoding="utf-8") for file in folder.iterdir()}
    assert set(files) == {"index.html", "page.css", "page.js", "server.js", "words.js"}
    assert not any("//" in text.replace("// ", "") for text in files.values())
    assert "@import" not in files["page.css"]
    assert "@font-face" not in files["page.css"]
    assert " style=" not in files["index.html"]
    assert not any("innerHTML" in text for text in files.values())
    assert set(page_peer.TYPES) == {name.rpartition(".")[2] for name in files}


# --- the server itself


@pytest.fixture(scope="module")
def here() -> Iterator[Running]:
    with running(tiny_models.chat_model(), direction(), most_tokens=400) as found:
        yield found


def test_the_server_and_the_page_agree(opened: Open, here: Running) -> None:
    """What is on the page is what the server says without streaming, in every column."""
    one = opened(here.url)
    one.page.wait_for_selector("#ask", state="visible")
    assert "layer 2, position −1, norm 4.00" in one.page.locator("#facts").text_content()
    offered = one.page.locator("select").first.locator("option").all_text_contents()
    assert offered == [found["condition"] for found in here.get("/refusal/info")[1]["conditions"]]
    one.page.locator("input[type=range]").nth(2).fill("1.5")
    one.page.fill("#most", "20")
    one.ask()
    one.wait()
    models = ("tiny", "tiny:ablation", "tiny:addition@1.5")
    wanted = {"monitor": False, "verdict": True, "projection": True}
    for i, model in enumerate(models):
        body = asking(PROMPT, model, max_tokens=20, temperature=0, refusal=wanted)
        status, whole, _ = here.post(body)
        assert status == 200
        assert one.text(i) == sanitised(whole["choices"][0]["message"]["content"])
        assert "after 20 tokens" in one.answer(i).locator(".state").text_content()
        summary = one.answer(i).locator("details.numbers summary")
        if i == 1:
            one.expect_shown(True, False, True)
            one.answer(1).locator(".veil button").click()
        summary.click()
        rows = [row.locator("td.number").text_content() for row in one.rows(i, 20)]
        told = [f"{x:.2f}".replace("-", "−") for _, x in whole["refusal"]["projections"]]
        assert len(rows) == len(told) == 20
        assert [row.replace("−0.00", "0.00") for row in rows] == [
            x.replace("−0.00", "0.00") for x in told
        ]
        assert one.answer(i).locator(".badge").is_visible()
    assert one.complaints == []
    assert all(url.startswith(here.url) for url in one.requests)


def test_the_servers_errors_are_read(opened: Open, here: Running) -> None:
    one = opened(here.url)
    one.page.wait_for_selector("#ask", state="visible")
    one.ask("word " * 600)
    one.wait()
    body = asking("word " * 600, max_tokens=256)
    status, found, _ = here.post(body)
    assert status == 400
    assert one.answer().locator(".error").text_content() == found["error"]["message"]


def test_stop_takes_the_answers_out_of_the_servers_batch(opened: Open, here: Running) -> None:
    one = opened(here.url)
    one.page.wait_for_selector("#ask", state="visible")
    one.page.fill("#most", "400")
    with held(here.model, 60):
        one.ask("Go on.")
        expect(one.answer().locator(".text span").nth(3)).to_be_visible()
        one.page.click("#stop")
        one.wait()
        assert one.answer().locator(".state").text_content().startswith("stopped after ")
        until(lambda: not here.service.answering)
    until(lambda: not here.service.worker.rows)


def test_the_server_takes_the_key_of_the_page(opened: Open) -> None:
    with running(tiny_models.chat_model(), None, key="secret") as locked:
        one = opened(locked.url)
        one.page.wait_for_selector("#connect", state="visible")
        one.page.fill("#key", "secret")
        one.page.keyboard.press("Enter")
        one.page.wait_for_selector("#ask", state="visible")
        one.page.fill("#most", "3")
        one.ask()
        one.wait()
        assert one.page.locator("article").count() == 1  # no direction: the baseline alone
        assert "3 tokens" in one.answer().locator(".state").text_content()
