"""``Feeder``: one statement takes for all streams that wait, within bounds, and what comes back has still a place."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from contextlib import AsyncExitStack, aclosing, suppress
from typing import Any

import pytest
from eric_sse.exception import RepositoryError
from eric_sse.message import Message
from sqlalchemy import URL, event, text

from eric_sse_sql import Database, SqlQueue
from eric_sse_sql.contract import ERIC_SSE_2_0
from eric_sse_sql.sql.messages import TakenMessage
from eric_sse_sql.streams.feeder import BATCH, feeder_of
from eric_sse_sql.streams.idle import Waiter
from support.catalog import table_counts
from support.channels import queue_of
from support.loops import run
from support.queues import drain
from support.streams import connected
from support.waiting import until

if ERIC_SSE_2_0:
    pytest.skip("eric-sse 2.0 has no such channel", allow_module_level=True)

from eric_sse_sql import SqlSSEChannelRepository

MIB = 1024 * 1024


def record_takes(database: Database) -> list[str]:
    """Begin to record the statements that take messages."""
    taken: list[str] = []

    @event.listens_for(database.engine, "before_cursor_execute")
    def record(connection: object, cursor: object, statement: str, *others: object) -> None:
        if "DELETE FROM sse_messages" in statement:
            taken.append(statement)

    return taken


def persisted(database: Database, listeners: int = 1) -> tuple[Any, list[Any]]:
    """A persisted channel "c", and its listeners, which are started."""
    repository = SqlSSEChannelRepository(database)
    channel = repository.create({"channel_id": "c"})
    added = [channel.add_listener() for _ in range(listeners)]
    repository.persist(channel)
    for listener in added:
        listener.start()
    return channel, added


def test_one_statement_takes_a_broadcast_for_all_streams_of_a_process(shared_url: URL) -> None:
    with Database(shared_url) as database, Database(shared_url) as producer:
        channel, listeners = persisted(database, 200)
        taken = record_takes(database)

        async def main() -> None:
            async with AsyncExitStack() as stack:
                streams = [
                    await stack.enter_async_context(aclosing(channel.message_stream(each))) for each in listeners
                ]
                tasks = [asyncio.ensure_future(anext(stream)) for stream in streams]
                await asyncio.sleep(1)
                taken.clear()
                remote = SqlSSEChannelRepository(producer).load_one("c")
                await asyncio.to_thread(remote.broadcast, Message("m", 1))
                assert [event["data"] for event in await asyncio.gather(*tasks)] == [1] * 200

        run(main)
        assert 1 <= len(taken) <= 5
        assert table_counts(database)["sse_messages"] == 0


class Receiving:
    """A stream that waits for messages of its queue."""

    def __init__(self, queue: SqlQueue) -> None:
        self.queue_id = queue.id
        self.rows: list[TakenMessage] = []
        self.is_more = False

    def prepare(self) -> None:
        """It does not ask again."""

    def close(self) -> bool:
        return False

    def put_back(self) -> None:
        """It has nothing to return."""

    def receive(self, rows: list[TakenMessage], *, is_more: bool) -> bool:
        self.rows.extend(rows)
        self.is_more = is_more
        return True

    def refuse(self, rows: list[TakenMessage], taken_at: float) -> None:
        raise RepositoryError("the messages can't be put back")


class Failing(Receiving):
    """A stream that has ended, and can't put its messages back."""

    def receive(self, rows: list[TakenMessage], *, is_more: bool) -> bool:
        return False


def feed(database: Database, *receivers: Receiving) -> None:
    """Feed streams together."""

    async def main() -> None:
        waiters = [Waiter(database, lambda: True) for _ in receivers]
        for receiver, waiter in zip(receivers, waiters, strict=True):
            feeder_of(database).request(receiver, waiter)
        await asyncio.gather(*(waiter.wait() for waiter in waiters))

    run(main)


