"""The log of a channel in a process: what streams, pops, forks and expiry do with it beside each other."""

from __future__ import annotations

import asyncio
import threading
from contextlib import aclosing
from datetime import timedelta
from typing import Any

import pytest
from eric_sse.exception import NoMessagesException
from eric_sse.message import Message
from sqlalchemy import URL, event, text

from eric_sse_sql import Database, SqlQueue
from eric_sse_sql.contract import ERIC_SSE_2_0
from support.catalog import rename_table
from support.databases import application_engine, opened
from support.forking import fork, forking
from support.loops import run
from support.streams import events
from support.threads import NOTIFIER, WATCHER
from support.waiting import DEADLINE, until

if ERIC_SSE_2_0:
    pytest.skip("eric-sse 2.0 has no such channel", allow_module_level=True)

from eric_sse_sql import SqlSSEChannel, SqlSSEChannelRepository, fanout
from eric_sse_sql.streams import event_log
from eric_sse_sql.streams import stream as stream_module
from eric_sse_sql.streams.event_log import LogWaiter, log_of
from eric_sse_sql.streams.stream import UNAVAILABLE
from eric_sse_sql.wakeups.expiry import expire

OLD = "UPDATE sse_events SET created_at = '2001-01-01 00:00:00'"


def logged(database: Database, listeners: int = 1, replay_seconds: int = 60) -> tuple[SqlSSEChannel, list[Any]]:
    """A channel with a log, persisted, and its listeners, which are started."""
    repository = SqlSSEChannelRepository(database)
    channel = repository.create({"channel_id": "feed", "replay_seconds": replay_seconds})
    found = [channel.add_listener() for _ in range(listeners)]
    repository.persist(channel)
    for listener in found:
        listener.start()
    return channel, found


def data(found: list[Any]) -> list[Any]:
    return [each["data"] if each["event"] == "n" else each["event"] for each in found]


# Pops


def test_a_listener_is_delivered_an_event_that_a_stream_of_another_one_has_read(database: Database) -> None:
    channel, (streamed, popped) = logged(database, 2)
    channel.broadcast(Message("n", 0))
    assert data(run(lambda: events(channel, streamed, 1))) == [0]
    assert channel.deliver_next(popped.id).payload == 0
    channel.broadcast(Message("n", 1))
    assert channel.deliver_next(popped.id).payload == 1


def test_the_queue_of_a_deleted_connection_is_empty(database: Database) -> None:
    channel, _ = logged(database)
    channel.broadcast(Message("n", 0))
    queue = channel.get_connections()[0].queue
    SqlSSEChannelRepository(database).delete("feed")
    channel.broadcast(Message("n", 1))  # into the log of a channel that is not stored
    with pytest.raises(NoMessagesException):
        queue.pop()


def test_a_listener_that_is_not_stored_is_delivered_nothing_from_before_it_was_added(database: Database) -> None:
    channel, _ = logged(database)
    channel.broadcast(Message("n", 0))
    listener = channel.add_listener()
    listener.start()
    with pytest.raises(NoMessagesException):
        channel.deliver_next(listener.id)
    channel.broadcast(Message("n", 1))
    assert channel.deliver_next(listener.id).payload == 1


# Ids


@pytest.mark.parametrize("is_appended", [False, True], ids=["empty log", "log with events"])
def test_a_client_that_was_told_of_a_gap_goes_on_after_it_with_the_id_of_the_reset(
    database: Database, is_appended: bool
) -> None:
    channel, (listener, other) = logged(database, 2)
    if is_appended:
        channel.dispatch(other.id, Message("n", 0))
    (reset,) = run(lambda: events(channel, listener, 1, "an id of nothing"))
    assert reset["event"] == "reset"
    channel.broadcast(Message("n", 1))
    channel.broadcast(Message("n", 2))
    assert data(run(lambda: events(channel, listener, 2, reset["id"]))) == [1, 2]


def test_a_reset_before_events_has_no_id_of_its_own(database: Database) -> None:
    channel, (listener,) = logged(database)
    channel.broadcast(Message("n", 0))
    reset, first = run(lambda: events(channel, listener, 2, "an id of nothing"))
    assert (reset["event"], first["data"]) == ("reset", 0)
    assert "id" not in reset  # a client that leaves here has missed what follows


def test_a_client_that_comes_back_within_the_tail_needs_no_statement_for_its_position(database: Database) -> None:
    channel, (listener,) = logged(database)
    for number in range(3):
        channel.broadcast(Message("n", number))
    kept = log_of(database, channel.id)  # as the streams of other clients do
    first, *_ = run(lambda: events(channel, listener, 3))
    again = SqlSSEChannelRepository(database).load_one(channel.id)
    found = again.get_listener(listener.id)
    found.start()
    seen: list[str] = []

    @event.listens_for(database.engine, "before_cursor_execute")
    def record(connection: object, cursor: object, statement: str, *others: object) -> None:
        if threading.current_thread().name not in (WATCHER, NOTIFIER):
            seen.append(statement)

    assert data(run(lambda: events(again, found, 2, first["id"]))) == [1, 2]
    assert not [statement for statement in seen if "sse_connections" in statement]
    assert kept.tail is not None


