"""The interfaces that are timed. eric_sse_sql, the baselines and the peers implement all of them or some."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from typing import Any, Protocol, runtime_checkable

from eric_sse.connection import Connection
from eric_sse.entities import AbstractChannel
from eric_sse.message import MessageContract


class KeyStore(Protocol):
    """Values by key."""

    def upsert(self, key: str, value: Any) -> None: ...
    def fetch_one(self, key: str) -> Any: ...
    def delete(self, key: str) -> None: ...


@runtime_checkable
class Store(KeyStore, Protocol):
    """Values by key and by key prefix."""

    def fetch_by_prefix(self, prefix: str) -> Iterable[Any]: ...
    def fetch_all(self) -> Iterable[Any]: ...


class MessageQueue(Protocol):
    """A queue. ``pop`` of an empty queue raises ``NoMessagesException``."""

    def push(self, message: MessageContract) -> None: ...
    def pop(self) -> Any: ...


@runtime_checkable
class LeasingQueue(MessageQueue, Protocol):
    """A queue that can lease a message and delete it when it is acknowledged."""

    def receive(self) -> AbstractContextManager[Any]:
        """Lease the first message. Leaving the block acknowledges it."""


@runtime_checkable
class FillableQueue(MessageQueue, Protocol):
    """A queue that can insert and delete many messages at once."""

    def fill(self, messages: Iterable[MessageContract]) -> None: ...
    def clear(self) -> None: ...


class ChannelStore(Protocol):
    """Channels and their connections."""

    def create(self, channel_id: str) -> AbstractChannel:
        """Create a channel whose new connections the store can persist."""

    def persist(self, channel: AbstractChannel) -> None: ...
    def load_one(self, channel_id: str) -> AbstractChannel: ...
    def broadcast(self, channel: AbstractChannel, message: MessageContract) -> None: ...
    def delete(self, channel_id: str) -> None: ...
    def load_connections(self, channel_id: str) -> Iterable[Connection]: ...


OnArrival = Callable[[], None]  # called when a stream has a message
Send = Callable[[], object]  # has a message sent to all streams, and returns at once


class FanOut(Protocol):
    """Streams in one process that all get the same messages. It can be pickled, to be passed to that process."""

    def streaming(self, count: int, on_arrival: OnArrival) -> AbstractAsyncContextManager[Send]:
        """Run streams. The block begins when all are open."""
