"""Streams of messages in asyncio, which wait without asking the database, and never on the event loop."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable
from typing import Any, NamedTuple, Protocol
from weakref import WeakKeyDictionary

from eric_sse.exception import RepositoryError
from eric_sse.listener import MessageQueueListener
from eric_sse.message import Message, MessageContract

from eric_sse_sql.database import Database
from eric_sse_sql.gates import Gate
from eric_sse_sql.queues import SqlQueue
from eric_sse_sql.statements import Row
from eric_sse_sql.wakeups import FALLBACK_SECONDS, logger

ERROR = "error"  # the type of the event that tells of one
BATCH = 100  # messages fetched at once, at the most
STOP_SECONDS = 0.1  # until a stream notices that its listener was stopped
GIVE_BACK_SECONDS = 10.0  # for which messages are tried to be given back to a database that can't be reached
PAUSES = 0.1, 2.0  # seconds, the first and the longest, before the database is asked again that has failed


class Unreadable(RepositoryError):
    """The next message can't be read: it stays where it is."""


class Supply(Protocol):
    """What a stream delivers: items that are fetched from a queue."""

    queue: SqlQueue

    def watch(self) -> int:
        """The version of the queue's gate, which changes when there is something to fetch."""

    def fetch(self) -> bool:
        """Fetch some more, in a thread. Whether there may be yet more."""

    def next(self) -> Any | None:
        """What was fetched and comes next."""

    def decoded(self, item: Any) -> MessageContract:
        """The message of an item."""

    def is_for_listener(self, item: Any) -> bool:
        """Whether it is a message that was dispatched."""

    def event_id(self, item: Any) -> str | None:
        """The id of its event."""

    def give_back(self, *items: Any) -> None:
        """Do without items, and all that were to follow, in a thread."""

    def close(self) -> bool:
        """The stream has ended, be it in the middle of a fetch. Whether something is to be given back."""


class Backlog:
    """What a stream has fetched from a queue and not delivered yet. It goes back when the stream ends.

    :param queue: what is streamed
    """

    def __init__(self, queue: SqlQueue) -> None:
        self.queue = queue
        self._rows: deque[Row] = deque()
        self._lock = threading.Lock()
        self._is_closed = False

    def watch(self) -> int:
        """The version of the queue's gate, which changes when there is something to fetch."""
        return self.queue.gate.watch()

    def decoded(self, row: Row) -> MessageContract:
        """The message of a row."""
        return self.queue.decoded(row)

    def is_for_listener(self, row: Row) -> bool:
        """Every one is."""
        return True

    def event_id(self, row: Row) -> None:
        """There is none: what was delivered is gone."""

    def fetch(self) -> bool:
        """Fetch some more, in a thread. Whether there may be yet more. What comes after :meth:`close` goes back."""
        rows = self.queue.take(BATCH)
        with self._lock:
            if not self._is_closed:
                self._rows.extend(rows)
                return len(rows) == BATCH
        self._put_back(rows)
        return False

    def next(self) -> Row | None:
        """The first row that is not delivered, if there is one."""
        return self._rows.popleft() if self._rows else None

    def give_back(self, *rows: Row) -> None:
        """Put rows, and all that were to follow, back into the queue, in a thread."""
        with self._lock:
            following, self._rows = self._rows, deque()
        self._put_back([*rows, *following])

    def close(self) -> bool:
        """Put what is fetched from now on back into the queue. Whether something is still to be given back."""
        with self._lock:
            self._is_closed = True
            return bool(self._rows)

    def _put_back(self, rows: list[Row]) -> None:
        try:
            _in_time(lambda: self.queue.give_back(rows), self.queue.database)
        except RepositoryError:
            logger.error("%d messages that were fetched for a stream can't be given back", len(rows))
            raise


def _in_time(give_back: Callable[[], None], database: Database) -> None:
    """Try again where the database can't be reached, for a time, in a thread."""
    give_up = time.monotonic() + GIVE_BACK_SECONDS
    while True:
        try:
            return give_back()
        except RepositoryError:
            database.check_open()
            if time.monotonic() > give_up:
                raise
        time.sleep(PAUSES[0])


async def stream(
    supply: Supply,
    listener: MessageQueueListener,
    database: Database,
    *,
    adapt: Callable[[MessageContract, str | None], Any],
    delay: Callable[[], float],
) -> AsyncGenerator[Any, None]:
    """The events of a queue, until its listener is stopped.

    An event is delivered once it is asked for: whoever stops asking has lost none. While the database can't be reached,
    one event of an error is delivered, and the stream goes on by itself when it can be again.

    :param adapt: makes an event of a message and the id of the event
    :param delay: seconds between two events
    """
    pause, version, is_more = PAUSES[0], 0, True
    try:
        while listener.is_running():
            item = supply.next()
            if item is not None:
                try:
                    message = supply.decoded(item)
                except RepositoryError:
                    await _given_back(supply, item)
                    is_more = True
                    yield adapt(Message(ERROR), supply.event_id(item))
                    await _paused(PAUSES[1], listener)
                    continue
                yield _event(message, supply, item, listener, adapt)
                await asyncio.sleep(delay())
                continue
            if not is_more:
                database.wakeups.start()
                await _changed(supply.queue.gate, version, listener, database)
            version = supply.watch()
            try:
                is_more = await asyncio.to_thread(supply.fetch)
            except RepositoryError as error:
                database.check_open()
                if not isinstance(error, Unreadable):
                    database.outage.begins(supply, error)
                if pause == PAUSES[0]:
                    yield adapt(Message(ERROR), None)
                await _paused(pause, listener)
                pause = min(2 * pause, PAUSES[1])
                continue
            database.outage.ends(supply)
            pause = PAUSES[0]
    finally:
        database.outage.ends(supply)
        if supply.close():
            await _given_back(supply)


async def _given_back(supply: Supply, *items: Any) -> None:
    """Give items back, and all that were to follow: whoever cancels the stream meanwhile does not stop that."""
    await asyncio.shield(asyncio.get_running_loop().run_in_executor(None, supply.give_back, *items))


def _event(
    message: MessageContract,
    supply: Supply,
    item: Any,
    listener: MessageQueueListener,
    adapt: Callable[[MessageContract, str | None], Any],
) -> Any:
    try:
        if supply.is_for_listener(item):
            listener.on_message(message)
        return adapt(message, supply.event_id(item))
    except Exception:
        logger.exception("a message can't be delivered to its listener")
        return adapt(Message(ERROR), supply.event_id(item))


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
        until = max(self.until, self.database.wakeups.trusted_until) - STOP_SECONDS  # the next round would be too late
        return not self.listener.is_running() or time.monotonic() > until


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
