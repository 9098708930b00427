"""``MessageSource``: what a stream delivers, and the prefetch buffer over a queue."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Protocol

from eric_sse.exception import RepositoryError
from eric_sse.message import MessageContract

from eric_sse_sql.database import Database
from eric_sse_sql.queues import SqlQueue
from eric_sse_sql.sql.messages import TakenMessage

BATCH = 100  # messages fetched at once, at most
PUT_BACK_SECONDS = 10.0  # for which putting messages back is tried again while the database can't be reached
PUT_BACK_PAUSE = 0.1  # seconds between two tries

logger = logging.getLogger("eric_sse_sql")


class UnreadableMessage(RepositoryError):
    """The next message can't be decoded, and stays where it is."""


class MessageSource(Protocol):
    """Items fetched from a queue, in the order of their delivery."""

    queue: SqlQueue

    def arm(self) -> int:
        """The version of the queue's watch, which changes when there is something to fetch."""

    def fetch(self) -> bool:
        """Fetch some items, in a thread. Whether there may be more."""

    def next(self) -> Any | None:
        """The next item that was fetched; None where there is none."""

    def decoded(self, item: Any) -> MessageContract:
        """The message of an item.

        :raises RepositoryError: when it can't be decoded
        """

    def is_for_listener(self, item: Any) -> bool:
        """Whether the listener's ``on_message`` is called with the message."""

    def event_id(self, item: Any) -> str | None:
        """The id of the item's event, for ``Last-Event-ID``; None where events have none."""

    def put_back(self, *items: Any) -> None:
        """Return items, and all that were fetched after them, to the queue, in a thread."""

    def close(self) -> bool:
        """Called when the stream ends, even while a fetch is running. Whether :meth:`put_back` is to be called."""


class PrefetchBuffer:
    """The messages that were taken from a queue and not delivered yet.

    :param queue: the queue of the stream
    """

    def __init__(self, queue: SqlQueue) -> None:
        self.queue = queue
        self._rows: deque[TakenMessage] = deque()
        self._lock = threading.Lock()
        self._is_closed = False

    def arm(self) -> int:
        return self.queue.watch.arm()

    def fetch(self) -> bool:
        rows = self.queue.take(BATCH)
        with self._lock:
            if not self._is_closed:
                self._rows.extend(rows)
                return len(rows) == BATCH
        self._put_back(rows)
        return False

    def next(self) -> TakenMessage | None:
        return self._rows.popleft() if self._rows else None

    def decoded(self, row: TakenMessage) -> MessageContract:
        return self.queue.decoded(row.message)

    def is_for_listener(self, row: TakenMessage) -> bool:
        return True

    def event_id(self, row: TakenMessage) -> None:
        """None: a delivered message is deleted, and no stream can go on after it."""

    def put_back(self, *rows: TakenMessage) -> None:
        with self._lock:
            later, self._rows = self._rows, deque()
        self._put_back([*rows, *later])

    def close(self) -> bool:
        with self._lock:
            self._is_closed = True
            return bool(self._rows)

    def _put_back(self, rows: list[TakenMessage]) -> None:
        try:
            _retried(lambda: self.queue.put_back(rows), self.queue.database)
        except RepositoryError:
            logger.error("%d messages that were fetched for a stream can't be put back", len(rows))
            raise


def _retried(put_back: Callable[[], None], database: Database) -> None:
    """Call a function again while the database can't be reached, for a time, in a thread."""
    give_up = time.monotonic() + PUT_BACK_SECONDS
    while True:
        try:
            return put_back()
        except RepositoryError:
            database.check_open()
            if time.monotonic() > give_up:
                raise
        time.sleep(PUT_BACK_PAUSE)
