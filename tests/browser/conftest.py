"""A headless Chromium on a real server process."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.server.conftest import OPEN
from tests.server.process import ServerProcess

CHROMIUM = next((path for name in ("chromium", "chromium-browser") if (path := shutil.which(name))), None)
ARGUMENTS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--force-color-profile=srgb",
]  # fmt: skip
DESK, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 844}
SHOTS = Path("/tmp/console")

OpenPage = Callable[..., Any]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if item.path.is_relative_to(here):
            item.add_marker(pytest.mark.browser)
            item.add_marker(pytest.mark.slow)
            if CHROMIUM is None:
                item.add_marker(pytest.mark.skip(reason="there is no Chromium; apt-get install chromium"))


@pytest.fixture(scope="package")
def browser() -> Iterator[Any]:
    """Of the package, not of the session: while Playwright is open, no other test can have an event loop."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield running
        running.close()


@pytest.fixture(scope="package")
def server() -> Iterator[ServerProcess]:
    """A server that allows clients everything."""
    with ServerProcess.scripted(OPEN) as running:
        yield running


@pytest.fixture(scope="package")
def closed() -> Iterator[ServerProcess]:
    """A server that allows clients nothing."""
    with ServerProcess.scripted({}) as running:
        yield running


@pytest.fixture
def open_page(browser: Any, server: ServerProcess) -> Iterator[OpenPage]:
    """Opens the console; whatever it logs as an error, and whatever it asks of another site, fails the test."""
    contexts: list[Any] = []
    troubles: list[str] = []

    def open_(
        at: ServerProcess | None = None, *, ready: str | None = "#prompt", expect: tuple[str, ...] = (), **options: Any
    ) -> Any:
        url = (at or server).url
        context = browser.new_context(**{"viewport": DESK, **options})
        context.set_default_timeout(8000)
        contexts.append(context)
        page = context.new_page()

        def complain(text: str) -> None:
            if not any(each in text for each in expect):
                troubles.append(text)

        page.on("console", lambda message: complain(message.text) if message.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: complain(str(error)))
        page.on("request", lambda request: None if request.url.startswith(url) else complain(request.url))
        page.goto(url)
        if ready:
            page.wait_for_selector(ready, state="visible")
        return page

    yield open_
    for context in contexts:
        context.close()
    assert troubles == []


@pytest.fixture
def page(open_page: OpenPage) -> Any:
    return open_page()


def send(page: Any, prompt: str, prefill: str = "") -> None:
    """Ask, and wait until all answers are there."""
    page.fill("#prompt", prompt)
    page.fill("#prefill", prefill)
    page.click("#send")
    page.wait_for_selector("#send:not([disabled])")


def texts(page: Any, selector: str) -> list[str]:
    return page.locator(selector).all_text_contents()


def shoot(page: Any, name: str) -> None:
    """Keep a picture, to be looked at."""
    SHOTS.mkdir(exist_ok=True)
    page.screenshot(path=str(SHOTS / f"{name}.png"), full_page=True)
