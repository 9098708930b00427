"""Queues and transactions in asyncio: no call holds the event loop up, and no cancelled wait loses a message."""

from __future__ import annotations

import asyncio
import random
import threading
from asyncio import CancelledError
from collections.abc import Callable
from contextlib import ExitStack, suppress
from typing import Any

import pytest
from eric_sse.exception import NoMessagesException, RepositoryError
from eric_sse.message import Message
from sqlalchemy import URL
from sqlalchemy.orm import Session

from eric_sse_sql import BlockingSqlQueue, Database, SqlQueue, SqlStorageEngine
from eric_sse_sql.aio import AsyncChannel, AsyncChannelRepository, AsyncDatabase, AsyncQueue
from eric_sse_sql.wakeups.background import CALL_THREADS
from support.application import ApplicationError
from support.databases import application_engine, opened
from support.forking import fork, forking
from support.loops import LoopTicks, eventually, locked, run
from support.queues import BlockingQueueWithoutWait
from support.waiting import DEADLINE

CANCELLED_WAITS = 300


async def turns(count: int) -> None:
    """Let the event loop run for a number of turns, of a hundredth of a second at least."""
    for _ in range(count):
        await asyncio.sleep(0.01)


def test_a_queue_gives_back_what_was_pushed_in_order(database: Database) -> None:
    async def main() -> None:
        queue = AsyncQueue(SqlQueue(database))
        await queue.push(Message("m", 1), message_id="order 1")
        await queue.push(Message("m", 1), message_id="order 1")
        await queue.push_many([Message("m", 2), Message("m", 3)])
        assert await queue.count() == 3
        assert (await queue.pop()).payload == 1
        async with queue.receive() as delivery:
            assert delivery.payload == 2
            assert await queue.count() == 1
        async for message in queue:
            assert message.payload == 3
            break
        with pytest.raises(NoMessagesException):
            await queue.pop(timeout=0)

    run(main)


def test_calls_are_part_of_the_transaction_of_their_task(database: Database) -> None:
    queue = AsyncQueue(SqlQueue(database))

    async def main(fails: bool) -> None:
        async with AsyncDatabase(database).transaction():
            await queue.push(Message("m", 1))
            await queue.push_many([Message("m", 2)])
            with suppress(ApplicationError):
                async with AsyncDatabase(database).transaction():  # a savepoint
                    await queue.push(Message("m", "of the savepoint"))
                    raise ApplicationError
            SqlStorageEngine(database).upsert("a", 1)  # on the event loop
            assert (await queue.pop()).payload == 1
            assert database.in_transaction()
            if fails:
                raise ApplicationError
        assert not database.in_transaction()

    with pytest.raises(ApplicationError):
        run(lambda: main(fails=True))
    assert run(queue.count) == 0
    run(lambda: main(fails=False))
    assert run(queue.count) == 1
    assert SqlStorageEngine(database).fetch_one("a") == 1


def test_calls_are_part_of_a_transaction_that_the_task_has_begun_on_its_event_loop(database: Database) -> None:
    queue = AsyncQueue(SqlQueue(database))

    async def main() -> None:
        with pytest.raises(ApplicationError), database.transaction():
            await queue.push(Message("m"))
            assert await queue.count() == 1
            raise ApplicationError
        assert await queue.count() == 0

    run(main)


def test_calls_are_part_of_a_transaction_of_the_application_that_the_task_has_joined(shared_url: URL) -> None:
    with opened(shared_url) as database, application_engine(shared_url) as engine:
        queue = AsyncQueue(SqlQueue(database))

        async def main() -> None:
            for payload in ("rolled back", "committed"):
                with Session(engine) as session, database.join(session):
                    await queue.push(Message("m", payload))
                    assert await queue.count() == 1
                    if payload == "committed":
                        session.commit()
            assert (await queue.pop()).payload == "committed"
            assert await queue.count() == 0

        run(main)


def test_another_task_is_not_in_the_transaction(shared_url: URL) -> None:
    with opened(shared_url) as database:
        queue = AsyncQueue(SqlQueue(database))

        async def main() -> int:
            async with AsyncDatabase(database).transaction():
                await queue.push(Message("m"))
                return await asyncio.create_task(queue.count())

        assert run(main) == 0


def test_a_transaction_goes_on_while_all_other_calls_wait_for_its_lock(shared_url: URL) -> None:
    with opened(shared_url) as database:
        queue = AsyncQueue(SqlQueue(database))

        async def main() -> None:
            async with AsyncDatabase(database).transaction():
                if database.engine.dialect.name == "postgresql":
                    database.connection().exec_driver_sql("LOCK TABLE sse_messages IN ACCESS EXCLUSIVE MODE")
                pushes = [asyncio.create_task(queue.push(Message("m", n))) for n in range(2 * CALL_THREADS)]
                await turns(5)
                await queue.push(Message("m", "first"))
            await asyncio.gather(*pushes)
            assert (await queue.pop()).payload == "first"
            assert await queue.count() == 2 * CALL_THREADS

        run(main)


