"""Makes a process watch for the pushes of other processes."""

from __future__ import annotations

from contextlib import suppress

from eric_sse.exception import NoMessagesException

from eric_sse_sql import BlockingSqlQueue, Database

WATCHER_START_SECONDS = 1.0


def watch_for_pushes(database: Database) -> None:
    """Start the thread of a database that watches for pushes: a blocking pop starts it, and it stays on afterwards."""
    with suppress(NoMessagesException):
        BlockingSqlQueue(database).pop(timeout=WATCHER_START_SECONDS)
