"""Channels and connections in their tables: a constant number of statements, however many connections there are."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import groupby
from operator import itemgetter
from typing import Any, NamedTuple, TypeVar
from weakref import WeakKeyDictionary

from eric_sse.connection import Connection
from eric_sse.entities import AbstractChannel
from eric_sse.listener import MessageQueueListener
from eric_sse.queues import Queue

from eric_sse_sql import contract
from eric_sse_sql import relation_statements as sql
from eric_sse_sql.codec import class_path
from eric_sse_sql.contract import ItemNotFound
from eric_sse_sql.database import Database
from eric_sse_sql.errors import repository_errors
from eric_sse_sql.keys import (
    CHANNELS,
    CONNECTION_LISTENERS,
    CONNECTION_QUEUES,
    LISTENERS,
    QUEUES,
    new_id,
    validate_key,
)
from eric_sse_sql.pickles.blob_template import BlobTemplate
from eric_sse_sql.queues import BlockingSqlQueue, SqlQueue
from eric_sse_sql.statements import Row, Statement
from eric_sse_sql.storage import UPSERT, SqlStorageEngine, keyset_pages

CHANNELS_A_PAGE = 100


class ObjectStorage(SqlStorageEngine):
    """The entries that channels and connections refer to, in a namespace apart from those of applications.

    :param templates: of those objects that most of them are
    """

    def __init__(self, database: Database, namespace: str, templates: Sequence[BlobTemplate[Any]] = ()) -> None:
        self._set_up(database, namespace)
        self._templates = () if database.codec.signs else templates  # a signed blob is never what another one is

    def object_at(self, at: str, object_id: str, blob: bytes) -> Any:
        """The object of a row, by its primary key, its own id and its blob."""
        for template in self._templates:
            found = template.read(blob, object_id)
            if found is not None:
                return found
        return self.value(at, blob)

    def object_entry_at(self, at: str, object_id: str, value: object) -> dict[str, Any]:
        """What stores an object with an id of its own, by the primary key of its row."""
        for template in self._templates:
            blob = template.write(value, object_id)
            if blob is not None:
                return {"at": at, "blob": blob, "kind": class_path(type(value))}
        return self.entry_at(at, value)

    def delete(self, key: str) -> None:
        """Delete an object, and the connections that need it."""
        at = self.entry_key(key)
        with repository_errors("the object can't be deleted"), self.database.transaction():
            self.database.run(sql.DELETE_CONNECTIONS_OF_OBJECT, at=at)
            super().delete(key)


class Parts(NamedTuple):
    """What a connection is made of."""

    id: str | None  # none where eric-sse 2.0 keeps none
    listener: MessageQueueListener
    queue: Queue


class Relations:
    """Channels, their connections, and the objects and messages of both. Each call is atomic.

    Listeners and queues stand under their own ids.

    :param database: where they are
    """

    listeners_namespace, queues_namespace = LISTENERS, QUEUES

    def __init__(self, database: Database) -> None:
        self._database = database
        self.listeners = ObjectStorage(database, self.listeners_namespace, [_of_listeners(database)])
        queue_classes = SqlQueue, BlockingSqlQueue
        self.queues = ObjectStorage(
            database, self.queues_namespace, [_of_queues(database, each) for each in queue_classes]
        )
        self.channel_objects = ObjectStorage(database, CHANNELS)

    # Connections

    def connections(self, channel_id: str) -> Iterator[Connection]:
        """The connections of a channel, by id. One statement, run at once; objects are built as they are asked for."""
        validate_key("a channel id", channel_id)
        with repository_errors("the connections can't be loaded"):
            rows = self._database.run(sql.OF_CHANNEL, channel=channel_id)
        return map(self._connection, rows)

    def connection(self, connection_id: str) -> Connection:
        """One connection.

        :raises ItemNotFound: when there is none of that id
        """
        return self._connection(self._connection_row(connection_id))

    def _connection_row(self, connection_id: str) -> Row:
        """The row of one connection, its channel first.

        :raises ItemNotFound: when there is none of that id
        """
        validate_key("a connection id", connection_id)
        with repository_errors("the connection can't be loaded"):
            rows = self._database.run(sql.ONE_CONNECTION, connection=connection_id)
        if not rows:
            raise ItemNotFound(connection_id)
        return rows[0]

    def persist_connection(self, connection_id: str, parts: Parts, channel_id: str | None) -> None:
        """Store a connection, its listener and its queue.

        :param channel_id: its channel; None leaves it where it is
        :raises ItemNotFound: when there is no such channel
        """
        row = self._row(validate_key("a connection id", connection_id), parts, channel_id)
        objects = self._objects([row], [parts])
        with repository_errors("the connection can't be persisted"), self._database.transaction():
            if channel_id is not None:
                self._hold_channel(validate_key("a channel id", channel_id))
            self._database.run_many(sql.UPSERT_ENTRIES, objects)
            self._database.run_many(sql.UPSERT_CONNECTIONS, [row])

    def _hold_channel(self, channel_id: str) -> None:
        """See to it that a channel is there until the end of the transaction."""
        if not self._database.run(sql.LOCK_CHANNEL, channel=channel_id):
            raise ItemNotFound(channel_id)

    def delete_connection(self, connection_id: str) -> None:
        """Delete a connection with its messages, and with its listener and queue unless another connection has them."""
        validate_key("a connection id", connection_id)
        with repository_errors("the connection can't be deleted"), self._database.transaction():
            self._run_all(sql.DELETE_CONNECTION, connection=connection_id)

    def delete_queue(self, queue_id: str) -> None:
        """Delete a queue with its messages, and the connections that need it."""
        with repository_errors("the queue can't be deleted"), self._database.transaction():
            self.queues.delete(queue_id)
            self._run_all(sql.DELETE_OF_QUEUE, queue=queue_id)

    # Channels

    def channels(self) -> Iterator[tuple[Any, list[Connection]]]:
        """All channels, as they were stored, with their connections, by id: two statements a page."""
        pages = keyset_pages(
            self._database, sql.FIRST_CHANNELS, sql.NEXT_CHANNELS, "", CHANNELS_A_PAGE, CHANNELS_A_PAGE
        )
        for page in pages:
            with repository_errors("the connections can't be loaded"):
                rows = self._database.run(sql.OF_CHANNELS, first=page[0][0], last=page[-1][0])
            connections = {channel_id: list(group) for channel_id, group in groupby(rows, itemgetter(0))}
            for channel_id, at, blob in page:
                stored = self.channel_objects.value(at, blob)
                yield stored, [self._connection(row) for row in connections.get(channel_id, ())]

    def channel(self, channel_id: str) -> tuple[Any, list[Connection]]:
        """One channel, as it was stored, and its connections. One statement.

        :raises ItemNotFound: when there is none of that id
        """
        validate_key("a channel id", channel_id)
        with repository_errors("the channel can't be loaded"):
            rows = self._database.run(sql.ONE_CHANNEL, channel=channel_id)
        found = [row for row in rows if row[1] is None]
        if not found:
            raise ItemNotFound(channel_id)
        _, _, at, blob, *_ = found[0]
        return self.channel_objects.value(at, blob), [self._connection(row) for row in rows if row[1] is not None]

    def persist_channel(
        self, channel_id: str, stored: object, channel: AbstractChannel, connections: Sequence[Parts]
    ) -> None:
        """Store a channel with its connections, and delete those that the object has no more.

        They are those with which it was loaded or persisted; what another process has added stays. A listener has one
        connection in a channel: another one that it had there is deleted. A connection without id is the one stored for
        the same listener and queue, or a new one.

        :param stored: what the channel is stored as
        """
        rows = [self._row(parts.id, parts, channel_id) for parts in connections]
        objects = self._objects(rows, connections)
        entry = self.channel_objects.entry(channel_id, stored)
        row = {"channel": channel_id, "at": entry["at"], "kind": class_path(type(channel))}
        registry = contract.connection_registry(channel)
        with repository_errors("the channel can't be persisted"), self._database.transaction():
            others = self._identify(rows, channel_id)
            self._database.run_many(sql.UPSERT_ENTRIES, [entry, *objects])
            self._database.run(sql.UPSERT_CHANNEL, **row)
            self._database.run_many(sql.UPSERT_CONNECTIONS, sorted(rows, key=itemgetter("connection")))
            ids = {row["connection"] for row in rows}
            gone = sorted({*_known.get(registry, ()), *others} - ids)
            if gone:
                self._run_all(sql.DELETE_CONNECTIONS, connections=self._database.dialect.list_value(gone))
        _known[registry] = ids

    def delete_channel(self, channel_id: str) -> None:
        """Delete a channel, its connections, their messages, and the listeners and queues that no other channel has."""
        validate_key("a channel id", channel_id)
        with repository_errors("the channel can't be deleted"), self._database.transaction():
            self._run_all(sql.DELETE_CHANNEL, channel=channel_id)

    # Rows

    def _connection(self, row: Row) -> Connection:
        _, connection_id, listener_at, listener, queue_at, queue, listener_id, queue_id = row
        return contract.make_connection(
            self.listeners.object_at(listener_at, listener_id, listener),
            self.queues.object_at(queue_at, queue_id, queue),
            connection_id,
        )

    def _row(self, connection_id: str | None, parts: Parts, channel_id: str | None) -> dict[str, Any]:
        """What ``UPSERT_CONNECTIONS`` binds. A queue that has no id is known by its connection's."""
        listener_id: str = parts.listener.id
        queue_id: Any = getattr(parts.queue, "id", connection_id)
        listener_key, queue_key = self._object_keys(connection_id, listener_id, queue_id)
        return {
            "connection": connection_id,
            "channel": channel_id,
            "listener": validate_key("a listener id", listener_id),
            "listener_at": self.listeners.entry_key(listener_key),
            "queue": validate_key("a queue id", queue_id),
            "queue_at": self.queues.entry_key(queue_key),
        }

    def _object_keys(self, connection_id: Any, listener_id: str, queue_id: str) -> tuple[str, str]:
        """The keys of a connection's listener and queue."""
        return listener_id, queue_id

    def _objects(self, rows: Sequence[Mapping[str, Any]], connections: Sequence[Parts]) -> list[dict[str, Any]]:
        """The entries of all listeners and queues, ordered by key: two writers never lock them crosswise."""
        entries: dict[str, dict[str, Any]] = {}
        for row, parts in zip(rows, connections, strict=True):
            for storage, at, object_id, value in (
                (self.listeners, row["listener_at"], row["listener"], parts.listener),
                (self.queues, row["queue_at"], row["queue"], parts.queue),
            ):
                entries[at] = storage.object_entry_at(at, object_id, value)
        return [entries[at] for at in sorted(entries)]

    def _identify(self, rows: list[dict[str, Any]], channel_id: str) -> list[str]:
        """Give an id to each row that has none. Returns the ids of all that their listeners have in the channel."""
        if not rows:
            return []
        listeners, keys = (
            self._database.dialect.list_value([row[name] for row in rows]) for name in ("listener", "listener_at")
        )
        stored = self._database.run(sql.OF_LISTENERS, listeners=listeners, keys=keys, channel=channel_id)
        known = {(listener, queue): connection for listener, queue, connection, _ in stored}
        for row in rows:
            if row["connection"] is None:
                row["connection"] = known.get((row["listener"], row["queue"]), new_id())
        return [connection for _, _, connection, channel in stored if channel is not None]

    def _run_all(self, statements: Iterable[Statement], **parameters: Any) -> None:
        for statement in statements:
            self._database.run(statement, **parameters)


