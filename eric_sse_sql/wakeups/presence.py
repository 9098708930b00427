"""``Presence``: the open streams of this process: whether their connections are deleted, and how far they are."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from eric_sse_sql.errors import repository_errors
from eric_sse_sql.execution.executor import Executor
from eric_sse_sql.sql import connections, events

CHECK_SECONDS = 1.0  # between two queries for deleted connections
SEEN_SECONDS = 30.0  # between two writes of ``seen_at``
PAGE = 5000  # connections a statement


class OpenStream:
    """A stream of a stored connection."""

    __slots__ = ("connection_id", "is_deleted", "noted", "position")

    def __init__(self, connection_id: str) -> None:
        self.connection_id = connection_id
        self.is_deleted = False  # set once no connection of the id is stored any more
        self.position = 0  # up to which it has delivered the log of its channel
        self.noted = 0  # the position that is written


class Presence:
    """The open streams of a database in this process. Threads may share it.

    One statement for each thousand connections tells which of them are deleted, and when streams were last alive.

    :param executor: runs the statements
    """

    _streams: set[OpenStream]
    _unseen: set[str]  # ids of connections whose stream was opened since the last check
    _ended: dict[str, int]  # last positions of streams that have ended, until they are written, by connection
    _open_ids: Sequence[Any] | None  # of their connections, in pages, as a statement takes them; None once they change
    _next_check: float  # on the clock of time.monotonic()
    _next_seen: float

    def __init__(self, executor: Executor) -> None:
        self._executor = executor
        self.after_fork_in_child()

    def open(self, connection_id: str) -> OpenStream:
        """Register a stream."""
        stream = OpenStream(connection_id)
        with self._lock:
            self._streams.add(stream)
            self._unseen.add(connection_id)
            self._open_ids = None
        return stream

    def close(self, stream: OpenStream) -> None:
        """Forget a stream."""
        with self._lock:
            self._streams.discard(stream)
            self._open_ids = None
            if stream.position > stream.noted:
                self._ended[stream.connection_id] = max(stream.position, self.ended_at(stream.connection_id))

    def check(self) -> None:
        """Find deleted connections and write positions, at most once a second; write ``seen_at`` at opening, and every
        half minute."""
        now = time.monotonic()
        with self._lock:
            if now < self._next_check or not (self._streams or self._ended or self._unseen):
                return
            self._next_check = now + CHECK_SECONDS
            is_due = now >= self._next_seen
            if is_due:
                self._next_seen = now + SEEN_SECONDS
            streams, unseen, self._unseen = set(self._streams), self._unseen, set()
            if self._open_ids is None:  # ten thousand ids take as long to encode as to look up
                self._open_ids = self._encoded({stream.connection_id for stream in streams})
            open_ids = self._open_ids
            if is_due:
                unseen.difference_update(stream.connection_id for stream in streams)
        self.write_positions()
        for page in (*self._encoded(unseen), *(open_ids if is_due else ())):
            self._executor.run(connections.MARK_SEEN, connection_ids=page)
        missing = {key for page in open_ids for (key,) in self._executor.run(connections.MISSING, connection_ids=page)}
        if missing:
            for stream in streams:
                stream.is_deleted = stream.is_deleted or stream.connection_id in missing

    def _encoded(self, connection_ids: Iterable[str]) -> list[Any]:
        """Pages of ids, as a statement takes them. In the order in which all processes lock their rows."""
        return list(map(self._executor.dialect.list_value, _pages(sorted(connection_ids))))

    def ended_at(self, connection_id: str) -> int:
        """The position at which a stream of a connection has ended, where that is not written yet; else 0."""
        return self._ended.get(connection_id, 0)

    def write_positions(self) -> None:
        """Write how far streams have delivered.

        :raises RepositoryError: for any fault of the database; the next call writes them
        """
        with self._lock:
            ended = dict(self._ended)
            positions = {stream: stream.position for stream in self._streams if stream.position > stream.noted}
        delivered = dict(ended)
        for stream, position in positions.items():
            delivered[stream.connection_id] = max(position, delivered.get(stream.connection_id, 0))
        if not delivered:
            return
        ids = sorted(delivered)
        for page in _pages(ids):
            positions_of_page = json.dumps({connection_id: delivered[connection_id] for connection_id in page})
            with repository_errors("the positions can't be written"):
                self._executor.run(events.NOTE_POSITIONS, positions=positions_of_page)
        for stream, position in positions.items():
            stream.noted = position
        with self._lock:
            for connection_id, position in ended.items():
                if self._ended.get(connection_id) == position:
                    del self._ended[connection_id]

    def after_fork_in_child(self) -> None:
        """Forget the parent's streams, and replace the lock, which its threads may hold."""
        self._lock = threading.Lock()
        self._streams = set()
        self._open_ids = None
        self._unseen = set()
        self._ended = {}
        self._next_check = 0.0
        self._next_seen = 0.0


def _pages(ids: list[str]) -> Iterator[list[str]]:
    return (ids[at : at + PAGE] for at in range(0, len(ids), PAGE))
