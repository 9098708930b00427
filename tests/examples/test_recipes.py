"""The recipes for other frameworks, served by their own servers, and asked over HTTP."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest
from sqlalchemy import URL

from eric_sse_sql import Database
from eric_sse_sql.contract import ERIC_SSE_2_0
from support.processes import repository
from support.servers import Server
from support.wire import Dispatched, dispatched

pytestmark = pytest.mark.skipif(ERIC_SSE_2_0, reason="the recipes are built on the repositories of eric-sse 2.1")

COMMANDS = {
    "flask": ["-m", "flask", "--app", "flask_app", "run", "--port", "0"],
    "django": ["-m", "uvicorn", "django_app:application", "--port", "0", "--timeout-graceful-shutdown", "1"],
}


@pytest.fixture(params=COMMANDS)
def server(request: pytest.FixtureRequest, shared_url: URL) -> Iterator[Server]:
    started = Server(shared_url, COMMANDS[request.param])
    try:
        yield started
        started.process.terminate()
    finally:
        started.end()


def read(answer: httpx.Response, count: int) -> list[Dispatched]:
    """The first events of an answer; all, where it ends before."""
    sent = ""
    for chunk in answer.iter_text():
        sent += chunk
        if len(dispatched(sent)) >= count:
            break
    return dispatched(sent)


def test_a_recipe_streams_what_is_sent_and_what_was_missed(server: Server, shared_url: URL) -> None:
    listener = server.http.post("/listeners").json()["listener_id"]

    def send(number: int) -> None:
        assert server.http.post("/messages", json={"n": number}).status_code == 204

    with server.http.stream("GET", f"/stream/{listener}") as answer:
        assert answer.headers["Content-Type"].startswith("text/event-stream")
        for number in range(2):
            send(number)
        found = read(answer, 2)
    assert [(event.type, event.data) for event in found] == [("message", f'{{"n":{n}}}') for n in range(2)]

    send(2)
    with (
        server.http.stream("GET", f"/stream/{listener}", headers={"Last-Event-ID": found[0].last_event_id}) as answer,
        Database(shared_url) as database,
    ):
        chunks = answer.iter_text()
        sent = ""
        while len(dispatched(sent)) < 2:
            sent += next(chunks)
        assert [event.data for event in dispatched(sent)] == ['{"n":1}', '{"n":2}']
        channel = repository(database, of_21=True).load_one("news")
        channel.remove_listener(listener)
        repository(database, of_21=True).persist(channel)
        assert [event.type for event in dispatched("".join(chunks))] == ["gone"]
    assert server.http.get(f"/stream/{listener}").status_code == 404
