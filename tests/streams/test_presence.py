"""Presence: the streams of a deleted listener or channel end, and connections without a stream are deleted."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import aclosing
from datetime import timedelta
from typing import Any

import pytest
from eric_sse.exception import InvalidListenerException
from eric_sse.message import Message, MessageContract
from sqlalchemy import URL, text

from eric_sse_sql import Database, SqlQueue
from eric_sse_sql.contract import ERIC_SSE_2_0
from support.catalog import table_counts
from support.loops import run
from support.waiting import DEADLINE, until

if ERIC_SSE_2_0:
    pytest.skip("eric-sse 2.0 has no such channel", allow_module_level=True)

from eric_sse.connection import Connection
from eric_sse.listener import MessageQueueListener

from eric_sse_sql import SqlSSEChannelRepository
from eric_sse_sql.wakeups import poller, presence

CHECK_SECONDS = 0.1  # instead of one
LONG_AGO = {"sqlite": "datetime('now', '-1 hour')", "postgresql": "now() - interval '1 hour'"}


@pytest.fixture
def database(shared_url: URL) -> Iterator[Database]:
    with Database(shared_url) as made:
        yield made


@pytest.fixture
def checked_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(presence, "CHECK_SECONDS", CHECK_SECONDS)
    monkeypatch.setattr(poller, "POLL_SECONDS", CHECK_SECONDS)


@pytest.fixture
def elsewhere(shared_url: URL) -> Iterator[SqlSSEChannelRepository]:
    """The repository of another worker."""
    with Database(shared_url) as made:
        yield SqlSSEChannelRepository(made)


class Doubling(SqlQueue):
    """A queue that changes what is popped."""

    def pop(self) -> MessageContract:
        message = super().pop()
        return Message(message.type, message.payload * 2)  # type: ignore[operator]


def made(database: Database, listeners: int = 1, **data: Any) -> tuple[SqlSSEChannelRepository, Any, list[Any]]:
    """A persisted channel "c", as a worker has loaded it, and its listeners, which are started."""
    repository = SqlSSEChannelRepository(database)
    channel = repository.create({"channel_id": "c", **data})
    ids = [channel.add_listener().id for _ in range(listeners)]
    repository.persist(channel)
    loaded = repository.load_one("c")
    found = [loaded.get_listener(listener_id) for listener_id in ids]
    for listener in found:
        listener.start()
    return repository, loaded, found


def deleted_channel(repository: SqlSSEChannelRepository, listener_id: str) -> None:
    repository.delete("c")


def deleted_connection(repository: SqlSSEChannelRepository, listener_id: str) -> None:
    for connection in repository.load_one("c").get_connections():
        if connection.listener.id == listener_id:
            repository.connections_repository.delete("c", connection.id)


def removed_listener(repository: SqlSSEChannelRepository, listener_id: str) -> None:
    channel = repository.load_one("c")
    channel.remove_listener(listener_id)
    repository.persist(channel)


def pruned(repository: SqlSSEChannelRepository, listener_id: str) -> None:
    database: Database = repository.connections_factory.database  # type: ignore[attr-defined]
    at = LONG_AGO[database.engine.dialect.name]
    statement = text(f"UPDATE sse_connections SET seen_at = {at} WHERE listener_id = :listener_id")

    def age_and_prune() -> int:
        with database.engine.begin() as connection:
            connection.execute(statement, {"listener_id": listener_id})
        return database.prune(older_than=timedelta(days=1), unseen_for=timedelta(minutes=5)).connections

    until(lambda: age_and_prune() == 1)  # the stream may be marked as seen in between, once


@pytest.mark.usefixtures("checked_often")
@pytest.mark.parametrize("replay_seconds", [0, 60])
@pytest.mark.parametrize("delete", [deleted_channel, deleted_connection, removed_listener, pruned])
def test_a_stream_ends_when_another_worker_has_deleted_its_listener(
    database: Database,
    elsewhere: SqlSSEChannelRepository,
    delete: Callable[[SqlSSEChannelRepository, str], None],
    replay_seconds: float,
) -> None:
    _, channel, (gone, kept) = made(database, 2, replay_seconds=replay_seconds)

    found: dict[str, list[Any]] = {gone.id: [], kept.id: []}

    async def read(listener: MessageQueueListener) -> list[Any]:
        async for event in channel.message_stream(listener):
            found[listener.id].append(event["data"])
        return found[listener.id]

    async def main() -> None:
        streams = [asyncio.create_task(read(listener)) for listener in (gone, kept)]
        await asyncio.to_thread(channel.broadcast, Message("m", 1))
        await asyncio.to_thread(until, lambda: all(found.values()))
        await asyncio.to_thread(delete, elsewhere, gone.id)
        assert await streams[0] == [1]
        if delete is not deleted_channel:
            assert not streams[1].done()
            kept.stop()
        assert await streams[1] == [1]

    run(main)
    with pytest.raises(InvalidListenerException):
        channel.get_listener(gone.id)


@pytest.mark.parametrize("replay_seconds", [0, 60])
def test_removing_a_listener_ends_its_streams_in_the_same_object(database: Database, replay_seconds: float) -> None:
    _, channel, (listener,) = made(database, replay_seconds=replay_seconds)

    async def main() -> None:
        async def read() -> list[Any]:
            return [event async for event in channel.message_stream(listener)]

        stream = asyncio.create_task(read())
        await asyncio.sleep(0.3)
        await asyncio.to_thread(channel.remove_listener, listener.id)
        assert await stream == []

    run(main)


@pytest.mark.usefixtures("checked_often")
def test_the_stream_of_a_queue_with_a_pop_of_its_own_ends_when_its_listener_is_deleted(
    database: Database, elsewhere: SqlSSEChannelRepository
) -> None:
    repository = SqlSSEChannelRepository(database)
    channel = repository.create({"channel_id": "c"})
    listener = MessageQueueListener()
    channel.register_connection(Connection(listener, Doubling(database)))
    repository.persist(channel)
    listener.start()

    async def main() -> list[Any]:
        async def read() -> list[Any]:
            return [event["data"] async for event in channel.message_stream(listener)]

        stream = asyncio.create_task(read())
        await asyncio.to_thread(channel.dispatch, listener.id, Message("m", 21))
        await asyncio.sleep(0.5)
        await asyncio.to_thread(elsewhere.delete, "c")
        return await stream

    assert run(main) == [42]


def streaming(database: Database) -> int:
    """How many streams the view of channels shows."""
    with database.engine.connect() as connection:
        return int(connection.execute(text("SELECT streaming FROM sse_channel_overview")).scalar_one())


@pytest.mark.usefixtures("checked_often")
@pytest.mark.parametrize("replay_seconds", [0, 60])
def test_the_view_of_channels_shows_how_many_connections_are_streamed(
    database: Database, replay_seconds: float
) -> None:
    _, channel, listeners = made(database, 3, replay_seconds=replay_seconds)
    assert streaming(database) == 0

    async def main() -> None:
        async def read(listener: MessageQueueListener) -> None:
            async for _ in channel.message_stream(listener):
                pass

        streams = [asyncio.create_task(read(listener)) for listener in listeners[:2]]
        await asyncio.to_thread(until, lambda: streaming(database) == 2, DEADLINE / 2)
        for listener in listeners:
            listener.stop()
        await asyncio.gather(*streams)

    run(main)


@pytest.mark.usefixtures("checked_often")
@pytest.mark.parametrize("replay_seconds", [0, 60])
def test_connections_without_a_stream_for_a_time_are_deleted_with_all_that_is_theirs(
    database: Database, replay_seconds: float
) -> None:
    repository, channel, listeners = made(database, 5, replay_seconds=replay_seconds)
    channel.broadcast(Message("m", 1))
    streamed, *others = listeners

    async def main() -> None:
        async with aclosing(channel.message_stream(streamed)) as stream:
            await anext(stream)

    run(main)
    until(lambda: streaming(database) == 1)  # although the stream is over
    assert database.prune(older_than=timedelta(days=1)).connections == 0
    assert database.prune(older_than=timedelta(days=1), unseen_for=timedelta(hours=1)).connections == 0
    with database.engine.begin() as connection:
        connection.execute(text(f"UPDATE sse_connections SET created_at = {LONG_AGO[database.engine.dialect.name]}"))
    found = database.prune(older_than=timedelta(days=1), unseen_for=timedelta(minutes=5))
    assert (found.connections, found.messages) == (4, 0)
    assert [each.listener.id for each in repository.load_one("c").get_connections()] == [streamed.id]
    counts = table_counts(database)
    assert (counts["sse_connections"], counts["kv_entries"], counts["sse_channels"]) == (1, 3, 1)
    assert counts["sse_messages"] <= 1
    for listener in others:
        with pytest.raises(InvalidListenerException):
            channel.dispatch(listener.id, Message("m", 2))


def test_streams_of_one_connection_are_present_until_the_last_one_ends(database: Database) -> None:
    _, channel, (listener,) = made(database)

    async def main() -> None:
        async with aclosing(channel.message_stream(listener)) as first:
            reading = asyncio.ensure_future(anext(first))
            async with aclosing(channel.message_stream(listener)) as second:
                other = asyncio.ensure_future(anext(second))
                await asyncio.sleep(0.3)
                other.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await other
            await asyncio.to_thread(channel.dispatch, listener.id, Message("m", 1))
            assert (await reading)["data"] == 1

    run(main)
