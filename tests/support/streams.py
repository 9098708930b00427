"""Streams of a channel with one listener."""

from __future__ import annotations

from contextlib import aclosing
from typing import Any

import pytest
from eric_sse.listener import MessageQueueListener
from eric_sse.message import MessageContract

from eric_sse_sql import Database, SqlQueue
from eric_sse_sql.contract import ERIC_SSE_2_0
from support.channels import queue_of

if ERIC_SSE_2_0:
    pytest.skip("eric-sse 2.0 has no such channel", allow_module_level=True)

from eric_sse_sql import SqlConnectionsFactory, SqlSSEChannel


class RecordingListener(MessageQueueListener):
    """Records the payloads that it gets, and raises at the payload "fail"."""

    def __init__(self) -> None:
        super().__init__()
        self.heard: list[Any] = []

    def on_message(self, msg: MessageContract) -> None:
        if msg.payload == "fail":
            raise ValueError("the payload says so")
        self.heard.append(msg.payload)


def connected(database: Database, **options: Any) -> tuple[SqlSSEChannel, RecordingListener, SqlQueue]:
    """A new channel, its only listener, which is started, and the queue of the listener."""
    channel = SqlSSEChannel(connections_factory=SqlConnectionsFactory(database), **options)
    listener = RecordingListener()
    channel.register_listener(listener)
    listener.start()
    return channel, listener, queue_of(channel, listener.id)


async def events(
    channel: Any, listener: MessageQueueListener, count: int, last_event_id: str | None = None
) -> list[Any]:
    """The next events of a new stream, which is closed then."""
    found: list[Any] = []
    with_id = () if last_event_id is None else (last_event_id,)  # which channels of eric-sse do not take
    async with aclosing(channel.message_stream(listener, *with_id)) as stream:
        while len(found) < count:
            found.append(await anext(stream))
    return found
