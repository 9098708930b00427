"""What streams cost while nothing is dispatched."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import event

from benchmarks import goals
from benchmarks.contenders import Location
from benchmarks.figures import OURS, Figure
from benchmarks.processes import apart
from benchmarks.receiving import streaming
from benchmarks.stream_peers import with_listeners
from benchmarks.suite import Bench
from eric_sse_sql import SqlQueue, SqlSSEChannel

LOOKING_THREAD = "eric_sse_sql wake-ups"


@dataclass(frozen=True)
class Idleness:
    """What a process did a minute."""

    looks: float
    statements: float
    cpu: float


def idle(bench: Bench) -> Iterator[Figure]:
    """Many streams in a process of their own, whose statements are counted."""
    count = bench.sizes.idle_streams
    found = apart(_idle, bench.backend.create(), count, bench.sizes.idle_seconds)
    database, what = bench.backend.name, f"{count:,} idle streams"
    yield Figure(
        database,
        f"{what}: statements of a stream",
        goal=goals.STATEMENTS_OF_IDLE,
        values={OURS: found.statements / count},
        unit="/min",
    )
    yield Figure(database, f"{what}: looks for all of them", values={OURS: found.looks}, unit="/min")
    yield Figure(
        database, f"{what}: CPU of their process", goal=goals.CPU_OF_IDLE, values={OURS: 100 * found.cpu}, unit="%"
    )


def _idle(location: Location, count: int, seconds: float) -> Idleness:
    return asyncio.run(_idleness(location, count, seconds))


async def _idleness(location: Location, count: int, seconds: float) -> Idleness:
    database = location.open()
    by_thread: Counter[str] = Counter()

    def counted(*arguments: Any) -> None:
        by_thread[threading.current_thread().name] += 1

    event.listen(database.engine, "before_cursor_execute", counted)
    channel = with_listeners(SqlSSEChannel(), count, lambda queue_id: SqlQueue(database, queue_id))
    async with streaming(channel, _nothing_comes):
        if sum(by_thread.values()) < count:
            raise AssertionError(f"only {sum(by_thread.values())} statements were counted: not every stream has looked")
        by_thread.clear()
        began, cpu = time.monotonic(), time.process_time()
        await asyncio.sleep(seconds)
        took, cpu, counts = time.monotonic() - began, time.process_time() - cpu, Counter(by_thread)
    database.close()
    looks = counts.pop(LOOKING_THREAD, 0)
    return Idleness(looks * 60 / took, sum(counts.values()) * 60 / took, cpu / took)


def _nothing_comes(listener_id: str, payload: Mapping[str, Any]) -> None:
    raise AssertionError(f"{listener_id} was sent {payload}")
