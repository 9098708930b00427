"""``IdentityMap``: the connections that a channel object holds, as an SQLAlchemy ``Session`` holds objects."""

from __future__ import annotations

import threading
from collections.abc import Collection, Iterator, Sequence
from typing import Any, Protocol

from eric_sse.connection import Connection
from eric_sse.exception import InvalidListenerException, RepositoryError
from eric_sse.listener import MessageQueueListener

from eric_sse_sql.arguments import validate_connection
from eric_sse_sql.database import Database
from eric_sse_sql.keys import validate_key
from eric_sse_sql.queues import BlockingSqlQueue, SqlQueue, is_pushed_by_statement
from eric_sse_sql.sql.connections import LogPlace
from eric_sse_sql.streams.event_log import log_of
from eric_sse_sql.streams.log_source import LogCursor

SWEEP_AT = 1000  # connections that an object holds when it first asks which of them other processes have deleted

Blobs = tuple[bytes, bytes]  # of a listener and of its queue


class HeldConnection:
    """A connection that a channel object holds.

    :param connection: listener and queue
    :param blobs: of both, as they are stored; None where they are not stored yet
    """

    __slots__ = ("_state", "blobs", "connection", "cursor", "is_gone", "is_removed", "may_be_stored", "place")

    def __init__(self, connection: Connection, blobs: Blobs | None) -> None:
        self.connection = connection
        self.blobs = blobs
        self.may_be_stored = blobs is not None  # True after a persist that an application commits or rolls back
        self.is_removed = False  # whether it was removed from the channel object
        self.is_gone = False  # whether it is held no more: removed, or deleted by another process
        self.cursor: LogCursor | None = None  # where the channel has a log, which the connection reads
        self.place: LogPlace | None = None  # in the log, where it was looked up
        self._state = None if blobs is None else _state(connection)

    @property
    def is_known_unchanged(self) -> bool:
        """Whether both objects are as they are stored, as far as that can be told without pickling them."""
        return self._state is not None and self._state == _state(self.connection)

    def note_stored(self, blobs: Blobs) -> None:
        """Note what is stored now."""
        self.blobs, self._state = blobs, _state(self.connection)
        if self.cursor is not None:
            self.cursor.connection_id = self.connection.id


class ConnectionStore(Protocol):
    """Where a channel looks its stored connections up."""

    @property
    def database(self) -> Database:
        """The database."""

    def find_connection(self, channel_id: str, listener_id: str) -> HeldConnection | None:
        """The connection of a listener in a channel; None where none is stored. One statement."""

    def held_connections(self, channel_id: str) -> Iterator[HeldConnection]:
        """All connections of a channel. One statement."""

    def missing_ids(self, connection_ids: Collection[str]) -> set[str]:
        """Those of some ids that no connection is stored under. One statement."""


