"""Channels of which every process can open the same streams: ours, and eric-sse's own over eric-redis-queues."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from eric_sse.connection import Connection
from eric_sse.listener import MessageQueueListener
from eric_sse.prefabs import SSEChannel
from eric_sse.queues import Queue

from benchmarks import goals
from benchmarks.contenders import Location
from benchmarks.databases import Backend
from benchmarks.peers import Opener, imported
from benchmarks.placement import on_any_core
from benchmarks.redis_server import IN_MEMORY, redis_server
from eric_sse_sql import SqlQueue, SqlSSEChannel


class Streams(Protocol):
    """Where a channel is, told to another process."""

    def open(self, count: int) -> SSEChannel:
        """The channel with its listeners."""


@dataclass(frozen=True)
class SqlStreams:
    """A channel of ours.

    :param notifies: whether others are told of what is dispatched
    """

    location: Location
    notifies: bool = True

    def open(self, count: int) -> SSEChannel:
        database = self.location.open() if self.notifies else self.location.open_without_notifications()
        return with_listeners(SqlSSEChannel(), count, lambda queue_id: SqlQueue(database, queue_id))


@dataclass(frozen=True)
class RedisStreams:
    """A channel of eric-sse, its queues in Redis."""

    port: int

    def open(self, count: int) -> SSEChannel:
        module = imported("eric_redis_queues")
        connection = module.RedisConnection(port=self.port)
        return with_listeners(SSEChannel(), count, lambda queue_id: module.RedisQueue(connection, queue_id))


def with_listeners(channel: SSEChannel, count: int, make_queue: Callable[[str], Queue]) -> SSEChannel:
    """A channel with so many listeners, and queues of the same ids."""
    for number in range(count):
        name = listener_id(number)
        channel.register_connection(Connection(MessageQueueListener(name), make_queue(name)))
    return channel


def listener_id(number: int) -> str:
    """The id of a listener, and of its queue."""
    return f"listener-{number:04}"


def stream_peers(backend: Backend) -> Mapping[str, Opener[Streams]]:
    """The same beside every database."""
    return {goals.REDIS_STREAM: _redis}


def _redis(folder: Path, stack: ExitStack) -> Streams:
    imported("eric_redis_queues")
    return RedisStreams(stack.enter_context(redis_server(folder, IN_MEMORY, on_any_core)))
