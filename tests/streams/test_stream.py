"""Streams in asyncio: in order, once, and never on the event loop."""

from __future__ import annotations

import asyncio
import logging
import random
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, contextmanager, suppress
from typing import Any

import pytest
from eric_sse.exception import InvalidListenerException, NoMessagesException, RepositoryError
from eric_sse.listener import MessageQueueListener
from eric_sse.message import Message, MessageContract
from sqlalchemy import URL, text

from eric_sse_sql import BlockingSqlQueue, Database, SqlQueue
from eric_sse_sql.contract import ERIC_SSE_2_0, make_connection, register
from eric_sse_sql.streams import source
from support.processes import fork, forking
from support.statements import Record

if ERIC_SSE_2_0:
    pytest.skip("eric-sse 2.0 has no such channel", allow_module_level=True)

from eric_sse.prefabs import SSEChannel

from eric_sse_sql import SqlConnectionsFactory, SqlSSEChannel

DEADLINE = 30  # seconds


class Noting(MessageQueueListener):
    """Notes what it hears, and fails where it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.heard: list[Any] = []

    def on_message(self, msg: MessageContract) -> None:
        if msg.payload == "fail":
            raise ValueError("as it was told")
        self.heard.append(msg.payload)


def connected(database: Database, **options: Any) -> tuple[SqlSSEChannel, Noting, SqlQueue]:
    channel = SqlSSEChannel(connections_factory=SqlConnectionsFactory(database), **options)
    listener = Noting()
    channel.register_listener(listener)
    listener.start()
    return channel, listener, channel._get_queue(listener.id)


def run(main: Callable[[], Awaitable[Any]]) -> Any:
    async def in_time() -> Any:
        return await asyncio.wait_for(main(), DEADLINE)

    return asyncio.run(in_time())


async def events(channel: Any, listener: MessageQueueListener, count: int) -> list[Any]:
    found: list[Any] = []
    async with aclosing(channel.message_stream(listener)) as stream:
        while len(found) < count:
            found.append(await anext(stream))
    return found


def left(queue: SqlQueue) -> list[Any]:
    """What is in a queue, which is empty then."""
    payloads: list[Any] = []
    with suppress(NoMessagesException):
        while True:
            payloads.append(queue.pop().payload)
    return payloads


@contextmanager
def locked(url: URL) -> Iterator[None]:
    """Another process holds the messages locked, though not so long that an event loop that waits for it hangs."""
    is_locked, may_end = threading.Event(), threading.Event()

    def hold() -> None:
        with Database(url) as other, other.transaction():
            if other.engine.dialect.name == "postgresql":
                other.connection().execute(text("LOCK TABLE sse_messages IN ACCESS EXCLUSIVE MODE"))
            is_locked.set()
            may_end.wait(10)

    thread = threading.Thread(target=hold)
    thread.start()
    try:
        assert is_locked.wait(DEADLINE)
        yield
    finally:
        may_end.set()
        thread.join(DEADLINE)


class Heart:
    """Counts how often the event loop comes round, 100 times a second at the most."""

    def __init__(self) -> None:
        self.beats = 0
        self._task = asyncio.create_task(self._beat())

    async def _beat(self) -> None:
        while True:
            await asyncio.sleep(0.01)
            self.beats += 1

    def stop(self) -> int:
        self._task.cancel()
        return self.beats


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
    assert left(queue) == []


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


def test_stopping_the_listener_ends_an_idle_stream(database: Database) -> None:
    channel, listener, _ = connected(database)
    stopped: list[float] = []

    def stop() -> None:
        stopped.append(time.monotonic())
        listener.stop()

    async def main() -> list[Any]:
        asyncio.get_running_loop().call_later(0.3, stop)
        return [event async for event in channel.message_stream(listener)]

    assert run(main) == []
    assert time.monotonic() - stopped[0] < 5


def test_stopping_the_listener_ends_a_busy_stream(database: Database) -> None:
    channel, listener, queue = connected(database)
    queue.push_many(Message("n", n) for n in range(10))

    async def main() -> list[Any]:
        found = []
        async for event in channel.message_stream(listener):
            found.append(event["data"])
            if len(found) == 3:
                listener.stop()
        return found

    assert run(main) == [0, 1, 2]
    assert left(queue) == list(range(3, 10))


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


def test_a_listener_that_raises_is_an_error_and_the_stream_goes_on(database: Database) -> None:
    channel, listener, queue = connected(database)
    queue.push_many(Message("n", payload) for payload in (1, "fail", 2))
    found = run(lambda: events(channel, listener, 3))
    assert [(event["event"], event["data"]) for event in found] == [("n", 1), ("error", None), ("n", 2)]


def test_a_message_that_can_not_be_read_is_an_error_and_stays(database: Database) -> None:
    channel, listener, queue = connected(database)
    queue.push_many(Message("n", n) for n in range(3))
    damage = text("UPDATE sse_messages SET message = :blob WHERE id = (SELECT min(id) + 1 FROM sse_messages)")
    with database.engine.begin() as connection:
        good = connection.scalar(text("SELECT message FROM sse_messages ORDER BY id LIMIT 1 OFFSET 1"))
        connection.execute(damage, {"blob": b"damaged"})
    found = run(lambda: events(channel, listener, 2))
    assert [(event["event"], event["data"]) for event in found] == [("n", 0), ("error", None)]
    with database.engine.begin() as connection:
        connection.execute(
            text("UPDATE sse_messages SET message = :blob WHERE id = (SELECT min(id) FROM sse_messages)"),
            {"blob": good},
        )
    assert left(queue) == [1, 2]


def test_a_stream_goes_on_once_a_message_that_could_not_be_read_is_repaired(database: Database) -> None:
    channel, listener, queue = connected(database)
    queue.push_many(Message("n", n) for n in range(3))
    change = text("UPDATE sse_messages SET message = :blob WHERE id = :id")
    with database.engine.begin() as connection:
        first, good = connection.execute(text("SELECT id, message FROM sse_messages ORDER BY id LIMIT 1")).one()
        connection.execute(change, {"blob": b"damaged", "id": first})

    def repair() -> None:
        with database.engine.begin() as connection:
            connection.execute(change, {"blob": good, "id": first})

    async def main() -> list[Any]:
        found = []
        async with aclosing(channel.message_stream(listener)) as stream:
            while len(found) < 4:
                found.append(await anext(stream))
                if len(found) == 1:
                    await asyncio.to_thread(repair)
        return found

    found = run(main)
    assert [(event["event"], event["data"]) for event in found] == [("error", None), ("n", 0), ("n", 1), ("n", 2)]


def test_50_consumers_that_go_away_lose_nothing(database: Database) -> None:
    channel, listener, queue = connected(database)
    queue.push_many(Message("n", n) for n in range(500))
    rng = random.Random(50)

    async def main() -> list[Any]:
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(1))  # in which one waits for the other
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
            await asyncio.to_thread(int)  # a fetch that was under way has ended then, and gives back what it has got
            while len(seen) + len(queue) < 500:
                await asyncio.sleep(0.01)
        return seen

    seen = run(main)
    assert seen + left(queue) == list(range(500))


def test_the_event_loop_goes_on_while_the_database_is_locked(shared_url: URL) -> None:
    with Database(shared_url) as database:
        channel, listener, queue = connected(database)
        queue.push(Message("n", 7))

        async def main() -> tuple[int, list[Any]]:
            with locked(shared_url):
                task = asyncio.create_task(events(channel, listener, 1))
                heart = Heart()
                await asyncio.sleep(1)
                beats, was_done = heart.stop(), task.done()
            assert not was_done
            return beats, await task

        beats, found = run(main)
        assert [event["data"] for event in found] == [7]
        assert beats >= 20


@pytest.mark.parametrize("way", ["closed", "cancelled", "stopped"])
def test_the_event_loop_goes_on_while_a_stream_that_ends_gives_back_to_a_locked_database(
    shared_url: URL, way: str
) -> None:
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
                heart = Heart()
                if way == "cancelled":
                    task.cancel()
                may_end.set()
                await asyncio.sleep(1)
                beats = heart.stop()
            with suppress(asyncio.CancelledError):
                await task
            return beats

        assert run(main) >= 20
        assert left(queue) == list(range(1, 10))


def test_the_event_loop_goes_on_while_an_unreadable_message_goes_back_to_a_locked_database(
    shared_url: URL, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Database(shared_url) as database:
        channel, listener, queue = connected(database)
        queue.push_many(Message("n", n) for n in range(3))

        async def main() -> int:
            async with aclosing(channel.message_stream(listener)) as stream:
                assert (await anext(stream))["data"] == 0
                monkeypatch.setattr(queue, "decoded", unreadable)
                with locked(shared_url):
                    heart = Heart()
                    going_on = asyncio.ensure_future(anext(stream))
                    await asyncio.sleep(1)
                    beats = heart.stop()
                assert (await going_on)["event"] == "error"
            return beats

        def unreadable(row: Any) -> MessageContract:
            raise RepositoryError("as it was told")

        assert run(main) >= 20
        assert left(SqlQueue(database, queue.id)) == [1, 2]


def test_a_consumer_that_goes_away_twice_while_its_messages_go_back_loses_nothing(shared_url: URL) -> None:
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
        assert left(queue) == list(range(1, 10))


def test_a_consumer_that_goes_away_while_a_fetch_is_under_way_loses_nothing(shared_url: URL) -> None:
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

        run(main)  # and with the event loop end the threads
        assert left(queue) == list(range(10))


def rename(database: Database, one: str, other: str) -> None:
    with database.engine.begin() as connection:
        connection.execute(text(f"ALTER TABLE {one} RENAME TO {other}"))


def test_a_consumer_that_goes_away_in_an_outage_loses_nothing(database: Database) -> None:
    channel, listener, queue = connected(database)
    queue.push_many(Message("n", n) for n in range(10))

    async def main() -> None:
        stream = channel.message_stream(listener)
        assert (await anext(stream))["data"] == 0
        await asyncio.to_thread(rename, database, "sse_messages", "elsewhere")
        closing = asyncio.create_task(stream.aclose())
        await asyncio.sleep(0.3)
        assert not closing.done()
        await asyncio.to_thread(rename, database, "elsewhere", "sse_messages")
        await closing

    run(main)
    assert left(queue) == list(range(1, 10))


def test_messages_that_can_not_be_given_back_in_time_are_counted_in_the_log(
    database: Database, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(source, "PUT_BACK_SECONDS", 0.2)
    channel, listener, queue = connected(database)
    queue.push_many(Message("n", n) for n in range(10))

    async def main() -> None:
        stream = channel.message_stream(listener)
        assert (await anext(stream))["data"] == 0
        await asyncio.to_thread(rename, database, "sse_messages", "elsewhere")
        with pytest.raises(RepositoryError, match="can't be put back"):
            await stream.aclose()

    try:
        run(main)
    finally:
        rename(database, "elsewhere", "sse_messages")
    assert [record.getMessage() for record in caplog.records if record.levelname == "ERROR"] == [
        "9 messages that were fetched for a stream can't be put back"
    ]


@forking
def test_a_forked_child_streams_beside_its_parent(shared_url: URL) -> None:
    with Database(shared_url) as database, Database(shared_url) as producer:
        (of_child, child_listener, _), (of_parent, parent_listener, _) = connected(database), connected(database)
        of_parent.dispatch(parent_listener.id, Message("n", "before"))
        assert run(lambda: events(of_parent, parent_listener, 1))[0]["data"] == "before"
        database.watcher.start()

        def stream() -> None:
            SqlQueue(database, "to the parent").push(Message("ready"))
            assert [event["data"] for event in run(lambda: events(of_child, child_listener, 3))] == [0, 1, 2]

        with fork(stream):
            assert BlockingSqlQueue(producer, "to the parent").pop(DEADLINE).type == "ready"
            time.sleep(0.2)  # until it waits
            for n in range(3):
                SqlQueue(producer, of_child._get_queue(child_listener.id).id).push(Message("n", n))
                of_parent.dispatch(parent_listener.id, Message("n", n))
            assert [event["data"] for event in run(lambda: events(of_parent, parent_listener, 3))] == [0, 1, 2]


def test_an_outage_of_many_streams_is_a_line_when_it_begins_and_one_when_it_ends(
    database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "eric_sse_sql")
    connections = [connected(database) for _ in range(5)]

    async def main() -> list[list[Any]]:
        tasks = [asyncio.create_task(events(channel, listener, 2)) for channel, listener, _ in connections]
        await asyncio.sleep(0.3)
        await asyncio.to_thread(rename, database, "sse_messages", "elsewhere")
        for _, _, queue in connections:
            queue.watch.bump()  # each asks, and fails
        await asyncio.sleep(1)
        await asyncio.to_thread(rename, database, "elsewhere", "sse_messages")
        for _, _, queue in connections:
            await asyncio.to_thread(queue.push, Message("n", 7))
        return await asyncio.gather(*tasks)

    found = run(main)
    assert [[(event["event"], event["data"]) for event in each] for each in found] == [[("error", None), ("n", 7)]] * 5
    database.watcher.close()  # which may be failing still
    database.watcher.outage.end(database.watcher)
    first, last = caplog.messages
    assert "can't be queried" in first and "again" in last


def test_an_outage_is_one_error_and_ends_by_itself(database: Database) -> None:
    channel, listener, queue = connected(database)

    async def main() -> list[Any]:
        await asyncio.to_thread(rename, database, "sse_messages", "elsewhere")
        task = asyncio.create_task(events(channel, listener, 2))
        await asyncio.sleep(0.8)
        await asyncio.to_thread(rename, database, "elsewhere", "sse_messages")
        await asyncio.to_thread(queue.push, Message("n", 7))
        return await task

    assert [(event["event"], event["data"]) for event in run(main)] == [("error", None), ("n", 7)]


def test_a_stream_goes_on_when_the_server_has_dropped_every_connection(migrated_postgres: URL) -> None:
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


def test_idle_streams_cost_no_statement_but_the_looks_of_one_thread(database: Database, statements: Record) -> None:
    channel = SqlSSEChannel(connections_factory=SqlConnectionsFactory(database))
    listeners = [channel.add_listener() for _ in range(200)]
    for listener in listeners:
        listener.start()

    async def main() -> list[str]:
        async def consume(listener: MessageQueueListener) -> None:
            async for _ in channel.message_stream(listener):
                pass

        tasks = [asyncio.create_task(consume(listener)) for listener in listeners]
        await asyncio.sleep(2)
        seen = statements(database)
        await asyncio.sleep(3)
        idle = list(seen)
        for listener in listeners:
            listener.stop()
        await asyncio.gather(*tasks)
        return idle

    idle = run(main)
    assert all(statement.startswith("SELECT") for statement in idle)
    assert len(idle) <= (20 if database.engine.url.database in (None, "", ":memory:") else 5)


def test_a_channel_of_eric_sse_costs_hardly_more_while_it_is_idle(database: Database, statements: Record) -> None:
    channel = SSEChannel(connections_factory=SqlConnectionsFactory(database))
    listener = channel.add_listener()
    listener.start()
    queue = channel._get_queue(listener.id)

    async def main() -> tuple[int, list[Any]]:
        task = asyncio.create_task(events(channel, listener, 1))
        await asyncio.sleep(1)
        seen = statements(database)
        await asyncio.sleep(1)
        idle = len([statement for statement in seen if not statement.startswith("SELECT")])
        await asyncio.to_thread(queue.push, Message("n", 7))
        return idle, await task

    idle, found = run(main)
    assert idle == 0
    assert [event["data"] for event in found] == [7]


class Doubling(SqlQueue):
    """A queue that changes what is popped."""

    def pop(self) -> MessageContract:
        message = super().pop()
        return Message(message.type, message.payload * 2)  # type: ignore[operator]


def test_a_queue_with_a_pop_of_its_own_is_streamed_through_it(database: Database) -> None:
    channel, listener, queue = SqlSSEChannel(), Noting(), Doubling(database)
    register(channel, make_connection(listener, queue, "c"))
    listener.start()
    queue.push(Message("n", 21))
    assert [event["data"] for event in run(lambda: events(channel, listener, 1))] == [42]
