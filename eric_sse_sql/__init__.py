"""SQL persistence for eric-sse: channels, connections, listeners, queues and messages in Postgres or SQLite."""

from eric_sse_sql.codec import PickleCodec
from eric_sse_sql.database import Database
from eric_sse_sql.queues import SqlQueue
from eric_sse_sql.repositories import (
    ChannelRepository,
    ConnectionRepository,
    ListenerRepository,
    QueueRepository,
)
from eric_sse_sql.storage import SqlStorageEngine

__all__ = [
    "ChannelRepository",
    "ConnectionRepository",
    "Database",
    "ListenerRepository",
    "PickleCodec",
    "QueueRepository",
    "SqlQueue",
    "SqlStorageEngine",
]
