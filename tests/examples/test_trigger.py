"""examples/trigger, in a browser: a change of the table shows on the pages of two workers once it is committed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import ExitStack

import pytest
from playwright.sync_api import Page, expect, sync_playwright
from sqlalchemy import URL, create_engine, text

from eric_sse_sql.contract import ERIC_SSE_2_0
from support.servers import Server
from support.waiting import DEADLINE

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)

pytestmark = pytest.mark.skipif(ERIC_SSE_2_0, reason="the example is built on the repositories of eric-sse 2.1")


@pytest.fixture
def workers(shared_url: URL) -> Iterator[list[Server]]:
    """Two workers that serve the example, and begin at the same time. Its table is dropped after the test."""
    with ExitStack() as stack:
        started = []
        for _ in range(2):
            started.append(Server(shared_url, ["-m", "uvicorn", "app:app", "--app-dir", "trigger", "--port", "0"]))
            stack.callback(started[-1].end)
            stack.callback(started[-1].process.kill)  # before its end is waited for
        yield started
    changed(shared_url, "DROP TABLE prices")
    if shared_url.get_backend_name() == "postgresql":
        changed(shared_url, "DROP FUNCTION tell_price")


def changed(url: URL, *statements: str, is_committed: bool = True) -> None:
    """Change the table as any program does."""
    engine = create_engine(url)
    with engine.connect() as connection:
        for statement in statements:
            connection.execute(text(statement))
        if is_committed:
            connection.commit()
        else:
            connection.rollback()
    engine.dispose()


def shows(page: Page, *rows: str) -> None:
    """Wait until a page shows these rows of the table, and no others."""
    expect(page.locator("tbody tr")).to_have_text(list(rows), timeout=DEADLINE * 1000)


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here: the page is not tested")
def test_a_committed_change_and_no_other_shows_on_the_pages_of_all_workers(
    shared_url: URL, workers: list[Server]
) -> None:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM)
        pages = [browser.new_page() for _ in workers]
        for page, worker in zip(pages, workers, strict=True):
            page.goto(str(worker.http.base_url))
            shows(page, "salt90", "tea240")
        changed(shared_url, "UPDATE prices SET cents = 999 WHERE item = 'tea'", is_committed=False)
        changed(shared_url, "INSERT INTO prices VALUES ('rice', 180)")
        for page in pages:  # events come in the order of their commits
            shows(page, "rice180", "salt90", "tea240")
        changed(
            shared_url, "UPDATE prices SET cents = 260 WHERE item = 'tea'", "DELETE FROM prices WHERE item = 'rice'"
        )
        for page in pages:
            shows(page, "salt90", "tea260")
        browser.close()


def next_event(lines: Iterator[str]) -> dict[str, str]:
    """The fields of the next event with data."""
    fields: dict[str, str] = {}
    for line in lines:
        if line and not line.startswith(":"):
            name, _, value = line.partition(": ")
            fields[name] = value
        elif not line and "data" in fields:
            return fields
    raise AssertionError("the stream has ended")


def test_a_client_that_comes_back_gets_the_changes_that_it_has_missed(shared_url: URL, workers: list[Server]) -> None:
    first, other = (worker.http for worker in workers)
    for client in (first, other):  # both have made the table
        assert client.get("/prices").json() == [{"item": "salt", "cents": 90}, {"item": "tea", "cents": 240}]
    path = "/stream/" + first.post("/listeners").json()["listener_id"]
    changed(shared_url, "UPDATE prices SET cents = 1 WHERE item = 'tea'")
    with first.stream("GET", path) as response:
        seen = next_event(response.iter_lines())
    assert json.loads(seen["data"]) == {"item": "tea", "cents": 1}
    changed(shared_url, "UPDATE prices SET cents = 2 WHERE item = 'tea'")
    with other.stream("GET", path, headers={"Last-Event-ID": seen["id"]}) as response:
        missed = next_event(response.iter_lines())
    assert (missed["event"], json.loads(missed["data"])) == ("price", {"item": "tea", "cents": 2})
