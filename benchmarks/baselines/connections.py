"""Opens the baseline of a database."""

from __future__ import annotations

from benchmarks.baselines.raw_channels import RawChannels, RawPostgresChannels, RawSqliteChannels
from benchmarks.baselines.raw_queues import RawPostgresQueue, RawQueue, RawSqliteQueue
from benchmarks.baselines.raw_storage import RawPostgres, RawSqlite, RawStore
from benchmarks.harness.locations import Location


def raw_store(location: Location) -> RawStore:
    """The raw driver as a store of values by key."""
    if location.is_sqlite:
        return RawSqlite(location.connect_sqlite())
    return RawPostgres(location.connect_postgres())


def raw_queue(location: Location, queue_id: str) -> RawQueue:
    """The raw driver as a queue."""
    if location.is_sqlite:
        return RawSqliteQueue(location.connect_sqlite(), queue_id)
    return RawPostgresQueue(location.connect_postgres(), queue_id)


def raw_channels(location: Location) -> RawChannels:
    """The raw driver as a store of channels."""
    if location.is_sqlite:
        return RawSqliteChannels(location.connect_sqlite())
    return RawPostgresChannels(location.connect_postgres())
