"""``PrefetchBuffer``: a consumer that stops, in whatever moment, loses no message."""

from __future__ import annotations

import asyncio
import random
from contextlib import aclosing, suppress
from typing import Any

import pytest
from eric_sse.exception import RepositoryError
from eric_sse.message import Message, MessageContract
from sqlalchemy import URL, text

from eric_sse_sql import Database, SqlQueue
from eric_sse_sql.contract import ERIC_SSE_2_0
from eric_sse_sql.streams import source
from eric_sse_sql.streams.source import UNREADABLE
from eric_sse_sql.streams.stream import UNAVAILABLE
from support.catalog import rename_table
from support.loops import LoopTicks, locked, run
from support.queues import drain
from support.streams import connected, events
from support.waiting import until

if ERIC_SSE_2_0:
    pytest.skip("eric-sse 2.0 has no such channel", allow_module_level=True)


def unreadable(message_type: str, blob: bytes) -> MessageContract:
    raise RepositoryError("as it was told")


def test_50_consumers_that_disconnect_lose_no_message(database: Database) -> None:
    channel, listener, queue = connected(database)
    queue.push_many(Message("n", n) for n in range(500))
    rng = random.Random(50)

    async def main() -> list[Any]:
        seen: list[Any] = []

        async def consume() -> None:
            async with aclosing(channel.message_stream(listener)) as stream:
                async for event in stream:
                    seen.append(event["data"])

        for _ in range(50):
            task = asyncio.create_task(consume())
            for _ in range(rng.randint(0, 8)):
                await asyncio.sleep(rng.choice([0, 0, 0.001]))
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
            while len(seen) + len(queue) < 500:
                await asyncio.sleep(0.01)
        # By a stream, whose fetch comes after all that were under way, and what those give back.
        return seen + [event["data"] for event in await events(channel, listener, 500 - len(seen))]

    assert run(main) == list(range(500))


@pytest.mark.parametrize("way", ["closed", "cancelled", "stopped"])
def test_the_event_loop_runs_while_an_ending_stream_puts_back_into_a_locked_database(shared_url: URL, way: str) -> None:
    with Database(shared_url) as database:
        channel, listener, queue = connected(database)
        queue.push_many(Message("n", n) for n in range(10))
        has_begun, may_end = asyncio.Event(), asyncio.Event()

        async def consume() -> None:
            async with aclosing(channel.message_stream(listener)) as stream:
                assert (await anext(stream))["data"] == 0
                has_begun.set()
                await may_end.wait()
                if way == "stopped":
                    listener.stop()
                    assert [event async for event in stream] == []

        async def main() -> int:
            task = asyncio.create_task(consume())
            await has_begun.wait()
            with locked(shared_url):
                ticks = LoopTicks()
                if way == "cancelled":
                    task.cancel()
                may_end.set()
                await asyncio.sleep(1)
                count = ticks.stop()
            with suppress(asyncio.CancelledError):
                await task
            return count

        assert run(main) >= 20
        assert drain(queue) == list(range(1, 10))


