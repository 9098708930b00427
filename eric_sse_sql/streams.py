"""Streams of messages in asyncio, which wait without asking the database, and never on the event loop."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

from eric_sse.exception import RepositoryError
from eric_sse.listener import MessageQueueListener
from eric_sse.message import MessageContract

from eric_sse_sql.database import Database
from eric_sse_sql.gates import Gate
from eric_sse_sql.queues import SqlQueue
from eric_sse_sql.wakeups import FALLBACK_SECONDS

BATCH = 100  # messages fetched at once, at the most
STOP_SECONDS = 0.1  # until a stream notices that its listener was stopped
PAUSES = 0.1, 2.0  # seconds, the first and the longest, before the database is asked again that has failed


class Backlog:
    """What a stream has fetched from a queue and not delivered yet. It goes back when the stream ends.

    :param queue: what is streamed
    """

    def __init__(self, queue: SqlQueue) -> None:
        self.queue = queue
        self._rows: deque[Any] = deque()
        self._lock = threading.Lock()
        self._is_closed = False

    def fetch(self) -> bool:
        """Fetch some more, in a thread. Whether there was any: what comes when the stream has ended goes back."""
        rows = self.queue.take(BATCH)
        with self._lock:
            if not self._is_closed:
                self._rows.extend(rows)
                return bool(rows)
        self.queue.give_back(rows)
        return False

    def next(self) -> Any | None:
        """The first row that is not delivered, if there is one."""
        return self._rows.popleft() if self._rows else None

    def give_back(self, *rows: Any) -> None:
        """Put rows, and all that were to follow, back into the queue."""
        given = [*rows, *self._rows]
        self._rows.clear()
        self.queue.give_back(given)

    def close(self) -> None:
        """Put what is not delivered back into the queue, now or as soon as it was fetched."""
        with self._lock:
            self._is_closed = True
        self.give_back()


async def stream(
    backlog: Backlog,
    listener: MessageQueueListener,
    database: Database,
    *,
    adapt: Callable[[MessageContract], Any],
    failure: Callable[[Exception | None], Any],
    delay: Callable[[], float],
) -> AsyncGenerator[Any, None]:
    """The events of a queue, until its listener is stopped.

    An event is delivered once it is asked for: whoever stops asking has lost none. While the database can't be reached,
    one event of failure is delivered, and the stream goes on by itself when it can be again.

    :param adapt: makes an event of a message
    :param failure: makes one of an error
    :param delay: seconds between two events
    """
    pause = PAUSES[0]
    try:
        while listener.is_running():
            row = backlog.next()
            if row is not None:
                try:
                    message = backlog.queue.decoded(row)
                except RepositoryError as error:
                    backlog.give_back(row)
                    yield failure(error)
                    await _paused(PAUSES[1], listener)
                    continue
                yield _delivered(message, listener, adapt, failure)
                await asyncio.sleep(delay())
                continue
            version = backlog.queue.gate.watch()
            try:
                found = await asyncio.to_thread(backlog.fetch)
            except RepositoryError as error:
                database.check_open()
                database.outage.begins(error)
                if pause == PAUSES[0]:
                    yield failure(None)
                await _paused(pause, listener)
                pause = min(2 * pause, PAUSES[1])
                continue
            database.outage.ends()
            pause = PAUSES[0]
            if not found:
                database.wakeups.start()
                await _changed(backlog.queue.gate, version, listener, database)
    finally:
        backlog.close()


def _delivered(
    message: MessageContract,
    listener: MessageQueueListener,
    adapt: Callable[[MessageContract], Any],
    failure: Callable[[Exception | None], Any],
) -> Any:
    try:
        listener.on_message(message)
        return adapt(message)
    except Exception:
        return failure(None)


async def _paused(seconds: float, listener: MessageQueueListener) -> None:
    """Wait for a time, or until the listener is stopped."""
    give_up = time.monotonic() + seconds
    while listener.is_running() and time.monotonic() < give_up:
        await asyncio.sleep(min(STOP_SECONDS, seconds))


async def _changed(gate: Gate, version: int, listener: MessageQueueListener, database: Database) -> None:
    """Wait until a gate has another version, the listener is stopped, or nobody would notice another version."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[None] = loop.create_future()

    def wake() -> None:
        loop.call_soon_threadsafe(_resolve, future)

    gate.subscribe(wake)
    rounds = _Rounds.of(loop)
    rounds.waiting[future] = _Waiting(listener, database, time.monotonic() + FALLBACK_SECONDS)
    try:
        if gate.version == version:
            rounds.go_on()
            await future
    finally:
        gate.unsubscribe(wake)
        del rounds.waiting[future]


class _Waiting(NamedTuple):
    listener: MessageQueueListener
    database: Database
    until: float  # at least, though nobody notices what others push

    def is_over(self) -> bool:
        return not self.listener.is_running() or (not self.database.wakeups.are_on and time.monotonic() > self.until)


class _Rounds:
    """Asks all that wait on an event loop, now and then, whether their wait is over: one timer for any number."""

    def __init__(self) -> None:
        self.waiting: dict[asyncio.Future[None], _Waiting] = {}
        self._is_going = False

    @classmethod
    def of(cls, loop: asyncio.AbstractEventLoop) -> _Rounds:
        """Those of an event loop."""
        if loop not in _rounds:
            _rounds[loop] = cls()
        return _rounds[loop]

    def go_on(self) -> None:
        """Make rounds while anybody waits."""
        if not self._is_going:
            self._is_going = True
            asyncio.get_running_loop().call_later(STOP_SECONDS, self._go)

    def _go(self) -> None:
        self._is_going = False
        for future, waiting in self.waiting.items():
            if waiting.is_over():
                _resolve(future)
        if self.waiting:
            self.go_on()


_rounds: WeakKeyDictionary[asyncio.AbstractEventLoop, _Rounds] = WeakKeyDictionary()


def _resolve(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
