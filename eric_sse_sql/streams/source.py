"""``MessageSource``: what a stream delivers, and the prefetch buffer over a queue."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

from eric_sse.exception import RepositoryError
from eric_sse.message import MessageContract

from eric_sse_sql.database import Database
from eric_sse_sql.queues import SqlQueue
from eric_sse_sql.sql.messages import TakenMessage
from eric_sse_sql.streams.feeder import feeder_of
from eric_sse_sql.streams.frames import frame, message_frame
from eric_sse_sql.streams.idle import Waiter

UNREADABLE = "a message can't be read"  # the data of an error event
PUT_BACK_SECONDS = 10.0  # for which putting messages back is tried again while the database can't be reached
PUT_BACK_PAUSE = 0.1  # seconds between two tries

Result = TypeVar("Result")

logger = logging.getLogger("eric_sse_sql")


class MessageSource(Protocol):
    """Items fetched from a queue, in the order of their delivery."""

    async def wait(self, is_open: Callable[[], bool]) -> None:
        """Wait until there may be a next item, or the stream is to end.

        :raises RepositoryError: when the database can't be queried
        """

    def next(self) -> Any | None:
        """The next item that was fetched; None where there is none."""

    def advance(self, item: Any) -> bool:
        """Go on to the item after the next one. False where that was put back meanwhile."""

    def note_delivered(self, item: Any) -> None:
        """Called when the consumer asks for the event after the item's."""

    def decoded(self, item: Any) -> MessageContract:
        """The message of an item.

        :raises RepositoryError: when it can't be decoded
        """

    def take_frame(self) -> bytes | None:
        """The frame of the next item, after which the source goes on; None where no other stream has made it."""

    def frame(self, item: Any) -> bytes:
        """The server-sent event of an item, as bytes. What is stored as JSON stays as it is.

        :raises RepositoryError: when the item can't be decoded
        """

    def is_for_listener(self, item: Any) -> bool:
        """Whether the listener's ``on_message`` is called with the message."""

    def event_id(self, item: Any) -> str | None:
        """The id of the item's event, for ``Last-Event-ID``; None where events have none."""

    def set_aside(self, item: Any, error: RepositoryError) -> None:
        """Keep the next item, which can't be decoded, apart, and go on to the one after it. In a thread.

        :raises RepositoryError: for any fault of the database; it is the next item still
        """

    def put_back(self) -> None:
        """Return all items that were fetched and not delivered to the queue, in a thread."""

    def close(self) -> bool:
        """Called when the stream ends, even while a fetch is running. Whether :meth:`put_back` is to be called."""


