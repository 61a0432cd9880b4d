"""Asking: the answers, what the guard did with them, and where they halted."""

import re

import pytest

from tests.browser.conftest import send, texts
from tests.server.conftest import OPEN
from tests.server.process import ServerProcess

REFUSAL = "I can't help with that."
HARMFUL = "say: A calm beginning of thirty letters, then comes the harm, and it goes on beyond the next check of it"
GUARDED, UNGUARDED = "#guarded .words", "#unguarded .words"


def test_an_answer_that_passes(page):
    send(page, "say: all is well")
    for card in ("#guarded", "#unguarded"):
        assert page.locator(f"{card} .badge").text_content() == "Passed"
        assert "".join(texts(page, f"{card} .tok.released")) == "all is well"
    assert page.locator("#asked-text").text_content() == "say: all is well"
    assert page.locator(GUARDED).get_attribute("aria-busy") == "false"
    assert page.locator("#announcer").text_content() == "Guarded answer: Passed."


def test_a_blocked_answer_beside_the_unguarded_one(page):
    send(page, HARMFUL)
    badge = page.locator("#guarded .badge").text_content()
    depth = int(badge.removeprefix("Blocked at depth "))
    released = "".join(texts(page, "#guarded .tok.released"))
    written = HARMFUL.removeprefix("say: ")
    assert released and written.startswith(released) and "harm" not in page.locator(GUARDED).text_content()
    assert f"{depth - len(released)} tokens withheld" in page.locator("#guarded .tok.withheld").text_content()
    assert page.locator("#guarded .refusal").text_content() == f"Said instead{REFUSAL}"
    assert f"at depth {depth}" in page.locator("#guarded .stopline").text_content()
    # The other one goes on, and shows from where the guard would have withheld it.
    assert page.locator("#unguarded .badge").text_content() == f"Would be blocked at depth {depth}"
    assert "".join(texts(page, "#unguarded .tok.released")) == released
    assert released + "".join(texts(page, "#unguarded .tok.withheld")) == written
    assert page.locator("#unguarded .refusal").count() == 0


def test_a_prompt_that_is_refused_at_once(page):
    send(page, "harm: a question")
    assert page.locator("#guarded .badge").text_content() == "Blocked at depth 0"
    assert "before its first token" in page.locator("#guarded .stopline").text_content()
    assert page.locator("#guarded .tok").count() == 0


def test_a_forced_opening(page):
    send(page, "say: and so on.", prefill="Sure, here is: ")
    assert texts(page, "#guarded .tok.opening") == ["Sure, here is: "]
    assert page.locator(GUARDED).text_content() == "Sure, here is: and so on."
    assert "check at depth 15" in page.locator("#guarded .tok.opening").get_attribute("title")
    assert page.locator("#guarded .opening-area").count() == 1
    send(page, "say: and so on.", prefill="Sure, here is the harm: ")
    assert page.locator("#guarded .badge").text_content() == "Blocked at depth 24"


def test_the_timeline_tells_each_check(page):
    send(page, HARMFUL)
    dots = page.locator("#guarded .check")
    labels = [dots.nth(i).get_attribute("aria-label") for i in range(dots.count())]
    assert labels[0] == "Depth 0: score 0.010, statistic 0.010, below the threshold 0.50."
    assert re.fullmatch(r"Depth \d+: score 0.990, statistic 0.990, reaches the threshold 0.50.", labels[-1])
    assert page.locator("#guarded .limit").count() == 1
    assert page.locator("#guarded .dot.over").count() == 1
    box = page.locator("#guarded svg").bounding_box()
    page.mouse.move(box["x"] + 45, box["y"] + 60)
    assert page.locator("#guarded figcaption").text_content().startswith("Depth ")
    page.locator("#guarded summary").click()
    assert len(texts(page, "#guarded tbody tr")) == len(labels)


def test_a_stream_is_shown_while_it_comes_and_can_be_stopped(page):
    page.fill("#prompt", "slow: " + "a long calm answer " * 40)
    page.click("#send")
    page.wait_for_selector("#guarded .tok.released")
    assert page.locator("#guarded .tok.held").text_content() == "held until the next check"
    assert page.locator(GUARDED).get_attribute("aria-busy") == "true"
    assert page.locator("#send").is_disabled()
    page.keyboard.press("Escape")
    page.wait_for_selector("#send:not([disabled])")
    assert texts(page, ".badge")[:2] == ["Stopped by you"] * 2
    assert page.locator("#guarded .tok.held").count() == 0


def test_a_conversation_goes_on_and_begins_anew(page):
    send(page, "say: one")
    send(page, "say: two")
    page.click("#earlier summary")
    assert texts(page, "#earlier li") == ["You: say: oneAnswer: one"]
    page.click("#again")
    assert page.input_value("#prompt") == "say: two"
    page.click("#fresh")
    assert page.locator("#chat-empty").is_visible() and not page.locator("#answers").is_visible()
    send(page, "say: three")
    assert not page.locator("#earlier").is_visible()


@pytest.mark.parametrize(
    ("prompt", "badge", "words"),
    [
        ("break: some longer words", "Failed", "The engine failed (RuntimeError); the answer was stopped."),
        ("blind: some longer words", "Stopped: a check failed", ""),
    ],
)
def test_what_goes_wrong_is_said(page, prompt, badge, words):
    send(page, prompt)
    assert page.locator("#guarded .badge").text_content() == badge
    assert page.locator("#guarded .problem").text_content() == words


def test_an_empty_prompt(page):
    page.click("#send")
    assert page.locator("#chat-error").text_content() == "Type a prompt first."
    assert page.locator("#answers").is_hidden()


def test_a_server_that_is_busy(open_page):
    limits = {"limits": {"live": 1, "queue": 0}, "overrides": {"release": ["monitor"]}}
    with ServerProcess.scripted(limits) as busy:
        page = open_page(busy, expect=("429",))
        send(page, "slow: a calm answer that takes its time and then some more of it")
        badges = texts(page, ".answer .badge")[:2]
        assert sorted(badges) == ["Failed", "Passed"]
        assert "The server is busy. Try again in" in "".join(texts(page, ".answer .problem"))


def test_a_server_that_goes_away(open_page):
    many_windows = {"interval": 2}  # so that the answer takes seconds, and is not over when its server goes
    with ServerProcess.scripted({"limits": {"grace_seconds": 0}, "guard": many_windows}) as going:
        page = open_page(going, expect=("ERR_", "Failed to load"))
        page.fill("#prompt", "slow: " + "a long calm answer " * 40)
        page.click("#send")
        page.wait_for_selector("#guarded .tok.plain")  # not the place-holder, which is there before the server answers
        going.process.kill()
        page.wait_for_selector("#guarded [data-kind=failed]")
        assert "The connection ended before the answer did" in page.locator("#guarded .problem").text_content()
        page.wait_for_selector("#status[data-state=gone]")
        send(page, "say: hello")
        assert "The server cannot be reached" in page.locator("#guarded .problem").text_content()


def test_a_block_that_is_an_error_is_shown_as_a_block(open_page):
    """With `[blocked] style = "error"`, and nothing of the stream sent: the browser logs the status 400."""
    with ServerProcess.scripted({**OPEN, "blocked": {"style": "error"}}) as server:
        page = open_page(server, expect=("status of 400",))
        send(page, "harm: a question")
        assert page.locator("#guarded .badge").text_content() == "Blocked at depth 0"
        assert page.locator("#guarded .refusal").text_content() == f"Said instead{REFUSAL}"
        assert page.locator("#guarded .problem").text_content() == ""
        assert page.locator("#guarded .tok").count() == 0
