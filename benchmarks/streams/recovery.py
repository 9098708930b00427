"""Measures the time to delivery when something fails: a lost notification, a lost connection, a crashed server."""

from __future__ import annotations

import logging
import multiprocessing
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from eric_sse.prefabs import SSEChannel

from benchmarks.harness import goals
from benchmarks.harness.backends import Backend
from benchmarks.harness.cpu_affinity import on_any_core
from benchmarks.harness.figures import OURS, Figure, Goal
from benchmarks.harness.locations import Location
from benchmarks.harness.suite import Bench
from benchmarks.harness.worker_processes import run_in_processes
from benchmarks.streams.interruptions import LISTEN_SECONDS, Interruption, crashed, frozen, interrupt, killed
from benchmarks.streams.receiver import START_SECONDS, Arrivals, dispatch_at_random, receive
from benchmarks.streams.stream_locations import SqlStreams, with_listeners
from benchmarks.streams.watching import watch_for_pushes
from eric_sse_sql import SqlQueue, SqlSSEChannel

STREAMS = 5
DEADLINE_SECONDS = 60  # for the last message to arrive

_INTERRUPTIONS: dict[str, tuple[Interruption, Goal | None]] = {
    "listening connection killed": (killed, goals.RECOVERY),
    "listening connection frozen": (frozen, None),
    "server crashed and back": (crashed, goals.RECOVERY),
}

_PER_SECOND = {"s": 1, "ms": 1000}

Receive = Callable[[Location, int, float], Arrivals]


def recovery(bench: Bench) -> Iterator[Figure]:
    """Deliver to a forked child; and on Postgres, deliver without notifications and with interrupted listeners."""
    sizes = bench.sizes
    with bench.backend.for_many_processes() as backend, on_any_core():
        latencies = _deliver(backend, sizes, _receive_in_child).latencies
        yield from _figures(backend, "dispatch to delivery in a forked child", latencies, unit="ms")
        if backend.name != goals.POSTGRES:
            return
        latencies = _deliver(backend, sizes, _receive, notifies=False).latencies
        yield from _figures(backend, "notification lost, until the delivery", latencies, goals.RECOVERY)
        for what, (interruption, goal) in _INTERRUPTIONS.items():
            latencies, listening = _interrupted(backend, sizes, interruption)
            yield from _figures(backend, f"{what}, until the delivery", latencies, goals.RECOVERY)
            yield from _figures(backend, f"{what}, until another listens", listening, goal)


def _figures(
    backend: Backend, what: str, seconds: Sequence[float], goal: Goal | None = None, unit: str = "s"
) -> Iterator[Figure]:
    times = [each * _PER_SECOND[unit] for each in seconds]
    yield Figure(backend.name, f"{what}: median", values={OURS: statistics.median(times)}, unit=unit)
    yield Figure(backend.name, f"{what}: longest", goal=goal, values={OURS: max(times)}, unit=unit)


def _deliver(backend: Backend, sizes: Any, receive: Receive, notifies: bool = True) -> Arrivals:
    """Dispatch messages from one process and receive them in another."""
    location, samples = backend.create(), sizes.recoveries
    tasks: list[Callable[[], Any]] = [
        partial(receive, location, samples, _deadline(sizes)),
        partial(dispatch_at_random, SqlStreams(location, notifies), STREAMS, samples, sizes.recovery_intervals),
    ]
    arrivals: Arrivals = run_in_processes(tasks)[0]
    return arrivals


def _interrupted(backend: Backend, sizes: Any, by: Interruption) -> tuple[Sequence[float], Sequence[float]]:
    """The times until the delivery, and until another connection listens, of each interruption."""
    location, samples = backend.create(), sizes.recoveries
    tasks: list[Callable[[], Any]] = [
        partial(_receive, location, samples + 1, _deadline(sizes, LISTEN_SECONDS)),
        partial(interrupt, location, STREAMS, samples, sizes.recovery_intervals, by),
    ]
    arrivals, listening = run_in_processes(tasks)
    return arrivals.latencies[:samples], listening


def _deadline(sizes: Any, extra_seconds: float = 0) -> float:
    _, longest = sizes.recovery_intervals
    return sizes.recoveries * (longest + extra_seconds) + DEADLINE_SECONDS


@dataclass(frozen=True)
class _OpenStreams:
    """Streams that this process, or its parent, has already opened."""

    channel: SSEChannel

    def open(self, count: int) -> SSEChannel:
        return self.channel


def _receive(location: Location, samples: int, seconds: float) -> Arrivals:
    return _receive_quietly(SqlStreams(location).open(STREAMS), samples, seconds)


def _receive_quietly(channel: SSEChannel, samples: int, seconds: float) -> Arrivals:
    logging.getLogger("eric_sse_sql").setLevel(logging.ERROR)  # hides the warning of each interruption
    return receive(_OpenStreams(channel), STREAMS, samples, seconds, may_fail=True)


def _receive_in_child(location: Location, samples: int, seconds: float) -> Arrivals:
    """Receive in a child that is forked while its parent watches for pushes."""
    database = location.open()
    channel = with_listeners(SqlSSEChannel(), STREAMS, lambda queue_id: SqlQueue(database, queue_id))
    watch_for_pushes(database)
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=lambda: sender.send(_receive_quietly(channel, samples, seconds)))
    child.start()
    sender.close()
    if not receiver.poll(seconds + START_SECONDS):
        child.kill()
        raise AssertionError("the forked child does not answer")
    arrivals: Arrivals = receiver.recv()
    child.join()
    return arrivals
