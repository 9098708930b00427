"""``ChannelStore``: the data mapper between channels and connections and their tables.

The number of statements of a call does not grow with the connections of a channel.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import groupby
from operator import attrgetter, itemgetter
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from eric_sse.connection import Connection
from eric_sse.entities import AbstractChannel
from eric_sse.exception import RepositoryError
from eric_sse.listener import MessageQueueListener
from eric_sse.queues import Queue

from eric_sse_sql import contract
from eric_sse_sql.arguments import validate_connection
from eric_sse_sql.codec import class_path
from eric_sse_sql.contract import ItemNotFound
from eric_sse_sql.database import Database
from eric_sse_sql.errors import repository_errors
from eric_sse_sql.execution.statement import Statement
from eric_sse_sql.identity_map import Blobs, HeldConnection, IdentityMap
from eric_sse_sql.keys import (
    CHANNELS,
    CONNECTION_LISTENERS,
    CONNECTION_QUEUES,
    LISTENERS,
    QUEUES,
    new_id,
    validate_key,
)
from eric_sse_sql.queues import BlockingSqlQueue, SqlQueue, is_pushed_by_statement
from eric_sse_sql.repositories.objects import ChannelStorage, ObjectStorage, listener_template, queue_template
from eric_sse_sql.sql import connections as sql
from eric_sse_sql.sql import entries, events
from eric_sse_sql.sql.connections import Deletion, KnownConnection, LogPlace, StoredChannel, StoredConnection
from eric_sse_sql.storage import keyset_pages

if TYPE_CHECKING:  # eric-sse 2.0 has no such channels
    from eric_sse_sql.channels import SqlChannel

CHANNELS_A_PAGE = 100
_HAS_LOG = (
    "the channel has a log, and replay_seconds=0 would leave its events undelivered; load the channel again, where "
    "another process has given it the log, write a small number of seconds, or delete the channel first"
)
_OTHER_KIND = (
    "replay_seconds of a channel object can't change from or to 0; make the channel again, with the other number and "
    "the same id"
)


class ConnectionRecord(NamedTuple):
    """The parts of a connection."""

    id: str | None  # None where eric-sse 2.0 keeps no id
    listener: MessageQueueListener
    queue: Queue


class _Changed(NamedTuple):
    """A connection that is not stored as it is: its row, and the entries of its listener and its queue."""

    held: HeldConnection
    row: dict[str, Any]
    objects: tuple[dict[str, Any], dict[str, Any]]
    was_stored: bool  # before: another thread may store it meanwhile

    def is_deleted(self, stored_ids: set[str]) -> bool:
        """Whether it was stored, and another process has deleted it."""
        return self.was_stored and self.held.connection.id not in stored_ids


class ChannelStore:
    """Channels, their connections, and the objects and messages of both. Each call is atomic.

    Listeners and queues are stored under their own ids.

    :param database: where they are
    """

    listeners_namespace, queues_namespace = LISTENERS, QUEUES

    def __init__(self, database: Database) -> None:
        self._database = database
        self._executor = database.executor
        queue_templates = [queue_template(database, each) for each in (SqlQueue, BlockingSqlQueue)]
        listener_templates = [listener_template(database, is_started=is_started) for is_started in (False, True)]
        self.listeners = ObjectStorage(database, self.listeners_namespace, listener_templates)
        self.queues = ObjectStorage(database, self.queues_namespace, queue_templates)
        self.channel_objects = ChannelStorage(database, CHANNELS)

    # Connections

    def connections(self, channel_id: str) -> Iterator[Connection]:
        """The connections of a channel, by id. One statement, run at once; objects are built as they are asked for."""
        return map(self._connection, self._rows_of_channel(validate_key("a channel id", channel_id)))

    def connection(self, connection_id: str) -> Connection:
        """One connection.

        :raises ItemNotFound: when there is none of that id
        """
        return self._connection(self._connection_row(connection_id))

    @property
    def database(self) -> Database:
        """Where the channels are."""
        return self._database

    def find_connection(self, channel_id: str, listener_id: str) -> HeldConnection | None:
        """The connection of a listener in a channel; None where none is stored. One statement."""
        validate_key("a listener id", listener_id)
        with repository_errors("the connection can't be loaded"):
            rows = self._executor.run(sql.OF_LISTENER, channel_id=channel_id, listener_id=listener_id)
        if not rows:
            return None
        size = len(StoredConnection._fields)
        held = self._held(StoredConnection._make(rows[0][:size]))
        held.place = LogPlace._make(rows[0][size:])
        return held

    def held_connections(self, channel_id: str) -> Iterator[HeldConnection]:
        """All connections of a channel, by id. One statement, a join."""
        return map(self._held, self._rows_of_channel(channel_id))

    def missing_ids(self, connection_ids: Collection[str]) -> set[str]:
        """Those of some ids that no connection is stored under. One statement."""
        with repository_errors("the connections can't be looked up"):
            list_value = self._executor.dialect.list_value(list(connection_ids))
            return {missing for (missing,) in self._executor.run(sql.MISSING, connection_ids=list_value)}

    def _rows_of_channel(self, channel_id: str) -> Iterator[StoredConnection]:
        """The rows of a channel's connections. The statement is run at once."""
        with repository_errors("the connections can't be loaded"):
            rows = self._executor.run(sql.OF_CHANNEL, channel_id=channel_id)
        return map(StoredConnection._make, rows)

    def _held(self, row: StoredConnection) -> HeldConnection:
        return HeldConnection(self._connection(row), (row.listener, row.queue))

    def _connection_row(self, connection_id: str) -> StoredConnection:
        """The row of one connection.

        :raises ItemNotFound: when there is none of that id
        """
        validate_key("a connection id", connection_id)
        with repository_errors("the connection can't be loaded"):
            rows = self._executor.run(sql.ONE_CONNECTION, connection_id=connection_id)
        if not rows:
            raise ItemNotFound(connection_id)
        return StoredConnection._make(rows[0])

    def persist_connection(self, record: ConnectionRecord, channel_id: str | None) -> None:
        """Store a connection, its listener and its queue.

        :param channel_id: its channel; None leaves it where it is
        :raises ItemNotFound: when there is no such channel
        """
        connection_id: Any = record.id
        validate_key("a connection id", connection_id)
        row = self._row(connection_id, record, channel_id)
        objects = self._objects([row], [record])
        channel = None if channel_id is None else self._channel_row(validate_key("a channel id", channel_id), "")

        def persist() -> None:
            is_missing = channel is not None and self._share_channel(channel)
            self._executor.run_many(entries.UPSERT_MANY, objects)
            if channel is not None and is_missing:
                self._executor.run(sql.INSERT_MISSING_CHANNEL, **channel)
            self._executor.run_many(sql.UPSERT_CONNECTIONS, [row])
            self._start([connection_id])

        self._write("the connection can't be persisted", persist)

    def _start(self, connection_ids: Sequence[str]) -> None:
        """Let connections that are new begin after the last event of their channel's log."""
        self._executor.run(events.START, connection_ids=self._executor.dialect.list_value(connection_ids))

    def _share_channel(self, channel: Mapping[str, Any]) -> bool:
        """Keep a channel from being deleted until the end of the transaction. Whether its row is missing still.

        :raises ItemNotFound: when there is none of that id
        """
        if not self._executor.run(sql.SHARE_ENTRY, entry_key=channel["entry_key"]):
            raise ItemNotFound(channel["channel_id"])
        return False

    def delete_connection(self, connection_id: str) -> None:
        """Delete a connection with its messages, and with its listener and queue unless another connection has them."""
        validate_key("a connection id", connection_id)
        self._delete("the connection can't be deleted", sql.DELETE_CONNECTION, connection_id=connection_id)

    def delete_queue(self, queue_id: str) -> None:
        """Delete a queue with its messages, and the connections that need it."""

        def delete() -> None:
            self.queues.delete(queue_id)
            self._executor.run_all(sql.DELETE_OF_QUEUE, queue_id=queue_id)

        self._write("the queue can't be deleted", delete)

    # Channels

    def channels(self) -> Iterator[tuple[Any, list[Connection]]]:
        """All channels, as they were stored, with their connections, by id: two statements a page."""
        pages = keyset_pages(
            self._database, sql.FIRST_CHANNELS, sql.NEXT_CHANNELS, "", CHANNELS_A_PAGE, CHANNELS_A_PAGE
        )
        for page in pages:
            channels = list(map(StoredChannel._make, page))
            with repository_errors("the connections can't be loaded"):
                rows = self._executor.run(sql.OF_CHANNELS, first=channels[0].id, last=channels[-1].id)
            of_page = groupby(map(StoredConnection._make, rows), attrgetter("channel_id"))
            connections = {channel_id: list(group) for channel_id, group in of_page}
            for channel in channels:
                stored = self.channel_objects.value(channel.entry_key, channel.value)
                yield stored, [self._connection(row) for row in connections.get(channel.id, ())]

    def channel(self, channel_id: str) -> tuple[Any, list[Connection]]:
        """One channel, as it was stored, and its connections. One statement.

        :raises ItemNotFound: when there is none of that id
        """
        validate_key("a channel id", channel_id)
        with repository_errors("the channel can't be loaded"):
            rows = list(map(StoredConnection._make, self._executor.run(sql.ONE_CHANNEL, channel_id=channel_id)))
        channel = next((row for row in rows if row.id is None), None)  # its entry is in the place of the listener's
        if channel is None:
            raise ItemNotFound(channel_id)
        stored = self.channel_objects.value(channel.listener_key, channel.listener)
        return stored, [self._connection(row) for row in rows if row is not channel]

    def channel_alone(self, channel_id: str) -> Any:
        """The object that is stored for a channel. One statement.

        :raises ItemNotFound: when there is none of that id
        """
        validate_key("a channel id", channel_id)
        with repository_errors("the channel can't be loaded"):
            rows = self._executor.run(sql.CHANNEL_ALONE, channel_id=channel_id)
        if not rows:
            raise ItemNotFound(channel_id)
        channel = StoredChannel._make(rows[0])
        return self.channel_objects.value(channel.entry_key, channel.value)

    def channels_alone(self) -> Iterator[Any]:
        """The objects that are stored for all channels, by id: a statement a page."""
        pages = keyset_pages(
            self._database, sql.FIRST_CHANNELS, sql.NEXT_CHANNELS, "", CHANNELS_A_PAGE, CHANNELS_A_PAGE
        )
        for page in pages:
            for channel in map(StoredChannel._make, page):
                yield self.channel_objects.value(channel.entry_key, channel.value)

    def persist_live_channel(self, channel_id: str, stored: object, channel: SqlChannel) -> None:
        """Store a channel, what has changed of the connections that it holds, and delete those removed from it.

        A connection that another process has deleted stays deleted.

        :param stored: the object that is stored for the channel
        """
        held, removed, replay_seconds = channel.identity_map, channel.identity_map.removed(), channel.replay_seconds
        if held.has_log != bool(replay_seconds):
            raise RepositoryError(_OTHER_KIND) from ValueError("replay_seconds")
        changed = self._changed(channel_id, held)
        row = self._channel_row(channel_id, class_path(type(channel)))
        entry = self.channel_objects.entry(row["entry_key"], stored)

        def persist() -> None:
            self._write_entry(entry)
            others = self._identify([each.row for each in changed], channel_id)
            stored_ids = set(others)
            deleted = [each.held for each in changed if each.is_deleted(stored_ids)]
            written = [each for each in changed if not each.is_deleted(stored_ids)]
            rows = [each.row for each in written]
            objects = {entry["key"]: entry for each in written for entry in each.objects}
            held.note_written(self, [each.held for each in written])
            # Among the written ones are those that another thread has removed since they were collected above. One that
            # it removes from now on is among those that its next persist deletes.
            unwanted = (each.held.connection.id for each in written if each.held.is_removed)
            gone = sorted({*removed.values(), *others, *unwanted} - {each.connection.id for each in held.held()})
            has_log = self._write_channel(row, [objects[key] for key in sorted(objects)], rows, gone)
            if has_log and not replay_seconds:
                raise RepositoryError(_HAS_LOG) from ValueError("replay_seconds")
            if replay_seconds:
                self._executor.run(
                    events.OPEN_LOG if held.replay_seconds == replay_seconds else events.SET_REPLAY,
                    channel_id=channel_id,
                    epoch=secrets.token_hex(8),
                    last_position=0,
                    first_position=1,
                    replay_seconds=replay_seconds,
                )
                if rows:
                    self._start([row["connection_id"] for row in rows])
            self._executor.transactions.after_commit(
                lambda: held.note_stored(
                    self,
                    [(each.held, _blobs(each.objects)) for each in written],
                    removed=removed,
                    deleted=deleted,
                    replay_seconds=replay_seconds,
                )
            )

        self._write("the channel can't be persisted", persist)

    def _changed(self, channel_id: str, held: IdentityMap) -> list[_Changed]:
        """The connections that a channel object holds and that are not stored as they are."""
        changed = []
        for each in held.held():
            if each.is_known_unchanged:
                continue
            record, blobs = record_of(each.connection), each.blobs
            row = self._row(record.id, record, channel_id)
            if each.cursor is not None and blobs is None:
                row["start_position"] = each.cursor.start
            objects = self._object_pair(row, record)
            if blobs != _blobs(objects):
                changed.append(_Changed(each, row, objects, was_stored=blobs is not None))
        return changed

    def persist_channel(
        self, channel_id: str, stored: object, channel: AbstractChannel, connections: Sequence[ConnectionRecord]
    ) -> None:
        """Store a channel with its connections, and delete those that the object does not have any more.

        Deleted are connections with which the object was loaded or persisted; those that another process has added
        stay. A listener has one connection in a channel: another one that it had there is deleted. A connection without
        id is the one stored for the same listener and queue, or a new one.

        :param stored: the object that is stored for the channel
        """
        rows = [self._row(record.id, record, channel_id) for record in connections]
        objects = self._objects(rows, connections)
        row = self._channel_row(channel_id, class_path(type(channel)))
        entry = self.channel_objects.entry(row["entry_key"], stored)
        known = contract.stored_ids(channel)

        def persist() -> None:
            self._write_entry(entry)
            others = self._identify(rows, channel_id)
            ids = {row["connection_id"] for row in rows}
            self._write_channel(row, objects, rows, sorted({*known, *others} - ids))
            # After a rollback, the removed connections are stored still, and are to be deleted by the next persist.
            contract.set_stored_ids(channel, known | ids)
            self._executor.transactions.after_commit(lambda: contract.set_stored_ids(channel, ids))

        self._write("the channel can't be persisted", persist)

    def _write_entry(self, entry: Mapping[str, Any]) -> None:
        """Store the entry of a channel before its connections are looked up: until the end of the transaction, no other
        one persists the channel or deletes one of its connections."""
        self._executor.run_many(entries.UPSERT_MANY, [entry])

    def _write_channel(
        self,
        channel: Mapping[str, Any],
        objects: Sequence[Mapping[str, Any]],
        connections: Sequence[Mapping[str, Any]],
        gone: Sequence[str],
    ) -> bool:
        """Store a channel, whose entry is written, with some connections, and delete others. Whether it has a log.

        :param channel: the parameters of ``UPSERT_CHANNEL``
        :param objects: the entries of the objects of its connections, ordered by key
        :param connections: the parameters of ``UPSERT_CONNECTIONS``
        :param gone: the ids of the connections to delete
        """
        list_value = self._executor.dialect.list_value
        if gone and self._executor.dialect.locks_rows:
            keys = list_value([entry["key"] for entry in objects])
            self._executor.run(sql.LOCK_ENTRIES, keys=keys, connection_ids=list_value(gone))
        self._executor.run_many(entries.UPSERT_MANY, objects)
        ((has_log,),) = self._executor.run(sql.UPSERT_CHANNEL, **channel)
        self._executor.run_many(sql.UPSERT_CONNECTIONS, sorted(connections, key=itemgetter("connection_id")))
        if gone:
            self._executor.run_all(*sql.DELETE_CONNECTIONS, connection_ids=list_value(gone))
        return bool(has_log)

    def delete_channel(self, channel_id: str) -> None:
        """Delete a channel, its connections, their messages, and the listeners and queues that no other channel has."""
        entry_key = self.channel_objects.entry_key(validate_key("a channel id", channel_id))

        def delete() -> None:
            locks = self._executor.dialect.locks_rows
            is_stored = not locks or self._executor.run(sql.LOCK_ENTRY, entry_key=entry_key)
            if is_stored:  # otherwise, it may be stored meanwhile: that counts as after the deletion
                self._executor.run_all(*sql.DELETE_CONNECTIONS_OF_CHANNEL, channel_id=channel_id)
            self._executor.run_all(sql.DELETE_LOG, channel_id=channel_id)
            if is_stored:
                self._executor.run_all(sql.DELETE_CHANNEL, channel_id=channel_id)

        self._write("the channel can't be deleted", delete)

    # Rows

    def _channel_row(self, channel_id: str, channel_type: str) -> dict[str, Any]:
        """The parameters of ``UPSERT_CHANNEL``. Without a type, the channel is not persisted yet."""
        entry_key = self.channel_objects.entry_key(channel_id)
        return {"channel_id": channel_id, "entry_key": entry_key, "channel_type": channel_type}

    def _connection(self, row: StoredConnection) -> Connection:
        return contract.make_connection(
            self.listeners.load_object(row.listener_key, row.listener_id, row.listener),
            self.queues.load_object(row.queue_key, row.queue_id, row.queue),
            row.id,
        )

    def _row(self, connection_id: str | None, record: ConnectionRecord, channel_id: str | None) -> dict[str, Any]:
        """The parameters of ``UPSERT_CONNECTIONS``. A queue without an id has that of its connection."""
        listener_id: str = record.listener.id
        queue_id: Any = getattr(record.queue, "id", connection_id)
        listener_key, queue_key = self._object_keys(connection_id, listener_id, queue_id)
        return {
            "connection_id": connection_id,
            "channel_id": channel_id,
            "listener_id": validate_key("a listener id", listener_id),
            "listener_key": self.listeners.entry_key(listener_key),
            "queue_id": validate_key("a queue id", queue_id),
            "queue_key": self.queues.entry_key(queue_key),
            "has_own_push": not is_pushed_by_statement(record.queue),
            "start_position": None,
        }

    def _object_keys(self, connection_id: Any, listener_id: str, queue_id: str) -> tuple[str, str]:
        """The keys of a connection's listener and queue."""
        return listener_id, queue_id

    def _objects(
        self, rows: Sequence[Mapping[str, Any]], connections: Sequence[ConnectionRecord]
    ) -> list[dict[str, Any]]:
        """The entries of all listeners and queues, ordered by key, so that two writers lock them in the same order."""
        objects: dict[str, dict[str, Any]] = {}
        for row, record in zip(rows, connections, strict=True):
            objects.update((entry["key"], entry) for entry in self._object_pair(row, record))
        return [objects[key] for key in sorted(objects)]

    def _object_pair(self, row: Mapping[str, Any], record: ConnectionRecord) -> tuple[dict[str, Any], dict[str, Any]]:
        """The entries of the listener and of the queue of a connection."""
        return (
            self.listeners.object_entry(row["listener_key"], row["listener_id"], record.listener),
            self.queues.object_entry(row["queue_key"], row["queue_id"], record.queue),
        )

    def _identify(self, rows: list[dict[str, Any]], channel_id: str) -> list[str]:
        """Give an id to each row that has none.

        :returns: the ids of all connections that the listeners of the rows have in the channel
        """
        if not rows:
            return []
        listener_ids, listener_keys = (
            self._executor.dialect.list_value([row[name] for row in rows]) for name in ("listener_id", "listener_key")
        )
        found = self._executor.run(
            sql.OF_LISTENERS, listener_ids=listener_ids, listener_keys=listener_keys, channel_id=channel_id
        )
        known = list(map(KnownConnection._make, found))
        ids = {(connection.listener_id, connection.queue_id): connection.id for connection in known}
        for row in rows:
            if row["connection_id"] is None:
                row["connection_id"] = ids.get((row["listener_id"], row["queue_id"]), new_id())
        return [connection.id for connection in known if connection.channel_id is not None]

    def _delete(self, action: str, deletion: Deletion, *others: Statement, **parameters: Any) -> None:
        """Delete connections, and run other statements, in a transaction."""

        def delete() -> None:
            self._executor.run_all(*deletion, **parameters)
            self._executor.run_all(others, **parameters)

        self._write(action, delete)

    def _write(self, action: str, work: Callable[[], None]) -> None:
        """Run a function in a transaction.

        :param action: what it does, for the message of an error
        """
        with repository_errors(action):
            self._database.run_in_transaction(work)


