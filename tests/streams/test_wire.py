"""What a browser gets of a stream, read as the HTML standard says that an EventSource reads it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
from eric_sse.message import Message
from sqlalchemy import URL

from eric_sse_sql import Database, PickleCodec
from eric_sse_sql.contract import ERIC_SSE_2_0
from support.application import Notebook
from support.catalog import rename_table
from support.wire import Dispatched, dispatched

if ERIC_SSE_2_0:
    pytest.skip("eric-sse 2.0 has no such channel", allow_module_level=True)

from sse_starlette.sse import EventSourceResponse

from eric_sse_sql import SqlSSEChannelRepository


@pytest.fixture
def database(shared_url: URL) -> Iterator[Database]:
    with Database(shared_url) as made:
        yield made


@pytest.fixture(params=[0, 60], ids=["queue", "log"])
def channel(request: pytest.FixtureRequest, database: Database) -> Any:
    """A persisted channel with one listener, which is started."""
    repository = SqlSSEChannelRepository(database)
    made = repository.create({"channel_id": "news", "replay_seconds": request.param})
    listener = made.add_listener()
    repository.persist(made)
    listener.start()
    return made


def read(channel: Any, last_event_id: str | None = None, until: int = 1) -> list[Dispatched]:
    """The events that a browser gets, until there are so many."""

    async def main() -> list[Dispatched]:
        sent: list[bytes] = []

        async def send(message: Any) -> None:
            sent.append(message.get("body", b""))

        async def receive() -> dict[str, str]:
            for _ in range(300):
                await asyncio.sleep(0.02)
                if len(dispatched(b"".join(sent).decode())) >= until:
                    break
            return {"type": "http.disconnect"}

        (connection,) = channel.get_connections()
        response = EventSourceResponse(channel.message_stream(connection.listener, last_event_id=last_event_id))
        scope = {"type": "http", "method": "GET", "path": "/", "headers": [], "asgi": {"spec_version": "2.3"}}
        await response(scope, receive, send)
        return dispatched(b"".join(sent).decode())

    return asyncio.run(main())


def listener_id(channel: Any) -> str:
    (connection,) = channel.get_connections()
    return str(connection.listener.id)


@pytest.mark.parametrize(
    ("event_type", "payload", "data"),
    [
        ("a\nevent: admin\ndata: forged\n\n", "x", "x"),
        ("é", "y", "y"),
        ("m", "one\r\ntwo\rthree\n\ndata: four", "one\ntwo\nthree\n\ndata: four"),
        ("m", "\u2028", "\u2028"),
    ],
)
def test_a_type_or_payload_injects_no_event(channel: Any, event_type: str, payload: str, data: str) -> None:
    channel.dispatch(listener_id(channel), Message(event_type, payload))
    (event,) = read(channel)
    assert event.data == data and event.type != "admin"


def test_a_page_is_told_of_a_message_that_can_not_be_decoded(channel: Any, database: Database) -> None:
    with Database(database.engine.url, codec=PickleCodec(unrestricted=True)) as careless:
        other = SqlSSEChannelRepository(careless).load_one("news")
        other.dispatch(listener_id(channel), Message("m", Notebook("of a class that no reader allows")))
        other.dispatch(listener_id(channel), Message("m", "after"))
    found = read(channel, until=2)
    assert [(event.type, bool(event.data)) for event in found] == [("error", True), ("m", True)]
    assert "Notebook" not in found[0].data


def test_a_page_is_told_that_the_database_can_not_be_queried(channel: Any, database: Database) -> None:
    tables = ("sse_messages", "sse_events")
    for table in tables:
        rename_table(database, table, f"{table}_elsewhere")
    try:
        found = read(channel)
    finally:
        for table in tables:
            rename_table(database, f"{table}_elsewhere", table)
    assert [(event.type, bool(event.data)) for event in found] == [("error", True)]


@pytest.mark.parametrize("channel", [60], indirect=True)
def test_a_page_is_told_that_events_are_missing(channel: Any) -> None:
    channel.broadcast(Message("m", 1))
    found = read(channel, last_event_id="99999999", until=2)
    assert [(event.type, bool(event.data)) for event in found] == [("reset", True), ("m", True)]
    channel.broadcast(Message("m", 2))
    assert [event.data for event in read(channel, last_event_id=found[-1].last_event_id)] == ["2"]


def test_the_ids_of_events_resume_a_stream(channel: Any) -> None:
    for number in range(3):
        channel.broadcast(Message("m", number))
    found = read(channel, until=3)
    assert [event.data for event in found] == ["0", "1", "2"]
    if channel.replay_seconds:
        assert [event.data for event in read(channel, found[0].last_event_id, until=2)] == ["1", "2"]
    else:
        assert {event.last_event_id for event in found} == {""}
