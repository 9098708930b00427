"""``SqlChannel`` and ``SqlSSEChannel``: handles on channels in the database, for eric-sse 2.1."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from abc import ABC
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from contextlib import aclosing, suppress
from typing import Any, NamedTuple, cast

from eric_sse.connection import Connection, ConnectionsFactory, InMemoryConnectionsFactory
from eric_sse.entities import AbstractChannel
from eric_sse.exception import InvalidListenerException, NoMessagesException, RepositoryError
from eric_sse.listener import MessageQueueListener
from eric_sse.message import Message, MessageContract
from eric_sse.prefabs import SSEChannel
from eric_sse.queues import Queue

from eric_sse_sql.arguments import YEAR_SECONDS, validate_number, validate_type
from eric_sse_sql.codec import class_path
from eric_sse_sql.database import MAX_AGE, Database
from eric_sse_sql.errors import application_errors
from eric_sse_sql.fanout import Fanout, LocalFanout, LogFanout, QueueFanout
from eric_sse_sql.identity_map import HeldConnection, IdentityMap
from eric_sse_sql.keys import validate_key
from eric_sse_sql.message_ids import Recipient, add_once
from eric_sse_sql.queues import BlockingSqlQueue, SqlConnectionsFactory, SqlQueue
from eric_sse_sql.streams.event_log import log_of
from eric_sse_sql.streams.frames import (
    ERROR,
    GONE_FRAME,
    HEARTBEAT,
    HEARTBEAT_SECONDS,
    LEAST_HEARTBEAT_SECONDS,
    UNDELIVERABLE,
    frame_of,
    retry_frame,
)
from eric_sse_sql.streams.log_source import LogSource
from eric_sse_sql.streams.source import MessageSource, PrefetchBuffer, in_thread
from eric_sse_sql.streams.stream import event_of, stream

#: Milliseconds after which a browser reconnects. eric-sse's own default is 5: with it, a page whose server closes each
#: connection was seen to make 262 connections in 3 seconds. Browsers wait about 3 seconds by default.
RETRY_MILLISECONDS = 3000
MAX_RETRY_MILLISECONDS = 2**31 - 1  # browsers keep it in 32 bits
MAX_REPLAY_SECONDS = MAX_AGE.days * 24 * 60 * 60
POLLED_QUEUE_SECONDS = 0.01  # between two pops of an empty queue of another class
_HELD = "_identity_map"  # the attribute that has it
_FACTORY = "write SqlConnectionsFactory(database)"
_LISTENER = "write channel.get_listener(its id)"
_WITH_ID = "return a dict, since each event of a channel with replay_seconds gets an id"

logger = logging.getLogger("eric_sse_sql")


class _Form(NamedTuple):
    """How a stream delivers its events: as the arguments of :func:`stream` of the same names say."""

    adapt: Callable[[MessageContract, str | None], Any]
    is_framed: bool = False
    heartbeat: float = math.inf


class SqlChannel(AbstractChannel, ABC):
    """A handle on a channel in the database, not a copy of it.

    It holds the connections that were asked of it or registered with it, as an SQLAlchemy ``Session`` holds objects:
    the same listener object for the same id for as long as the channel object lives. Every other connection it looks up
    when it is asked, so that it sees what any process has stored, and the cost of a call does not grow with the
    listeners of the channel.

    A new object knows only what is registered with it. A repository that loads or persists it makes it a handle. What
    was registered and removed is written by ``persist``, and forgotten when that is committed: after a rollback, the
    next ``persist`` does all of its work. Threads may share it.

    Derive the channels of an application from it, together with ``adapt``.

    :param stream_delay_seconds: how long a stream waits after each event
    :param channel_id: its own id, by default a new one
    :param connections_factory: what makes connections for listeners
    :param replay_seconds: how long the channel's log keeps its events, so that a client that reconnects gets those that
        it has missed. With 0, there is no log: each listener has a queue, whose messages are deleted when delivered
    """

    def __init__(
        self,
        stream_delay_seconds: float = 0,
        channel_id: str | None = None,
        connections_factory: ConnectionsFactory | None = None,
        replay_seconds: float = 0,
    ) -> None:
        validate_number("stream_delay_seconds", stream_delay_seconds, 0, YEAR_SECONDS)
        validate_number("replay_seconds", replay_seconds, 0, MAX_REPLAY_SECONDS)
        if channel_id is not None:
            validate_key("a channel id", channel_id)
        if connections_factory is not None:
            validate_type("connections_factory", connections_factory, ConnectionsFactory, _FACTORY)
        AbstractChannel.__init__(self, cast(int, stream_delay_seconds), channel_id, connections_factory)
        self._factory = connections_factory or InMemoryConnectionsFactory()
        self.replay_seconds = replay_seconds

    @property
    def identity_map(self) -> IdentityMap:
        """The connections that this object holds. A repository sets where it looks others up."""
        held: IdentityMap | None = self.__dict__.get(_HELD)
        if held is None:  # of a new object, or of one that was pickled
            held = self.__dict__.setdefault(_HELD, IdentityMap(self.id, has_log=bool(self.replay_seconds)))
        return held

    def __getstate__(self) -> dict[str, Any]:
        """All attributes but what is held: connections are stored in rows of their own."""
        return {name: value for name, value in self.__dict__.items() if name != _HELD}

    # Connections

    def add_listener(self) -> MessageQueueListener:
        """A new listener, registered with a new connection. No statement: ``persist`` stores it."""
        connection = self._connections_factory.create()
        self.register_connection(connection)
        return connection.listener

    def register_listener(self, listener: MessageQueueListener) -> None:
        """Register a listener with a new connection. No statement: ``persist`` stores it."""
        validate_type("a listener", listener, MessageQueueListener)
        self.register_connection(self._connections_factory.create(listener=listener))

    def register_connection(self, connection: Connection) -> None:
        """Register a connection. No statement: ``persist`` stores it.

        :raises RepositoryError: for what is no connection of a listener and a queue
        """
        self.identity_map.register(connection)

    def remove_listener(self, listener_id: str) -> None:
        """Remove a listener: at once in this object, whose streams of it end; ``persist`` deletes it. At most one
        statement.

        :raises InvalidListenerException: when the channel has no such listener
        """
        self.identity_map.remove(listener_id)

    def get_listener(self, listener_id: str) -> MessageQueueListener:
        """The listener of an id: the same object each time. One statement the first time.

        :raises InvalidListenerException: when the channel has none of it
        """
        return self.identity_map.find(listener_id).connection.listener

    def get_connections(self) -> Sequence[Connection]:
        """All connections that are stored for the channel, in any process, and those that are registered here; without
        those that were removed here. One statement, a join."""
        return [each.connection for each in self.identity_map.load_all()]

    # Messages

    def dispatch(self, listener_id: str, msg: MessageContract, message_id: str | None = None) -> None:
        """Give a message to one listener. One statement; two the first time, where the codec signs. With an id, it is
        a transaction of these and another one.

        :param message_id: with one, the call may be repeated: nothing is done where the listener got a dispatch of the
            same id before, and ``Database.prune`` has not forgotten it since
        :raises OutcomeUnknown: when the message may have been given, and may not
        :raises InvalidListenerException: when the channel has no such listener any more; no queue has the message then
        :raises RepositoryError: when the message can't be stored
        """
        self.identity_map.check(listener_id)
        self._once("listener", listener_id, message_id, lambda: self._fanout().dispatch(listener_id, msg))

    def broadcast(self, msg: MessageContract, message_id: str | None = None) -> None:
        """Give a message to each listener of the channel, in any process: to all or to none. One statement, in which
        the message travels once; two, where the codec signs and there is no log.

        Queues whose class has a ``push`` of its own, or that are in another database, get it by their ``push``.

        With ``replay_seconds``, it is one row in the channel's log, which stays locked until the transaction that it is
        part of is committed: other messages for the channel wait.

        :param message_id: with one, the call may be repeated: nothing is done where the channel got a broadcast of the
            same id before, and ``Database.prune`` has not forgotten it since. Queues that get it by their own ``push``
            and keep it outside of the database get it once more, if the first call has failed after that
        :raises OutcomeUnknown: when the message may have been given, and may not
        :raises RepositoryError: when the message can't be stored
        """
        self._once("channel", "", message_id, lambda: self._fanout().broadcast(msg))

    def _once(self, recipient: str, listener_id: str, message_id: str | None, add: Callable[[], None]) -> None:
        if message_id is None:
            add()
            return
        database = self.find_database()
        if database is None:
            raise RepositoryError(
                "a message_id is remembered in a database, and this channel is in none: persist it first, or make it "
                "with a SqlConnectionsFactory"
            ) from ValueError("message_id")
        add_once(database, Recipient(recipient, self.id, listener_id), message_id, add)

    def deliver_next(self, listener_id: str) -> MessageContract:
        """The next message of a listener that is started: removed from its queue, and given to its ``on_message``.

        :raises NoMessagesException: when there is none, or the listener is not started
        :raises InvalidListenerException: when the channel has no such listener
        """
        connection = self.identity_map.find(listener_id).connection
        if not connection.listener.is_running():
            raise NoMessagesException
        message: MessageContract = connection.queue.pop()
        connection.listener.on_message(message)
        return message

    async def message_stream(
        self, listener: MessageQueueListener, last_event_id: str | None = None
    ) -> AsyncIterator[Any]:
        """The events of a listener's messages, until it is stopped, or removed from the channel by any process. A
        listener that was not started ends it at once.

        While there is no message, the stream runs no query: it wakes up when any process has pushed one. No query runs
        on the event loop. A backlog is fetched up to a hundred messages, or 8 MiB, at once; those that were not
        delivered when the stream ends go back to their places. A process that is killed loses what it has fetched.

        With ``replay_seconds``, it loses none, and one statement reads the log for all streams of the process: each
        event has an ``id``, and a stream that is given the last one that the browser has seen goes on after it. Where
        events after it are gone, or the id is none of this log, an event of the type "reset" is delivered first, then
        what there is. All streams of a listener get all its events. An event is delivered when the next one is asked
        for; how far a connection is, is written about once a second.

        Errors are events of the type "error": a database that can't be queried gives one, until it can be again, and so
        does a message that can't be decoded, which is set aside.

        :param last_event_id: what the browser sends as ``Last-Event-ID``; without it, or with an empty one, the stream
            goes on where streams of the connection have stopped
        :raises InvalidListenerException: when the channel has no such listener
        :raises RepositoryError: for a ``last_event_id`` that is no text; when the database is closed; and when
            ``adapt`` raises for the event of an error, or returns no dict where the channel has ``replay_seconds``
        """
        found = await self._found(listener, last_event_id)
        async with aclosing(self._delivered(found, last_event_id, _Form(self._adapted))) as events:
            async for event in events:
                yield event

    async def _found(self, listener: MessageQueueListener, last_event_id: str | None) -> HeldConnection:
        """The connection of a stream's listener. No statement on the event loop."""
        validate_type("a listener", listener, MessageQueueListener, _LISTENER)
        if last_event_id is not None:
            validate_type("last_event_id", last_event_id, str, "pass the header Last-Event-ID as it is, or None")
        held = self.identity_map
        if held.store is None or held.is_found_without_statement(listener.id):
            return held.find(listener.id)
        return await in_thread(held.store.database, held.find, listener.id)

    def _delivered(self, found: HeldConnection, last_event_id: str | None, form: _Form) -> AsyncGenerator[Any, None]:
        """The events of a connection, in the form in which they are delivered. Its stream is open from now on, until
        the generator, which has to be started, ends."""
        held, listener, queue = self.identity_map, found.connection.listener, found.connection.queue
        database = None if held.store is None or found.blobs is None else held.store.database
        opened = None if database is None else database.watcher.presence.open(found.connection.id)

        def is_open() -> bool:
            return not found.is_gone and (opened is None or not opened.is_deleted) and listener.is_running()

        def close() -> None:
            if database is not None and opened is not None:
                database.watcher.presence.close(opened)
                if opened.is_deleted:
                    held.discard(found)

        if database is not None:
            database.background.poller.start()  # which learns that the connection is deleted
        if not isinstance(queue, SqlQueue) or type(queue).pop not in (SqlQueue.pop, BlockingSqlQueue.pop):
            return self._polled_events(found, is_open, close, form)
        source: MessageSource = (
            PrefetchBuffer(queue, found.blobs is not None)
            if found.cursor is None
            else LogSource(found.cursor, opened, last_event_id or None)  # HTML: an empty id is none
        )
        return stream(
            source,
            listener,
            queue.database,
            is_open=is_open,
            close=close,
            adapt=form.adapt,
            delay=lambda: self.stream_delay_seconds,
            is_framed=form.is_framed,
            heartbeat=form.heartbeat,
        )

    async def _polled_events(
        self, found: HeldConnection, is_open: Callable[[], bool], close: Callable[[], None], form: _Form
    ) -> AsyncGenerator[Any, None]:
        """The events of a queue of another class, popped on the event loop again and again, as eric-sse does."""
        listener = found.connection.listener
        silent_until = time.monotonic() + form.heartbeat
        try:
            while is_open():
                try:
                    message = self.deliver_next(listener.id)
                except NoMessagesException:
                    if time.monotonic() >= silent_until:
                        yield HEARTBEAT
                        silent_until = time.monotonic() + form.heartbeat
                    await asyncio.sleep(max(self.stream_delay_seconds, POLLED_QUEUE_SECONDS))
                    continue
                except Exception:
                    logger.exception("a message can't be delivered to its listener")
                    message = Message(ERROR, UNDELIVERABLE)
                yield event_of(message, None, form.adapt)
                silent_until = time.monotonic() + form.heartbeat
                await asyncio.sleep(self.stream_delay_seconds)
        finally:
            close()

    def _adapted(self, message: MessageContract, event_id: str | None) -> Any:
        """The event of a message.

        :raises RepositoryError: when ``adapt`` can't make it
        """
        name = f"{class_path(type(self))}.adapt()"
        with application_errors(name, 'let it take messages of the type "error", too'):
            event = self.adapt(message)
        if event_id is None:
            return event
        return {**validate_type(f"what {name} returns", event, Mapping, _WITH_ID), "id": event_id}

    def _fanout(self) -> Fanout:
        held, database = self.identity_map, self.find_database()
        if self.replay_seconds and database is not None:
            return LogFanout(log_of(database, self.id), held)
        return LocalFanout(held) if held.store is None else QueueFanout(held.store.database, self.id, held)

    def find_database(self) -> Database | None:
        """Where the channel is stored, or its connections will be; None where neither is in a database."""
        store, factory = self.identity_map.store, self._connections_factory
        if store is not None:
            return store.database
        return factory.database if isinstance(factory, SqlConnectionsFactory) else None

    @property
    def _connections_factory(self) -> ConnectionsFactory:
        return cast(ConnectionsFactory, self.__dict__.setdefault("_factory", InMemoryConnectionsFactory()))

    def _get_queue(self, listener_id: str) -> Queue:
        return self.identity_map.find(listener_id).connection.queue


