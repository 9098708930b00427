"""Measures what notifications cost the producers on Postgres."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from benchmarks.harness import goals
from benchmarks.harness.cpu_affinity import on_any_core
from benchmarks.harness.figures import OURS, Figure
from benchmarks.harness.locations import Location
from benchmarks.harness.sample_data import DISTINCT, new_message
from benchmarks.harness.suite import Bench
from benchmarks.harness.worker_processes import run_in_processes, wait_until_all_ready
from benchmarks.streams.receiver import START_SECONDS
from benchmarks.streams.watching import watch_for_pushes
from eric_sse_sql import SqlQueue


def notify_cost(bench: Bench) -> Iterator[Figure]:
    """Many clients push, in turns with and without notifications, while one process listens. Only on Postgres."""
    if bench.backend.name != goals.POSTGRES:
        return
    sizes = bench.sizes
    rates: dict[bool, list[float]] = {True: [], False: []}
    with bench.backend.for_many_processes() as backend, on_any_core():
        order = [True, False]
        for _ in range(sizes.notify_rounds):
            for notifies in order:
                rate = _rate(backend.create(), notifies, sizes.notify_clients, sizes.notify_seconds)
                rates[notifies].append(rate)
            order.reverse()
    medians = {notifies: statistics.median(each) for notifies, each in rates.items()}
    what = f"{sizes.notify_clients} clients push"
    for words, notifies in (("with", True), ("without", False)):
        yield Figure(bench.backend.name, f"{what}, {words} notifications", values={OURS: medians[notifies]}, unit="/s")
    ratio = medians[True] / medians[False]
    yield Figure(bench.backend.name, f"{what}: with to without", goal=goals.NOTIFYING, values={OURS: ratio})


def _rate(location: Location, notifies: bool, clients: int, seconds: float) -> float:
    with _listening(location):
        return sum(run_in_processes([partial(_push, location, notifies, seconds, n) for n in range(clients)]))


@contextmanager
def _listening(location: Location) -> Iterator[None]:
    """This process listens for notifications while the block runs."""
    with location.open() as database:
        watch_for_pushes(database)
        yield


def _push(location: Location, notifies: bool, seconds: float, client: int) -> float:
    """Push to a queue of this client, and return the rate in messages per second."""
    database = location.open() if notifies else location.open_without_notifications()
    queue, messages, count = SqlQueue(database, f"queue-{client}"), [new_message(n) for n in range(DISTINCT)], 0
    queue.push(messages[0])
    wait_until_all_ready(START_SECONDS)
    began = time.monotonic()
    while time.monotonic() < began + seconds:
        queue.push(messages[count % DISTINCT])
        count += 1
    rate = count / (time.monotonic() - began)
    database.close()
    return rate