def test_a_message_that_was_pushed_into_the_queue_is_delivered_to_a_client_that_comes_back(database: Database) -> None:
    channel, (listener,) = logged(database)
    channel.broadcast(Message("n", 0))
    (first,) = run(lambda: events(channel, listener, 1))
    SqlQueue(database, channel.get_connections()[0].queue.id).push(Message("n", 1))
    again = SqlSSEChannelRepository(database).load_one(channel.id)
    found = again.get_listener(listener.id)
    found.start()
    assert data(run(lambda: events(again, found, 1, first["id"]))) == [1]


# Expiry


def test_an_event_that_is_appended_while_all_others_expire_is_kept(shared_url: URL) -> None:
    with opened(shared_url) as database, application_engine(shared_url, begins=True) as engine:
        channel, (listener,) = logged(database)
        channel.broadcast(Message("n", 0))
        with database.engine.begin() as connection:
            connection.execute(text(OLD))
        expired: list[int] = []
        expiring = threading.Thread(target=lambda: expired.append(expire(database.executor, "feed")))
        with engine.begin() as connection, database.join(connection):
            channel.broadcast(Message("n", 1))
            expiring.start()
            expiring.join(0.5)  # it waits for this transaction
        expiring.join(DEADLINE)
        assert expired == [1]
        assert data(run(lambda: events(channel, listener, 2))) == ["reset", 1]


def test_a_broadcast_that_can_not_expire_others_has_succeeded(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fanout, "EXPIRY_CHANCE", 1.0)
    channel, (listener,) = logged(database)

    def refuse(*arguments: Any) -> None:
        if arguments[2].startswith("DELETE FROM sse_events"):
            raise ConnectionError

    event.listen(database.engine, "before_cursor_execute", refuse)
    channel.broadcast(Message("n", 0))
    assert data(run(lambda: events(channel, listener, 1))) == [0]