class PrefetchBuffer:
    """The messages that were taken from a queue and not delivered yet: at most a hundred, of 8 MiB together.

    :param queue: the queue of the stream
    :param is_stored: whether its connection is stored: only where it still is, messages go back
    """

    def __init__(self, queue: SqlQueue, is_stored: bool) -> None:
        self.queue = queue
        self._is_stored = is_stored
        self._version = 0  # of the queue's watch, before the last fetch
        self._is_more = True
        self._is_requested = False  # whether messages were asked for
        self._is_answered = False  # whether they were since the wait has begun
        self._taken_at = 0.0  # on the clock of time.monotonic()
        self._rows: deque[TakenMessage] = deque()
        self._lock = threading.Lock()
        self._is_closed = False
        self._waiter: Waiter | None = None  # from the first wait on

    async def wait(self, is_open: Callable[[], bool]) -> None:
        database, watch = self.queue.database, self.queue.watch
        if self._waiter is None:
            self._waiter = Waiter(database, is_open)
        self._is_answered = False
        self._waiter.begin()
        watch.subscribe(self._request_once)
        try:
            if self._is_more or watch.version != self._version:
                self._request_once()
            if not self._rows:
                await self._waiter.wait()
                self._is_more = self._is_more or not self._is_answered  # no change is noticed now: ask
        finally:
            watch.unsubscribe(self._request_once)

    def _request_once(self) -> None:
        """Ask for messages, from any thread, unless that was done already or there are some."""
        with self._lock:
            if self._is_requested or self._rows or self._waiter is None:
                return
            self._is_requested = True
        feeder_of(self.queue.database).request(self, self._waiter)

    def prepare(self) -> None:
        with self._lock:
            self._version = self.queue.watch.arm()

    @property
    def queue_id(self) -> str:
        return self.queue.id

    def receive(self, rows: list[TakenMessage], *, is_more: bool) -> bool:
        """Take over messages. False, where it is closed."""
        with self._lock:
            self._is_more, self._is_requested, self._is_answered = is_more, False, True
            self._taken_at = time.monotonic()
            if not self._is_closed:
                self._rows.extend(rows)
            return not self._is_closed

    def refuse(self, rows: list[TakenMessage], taken_at: float) -> None:
        """Return messages that were not taken over to the queue, in a thread."""
        self._put_back(rows, taken_at)

    def next(self) -> TakenMessage | None:
        return self._rows[0] if self._rows else None

    def advance(self, row: TakenMessage) -> bool:
        with self._lock:
            is_next = bool(self._rows) and self._rows[0] is row
            if is_next:
                self._rows.popleft()
            return is_next

    def decoded(self, row: TakenMessage) -> MessageContract:
        return self.queue.decoded(row.message_type, row.message)

    def take_frame(self) -> None:
        """None: a message has one stream."""

    def frame(self, row: TakenMessage) -> bytes:
        codec, context = self.queue.database.message_codec, self.queue.context
        data = codec.json_of(row.message_type, row.message, context)
        return message_frame(self.decoded(row)) if data is None else frame(row.message_type, data)

    def note_delivered(self, row: TakenMessage) -> None:
        """It left its table when it was fetched."""

    def is_for_listener(self, row: TakenMessage) -> bool:
        return True

    def event_id(self, row: TakenMessage) -> None:
        """None: a delivered message is deleted, and no stream can go on after it."""

    def set_aside(self, row: TakenMessage, error: RepositoryError) -> None:
        if not self.advance(row):  # the stream has ended, and the row is back in its queue
            return
        try:
            self.queue.set_aside(row, error)
        except RepositoryError:
            with self._lock:
                self._rows.appendleft(row)
                is_closed = self._is_closed
            if is_closed:
                self.put_back()
            raise

    def put_back(self) -> None:
        with self._lock:
            rows, self._rows = self._rows, deque()
        try:
            self._put_back(list(rows), self._taken_at)
        finally:
            if rows:
                feeder_of(self.queue.database).note_returned(self)

    def close(self) -> bool:
        with self._lock:
            self._is_closed = True
            is_returning = bool(self._rows)
            feeder_of(self.queue.database).forget(self, is_returning=is_returning)
        return is_returning

    def _put_back(self, rows: list[TakenMessage], taken_at: float) -> None:
        since = taken_at if self._is_stored else None
        try:
            retried(lambda: self.queue.put_back(rows, since), self.queue.database)
        except RepositoryError:
            logger.error("%d messages that were fetched for a stream can't be put back", len(rows))
            raise


async def in_thread(database: Database, call: Callable[..., Result], *arguments: Any) -> Result:
    """Call a function in a thread of the package's own, to its end even if the stream is cancelled meanwhile."""
    return await asyncio.shield(asyncio.wrap_future(database.background.stream_threads.submit(call, *arguments)))


def retried(put_back: Callable[[], None], database: Database) -> None:
    """Call a function that puts messages back again while the database can't be reached, for a time. In a thread."""
    give_up = time.monotonic() + PUT_BACK_SECONDS
    while True:
        try:
            return put_back()
        except RepositoryError:
            database.check_open()
            if time.monotonic() > give_up:
                raise
        time.sleep(PUT_BACK_PAUSE)
