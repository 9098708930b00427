"""The repositories of eric-sse, and the data mapper that they share.

The names of eric-sse 2.1 are in ``eric_sse_21``, which needs that release.
"""

from eric_sse_sql.repositories.eric_sse_20 import (
    ChannelRepository,
    ConnectionRepository,
    ListenerRepository,
    QueueRepository,
)

__all__ = ["ChannelRepository", "ConnectionRepository", "ListenerRepository", "QueueRepository"]
