"""How long it takes until a message is delivered, whatever happens to those who would have told of it."""

from __future__ import annotations

import logging
import multiprocessing
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from eric_sse.prefabs import SSEChannel

from benchmarks import goals
from benchmarks.contenders import Location
from benchmarks.databases import Backend
from benchmarks.figures import OURS, Figure, Goal
from benchmarks.interruptions import LISTEN_SECONDS, Interruption, crashed, frozen, interrupt, killed
from benchmarks.placement import on_any_core
from benchmarks.processes import together
from benchmarks.receiving import START_SECONDS, Arrivals, dispatch_at_random, receive
from benchmarks.stream_peers import SqlStreams
from benchmarks.suite import Bench

STREAMS = 5
INTERVALS = 1.0, 2.5  # seconds between two messages, or two interruptions
PATIENCE_SECONDS = 60

_INTERRUPTIONS: dict[str, tuple[Interruption, Goal | None]] = {
    "listening connection killed": (killed, goals.RECOVERY),
    "listening connection frozen": (frozen, None),
    "server crashed and back": (crashed, goals.RECOVERY),
}

_IN_SECOND = {"s": 1, "ms": 1000}

Receive = Callable[[Location, int, float], Arrivals]


def recovery(bench: Bench) -> Iterator[Figure]:
    """Messages from another process: to a forked child, beside a callback that raises; and, on Postgres, those that
    nobody was told of, to listeners that are alive and to those that are interrupted."""
    samples = bench.sizes.recoveries
    with bench.backend.for_many_processes() as backend, on_any_core():
        told = partial(_dispatched, backend, samples)
        yield from _figures(
            backend, "dispatch to delivery in a forked child", told(_receive_in_child).latencies, unit="ms"
        )
        yield from _figures(
            backend, "dispatch to delivery beside a callback that raises", told(_receive_beside).latencies, unit="ms"
        )
        if backend.name != goals.POSTGRES:
            return
        untold = told(_receive, notifies=False).latencies
        yield from _figures(backend, "notification lost, until the delivery", untold, goals.RECOVERY)
        for what, (interruption, goal) in _INTERRUPTIONS.items():
            latencies, listening = _interrupted(backend, samples, interruption)
            yield from _figures(backend, f"{what}, until the delivery", latencies, goals.RECOVERY)
            yield from _figures(backend, f"{what}, until another listens", listening, goal)


def _figures(
    backend: Backend, what: str, seconds: Sequence[float], goal: Goal | None = None, unit: str = "s"
) -> Iterator[Figure]:
    times = [each * _IN_SECOND[unit] for each in seconds]
    yield Figure(backend.name, f"{what}: median", values={OURS: statistics.median(times)}, unit=unit)
    yield Figure(backend.name, f"{what}: the longest", goal=goal, values={OURS: max(times)}, unit=unit)


def _dispatched(backend: Backend, samples: int, receive: Receive, notifies: bool = True) -> Arrivals:
    location = backend.create()
    sender = partial(dispatch_at_random, SqlStreams(location, notifies), STREAMS, samples, INTERVALS)
    arrivals, _ = together([partial(receive, location, samples, _seconds(samples)), sender])
    return arrivals


def _interrupted(backend: Backend, samples: int, by: Interruption) -> tuple[Sequence[float], Sequence[float]]:
    location = backend.create()
    seconds = _seconds(samples, LISTEN_SECONDS)
    tasks: list[Callable[[], Any]] = [
        partial(_receive, location, samples + 1, seconds),
        partial(interrupt, location, STREAMS, samples, INTERVALS, by),
    ]
    arrivals, listening = together(tasks)
    return arrivals.latencies[:samples], listening


def _seconds(samples: int, beside: float = 0) -> float:
    return samples * (INTERVALS[1] + beside) + PATIENCE_SECONDS


@dataclass(frozen=True)
class _Opened:
    """Streams of this process, and of the children that it forks."""

    channel: SSEChannel

    def open(self, count: int) -> SSEChannel:
        return self.channel


def _receive(location: Location, samples: int, seconds: float) -> Arrivals:
    return _quietly(SqlStreams(location).open(STREAMS), samples, seconds)


def _quietly(channel: SSEChannel, samples: int, seconds: float) -> Arrivals:
    logging.getLogger("eric_sse_sql").setLevel(logging.ERROR)  # what is interrupted, or raises, would say so each time
    return receive(_Opened(channel), STREAMS, samples, seconds)


def _receive_beside(location: Location, samples: int, seconds: float) -> Arrivals:
    """Receive, while each queue has a callback that raises, every time."""
    channel = SqlStreams(location).open(STREAMS)
    for connection in channel.get_connections():
        _subscribe_raising(connection.queue.gate)
    return _quietly(channel, samples, seconds)


def _subscribe_raising(gate: Any) -> None:
    def fail() -> None:
        _subscribe_raising(gate)  # for this one is called no more
        raise ValueError

    gate.subscribe(fail)


def _receive_in_child(location: Location, samples: int, seconds: float) -> Arrivals:
    """Receive in a child that is forked while the wake-ups of the parent are on."""
    channel = SqlStreams(location).open(STREAMS)
    for connection in channel.get_connections():
        connection.queue.database.wakeups.start()
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=lambda: sender.send(_quietly(channel, samples, seconds)))
    child.start()
    sender.close()
    if not receiver.poll(seconds + START_SECONDS):
        child.kill()
        raise AssertionError("the child hangs")
    arrivals: Arrivals = receiver.recv()
    child.join()
    return arrivals
