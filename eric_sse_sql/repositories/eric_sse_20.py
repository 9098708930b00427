"""The repositories of eric-sse 2.0: listeners, queues, connections and channels by their ids."""

from __future__ import annotations

from collections.abc import Iterator

from eric_sse.connection import Connection
from eric_sse.entities import AbstractChannel
from eric_sse.exception import RepositoryError
from eric_sse.listener import MessageQueueListener
from eric_sse.queues import Queue

from eric_sse_sql import contract
from eric_sse_sql.arguments import kind_of, validate_type
from eric_sse_sql.codec import class_path
from eric_sse_sql.contract import (
    ChannelRepositoryInterface,
    ConnectionRepositoryInterface,
    KvStorageEngine,
    ListenerRepositoryInterface,
    ObjectAsKeyValuePersistenceMixin,
    QueueRepositoryInterface,
)
from eric_sse_sql.keys import validate_key
from eric_sse_sql.repositories.store import ChannelStore, ConnectionRecord, record_of, registered
from eric_sse_sql.storage import SqlStorageEngine


class ListenerRepository(ListenerRepositoryInterface):
    """Listeners by their own id.

    In a :class:`SqlStorageEngine` they are kept apart from its values and are those of the connections in its database;
    in any other engine they are values under their ids.

    :param storage_engine: any ``KvStorageEngine``
    """

    def __init__(self, storage_engine: KvStorageEngine) -> None:
        store = _store(storage_engine)
        self._storage = store.listeners if store else storage_engine

    def load(self, listener_id: str) -> MessageQueueListener:
        """The listener of an id.

        :raises ItemNotFound: when there is none
        """
        listener: MessageQueueListener = self._storage.fetch_one(listener_id)
        return listener

    def persist(self, listener: MessageQueueListener) -> None:
        """Store a listener, in place of the one that had its id."""
        validate_type("a listener", listener, MessageQueueListener)
        self._storage.upsert(listener.id, listener)

    def delete(self, listener_id: str) -> None:
        """Delete a listener and the connections that need it, if it is there."""
        self._storage.delete(listener_id)


class QueueRepository(QueueRepositoryInterface):
    """Queues by their own id. Where they are kept: as with :class:`ListenerRepository`.

    :param storage_engine: any ``KvStorageEngine``
    """

    def __init__(self, storage_engine: KvStorageEngine) -> None:
        self._store = _store(storage_engine)
        self._storage = self._store.queues if self._store else storage_engine

    def load(self, queue_id: str) -> Queue:
        """The queue of an id.

        :raises ItemNotFound: when there is none
        """
        queue: Queue = self._storage.fetch_one(queue_id)
        return queue

    def persist(self, queue: Queue) -> None:
        """Store a queue, in place of the one that had its id.

        :raises RepositoryError: when the queue has no id, or keeps its messages in this process
        """
        validate_type("a queue", queue, Queue)
        queue_id = getattr(queue, "id", None)
        if queue_id is None:
            raise RepositoryError(f"a queue of class {class_path(type(queue))} has no id; use eric_sse_sql.SqlQueue")
        self._storage.upsert(queue_id, queue)

    def delete(self, queue_id: str) -> None:
        """Delete a queue, its messages and the connections that need it, if it is there."""
        if self._store:
            self._store.delete_queue(queue_id)
        else:
            self._storage.delete(queue_id)


class ConnectionRepository(ConnectionRepositoryInterface):
    """Connections by their own id and by their channel. Each call is atomic. They come back as plain ``Connection``.

    :param storage_engine: a :class:`SqlStorageEngine`; the connections are those of its database
    :raises RepositoryError: when it is another engine
    """

    def __init__(self, storage_engine: SqlStorageEngine) -> None:
        self._store = _needed_store(self, storage_engine)

    def load_all(self, channel_id: str) -> Iterator[Connection]:
        """The connections of a channel, ordered by id: one statement, a join, however many there are."""
        return self._store.connections(channel_id)

    def load_one(self, connection_id: str) -> Connection:
        """The connection of an id.

        :raises ItemNotFound: when there is none
        """
        return self._store.connection(connection_id)

    def persist(self, connection: Connection, channel_id: str | None = None) -> None:
        """Store a connection, its listener and its queue.

        :param channel_id: the channel that it belongs to. Without one, a known connection keeps its channel, and a new
            one belongs to none yet
        :raises ItemNotFound: when the channel is not persisted
        :raises RepositoryError: when the listener or the queue can't be stored; nothing is then
        """
        self._store.persist_connection(record_of(connection), channel_id)

    def delete(self, connection_id: str) -> None:
        """Delete a connection, if it is there: with its messages, its listener and its queue.

        A listener or queue that another connection has too stays.
        """
        self._store.delete_connection(connection_id)


