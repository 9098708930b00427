"""Measures ``SqlSSEChannelRepository`` and its channels against the raw driver and eric-redis-queues."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass

from eric_sse.entities import AbstractChannel

from benchmarks.baselines.connections import raw_channels
from benchmarks.harness.backends import Backend
from benchmarks.harness.figures import OURS, RAW, Figure, compare_with_peers, compare_with_raw, growth
from benchmarks.harness.goals import (
    BROADCAST,
    CHANNEL,
    CHANNEL_PEERS,
    DELETE,
    JUDGED_CONNECTIONS,
    LOAD_ALL,
    LOAD_ANY,
    LOAD_ONE,
    OTHERS_GROWTH,
    PERSIST,
    REDIS_CHANNELS_IN_MEMORY,
    REDIS_CHANNELS_ON_DISK,
)
from benchmarks.harness.interfaces import ChannelStore
from benchmarks.harness.locations import close
from benchmarks.harness.repository_channels import RepositoryChannels
from benchmarks.harness.sample_data import new_message
from benchmarks.harness.suite import Bench, Suite
from benchmarks.harness.timing import Step, by_first, interleaved
from benchmarks.peers.channel_peers import channel_peers
from benchmarks.suites.large_channel import large_channel
from eric_sse_sql import SqlSSEChannelRepository

CONNECTIONS = 100  # of each channel in other_connections
WARM_UP = 1
# Numbers of connections at which an operation of eric-redis-queues takes seconds and is timed a few times only, or
# takes tens of seconds and is not timed.
SLOW, TOO_SLOW = 1_000, 10_000


@dataclass(frozen=True)
class Sizes:
    """How many times each operation is timed, and on how much."""

    connections: tuple[int, ...] = (1, 10, 100, 1_000, 10_000)
    most_samples: int = 60
    least_samples: int = 4
    slow_samples: int = 2
    slow_peers: tuple[str, ...] = (REDIS_CHANNELS_IN_MEMORY, REDIS_CHANNELS_ON_DISK)
    loads: int = 100
    others: tuple[int, ...] = (100, 1_000, 10_000, 100_000)
    listeners: int = 100_000

    def samples(self, connections: int) -> int:
        """How many times an operation on this many connections is timed."""
        return max(self.least_samples, min(self.most_samples, 15_000 // connections))

    def peer_samples(self, connections: int) -> int:
        """The same for an operation of eric-redis-queues."""
        return max(self.slow_samples, min(self.most_samples, 1_000 // connections))


QUICK = Sizes(
    connections=(1, 1_000),
    most_samples=10,
    slow_samples=1,
    slow_peers=(REDIS_CHANNELS_IN_MEMORY,),
    loads=20,
    others=(100, 5_000),
    listeners=20_000,
)
SMOKE = Sizes(
    connections=(1, 20), most_samples=2, least_samples=1, slow_samples=1, loads=3, others=(100, 200), listeners=100
)


def whole_channel(bench: Bench) -> Iterator[Figure]:
    """Each operation on a whole channel, for several numbers of connections."""
    for connections in bench.sizes.connections:
        yield from _of_size(bench, connections)


def _of_size(bench: Bench, connections: int) -> Iterator[Figure]:
    samples = bench.sizes.samples(connections)
    peers = _peers_of_size(bench, connections)
    fewer = dict.fromkeys(peers, bench.sizes.peer_samples(connections))
    database, medians = bench.backend.name, {}
    with contenders(bench.backend) as (own, settle):
        stores = {**own, **peers}
        channels = {name: list(new_channels(store, WARM_UP + samples, connections)) for name, store in stores.items()}
        for operation, work in OPERATIONS.items():
            steps = {name: channel_step(work, store, channels[name]) for name, store in stores.items()}
            medians[operation] = interleaved(steps, samples, warm_up=WARM_UP, block=1, fewer=fewer)
            settle()
    for operation in OPERATIONS:
        goal = CHANNEL[database][operation] if connections == JUDGED_CONNECTIONS else None
        label = f"{operation}, N = {connections:,}"
        yield compare_with_raw(database, label, medians[operation], goal, curve=_CURVES[operation], size=connections)
    if connections == JUDGED_CONNECTIONS:
        for operation, goals in CHANNEL_PEERS.items():
            yield from compare_with_peers(database, f"{operation}, N = {connections:,}", medians[operation], goals)


def _peers_of_size(bench: Bench, connections: int) -> Mapping[str, ChannelStore]:
    if connections >= TOO_SLOW:
        return {}
    return {name: peer for name, peer in bench.peers.items() if connections < SLOW or name in bench.sizes.slow_peers}


def _load(store: ChannelStore, channel: AbstractChannel) -> None:
    _count(store.load_one(channel.id).get_connections(), channel.get_connections())


OPERATIONS: Mapping[str, Callable[[ChannelStore, AbstractChannel], None]] = {
    PERSIST: lambda store, channel: store.persist(channel),
    LOAD_ONE: _load,
    BROADCAST: lambda store, channel: store.broadcast(channel, new_message(0)),
    DELETE: lambda store, channel: store.delete(channel.id),
}
_CURVES = {
    PERSIST: "persist, by connections",
    LOAD_ONE: "load_one, by connections",
    BROADCAST: "broadcast, by listeners",
    DELETE: "delete, by connections",
}


def other_connections(bench: Bench) -> Iterator[Figure]:
    """The connections of one channel, for several numbers of connections of other channels; and those of a random
    channel, whose pages are mostly not in the cache of the connection."""
    database, others = bench.backend.name, bench.sizes.others
    peer = bench.peers.get(REDIS_CHANNELS_IN_MEMORY)
    one: dict[tuple[tuple[str, int], str], Step] = {}
    random_one: dict[tuple[tuple[str, int], str], Step] = {}
    with ExitStack() as stack:
        for number, size in enumerate(others):
            count = 1 + size // CONNECTIONS
            own, settle = stack.enter_context(contenders(bench.backend))
            for store in own.values():
                for channel in new_channels(store, count, CONNECTIONS):
                    store.persist(channel)
            settle()
            stores = dict(own)
            if peer and size <= TOO_SLOW:
                other = stores[REDIS_CHANNELS_IN_MEMORY] = peer.in_database(1 + number)
                other.fill(new_channels(other, count, CONNECTIONS))
            channels = [channel_id(number) for number in range(count)]
            one |= {((LOAD_ALL, size), name): load_all_step(store, channels[:1]) for name, store in stores.items()}
            random_one |= {((LOAD_ANY, size), name): load_all_step(store, channels) for name, store in own.items()}
        fewer = {each: bench.sizes.slow_samples for each in one if each[1] == REDIS_CHANNELS_IN_MEMORY}
        medians: dict[tuple[str, int], dict[str, float]] = {}
        for steps in (one, random_one):  # not in turns, because both use the cache of the same connection
            medians |= by_first(interleaved(steps, bench.sizes.loads, warm_up=WARM_UP, block=2, fewer=fewer))
    for operation, goal in ((LOAD_ALL, OTHERS_GROWTH), (LOAD_ANY, None)):
        for size in others:
            label, curve = f"{operation}, among {size:,}", f"{operation}, by other connections"
            yield compare_with_raw(database, label, medians[operation, size], curve=curve, size=size)
        first, last = (medians[operation, size] for size in (others[0], others[-1]))
        yield growth(database, f"… compared with {others[0]:,}", last, first, goal)


SUITE = Suite(
    name="channels",
    title="Channels against the raw drivers and eric-redis-queues",
    legend=f"""\
