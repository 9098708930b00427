"""Measures what idle streams cost: statements and CPU time while nothing is dispatched."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import event

from benchmarks.harness import goals
from benchmarks.harness.figures import OURS, Figure
from benchmarks.harness.locations import Location, close
from benchmarks.harness.suite import Bench
from benchmarks.harness.worker_processes import run_in_process
from benchmarks.streams.receiver import streaming
from benchmarks.streams.stream_locations import with_listeners
from eric_sse_sql import SqlQueue, SqlSSEChannel


@dataclass(frozen=True)
class IdleCost:
    """What a process did while its streams were idle.

    :param statements: per minute
    :param cpu: the share of a core
    """

    statements: float
    cpu: float


def idle(bench: Bench) -> Iterator[Figure]:
    """Many idle streams in one process."""
    count = bench.sizes.idle_streams
    cost = run_in_process(_measure, bench.backend.create(), count, bench.sizes.idle_seconds)
    database, what = bench.backend.name, f"{count:,} idle streams"
    yield Figure(
        database,
        f"{what}: statements of their process",
        goal=goals.STATEMENTS_OF_IDLE,
        values={OURS: cost.statements},
        unit="/min",
    )
    yield Figure(
        database, f"{what}: CPU of their process", goal=goals.CPU_OF_IDLE, values={OURS: 100 * cost.cpu}, unit="%"
    )


def _measure(location: Location, count: int, seconds: float) -> IdleCost:
    return asyncio.run(_measure_streams(location, count, seconds))


async def _measure_streams(location: Location, count: int, seconds: float) -> IdleCost:
    database = location.open()
    statements = 0

    def count_statement(*arguments: Any) -> None:
        nonlocal statements
        statements += 1

    event.listen(database.engine, "before_cursor_execute", count_statement)
    channel = with_listeners(SqlSSEChannel(), count, lambda queue_id: SqlQueue(database, queue_id))
    async with streaming(channel, _fail_on_message):
        if not statements:
            raise AssertionError("no stream has asked the database for its messages")
        statements = 0
        began, cpu = time.monotonic(), time.process_time()
        await asyncio.sleep(seconds)
        took, cpu, counted = time.monotonic() - began, time.process_time() - cpu, statements
    close(database)
    return IdleCost(counted * 60 / took, cpu / took)


def _fail_on_message(listener_id: str, payload: Mapping[str, Any]) -> None:
    raise AssertionError(f"{listener_id} was sent {payload}")
