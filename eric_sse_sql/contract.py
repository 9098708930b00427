"""The eric-sse names that this package implements, on either living eric-sse.

eric-sse 2.0 defines the interfaces of its persistence page itself; they are re-exported. eric-sse 2.1 no longer has
them; there they are defined here, as that page describes them. No other module asks which eric-sse is installed.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Iterable
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, cast

from eric_sse.connection import Connection
from eric_sse.entities import AbstractChannel, _ConnectionManager
from eric_sse.listener import MessageQueueListener
from eric_sse.queues import Queue

from eric_sse_sql.keys import new_id

__all__ = [
    "ChannelRepositoryInterface",
    "ConnectionRepositoryInterface",
    "ItemNotFound",
    "KvStorageEngine",
    "ListenerRepositoryInterface",
    "ObjectAsKeyValuePersistenceMixin",
    "PersistableQueue",
    "QueueRepositoryInterface",
]

ERIC_SSE_2_0 = find_spec("eric_sse.persistence") is not None

if TYPE_CHECKING or not ERIC_SSE_2_0:
    from eric_sse.connection import ConnectionsFactory as ConnectionsFactory
    from eric_sse.exception import ItemNotFound
    from eric_sse.repository import KvStorage

    class ObjectAsKeyValuePersistenceMixin(ABC):
        """Persistence for an object that pickle can't take: class path, constructor parameters and set-up values.

        Whatever the properties return must itself be storable.
        """

        @property
        def kv_as_dict(self) -> dict[str, Any]:
            """All that is stored: ``class_path``, ``constructor_parameters`` and ``setup_dict``."""
            return {
                "class_path": self.kv_class_absolute_path,
                "constructor_parameters": self.kv_constructor_params_as_dict,
                "setup_dict": self.kv_setup_values_as_dict,
            }

        @property
        @abstractmethod
        def kv_key(self) -> str:
            """The key under which the object is stored."""

        @property
        @abstractmethod
        def kv_setup_values_as_dict(self) -> dict[str, Any]:
            """What :meth:`kv_setup_by_dict` gets when the object is loaded."""

        @abstractmethod
        def kv_setup_by_dict(self, setup: dict[str, Any]) -> None:
            """Finish a newly constructed object.

            :param setup: the stored :attr:`kv_setup_values_as_dict`
            """

        @property
        def kv_class_absolute_path(self) -> str:
            """Module and name of the class, joined by a dot."""
            return f"{type(self).__module__}.{type(self).__name__}"

        @property
        @abstractmethod
        def kv_constructor_params_as_dict(self) -> dict[str, Any]:
            """Keyword arguments of the constructor when the object is loaded."""

    class KvStorageEngine(KvStorage, ABC):
        """A store of values by key. On eric-sse 2.1 it is a ``KvStorage`` too: the same five methods."""

    class PersistableQueue(Queue, ObjectAsKeyValuePersistenceMixin, ABC):
        """A queue that has an id and is stored through the mixin."""

        @property
        @abstractmethod
        def id(self) -> str:
            """The key of the queue in its repository."""

    class ListenerRepositoryInterface(ABC):
        """Listeners by their own id."""

        @abstractmethod
        def load(self, listener_id: str) -> MessageQueueListener: ...

        @abstractmethod
        def persist(self, listener: MessageQueueListener) -> None: ...

        @abstractmethod
        def delete(self, listener_id: str) -> None: ...

    class QueueRepositoryInterface(ABC):
        """Queues by their own id."""

        @abstractmethod
        def load(self, queue_id: str) -> Queue: ...

        @abstractmethod
        def persist(self, queue: Queue) -> None: ...

        @abstractmethod
        def delete(self, queue_id: str) -> None: ...

    class ConnectionRepositoryInterface(ABC):
        """Connections by their own id, and by their channel."""

        @abstractmethod
        def load_all(self, channel_id: str) -> Iterable[Connection]: ...

        @abstractmethod
        def load_one(self, connection_id: str) -> Connection: ...

        @abstractmethod
        def persist(self, connection: Connection) -> None: ...

        @abstractmethod
        def delete(self, connection_id: str) -> None: ...

    class ChannelRepositoryInterface(ABC):
        """Channels by their own id."""

        @abstractmethod
        def load_all(self) -> Iterable[AbstractChannel]: ...

        @abstractmethod
        def load_one(self, channel_id: str) -> AbstractChannel: ...

        @abstractmethod
        def persist(self, channel: AbstractChannel) -> None: ...

        @abstractmethod
        def delete(self, channel_id: str) -> None: ...

else:
    from eric_sse.interfaces import (
        ChannelRepositoryInterface,
        ConnectionRepositoryInterface,
        ListenerRepositoryInterface,
        QueueRepositoryInterface,
    )
    from eric_sse.persistence import ItemNotFound, KvStorageEngine, ObjectAsKeyValuePersistenceMixin
    from eric_sse.queues import PersistableQueue

    class ConnectionsFactory(ABC):
        """What eric-sse 2.1 makes connections with."""

        @abstractmethod
        def create(self, listener: MessageQueueListener | None = None) -> Connection: ...


def make_connection(listener: MessageQueueListener, queue: Queue, connection_id: str) -> Connection:
    """A connection with the id given."""
    if not ERIC_SSE_2_0:
        return Connection(listener, queue, connection_id)
    connection: Any = Connection(listener, queue)
    connection.id = connection_id
    return cast(Connection, connection)


def make_listener(listener_id: str) -> MessageQueueListener:
    """A new listener with the id given."""
    listener = MessageQueueListener()
    listener.id = listener_id
    return listener


def identify(connection: Connection) -> str:
    """The id of a connection.

    eric-sse 2.0.0.1 gives all connections of a process one id, a default of its class; such a connection gets an id of
    its own here, as later releases give it.
    """
    if ERIC_SSE_2_0 and connection.id == vars(Connection).get("id"):
        cast(Any, connection).id = new_id()
    return connection.id


def connection_registry(channel: AbstractChannel) -> Any:
    """The object in which a channel keeps its listeners and queues. eric-sse has no public name for it."""
    return cast(Any, channel)._AbstractChannel__connection_manager


def registered_connections(channel: Any) -> list[tuple[str | None, MessageQueueListener, Queue]]:
    """Id, listener and queue of each connection registered with a channel. eric-sse 2.0 keeps no id."""
    if ERIC_SSE_2_0:
        return [
            (None, channel.get_listener(listener_id), channel._get_queue(listener_id))
            for listener_id in channel.get_listeners_ids()
        ]
    return [(connection.id, connection.listener, connection.queue) for connection in channel.get_connections()]


def register(channel: Any, connection: Connection) -> None:
    """Register a connection with a channel."""
    if ERIC_SSE_2_0:
        channel.register_connection(connection.listener, connection.queue)
    else:
        channel.register_connection(connection)


def without_connections(channel: AbstractChannel) -> AbstractChannel:
    """A shallow copy of a channel that has no connections: those are stored in rows of their own."""
    bare: Any = copy.copy(channel)
    bare._AbstractChannel__connection_manager = _ConnectionManager(channel.id)
    return cast(AbstractChannel, bare)
