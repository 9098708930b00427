"""Expiry: deletes the events that the log of a channel has kept long enough, a bounded page at a time."""

from __future__ import annotations

from eric_sse_sql.errors import repository_errors
from eric_sse_sql.execution.executor import Executor
from eric_sse_sql.sql import events

EXPIRED_PAGE = 1000  # events that one statement deletes


def expire(executor: Executor, channel_id: str) -> int:
    """Delete a page of expired events of a log. How many; where it is a whole page, there may be more."""
    with repository_errors("the events can't be expired"), executor.transactions.transaction():
        executor.run(events.LOCK_LOG, channel_id=channel_id)
        deleted = executor.change(events.EXPIRE, channel_id=channel_id, count=EXPIRED_PAGE)
        if deleted:
            executor.run(events.TRIM, channel_id=channel_id)
    return deleted