def test_the_event_loop_runs_while_an_unreadable_message_is_set_aside_in_a_locked_database(
    shared_url: URL, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Database(shared_url) as database:
        channel, listener, queue = connected(database)
        queue.push_many(Message("n", n) for n in range(3))

        async def main() -> int:
            async with aclosing(channel.message_stream(listener)) as stream:
                assert (await anext(stream))["data"] == 0
                monkeypatch.setattr(queue, "decoded", unreadable)
                with locked(shared_url, "sse_set_aside_messages"):
                    ticks = LoopTicks()
                    going_on = asyncio.ensure_future(anext(stream))
                    await asyncio.sleep(1)
                    count = ticks.stop()
                assert (await going_on)["event"] == "error"
            return count

        assert run(main) >= 20
        assert (drain(SqlQueue(database, queue.id)), database.count_set_aside()) == ([2], 1)


def test_a_consumer_that_is_cancelled_while_a_message_is_set_aside_leaves_it_in_one_table(
    shared_url: URL, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Database(shared_url) as database:
        channel, listener, queue = connected(database)
        queue.push_many(Message("n", n) for n in range(3))

        async def main() -> None:
            async with aclosing(channel.message_stream(listener)) as stream:
                assert (await anext(stream))["data"] == 0
                monkeypatch.setattr(queue, "decoded", unreadable)
                with locked(shared_url, "sse_set_aside_messages"):
                    going_on = asyncio.ensure_future(anext(stream))
                    await asyncio.sleep(0.2)
                    going_on.cancel()
                    await asyncio.sleep(0.2)
                with suppress(asyncio.CancelledError):
                    await going_on

        run(main)
        other = SqlQueue(database, queue.id)
        until(lambda: (len(other), database.count_set_aside()) == (1, 1))
        assert database.retry_set_aside() == 1
        assert drain(other) == [1, 2]


def test_a_message_that_can_not_be_set_aside_is_set_aside_once_the_database_can_be_queried(database: Database) -> None:
    channel, listener, queue = connected(database)
    queue.push_many(Message("n", n) for n in range(3))
    damage = text("UPDATE sse_messages SET message = :blob WHERE id = (SELECT min(id) FROM sse_messages)")
    with database.engine.begin() as connection:
        connection.execute(damage, {"blob": b"damaged"})

    async def main() -> list[Any]:
        found = []
        async with aclosing(channel.message_stream(listener)) as stream:
            rename_table(database, "sse_set_aside_messages", "hidden")
            found.append(await anext(stream))
            rename_table(database, "hidden", "sse_set_aside_messages")
            while len(found) < 4:
                found.append(await anext(stream))
        return found

    found = run(main)
    assert [each["data"] for each in found] == [UNAVAILABLE, UNREADABLE, 1, 2]
    assert database.count_set_aside() == 1


def test_what_an_open_stream_has_fetched_goes_back_when_its_database_is_closed(shared_url: URL) -> None:
    with Database(shared_url) as database:
        channel, listener, queue = connected(database)
        queue.push_many(Message("n", n) for n in range(10))

        async def main() -> None:
            async with aclosing(channel.message_stream(listener)) as stream:
                assert [(await anext(stream))["data"] for _ in range(2)] == [0, 1]
                database.close()
                with pytest.raises(RepositoryError, match="closed"):
                    await anext(stream)

        run(main)
    with Database(shared_url) as other:
        assert drain(SqlQueue(other, queue.id)) == list(range(2, 10))


def test_a_consumer_that_is_cancelled_twice_while_messages_are_put_back_loses_none(shared_url: URL) -> None:
    with Database(shared_url) as database:
        # The delay lets most be fetched, and not delivered.
        channel, listener, queue = connected(database, stream_delay_seconds=60)
        queue.push_many(Message("n", n) for n in range(10))

        async def main() -> None:
            task = asyncio.create_task(events(channel, listener, 11))
            while not listener.heard:
                await asyncio.sleep(0.01)
            with locked(shared_url):
                for _ in range(2):
                    task.cancel()
                    await asyncio.sleep(0.1)
            with suppress(asyncio.CancelledError):
                await task

        run(main)
        until(lambda: len(queue) == 9)
        assert drain(queue) == list(range(1, 10))


def test_a_database_that_is_closed_while_messages_are_fetched_or_put_back_loses_none(shared_url: URL) -> None:
    with Database(shared_url) as database:
        channel, listener, queue = connected(database, stream_delay_seconds=60)
        queue.push_many(Message("n", n) for n in range(10))

        async def main() -> None:
            fetched = asyncio.create_task(events(channel, listener, 11))
            while not listener.heard:
                await asyncio.sleep(0.01)
            with locked(shared_url):
                fetched.cancel()
                fetching = asyncio.create_task(events(channel, listener, 1))
                await asyncio.sleep(0.1)
                for _ in range(2):
                    fetching.cancel()
                    fetched.cancel()
                    await asyncio.sleep(0.1)

        run(main)
    with Database(shared_url) as other:
        assert drain(SqlQueue(other, queue.id)) == list(range(1, 10))


def test_a_consumer_that_disconnects_during_a_fetch_loses_no_message(shared_url: URL) -> None:
    with Database(shared_url) as database:
        channel, listener, queue = connected(database)
        queue.push_many(Message("n", n) for n in range(10))

        async def main() -> None:
            with locked(shared_url):
                task = asyncio.create_task(events(channel, listener, 1))
                await asyncio.sleep(0.3)  # the fetch waits for the lock
                task.cancel()
                with suppress(asyncio.CancelledError):
                    await task

        run(main)
        found: list[Any] = []
        until(lambda: found.extend(drain(queue)) or len(found) == 10)  # the fetch takes them, and puts them back
        assert found == list(range(10))


def test_a_consumer_that_disconnects_in_an_outage_loses_no_message(database: Database) -> None:
    channel, listener, queue = connected(database)
    queue.push_many(Message("n", n) for n in range(10))

    async def main() -> None:
        stream = channel.message_stream(listener)
        assert (await anext(stream))["data"] == 0
        await asyncio.to_thread(rename_table, database, "sse_messages", "elsewhere")
        closing = asyncio.create_task(stream.aclose())
        await asyncio.sleep(0.3)
        assert not closing.done()
        await asyncio.to_thread(rename_table, database, "elsewhere", "sse_messages")
        await closing

    run(main)
    assert drain(queue) == list(range(1, 10))


def test_messages_that_can_not_be_put_back_in_time_are_counted_in_the_log(
    database: Database, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(source, "PUT_BACK_SECONDS", 0.2)
    channel, listener, queue = connected(database)
    queue.push_many(Message("n", n) for n in range(10))

    async def main() -> None:
        stream = channel.message_stream(listener)
        assert (await anext(stream))["data"] == 0
        await asyncio.to_thread(rename_table, database, "sse_messages", "elsewhere")
        with pytest.raises(RepositoryError, match="can't be put back"):
            await stream.aclose()

    try:
        run(main)
    finally:
        rename_table(database, "elsewhere", "sse_messages")
    assert [record.getMessage() for record in caplog.records if record.levelname == "ERROR"] == [
        "9 messages that were fetched for a stream can't be put back"
    ]