def test_a_batch_is_bounded_in_messages_of_each_queue(database: Database) -> None:
    deep, shallow = SqlQueue(database, "deep"), SqlQueue(database, "shallow")
    deep.push_many(Message("m", n) for n in range(3 * BATCH))
    shallow.push_many(Message("m", n) for n in range(3))
    receivers = [Receiving(deep), Receiving(shallow)]

    feed(database, *receivers)
    assert [each.is_more for each in receivers] == [True, False]
    assert [len(each.rows) for each in receivers] == [BATCH, 3]
    assert [row.id for row in receivers[0].rows] == sorted(row.id for row in receivers[0].rows)
    assert (len(deep), len(shallow)) == (2 * BATCH, 0)


def test_a_batch_is_bounded_in_bytes_and_the_first_message_of_each_queue_comes_first(database: Database) -> None:
    large, small = SqlQueue(database, "a large"), SqlQueue(database, "b small")
    large.push_many(Message("m", bytes(3 * MIB)) for _ in range(8))
    small.push_many([Message("m", 1), Message("m", 2)])
    receivers = [Receiving(large), Receiving(small)]

    feed(database, *receivers)
    assert receivers[0].is_more
    assert sum(len(row.message) for row in receivers[0].rows) < 12 * MIB
    assert len(receivers[0].rows) >= 1 and len(receivers[1].rows) >= 1
    assert len(large) == 8 - len(receivers[0].rows)


def test_a_message_that_is_larger_than_a_batch_is_taken_alone(database: Database) -> None:
    queue = SqlQueue(database)
    queue.push_many(Message("m", bytes(12 * MIB)) for _ in range(2))
    receiver = Receiving(queue)
    feed(database, receiver)
    assert (len(receiver.rows), receiver.is_more, len(queue)) == (1, True, 1)


def test_a_stream_that_can_not_put_its_messages_back_costs_no_other_stream_a_message(database: Database) -> None:
    queues = [SqlQueue(database, name) for name in "abc"]
    for queue in queues:
        queue.push(Message("m", queue.id))
    receivers = [Receiving(queues[0]), Failing(queues[1]), Receiving(queues[2])]
    feed(database, *receivers)
    assert [len(each.rows) for each in receivers] == [1, 0, 1]


def test_of_several_streams_of_a_queue_one_gets_each_message(database: Database) -> None:
    channel, listener, queue = connected(database)
    queue.push_many(Message("n", n) for n in range(300))
    seen: list[Any] = []

    async def main() -> None:
        async def read() -> None:
            async for each in channel.message_stream(listener):
                seen.append(each["data"])
                if len(seen) == 300:
                    listener.stop()

        await asyncio.gather(*(read() for _ in range(3)))

    run(main)
    assert sorted(seen) == list(range(300))


