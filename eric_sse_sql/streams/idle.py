"""Waiting for messages on an event loop: without a query, and with one timer for all streams of the loop."""

from __future__ import annotations

import asyncio
import time
from typing import NamedTuple

from eric_sse.listener import MessageQueueListener

from eric_sse_sql.database import Database
from eric_sse_sql.wakeups.queue_watch import QueueWatch
from eric_sse_sql.wakeups.watcher import FALLBACK_SECONDS

SWEEP_SECONDS = 0.1  # in which a stream notices that its listener was stopped


async def pause(seconds: float, listener: MessageQueueListener) -> None:
    """Wait for a time, or until the listener is stopped."""
    give_up = time.monotonic() + seconds
    while listener.is_running() and time.monotonic() < give_up:
        await asyncio.sleep(min(SWEEP_SECONDS, seconds))


async def wait_for_change(watch: QueueWatch, version: int, listener: MessageQueueListener, database: Database) -> None:
    """Wait until a watch has another version, the listener is stopped, or the watcher can't be trusted any more."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[None] = loop.create_future()

    def wake() -> None:
        loop.call_soon_threadsafe(_resolve, future)

    watch.subscribe(wake)
    sweeper = _sweeper(database, loop)
    sweeper.waits[future] = _Wait(listener, database, time.monotonic() + FALLBACK_SECONDS)
    try:
        if watch.version == version:
            sweeper.start()
            await future
    finally:
        watch.unsubscribe(wake)
        del sweeper.waits[future]


class _Wait(NamedTuple):
    listener: MessageQueueListener
    database: Database
    until: float  # when it ends even if no other process is watched

    def is_over(self) -> bool:
        # It ends one sweep early, since the next sweep comes after ``until``.
        until = max(self.until, self.database.watcher.trusted_until) - SWEEP_SECONDS
        return not self.listener.is_running() or time.monotonic() > until


class _IdleSweeper:
    """Ends the waits of an event loop whose time is over or whose listener was stopped."""

    def __init__(self) -> None:
        self.waits: dict[asyncio.Future[None], _Wait] = {}
        self._is_scheduled = False

    def start(self) -> None:
        """Sweep at an interval for as long as there are waits."""
        if not self._is_scheduled:
            self._is_scheduled = True
            asyncio.get_running_loop().call_later(SWEEP_SECONDS, self._sweep)

    def _sweep(self) -> None:
        self._is_scheduled = False
        for future, wait in self.waits.items():
            if wait.is_over():
                _resolve(future)
        if self.waits:
            self.start()


def _sweeper(database: Database, loop: asyncio.AbstractEventLoop) -> _IdleSweeper:
    sweeper: _IdleSweeper = database.loop_state.setdefault(loop, _IdleSweeper())
    return sweeper


def _resolve(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
