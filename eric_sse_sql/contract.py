"""The interfaces of eric-sse that this package implements, under the same names on eric-sse 2.0 and 2.1.

eric-sse 2.0 defines the persistence interfaces itself; this module re-exports them. eric-sse 2.1 removed them, so this
module defines them there as the documentation of 2.0 describes them. Only this module and the package's ``__init__``
check the installed release.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Iterable
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, cast
from weakref import finalize

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
        """Persistence of an object that can't be pickled, as class path, constructor parameters and set-up values.

        The values of the properties must themselves be storable.
        """

        @property
        def kv_as_dict(self) -> dict[str, Any]:
            """The stored dictionary: ``class_path``, ``constructor_parameters`` and ``setup_dict``."""
            return {
                "class_path": self.kv_class_absolute_path,
                "constructor_parameters": self.kv_constructor_params_as_dict,
                "setup_dict": self.kv_setup_values_as_dict,
            }

        @property
        @abstractmethod
        def kv_key(self) -> str:
            """The key of the stored object."""

        @property
        @abstractmethod
        def kv_setup_values_as_dict(self) -> dict[str, Any]:
            """The values passed to :meth:`kv_setup_by_dict` when the object is loaded."""

        @abstractmethod
        def kv_setup_by_dict(self, setup: dict[str, Any]) -> None:
            """Set up a newly constructed object.

            :param setup: the stored value of :attr:`kv_setup_values_as_dict`
            """

        @property
        def kv_class_absolute_path(self) -> str:
            """Module and name of the class, joined by a dot."""
            return f"{type(self).__module__}.{type(self).__name__}"

        @property
        @abstractmethod
        def kv_constructor_params_as_dict(self) -> dict[str, Any]:
            """The keyword arguments passed to the constructor when the object is loaded."""

    class KvStorageEngine(KvStorage, ABC):
        """A key-value store. On eric-sse 2.1 it is a ``KvStorage`` too, which has the same five methods."""

    class PersistableQueue(Queue, ObjectAsKeyValuePersistenceMixin, ABC):
        """A queue with an id that is persisted through the mixin."""

        @property
        @abstractmethod
        def id(self) -> str:
            """The id of the queue, which is its key in the repository."""

    class ListenerRepositoryInterface(ABC):
        """Stores listeners by id."""

        @abstractmethod
        def load(self, listener_id: str) -> MessageQueueListener: ...

        @abstractmethod
        def persist(self, listener: MessageQueueListener) -> None: ...

        @abstractmethod
        def delete(self, listener_id: str) -> None: ...

    class QueueRepositoryInterface(ABC):
        """Stores queues by id."""

        @abstractmethod
        def load(self, queue_id: str) -> Queue: ...

        @abstractmethod
        def persist(self, queue: Queue) -> None: ...

        @abstractmethod
        def delete(self, queue_id: str) -> None: ...

    class ConnectionRepositoryInterface(ABC):
        """Stores connections by id, and finds those of a channel."""

        @abstractmethod
        def load_all(self, channel_id: str) -> Iterable[Connection]: ...

        @abstractmethod
        def load_one(self, connection_id: str) -> Connection: ...

        @abstractmethod
        def persist(self, connection: Connection) -> None: ...

        @abstractmethod
        def delete(self, connection_id: str) -> None: ...

    class ChannelRepositoryInterface(ABC):
        """Stores channels by id."""

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
        """Creates connections, as the interface of this name in eric-sse 2.1."""

        @abstractmethod
        def create(self, listener: MessageQueueListener | None = None) -> Connection: ...


def make_connection(listener: MessageQueueListener, queue: Queue, connection_id: str) -> Connection:
    """A new connection with the given id."""
    if not ERIC_SSE_2_0:
        return Connection(listener, queue, connection_id)
    connection: Any = Connection(listener, queue)
    connection.id = connection_id
    return cast(Connection, connection)


def make_listener(listener_id: str) -> MessageQueueListener:
    """A new listener with the given id."""
    listener = MessageQueueListener()
    listener.id = listener_id
    return listener


def identify(connection: Connection) -> str:
    """The id of a connection, unique also on eric-sse 2.0.0.1.

    That release stores one id on the class, so all connections of a process share it. This function gives such a
    connection an id of its own, as later releases do.
    """
    if ERIC_SSE_2_0 and connection.id == vars(Connection).get("id"):
        cast(Any, connection).id = new_id()
    return connection.id


_stored_ids: dict[int, set[str]] = {}  # by the id() of the channel, until it is collected


def stored_ids(channel: AbstractChannel) -> set[str]:
    """The ids of the connections that may be stored for a channel object: it was loaded or persisted with them."""
    return _stored_ids.get(id(channel), set())


def set_stored_ids(channel: AbstractChannel, ids: set[str]) -> None:
    """Remember the ids of the connections that may be stored for a channel object."""
    # Not on the channel, which may be pickled with its attributes, nor with it as a key: its class may forbid that.
    if id(channel) not in _stored_ids:
        finalize(channel, _stored_ids.pop, id(channel), None).atexit = False
    _stored_ids[id(channel)] = ids


def registered_connections(channel: Any) -> list[tuple[str | None, MessageQueueListener, Queue]]:
    """Id, listener and queue of each connection registered with a channel; on eric-sse 2.0 the id is None."""
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
    """A shallow copy of a channel without its connections, which are stored in rows of their own."""
    bare: Any = copy.copy(channel)
    bare._AbstractChannel__connection_manager = _ConnectionManager(channel.id)
    return cast(AbstractChannel, bare)