class IdentityMap:
    """The connections that were asked of a channel object or registered with it, by the id of their listener, and the
    ids of those that were removed from it. Threads may share it.

    :param channel_id: of the channel
    :param has_log: whether the channel keeps its messages in a log
    """

    def __init__(self, channel_id: str, *, has_log: bool) -> None:
        self.store: ConnectionStore | None = None  # None until the channel is loaded or persisted
        self.replay_seconds: float | None = None  # with which the channel was loaded or persisted
        self._channel_id = channel_id
        self.has_log = has_log
        self._lock = threading.RLock()
        self._held: dict[str, HeldConnection] = {}
        self._unstored: dict[str, HeldConnection] = {}  # those of them that are not known to be stored
        self._removed: dict[str, str] = {}  # ids of connections to be deleted by persist, by the id of the listener
        self._sweep_at = SWEEP_AT

    def get(self, listener_id: str) -> HeldConnection | None:
        """The connection of a listener, if it is held."""
        return self._held.get(listener_id)

    def is_found_without_statement(self, listener_id: str) -> bool:
        """Whether :meth:`find` needs no statement."""
        held = self._held.get(listener_id)
        return self.store is None or (held is not None and not self._is_undecided(held))

    def find(self, listener_id: str) -> HeldConnection:
        """The connection of a listener, which is held from now on. At most one statement; rarely another one, which
        finds held connections that other processes have deleted.

        :raises InvalidListenerException: when the channel has no such listener
        """
        self.check(listener_id)
        held = self._held.get(listener_id)
        if held is None and self.store is not None:
            held = self.reload(listener_id)
        elif held is not None and self._is_undecided(held):
            self._decide(held)
        if held is None:
            raise InvalidListenerException(f"Invalid listener {listener_id}")
        return held

    def check(self, listener_id: str) -> None:
        """Do nothing, unless it is known that the channel has no such listener: it was removed from this object, or no
        listener can have the id.

        :raises InvalidListenerException: then
        """
        try:
            is_removed = validate_key("a listener id", listener_id) in self._removed
        except RepositoryError as error:
            raise InvalidListenerException(f"Invalid listener: {error}") from error
        if is_removed:
            raise InvalidListenerException(f"Invalid listener {listener_id}")

    def reload(self, listener_id: str) -> HeldConnection | None:
        """The held connection of a listener, if it is still stored; else it is held no more. One statement."""
        assert self.store is not None
        known = self._held.get(listener_id)
        loaded = self.store.find_connection(self._channel_id, listener_id)
        with self._lock:
            if loaded is None:
                if known is not None:
                    self.discard(known)
                return None
            held = self._held.get(listener_id) or self._hold(loaded)
        if len(self._held) >= self._sweep_at:
            self._sweep()
        return held

    def load_all(self) -> list[HeldConnection]:
        """All connections of the channel, which are held from now on. One statement."""
        if self.store is None:
            return self.held()
        with self._lock:  # first: one that another thread stores after the statement is not among the loaded ones
            stored = [each for key, each in self._held.items() if key not in self._unstored]
        loaded = {each.connection.listener.id: each for each in self.store.held_connections(self._channel_id)}
        with self._lock:
            for each in stored:
                if each.connection.listener.id not in loaded:
                    self.discard(each)
            for listener_id, each in loaded.items():
                if listener_id not in self._held and listener_id not in self._removed:
                    self._hold(each)
            return list(self._held.values())

    def register(self, connection: Connection) -> None:
        """Hold a connection that is not stored yet.

        :raises RepositoryError: for what is none
        """
        listener_id = validate_key("a listener id", validate_connection(connection).listener.id)
        with self._lock:
            self._unstored[listener_id] = self._hold(HeldConnection(connection, None))
            self._removed.pop(listener_id, None)

    def remove(self, listener_id: str) -> None:
        """Hold a connection no more, and remember to delete it.

        :raises InvalidListenerException: when the channel has no such listener
        """
        held = self.find(listener_id)
        with self._lock:
            held.is_removed = True
            self._release(listener_id)
            self._unstored.pop(listener_id, None)
            if held.may_be_stored:
                self._removed[listener_id] = held.connection.id

    def discard(self, held: HeldConnection) -> None:
        """Hold a connection no more that another process has deleted."""
        with self._lock:
            if self._held.get(held.connection.listener.id) is held:
                self._release(held.connection.listener.id)

    def held(self) -> list[HeldConnection]:
        """All connections that are held."""
        with self._lock:
            return list(self._held.values())

    def unstored(self) -> list[HeldConnection]:
        """Those of them that are not known to be stored."""
        with self._lock:
            return list(self._unstored.values())

    def removed(self) -> dict[str, str]:
        """The ids of the connections that were removed and may be stored still, by the ids of their listeners."""
        with self._lock:
            return dict(self._removed)

    def note_written(self, store: ConnectionStore, held: Sequence[HeldConnection]) -> None:
        """Note what a transaction has written, which may be rolled back."""
        self.store = self.store or store
        for each in held:
            each.may_be_stored = True

    def note_stored(
        self,
        store: ConnectionStore,
        written: Sequence[tuple[HeldConnection, Blobs]],
        *,
        removed: dict[str, str],
        deleted: Sequence[HeldConnection],
        replay_seconds: float,
    ) -> None:
        """Note what was committed.

        :param removed: the ids of the connections that were deleted, by the ids of their listeners
        :param deleted: connections that another process has deleted
        """
        for each in deleted:
            self.discard(each)
        with self._lock:
            self.store, self.replay_seconds = store, replay_seconds
            for held, blobs in written:
                held.note_stored(blobs)
                if self._unstored.get(held.connection.listener.id) is held:
                    del self._unstored[held.connection.listener.id]
            for listener_id, connection_id in removed.items():
                if self._removed.get(listener_id) == connection_id:
                    del self._removed[listener_id]

    def _hold(self, held: HeldConnection) -> HeldConnection:
        connection, queue = held.connection, held.connection.queue
        if isinstance(queue, SqlQueue):
            queue.note_listener(self._channel_id, connection.listener.id)
            if self.has_log and is_pushed_by_statement(queue):
                connection_id = None if held.blobs is None else connection.id
                log = log_of(queue.database, self._channel_id)
                held.cursor = queue.log = LogCursor(log, connection.listener.id, queue, connection_id)
                if held.place is not None:
                    held.cursor.note_place(held.place)
        self._release(connection.listener.id)
        self._held[connection.listener.id] = held
        return held

    def _release(self, listener_id: str) -> None:
        held = self._held.pop(listener_id, None)
        if held is not None:
            held.is_gone = True

    def _is_undecided(self, held: HeldConnection) -> bool:
        """Whether a connection was written in a transaction that an application has committed, or not."""
        if held.blobs is not None or not held.may_be_stored or self.store is None:
            return False
        return not self.store.database.in_transaction()

    def _decide(self, held: HeldConnection) -> None:
        """Find out whether it was committed. One statement."""
        assert self.store is not None
        listener_id = held.connection.listener.id
        stored = self.store.find_connection(self._channel_id, listener_id)
        with self._lock:
            if stored is None or stored.connection.id != held.connection.id:
                return  # rolled back, or not committed yet
            held.blobs = stored.blobs
            if held.cursor is not None:
                held.cursor.connection_id = held.connection.id
            if self._unstored.get(listener_id) is held:
                del self._unstored[listener_id]

    def _sweep(self) -> None:
        """Hold those no more that other processes have deleted, so that a channel object that lives for long does not
        grow with all listeners that it ever had."""
        assert self.store is not None
        with self._lock:
            stored = {key: each.connection.id for key, each in self._held.items() if key not in self._unstored}
            self._sweep_at = 2 * len(self._held)
        missing = self.store.missing_ids(stored.values())
        with self._lock:
            for listener_id, connection_id in stored.items():
                held = self._held.get(listener_id)
                if connection_id in missing and held is not None and held.connection.id == connection_id:
                    self._release(listener_id)
            self._sweep_at = max(SWEEP_AT, 2 * len(self._held))


def _state(connection: Connection) -> tuple[Any, ...] | None:
    """The attributes of a listener, where they are all that is stored of the connection and can be compared later."""
    listener, queue = connection.listener, connection.queue
    if type(listener) is not MessageQueueListener or type(queue) not in (SqlQueue, BlockingSqlQueue):
        return None
    values = tuple(vars(listener).values())
    return values if all(type(value) in (str, bool) for value in values) else None