class ChannelRepository(ChannelRepositoryInterface):
    """Channels with their connections. Each call is atomic, and a constant number of statements.

    :param storage_engine: a :class:`SqlStorageEngine`; the channels are those of its database
    :raises RepositoryError: when it is another engine
    """

    def __init__(self, storage_engine: SqlStorageEngine) -> None:
        self._store = _needed_store(self, storage_engine)
        #: Where the channels are.
        self.database = storage_engine.database
        self.connection_repository = ConnectionRepository(storage_engine)

    def load_all(self) -> Iterator[AbstractChannel]:
        """All channels, their connections registered, ordered by id: two statements for each hundred."""
        for channel, connections in self._store.channels():
            yield registered(_loaded(channel), connections)

    def load_one(self, channel_id: str) -> AbstractChannel:
        """The channel of an id, its connections registered.

        :raises ItemNotFound: when there is none
        """
        channel, connections = self._store.channel(channel_id)
        return registered(_loaded(channel), connections)

    def persist(self, channel: AbstractChannel) -> None:
        """Store a channel and the connections registered with it.

        A connection that this channel object was loaded or persisted with, and has no more, is deleted with its
        messages. One that it never knew stays: another process may have added it.

        :raises RepositoryError: when the channel, a listener or a queue can't be stored; nothing is then
        """
        self._persist(None, channel)

    def delete(self, channel_id: str) -> None:
        """Delete a channel, if it is there: with its connections, their messages, listeners and queues.

        A listener or queue that a connection of another channel has too stays.
        """
        self._store.delete_channel(channel_id)

    def _persist(self, channel_id: str | None, channel: AbstractChannel) -> None:
        validate_type("a channel", channel, AbstractChannel)
        channel_id = validate_key("a channel id", channel.id if channel_id is None else channel_id)
        connections = [ConnectionRecord(*parts) for parts in contract.registered_connections(channel)]
        self._store.persist_channel(channel_id, _bare(channel), channel, connections)


def _bare(channel: AbstractChannel) -> AbstractChannel:
    """A channel as it is stored. The mixin leaves the connections out by itself."""
    if isinstance(channel, ObjectAsKeyValuePersistenceMixin):
        return channel
    return contract.without_connections(channel)


def _loaded(stored: object) -> AbstractChannel:
    if not isinstance(stored, AbstractChannel):
        raise RepositoryError("the channel was stored by SqlSSEChannelRepository, or one like it; load it with that")
    return stored


def _store(storage_engine: KvStorageEngine) -> ChannelStore | None:
    """The store of a storage engine's database; None for an engine without one.

    :raises RepositoryError: for what is no storage engine
    """
    if isinstance(storage_engine, type) or not hasattr(storage_engine, "upsert"):
        raise RepositoryError(
            f"a repository needs a storage engine, not {kind_of(storage_engine)}; write SqlStorageEngine(database)"
        ) from TypeError(kind_of(storage_engine))
    return ChannelStore(storage_engine.database) if isinstance(storage_engine, SqlStorageEngine) else None


def _needed_store(repository: object, storage_engine: object) -> ChannelStore:
    if not isinstance(storage_engine, SqlStorageEngine):
        name = type(repository).__name__
        raise RepositoryError(
            f"{name} needs a SqlStorageEngine, whose database has the tables of channels and connections, not "
            f"{kind_of(storage_engine)}; write {name}(SqlStorageEngine(database))"
        ) from TypeError(kind_of(storage_engine))
    return ChannelStore(storage_engine.database)
