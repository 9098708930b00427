"""The feeder: one statement for the queues of all streams that wait, and no message lost on its way to them."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack, aclosing, suppress
from typing import Any

import pytest
from eric_sse.message import Message
from sqlalchemy import URL, event

from eric_sse_sql import Database, SqlQueue
from support.cutting_proxy import COMMIT, CuttingProxy
from support.databases import opened
from support.forking import fork, forking
from support.loops import run
from support.queues import drain
from support.streams import connected, events
from support.waiting import DEADLINE, until


def test_a_fetch_whose_commit_has_no_reply_loses_no_message_and_doubles_none(database: Database) -> None:
    connections = [connected(database) for _ in range(3)]
    for _, _, queue in connections:
        queue.push_many(Message("n", n) for n in range(5))
    lost = lose_first_reply(database, commit)

    async def main() -> list[list[Any]]:
        return list(await asyncio.gather(*(numbers(channel, listener, 4) for channel, listener, _ in connections)))

    assert run(main) == [[0, 1, 2, 3, 4]] * 3
    assert lost
    assert [len(queue) for _, _, queue in connections] == [0, 0, 0]


def lose_first_reply(database: Database, reply: Callable[[Any], None]) -> list[bool]:
    """Lose the reply to the first COMMIT of a fetch: a function decides what becomes of its transaction."""
    lost: list[bool] = []

    def lose(connection: Any) -> None:
        if threading.current_thread().name.startswith("eric_sse_sql stream") and not lost:
            lost.append(True)
            reply(connection)
            raise ConnectionError("the reply is lost")

    event.listen(database.engine, "commit", lose)
    return lost


def commit(connection: Any) -> None:
    connection.connection.driver_connection.commit()


async def numbers(channel: Any, listener: Any, last: int) -> list[Any]:
    """The messages of a stream, up to a last one."""
    found: list[Any] = []
    async with aclosing(channel.message_stream(listener)) as stream:
        async for each in stream:
            found.extend([each["data"]] if each["event"] == "n" else [])
            if found[-1:] == [last]:
                break
    return found


def test_a_fetch_that_was_rolled_back_without_a_reply_is_repeated(database: Database) -> None:
    channel, listener, queue = connected(database)
    queue.push_many(Message("n", n) for n in range(5))
    lost = lose_first_reply(database, lambda connection: None)
    assert run(lambda: numbers(channel, listener, 4)) == [0, 1, 2, 3, 4]
    assert lost and drain(queue) == []


def test_a_fetch_in_doubt_outlasts_an_outage_of_the_database(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("eric_sse_sql.streams.source.PUT_BACK_SECONDS", 0.1)
    channel, listener, queue = connected(database)
    queue.push_many(Message("n", n) for n in range(5))
    outage_ends: list[float] = []

    def begin_outage(connection: Any) -> None:
        commit(connection)
        outage_ends.append(time.monotonic() + 1)

    def fail(*arguments: object) -> None:
        if outage_ends and time.monotonic() < outage_ends[0]:
            raise ConnectionError("the database can't be reached")

    lose_first_reply(database, begin_outage)
    event.listen(database.engine, "before_cursor_execute", fail)
    assert run(lambda: numbers(channel, listener, 4)) == [0, 1, 2, 3, 4]
    assert drain(queue) == []


def test_a_fetch_in_doubt_goes_back_where_its_stream_has_ended_meanwhile(database: Database) -> None:
    channel, listener, queue = connected(database)
    queue.push_many(Message("n", n) for n in range(5))
    is_committed, may_go_on = threading.Event(), threading.Event()

    def hold(connection: Any) -> None:
        commit(connection)
        is_committed.set()
        assert may_go_on.wait(DEADLINE)

    lose_first_reply(database, hold)

    async def main() -> None:
        task = asyncio.create_task(events(channel, listener, 1))
        await asyncio.to_thread(is_committed.wait, DEADLINE)
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
        may_go_on.set()
        await asyncio.to_thread(until, lambda: len(queue) == 5)

    run(main)
    assert drain(queue) == [0, 1, 2, 3, 4]


def test_a_fetch_whose_transaction_has_not_ended_is_in_doubt_until_it_has(migrated_postgres: URL) -> None:
    with opened(migrated_postgres) as database, ExitStack() as stack:
        channel, listener, queue = connected(database)
        queue.push_many(Message("n", n) for n in range(5))
        is_in_doubt = threading.Event()

        def commit_later(connection: Any) -> None:
            driver = connection.connection.driver_connection
            connection.connection.detach()
            connection.invalidate()  # which leaves the detached one open

            def commit() -> None:
                assert is_in_doubt.wait(DEADLINE)
                driver.commit()
                driver.close()

            thread = threading.Thread(target=commit)
            thread.start()
            stack.callback(thread.join)

        def note(context: Any) -> None:
            if getattr(context.original_exception, "sqlstate", None) == "55P03":  # a row that is looked up is locked
                is_in_doubt.set()

        lose_first_reply(database, commit_later)
        event.listen(database.engine, "handle_error", note)
        assert run(lambda: numbers(channel, listener, 4)) == [0, 1, 2, 3, 4]
        assert is_in_doubt.is_set() and drain(queue) == []


def test_a_fetch_that_was_rolled_back_delivers_nothing_that_another_consumer_has_popped(migrated_postgres: URL) -> None:
    with opened(migrated_postgres) as database, opened(migrated_postgres) as other:
        channel, listener, queue = connected(database)
        queue.push_many(Message("n", n) for n in range(4))
        popped: list[Any] = []

        def pop_elsewhere(connection: Any) -> None:
            connection.connection.driver_connection.rollback()
            same_queue = SqlQueue(other, queue.id)
            popped.extend(drain(same_queue))
            same_queue.push(Message("n", 4))

        lose_first_reply(database, pop_elsewhere)
        assert run(lambda: numbers(channel, listener, 4)) == [4]
        assert popped == [0, 1, 2, 3] and drain(queue) == []


def test_a_reply_to_commit_that_is_lost_on_its_way_loses_no_message(migrated_postgres: URL) -> None:
    with CuttingProxy(migrated_postgres) as proxy, opened(proxy.url) as database:
        channel, listener, queue = connected(database)
        queue.push_many(Message("n", n) for n in range(100))
        proxy.lose_reply_to(COMMIT)
        assert run(lambda: numbers(channel, listener, 99)) == list(range(100))
        assert proxy.has_lost_reply
        assert drain(queue) == []


def test_a_stream_that_ends_while_its_messages_are_fetched_does_not_keep_others_from_theirs(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("eric_sse_sql.streams.source.PUT_BACK_SECONDS", 0.2)
    (gone, gone_listener, gone_queue), (channel, listener, queue) = connected(database), connected(database)
    for each in (gone_queue, queue):
        each.push(Message("n", 1))
    is_fetching, may_commit = threading.Event(), threading.Event()

    def hold(connection: Any) -> None:
        if threading.current_thread().name.startswith("eric_sse_sql stream"):
            is_fetching.set()
            assert may_commit.wait(DEADLINE)

    event.listen(database.engine, "commit", hold)

    async def main() -> list[Any]:
        first = asyncio.create_task(events(gone, gone_listener, 1))
        second = asyncio.create_task(events(channel, listener, 2))
        await asyncio.to_thread(is_fetching.wait, DEADLINE)
        first.cancel()
        with suppress(asyncio.CancelledError):
            await first
        may_commit.set()
        await asyncio.to_thread(until, lambda: len(gone_queue) == 1)  # what it has not got is back
        await asyncio.to_thread(queue.push, Message("n", 2))
        return await second

    assert [each["data"] for each in run(main)] == [1, 2]


def test_closing_a_database_waits_for_messages_that_go_back(shared_url: URL) -> None:
    with Database(shared_url) as database:
        channel, listener, queue = connected(database)
        queue.push(Message("n", 1))
        is_fetching = threading.Event()

        def slow(connection: Any) -> None:
            if threading.current_thread().name.startswith("eric_sse_sql stream"):
                is_fetching.set()
                threading.Event().wait(0.3)

        event.listen(database.engine, "commit", slow)

        async def main() -> None:
            task = asyncio.create_task(events(channel, listener, 1))
            await asyncio.to_thread(is_fetching.wait, DEADLINE)
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task

        run(main)
    with opened(shared_url) as again:
        assert len(type(queue)(again, queue.id)) == 1


def test_streams_of_another_loop_go_on_when_a_loop_is_closed_just_after_its_stream_has_asked(
    database: Database,
) -> None:
    (gone, gone_listener, _), (channel, listener, queue) = connected(database), connected(database)
    loop = asyncio.new_event_loop()
    task = loop.create_task(events(gone, gone_listener, 1))
    for _ in range(5):  # turns of the loop, one of which ends where the stream has asked
        loop.call_soon(loop.stop)
        loop.run_forever()
        queue.push(Message("n", 1))
        assert [each["data"] for each in run(lambda: events(channel, listener, 1))] == [1]
    task.cancel()
    with suppress(asyncio.CancelledError):
        loop.run_until_complete(task)
    loop.close()


@forking
def test_a_forked_child_streams_on_the_channel_object_of_its_parent(shared_url: URL) -> None:
    with opened(shared_url) as database:
        channel, listener, queue = connected(database)
        is_fetching, may_go_on = threading.Event(), threading.Event()

        def hold(connection: Any) -> None:
            if threading.current_thread().name.startswith("eric_sse_sql stream") and not is_fetching.is_set():
                is_fetching.set()
                assert may_go_on.wait(DEADLINE)

        event.listen(database.engine, "begin", hold)  # before SQLite locks the file
        queue.push(Message("n", 1))

        def child() -> None:
            other, other_listener, other_queue = connected(database)
            other_queue.push(Message("n", 7))
            assert [each["data"] for each in run(lambda: events(other, other_listener, 1))] == [7]

        async def main() -> list[Any]:
            task = asyncio.create_task(events(channel, listener, 1))
            await asyncio.to_thread(is_fetching.wait, DEADLINE)
            with fork(child):
                pass
            may_go_on.set()
            return await task

        assert [each["data"] for each in run(main)] == [1]
        assert drain(queue) == []