def test_the_event_loop_runs_while_the_table_is_locked(shared_url: URL) -> None:
    with opened(shared_url) as database:
        queue = SqlQueue(database)
        queue.push(Message("m"))

        async def delivered() -> None:
            async with AsyncQueue(queue).receive():
                pass

        async def in_transaction() -> None:
            async with AsyncDatabase(database).transaction():
                await AsyncQueue(queue).push(Message("m"))

        async def main() -> None:
            ticks = LoopTicks()
            with locked(shared_url):
                calls = [AsyncQueue(queue).push(Message("m")), delivered(), in_transaction()]
                tasks = [asyncio.create_task(call) for call in calls]
                await eventually(lambda: ticks.count > 20)
                assert not any(task.done() for task in tasks)
            await asyncio.gather(*tasks)
            ticks.stop()

        run(main)


def test_waiting_holds_no_thread(database: Database) -> None:
    waits = 3 * CALL_THREADS

    async def main() -> None:
        queue = SqlQueue(database)
        pops = [asyncio.create_task(AsyncQueue(queue).pop()) for _ in range(waits)]
        await eventually(lambda: queue.is_known_empty or not database.background.poller.is_running)
        for n in range(waits):
            await AsyncQueue(queue).push(Message("m", n))
        assert sorted([message.payload for message in await asyncio.gather(*pops)]) == list(range(waits))

    run(main)


def test_a_push_of_another_process_ends_a_wait(shared_url: URL) -> None:
    with opened(shared_url) as database, opened(shared_url) as other:

        async def main() -> None:
            queue = SqlQueue(database)
            wait = asyncio.create_task(AsyncQueue(queue).pop())
            await eventually(lambda: queue.is_known_empty)
            SqlQueue(other, queue.id).push(Message("m", "from there"))
            assert (await wait).payload == "from there"

        run(main)


def test_waits_that_are_cancelled_at_random_lose_no_message(database: Database) -> None:
    async def main() -> None:
        queue, chance, popped = AsyncQueue(SqlQueue(database)), random.Random(1), list[Any]()

        async def some_turns() -> None:
            for _ in range(chance.choice((0, 1, 10, 100))):
                await asyncio.sleep(0)

        async def push() -> None:
            for n in range(CANCELLED_WAITS):
                await queue.push(Message("m", n))
                await some_turns()

        pushes = asyncio.create_task(push())
        while not pushes.done():
            wait = asyncio.create_task(queue.pop())
            await some_turns()
            wait.cancel()
            with suppress(CancelledError):
                popped.append((await wait).payload)
        with suppress(NoMessagesException):
            while True:
                popped.append((await queue.pop(timeout=0)).payload)
        assert popped == list(range(CANCELLED_WAITS))  # each once, and in order

    run(main)


def test_a_cancelled_wait_ends_at_once_and_its_message_is_the_first_again(shared_url: URL) -> None:
    with opened(shared_url) as database:
        queue = AsyncQueue(SqlQueue(database))

        async def main() -> None:
            await queue.push_many([Message("m", 1), Message("m", 2)])
            with locked(shared_url):
                for call in (queue.pop(), queue.receive().__aenter__()):
                    wait = asyncio.create_task(call)
                    await turns(2)
                    wait.cancel()
                    await asyncio.wait([wait])
                    assert wait.cancelled()
            assert [(await queue.pop()).payload, (await queue.pop()).payload] == [1, 2]

        run(main)


def test_a_wait_cancelled_inside_a_transaction_leaves_the_message_in_the_queue(database: Database) -> None:
    async def main() -> None:
        queue = AsyncQueue(SqlQueue(database))
        await queue.push_many([Message("m", 1), Message("m", 2)])
        async with AsyncDatabase(database).transaction():
            task = asyncio.current_task()
            assert task is not None
            asyncio.get_running_loop().call_soon(task.cancel)
            with pytest.raises(CancelledError):
                await queue.pop()
            await queue.push(Message("m", 3))
        assert [(await queue.pop()).payload for _ in range(3)] == [1, 2, 3]

    run(main)


def test_a_block_that_is_left_by_an_error_or_cancelled_releases_its_message(database: Database) -> None:
    async def main() -> None:
        queue, is_inside = AsyncQueue(SqlQueue(database)), asyncio.Event()
        await queue.push(Message("m"))
        with pytest.raises(ApplicationError):
            async with queue.receive() as delivery:
                raise ApplicationError

        async def sleep_inside() -> None:
            async with queue.receive():
                is_inside.set()
                await asyncio.sleep(DEADLINE)

        task = asyncio.create_task(sleep_inside())
        await is_inside.wait()
        task.cancel()
        await asyncio.wait([task])
        async with queue.receive(timeout=0) as delivery:
            assert delivery.delivery_count == 3

    run(main)


