"""Streams that go on after ``Last-Event-ID``: delivered messages are kept for a while."""

from __future__ import annotations

import time
from collections import deque
from typing import NamedTuple

from eric_sse.exception import RepositoryError
from eric_sse.message import Message, MessageContract

from eric_sse_sql.errors import repository_errors
from eric_sse_sql.queues import SqlQueue
from eric_sse_sql.sql import events
from eric_sse_sql.sql.messages import TakenMessage
from eric_sse_sql.streams.source import BATCH, UnreadableMessage

RESET = "reset"  # the type of the event that reports a gap
GAP = "messages before this event are gone"  # its data: a browser drops an event without data
MAX_DIGITS = 18  # of a position; Python refuses to read thousands of digits
EXPIRIES = 10  # how often expired messages are deleted, in the time for which they are kept


class _Item(NamedTuple):
    """A delivered message; without a blob, a gap marker: messages up to this position were deleted."""

    position: int
    blob: bytes | None


class Replay:
    """The message source of a queue whose delivered messages are kept.

    A message gets its position in the queue when it is delivered to the first stream: it is moved to the delivered
    messages, which all streams of the queue read. Positions are consecutive, so that a missing one is known to be gone.

    :param queue: the queue of the stream
    :param seconds: how long a message is kept at least, while no other one is delivered
    :param last_event_id: of the last event that the client has seen; None to begin with the next delivery
    """

    def __init__(self, queue: SqlQueue, seconds: float, last_event_id: str | None) -> None:
        self.queue = queue
        self._database = queue.database
        self._executor = queue.database.executor
        self._seconds = seconds
        self._last_event_id = last_event_id
        self._after: int | None = None  # the position up to which everything was fetched
        self._items: deque[_Item] = deque()
        self._next_expiry = 0.0

    def arm(self) -> int:
        return self.queue.watch.arm(self._after or 0)

    def fetch(self) -> bool:
        with repository_errors("the messages can't be delivered"):
            moved, last = self._move()
            if self._after is None:
                self._begin(moved, last)
            rows = self._executor.run(events.AFTER, queue_id=self.queue.id, after=self._after, count=BATCH)
        for position, blob in rows:
            if position != (self._after or 0) + 1:
                self._items.append(_Item(position - 1, None))
            self._items.append(_Item(position, blob))
            self._after = position
        return len(rows) == BATCH

    def next(self) -> _Item | None:
        return self._items.popleft() if self._items else None

    def decoded(self, item: _Item) -> MessageContract:
        return Message(RESET, GAP) if item.blob is None else self.queue.decoded(item.blob)

    def is_for_listener(self, item: _Item) -> bool:
        return item.blob is not None

    def event_id(self, item: _Item) -> str | None:
        return str(item.position)

    def put_back(self, *items: _Item) -> None:
        """Delivered messages stay in their table, so putting back changes nothing."""

    def close(self) -> bool:
        return False

    def _begin(self, moved: int, last: int | None) -> None:
        """Find the position of the client.

        :param moved: how many messages the first fetch has delivered
        :param last: the position of the last of them; None where there was none
        """
        if last is None:
            queue_ids = self._executor.dialect.list_value([self.queue.id])
            found = self._executor.run(events.LAST_POSITIONS, queue_ids=queue_ids)
            last = events.LastPosition._make(found[0]).last_position if found else 0
        seen = self._last_event_id
        if seen is None:
            after = last - moved
        elif seen.isascii() and seen.isdigit() and len(seen) <= MAX_DIGITS and int(seen) <= last:
            after = int(seen)
            if after < last and not self._executor.run(events.AFTER, queue_id=self.queue.id, after=after, count=1):
                after = last
                self._items.append(_Item(last, None))
        else:
            after = last - moved
            self._items.append(_Item(after, None))
        self._after = after

    def _move(self) -> tuple[int, int | None]:
        """Deliver the waiting messages of the queue. How many there were, and the position of the last one, if any."""
        with self._database.transaction():
            self._executor.run(events.LOCK, queue_id=self.queue.id)
            rows = self._readable(self.queue.take(BATCH))
            if not rows:
                return 0, None
            ((last,),) = self._executor.run(events.RESERVE, queue_id=self.queue.id, count=len(rows))
            kept = [
                {
                    "queue_id": self.queue.id,
                    "position": position,
                    "message_type": row.message_type,
                    "message": row.message,
                }
                for position, row in enumerate(rows, last - len(rows) + 1)
            ]
            self._database.publisher.publish_many(events.KEEP, [self.queue.id], kept)
            self._expire()
        return len(rows), last

    def _readable(self, rows: list[TakenMessage]) -> list[TakenMessage]:
        """The messages before the first one that can't be decoded. That one and all later ones go back."""
        for count, row in enumerate(rows):
            try:
                self.queue.decoded(row.message)
            except RepositoryError as error:
                if count == 0:  # the transaction is rolled back
                    raise UnreadableMessage("the first message of the queue can't be read") from error
                self.queue.put_back(rows[count:])
                return rows[:count]
        return rows

    def _expire(self) -> None:
        if time.monotonic() > self._next_expiry:
            self._next_expiry = time.monotonic() + self._seconds / EXPIRIES
            age = self._executor.dialect.seconds_value(-self._seconds)
            self._executor.run(events.EXPIRE, queue_id=self.queue.id, age=age)
