"""examples/live_feed, in a browser: several processes serve its pages, and are killed while messages go on."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from datetime import timedelta
from multiprocessing.sharedctypes import Synchronized
from multiprocessing.synchronize import Event
from pathlib import Path

import httpx
import pytest
from eric_sse.message import Message
from playwright.sync_api import Browser, BrowserContext, Locator, Page, expect
from sqlalchemy import URL, make_url, text

from eric_sse_sql import Database
from eric_sse_sql.contract import ERIC_SSE_2_0
from support.browsers import CHROMIUM, chromium
from support.catalog import REPOSITORY, address, connected
from support.processes import fork_server, repository
from support.waiting import until

EXAMPLE = REPOSITORY / "examples" / "live_feed"
PATIENCE = 30.0  # seconds until a wait fails
PAUSE = 0.03  # seconds between two numbered messages
ENDED = "The stream has ended: this browser's listener was deleted. Press Join to go on with a new one."
FORGOTTEN = "The server has forgotten this browser: some messages may be missing."
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
    context = fork_server()
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


@pytest.fixture(scope="module")
def launched() -> Iterator[Browser]:
    with chromium() as launched:
        yield launched


@pytest.fixture
def browser(launched: Browser) -> Iterator[Browser]:
    """A browser without windows, as the visitors of a test have windows of their own, which are closed after it."""
    yield launched
    for context in launched.contexts:
        context.close()


@pytest.fixture
def server(shared_url: URL) -> Iterator[Server]:
    with serving(shared_url, 1) as (started,):
        yield started


@pytest.fixture
def servers(shared_url: URL) -> Iterator[list[Server]]:
    """Two servers on one database."""
    with serving(shared_url, 2) as started:
        yield started


@pytest.fixture
def sqlite_server(tmp_path: Path) -> Iterator[Server]:
    """A server for tests of what a page looks like, which is the same on each database."""
    with serving(make_url(f"sqlite:///{tmp_path / 'live.db'}"), 1) as (started,):
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


def opened(browser: Browser | BrowserContext, server: Server) -> Page:
    """A page of a new visitor, or a tab in the windows of one, as soon as it is live."""
    page = (browser.new_context() if isinstance(browser, Browser) else browser).new_page()
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


def listener_ids(url: URL) -> list[str]:
    """The ids of all listeners that are stored."""
    with Database(url) as database:
        channel = repository(database, of_21=True).load_one("live")
        return [connection.listener.id for connection in channel.get_connections()]


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
        type_message(pages[1], "not sent at once")
        shows(pages[1], "Sending", "Not sent: the server can't be reached.")
        until(lambda: sent.value >= before + 30, PATIENCE)
        missed = sent.value - before - 1  # at least: the first one may have been on its way
        for server in servers:
            server.start()
        for page in pages:
            shows(page, "Connection", "live")
            shows(page, "Sending", "")
        expect(pages[1].get_by_label("Message", exact=True)).to_have_value("not sent at once")
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


def test_a_page_says_that_messages_are_missing_when_they_have_expired_or_cannot_be_read(
    tmp_path: Path, browser: Browser
) -> None:
    url = make_url(f"sqlite:///{tmp_path / 'live.db'}")
    with serving(url, 1) as (server,), Database(url) as database:
        page = opened(browser, server)
        for typed in ("first", "second"):
            type_message(page, typed)
            shows_message(page, typed)
        server.kill()
        shows(page, "Connection", "reconnecting")
        channel = repository(database, of_21=True).load_one("live")
        for number in range(3):
            channel.broadcast(Message("message", {"text": f"expired {number}", "sent": time.time()}))
        with database.engine.begin() as connection:
            connection.execute(text("UPDATE sse_events SET created_at = '2000-01-01 00:00:00'"))
        database.prune(timedelta(days=1))
        server.start()
        shows(page, "Connection", "live")
        type_message(page, "third")
        shows_message(page, "third")
        gap = "Some messages are missing here."
        assert texts(page) == ["first", "second", gap, "third"]
        page.reload()
        shows(page, "Replay", "Connected again: nothing was missed.")
        assert texts(page) == ["first", "second", gap, "third"]

        server.kill()
        shows(page, "Connection", "reconnecting")
        for number in range(2):
            channel.broadcast(Message("message", {"text": f"unreadable {number}", "sent": time.time()}))
        with database.engine.begin() as connection:
            newest = "SELECT position FROM sse_events ORDER BY position DESC LIMIT 2"
            connection.execute(text(f"UPDATE sse_events SET message = x'00' WHERE position IN ({newest})"))
        server.start()
        shows(page, "Connection", "live")
        type_message(page, "fourth")
        shows_message(page, "fourth")
        assert texts(page) == ["first", "second", gap, "third", gap, "fourth"]
        page.reload()
        shows(page, "Replay", "Connected again: nothing was missed.")
        assert texts(page) == ["first", "second", gap, "third", gap, "fourth"]


def test_a_page_goes_on_where_it_was_after_the_database_has_failed(
    shared_url: URL, server: Server, browser: Browser
) -> None:
    page = opened(browser, server)
    type_message(page, "before")
    shows_message(page, "before")
    with Database(shared_url) as database:
        with database.engine.begin() as connection:
            connection.execute(text("ALTER TABLE sse_event_logs RENAME TO sse_event_logs_elsewhere"))
        type_message(page, "after")
        shows(page, "Sending", "Not sent: the database failed; try again later.")
        shows(page, "Connection", "reconnecting")
        with database.engine.begin() as connection:
            connection.execute(text("ALTER TABLE sse_event_logs_elsewhere RENAME TO sse_event_logs"))
    shows(page, "Connection", "live")
    shows(page, "Sending", "")
    page.get_by_role("button", name="Send").click()
    shows_message(page, "after")
    assert texts(page) == ["before", "after"]


def test_seven_tabs_of_a_browser_show_every_message_once_and_in_order_though_the_first_are_closed(
    shared_url: URL, server: Server, browser: Browser
) -> None:
    tabs = [opened(browser, server)]
    while len(tabs) < 7:
        tabs.append(opened(tabs[0].context, server))
    with broadcasting(shared_url) as (sent, is_over):
        for _ in range(2):
            for tab in tabs:
                shows_message(tab, f"number {sent.value + 1}")
            tabs.pop(0).close()  # which has the stream
        type_message(tabs[-1], "to all tabs")
        for tab in tabs:
            shows_message(tab, "to all tabs")
        until(lambda: sent.value > 50, PATIENCE)
        is_over.set()
    numbers = [f"number {number + 1}" for number in range(sent.value)]
    for tab in tabs:
        shows_message(tab, numbers[-1])
        assert [each for each in texts(tab) if each != "to all tabs"] == numbers
    assert len(listener_ids(shared_url)) == 1


def test_an_empty_page_says_what_to_do(server: Server, browser: Browser) -> None:
    page = opened(browser, server)
    hint = page.get_by_text("Type one below")
    expect(hint).to_be_visible()
    type_message(page, "the first one")
    shows_message(page, "the first one")
    expect(hint).to_be_hidden()


def test_pages_show_what_other_programs_send_and_how_many_browsers_are_connected(
    shared_url: URL, servers: list[Server], browser: Browser
) -> None:
    pages = [opened(browser, server) for server in servers]
    for page in pages:
        shows(page, "Browsers", "2 browsers connected")
    command = [sys.executable, "-m", "eric_sse_sql", "--url", address(shared_url), "send", "live", "message"]
    for payload in ('{"text": "an object"}', '"a text"'):
        subprocess.run([*command, payload], check=True, capture_output=True, timeout=PATIENCE)
    row = '{"row": [1, null]}'
    if shared_url.get_backend_name() == "postgresql":
        with connected(shared_url) as connection:
            connection.execute(text("SELECT eric_sse_broadcast('live', 'message', :row)"), {"row": row})
    else:
        subprocess.run([*command, row], check=True, capture_output=True, timeout=PATIENCE)
    for page in pages:
        shows_message(page, '{"row":[1,null]}')
        assert texts(page) == ["an object", "a text", '{"row":[1,null]}']


def test_a_narrow_page_has_times_below_texts_and_counts_what_a_reader_who_scrolled_up_does_not_see(
    sqlite_server: Server, browser: Browser
) -> None:
    page = opened(browser.new_context(viewport={"width": 320, "height": 480}), sqlite_server)
    for number in range(12):
        type_message(page, f"number {number} " + "of many words" * 4 + "w" * 50)
        expect(entries(page)).to_have_count(number + 1)
    newer = page.get_by_role("button", name="new message")
    expect(newer).to_be_hidden()
    expect(entries(page).last).to_be_in_viewport()
    text_box, time_box = (entries(page).last.locator(each).bounding_box() for each in (".text", "time"))
    assert text_box is not None and time_box is not None
    assert time_box["y"] >= text_box["y"] + text_box["height"]
    assert page.evaluate("document.documentElement.scrollWidth") <= 320

    page.get_by_role("log").evaluate("log => log.scrollTo({top: 0, behavior: 'instant'})")
    other = opened(browser, sqlite_server)
    for typed in ("one more", "the last one"):
        type_message(other, typed)
        shows_message(other, typed)
    expect(newer).to_have_text("2 new messages ↓")
    expect(entries(page).first).to_be_in_viewport()
    newer.press("Enter")
    expect(entries(page).last).to_be_in_viewport()
    expect(newer).to_be_hidden()


def test_forced_colors_tell_the_states_of_the_connection_apart(sqlite_server: Server, browser: Browser) -> None:
    page = opened(browser.new_context(forced_colors="active", reduced_motion="reduce"), sqlite_server)
    box = page.get_by_label("Connection", exact=True).bounding_box()
    assert box is not None

    def symbol() -> bytes:
        return page.screenshot(clip={"x": box["x"], "y": box["y"], "width": 12, "height": box["height"]})

    symbols = {"live": symbol()}
    page.get_by_role("button", name="Leave").click()
    shows(page, "Connection", "ended")
    symbols["ended"] = symbol()
    page.get_by_role("button", name="Join").click()
    shows(page, "Connection", "live")
    sqlite_server.kill()
    shows(page, "Connection", "reconnecting")
    symbols["reconnecting"] = symbol()
    assert len(set(symbols.values())) == 3


def test_the_stream_of_a_deleted_listener_ends_and_the_page_says_so_until_it_joins_again(
    shared_url: URL, servers: list[Server], browser: Browser
) -> None:
    page = opened(browser, servers[0])
    tab = opened(page.context, servers[0])
    (listener_id,) = listener_ids(shared_url)
    answer = httpx.delete(f"{servers[1].address}/listeners/{listener_id}", trust_env=False)
    assert answer.status_code == 204
    for each in (page, tab):
        shows(each, "Connection", "ended")
        expect(entries(each)).to_have_text(ENDED)
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.wait_for_timeout(1_500)  # in which a browser would connect again, which it does after a second
    assert asked == []
    assert listener_ids(shared_url) == []

    tab.get_by_role("button", name="Join").click()
    for each in (page, tab):
        shows(each, "Connection", "live")
        type_message(each, "joined")
    for each in (page, tab):
        expect(entries(each)).to_have_text([ENDED, re.compile("joined"), re.compile("joined")])
    tab.get_by_role("button", name="Leave").click()
    for each in (page, tab):
        shows(each, "Connection", "ended")


def test_a_page_whose_listener_was_deleted_while_no_worker_served_goes_on_with_a_new_one(
    shared_url: URL, servers: list[Server], browser: Browser
) -> None:
    page = opened(browser, servers[0])
    (listener_id,) = listener_ids(shared_url)
    servers[0].kill()
    shows(page, "Connection", "reconnecting")
    httpx.delete(f"{servers[1].address}/listeners/{listener_id}", trust_env=False)
    servers[0].start()
    shows(page, "Connection", "live")
    expect(entries(page)).to_have_text(FORGOTTEN)


def test_a_browser_without_a_page_is_forgotten_and_gets_a_new_listener_when_it_comes_back(
    shared_url: URL, browser: Browser, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORGET_SECONDS", "60")  # so that gone browsers are looked for each second
    with serving(shared_url, 2) as servers, Database(shared_url) as database:
        gone = opened(browser, servers[0])
        type_message(gone, "before")
        shows_message(gone, "before")
        (gone_id,) = listener_ids(shared_url)
        there = opened(browser, servers[0])
        gone.goto("about:blank")

        def is_forgotten() -> bool:
            with database.engine.begin() as connection:  # as if a minute had gone by; again, after the last noted sign
                connection.execute(
                    text("UPDATE sse_connections SET seen_at = '2000-01-01 00:00:00' WHERE listener_id = :id"),
                    {"id": gone_id},
                )
            return gone_id not in listener_ids(shared_url)

        until(is_forgotten, PATIENCE)
        assert len(listener_ids(shared_url)) == 1
        gone.goto(servers[0].address)
        shows(gone, "Connection", "live")
        type_message(there, "after")
        shows_message(gone, "after")
        assert texts(gone) == ["before", FORGOTTEN, "after"]
        shows(there, "Connection", "live")


@pytest.mark.skipif(shutil.which("make") is None, reason="no make here")
def test_make_live_prints_its_address_as_soon_as_it_serves(shared_url: URL) -> None:
    command = ["make", "--assume-old=.venv/.live", "--assume-old=.venv/.postgres", "live"]
    command += [f"BIN={Path(sys.executable).parent}", "ARGS=--port 0"]
    environment = {**os.environ, "ERIC_SSE_SQL_URL": shared_url.render_as_string(hide_password=False)}
    make = subprocess.Popen(
        command, cwd=REPOSITORY, env=environment, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    limit = threading.Timer(PATIENCE, os.killpg, (make.pid, signal.SIGKILL))
    limit.start()
    with make:
        try:
            assert make.stderr is not None
            printed = (re.search(r"http://127\.0\.0\.1:\d+", line) for line in make.stderr)
            address = next(filter(None, printed))[0]
            assert "Live feed" in httpx.get(address, trust_env=False).text
        finally:
            limit.cancel()
            with suppress(ProcessLookupError):
                os.killpg(make.pid, signal.SIGTERM)
