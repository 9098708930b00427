"""A stream that waits: it ends with its listener, and needs no query."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from eric_sse.listener import MessageQueueListener
from eric_sse.message import Message

from eric_sse_sql import Database
from eric_sse_sql.contract import ERIC_SSE_2_0
from support.channels import queue_of
from support.loops import run
from support.queues import drain
from support.statements import Record, without_polls
from support.streams import connected, events

if ERIC_SSE_2_0:
    pytest.skip("eric-sse 2.0 has no such channel", allow_module_level=True)

from eric_sse.prefabs import SSEChannel

from eric_sse_sql import SqlConnectionsFactory, SqlSSEChannel
from eric_sse_sql.wakeups.watcher import FALLBACK_SECONDS

IDLE_SECONDS = 1.1 * FALLBACK_SECONDS  # in which a stream that asked by itself would have asked


def test_stopping_the_listener_ends_an_idle_stream(database: Database) -> None:
    channel, listener, _ = connected(database)

    async def main() -> list[Any]:
        asyncio.get_running_loop().call_later(0.3, listener.stop)
        return [event async for event in channel.message_stream(listener)]

    assert run(main) == []


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
    assert drain(queue) == list(range(3, 10))


def test_idle_streams_cost_only_the_polls_of_one_thread(database: Database, statements: Record) -> None:
    channel = SqlSSEChannel(connections_factory=SqlConnectionsFactory(database))
    listeners = [channel.add_listener() for _ in range(200)]
    for listener in listeners:
        listener.start()

    async def main() -> list[str]:
        async def consume(listener: MessageQueueListener) -> None:
            async for _ in channel.message_stream(listener):
                pass

        seen = statements(database)
        tasks = [asyncio.create_task(consume(listener)) for listener in listeners]
        fetches = 0
        while not fetches or fetches != len(without_polls(seen)):  # until every stream has found its queue empty
            fetches = len(without_polls(seen))
            await asyncio.sleep(1)
        seen.clear()
        await asyncio.sleep(IDLE_SECONDS)
        idle = list(seen)
        for listener in listeners:
            listener.stop()
        await asyncio.gather(*tasks)
        return idle

    idle = run(main)
    assert without_polls(idle) == []
    assert len(idle) <= (15 if database.engine.url.database in (None, "", ":memory:") else 4)


def test_an_idle_channel_of_eric_sse_costs_only_polls(database: Database, statements: Record) -> None:
    channel = SSEChannel(connections_factory=SqlConnectionsFactory(database))
    listener = channel.add_listener()
    listener.start()
    queue = queue_of(channel, listener.id)

    async def main() -> tuple[int, list[Any]]:
        task = asyncio.create_task(events(channel, listener, 1))
        await asyncio.sleep(0.5)
        seen = statements(database)
        await asyncio.sleep(0.5)
        idle = len([statement for statement in seen if not statement.startswith("SELECT")])
        await asyncio.to_thread(queue.push, Message("n", 7))
        return idle, await task

    idle, found = run(main)
    assert idle == 0
    assert [event["data"] for event in found] == [7]
