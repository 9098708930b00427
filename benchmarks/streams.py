"""Measures streams: what idle ones cost, and how soon a message arrives that another process has dispatched."""

from __future__ import annotations

import asyncio
import random
import statistics
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from eric_sse.listener import MessageQueueListener
from eric_sse.message import Message
from eric_sse.prefabs import SSEChannel
from sqlalchemy import event

from benchmarks import goals
from benchmarks.contenders import Location
from benchmarks.figures import OURS, Figure, Goal
from benchmarks.memory import resident
from benchmarks.peers import Opener, installed
from benchmarks.placement import on_any_core
from benchmarks.processes import apart, await_others, together
from benchmarks.queue_peers import RedisLocation, redis_location
from benchmarks.redis_server import IN_MEMORY
from benchmarks.suite import Bench, Suite
from eric_sse_sql import Database, SqlConnectionsFactory, SqlQueue, SqlSSEChannel

SETTLE_SECONDS, DRAIN_SECONDS, START_SECONDS = 2, 5, 60
DISPATCHERS, A_SECOND = 2, 500  # messages of all dispatchers together
CLIENTS = 8
LONGEST_PAUSE = 0.05  # seconds between two samples


@dataclass(frozen=True)
class Sizes:
    """How many streams there are, and how long they are watched."""

    streams: int = 1_000
    idle_seconds: int = 20
    samples: int = 500
    load_seconds: int = 30
    rounds: int = 5
    pushes: int = 500


QUICK = Sizes(idle_seconds=5, samples=100, load_seconds=5, rounds=3, pushes=200)


# What idle streams cost


def idle(bench: Bench) -> Iterator[Figure]:
    """Many streams in one process, while nothing is dispatched."""
    name, sizes = bench.backend.name, bench.sizes
    with bench.backend.create().open() as database:
        channel, listeners = _subscribed(database, sizes.streams)
        statements: list[str] = []

        async def watch() -> float:
            await asyncio.sleep(SETTLE_SECONDS)
            event.listen(database.engine, "before_cursor_execute", lambda *arguments: statements.append(arguments[2]))
            began = time.process_time()
            await asyncio.sleep(sizes.idle_seconds)
            return time.process_time() - began

        busy, _ = asyncio.run(_streamed(channel, listeners, watch))
    of_streams = sum(not statement.startswith("SELECT") for statement in statements)
    a_minute = 60 / sizes.idle_seconds
    label = f"{sizes.streams:,} idle streams"
    yield _number(name, f"{label}: statements of a stream a minute", of_streams * a_minute / sizes.streams, Goal(0))
    yield _number(name, f"{label}: looks of all together a minute", (len(statements) - of_streams) * a_minute)
    yield _number(name, f"{label}: % of a core", 100 * busy / sizes.idle_seconds, Goal(5))


# How soon a message arrives


def latency(bench: Bench) -> Iterator[Figure]:
    """From the dispatch in one process to the delivery in another, a message at a time."""
    name = bench.backend.name
    with ExitStack() as stack:
        peers, _ = stack.enter_context(installed(_PEERS, bench.folder / "latency"))
        backend = stack.enter_context(bench.backend.for_many_processes())
        location = backend.create()
        database = stack.enter_context(location.open())
        channel, listeners = _subscribed(database, 1)
        queue_id = channel._get_queue(listeners[0].id).id
        dispatch = partial(_dispatch, location, queue_id, bench.sizes.samples)
        found = {OURS: asyncio.run(_timed(channel, listeners[0], dispatch))}
        for peer, place in peers.items():
            other, listener = SSEChannel(), MessageQueueListener()
            other.register_connection(_connection(listener, place.open_queue()))
            dispatch = partial(_dispatch_to_redis, place, bench.sizes.samples)
            found[peer] = asyncio.run(_timed(other, listener, dispatch))
    for percent, goal in goals.LATENCY[name].items():
        at = {contender: _percentile(times, percent) for contender, times in found.items()}
        yield Figure(name, f"dispatch to delivery, p{percent}", at, {OURS: 1000 * at[OURS]}, goal)


