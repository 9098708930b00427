"""Channels and their repositories in asyncio: no call holds the event loop up while the database is locked."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from contextlib import suppress

import pytest
from eric_sse.exception import InvalidListenerException, NoMessagesException, RepositoryError
from eric_sse.message import Message
from sqlalchemy import URL

from eric_sse_sql import ChannelRepository, Database, SqlStorageEngine
from eric_sse_sql.aio import AsyncChannel, AsyncChannelRepository, AsyncDatabase, AsyncQueue
from eric_sse_sql.contract import ERIC_SSE_2_0, ItemNotFound
from support.application import ApplicationError
from support.channels import queue_of
from support.databases import opened
from support.loops import LoopTicks, eventually, locked, run
from support.queues import drain

if ERIC_SSE_2_0:
    pytest.skip("eric-sse 2.0 has no such channel", allow_module_level=True)

from eric_sse_sql import SqlSSEChannel, SqlSSEChannelRepository

TABLES = "kv_entries, sse_channels, sse_connections, sse_messages, sse_event_logs, sse_events"


def test_a_channel_is_stored_loaded_used_and_deleted(database: Database) -> None:
    repository = SqlSSEChannelRepository(database)
    channels = AsyncChannelRepository(repository)

    async def main() -> None:
        made = repository.create({"channel_id": "news"})
        first, second = made.add_listener(), made.add_listener()
        await channels.persist(made)
        channel = await channels.load_one("news")
        calls = AsyncChannel(channel)
        await calls.broadcast(Message("m", "all"), message_id="1")
        await calls.broadcast(Message("m", "all"), message_id="1")
        await calls.dispatch(first.id, Message("m", "one"))
        assert (await calls.get_listener(first.id)).id == first.id
        assert len(await calls.get_connections()) == 2
        assert drain(queue_of(channel, first.id)) == ["all", "one"]
        await calls.remove_listener(second.id)
        await channels.persist(channel)
        with pytest.raises(InvalidListenerException):
            await AsyncChannel(await channels.load_one("news")).get_listener(second.id)
        await channels.delete("news")
        with pytest.raises(ItemNotFound):
            await channels.load_one("news")

    run(main)


def test_channels_of_the_other_repository_are_stored_loaded_and_deleted(database: Database) -> None:
    channels = AsyncChannelRepository(ChannelRepository(SqlStorageEngine(database)))

    async def main() -> None:
        await channels.persist(SqlSSEChannel(channel_id="news"))
        assert (await channels.load_one("news")).id == "news"
        await channels.delete("news")
        with pytest.raises(ItemNotFound):
            await channels.load_one("news")

    run(main)


def test_a_channel_stored_in_a_transaction_that_is_rolled_back_is_stored_by_the_next_call(database: Database) -> None:
    repository = SqlSSEChannelRepository(database)
    channels = AsyncChannelRepository(repository)

    async def main() -> None:
        channel = repository.create({"channel_id": "news"})
        listener = channel.add_listener()
        with pytest.raises(ApplicationError):
            async with AsyncDatabase(database).transaction():
                await channels.persist(channel)
                await AsyncChannel(channel).broadcast(Message("m", "rolled back"))
                raise ApplicationError
        await channels.persist(channel)
        await AsyncChannel(await channels.load_one("news")).dispatch(listener.id, Message("m", "stored"))
        assert drain(queue_of(channel, listener.id)) == ["stored"]

    run(main)


@pytest.mark.parametrize("replay_seconds", [0, 60])
def test_the_event_loop_runs_while_the_tables_are_locked(shared_url: URL, replay_seconds: float) -> None:
    with opened(shared_url) as database:
        repository = SqlSSEChannelRepository(database)
        channels = AsyncChannelRepository(repository)
        channel = repository.create({"channel_id": "news", "replay_seconds": replay_seconds})
        listener = channel.add_listener()
        repository.persist(channel)
        loaded = repository.load_one("news")

        async def main() -> None:
            ticks, calls = LoopTicks(), AsyncChannel(loaded)
            with locked(shared_url, TABLES):
                writes: list[Awaitable[None]] = [
                    calls.broadcast(Message("m")),
                    calls.dispatch(listener.id, Message("m")),
                    channels.persist(channel),
                    channels.delete("another"),
                ]
                reads = [channels.load_one("news"), calls.get_connections()]
                tasks = [asyncio.ensure_future(call) for call in writes]
                others = [asyncio.ensure_future(call) for call in reads]
                await eventually(lambda: ticks.count > 20)
                assert not any(task.done() for task in tasks[:2])
            await asyncio.gather(*tasks, *others)
            ticks.stop()
            assert await AsyncQueue(queue_of(loaded, listener.id)).count() == 2

        run(main)


def test_a_cancelled_pop_of_a_log_delivers_its_event_to_the_next_one(shared_url: URL) -> None:
    with opened(shared_url) as database:
        repository = SqlSSEChannelRepository(database)
        channel = repository.create({"channel_id": "news", "replay_seconds": 60})
        listener = channel.add_listener()
        repository.persist(channel)
        queue = AsyncQueue(queue_of(channel, listener.id))

        async def main() -> None:
            for n in range(3):
                await AsyncChannel(channel).broadcast(Message("m", n))
            popped = []
            for loop_turns in range(100):  # after which the wait is cancelled
                wait = asyncio.create_task(queue.pop(timeout=0))
                for _ in range(loop_turns):
                    await asyncio.sleep(0)
                wait.cancel()
                with suppress(asyncio.CancelledError, NoMessagesException):
                    popped.append((await wait).payload)
            with suppress(NoMessagesException):
                while True:
                    popped.append((await queue.pop(timeout=0)).payload)
            assert popped == [0, 1, 2]

        run(main)


def test_a_channel_in_no_database_is_refused() -> None:
    with pytest.raises(RepositoryError, match="the channel is in no database"):
        run(lambda: AsyncChannel(SqlSSEChannel()).broadcast(Message("m")))
