"""``SqlSSEChannel``: a channel of server-sent events over queues in the database, for eric-sse 2.1."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Any, cast

from eric_sse.connection import ConnectionsFactory
from eric_sse.listener import MessageQueueListener
from eric_sse.message import MessageContract
from eric_sse.prefabs import SSEChannel

from eric_sse_sql.arguments import YEAR_SECONDS, validate_number, validate_type
from eric_sse_sql.database import MAX_AGE
from eric_sse_sql.keys import validate_key
from eric_sse_sql.queues import BlockingSqlQueue, SqlQueue, broadcast
from eric_sse_sql.streams.replay import Replay
from eric_sse_sql.streams.source import MessageSource, PrefetchBuffer
from eric_sse_sql.streams.stream import stream

#: Milliseconds after which a browser reconnects. eric-sse's own default is 5: with it, a page whose server closes each
#: connection was seen to make 262 connections in 3 seconds. Browsers wait about 3 seconds by default.
RETRY_MILLISECONDS = 3000
MAX_RETRY_MILLISECONDS = 2**31 - 1  # browsers keep it in 32 bits
MAX_REPLAY_SECONDS = MAX_AGE.days * 24 * 60 * 60

_FACTORY = "write SqlConnectionsFactory(database)"


class SqlSSEChannel(SSEChannel):
    """A channel of server-sent events, whose broadcast is one statement however many listeners there are.

    Its queues are what the connections factory makes: give it a :class:`SqlConnectionsFactory`, or let
    :meth:`SqlSSEChannelRepository.create` do so.

    :param stream_delay_seconds: how long a stream waits after each event
    :param retry_timeout_milliseconds: how long a browser waits before it reconnects
    :param channel_id: its own id, by default a new one
    :param connections_factory: what makes connections for listeners
    :param replay_seconds: how long a message that a stream has delivered is kept, so that a browser that reconnects
        gets the messages that it has missed. With 0, a message is deleted when it is delivered
    :raises RepositoryError: for an argument of another type or out of range
    """

    def __init__(
        self,
        stream_delay_seconds: float = 0,
        retry_timeout_milliseconds: int = RETRY_MILLISECONDS,
        channel_id: str | None = None,
        connections_factory: ConnectionsFactory | None = None,
        replay_seconds: float = 0,
    ) -> None:
        validate_number("stream_delay_seconds", stream_delay_seconds, 0, YEAR_SECONDS)
        validate_number("retry_timeout_milliseconds", retry_timeout_milliseconds, 0, MAX_RETRY_MILLISECONDS, whole=True)
        validate_number("replay_seconds", replay_seconds, 0, MAX_REPLAY_SECONDS)
        if channel_id is not None:
            validate_key("a channel id", channel_id)
        if connections_factory is not None:
            validate_type("connections_factory", connections_factory, ConnectionsFactory, _FACTORY)
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
        """The events of a listener's messages, until it is stopped. A listener that was not started ends it at once.

        While there is no message, the stream runs no query: it wakes up when any process has pushed one. No query runs
        on the event loop. A backlog is fetched up to a hundred messages at once; those that were not delivered when the
        stream ends go back to their places. A process that is killed, or a database that can't be reached for 10
        seconds while the stream ends, loses what was fetched. A queue of another class is streamed as eric-sse does.

        With ``replay_seconds``, it loses none: each event has an ``id``, and a stream that is given the last one that
        the browser has seen goes on after it, first with the messages that were delivered meanwhile. Where some of them
        are gone, an event of the type "reset" is delivered in their place. All streams of a listener then get all its
        messages.

        Errors are events of the type "error": a database that can't be reached gives one, until it can be again.

        :param last_event_id: what the browser sends as ``Last-Event-ID``; without it, the stream begins with the
            messages that were not delivered to any
        :raises InvalidListenerException: when the channel has no such listener
        :raises RepositoryError: for a ``last_event_id`` that is no text
        """
        if last_event_id is not None:
            validate_type("last_event_id", last_event_id, str, "pass the header Last-Event-ID as it is, or None")
        self.get_listener(listener.id)
        queue = self._get_queue(listener.id)
        if not (isinstance(queue, SqlQueue) and type(queue).pop in (SqlQueue.pop, BlockingSqlQueue.pop)):
            async with aclosing(cast(AsyncGenerator[Any, None], super().message_stream(listener))) as others:
                async for event in others:
                    yield event
            return
        replays = self.replay_seconds
        source: MessageSource = Replay(queue, replays, last_event_id) if replays else PrefetchBuffer(queue)
        events = stream(source, listener, queue.database, adapt=self._adapted, delay=lambda: self.stream_delay_seconds)
        async with aclosing(events):
            async for event in events:
                yield event

    def _adapted(self, message: MessageContract, event_id: str | None) -> Any:
        event = self.adapt(message)
        return event if event_id is None else {**event, "id": event_id}
