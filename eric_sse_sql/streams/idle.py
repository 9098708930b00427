"""Waiting for messages on an event loop: without a query, and with one timer and one wake-up for all its streams."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import suppress

from eric_sse_sql.database import Database
from eric_sse_sql.wakeups.watcher import FALLBACK_SECONDS, QueueWatcher

SECONDS_A_WAIT = 8e-5  # by which a sweep is later for each stream that waits, so that sweeps take 1 % of a core at most
SWEEP_SECONDS = 0.1  # in which a stream notices that it is to end


class Waiter:
    """The waits of one stream, one after the other, on the event loop that runs it.

    It is made once, since ten thousand streams that each make objects for a wait keep Python's collector busy.
    """

    __slots__ = ("__weakref__", "error", "future", "is_open", "until", "waits")

    def __init__(self, database: Database, is_open: Callable[[], bool]) -> None:
        self.waits = _waits_of(database)
        self.is_open = is_open  # whether the stream is to go on
        self.until = 0.0  # when the wait ends even if no other process is watched, on the clock of time.monotonic()
        self.error: BaseException | None = None  # what the wait is to raise
        self.begin()

    def begin(self) -> None:
        """Begin a wait, which can be ended from now on."""
        self.error = None
        self.future: asyncio.Future[None] = self.waits.loop.create_future()

    async def wait(self) -> None:
        """Wait until it is ended, or until the stream is to end, or the watcher can't be trusted any more."""
        self.until = time.monotonic() + FALLBACK_SECONDS
        waits = self.waits
        waits.waiters.add(self)
        if not waits.is_swept:
            waits.sweep_later()
        try:
            await self.future
        finally:
            waits.waiters.discard(self)
        if self.error is not None:
            raise self.error


class _LoopWaits:
    """The waits of the streams on one event loop. Any thread may end them; many at once wake the loop only once.

    A sweep at an interval ends those whose stream is to end, and those that would not be told of a message in time.

    :param loop: the event loop
    :param watcher: of the database of the streams
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, watcher: QueueWatcher) -> None:
        self.loop = loop
        self._watcher = watcher
        self.waiters: set[Waiter] = set()  # that are swept
        self.is_swept = False  # whether a sweep is due
        self._ended: deque[asyncio.Future[None]] = deque()
        self._is_woken = False

    def end(self, waiters: Iterable[Waiter]) -> None:
        """End the current waits of some streams, from any thread."""
        self._ended.extend([waiter.future for waiter in waiters])
        if not self._is_woken:
            self._is_woken = True
            with suppress(RuntimeError):  # the loop is closed, and its streams are over
                self.loop.call_soon_threadsafe(self._end)

    def _end(self) -> None:
        self._is_woken = False  # first: what is added from now on wakes the loop again
        while self._ended:
            future = self._ended.popleft()
            if not future.done():
                future.set_result(None)

    def sweep_later(self) -> None:
        """Sweep after the interval."""
        self.is_swept = True
        self.loop.call_later(SWEEP_SECONDS + SECONDS_A_WAIT * len(self.waiters), self._sweep)

    def _sweep(self) -> None:
        self.is_swept = False
        # They end one sweep early, since the next sweep comes after that time.
        now = time.monotonic() + SWEEP_SECONDS
        is_trusted = now < self._watcher.trusted_until
        for waiter in self.waiters:
            is_over = not waiter.is_open() or not (is_trusted or now < waiter.until)
            if is_over and not waiter.future.done():
                waiter.future.set_result(None)
        if self.waiters:
            self.sweep_later()


def end(waiters: Iterable[Waiter], error: BaseException | None = None) -> None:
    """End the current waits of some streams, from any thread.

    :param error: what the waits raise; None for nothing
    """
    by_loop: dict[_LoopWaits, list[Waiter]] = {}
    for waiter in waiters:
        waiter.error = error
        by_loop.setdefault(waiter.waits, []).append(waiter)
    for waits, of_loop in by_loop.items():
        waits.end(of_loop)


async def pause(seconds: float, is_open: Callable[[], bool], watcher: QueueWatcher) -> bool:
    """Wait for a time, until the stream is to end, or until the watcher can query the database. Whether it can."""
    began = time.monotonic()
    while is_open() and time.monotonic() < began + seconds and not watcher.has_polled_since(began):
        await asyncio.sleep(min(SWEEP_SECONDS, seconds))
    return watcher.has_polled_since(began)


def _waits_of(database: Database) -> _LoopWaits:
    """The waits of the running event loop."""
    loop = asyncio.get_running_loop()
    found: _LoopWaits | None = database.loop_state.get(loop)
    return database.loop_state.setdefault(loop, _LoopWaits(loop, database.watcher)) if found is None else found
