"""Measures the streams of ``SqlSSEChannel``: at rest, across processes, under load, and when something is lost."""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.figures import OURS
from benchmarks.goals import REDIS_STREAM
from benchmarks.idling import idle
from benchmarks.latency import STREAMS, latency
from benchmarks.load import DISPATCHERS, RATE, load
from benchmarks.notifying import notifying
from benchmarks.recovery import recovery
from benchmarks.stream_peers import stream_peers
from benchmarks.suite import Suite


@dataclass(frozen=True)
class Sizes:
    """How long each thing is done, and how often."""

    idle_streams: int = 1_000
    idle_seconds: int = 10
    latencies: int = 500
    loaded_streams: int = 1_000
    load_seconds: int = 30
    notify_rounds: int = 4
    notify_seconds: int = 2
    recoveries: int = 10


QUICK = Sizes(idle_seconds=5, latencies=100, load_seconds=5, notify_rounds=2, notify_seconds=1, recoveries=4)


SUITE = Suite(
    name="streams",
    title="Streams across processes",
    legend=f"""\
"{OURS}" is the `message_stream` of `SqlSSEChannel` on `SqlQueue(Database(url))`, and "{REDIS_STREAM}" that of eric-sse
on eric-redis-queues, which asks all the time, in the same run, but not at the same time: it takes a core. Who
dispatches is another process than who receives. A latency is the time from before the dispatch to the delivery; the
first one holds the making of a connection. The statements of idle streams are those that go through the engine; beside
them, the thread that looks for all asks SQLite for `PRAGMA data_version` every 7 ms, and a Postgres connection that was
told nothing whether it is alive, as often as it looks. Where many processes take part, they and
servers run on any core.""",
    peers_legend="",
    contenders=(OURS, REDIS_STREAM),
    sizes=Sizes(),
    quick=QUICK,
    amount=lambda sizes: (
        f"""\
Idle streams for {sizes.idle_seconds} seconds; {sizes.latencies:,} messages at random moments to {STREAMS} streams;
{DISPATCHERS} processes that dispatch {RATE} messages a second in all for {sizes.load_seconds} seconds to any of
{sizes.loaded_streams:,} streams; {sizes.notify_rounds} rounds of pushing for {sizes.notify_seconds} seconds each, in
turns; {sizes.recoveries} messages for each thing that is lost."""
    ),
    peers=stream_peers,
    operations={
        "idle": idle,
        "latency": latency,
        "load": load,
        "notify": notifying,
        "recovery": recovery,
    },
)
