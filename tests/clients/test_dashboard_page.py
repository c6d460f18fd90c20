"""The dashboard in a headless browser, in front of a stand-in whose reports move."""

import contextlib
import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import uvicorn
from fastapi import FastAPI

pytest.importorskip("playwright")

from dashboard import browser, check
from moving import moved, moving_app
from playwright.sync_api import Error, Page, expect

KEY = "a-key-of-some-length"


@contextlib.contextmanager
def served(app: FastAPI, port: int = 0) -> Iterator[str]:
    """Serve an app on a port, or a free one; yield its address."""
    with socket.create_server(("127.0.0.1", port)) as listening:
        config = uvicorn.Config(app, ws="none", log_level="error", timeout_graceful_shutdown=1)
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        finally:
            app.state.backend.state = "stopping"  # ends the events
            server.should_exit = True
            thread.join()


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    with contextlib.ExitStack() as stack:
        try:
            found = stack.enter_context(browser())
        except Error as error:
            pytest.skip(f"no browser: {error.message.splitlines()[0]}")
        yield found


@pytest.fixture
def page(chromium: Any) -> Iterator[Page]:
    opened = chromium.new_page(viewport={"width": 390, "height": 844})
    opened.set_default_timeout(15_000)
    yield opened
    opened.close()


def state_of(page: Page) -> Any:
    return page.locator("#state")


def test_the_page_agrees_with_metrics(chromium: Any) -> None:
    with served(moving_app(moved())) as address:
        check(chromium, address)


def test_the_page_asks_for_a_key_and_keeps_it_for_the_tab(chromium: Any, page: Page) -> None:
    with served(moving_app(moved(10.0), api_keys=(KEY,))) as address:
        page.goto(address)
        expect(page.locator("#ask-key")).to_be_visible()
        expect(page.locator("#board")).to_be_hidden()
        page.keyboard.type("not-the-right-key")
        page.keyboard.press("Enter")
        expect(page.locator("#wrong-key")).to_have_text("That is not the key.")
        page.keyboard.type(KEY)
        page.keyboard.press("Enter")
        expect(state_of(page)).to_have_text("Ready")
        page.reload()
        expect(state_of(page)).to_have_text("Ready")
        assert KEY not in page.url
        check(chromium, address, key=KEY, sizes=("phone",))


def test_the_page_says_when_the_connection_is_lost_and_comes_back(page: Page) -> None:
    with served(moving_app(moved(10.0))) as address:
        page.goto(address)
        expect(state_of(page)).to_have_text("Ready")
    expect(page.locator("#lost")).to_be_visible()
    expect(state_of(page)).to_have_text("Not connected")
    with served(moving_app(moved(10.0)), int(address.rpartition(":")[2])):
        expect(state_of(page)).to_have_text("Ready")
        expect(page.locator("#lost")).to_be_hidden()


def test_the_page_says_that_a_model_is_being_loaded(page: Page) -> None:
    backend = moved(10.0)
    card, report = backend.card, backend.snapshot
    backend.card, backend.snapshot, backend.state = None, None, "loading"
    app = moving_app(backend, reporting=False)
    with served(app) as address:
        page.goto(address)
        expect(state_of(page)).to_have_text("Loading")
        expect(page.locator("h1")).to_have_text("The model is being loaded")
        backend.card, backend.snapshot, backend.state = card, report, "ready"
        expect(state_of(page)).to_have_text("Ready")
        expect(page.locator("h1")).to_have_text("mlx-community/Qwen3-30B-A3B-4bit")


def test_a_name_of_a_model_is_text_and_no_markup(page: Page) -> None:
    import msgspec

    backend = moved(10.0)
    name = "<img src=x onerror=alert(1)>"
    assert backend.card is not None
    backend.card = msgspec.structs.replace(backend.card, name=name)
    with served(moving_app(backend)) as address:
        page.goto(address)
        expect(page.locator("h1")).to_have_text(name)
        assert page.locator("h1 img").count() == 0
