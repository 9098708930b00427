"""SQL persistence for eric-sse: channels, connections, listeners, queues and messages in Postgres or SQLite."""

from typing import TYPE_CHECKING

from eric_sse_sql.codec import PickleCodec
from eric_sse_sql.contract import ERIC_SSE_2_0
from eric_sse_sql.database import Database
from eric_sse_sql.errors import OutcomeUnknown
from eric_sse_sql.queues import BlockingSqlQueue, SqlConnectionsFactory, SqlQueue
from eric_sse_sql.repositories import (
    ChannelRepository,
    ConnectionRepository,
    ListenerRepository,
    QueueRepository,
)
from eric_sse_sql.storage import SqlStorageEngine

__version__ = "0.2.0.dev0"

__all__ = [
    "BlockingSqlQueue",
    "ChannelRepository",
    "ConnectionRepository",
    "Database",
    "ListenerRepository",
    "OutcomeUnknown",
    "PickleCodec",
    "QueueRepository",
    "SqlConnectionsFactory",
    "SqlQueue",
    "SqlStorageEngine",
]

if TYPE_CHECKING or not ERIC_SSE_2_0:
    from eric_sse_sql.channels import SqlChannel, SqlSSEChannel
    from eric_sse_sql.repositories.eric_sse_21 import AbstractSqlChannelRepository, SqlSSEChannelRepository

    __all__ += ["AbstractSqlChannelRepository", "SqlChannel", "SqlSSEChannel", "SqlSSEChannelRepository"]
else:

    def __getattr__(name: str) -> object:
        if name in ("AbstractSqlChannelRepository", "SqlChannel", "SqlSSEChannel", "SqlSSEChannelRepository"):
            raise ImportError(
                f"{name} implements what eric-sse 2.1 asks for, and 2.0 is installed; run "
                "`pip install --upgrade eric-sse`, or use ChannelRepository"
            )
        raise AttributeError(f"module {__name__} has no attribute {name}")