def test_events_of_others_that_expire_cause_no_reset_of_a_stream_that_waits(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(event_log, "TAIL_EVENTS", 6)  # the tail begins behind where the stream began to wait
    channel, (listener, other) = logged(database, 2)

    async def main() -> list[Any]:
        stream = asyncio.create_task(events(channel, listener, 1))
        log = log_of(database, "feed")
        await asyncio.to_thread(until, lambda: log.waiting == 1)
        for n in range(30):
            await asyncio.to_thread(channel.dispatch, other.id, Message("n", n))
        await asyncio.to_thread(until, lambda: log.tail is not None and log.tail.last == 30)
        with database.engine.begin() as connection:
            connection.execute(text(OLD))
        await asyncio.to_thread(database.prune, timedelta(days=1))
        await asyncio.to_thread(channel.broadcast, Message("n", 30))
        return await stream

    assert data(run(main)) == [30]


def test_a_wait_that_ends_without_an_event_has_seen_those_of_others(database: Database) -> None:
    channel, (listener, other) = logged(database, 2)
    log = log_of(database, "feed")
    log.read()

    async def main() -> int:
        waiter = LogWaiter(database, lambda: True, listener.id)
        assert log.begin_wait(waiter, log.life, 0)
        for n in range(3):
            await asyncio.to_thread(channel.dispatch, other.id, Message("n", n))
        await asyncio.to_thread(log.read)
        log.end_wait(waiter)
        return waiter.cursor

    assert run(main) == 3


# Positions


@pytest.mark.parametrize("moment", ["both are open", "one has ended", "both have ended"])
def test_the_position_of_a_connection_is_that_of_its_furthest_stream(database: Database, moment: str) -> None:
    channel, (listener,) = logged(database)
    for n in range(4):
        channel.broadcast(Message("n", n))
    write_positions = database.watcher.presence.write_positions

    async def main() -> None:
        async with aclosing(channel.message_stream(listener)) as behind:
            async with aclosing(channel.message_stream(listener)) as ahead:
                for stream in (behind, ahead):  # both have begun before a position is written
                    await anext(stream)
                for stream in (behind, ahead, ahead, ahead):
                    await anext(stream)
                if moment == "both are open":
                    await asyncio.to_thread(write_positions)
            if moment == "one has ended":
                await asyncio.to_thread(write_positions)
        await asyncio.to_thread(write_positions)

    run(main)
    assert data(run(lambda: events(channel, listener, 1))) == [3]


def test_a_stream_with_the_id_of_another_listener_gets_nothing_from_before_its_connection(database: Database) -> None:
    channel, (listener,) = logged(database)
    for n in range(2):
        channel.broadcast(Message("n", n))
    (first,) = run(lambda: events(channel, listener, 1))
    new_id = channel.add_listener().id
    SqlSSEChannelRepository(database).persist(channel)
    channel.broadcast(Message("n", 2))
    loaded = SqlSSEChannelRepository(database).load_one("feed")
    new = loaded.get_listener(new_id)
    new.start()
    assert data(run(lambda: events(loaded, new, 1, first["id"]))) == [2]


# Faults


def test_a_log_that_can_not_be_read_gives_one_error_event_until_it_can_be(database: Database) -> None:
    channel, (listener,) = logged(database)

    async def main() -> list[Any]:
        stream = asyncio.create_task(events(channel, listener, 2))
        await asyncio.to_thread(until, lambda: log_of(database, "feed").waiting == 1)
        await asyncio.to_thread(rename_table, database, "sse_events", "elsewhere")
        log_of(database, "feed").watch.bump()
        await asyncio.sleep(0.4)  # in which the stream tries three times
        await asyncio.to_thread(rename_table, database, "elsewhere", "sse_events")
        await asyncio.to_thread(channel.broadcast, Message("n", 0))
        return await stream

    error, first = run(main)
    assert (error["event"], error["data"]) == ("error", UNAVAILABLE)
    assert data([first]) == [0]


@pytest.mark.parametrize(("replay_seconds", "table"), [(0, "sse_messages"), (60, "sse_events")])
def test_a_stream_ends_its_pause_as_soon_as_the_watcher_can_query_the_database(
    shared_url: URL, monkeypatch: pytest.MonkeyPatch, replay_seconds: int, table: str
) -> None:
    monkeypatch.setattr(stream_module, "PAUSES", (3600.0, 3600.0))
    monkeypatch.setattr(event_log, "FAILURE_SECONDS", 3600.0)
    with opened(shared_url) as database:
        channel, (listener,) = logged(database, replay_seconds=replay_seconds)

        async def main() -> list[Any]:
            async with aclosing(channel.message_stream(listener)) as delivered:
                await asyncio.to_thread(channel.broadcast, Message("n", 0))
                found = [await anext(delivered)]
                await asyncio.to_thread(rename_table, database, table, "elsewhere")
                database.watcher.bump_channel("feed")  # the stream asks, and fails
                found.append(await anext(delivered))
                await asyncio.to_thread(rename_table, database, "elsewhere", table)
                await asyncio.to_thread(channel.broadcast, Message("n", 1))
                return [*found, await anext(delivered)]

        assert data(run(main)) == [0, "error", 1]


def test_a_stream_of_a_log_goes_on_after_the_first_read_that_succeeds(
    shared_url: URL, monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses = 0

    async def pause_until_repaired(*_: object) -> bool:
        nonlocal pauses
        pauses += 1
        if pauses == 1:
            await asyncio.to_thread(rename_table, database, "elsewhere", "sse_events")
            await asyncio.to_thread(channel.broadcast, Message("n", 1))
        return True

    monkeypatch.setattr(stream_module, "pause", pause_until_repaired)
    monkeypatch.setattr(event_log, "FAILURE_SECONDS", 0.0)
    with opened(shared_url) as database:
        channel, (listener,) = logged(database)

        async def main() -> list[Any]:
            async with aclosing(channel.message_stream(listener)) as delivered:
                await asyncio.to_thread(channel.broadcast, Message("n", 0))
                found = [await anext(delivered)]
                await asyncio.to_thread(rename_table, database, "sse_events", "elsewhere")
                database.watcher.bump_channel("feed")
                return [*found, await anext(delivered), await anext(delivered)]

        assert data(run(main)) == [0, "error", 1]
    assert pauses == 1


# Event loops and processes


def test_a_closed_event_loop_does_not_keep_streams_of_another_one_from_an_event(database: Database) -> None:
    channel, (abandoned, listener) = logged(database, 2)
    log, closed = log_of(database, "feed"), asyncio.new_event_loop()
    log.read()

    async def wait() -> None:
        assert log.begin_wait(LogWaiter(database, lambda: True, abandoned.id), log.life, 0)

    closed.run_until_complete(wait())
    closed.close()

    async def main() -> list[Any]:
        stream = asyncio.create_task(events(channel, listener, 2))
        await asyncio.to_thread(until, lambda: log.waiting == 2)
        for n in range(2):
            await asyncio.to_thread(channel.broadcast, Message("n", n))
        return await stream

    assert data(run(main)) == [0, 1]


@forking
def test_a_forked_child_streams_a_log_that_its_parent_streams(shared_url: URL) -> None:
    with opened(shared_url) as database:
        channel, (listener, of_child) = logged(database, 2)

        def child() -> None:
            async def main() -> list[Any]:
                stream = asyncio.create_task(events(channel, of_child, 1))
                await asyncio.to_thread(until, lambda: log_of(database, "feed").waiting == 1)
                await asyncio.to_thread(channel.dispatch, of_child.id, Message("n", 7))
                return await stream

            assert data(run(main)) == [7]

        async def main() -> list[Any]:
            stream = asyncio.create_task(events(channel, listener, 1))
            await asyncio.to_thread(until, lambda: log_of(database, "feed").waiting == 1)
            with fork(child):
                pass
            await asyncio.to_thread(channel.dispatch, listener.id, Message("n", 8))
            return await stream

        assert data(run(main)) == [8]
