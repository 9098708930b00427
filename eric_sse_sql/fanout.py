"""How the messages of a channel reach its listeners: through a queue for each of them, or through the channel's log."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Protocol, cast

from eric_sse.exception import InvalidListenerException, RepositoryError
from eric_sse.message import MessageContract
from eric_sse.queues import Queue

from eric_sse_sql.database import Database
from eric_sse_sql.errors import repository_errors
from eric_sse_sql.identity_map import HeldConnection, IdentityMap
from eric_sse_sql.queues import SqlQueue, broadcast, is_pushed_by_statement
from eric_sse_sql.sql import connections, messages
from eric_sse_sql.sql.events import Appended
from eric_sse_sql.streams.event_log import EventLog
from eric_sse_sql.streams.log_source import append
from eric_sse_sql.wakeups.expiry import expire

EXPIRY_CHANCE = 0.01  # of an append to delete a page of expired events: on average, ten at most for each append


class Fanout(Protocol):
    """Gives messages to the listeners of a channel, for calls of :class:`SqlChannel`."""

    def dispatch(self, listener_id: str, message: MessageContract) -> None:
        """Give a message to one listener.

        :raises InvalidListenerException: when the channel has no such listener any more
        """

    def broadcast(self, message: MessageContract) -> None:
        """Give a message to all listeners."""


class LocalFanout:
    """Fan-out of a channel that is not stored: to the queues of the connections that its object holds."""

    def __init__(self, held: IdentityMap) -> None:
        self._held = held

    def dispatch(self, listener_id: str, message: MessageContract) -> None:
        self._held.find(listener_id).connection.queue.push(message)

    def broadcast(self, message: MessageContract) -> None:
        broadcast(message, [each.connection.queue for each in self._held.held()])


class QueueFanout:
    """Fan-out to a queue for each listener.

    :param database: where the channel is stored
    :param channel_id: of the channel
    :param held: the connections that the channel object holds
    """

    def __init__(self, database: Database, channel_id: str, held: IdentityMap) -> None:
        self._database = database
        self._channel_id = channel_id
        self._held = held

    def dispatch(self, listener_id: str, message: MessageContract) -> None:
        known = self._held.get(listener_id)
        if known is not None and known.blobs is None:
            known.connection.queue.push(message)
            return
        database, codec, queue_id, context = self._database, self._database.message_codec, None, ""
        if codec.signs:
            queue = self._held.find(listener_id).connection.queue
            if isinstance(queue, SqlQueue):
                queue_id, context = queue.id, queue.context
        serialized = codec.serialize(message, database)
        blob = codec.sign(serialized, context)
        with repository_errors("the message can't be dispatched"):
            pushed = database.publisher.publish_to_listener(
                messages.PUSH_TO_LISTENER,
                self._channel_id,
                listener_id,
                queue_id=queue_id,
                message_type=serialized.message_type,
                message=blob,
            )
        if not pushed:
            _reloaded(self._held, listener_id).connection.queue.push(message)

    def broadcast(self, message: MessageContract) -> None:
        database = self._database
        unstored = [each.connection for each in self._held.unstored()]
        apart = [*self._held.removed(), *(connection.listener.id for connection in unstored)]
        ours = [connection.queue for connection in unstored if self._is_reached(connection.queue)]
        others = [connection.queue for connection in unstored if not self._is_reached(connection.queue)]
        if database.codec.signs or not self._push_to_channel(message, ours, apart):
            broadcast(message, [*self._stored_queues(apart), *ours])
        broadcast(message, others)

    def _is_reached(self, queue: Queue) -> bool:
        """Whether a statement on the database can push to a queue."""
        return is_pushed_by_statement(queue) and cast(SqlQueue, queue).database is self._database

    def _push_to_channel(self, message: MessageContract, unstored: Sequence[Queue], apart: Sequence[str]) -> bool:
        """Push to the queues of all stored connections but some, and to others that are not stored: one statement.
        False, and nothing is done, where a stored queue has a ``push`` of its own."""
        database, list_value = self._database, self._database.executor.dialect.list_value
        message_type, blob = database.message_codec.encode(message, "", database)

        def run() -> None:
            database.publisher.publish_to_channel(
                messages.PUSH_TO_CHANNEL,
                self._channel_id,
                channel_id=self._channel_id,
                apart=list_value(apart),
                unstored=list_value([cast(SqlQueue, queue).id for queue in unstored]),
                message_type=message_type,
                message=blob,
            )

        return _unless_null_is_refused(database, run)

    def _stored_queues(self, apart: Sequence[str]) -> list[Queue]:
        """The queues of all stored connections but some: where they push by themselves, the objects that are held."""
        executor = self._database.executor
        with repository_errors("the message can't be broadcast"):
            rows = executor.run(
                connections.QUEUE_IDS, channel_id=self._channel_id, apart=executor.dialect.list_value(apart)
            )
        plain: list[Queue] = [SqlQueue(self._database, queue_id) for queue_id, has_own_push in rows if not has_own_push]
        own = {queue_id for queue_id, has_own_push in rows if has_own_push}
        return [*plain, *_queues_of(self._held.load_all(), own)] if own else plain


class LogFanout:
    """Fan-out through the channel's log: one event, which is for all listeners or for one.

    :param log: of the channel
    :param held: the connections that the channel object holds
    """

    def __init__(self, log: EventLog, held: IdentityMap) -> None:
        self._log = log
        self._held = held

    def dispatch(self, listener_id: str, message: MessageContract) -> None:
        known = self._held.get(listener_id)
        is_unstored = known is not None and known.blobs is None
        if known is not None and is_unstored and known.cursor is None:
            known.connection.queue.push(message)
        elif self._append(listener_id, message, is_known=is_unstored) is None:
            reloaded = _reloaded(self._held, listener_id)
            if reloaded.cursor is None:
                reloaded.connection.queue.push(message)
            else:
                self._append(listener_id, message, is_known=True)

    def broadcast(self, message: MessageContract) -> None:
        apart = [each.connection.queue for each in self._held.unstored() if each.cursor is None]
        appended = self._append(None, message, is_known=True)
        assert appended is not None
        if appended.has_own_push:
            stored = [each for each in self._held.load_all() if each.blobs is not None and each.cursor is None]
            apart.extend(each.connection.queue for each in stored)
        broadcast(message, apart)

    def _append(self, listener_id: str | None, message: MessageContract, *, is_known: bool) -> Appended | None:
        """Append an event. None where it is for a listener that has no stored connection in the channel, and is not
        known to be registered."""
        unstored = [each.cursor for each in self._held.unstored() if each.cursor is not None]
        with repository_errors("the event can't be appended"):
            appended = append(self._log, listener_id, message, is_known=is_known)
        if appended is not None:
            for cursor in unstored:
                cursor.begin_before(appended.position)
            database = self._log.database
            if random.random() < EXPIRY_CHANCE and not database.in_transaction():
                with suppress(RepositoryError):  # the event is appended, and later ones expire the page
                    expire(database.executor, self._log.channel_id)
        return appended


def _reloaded(held: IdentityMap, listener_id: str) -> HeldConnection:
    """The connection of a listener whose queue no statement has reached: it pushes by itself, or it is gone."""
    reloaded = held.reload(listener_id)
    if reloaded is None:
        raise InvalidListenerException(f"Invalid listener {listener_id}")
    return reloaded


def _queues_of(connections: Sequence[HeldConnection], queue_ids: set[str]) -> list[Queue]:
    """The queues of connections that have one of some ids."""
    return [
        each.connection.queue
        for each in connections
        if each.blobs is not None and getattr(each.connection.queue, "id", each.connection.id) in queue_ids
    ]


def _unless_null_is_refused(database: Database, run: Callable[[], None]) -> bool:
    """Run a statement; False where it was refused for a NULL, and changed nothing."""
    try:
        with repository_errors("the message can't be broadcast"):
            if database.in_transaction():
                with database.transaction():  # a savepoint, so that a refusal leaves the transaction usable
                    run()
            else:
                run()
    except RepositoryError as error:
        if error.__cause__ is None or not database.executor.driver.is_null_refused(error.__cause__):
            raise
        return False
    return True
