"""What it costs those who push to tell the other processes."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from functools import partial

import psycopg

from benchmarks import goals
from benchmarks.contenders import Location
from benchmarks.databases import conninfo
from benchmarks.figures import OURS, Figure
from benchmarks.placement import on_any_core
from benchmarks.processes import await_others, together
from benchmarks.receiving import START_SECONDS
from benchmarks.suite import Bench
from benchmarks.values import DISTINCT, new_message
from eric_sse_sql import SqlQueue
from eric_sse_sql.announcements import channel_of

CLIENTS = 8


def notifying(bench: Bench) -> Iterator[Figure]:
    """Many clients push, in turns with and without notifications, while one connection listens: on Postgres alone."""
    if bench.backend.name != goals.POSTGRES:
        return
    rates: dict[bool, list[float]] = {True: [], False: []}
    with bench.backend.for_many_processes() as backend, on_any_core():
        order = [True, False]
        for _ in range(bench.sizes.notify_rounds):
            for notifies in order:
                rates[notifies].append(_rate(backend.create(), notifies, bench.sizes.notify_seconds))
            order.reverse()
    medians = {notifies: statistics.median(each) for notifies, each in rates.items()}
    what = f"{CLIENTS} clients push"
    for notifies, rate in medians.items():
        words = "with" if notifies else "without"
        yield Figure(bench.backend.name, f"{what}, {words} notifications", values={OURS: rate}, unit="/s")
    ratio = medians[True] / medians[False]
    yield Figure(bench.backend.name, f"{what}: with to without", goal=goals.NOTIFYING, values={OURS: ratio})


def _rate(location: Location, notifies: bool, seconds: float) -> float:
    with psycopg.connect(conninfo(location.url), autocommit=True) as listening:
        listening.execute(f'LISTEN "{channel_of(None)}"')
        pushed = together([partial(_push, location, notifies, seconds, number) for number in range(CLIENTS)])
    return sum(pushed)


def _push(location: Location, notifies: bool, seconds: float, client: int) -> float:
    """How many messages a second this client pushes."""
    database = location.open() if notifies else location.open_without_notifications()
    queue, messages, count = SqlQueue(database, f"queue-{client}"), [new_message(n) for n in range(DISTINCT)], 0
    queue.push(messages[0])
    await_others(START_SECONDS)
    began = time.monotonic()
    while time.monotonic() < began + seconds:
        queue.push(messages[count % DISTINCT])
        count += 1
    rate = count / (time.monotonic() - began)
    database.close()
    return rate
