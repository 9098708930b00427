"""Streams in asyncio: in order, once, and never on the event loop."""

from __future__ import annotations

import asyncio
import logging
import time
from contextlib import aclosing
from typing import Any

import pytest
from eric_sse.exception import InvalidListenerException
from eric_sse.listener import MessageQueueListener
from eric_sse.message import Message, MessageContract
from sqlalchemy import URL, text

from eric_sse_sql import BlockingSqlQueue, Database, SqlQueue
from eric_sse_sql.contract import ERIC_SSE_2_0, make_connection, register
from eric_sse_sql.streams.stream import UNAVAILABLE, UNDELIVERABLE, UNREADABLE
from support.catalog import rename_table
from support.forking import fork, forking
from support.loops import LoopTicks, locked, run
from support.queues import drain
from support.streams import RecordingListener, connected, events
from support.waiting import DEADLINE

if ERIC_SSE_2_0:
    pytest.skip("eric-sse 2.0 has no such channel", allow_module_level=True)


from eric_sse_sql import SqlSSEChannel


def test_messages_of_before_and_after_arrive_in_order(database: Database) -> None:
    channel, listener, queue = connected(database)
    queue.push_many(Message("n", n) for n in range(150))

    async def main() -> list[Any]:
        task = asyncio.create_task(events(channel, listener, 160))
        await asyncio.sleep(0.2)
        for n in range(150, 160):
            await asyncio.to_thread(queue.push, Message("n", n))
        return await task

    assert [event["data"] for event in run(main)] == list(range(160))
    assert listener.heard == list(range(160))
    assert drain(queue) == []


def test_a_push_of_another_process_reaches_an_idle_stream(shared_url: URL) -> None:
    with Database(shared_url) as database, Database(shared_url) as other:
        channel, listener, queue = connected(database)
        producer = SqlQueue(other, queue.id)

        async def main() -> list[Any]:
            task = asyncio.create_task(events(channel, listener, 10))
            for n in range(10):
                await asyncio.sleep(0.05)
                await asyncio.to_thread(producer.push, Message("n", n))
            return await task

        assert [event["data"] for event in run(main)] == list(range(10))


def test_an_unknown_listener_is_refused(database: Database) -> None:
    channel, _, _ = connected(database)
    with pytest.raises(InvalidListenerException):
        run(lambda: events(channel, MessageQueueListener(), 1))


def test_the_delay_of_the_channel_limits_the_rate(database: Database) -> None:
    channel, listener, queue = connected(database, stream_delay_seconds=0.1)
    queue.push_many(Message("n", n) for n in range(4))
    began = time.monotonic()
    run(lambda: events(channel, listener, 4))
    assert time.monotonic() - began >= 0.3


def test_a_listener_that_raises_causes_an_error_event_and_the_stream_continues(database: Database) -> None:
    channel, listener, queue = connected(database)
    queue.push_many(Message("n", payload) for payload in (1, "fail", 2))
    found = run(lambda: events(channel, listener, 3))
    assert [(event["event"], event["data"]) for event in found] == [("n", 1), ("error", UNDELIVERABLE), ("n", 2)]