"{OURS}" is `SqlSSEChannelRepository(Database(url))`, and N the connections of the channel.""",
    peers_legend="""\
eric-redis-queues with its default settings. Its operations on 1,000 connections take so long that few are timed.""",
    contenders=(RAW, OURS),
    sizes={"full": Sizes(), "quick": QUICK, "smoke": SMOKE},
    amount=lambda sizes: (
        f"""\
Medians of {sizes.least_samples:,} to {sizes.most_samples:,} operations on a channel, or {sizes.loads:,} loads among
other connections. An operation on {sizes.listeners:,} connections is timed once, in a process of its own, and shown
with the peak growth of the memory of that process."""
    ),
    peers=channel_peers,
    operations={"channel": whole_channel, "others": other_connections, "listeners": large_channel},
)


@contextmanager
def contenders(backend: Backend) -> Iterator[tuple[dict[str, ChannelStore], Callable[[], None]]]:
    """Open the raw driver and the repository, each on its own database; and give a function that settles both."""
    locations = [backend.create(), backend.create()]
    with ExitStack() as stack:
        raw = stack.enter_context(closing(raw_channels(locations[0])))
        ours = locations[1].open()
        stack.callback(close, ours)

        def settle() -> None:
            for location in locations:
                backend.settle(location)

        yield {RAW: raw, OURS: RepositoryChannels(SqlSSEChannelRepository(ours))}, settle


def new_channels(store: ChannelStore, count: int, connections: int) -> Iterator[AbstractChannel]:
    """Create channels with new listeners."""
    for number in range(count):
        channel = store.create(channel_id(number))
        for _ in range(connections):
            channel.add_listener()
        yield channel


def channel_id(number: int) -> str:
    """The id of a channel of :func:`new_channels`."""
    return f"channel-{number:06}"


def channel_step(
    work: Callable[[ChannelStore, AbstractChannel], None], store: ChannelStore, channels: list[AbstractChannel]
) -> Step:
    """Works on another channel in each step."""
    return lambda number: work(store, channels[number])


def load_all_step(store: ChannelStore, channels: Sequence[str]) -> Step:
    """Loads the connections of a random channel in each step."""
    order = random.Random(0).choices(channels, k=1000)
    expected = range(CONNECTIONS)
    return lambda number: _count(store.load_connections(order[number % 1000]), expected)


def _count(connections: Iterable[object], expected: Iterable[object]) -> None:
    if sum(1 for _ in connections) != sum(1 for _ in expected):
        raise AssertionError("the store did not return the connections that were persisted")
