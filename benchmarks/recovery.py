"""How long it takes until a message is delivered that nobody was told of."""

from __future__ import annotations

import logging
import random
import statistics
import time
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import psycopg

from benchmarks import goals
from benchmarks.contenders import Location
from benchmarks.databases import conninfo
from benchmarks.figures import OURS, Figure
from benchmarks.placement import on_any_core
from benchmarks.processes import await_others, together
from benchmarks.receiving import START_SECONDS, Arrivals, dispatch_at_random, receive, stamped
from benchmarks.stream_peers import SqlStreams, listener_id
from benchmarks.suite import Bench

STREAMS = 5
INTERVALS = 1.0, 2.5  # seconds between two messages, or two interruptions
LISTEN_SECONDS = 10  # which a new listener has to appear
PATIENCE_SECONDS = 60

# What listens has said so last, or has been asked whether it is alive.
_LISTENERS = """\
SELECT pid FROM pg_stat_activity
WHERE datname = current_database() AND pid <> pg_backend_pid() AND (query LIKE 'LISTEN %' OR query = 'SELECT 1')"""


def recovery(bench: Bench) -> Iterator[Figure]:
    """Messages without notifications, to listeners that are alive and to those whose connection is killed: on Postgres
    alone, and from another process."""
    if bench.backend.name != goals.POSTGRES:
        return
    samples = bench.sizes.recoveries
    with bench.backend.for_many_processes() as backend, on_any_core():
        location = backend.create()
        silent = SqlStreams(location, notifies=False)
        dropped, _ = _beside(location, samples, partial(dispatch_at_random, silent, STREAMS, samples, INTERVALS))
        killed, listening = _beside(location, samples, partial(_interrupt, location, samples))
    yield from _figures("notification lost, until the delivery", dropped.latencies)
    yield from _figures("listening connection killed, until the delivery", killed.latencies)
    yield from _figures("listening connection killed, until another listens", listening)


def _figures(what: str, seconds: Sequence[float]) -> Iterator[Figure]:
    yield Figure(goals.POSTGRES, f"{what}: median", values={OURS: statistics.median(seconds)}, unit="s")
    yield Figure(goals.POSTGRES, f"{what}: the longest", goal=goals.RECOVERY, values={OURS: max(seconds)}, unit="s")


def _beside(location: Location, samples: int, disturb: Any) -> tuple[Arrivals, Any]:
    seconds = samples * (INTERVALS[1] + LISTEN_SECONDS) + PATIENCE_SECONDS
    arrivals, found = together([partial(_receive, location, samples, seconds), disturb])
    return arrivals, found


def _receive(location: Location, samples: int, seconds: float) -> Arrivals:
    logging.getLogger("eric_sse_sql").setLevel(logging.ERROR)  # what is interrupted would say so each time
    return receive(SqlStreams(location), STREAMS, samples, seconds)


def _interrupt(location: Location, samples: int) -> list[float]:
    """Kill what listens, dispatch without a notification, and see how long it takes until something listens again."""
    channel = SqlStreams(location, notifies=False).open(STREAMS)
    times = []
    with psycopg.connect(conninfo(location.url), autocommit=True) as admin:
        await_others(START_SECONDS)
        for number in range(samples):
            time.sleep(random.uniform(*INTERVALS))
            (before,) = _listeners(admin)
            began = time.monotonic()
            admin.execute("SELECT pg_terminate_backend(%s)", [before])
            channel.dispatch(listener_id(random.randrange(STREAMS)), stamped(number))
            while not _listeners(admin) - {before}:
                if time.monotonic() > began + LISTEN_SECONDS:
                    raise AssertionError("nothing listens again")
                time.sleep(0.002)
            times.append(time.monotonic() - began)
    return times


def _listeners(admin: psycopg.Connection[Any]) -> set[int]:
    return {pid for (pid,) in admin.execute(_LISTENERS)}
