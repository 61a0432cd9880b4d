"""What a reader may change is what the operator allows."""

import json

from tests.browser.conftest import send, texts
from tests.server.process import ServerProcess


def asked(page, prompt: str) -> dict:
    """The body of the guarded answer's request."""
    with page.expect_request("**/v1/chat/completions") as caught:
        send(page, prompt)
    return json.loads(caught.value.post_data)


def test_settings_reach_the_guard(page):
    page.fill("#set-interval", "10")
    page.fill("#set-threshold", "0.2")
    page.select_option("#set-policy", "patient")
    page.select_option("#set-release", "eager")
    page.fill("#set-max_tokens", "30")
    page.fill("#set-temperature", "0.5")
    body = asked(page, "say: " + "calm words " * 10)
    wanted = {"interval": 10, "threshold": 0.2, "policy": "patient", "checks": True, "release": "eager"}
    assert body["anydepth"] == wanted
    assert body["max_tokens"] == 30 and body["temperature"] == 0.5
    facts = texts(page, "#guarded .facts dd")
    assert "2 of the last 3 scores ≥ 0.20" in facts and "30 tokens" in facts
    assert page.locator("#legend-early").is_visible()


def test_eager_shows_what_left_before_its_check(page):
    page.select_option("#set-release", "eager")
    send(page, "say: A calm beginning of thirty letters, then comes the harm and goes on")
    assert "harm" in "".join(texts(page, "#guarded .tok.early"))
    assert "eager release had sent all of it" in page.locator("#guarded .stopline").text_content()


def test_monitor_needs_no_comparison(page):
    page.select_option("#set-release", "monitor")
    send(page, "say: the harm")
    assert page.locator("#guarded h2").text_content() == "Watched"
    assert page.locator("#guarded .badge").text_content() == "Would be blocked at depth 8"
    assert page.locator("#unguarded").is_hidden()
    assert "nothing to compare" in page.locator("#alone").text_content()


def test_a_value_out_of_bounds_is_not_sent(page):
    page.fill("#set-interval", "500")
    page.fill("#prompt", "say: hello")
    page.click("#send")
    assert page.locator("#set-interval").get_attribute("aria-invalid") == "true"
    assert page.evaluate("document.activeElement.id") == "set-interval"
    assert page.locator("#answers").is_hidden()


def test_without_the_comparison(page):
    page.uncheck("#set-compare")
    send(page, "say: the harm")
    assert page.locator("#unguarded").is_hidden() and page.locator("#alone").is_hidden()


def test_an_operator_who_allows_nothing(open_page, closed):
    page = open_page(closed)
    assert page.locator("#settings-form select, #set-interval, #set-threshold, #set-compare").count() == 0
    body = asked(page, "say: A calm beginning of thirty letters, then comes the harm and goes on")
    assert body["anydepth"] == {}
    assert page.locator("#guarded .badge").text_content() == "Blocked at depth 67"
    assert page.locator("#guarded .refusal").is_visible() and page.locator("#unguarded").is_hidden()
    assert 'release = ["monitor"]' in page.locator("#alone").text_content()
    assert page.locator("#guarded svg").is_hidden()
    assert "checks = true" in page.locator("#guarded .hint").text_content()


def test_an_operator_who_switches_the_comparison_off(open_page):
    off = {"overrides": {"release": ["monitor"]}, "console": {"compare": False}}
    with ServerProcess.scripted(off) as server:
        page = open_page(server)
        send(page, "say: hello")
        assert page.locator("#alone").text_content() == "The operator has switched the comparison off."
