"""Streams of a channel with one listener, and what happens beside them."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import aclosing, contextmanager
from typing import Any

import pytest
from eric_sse.listener import MessageQueueListener
from eric_sse.message import MessageContract
from sqlalchemy import URL, text

from eric_sse_sql import Database, SqlQueue
from eric_sse_sql.contract import ERIC_SSE_2_0
from support.channels import queue_of
from support.waiting import DEADLINE

if ERIC_SSE_2_0:
    pytest.skip("eric-sse 2.0 has no such channel", allow_module_level=True)

from eric_sse_sql import SqlConnectionsFactory, SqlSSEChannel


class RecordingListener(MessageQueueListener):
    """Records the payloads that it gets, and raises at the payload "fail"."""

    def __init__(self) -> None:
        super().__init__()
        self.heard: list[Any] = []

    def on_message(self, msg: MessageContract) -> None:
        if msg.payload == "fail":
            raise ValueError("the payload says so")
        self.heard.append(msg.payload)


def connected(database: Database, **options: Any) -> tuple[SqlSSEChannel, RecordingListener, SqlQueue]:
    """A new channel, its only listener, which is started, and the queue of the listener."""
    channel = SqlSSEChannel(connections_factory=SqlConnectionsFactory(database), **options)
    listener = RecordingListener()
    channel.register_listener(listener)
    listener.start()
    return channel, listener, queue_of(channel, listener.id)


def run(main: Callable[[], Awaitable[Any]]) -> Any:
    """Run a coroutine function on an event loop of its own, for the deadline at most."""

    async def in_time() -> Any:
        return await asyncio.wait_for(main(), DEADLINE)

    return asyncio.run(in_time())


async def events(
    channel: Any, listener: MessageQueueListener, count: int, last_event_id: str | None = None
) -> list[Any]:
    """The next events of a new stream, which is closed then."""
    found: list[Any] = []
    with_id = () if last_event_id is None else (last_event_id,)  # which channels of eric-sse do not take
    async with aclosing(channel.message_stream(listener, *with_id)) as stream:
        while len(found) < count:
            found.append(await anext(stream))
    return found


@contextmanager
def locked(url: URL, table: str = "sse_messages") -> Iterator[None]:
    """Another connection holds a table locked: for ten seconds at most, so that a blocked event loop goes on."""
    is_locked, may_end = threading.Event(), threading.Event()

    def hold() -> None:
        with Database(url) as other, other.transaction():
            if other.engine.dialect.name == "postgresql":
                other.connection().execute(text(f"LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE"))
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


class LoopTicks:
    """Counts the turns of the running event loop, 100 a second at most."""

    def __init__(self) -> None:
        self._count = 0
        self._task = asyncio.create_task(self._tick())

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(0.01)
            self._count += 1

    def stop(self) -> int:
        """Stop counting. How many there were."""
        self._task.cancel()
        return self._count