class SqlSSEChannel(SqlChannel, SSEChannel):
    """A channel of server-sent events: a :class:`SqlChannel` whose events ``sse-starlette`` and its like take.

    Its queues are what the connections factory makes: give it a :class:`SqlConnectionsFactory`, or let
    :meth:`SqlSSEChannelRepository.create` do so.

    :param stream_delay_seconds: how long a stream waits after each event
    :param retry_timeout_milliseconds: how long a browser waits before it reconnects
    :param channel_id: its own id, by default a new one
    :param connections_factory: what makes connections for listeners
    :param replay_seconds: how long a message that a stream has delivered is kept
    """

    def __init__(
        self,
        stream_delay_seconds: float = 0,
        retry_timeout_milliseconds: int = RETRY_MILLISECONDS,
        channel_id: str | None = None,
        connections_factory: ConnectionsFactory | None = None,
        replay_seconds: float = 0,
    ) -> None:
        validate_number("retry_timeout_milliseconds", retry_timeout_milliseconds, 0, MAX_RETRY_MILLISECONDS, whole=True)
        SqlChannel.__init__(self, stream_delay_seconds, channel_id, connections_factory, replay_seconds)
        self.retry_timeout_milliseconds = retry_timeout_milliseconds

    async def sse_stream(
        self,
        listener: MessageQueueListener,
        last_event_id: str | None = None,
        heartbeat: float = HEARTBEAT_SECONDS,
    ) -> AsyncGenerator[bytes, None]:
        """The events of a listener as bytes of ``text/event-stream``, which any web framework sends as they are.

        It is :meth:`message_stream`, written out: first a ``retry:``, then for each event ``id:`` (of channels with
        ``replay_seconds``), ``event:`` and ``data:``, the payload in JSON. A payload that has no form in JSON gives an
        event of the type "error", and is logged. When the listener is deleted, in any process, the last event has the
        type "gone".

        Where the class overrides neither ``adapt`` nor the listener's ``on_message``, neither is called, and an event
        of a log is made once for all streams of the process. What an ``adapt`` of the application returns is a mapping
        of "event" and "data".

        :param last_event_id: what the browser sends as ``Last-Event-ID``
        :param heartbeat: seconds without an event after which a comment is sent, to keep the connection open
        :raises InvalidListenerException: when the channel has no such listener; nothing was sent then
        :raises RepositoryError: for a ``last_event_id`` that is no text, and a heartbeat that is no number of seconds
        """
        validate_number("heartbeat", heartbeat, LEAST_HEARTBEAT_SECONDS, YEAR_SECONDS)
        found = await self._found(listener, last_event_id)
        yield retry_frame(self.retry_timeout_milliseconds)
        is_framed = _is_method(self.adapt, SSEChannel.adapt) and _is_method(
            listener.on_message, MessageQueueListener.on_message
        )
        form = _Form(self._frame, is_framed, heartbeat)
        with suppress(InvalidListenerException):  # deleted since it was looked up
            async with aclosing(self._delivered(found, last_event_id, form)) as frames:
                async for frame in frames:
                    yield frame
        if listener.is_running():
            yield GONE_FRAME

    def _frame(self, message: MessageContract, event_id: str | None) -> bytes:
        event = self._adapted(message, event_id)
        return frame_of(validate_type(f"what {class_path(type(self))}.adapt() returns", event, Mapping, _WITH_ID))


def _is_method(method: Callable[..., Any], function: Callable[..., Any]) -> bool:
    """Whether a method is a function of a class, and nothing has overridden it."""
    return getattr(method, "__func__", None) is function