class ConnectionKeyedStore(ChannelStore):
    """A store whose listeners and queues are stored under the id of their connection, as eric-sse 2.1 asks for.

    A connection may be persisted before its channel: until then the channel's row has no type, and is not loaded.
    """

    listeners_namespace, queues_namespace = CONNECTION_LISTENERS, CONNECTION_QUEUES

    def persist_object(self, storage: ObjectStorage, set_own_id: Statement, connection_id: str, value: Any) -> None:
        """Store the listener or the queue of a connection, which may be persisted later."""
        entry = storage.entry(storage.entry_key(connection_id), value)
        own_id = validate_key("an id", getattr(value, "id", connection_id))
        run = partial(self._executor.run_all, (entries.UPSERT, set_own_id), **entry, own_id=own_id)
        self._write("the object can't be persisted", run)

    def connection_in(self, channel_id: str, connection_id: str) -> Connection:
        """One connection of a channel.

        :raises ItemNotFound: when the channel has none of that id
        """
        row = self._connection_row(connection_id)
        if row.channel_id != channel_id:
            raise ItemNotFound(connection_id)
        return self._connection(row)

    def delete_connection_in(self, channel_id: str, connection_id: str) -> None:
        """Delete a connection of a channel with its messages, its listener and its queue."""
        validate_key("a connection id", connection_id)
        ids = {"connection_id": connection_id, "channel_id": validate_key("a channel id", channel_id)}
        self._delete("the connection can't be deleted", sql.DELETE_CONNECTION_OF_CHANNEL, **ids)

    def delete_listener(self, connection_id: str) -> None:
        """Delete the listener of a connection and, if that is persisted, the connection with its messages and queue."""
        entry_key = self.listeners.entry_key(connection_id)
        self._delete("the listener can't be deleted", sql.DELETE_CONNECTIONS_OF_LISTENER, entries.DELETE, key=entry_key)

    def delete_queue(self, connection_id: str) -> None:
        """Delete the queue of a connection and, if that is persisted, the connection with its messages and listener."""
        entry_key = self.queues.entry_key(connection_id)
        self._delete("the queue can't be deleted", sql.DELETE_CONNECTIONS_OF_QUEUE, entries.DELETE, key=entry_key)

    def _share_channel(self, channel: Mapping[str, Any]) -> bool:
        is_missing = False
        while not self._executor.run(sql.SHARE_ENTRY, entry_key=channel["entry_key"]):
            is_missing = True  # also where another transaction makes it, and deletes it again
            self._executor.run(entries.INSERT_MISSING, **self.channel_objects.entry(channel["entry_key"], None))
        return is_missing

    def _object_keys(self, connection_id: Any, listener_id: str, queue_id: str) -> tuple[str, str]:
        return connection_id, connection_id


Channel = TypeVar("Channel", bound=AbstractChannel)


def registered(channel: Channel, connections: Iterable[Connection]) -> Channel:
    """A channel that was loaded, with its connections registered."""
    ids = set()
    for connection in connections:
        contract.register(channel, connection)
        ids.add(contract.identify(connection))
    contract.set_stored_ids(channel, ids)
    return channel


def _blobs(objects: tuple[dict[str, Any], dict[str, Any]]) -> Blobs:
    listener, queue = objects
    return listener["value"], queue["value"]


def record_of(connection: Connection) -> ConnectionRecord:
    """The record of a connection.

    :raises RepositoryError: for what is none
    """
    validate_connection(connection)
    return ConnectionRecord(contract.identify(connection), connection.listener, connection.queue)
