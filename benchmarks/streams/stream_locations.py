"""Channels that every process can open with the same listeners and queues."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from eric_sse.connection import Connection
from eric_sse.listener import MessageQueueListener
from eric_sse.prefabs import SSEChannel
from eric_sse.queues import Queue

from benchmarks.harness.locations import Location
from eric_sse_sql import SqlQueue, SqlSSEChannel


class StreamsLocation(Protocol):
    """Where a channel is. It can be pickled, to be passed to another process."""

    def open(self, count: int) -> SSEChannel:
        """Open the channel with this many listeners."""


@dataclass(frozen=True)
class SqlStreams:
    """A channel of eric_sse_sql.

    :param notifies: whether a dispatch notifies other processes
    """

    location: Location
    notifies: bool = True

    def open(self, count: int) -> SSEChannel:
        database = self.location.open() if self.notifies else self.location.open_without_notifications()
        return with_listeners(SqlSSEChannel(), count, lambda queue_id: SqlQueue(database, queue_id))


def with_listeners(channel: SSEChannel, count: int, make_queue: Callable[[str], Queue]) -> SSEChannel:
    """Add listeners to a channel, each with a queue of the same id."""
    for number in range(count):
        name = listener_id(number)
        channel.register_connection(Connection(MessageQueueListener(name), make_queue(name)))
    return channel


def listener_id(number: int) -> str:
    """The id of a listener and of its queue."""
    return f"listener-{number:04}"
