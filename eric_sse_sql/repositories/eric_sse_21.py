"""The repositories of eric-sse 2.1, on a SQL database."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from typing import Any, Generic

from eric_sse.connection import Connection, ConnectionsFactory
from eric_sse.entities import AbstractChannel
from eric_sse.exception import InvalidConnectionException, InvalidListenerException, RepositoryError
from eric_sse.interfaces import (
    ConnectionRepositoryInterface,
    ListenerRepositoryInterface,
    QueueRepositoryInterface,
)
from eric_sse.listener import MessageQueueListener
from eric_sse.queues import Queue
from eric_sse.repository import AbstractChannelRepository
from typing_extensions import TypeVar  # that of typing has a default from Python 3.13 on

from eric_sse_sql.arguments import validate_type
from eric_sse_sql.channels import SqlChannel, SqlSSEChannel
from eric_sse_sql.codec import class_path
from eric_sse_sql.contract import ItemNotFound
from eric_sse_sql.database import Database
from eric_sse_sql.errors import application_errors
from eric_sse_sql.keys import validate_key
from eric_sse_sql.queues import SqlConnectionsFactory
from eric_sse_sql.repositories.store import ConnectionKeyedStore, record_of, registered
from eric_sse_sql.sql import connections as sql

#: The class of a repository's channels.
ChannelT = TypeVar("ChannelT", bound=AbstractChannel, default=AbstractChannel)

_ONE_CLASS = (
    "load a channel with the repository of its class, and keep channels of several classes in a database or schema for "
    "each of them, if load_all() is to load them"
)


class SqlListenersRepository(ListenerRepositoryInterface):
    """Listeners by the id of their connection, which may be persisted later.

    :param store: where they are
    """

    def __init__(self, store: ConnectionKeyedStore) -> None:
        self._store = store

    def load(self, connection_id: str) -> MessageQueueListener:
        """The listener of a connection.

        :raises InvalidListenerException: when there is none
        """
        try:
            listener: MessageQueueListener = self._store.listeners.fetch_one(connection_id)
        except ItemNotFound as error:
            raise InvalidListenerException(f"connection {connection_id} has no listener") from error
        return listener

    def persist(self, connection_id: str, listener: MessageQueueListener) -> None:
        """Store the listener of a connection, in place of the one that it had."""
        validate_type("a listener", listener, MessageQueueListener)
        self._store.persist_object(self._store.listeners, sql.SET_LISTENER_ID, connection_id, listener)

    def delete(self, connection_id: str) -> None:
        """Delete the listener of a connection, and the connection with its queue and messages, if they are there."""
        self._store.delete_listener(connection_id)


class SqlQueuesRepository(QueueRepositoryInterface):
    """Queues by the id of their connection, which may be persisted later.

    :param store: where they are
    """

    def __init__(self, store: ConnectionKeyedStore) -> None:
        self._store = store

    def load(self, connection_id: str) -> Queue:
        """The queue of a connection.

        :raises InvalidConnectionException: when there is none
        """
        try:
            queue: Queue = self._store.queues.fetch_one(connection_id)
        except ItemNotFound as error:
            raise InvalidConnectionException(f"connection {connection_id} has no queue") from error
        return queue

    def persist(self, connection_id: str, queue: Queue) -> None:
        """Store the queue of a connection, in place of the one that it had.

        :raises RepositoryError: when it keeps its messages in this process
        """
        validate_type("a queue", queue, Queue)
        self._store.persist_object(self._store.queues, sql.SET_QUEUE_ID, connection_id, queue)

    def delete(self, connection_id: str) -> None:
        """Delete the queue of a connection, and the connection with its listener and messages, if they are there."""
        self._store.delete_queue(connection_id)


class SqlConnectionsRepository(ConnectionRepositoryInterface):
    """Connections by their channel and their own id. Each call is atomic.

    :param store: where they are
    """

    def __init__(self, store: ConnectionKeyedStore) -> None:
        self._store = store
        self._listeners = SqlListenersRepository(store)
        self._queues = SqlQueuesRepository(store)

    @property
    def listeners_repository(self) -> SqlListenersRepository:
        """The listeners of the connections."""
        return self._listeners

    @property
    def queues_repository(self) -> SqlQueuesRepository:
        """The queues of the connections."""
        return self._queues

    def load_all(self, channel_id: str) -> Iterator[Connection]:
        """The connections of a channel, ordered by id: one statement, a join, however many there are."""
        return self._store.connections(channel_id)

    def load_one(self, channel_id: str, connection_id: str) -> Connection:
        """The connection of an id.

        :raises ItemNotFound: when the channel has none of it
        """
        return self._store.connection_in(validate_key("a channel id", channel_id), connection_id)

    def persist(self, channel_id: str, connection: Connection) -> None:
        """Store a connection, its listener and its queue. Its channel may be persisted later.

        :raises RepositoryError: when the listener or the queue can't be stored; nothing is then
        """
        self._store.persist_connection(record_of(connection), channel_id)

    def delete(self, channel_id: str, connection_id: str) -> None:
        """Delete a connection of a channel with its listener, its queue and its messages, if it is there."""
        self._store.delete_connection_in(channel_id, connection_id)


class AbstractSqlChannelRepository(AbstractChannelRepository, ABC, Generic[ChannelT]):
    """Channels of an application's own type, with their connections: needs ``create`` and ``_channel_to_dict``.

    For a type checker, name the class of the channels: ``class Rooms(AbstractSqlChannelRepository[Room])``.

    A channel is stored as the dictionary that ``_channel_to_dict`` makes of it, and comes back as what ``create`` makes
    of that. Each call is atomic, and a constant number of statements.

    :param database: where the channels are: all those of the database
    :param connections_factory: what new channels make connections with; by default :class:`SqlConnectionsFactory`
    """

    def __init__(self, database: Database, connections_factory: ConnectionsFactory | None = None) -> None:
        validate_type("database", database, Database, "write Database(url), or Database(engine)")
        if connections_factory is not None:
            validate_type("connections_factory", connections_factory, ConnectionsFactory)
        #: Where the channels are.
        self.database = database
        self._store = ConnectionKeyedStore(database)
        self._connections_repository = SqlConnectionsRepository(self._store)
        super().__init__(
            storage=self._store.channel_objects,
            connections_repository=self._connections_repository,
            connections_factory=connections_factory or SqlConnectionsFactory(database),
        )

    @property
    def connections_repository(self) -> SqlConnectionsRepository:
        """The connections of the channels."""
        return self._connections_repository

    @abstractmethod
    def create(self, channel_data: dict[str, Any]) -> ChannelT:
        """A new channel, which is not persisted yet.

        :param channel_data: what ``_channel_to_dict`` returns, or what the application gives
        """

    def load_all(self) -> Iterator[ChannelT]:
        """All channels, ordered by id: a statement for each hundred. Those that don't derive from :class:`SqlChannel`
        have their connections registered, with a statement each."""
        return map(self._loaded, self._store.channels_alone())

    def load_one(self, channel_id: str) -> ChannelT:
        """The channel of an id. One statement; a channel that does not derive from :class:`SqlChannel` has its
        connections registered, with another one.

        :raises ItemNotFound: when there is none
        """
        return self._loaded(self._store.channel_alone(channel_id))

    def persist(self, channel: AbstractChannel) -> None:
        """Store a channel, the connections registered with it, and what has changed of those that it holds.

        A connection that was removed from this object is deleted with its listener, queue and messages. All others
        stay: another process may have added them.

        How long a log keeps its events is written where this object is new, or has changed it.

        :raises RepositoryError: when the channel, a listener or a queue can't be stored, ``create`` can't make the
            channel of what ``_channel_to_dict`` returns, or the channel has a log and this object none; nothing is
            stored then
        """
        validate_type("a channel", channel, AbstractChannel)
        channel_id, stored = validate_key("a channel id", channel.id), self._stored(channel)
        if isinstance(channel, SqlChannel):
            self._store.persist_live_channel(channel_id, stored, channel)
        else:
            connections = [record_of(connection) for connection in channel.get_connections()]
            self._store.persist_channel(channel_id, stored, channel, connections)

    def delete(self, channel_id: str) -> None:
        """Delete a channel, if it is there: with its connections, their listeners, queues and messages.

        On Postgres, messages that are dispatched or broadcast while it runs may stay, without a connection:
        ``Database.prune`` deletes them. To exclude that, each broadcast would have to lock a row of the channel.
        """
        self._store.delete_channel(channel_id)

    def _loaded(self, stored: Any) -> ChannelT:
        if not isinstance(stored, dict):
            raise RepositoryError("the channel was stored by ChannelRepository; load it with that")
        channel = self._created(stored, _ONE_CLASS)
        if isinstance(channel, SqlChannel):
            held = channel.identity_map
            held.store, held.replay_seconds = self._store, channel.replay_seconds
            return channel
        return registered(channel, self._store.connections(channel.id))

    def _stored(self, channel: AbstractChannel) -> dict[str, Any]:
        """What is stored for a channel, of which it can be made again.

        :raises RepositoryError: when it can't
        """
        name = f"{class_path(type(self))}._channel_to_dict()"
        with application_errors(name, "persist a channel with the repository of its class"):
            stored = self._channel_to_dict(channel)
        validate_type(f"what {name} returns", stored, dict)
        if self._created(dict(stored), f"let create() take what {name} returns").id != channel.id:
            raise RepositoryError(f"create() makes a channel with another id of what {name} returns; add channel_id")
        return stored

    def _created(self, stored: dict[str, Any], advice: str) -> ChannelT:
        """The channel that ``create`` makes.

        :param advice: what to do where it makes none
        :raises RepositoryError: then
        """
        name = f"{class_path(type(self))}.create()"
        with application_errors(name, advice):
            channel = self.create(stored)
        validate_type(f"what {name} returns", channel, AbstractChannel)
        return channel


class SqlSSEChannelRepository(AbstractSqlChannelRepository[SqlSSEChannel]):
    """Channels of server-sent events, with their connections.

    :param database: where the channels are: all those of the database
    :param connections_factory: what new channels make connections with; by default :class:`SqlConnectionsFactory` with
        queues that don't block
    """

    def create(self, channel_data: dict[str, Any]) -> SqlSSEChannel:
        """A new channel, which is not persisted yet.

        :param channel_data: parameters of :class:`SqlSSEChannel`, but for the connections factory: that of the
            repository is used
        """
        validate_type("channel_data", channel_data, Mapping, "write {'channel_id': ...}, or {}")
        try:
            return SqlSSEChannel(**channel_data, connections_factory=self.connections_factory)
        except TypeError as error:
            raise RepositoryError(
                "channel_data must be parameters of SqlSSEChannel, without connections_factory"
            ) from error

    @staticmethod
    def _channel_to_dict(channel: Any) -> dict[str, Any]:
        return {
            "channel_id": channel.id,
            "stream_delay_seconds": channel.stream_delay_seconds,
            "retry_timeout_milliseconds": channel.retry_timeout_milliseconds,
            "replay_seconds": getattr(channel, "replay_seconds", 0),
        }
