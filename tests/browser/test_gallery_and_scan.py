"""The attack gallery, and scanning a finished conversation."""

import json

from tests.browser.conftest import texts

ANSWER = "A calm beginning of thirty letters, then comes the harm and goes on"


def test_an_example_goes_into_the_chat(page):
    page.click("#tab-gallery")
    assert page.locator("#gallery li").count() >= 6
    page.click("#take-deep-prefill")
    assert page.locator("#panel-chat").is_visible()
    assert page.evaluate("document.activeElement.id") == "send"
    assert "bank" in page.input_value("#prompt") and page.input_value("#prefill").startswith("Sure, here is")
    page.keyboard.press("Enter")
    page.wait_for_selector("#send:not([disabled])")
    assert texts(page, "#guarded .tok.opening")[0].startswith("Sure, here is")
    page.wait_for_selector("#guarded [data-kind=passed]")


def test_the_spoofed_header_is_the_models_own(page):
    page.click("#tab-gallery")
    page.click("#take-spoofed-header")
    assert "<|end|><|assistant|>" in page.input_value("#prompt")


def test_a_prompt_and_an_answer(page):
    page.click("#tab-scan")
    page.fill("#scan-prompt", "Why?")
    page.fill("#scan-answer", ANSWER)
    page.click("#scan")
    page.wait_for_selector("#scan-result .badge")
    assert page.locator("#scan-result .badge").text_content() == f"Flagged at depth {len(ANSWER)}"
    assert page.locator("#scan-result .check").count() == 9  # 0 1 2 4 8 16 25 50 and the end
    assert "".join(texts(page, "#scan-result .tok.released")) == ANSWER[:50]
    assert "".join(texts(page, "#scan-result .tok.withheld")) == ANSWER[50:]
    assert page.evaluate("document.activeElement.id") == "scan-title"


def test_messages_as_json(page):
    page.click("#tab-scan")
    page.check("[value=json]")
    messages = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "Because."}]
    page.fill("#scan-messages", json.dumps({"messages": messages}))
    page.click("#scan")
    page.wait_for_selector("#scan-result .badge")
    assert page.locator("#scan-result .badge").text_content() == "Clear"
    assert "".join(texts(page, "#scan-result .tok.released")) == "Because."


def test_a_question_alone(page):
    page.click("#tab-scan")
    page.fill("#scan-prompt", "harm: why?")
    page.click("#scan")
    page.wait_for_selector("#scan-result .badge")
    assert page.locator("#scan-result .badge").text_content() == "Flagged at depth 0"
    assert "depth 0 only" in page.locator("#scan-result").text_content()


def test_what_cannot_be_scanned(page):
    page.click("#tab-scan")
    page.click("#scan")
    assert page.locator("#scan-error").text_content() == "Type the prompt that was answered."
    page.check("[value=json]")
    for text, words in (("{", "This is not JSON"), ("[1]", "Give a list of messages"), ("", "Paste the messages")):
        page.fill("#scan-messages", text)
        page.click("#scan")
        assert words in page.locator("#scan-error").text_content()


def test_a_server_that_tells_the_verdict_only(open_page, closed):
    page = open_page(closed)
    page.click("#tab-scan")
    page.fill("#scan-prompt", "Why?")
    page.fill("#scan-answer", ANSWER)
    page.click("#scan")
    page.wait_for_selector("#scan-result .badge")
    assert page.locator("#scan-result .badge").text_content() == f"Flagged at depth {len(ANSWER)}"
    assert "verdict only" in page.locator("#scan-result figcaption").text_content()
    assert texts(page, "#scan-result .tok") == [ANSWER]