def test_an_unreadable_message_causes_an_error_event_and_is_set_aside(
    database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    channel, listener, queue = connected(database)
    queue.push_many(Message("n", n) for n in range(3))
    damage = text("UPDATE sse_messages SET message = :blob WHERE id = (SELECT min(id) + 1 FROM sse_messages)")
    with database.engine.begin() as connection:
        connection.execute(damage, {"blob": b"damaged"})
    found = run(lambda: events(channel, listener, 3))
    assert [(event["event"], event["data"]) for event in found] == [("n", 0), ("error", UNREADABLE), ("n", 2)]
    assert (drain(queue), database.count_set_aside()) == ([], 1)
    assert len(caplog.records) == 1


def test_a_stream_delivers_a_message_that_was_set_aside_once_it_can_be_decoded(database: Database) -> None:
    channel, listener, queue = connected(database)
    queue.push_many(Message("n", n) for n in range(2))
    with database.engine.begin() as connection:
        first, good = connection.execute(text("SELECT id, message FROM sse_messages ORDER BY id LIMIT 1")).one()
        change = text("UPDATE sse_messages SET message = :blob WHERE id = :id")
        connection.execute(change, {"blob": b"damaged", "id": first})

    def repair() -> None:
        with database.engine.begin() as connection:
            change = text("UPDATE sse_set_aside_messages SET message = :blob WHERE id = :id")
            connection.execute(change, {"blob": good, "id": first})
        assert database.retry_set_aside() == 1

    async def main() -> list[Any]:
        found = []
        async with aclosing(channel.message_stream(listener)) as stream:
            while len(found) < 3:
                found.append(await anext(stream))
                if len(found) == 2:
                    await asyncio.to_thread(repair)
        return found

    found = run(main)
    assert [(event["event"], event["data"]) for event in found] == [("error", UNREADABLE), ("n", 1), ("n", 0)]


def test_the_event_loop_runs_while_the_database_is_locked(shared_url: URL) -> None:
    with Database(shared_url) as database:
        channel, listener, queue = connected(database)
        queue.push(Message("n", 7))

        async def main() -> tuple[int, list[Any]]:
            with locked(shared_url):
                task = asyncio.create_task(events(channel, listener, 1))
                ticks = LoopTicks()
                await asyncio.sleep(1)
                count, was_done = ticks.stop(), task.done()
            assert not was_done
            return count, await task

        count, found = run(main)
        assert [event["data"] for event in found] == [7]
        assert count >= 20


@forking
def test_a_forked_child_streams_beside_its_parent(shared_url: URL) -> None:
    with Database(shared_url) as database, Database(shared_url) as producer:
        (of_child, child_listener, child_queue), (of_parent, parent_listener, _) = (
            connected(database),
            connected(database),
        )
        of_parent.dispatch(parent_listener.id, Message("n", "before"))
        assert run(lambda: events(of_parent, parent_listener, 1))[0]["data"] == "before"
        database.background.poller.start()

        def stream() -> None:
            SqlQueue(database, "to the parent").push(Message("ready"))
            assert [event["data"] for event in run(lambda: events(of_child, child_listener, 3))] == [0, 1, 2]

        with fork(stream):
            assert BlockingSqlQueue(producer, "to the parent").pop(DEADLINE).type == "ready"
            time.sleep(0.2)  # until it waits
            for n in range(3):
                SqlQueue(producer, child_queue.id).push(Message("n", n))
                of_parent.dispatch(parent_listener.id, Message("n", n))
            assert [event["data"] for event in run(lambda: events(of_parent, parent_listener, 3))] == [0, 1, 2]


def test_an_outage_of_many_streams_is_logged_once_when_it_begins_and_once_when_it_ends(
    database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "eric_sse_sql")
    connections = [connected(database) for _ in range(5)]

    async def main() -> list[list[Any]]:
        tasks = [asyncio.create_task(events(channel, listener, 2)) for channel, listener, _ in connections]
        await asyncio.sleep(0.3)
        await asyncio.to_thread(rename_table, database, "sse_messages", "elsewhere")
        for _, _, queue in connections:
            queue.watch.bump()  # each asks, and fails
        await asyncio.sleep(1)
        await asyncio.to_thread(rename_table, database, "elsewhere", "sse_messages")
        for _, _, queue in connections:
            await asyncio.to_thread(queue.push, Message("n", 7))
        return await asyncio.gather(*tasks)

    found = run(main)
    assert [[(event["event"], event["data"]) for event in each] for each in found] == [
        [("error", UNAVAILABLE), ("n", 7)]
    ] * 5
    database.background.leave(database.watcher)  # its poll may be failing still
    database.background.outage.end(database.watcher)
    first, last = caplog.messages
    assert "can't be queried" in first and "again" in last


def test_an_outage_causes_one_error_event_and_the_stream_continues_after_it(database: Database) -> None:
    channel, listener, queue = connected(database)

    async def main() -> list[Any]:
        await asyncio.to_thread(rename_table, database, "sse_messages", "elsewhere")
        task = asyncio.create_task(events(channel, listener, 2))
        await asyncio.sleep(0.8)
        await asyncio.to_thread(rename_table, database, "elsewhere", "sse_messages")
        await asyncio.to_thread(queue.push, Message("n", 7))
        return await task

    assert [(event["event"], event["data"]) for event in run(main)] == [("error", UNAVAILABLE), ("n", 7)]


def test_a_stream_continues_when_the_server_has_closed_every_connection(migrated_postgres: URL) -> None:
    drop = text(
        "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity "  # and wait until it has gone
        "WHERE datname = current_database() AND pid <> pg_backend_pid()"
    )
    with Database(migrated_postgres) as database, Database(migrated_postgres) as other:
        channel, listener, queue = connected(database)
        seen: list[Any] = []

        async def consume() -> None:
            async for event in channel.message_stream(listener):
                if event["event"] != "error":
                    seen.append(event["data"])

        async def main() -> None:
            task = asyncio.create_task(consume())
            for n in range(3):
                await asyncio.sleep(0.3)
                with other.engine.connect() as connection:
                    connection.execute(drop)
                await asyncio.to_thread(SqlQueue(other, queue.id).push, Message("n", n))
                while len(seen) <= n:
                    await asyncio.sleep(0.01)
            listener.stop()
            await task

        run(main)
        assert seen == [0, 1, 2]


class Doubling(SqlQueue):
    """A queue that changes what is popped."""

    def pop(self) -> MessageContract:
        message = super().pop()
        return Message(message.type, message.payload * 2)  # type: ignore[operator]


def test_a_queue_class_that_overrides_pop_is_streamed_through_it(database: Database) -> None:
    channel, listener, queue = SqlSSEChannel(), RecordingListener(), Doubling(database)
    register(channel, make_connection(listener, queue, "c"))
    listener.start()
    queue.push(Message("n", 21))
    assert [event["data"] for event in run(lambda: events(channel, listener, 1))] == [42]
