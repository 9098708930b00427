"""What is timed: ours, the raw drivers and the peers all have these methods."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager
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
    """Values by key, and by the prefix of their keys."""

    def fetch_by_prefix(self, prefix: str) -> Iterable[Any]: ...
    def fetch_all(self) -> Iterable[Any]: ...


class MessageQueue(Protocol):
    """A queue. One that is empty raises ``NoMessagesException``."""

    def push(self, message: MessageContract) -> None: ...
    def pop(self) -> Any: ...


@runtime_checkable
class LeasingQueue(MessageQueue, Protocol):
    """A queue that keeps a message until it is worked on."""

    def receive(self) -> AbstractContextManager[Any]:
        """The first message, acknowledged when the block ends."""


@runtime_checkable
class FillableQueue(MessageQueue, Protocol):
    """A queue that takes many messages at once, and drops as many."""

    def fill(self, messages: Iterable[MessageContract]) -> None: ...
    def clear(self) -> None: ...


class ChannelStore(Protocol):
    """Channels with their connections."""

    def create(self, channel_id: str) -> AbstractChannel:
        """A channel whose new listeners get the connections that the store can keep."""

    def persist(self, channel: AbstractChannel) -> None: ...
    def load_one(self, channel_id: str) -> AbstractChannel: ...
    def broadcast(self, channel: AbstractChannel, message: MessageContract) -> None: ...
    def delete(self, channel_id: str) -> None: ...
    def load_connections(self, channel_id: str) -> Iterable[Connection]: ...