def _of_listeners(database: Database) -> BlobTemplate[MessageQueueListener]:
    def state(listener: MessageQueueListener) -> object:
        return {**vars(listener), "id": None}

    return BlobTemplate(contract.make_listener, lambda made: database.codec.encode(made, ""), state)


def _of_queues(database: Database, queue_class: type[SqlQueue]) -> BlobTemplate[SqlQueue]:
    def encode(queue: SqlQueue) -> bytes:
        return database.codec.encode(queue, "", database)

    return BlobTemplate(partial(queue_class, database), encode, lambda queue: queue.database)


class RelationsByConnection(Relations):
    """The same, where listeners and queues stand under the id of their connection, as eric-sse 2.1 asks for them.

    A connection may be persisted before its channel: until then the channel's row has no type, and is not loaded.
    """

    listeners_namespace, queues_namespace = CONNECTION_LISTENERS, CONNECTION_QUEUES

    def persist_object(self, storage: ObjectStorage, set_own_id: Statement, connection_id: str, value: Any) -> None:
        """Store the listener or the queue of a connection, whether it is there or not."""
        entry = storage.entry(connection_id, value)
        own_id = validate_key("an id", getattr(value, "id", connection_id))
        with repository_errors("the object can't be persisted"), self._database.transaction():
            self._database.run(UPSERT, **entry)
            self._database.run(set_own_id, at=entry["at"], own_id=own_id)

    def connection_in(self, channel_id: str, connection_id: str) -> Connection:
        """One connection of a channel.

        :raises ItemNotFound: when the channel has none of that id
        """
        row = self._connection_row(connection_id)
        if row[0] != channel_id:
            raise ItemNotFound(connection_id)
        return self._connection(row)

    def delete_connection_in(self, channel_id: str, connection_id: str) -> None:
        """Delete a connection of a channel with all that is its own."""
        validate_key("a connection id", connection_id)
        validate_key("a channel id", channel_id)
        with repository_errors("the connection can't be deleted"), self._database.transaction():
            self._run_all(sql.DELETE_CONNECTION_OF_CHANNEL, connection=connection_id, channel=channel_id)

    def delete_queue(self, connection_id: str) -> None:
        """Delete the queue of a connection with its messages, and the connection."""
        at = self.queues.entry_key(connection_id)
        with repository_errors("the queue can't be deleted"), self._database.transaction():
            self._run_all(sql.DELETE_OF_QUEUE_OBJECT, at=at)
            self.queues.delete(connection_id)

    def _hold_channel(self, channel_id: str) -> None:
        entry = self.channel_objects.entry(channel_id, None)
        self._database.run(sql.PLACE_ENTRY, **entry)
        self._database.run(sql.PLACE_CHANNEL, channel=channel_id, at=entry["at"], kind="")

    def _object_keys(self, connection_id: Any, listener_id: str, queue_id: str) -> tuple[str, str]:
        return connection_id, connection_id


# Ids of the connections that a channel object was loaded or persisted with, by what it keeps its connections in.
_known: WeakKeyDictionary[Any, set[str]] = WeakKeyDictionary()

Channel = TypeVar("Channel", bound=AbstractChannel)


def assembled(channel: Channel, connections: Iterable[Connection]) -> Channel:
    """A channel that was loaded, with its connections registered."""
    ids = set()
    for connection in connections:
        contract.register(channel, connection)
        ids.add(contract.identify(connection))
    _known[contract.connection_registry(channel)] = ids
    return channel


def parts_of(connection: Connection) -> Parts:
    """What a connection is stored as."""
    return Parts(contract.identify(connection), connection.listener, connection.queue)
