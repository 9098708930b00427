"""The repositories of eric-sse 2.1, and its channel of server-sent events, on a SQL database."""

from __future__ import annotations

from abc import ABC
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import aclosing
from typing import Any, cast

from eric_sse.connection import Connection, ConnectionsFactory
from eric_sse.entities import AbstractChannel
from eric_sse.exception import InvalidConnectionException, InvalidListenerException, RepositoryError
from eric_sse.interfaces import (
    ConnectionRepositoryInterface,
    ListenerRepositoryInterface,
    QueueRepositoryInterface,
)
from eric_sse.listener import MessageQueueListener
from eric_sse.message import MessageContract
from eric_sse.prefabs import SSEChannel
from eric_sse.queues import Queue
from eric_sse.repository import AbstractChannelRepository

from eric_sse_sql import relation_statements as sql
from eric_sse_sql.contract import ItemNotFound
from eric_sse_sql.database import Database
from eric_sse_sql.keys import validate_key
from eric_sse_sql.queues import BlockingSqlQueue, SqlConnectionsFactory, SqlQueue, broadcast
from eric_sse_sql.relations import RelationsByConnection, assembled, parts_of
from eric_sse_sql.replay import Replay
from eric_sse_sql.streams import Backlog, Supply, stream


class SqlSSEChannel(SSEChannel):
    """A channel of server-sent events, whose broadcast is one statement however many listeners there are.

    Its queues are what the connections factory makes: give it a :class:`SqlConnectionsFactory`, or let
    :meth:`SqlSSEChannelRepository.create` do so.

    :param stream_delay_seconds: how long a stream waits after each event
    :param retry_timeout_milliseconds: after which a browser connects again
    :param channel_id: its own id, by default a new one
    :param connections_factory: what makes connections for listeners
    :param replay_seconds: how long a message that a stream has delivered is kept, so that a browser that connects again
        gets what it has missed. With 0, it is deleted when it is delivered
    """

    def __init__(
        self,
        stream_delay_seconds: float = 0,
        retry_timeout_milliseconds: int = 5,
        channel_id: str | None = None,
        connections_factory: ConnectionsFactory | None = None,
        replay_seconds: float = 0,
    ) -> None:
        super().__init__(cast(int, stream_delay_seconds), retry_timeout_milliseconds, channel_id, connections_factory)
        self.replay_seconds = replay_seconds

    def broadcast(self, msg: MessageContract) -> None:
        """Add a message to the queue of each listener: for all queues in a database, to all or to none.

        :raises RepositoryError: when the message can't be stored
        """
        broadcast(msg, [connection.queue for connection in self.get_connections()])

    async def message_stream(
        self, listener: MessageQueueListener, last_event_id: str | None = None
    ) -> AsyncIterator[Any]:
        """The events of a listener's messages, until it is stopped.

        While there is none, nothing is asked: the stream wakes up when any process has pushed a message. The database
        is never asked on the event loop. A backlog is fetched up to a hundred messages at once; those that nobody has
        asked for when the stream ends go back to their places. A process that is killed loses what it has fetched.

        With ``replay_seconds``, it loses none: each event has an ``id``, and a stream that is given the last one that
        the browser has seen goes on behind it, first with what was delivered meanwhile. Where some of that is gone, an
        event of the type "reset" stands in its place. All streams of a listener then get all its messages.

        What goes wrong is an event of the type "error": a database that can't be reached is one, until it can be again.

        :param last_event_id: what the browser sends as ``Last-Event-ID``; without it, the stream begins with what was
            not delivered to any
        :raises InvalidListenerException: when the channel has no such listener
        """
        self.get_listener(listener.id)
        queue = self._get_queue(listener.id)
        if not (isinstance(queue, SqlQueue) and type(queue).pop in (SqlQueue.pop, BlockingSqlQueue.pop)):
            async for event in super().message_stream(listener):
                yield event
            return
        supply: Supply = Replay(queue, self.replay_seconds, last_event_id) if self.replay_seconds else Backlog(queue)
        events = stream(supply, listener, queue.database, adapt=self._adapted, delay=lambda: self.stream_delay_seconds)
        async with aclosing(events):
            async for event in events:
                yield event

    def _adapted(self, message: MessageContract, event_id: str | None) -> Any:
        event = self.adapt(message)
        return event if event_id is None else {**event, "id": event_id}


class SqlListenersRepository(ListenerRepositoryInterface):
    """Listeners by the id of their connection, which may be persisted later.

    :param relations: where they are
    """

    def __init__(self, relations: RelationsByConnection) -> None:
        self._relations = relations

    def load(self, connection_id: str) -> MessageQueueListener:
        """The listener of a connection.

        :raises InvalidListenerException: when there is none
        """
        try:
            listener: MessageQueueListener = self._relations.listeners.fetch_one(connection_id)
        except ItemNotFound as error:
            raise InvalidListenerException(f"connection {connection_id} has no listener") from error
        return listener

    def persist(self, connection_id: str, listener: MessageQueueListener) -> None:
        """Store the listener of a connection, in place of the one that it had."""
        self._relations.persist_object(self._relations.listeners, sql.SET_LISTENER_ID, connection_id, listener)

    def delete(self, connection_id: str) -> None:
        """Delete the listener of a connection, and the connection, if they are there."""
        self._relations.listeners.delete(connection_id)


