"""Measures the streams of ``SqlSSEChannel``: idle, across processes, under load, and after failures."""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.harness.figures import OURS
from benchmarks.harness.goals import REDIS_STREAM
from benchmarks.harness.suite import Suite
from benchmarks.peers.stream_peers import stream_peers
from benchmarks.streams.idle_streams import idle
from benchmarks.streams.latency import STREAMS, latency
from benchmarks.streams.load import DISPATCHERS, RATE, load
from benchmarks.streams.notify_cost import notify_cost
from benchmarks.streams.recovery import recovery


@dataclass(frozen=True)
class Sizes:
    """How many streams, messages and seconds each operation uses.

    :param repetition_seconds: how long the load operation waits for messages that are delivered twice
    :param recovery_intervals: seconds between two messages, or two interruptions
    """

    idle_streams: int = 1_000
    idle_seconds: float = 10
    latencies: int = 500
    loaded_streams: int = 1_000
    load_seconds: int = 30
    repetition_seconds: float = 3
    notify_clients: int = 8
    notify_rounds: int = 4
    notify_seconds: float = 2
    recoveries: int = 10
    recovery_intervals: tuple[float, float] = (1.0, 2.5)


QUICK = Sizes(idle_seconds=5, latencies=100, load_seconds=5, notify_rounds=2, notify_seconds=1, recoveries=4)
SMOKE = Sizes(
    idle_streams=20,
    idle_seconds=0.5,
    latencies=10,
    loaded_streams=20,
    load_seconds=1,
    repetition_seconds=0.1,
    notify_clients=2,
    notify_rounds=1,
    notify_seconds=0.2,
    recoveries=1,
    recovery_intervals=(0.1, 0.2),
)


SUITE = Suite(
    name="streams",
    title="Streams across processes",
    legend=f"""\
"{OURS}" is the `message_stream` of `SqlSSEChannel` on `SqlQueue(Database(url))`. "{REDIS_STREAM}" is that of eric-sse
on eric-redis-queues, which polls without a pause: it is measured in the same run, but not at the same time, since it
uses a whole core. The dispatching process is never the receiving one. A latency is the time from before the dispatch to
the delivery; the first one includes a new connection. The statements of idle streams are those that go through the
engine; besides, the watching thread asks SQLite for `PRAGMA data_version` every 7 ms. Where many processes take part,
they and servers run on any core.""",
    peers_legend="",
    contenders=(OURS, REDIS_STREAM),
    sizes={"full": Sizes(), "quick": QUICK, "smoke": SMOKE},
    amount=lambda sizes: (
        f"""\
Idle streams for {sizes.idle_seconds:g} seconds; {sizes.latencies:,} messages at random moments to {STREAMS} streams;
{DISPATCHERS} processes that dispatch {RATE} messages per second in all for {sizes.load_seconds} seconds to random
streams of {sizes.loaded_streams:,}; {sizes.notify_rounds} rounds of pushes for {sizes.notify_seconds:g} seconds each,
in turns; {sizes.recoveries} messages for each kind of failure."""
    ),
    peers=stream_peers,
    operations={
        "idle": idle,
        "latency": latency,
        "load": load,
        "notify": notify_cost,
        "recovery": recovery,
    },
)