def load(bench: Bench) -> Iterator[Figure]:
    """Many streams, and processes that dispatch to them as fast as they are told to."""
    name, sizes = bench.backend.name, bench.sizes
    with ExitStack() as stack:
        backend = stack.enter_context(bench.backend.for_many_processes())
        location = backend.create()
        database = stack.enter_context(location.open())
        channel, listeners = _subscribed(database, sizes.streams)
        ids = [channel._get_queue(listener.id).id for listener in listeners]

        async def dispatch() -> tuple[int, int, int]:
            await asyncio.sleep(SETTLE_SECONDS)
            before = resident()
            tasks = [partial(_pace, location, ids, who, sizes.load_seconds) for who in range(DISPATCHERS)]
            with on_any_core():
                sent = sum(await asyncio.to_thread(together, tasks))
            await asyncio.sleep(DRAIN_SECONDS)
            return sent, before, resident()

        (sent, before, after), events = asyncio.run(_streamed(channel, listeners, dispatch))
    _check(events, sent)
    times = [arrived - message["data"][2] for _, arrived, message in events]
    label = f"{sizes.streams:,} streams, {A_SECOND} messages a second"
    for percent in (50, 99):
        yield Figure(name, f"{label}, p{percent}", {OURS: _percentile(times, percent)})
    yield _number(name, f"{label}: messages lost, doubled or out of order", 0, Goal(0))
    yield _number(name, f"{label}: megabytes that the process grew by", (after - before) / 1e6)


# What notifications cost


def notifications(bench: Bench) -> Iterator[Figure]:
    """Pushes of many clients, with notifications and without."""
    if bench.backend.name != goals.POSTGRES:
        return
    with bench.backend.for_many_processes() as backend:
        location = backend.create()
        rates: dict[bool, list[float]] = {True: [], False: []}
        for _ in range(bench.sizes.rounds):
            for notify in rates:
                tasks = [partial(_push, location, notify, bench.sizes.pushes)] * CLIENTS
                with on_any_core():
                    spans = together(tasks)
                taken = max(ended for _, ended in spans) - min(began for began, _ in spans)
                rates[notify].append(CLIENTS * bench.sizes.pushes / taken)
    with_them, without = (statistics.median(rates[notify]) for notify in (True, False))
    label = f"pushes of {CLIENTS} clients with notifications, as a share of those without"
    yield _number(bench.backend.name, label, with_them / without, Goal(0.7, at_least=True))


# The streams


def _subscribed(database: Database, count: int) -> tuple[SqlSSEChannel, list[MessageQueueListener]]:
    channel = SqlSSEChannel(connections_factory=SqlConnectionsFactory(database))
    listeners = [channel.add_listener() for _ in range(count)]
    for listener in listeners:
        listener.start()
    return channel, listeners


async def _streamed(
    channel: SSEChannel, listeners: list[MessageQueueListener], meanwhile: Callable[[], Awaitable[Any]]
) -> tuple[Any, list[tuple[str, float, Any]]]:
    """What is done while the listeners are streamed, and the events: whose, when, and what."""
    events: list[tuple[str, float, Any]] = []

    async def consume(listener: MessageQueueListener) -> None:
        async for message in channel.message_stream(listener):
            events.append((listener.id, time.time(), message))

    tasks = [asyncio.create_task(consume(listener)) for listener in listeners]
    result = await meanwhile()
    for listener in listeners:
        listener.stop()
    await asyncio.gather(*tasks)
    return result, events


async def _timed(channel: SSEChannel, listener: MessageQueueListener, dispatch: Callable[[], None]) -> list[float]:
    """Seconds from dispatch to delivery."""
    listener.start()

    async def meanwhile() -> None:
        await asyncio.sleep(SETTLE_SECONDS)
        with on_any_core():
            await asyncio.to_thread(apart, dispatch)
        await asyncio.sleep(0.5)

    _, events = await _streamed(channel, [listener], meanwhile)
    return [arrived - message["data"] for _, arrived, message in events]


