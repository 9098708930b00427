"""Channels and connections in their tables: a constant number of statements, however many connections there are."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from operator import itemgetter
from typing import Any, NamedTuple

from eric_sse import generate_uuid
from eric_sse.connection import Connection
from eric_sse.entities import AbstractChannel
from eric_sse.listener import MessageQueueListener
from eric_sse.queues import Queue

from eric_sse_sql import contract
from eric_sse_sql import relation_statements as sql
from eric_sse_sql.codec import class_path
from eric_sse_sql.contract import ItemNotFound, ObjectAsKeyValuePersistenceMixin
from eric_sse_sql.database import Database, Row
from eric_sse_sql.errors import repository_errors
from eric_sse_sql.models import checked
from eric_sse_sql.statements import Statement
from eric_sse_sql.storage import UPSERT, SqlStorageEngine, keyset_pages

CHANNELS_A_PAGE = 100


class ObjectStorage(SqlStorageEngine):
    """The entries that channels and connections refer to, apart from the namespaces of applications."""

    def __init__(self, database: Database, kind: str) -> None:
        self._set_up(database, f"sse:{kind}")

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

    :param database: where they are
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self.listeners = ObjectStorage(database, "listeners")
        self.queues = ObjectStorage(database, "queues")
        self._channels = ObjectStorage(database, "channels")

    # Connections

    def connections(self, channel_id: str) -> Iterator[Connection]:
        """The connections of a channel, by id. One statement, run at once; objects are built as they are asked for."""
        checked("a channel id", channel_id)
        with repository_errors("the connections can't be loaded"):
            rows = self._database.run(sql.OF_CHANNEL, channel=channel_id)
        return map(self._connection, rows)

    def connection(self, connection_id: str) -> Connection:
        """One connection.

        :raises ItemNotFound: when there is none of that id
        """
        return self._connection(self._one(sql.ONE_CONNECTION, connection=connection_id))

    def persist_connection(self, connection_id: str, parts: Parts, channel_id: str | None) -> None:
        """Store a connection, its listener and its queue.

        :param channel_id: its channel; None leaves it where it is
        :raises ItemNotFound: when there is no such channel
        """
        row = self._row(checked("a connection id", connection_id), parts, channel_id)
        objects = self._objects([row], [parts])
        with repository_errors("the connection can't be persisted"), self._database.transaction():
            if channel_id is not None:
                checked("a channel id", channel_id)
                if not self._database.run(sql.LOCK_CHANNEL, channel=channel_id):
                    raise ItemNotFound(channel_id)
            self._database.run_many(UPSERT, objects)
            self._database.run_many(sql.UPSERT_CONNECTION, [row])

    def delete_connection(self, connection_id: str) -> None:
        """Delete a connection with its messages, and with its listener and queue unless another connection has them."""
        checked("a connection id", connection_id)
        with repository_errors("the connection can't be deleted"), self._database.transaction():
            self._run_all(sql.DELETE_CONNECTION, connection=connection_id)

    def delete_queue(self, queue_id: str) -> None:
        """Delete a queue with its messages, and the connections that need it."""
        with repository_errors("the queue can't be deleted"), self._database.transaction():
            self.queues.delete(queue_id)
            self._database.run(sql.DELETE_MESSAGES, queue=queue_id)

    # Channels

    def channels(self) -> Iterator[tuple[AbstractChannel, list[Connection]]]:
        """All channels with their connections, by id: two statements a page."""
        pages = keyset_pages(
            self._database, sql.FIRST_CHANNELS, sql.NEXT_CHANNELS, "", CHANNELS_A_PAGE, CHANNELS_A_PAGE
        )
        for page in pages:
            with repository_errors("the connections can't be loaded"):
                rows = self._database.run(sql.OF_CHANNELS, first=page[0][0], last=page[-1][0])
            connections = {channel_id: list(group) for channel_id, group in groupby(rows, itemgetter(0))}
            for channel_id, at, blob in page:
                channel = self._channels.value(at, blob)
                yield channel, [self._connection(row) for row in connections.get(channel_id, ())]

    def channel(self, channel_id: str) -> tuple[AbstractChannel, list[Connection]]:
        """One channel and its connections.

        :raises ItemNotFound: when there is none of that id
        """
        _, at, blob = self._one(sql.ONE_CHANNEL, channel=channel_id)
        return self._channels.value(at, blob), list(self.connections(channel_id))

    def persist_channel(
        self, channel_id: str, channel: AbstractChannel, connections: Sequence[Parts], removed: Iterable[str]
    ) -> set[str]:
        """Store a channel with its connections, and delete those that it has no more.

        A listener has one connection in a channel: another one that it had there is deleted. A connection without id
        is the one stored for the same listener and queue, or a new one.

        :param removed: ids of connections that the channel has no more
        :returns: the ids of those that it has
        """
        rows = [self._row(None, parts, channel_id) for parts in connections]
        objects = self._objects(rows, connections)
        entry = self._channels.entry(channel_id, _bare(channel))
        row = {"channel": channel_id, "at": entry["at"], "kind": class_path(type(channel))}
        with repository_errors("the channel can't be persisted"), self._database.transaction():
            others = self._identify(rows, channel_id)
            self._database.run_many(UPSERT, [entry, *objects])
            self._database.run_many(sql.UPSERT_CHANNEL, [row])
            self._database.run_many(sql.UPSERT_CONNECTION, sorted(rows, key=itemgetter("connection")))
            ids = {row["connection"] for row in rows}
            gone = sorted({*removed, *others} - ids)
            if gone:
                self._run_all(sql.DELETE_CONNECTIONS, connections=self._database.dialect.list_value(gone))
        return ids

    def delete_channel(self, channel_id: str) -> None:
        """Delete a channel, its connections, their messages, and the listeners and queues that no other channel has."""
        checked("a channel id", channel_id)
        with repository_errors("the channel can't be deleted"), self._database.transaction():
            self._run_all(sql.DELETE_CHANNEL, channel=channel_id)

    # Rows

    def _one(self, statement: Statement, **by_id: str) -> Row:
        ((what, identifier),) = by_id.items()
        checked(f"a {what} id", identifier)
        with repository_errors(f"the {what} can't be loaded"):
            rows = self._database.run(statement, **by_id)
        if not rows:
            raise ItemNotFound(identifier)
        return rows[0]

    def _connection(self, row: Row) -> Connection:
        _, connection_id, listener_at, listener, queue_at, queue = row
        return contract.make_connection(
            self.listeners.value(listener_at, listener), self.queues.value(queue_at, queue), connection_id
        )

    def _row(self, connection_id: str | None, parts: Parts, channel_id: str | None) -> dict[str, Any]:
        """What ``UPSERT_CONNECTION`` binds. A queue that has no id is known by its connection's."""
        connection_id = parts.id if connection_id is None else connection_id
        listener_id: str = parts.listener.id
        queue_id: Any = getattr(parts.queue, "id", connection_id)
        return {
            "connection": connection_id,
            "channel": channel_id,
            "listener": listener_id,
            "listener_at": self.listeners.entry_key(listener_id),
            "queue": queue_id,
            "queue_at": self.queues.entry_key(queue_id),
        }

    def _objects(self, rows: Sequence[Mapping[str, Any]], connections: Sequence[Parts]) -> list[dict[str, Any]]:
        """The entries of all listeners and queues, ordered by key: two writers never lock them crosswise."""
        entries: dict[str, dict[str, Any]] = {}
        for row, parts in zip(rows, connections, strict=True):
            entries[row["listener_at"]] = self.listeners.entry(row["listener"], parts.listener)
            entries[row["queue_at"]] = self.queues.entry(row["queue"], parts.queue)
        return [entries[at] for at in sorted(entries)]

    def _identify(self, rows: list[dict[str, Any]], channel_id: str) -> list[str]:
        """Give an id to each row that has none. Returns the ids of all that their listeners have in the channel."""
        listeners = self._database.dialect.list_value([row["listener_at"] for row in rows])
        stored = self._database.run(sql.OF_LISTENERS, listeners=listeners, channel=channel_id) if rows else ()
        known = {(listener, queue): connection for listener, queue, connection, _ in stored}
        for row in rows:
            if row["connection"] is None:
                row["connection"] = known.get((row["listener"], row["queue"]), generate_uuid())
        return [connection for _, _, connection, channel in stored if channel is not None]

    def _run_all(self, statements: Iterable[Statement], **parameters: Any) -> None:
        for statement in statements:
            self._database.run(statement, **parameters)


def _bare(channel: AbstractChannel) -> AbstractChannel:
    """A channel as it is stored. The mixin leaves the connections out by itself."""
    if isinstance(channel, ObjectAsKeyValuePersistenceMixin):
        return channel
    return contract.without_connections(channel)
