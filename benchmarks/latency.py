"""How long a message takes from its dispatch in one process to its delivery in another."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from functools import partial

from benchmarks import goals
from benchmarks.figures import OURS, Figure
from benchmarks.placement import on_any_core
from benchmarks.processes import together
from benchmarks.receiving import Arrivals, dispatch_at_random, percentile, receive
from benchmarks.stream_peers import SqlStreams, Streams
from benchmarks.suite import Bench

STREAMS = 5
INTERVALS = 0.005, 0.055  # seconds between two messages
PATIENCE_SECONDS = 60


def latency(bench: Bench) -> Iterator[Figure]:
    """Ours, then upstream's: that one asks all the time, and would take a core from ours."""
    with ExitStack() as stack:
        backend = stack.enter_context(bench.backend.for_many_processes())
        contenders: Mapping[str, Streams] = {OURS: SqlStreams(backend.create()), **bench.peers}
        found = {name: _arrivals(streams, bench.sizes.latencies) for name, streams in contenders.items()}
    database, goals_here = bench.backend.name, goals.LATENCY[bench.backend.name]
    for percent in (50, 99, 100):
        milliseconds = {name: 1e3 * percentile(each.latencies, percent) for name, each in found.items()}
        what = "the longest" if percent == 100 else f"p{percent}"
        yield Figure(
            database, f"dispatch to delivery: {what}", goal=goals_here.get(percent), values=milliseconds, unit="ms"
        )
    cpu = {name: 100 * each.cpu for name, each in found.items()}
    yield Figure(database, "dispatch to delivery: CPU of the receiving process", values=cpu, unit="%")


def _arrivals(streams: Streams, samples: int) -> Arrivals:
    seconds = samples * INTERVALS[1] + PATIENCE_SECONDS
    with on_any_core():
        arrivals, _ = together(
            [
                partial(receive, streams, STREAMS, samples, seconds),
                partial(dispatch_at_random, streams, STREAMS, samples, INTERVALS),
            ]
        )
    return arrivals