def test_a_transaction_whose_begin_is_cancelled_holds_no_lock(shared_url: URL) -> None:
    with opened(shared_url) as database:

        async def main() -> None:
            async def begin() -> None:
                async with AsyncDatabase(database).transaction():
                    raise AssertionError("it has begun")

            with locked(shared_url):
                task = asyncio.create_task(begin())
                await turns(2)
                task.cancel()
                await asyncio.wait([task])
            await AsyncQueue(SqlQueue(database)).push(Message("m"))

        if database.engine.dialect.name == "sqlite":  # where it waits for the lock
            run(main)


def test_a_block_that_is_cancelled_again_and_again_is_left(shared_url: URL) -> None:
    with opened(shared_url) as database:
        queue = SqlQueue(database, "q")
        queue.push(Message("first"))
        kept = list[asyncio.Task[None]]()  # with their errors, as a logger may keep them

        async def transaction(has_begun: asyncio.Event) -> None:
            async with AsyncDatabase(database).transaction():
                await AsyncQueue(queue).push(Message("rolled back"))
                has_begun.set()
                await asyncio.Event().wait()

        async def lease(has_begun: asyncio.Event) -> None:
            async with AsyncQueue(queue).receive():
                has_begun.set()
                await asyncio.Event().wait()

        async def main() -> None:
            for block in [transaction, lease] * 10:
                has_begun = asyncio.Event()
                kept.append(asyncio.create_task(block(has_begun)))
                await has_begun.wait()
                while not kept[-1].done():  # as anyio cancels
                    kept[-1].cancel()
                    await asyncio.sleep(0)
                while await AsyncQueue(queue).count() == 0:  # a lease is released while the task goes on
                    await asyncio.sleep(0.01)

        run(main)
        queue.push(Message("last"))
        assert [queue.pop().type, queue.pop().type, len(queue)] == ["first", "last", 0]


@pytest.mark.parametrize("is_waiting", [True, False])
def test_closing_the_database_ends_waits_with_an_error(database: Database, is_waiting: bool) -> None:
    async def main() -> None:
        queue = SqlQueue(database)
        if is_waiting:
            wait = asyncio.create_task(AsyncQueue(queue).pop())
            await eventually(lambda: queue.is_known_empty or not database.background.poller.is_running)
            database.close()
        else:
            database.close()
            wait = asyncio.create_task(AsyncQueue(queue).pop())
        with pytest.raises(RepositoryError, match="closed"):
            await wait

    run(main)


def test_event_loops_of_several_threads_share_a_queue(database: Database) -> None:
    queue, popped = AsyncQueue(SqlQueue(database)), list[Any]()

    async def consume() -> None:
        popped.append((await queue.pop()).payload)

    threads = [threading.Thread(target=run, args=(consume,)) for _ in range(2)]
    for thread in threads:
        thread.start()
    run(lambda: queue.push_many([Message("m", 1), Message("m", 2)]))
    for thread in threads:
        thread.join(DEADLINE)
    assert sorted(popped) == [1, 2]


@forking
def test_a_forked_child_waits_for_no_call_of_its_parent(postgres: URL) -> None:
    with opened(postgres) as database, ExitStack() as stack:
        queue = AsyncQueue(SqlQueue(database))

        async def cancel_a_pop() -> None:
            wait = asyncio.create_task(queue.pop())
            await turns(2)
            wait.cancel()
            await asyncio.wait([wait])

        async def pop_and_push() -> None:
            with suppress(NoMessagesException):
                await queue.pop(timeout=0)
            await queue.push(Message("m", "of the child"))

        with locked(postgres):
            run(cancel_a_pop)  # its thread goes on
            stack.enter_context(fork(lambda: run(pop_and_push)))
        assert run(queue.pop).payload == "of the child"


def test_a_call_that_is_cancelled_before_it_has_a_thread_is_not_made(shared_url: URL) -> None:
    with opened(shared_url) as database:
        queue = AsyncQueue(SqlQueue(database))

        async def main() -> None:
            with locked(shared_url):
                pushes = [asyncio.create_task(queue.push(Message("m", n))) for n in range(CALL_THREADS + 1)]
                await turns(2)
                pushes[-1].cancel()
                await asyncio.wait(pushes[-1:])
            await asyncio.gather(*pushes[:-1])
            assert await queue.count() == CALL_THREADS

        run(main)


def test_a_wait_inside_a_transaction_is_refused(database: Database) -> None:
    async def main() -> None:
        async with AsyncDatabase(database).transaction():
            with pytest.raises(RepositoryError, match="waiting inside a transaction"):
                await AsyncQueue(SqlQueue(database)).pop()

    run(main)


def test_a_queue_whose_class_has_a_pop_of_its_own_is_refused(database: Database) -> None:
    AsyncQueue(BlockingSqlQueue(database))
    with pytest.raises(RepositoryError, match="a pop of its own"):
        AsyncQueue(BlockingQueueWithoutWait(database))


@pytest.mark.parametrize("kind", [AsyncDatabase, AsyncQueue, AsyncChannel, AsyncChannelRepository])
def test_an_object_of_another_kind_is_refused(kind: Callable[[object], object]) -> None:
    with pytest.raises(RepositoryError, match="not str"):
        kind("postgresql://localhost/shop")
