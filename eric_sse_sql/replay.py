"""Streams that can be taken up again where they were cut off: what was delivered is kept for a while."""

from __future__ import annotations

import time
from collections import deque
from typing import NamedTuple

from eric_sse.exception import RepositoryError
from eric_sse.message import Message, MessageContract

from eric_sse_sql import replay_statements as sql
from eric_sse_sql.errors import repository_errors
from eric_sse_sql.queues import SqlQueue
from eric_sse_sql.statements import Row
from eric_sse_sql.streams import BATCH, Unreadable

RESET = "reset"  # the type of the event that tells of a gap
EXPIRIES = 10  # in the time that a message is kept, of a queue in which something is delivered


class _Item(NamedTuple):
    """A message that was delivered, or the news that some before it are gone."""

    position: int
    blob: bytes | None


class Replay:
    """What a stream delivers of a queue whose delivered messages are kept.

    A message gets its position in the queue when it is delivered to the first stream: it is moved to the messages that
    are kept, from which all streams of the queue read. Positions follow one another without a gap, so that one that is
    missing is known to be gone.

    :param queue: what is streamed
    :param seconds: how long a message is kept at the least, while no other one is delivered
    :param last_event_id: of the event that the client has seen last; None for what is delivered from now on
    """

    def __init__(self, queue: SqlQueue, seconds: float, last_event_id: str | None) -> None:
        self.queue = queue
        self._database = queue.database
        self._seconds = seconds
        self._last_event_id = last_event_id
        self._after: int | None = None  # the position up to which everything was fetched
        self._items: deque[_Item] = deque()
        self._next_expiry = 0.0

    def watch(self) -> int:
        """The version of the queue's gate, which changes when there is something to fetch."""
        return self.queue.gate.watch(self._after or 0)

    def fetch(self) -> bool:
        """Fetch some more, in a thread. Whether there may be yet more."""
        with repository_errors("the messages can't be delivered"):
            moved, last = self._move()
            if self._after is None:
                self._begin(moved, last)
            rows = self._database.run(sql.READ, queue=self.queue.id, after=self._after, count=BATCH)
        for position, blob in rows:
            if position != (self._after or 0) + 1:
                self._items.append(_Item(position - 1, None))
            self._items.append(_Item(position, blob))
            self._after = position
        return len(rows) == BATCH

    def next(self) -> _Item | None:
        """What comes next, if it was fetched."""
        return self._items.popleft() if self._items else None

    def decoded(self, item: _Item) -> MessageContract:
        """The message.

        :raises RepositoryError: when it can't be read
        """
        return Message(RESET) if item.blob is None else self.queue.decoded_blob(item.blob)

    def is_for_listener(self, item: _Item) -> bool:
        """Whether it is a message that was dispatched."""
        return item.blob is not None

    def event_id(self, item: _Item) -> str | None:
        """The id of the event, for the client to come back with."""
        return str(item.position)

    def give_back(self, *items: _Item) -> None:
        """Nothing: what was fetched is kept."""

    def close(self) -> bool:
        """Nothing is to be given back."""
        return False

    def _begin(self, moved: int, last: int | None) -> None:
        """Find where the client stands, when some messages were just delivered, the last one at a position."""
        if last is None:
            rows = self._database.run(sql.POSITION, queue=self.queue.id)
            last = rows[0][0] if rows else 0
        seen = self._last_event_id
        if seen is None:
            after = last - moved
        elif seen.isascii() and seen.isdigit() and int(seen) <= last:
            after = int(seen)
            if after < last and not self._database.run(sql.READ, queue=self.queue.id, after=after, count=1):
                after = last
                self._items.append(_Item(last, None))
        else:
            after = last - moved
            self._items.append(_Item(after, None))
        self._after = after

    def _move(self) -> tuple[int, int | None]:
        """Deliver what waits in the queue. How many messages it were, and the position of the last one, if any."""
        with self._database.transaction():
            self._database.run(sql.HOLD, queue=self.queue.id)
            rows = self._readable(self.queue.take(BATCH))
            if not rows:
                return 0, None
            last: int = self._database.run(sql.ADVANCE, queue=self.queue.id, count=len(rows))[0][0]
            kept = [
                {"queue": self.queue.id, "position": position, "kind": row[1], "blob": row[2]}
                for position, row in enumerate(rows, last - len(rows) + 1)
            ]
            self._database.publish_many(sql.KEEP, [self.queue.id], kept)
            self._expire()
        return len(rows), last

    def _readable(self, rows: list[Row]) -> list[Row]:
        """The first rows that can be read. What follows goes back to its place."""
        for count, row in enumerate(rows):
            try:
                self.queue.decoded(row)
            except RepositoryError as error:
                if count == 0:  # and the transaction is rolled back
                    raise Unreadable("the first message of the queue can't be read") from error
                self.queue.give_back(rows[count:])
                return rows[:count]
        return rows

    def _expire(self) -> None:
        if time.monotonic() > self._next_expiry:
            self._next_expiry = time.monotonic() + self._seconds / EXPIRIES
            age = self._database.dialect.seconds_value(-self._seconds)
            self._database.run(sql.EXPIRE, queue=self.queue.id, age=age)