class SqlQueuesRepository(QueueRepositoryInterface):
    """Queues by the id of their connection, which may be persisted later.

    :param relations: where they are
    """

    def __init__(self, relations: RelationsByConnection) -> None:
        self._relations = relations

    def load(self, connection_id: str) -> Queue:
        """The queue of a connection.

        :raises InvalidConnectionException: when there is none
        """
        try:
            queue: Queue = self._relations.queues.fetch_one(connection_id)
        except ItemNotFound as error:
            raise InvalidConnectionException(f"connection {connection_id} has no queue") from error
        return queue

    def persist(self, connection_id: str, queue: Queue) -> None:
        """Store the queue of a connection, in place of the one that it had.

        :raises RepositoryError: when it keeps its messages in this process
        """
        self._relations.persist_object(self._relations.queues, sql.SET_QUEUE_ID, connection_id, queue)

    def delete(self, connection_id: str) -> None:
        """Delete the queue of a connection, its messages, and the connection, if they are there."""
        self._relations.delete_queue(connection_id)


class SqlConnectionsRepository(ConnectionRepositoryInterface):
    """Connections by their channel and their own id. Each call is atomic.

    :param relations: where they are
    """

    def __init__(self, relations: RelationsByConnection) -> None:
        self._relations = relations
        self._listeners = SqlListenersRepository(relations)
        self._queues = SqlQueuesRepository(relations)

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
        return self._relations.connections(channel_id)

    def load_one(self, channel_id: str, connection_id: str) -> Connection:
        """The connection of an id.

        :raises ItemNotFound: when the channel has none of it
        """
        return self._relations.connection_in(validate_key("a channel id", channel_id), connection_id)

    def persist(self, channel_id: str, connection: Connection) -> None:
        """Store a connection, its listener and its queue. Its channel may be persisted later.

        :raises RepositoryError: when the listener or the queue can't be stored; nothing is then
        """
        self._relations.persist_connection(connection.id, parts_of(connection), channel_id)

    def delete(self, channel_id: str, connection_id: str) -> None:
        """Delete a connection of a channel with its listener, its queue and its messages, if it is there."""
        self._relations.delete_connection_in(channel_id, connection_id)


class AbstractSqlChannelRepository(AbstractChannelRepository, ABC):
    """Channels of an application's own type, with their connections: needs ``create`` and ``_channel_to_dict``.

    A channel is stored as the dictionary that ``_channel_to_dict`` makes of it, and comes back as what ``create`` makes
    of that. Each call is atomic, and a constant number of statements.

    :param database: where the channels are: all those of the database
    :param connections_factory: what new channels make connections with; by default :class:`SqlConnectionsFactory`
    """

    def __init__(self, database: Database, connections_factory: ConnectionsFactory | None = None) -> None:
        self._relations = RelationsByConnection(database)
        self._connections_repository = SqlConnectionsRepository(self._relations)
        super().__init__(
            storage=self._relations.channel_objects,
            connections_repository=self._connections_repository,
            connections_factory=connections_factory or SqlConnectionsFactory(database),
        )

    @property
    def connections_repository(self) -> SqlConnectionsRepository:
        """The connections of the channels."""
        return self._connections_repository

    def load_all(self) -> Iterable[AbstractChannel]:
        """All channels, their connections registered, ordered by id: two statements for each hundred."""
        for stored, connections in self._relations.channels():
            yield assembled(self._created(stored), connections)

    def load_one(self, channel_id: str) -> AbstractChannel:
        """The channel of an id, its connections registered. One statement.

        :raises ItemNotFound: when there is none
        """
        stored, connections = self._relations.channel(channel_id)
        return assembled(self._created(stored), connections)

    def persist(self, channel: AbstractChannel) -> None:
        """Store a channel and the connections registered with it.

        A connection that this channel object was loaded or persisted with, and has no more, is deleted with its
        listener, queue and messages. One that it never knew stays: another process may have added it.

        :raises RepositoryError: when the channel, a listener or a queue can't be stored; nothing is then
        """
        connections = [parts_of(connection) for connection in channel.get_connections()]
        self._relations.persist_channel(
            validate_key("a channel id", channel.id), self._channel_to_dict(channel), channel, connections
        )

    def delete(self, channel_id: str) -> None:
        """Delete a channel, if it is there: with its connections, their listeners, queues and messages."""
        self._relations.delete_channel(channel_id)

    def _created(self, stored: Any) -> AbstractChannel:
        if not isinstance(stored, dict):
            raise RepositoryError("the channel was stored by ChannelRepository; load it with that")
        return self.create(stored)


class SqlSSEChannelRepository(AbstractSqlChannelRepository):
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
        return SqlSSEChannel(**channel_data, connections_factory=self.connections_factory)

    @staticmethod
    def _channel_to_dict(channel: Any) -> dict[str, Any]:
        return {
            "channel_id": channel.id,
            "stream_delay_seconds": channel.stream_delay_seconds,
            "retry_timeout_milliseconds": channel.retry_timeout_milliseconds,
            "replay_seconds": getattr(channel, "replay_seconds", 0),
        }