def test_messages_stay_in_their_queue_while_the_client_can_not_take_them(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    channel, listener, queue = connected(database)
    queue.push_many(Message("n", n) for n in range(5))
    original, failures = database.executor.run, [3]

    def without_memory(statement: Any, **parameters: Any) -> Any:
        rows = original(statement, **parameters)
        if failures[0] and rows and threading.current_thread().name.startswith("eric_sse_sql stream"):
            failures[0] -= 1
            raise MemoryError
        return rows

    monkeypatch.setattr(database.executor, "run", without_memory)

    async def main() -> list[Any]:
        found: list[Any] = []
        while len(found) < 5:
            with suppress(MemoryError):
                async with aclosing(channel.message_stream(listener)) as stream:
                    async for each in stream:
                        if each["event"] == "n":
                            found.append(each["data"])
                        if len(found) == 5:
                            break
        return found

    assert run(main) == list(range(5))
    assert failures == [0]


# What goes back

# The client measures how long ago messages were taken, and the server when a queue was cleared: the two are compared
# with an error of the time that a statement takes to reach the server.
CLOCK_SECONDS = 0.5


def deleted_channel(repository: SqlSSEChannelRepository, queue_id: str) -> None:
    repository.delete("c")


def deleted_connection(repository: SqlSSEChannelRepository, queue_id: str) -> None:
    (connection,) = repository.load_one("c").get_connections()
    repository.connections_repository.delete("c", connection.id)


def cleared_queue(repository: SqlSSEChannelRepository, queue_id: str) -> None:
    time.sleep(CLOCK_SECONDS)
    SqlQueue(repository.connections_factory.database, queue_id).clear()  # type: ignore[attr-defined]


@pytest.mark.parametrize("change", [deleted_channel, deleted_connection, cleared_queue])
def test_nothing_goes_back_to_what_another_worker_has_deleted_or_cleared(
    shared_url: URL, change: Callable[[SqlSSEChannelRepository, str], None]
) -> None:
    with Database(shared_url) as database, Database(shared_url) as other:
        channel, (listener,) = persisted(database)
        (connection,) = channel.get_connections()
        for n in range(50):
            channel.dispatch(listener.id, Message("m", n))

        async def main() -> None:
            async with aclosing(channel.message_stream(listener)) as stream:
                assert (await anext(stream))["data"] == 0
                await asyncio.to_thread(change, SqlSSEChannelRepository(other), connection.queue.id)

        run(main)
        assert table_counts(database)["sse_messages"] == 0
        if change is cleared_queue:
            channel.dispatch(listener.id, Message("m", "new"))
            assert drain(SqlQueue(other, connection.queue.id)) == ["new"]


def test_what_was_not_delivered_goes_back_to_a_queue_that_is_still_there(shared_url: URL) -> None:
    with Database(shared_url) as database, Database(shared_url) as other:
        channel, (listener,) = persisted(database)
        (connection,) = channel.get_connections()
        SqlQueue(other, connection.queue.id).clear()  # before
        for n in range(50):
            channel.dispatch(listener.id, Message("m", n))

        async def main() -> None:
            async with aclosing(channel.message_stream(listener)) as stream:
                assert (await anext(stream))["data"] == 0

        run(main)
        assert drain(SqlQueue(other, connection.queue.id)) == list(range(1, 50))


def test_a_stream_that_ends_while_its_messages_are_fetched_loses_none(shared_url: URL) -> None:
    with Database(shared_url) as database:
        channel, listener, queue = connected(database)

        async def main() -> None:
            for n in range(30):
                await asyncio.to_thread(queue.push, Message("n", n))
                task = asyncio.create_task(anext(channel.message_stream(listener)))
                await asyncio.sleep(0.001 * n)
                task.cancel()
                with suppress(asyncio.CancelledError):
                    delivered.append((await task)["data"])

        delivered: list[Any] = []
        run(main)
        until(lambda: len(delivered) + len(queue) == 30)
        assert sorted([*delivered, *drain(queue)]) == list(range(30))
        with database.engine.connect() as connection:
            assert connection.scalar(text("SELECT count(*) FROM sse_messages")) == 0


def test_a_stream_begins_with_what_an_earlier_one_returns_however_often_that_is_cancelled(
    migrated_postgres: URL,
) -> None:
    with Database(migrated_postgres) as database, Database(migrated_postgres) as other:
        channel, (listener, another) = persisted(database, 2)
        queue_of(channel, listener.id).push_many(Message("n", n) for n in range(BATCH + 10))

        async def main() -> Any:
            has_begun = asyncio.Event()

            async def consume() -> None:
                async with aclosing(channel.message_stream(listener)) as stream:
                    await anext(stream)
                    has_begun.set()
                    await asyncio.Event().wait()

            task = asyncio.create_task(consume())
            await has_begun.wait()
            async with AsyncExitStack() as stack:
                streams = [
                    await stack.enter_async_context(aclosing(channel.message_stream(each)))
                    for each in (listener, another)
                ]
                with other.transaction():  # the messages can't go back until its end
                    other.connection().execute(text("SELECT 1 FROM sse_connections FOR UPDATE"))
                    while not task.done():  # as anyio cancels
                        task.cancel()
                        await asyncio.sleep(0)
                    following = asyncio.ensure_future(anext(streams[0]))
                    for n in range(2):  # the second one is asked for after the messages of the other stream
                        await asyncio.to_thread(queue_of(channel, another.id).push, Message("n", n))
                        await anext(streams[1])
                return (await following)["data"]

        assert run(main) == 1
