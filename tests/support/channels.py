"""Channels as tests fill them, and the queues in them."""

from __future__ import annotations

from typing import Any, cast

from eric_sse_sql import SqlQueue
from eric_sse_sql.contract import registered_connections


def filled(channels: Any, channel_id: str, number: int = 1) -> Any:
    """A new channel with listeners, persisted.

    :param channels: a repository of eric-sse 2.1's kind
    """
    channel = channels.create({"channel_id": channel_id})
    for _ in range(number):
        channel.add_listener()
    channels.persist(channel)
    return channel


def queue_of(channel: Any, listener_id: str) -> SqlQueue:
    """The queue that a listener of a channel is connected to."""
    queues = {listener.id: queue for _, listener, queue in registered_connections(channel)}
    return cast(SqlQueue, queues[listener_id])
