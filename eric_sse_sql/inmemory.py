"""The in-memory classes of eric-sse 2.0, each on a SQLite database of its own in memory.

They behave as the repositories on a file or a server: objects are stored as copies, and an object that can't be stored
there is refused here too. The tables are made at once. No other program can write to them, so every class is allowed.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, TypeVar

from eric_sse.connection import Connection
from eric_sse.entities import AbstractChannel
from eric_sse.queues import Queue

from eric_sse_sql.arguments import validate_type
from eric_sse_sql.codec import PickleCodec
from eric_sse_sql.database import Database
from eric_sse_sql.models import Base
from eric_sse_sql.repositories import ChannelRepository, ConnectionRepository, QueueRepository
from eric_sse_sql.repositories.store import record_of
from eric_sse_sql.storage import SqlStorageEngine

__all__ = [
    "InMemoryChannelRepository",
    "InMemoryConnectionRepository",
    "InMemoryQueueRepository",
    "InMemoryStorage",
]

Value = TypeVar("Value")


def _items(what: str, items: dict[str, Value] | None) -> Iterable[tuple[str, Value]]:
    return () if items is None else validate_type(what, items, dict, "write {id: object}").items()


class InMemoryStorage(SqlStorageEngine):
    """A storage engine in memory.

    :param objects: values to begin with, by key
    """

    def __init__(self, objects: dict[str, Any] | None = None) -> None:
        database = Database("sqlite://", codec=PickleCodec(unrestricted=True))
        Base.metadata.create_all(database.engine)
        super().__init__(database)
        for key, value in _items("objects", objects):
            self.upsert(key, value)


class InMemoryConnectionRepository(ConnectionRepository):
    """Connections in memory.

    :param connections: connections to begin with, by id; they belong to no channel yet
    """

    def __init__(self, connections: dict[str, Connection] | None = None) -> None:
        super().__init__(InMemoryStorage())
        for connection_id, connection in _items("connections", connections):
            self._store.persist_connection(record_of(connection)._replace(id=connection_id), None)


class InMemoryChannelRepository(ChannelRepository):
    """Channels in memory.

    :param channels: channels to begin with, by id
    """

    def __init__(self, channels: dict[str, AbstractChannel] | None = None) -> None:
        super().__init__(InMemoryStorage())
        for channel_id, channel in _items("channels", channels):
            self._persist(channel_id, channel)


class InMemoryQueueRepository(QueueRepository):
    """Queues in memory.

    :param queues: queues to begin with, by id
    """

    def __init__(self, queues: dict[str, Queue] | None = None) -> None:
        super().__init__(InMemoryStorage())
        for queue_id, queue in _items("queues", queues):
            self._storage.upsert(queue_id, validate_type("a queue", queue, Queue))
