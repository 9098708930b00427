"""examples/live_feed, in a browser: several processes serve its pages, and are killed while messages go on."""

from __future__ import annotations

import multiprocessing
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from multiprocessing.sharedctypes import Synchronized
from multiprocessing.synchronize import Event
from pathlib import Path

import pytest
from eric_sse.message import Message
from playwright.sync_api import Browser, Locator, Page, expect, sync_playwright
from sqlalchemy import URL, make_url, text

from eric_sse_sql import Database
from eric_sse_sql.contract import ERIC_SSE_2_0
from support.processes import repository
from support.waiting import until

EXAMPLE = Path(__file__).parent.parent.parent / "examples" / "live_feed"
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
QUIET = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
)
PATIENCE = 30.0  # seconds until a wait fails
PAUSE = 0.03  # seconds between two numbered messages
REPLAYED = re.compile(r"replayed (\d+) messages?\.$")

pytestmark = [
    pytest.mark.skipif(ERIC_SSE_2_0, reason="the live page is built on the repositories of eric-sse 2.1"),
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here: the live page is not tested"),
]


class Server:
    """A place on the network where a worker serves the example, now and then."""

    def __init__(self, url: URL) -> None:
        self._environment = {**os.environ, "ERIC_SSE_SQL_URL": url.render_as_string(hide_password=False)}
        self._place = socket.socket()  # never listens: it keeps the port for the next worker while there is none
        self._place.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._place.bind(("127.0.0.1", 0))
        self.port = self._place.getsockname()[1]
        self._worker: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Start a worker. It may take a moment until it answers."""
        command = [sys.executable, "-m", "uvicorn", "app:app", "--port", str(self.port), "--log-level", "warning"]
        self._worker = subprocess.Popen(command, cwd=EXAMPLE, env=self._environment)

    def answers(self) -> bool:
        assert self._worker is not None
        assert self._worker.poll() is None, "the worker has ended"
        with socket.socket() as caller:
            return caller.connect_ex(("127.0.0.1", self.port)) == 0

    def kill(self) -> None:
        """SIGKILL."""
        if self._worker is not None:
            self._worker.kill()
            self._worker.wait(PATIENCE)

    def close(self) -> None:
        self.kill()
        self._place.close()


def broadcast(url: str, sent: Synchronized[int], is_over: Event) -> None:
    """The work of a process: broadcast one number after the other, and tell how far it is."""
    with Database(url) as database:
        channel = repository(database, of_21=True).load_one("live")
        while not is_over.wait(PAUSE):
            channel.broadcast(Message("message", {"text": f"number {sent.value + 1}", "sent": time.time()}))
            sent.value += 1


@contextmanager
def broadcasting(url: URL) -> Iterator[tuple[Synchronized[int], Event]]:
    """Numbers are broadcast by another process until the event is set. The last one sent is the value."""
    context = multiprocessing.get_context("spawn")
    sent, is_over = context.Value("i", 0), context.Event()
    process = context.Process(target=broadcast, args=(url.render_as_string(hide_password=False), sent, is_over))
    process.start()
    try:
        yield sent, is_over
        process.join(PATIENCE)
        assert process.exitcode == 0
    finally:
        process.kill()
        process.join(PATIENCE)
        process.close()


@pytest.fixture
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=CHROMIUM, args=QUIET.split())
        yield launched
        launched.close()


@pytest.fixture
def servers(shared_url: URL) -> Iterator[list[Server]]:
    """Two servers on one database."""
    with serving(shared_url, 2) as started:
        yield started


@contextmanager
def serving(url: URL, count: int) -> Iterator[list[Server]]:
    with ExitStack() as closed:
        started = [closed.enter_context(closing(Server(url))) for _ in range(count)]
        for server in started:
            server.start()
        for server in started:
            until(server.answers, PATIENCE)
        yield started


def opened(browser: Browser, server: Server) -> Page:
    """A page in a window of its own, as soon as it is live."""
    page = browser.new_context().new_page()
    page.set_default_timeout(PATIENCE * 1_000)
    page.goto(server.address)
    shows(page, "Connection", "live")
    return page


def shows(page: Page, label: str, expected: str | re.Pattern[str]) -> None:
    """Wait until a page shows something at the place of a label."""
    expect(page.get_by_label(label, exact=True)).to_have_text(expected, timeout=PATIENCE * 1_000)


def entries(page: Page) -> Locator:
    return page.get_by_role("log").get_by_role("listitem")


def shows_message(page: Page, expected: str) -> None:
    """Wait until a page shows a message."""
    shown = entries(page).get_by_text(expected, exact=True)
    expect(shown).to_be_visible(timeout=PATIENCE * 1_000)  # which takes it to be there once


def type_message(page: Page, typed: str) -> None:
    page.get_by_label("Message", exact=True).fill(typed)
    page.get_by_role("button", name="Send").click()


def texts(page: Page) -> list[str]:
    """The texts of all entries of a page, from top to bottom."""
    return entries(page).locator(".text").all_text_contents()


def count_replayed(page: Page) -> int:
    """How many messages a page says that were replayed."""
    shows(page, "Replay", REPLAYED)
    match = REPLAYED.search(page.get_by_label("Replay").inner_text())
    assert match is not None
    return int(match[1])


def test_pages_show_every_message_once_and_in_order_though_all_workers_are_killed(
    shared_url: URL, servers: list[Server], browser: Browser
) -> None:
    pages = [opened(browser, server) for server in servers]
    failures: list[object] = []
    for page in pages:
        page.on("pageerror", lambda error: failures.append(error))
    markup = "<img src=x onerror=alert(1)> & ümläut"
    type_message(pages[0], markup)
    for page in pages:
        shows_message(page, markup)
        expect(page.get_by_label("Message", exact=True)).to_have_value("")

    with broadcasting(shared_url) as (sent, is_over):
        for page in pages:
            shows_message(page, "number 5")
        pages[1].reload()
        shows_message(pages[1], f"number {sent.value + 5}")
        for server in servers:
            server.kill()
        before = sent.value
        for page in pages:
            shows(page, "Connection", "reconnecting")
        type_message(pages[1], "to no listener")
        shows(pages[1], "Sending", "Not sent: the server can't be reached.")
        until(lambda: sent.value >= before + 30, PATIENCE)
        missed = sent.value - before - 1  # at least: the first one may have been on its way
        for server in servers:
            server.start()
        for page in pages:
            shows(page, "Connection", "live")
        type_message(pages[1], "all is well")
        for page in pages:
            shows_message(page, "all is well")
        until(lambda: sent.value >= before + missed + 20, PATIENCE)
        is_over.set()

    numbers = [f"number {number + 1}" for number in range(sent.value)]
    for page in pages:
        shows_message(page, numbers[-1])
        shown = texts(page)
        assert [each for each in shown if each.startswith("number")] == numbers
        assert [each for each in shown if not each.startswith("number")] == [markup, "all is well"]
        replayed = count_replayed(page)
        assert missed <= replayed < len(numbers)
    assert failures == []


def test_a_page_says_that_messages_are_missing_when_they_have_expired(tmp_path: Path, browser: Browser) -> None:
    url = make_url(f"sqlite:///{tmp_path / 'live.db'}")
    with serving(url, 1) as (server,), Database(url) as database:
        page = opened(browser, server)
        type_message(page, "before")
        shows_message(page, "before")
        server.kill()
        shows(page, "Connection", "reconnecting")
        with database.engine.begin() as connection:  # as if more had been delivered, and been deleted after its time
            connection.execute(text("UPDATE sse_delivery_positions SET last_position = last_position + 3"))
        server.start()
        shows(page, "Connection", "live")
        type_message(page, "after")
        shows_message(page, "after")
        gap = "Some messages are missing here: they are no longer kept."
        assert texts(page) == ["before", gap, "after"]
        page.reload()
        shows(page, "Connection", "live")
        assert texts(page) == ["before", gap, "after"]
        shows(page, "Replay", "Connected again: nothing was missed.")