def _check(events: list[tuple[str, float, Any]], sent: int) -> None:
    """
    :raises AssertionError: when not every message has arrived once, in the order of its dispatcher
    """
    if len(events) != sent:
        raise AssertionError(f"{len(events)} of {sent} messages have arrived")
    last: dict[tuple[str, int], int] = {}
    for listener_id, _, message in events:
        who, number, _ = message["data"]
        if number != last.get((listener_id, who), 0) + 1:
            raise AssertionError("a message is out of order")
        last[listener_id, who] = number


# What other processes do


def _dispatch(location: Location, queue_id: str, count: int) -> None:
    with location.open() as database:
        _at_random_moments(SqlQueue(database, queue_id), count)


def _dispatch_to_redis(place: RedisStream, count: int) -> None:
    _at_random_moments(place.open_queue(), count)


def _at_random_moments(queue: Any, count: int) -> None:
    for _ in range(count):
        time.sleep(random.uniform(0.005, LONGEST_PAUSE))
        queue.push(Message("sample", time.time()))


def _pace(location: Location, queue_ids: list[str], who: int, seconds: int) -> int:
    """Dispatches at a rate, to any listener. How many messages it were."""
    counts = dict.fromkeys(queue_ids, 0)
    with location.open() as database:
        queues = [SqlQueue(database, queue_id) for queue_id in queue_ids]
        await_others(START_SECONDS)
        began, sent = time.monotonic(), 0
        while time.monotonic() < began + seconds:
            queue = random.choice(queues)
            counts[queue.id] += 1
            queue.push(Message("load", (who, counts[queue.id], time.time())))
            sent += 1
            time.sleep(max(0.0, began + sent * DISPATCHERS / A_SECOND - time.monotonic()))
    return sent


def _push(location: Location, notify: bool, count: int) -> tuple[float, float]:
    """When it began to push, and when it had pushed all."""
    with Database(location.url, notify=notify) as database:
        queue = SqlQueue(database)
        queue.push(Message("first", 0))
        await_others(START_SECONDS)
        began = time.monotonic()
        for number in range(count):
            queue.push(Message("push", number))
        return began, time.monotonic()


@dataclass(frozen=True)
class RedisStream:
    """A queue of eric-redis-queues that any process can open."""

    location: RedisLocation

    def open_queue(self) -> Any:
        return self.location.open().queue


def _redis(folder: Path, stack: ExitStack) -> RedisStream:
    return RedisStream(redis_location(IN_MEMORY, folder, stack, on_any_core))


_PEERS: dict[str, Opener[RedisStream]] = {"eric-sse's stream over RedisQueue (no disk)": _redis}


def _connection(listener: MessageQueueListener, queue: Any) -> Any:
    from eric_sse.connection import Connection

    return Connection(listener, queue)


def _percentile(times: list[float], percent: int) -> float:
    return sorted(times)[min(len(times) - 1, len(times) * percent // 100)]


def _number(database: str, label: str, number: float, goal: Goal | None = None) -> Figure:
    """A figure that is no time."""
    return Figure(database, label, ratios={OURS: number}, goal=goal)


def _amount(sizes: Sizes) -> str:
    return (
        f"{sizes.samples:,} samples of latency at random moments; {sizes.streams:,} streams, idle for "
        f"{sizes.idle_seconds} seconds and under load for {sizes.load_seconds}; {sizes.rounds} rounds of "
        f"{sizes.pushes:,} pushes of each of {CLIENTS} clients. Goals of latency are in milliseconds."
    )


SUITE = Suite(
    name="streams",
    title="Streams",
    legend="""Here numbers in brackets are no ratios, but milliseconds of latency, or what the operation names. Servers
        and dispatchers are on any core. Idle streams ask nothing: one thread looks for all of them.""",
    peers_legend="eric-sse's own stream, which asks its queue at each turn of the event loop.",
    contenders=(OURS,),
    sizes=Sizes(),
    quick=QUICK,
    amount=_amount,
    peers=lambda backend: {},
    operations={"idle": idle, "latency": latency, "load": load, "notifications": notifications},
)
