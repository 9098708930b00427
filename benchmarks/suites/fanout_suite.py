"""Measures how the cost of a channel grows with its listeners."""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.fanout.calls import calls
from benchmarks.fanout.live import live
from benchmarks.fanout.over_http import over_http
from benchmarks.fanout.quiet import RATE, topics
from benchmarks.fanout.returning import comeback, long_log
from benchmarks.harness.figures import OURS
from benchmarks.harness.goals import ASYNCIO
from benchmarks.harness.suite import Suite
from benchmarks.peers.fanout_peers import fanout_peers


@dataclass(frozen=True)
class Sizes:
    """How many listeners, streams, messages and seconds each operation uses.

    :param crowds: numbers of listeners, from few to many
    :param calls: how many times a call is timed
    :param streams: numbers of streams of a process: one, and then from few to many
    :param compared: those of them that are compared with asyncio and the peers
    :param pause_seconds: between two broadcasts, in which a process writes how far its streams are
    :param settle_seconds: until what earlier messages have caused is over
    :param topics: how many processes there are, each with a channel
    :param repetition_seconds: for which events that are delivered twice are waited for
    """

    crowds: tuple[int, ...] = (1, 1_000, 100_000)
    calls: int = 200
    streams: tuple[int, ...] = (1, 200, 1_000, 2_000, 10_000)
    compared: tuple[int, ...] = (1_000, 10_000)
    broadcasts: int = 9
    pause_seconds: float = 1.5
    settle_seconds: float = 2
    idle_seconds: float = 10
    latencies: int = 300
    topics: int = 16
    topic_streams: int = 10
    topic_seconds: float = 10
    returning: int = 10_000
    dispatches: int = 1_000_000
    repetition_seconds: float = 1
    returns: int = 30
    http_clients: int = 1_000
    http_broadcasts: int = 30


QUICK = Sizes(
    crowds=(1, 5_000),
    calls=30,
    streams=(1, 50, 500),
    compared=(500,),
    broadcasts=3,
    pause_seconds=0.3,
    idle_seconds=1,
    latencies=30,
    topics=3,
    topic_seconds=1,
    returning=500,
    dispatches=20_000,
    returns=5,
    http_clients=100,
    http_broadcasts=5,
)
SMOKE = Sizes(
    crowds=(1, 20),
    calls=2,
    streams=(1, 20),
    compared=(20,),
    broadcasts=1,
    pause_seconds=0.1,
    settle_seconds=0.2,
    idle_seconds=0.2,
    latencies=3,
    topics=2,
    topic_streams=2,
    topic_seconds=0.2,
    returning=20,
    dispatches=200,
    repetition_seconds=0.1,
    returns=1,
    http_clients=5,
    http_broadcasts=1,
)


SUITE = Suite(
    name="fanout",
    title="Channels with many listeners",
    legend=f"""\
"{OURS}" is `SqlSSEChannelRepository(Database(url))`. Each stream has a channel object and a listener of its own, loaded
as a request for it would. With "queues", each listener has a queue; with "log", the channel keeps its events
(`replay_seconds`). "{ASYNCIO}" hands the pickled message over to a queue of asyncio for each stream, which unpickles
it, within one process; in brackets stands the ratio to it, or to what the row names. A broadcast is that of another
process: the time begins before it is requested, and ends when the last stream has its message. Where many processes
take part, they and servers run on any core; there is nothing else that runs at the same time.""",
    peers_legend="""\
Streams of eric-sse on eric-redis-queues and in memory poll without a pause. The process of Redis pub/sub has one
subscription. nchan, which is written in C, gets messages over HTTP; its clients are the same as those of uvicorn.""",
    contenders=(ASYNCIO, OURS),
    sizes={"full": Sizes(), "quick": QUICK, "smoke": SMOKE},
    amount=lambda sizes: (
        f"""\
Medians of {sizes.calls} calls and of {sizes.broadcasts} broadcasts, on up to {sizes.crowds[-1]:,} listeners and
{sizes.streams[-1]:,} streams; {sizes.latencies} messages to one stream; idle streams for {sizes.idle_seconds:g}
seconds; {sizes.topics} processes with {sizes.topic_streams} streams each, {RATE} messages per second to one of them for
{sizes.topic_seconds:g} seconds; {sizes.returns} returns to a log; {sizes.http_broadcasts} broadcasts over HTTP."""
    ),
    peers=fanout_peers,
    operations={
        "calls": calls,
        "live": live,
        "topics": topics,
        "comeback": comeback,
        "long-log": long_log,
        "http": over_http,
    },
    databases=("sqlite-normal", "postgres"),
)
