"""Measures the time from a dispatch in one process to the delivery in another."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from functools import partial
from typing import Any

from benchmarks.harness import goals
from benchmarks.harness.cpu_affinity import on_any_core
from benchmarks.harness.figures import OURS, Figure
from benchmarks.harness.suite import Bench
from benchmarks.harness.worker_processes import run_in_processes
from benchmarks.streams.receiver import Arrivals, dispatch_at_random, percentile, receive
from benchmarks.streams.stream_locations import SqlStreams, StreamsLocation

STREAMS = 5
INTERVALS = 0.005, 0.055  # seconds between two messages
DEADLINE_SECONDS = 60  # for the last message to arrive


def latency(bench: Bench) -> Iterator[Figure]:
    """Latency of eric_sse_sql, then of the peers: a peer that polls without a pause would take a core from the rest."""
    with ExitStack() as stack:
        backend = stack.enter_context(bench.backend.for_many_processes())
        contenders: Mapping[str, StreamsLocation] = {OURS: SqlStreams(backend.create()), **bench.peers}
        arrivals = {name: _arrivals(streams, bench.sizes.latencies) for name, streams in contenders.items()}
    database, goals_here = bench.backend.name, goals.LATENCY[bench.backend.name]
    for percent in (50, 99, 100):
        milliseconds = {name: 1e3 * percentile(each.latencies, percent) for name, each in arrivals.items()}
        what = "longest" if percent == 100 else f"p{percent}"
        yield Figure(
            database, f"dispatch to delivery: {what}", goal=goals_here.get(percent), values=milliseconds, unit="ms"
        )
    cpu = {name: 100 * each.cpu for name, each in arrivals.items()}
    yield Figure(database, "dispatch to delivery: CPU of the receiving process", values=cpu, unit="%")


def _arrivals(streams: StreamsLocation, samples: int) -> Arrivals:
    seconds = samples * INTERVALS[1] + DEADLINE_SECONDS
    tasks: list[Any] = [
        partial(receive, streams, STREAMS, samples, seconds),
        partial(dispatch_at_random, streams, STREAMS, samples, INTERVALS),
    ]
    with on_any_core():
        arrivals: Arrivals = run_in_processes(tasks)[0]
    return arrivals
