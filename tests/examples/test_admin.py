"""examples/admin.py, asked over HTTP and looked at in a browser."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
import pytest
from eric_sse.message import Message
from playwright.sync_api import expect
from sqlalchemy import URL, text

from eric_sse_sql import Database
from eric_sse_sql.contract import ERIC_SSE_2_0
from support.browsers import CHROMIUM, chromium
from support.catalog import REPOSITORY, address
from support.processes import repository

PATIENCE = 30.0  # seconds until a wait fails

pytestmark = pytest.mark.skipif(ERIC_SSE_2_0, reason="eric-sse 2.0 has no channels with a log")


@contextmanager
def serving(url: URL) -> Iterator[str]:
    """The address of a process that serves the example."""
    command = [sys.executable, "-m", "uvicorn", "admin:app", "--port", "0", "--no-access-log"]
    environment = {**os.environ, "ERIC_SSE_SQL_URL": address(url)}
    process = subprocess.Popen(command, cwd=REPOSITORY / "examples", env=environment, stderr=subprocess.PIPE, text=True)
    limit = threading.Timer(PATIENCE, process.kill)
    limit.start()
    with process:
        try:
            assert process.stderr is not None
            found = (re.search(r"running on (http://127\.0\.0\.1:\d+)", line) for line in process.stderr)
            match = next(filter(None, found), None)
            assert match is not None, "the process has ended"
            limit.cancel()
            yield match[1]
        finally:
            limit.cancel()
            process.kill()


@pytest.fixture
def pages(shared_url: URL) -> Iterator[httpx.Client]:
    """The pages of a database that has one row of each kind."""
    with Database(shared_url, messages="json") as database:
        channels = repository(database, of_21=True)
        for channel_id, replay_seconds in (("with a queue", 0), ("with a log", 60)):
            channel = channels.create({"channel_id": channel_id, "replay_seconds": replay_seconds})
            channel.add_listener()
            channels.persist(channel)
            channel.broadcast(Message("news", {"text": f"of a channel {channel_id} <b>ümläut</b>"}))
        with database.engine.begin() as connection:
            connection.execute(
                text(
                    "INSERT INTO sse_set_aside_messages "
                    "(id, queue_id, message_type, message, created_at, delivery_count, reason) "
                    "VALUES (7, 'orders', 'order', :blob, CURRENT_TIMESTAMP, 1, 'it is damaged')"
                ),
                {"blob": b"\0"},
            )
    with serving(shared_url) as place, httpx.Client(base_url=place, timeout=PATIENCE, trust_env=False) as client:
        yield client


def identities(client: httpx.Client) -> list[str]:
    """What the menu leads to."""
    front = client.get("/", follow_redirects=True)
    assert front.status_code == 200
    return list(dict.fromkeys(re.findall(r"/([a-z-]+)/list\"", front.text)))


def test_the_pages_show_each_table_and_payloads_as_text(pages: httpx.Client) -> None:
    shown = {}
    for identity in identities(pages):
        listed = pages.get(f"/{identity}/list")
        assert listed.status_code == 200
        details = re.search(rf"/{identity}/details/[^\"]+", listed.text)
        assert details is not None, f"{identity} shows no row"
        detail = pages.get(details[0])
        assert detail.status_code == 200
        shown[identity] = listed.text + detail.text
    assert list(shown) == [
        "channel",
        "connection",
        "queue",
        "stored-message",
        "stored-event",
        "event-log-row",
        "set-aside-row",
        "kv-entry",
    ]
    for identity, channel_id in (("stored-message", "with a queue"), ("stored-event", "with a log")):
        assert shown[identity].count(f"of a channel {channel_id} &lt;b&gt;ümläut&lt;/b&gt;") == 2
    assert "it is damaged" in shown["set-aside-row"]


def test_the_pages_change_nothing(pages: httpx.Client) -> None:
    for identity in identities(pages):
        row = re.search(rf"/{identity}/details/([^\"]+)", pages.get(f"/{identity}/list").text)
        assert row is not None
        answers = (
            pages.post(f"/{identity}/create"),
            pages.post(f"/{identity}/edit/{row[1]}"),
            pages.post(f"/{identity}/import"),
            pages.delete(f"/{identity}/delete", params={"pks": row[1]}),
        )
        assert [answer.status_code for answer in answers] == [403] * 4


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here: the pages are not looked at")
def test_a_browser_shows_the_rows(pages: httpx.Client) -> None:
    with chromium() as browser:
        page = browser.new_page(viewport={"width": 1440, "height": 700})
        page.goto(f"{pages.base_url}/stored-message/list")
        expect(page.get_by_text("of a channel with a queue <b>ümläut</b>")).to_be_in_viewport()
        with_rows = page.screenshot()
        page.locator("tbody").evaluate("rows => rows.style.visibility = 'hidden'")
        assert page.screenshot() != with_rows
