"""Measures processes that have few and very many streams of one channel: opening, latency, broadcasts, and idling."""

from __future__ import annotations

import asyncio
import random
import statistics
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any, NamedTuple

from benchmarks.baselines.asyncio_queues import AsyncioQueues
from benchmarks.fanout.arrivals import Arrivals, Clocks
from benchmarks.fanout.crowd import LOG, REPLAY_SECONDS, Crowd, streaming
from benchmarks.fanout.quiet import Quiet, quiet
from benchmarks.harness import goals
from benchmarks.harness.cpu_affinity import on_any_core
from benchmarks.harness.figures import OURS, Figure, compare_with_peers
from benchmarks.harness.interfaces import FanOut, Send
from benchmarks.harness.process_memory import resident_bytes
from benchmarks.harness.remote_calls import remote_function
from benchmarks.harness.suite import Bench
from benchmarks.harness.worker_processes import run_in_process
from benchmarks.streams.receiver import TYPE, percentile
from benchmarks.streams.stream_locations import listener_id

WARM_UP = 2
ARRIVAL_SECONDS = 60  # within which all streams must have a message
INTERVALS = 0.005, 0.055  # seconds between two dispatches: in no fixed phase with the polls of the receiver


class Broadcast(NamedTuple):
    """What a broadcast took, in seconds.

    :param wall: from its request until the last stream has it
    :param cpu: of the receiving process in that time
    :param cpu_after: of the receiving process after it, until the next broadcast
    """

    wall: float
    cpu: float
    cpu_after: float


class Process(NamedTuple):
    """What a process with streams took.

    :param opening: the seconds until all streams have the message that waits for them
    :param memory: by how many bytes its resident memory has grown by then; None where it can't be read
    :param latencies: of dispatches to one stream; none where they were not measured
    :param quiet: what it does while its streams are idle; None where it was not measured
    """

    opening: float
    memory: int | None
    latencies: Sequence[float]
    broadcast: Broadcast
    quiet: Quiet | None


def live(bench: Bench) -> Iterator[Figure]:
    """All processes after one another: each has the machine for itself, with the one that sends."""
    sizes, database = bench.sizes, bench.backend.name
    with ExitStack() as stack:
        backend = stack.enter_context(bench.backend.for_many_processes())
        stack.enter_context(on_any_core())
        beside = {size: _beside(bench, size) for size in sizes.compared}
        for way in REPLAY_SECONDS:
            location, ours = backend.create(), {}
            for size in sizes.streams:
                crowd = Crowd(location, f"crowd-{size}", size, way)
                crowd.persist()
                ours[size] = run_in_process(_measure, crowd, sizes)
            yield from _openings(database, way, ours)
            for size in sizes.streams:
                peers = beside.get(size, {})
                yield from _broadcasts(database, way, ours[1].broadcast, ours[size].broadcast, size, peers)
            for size in (1, sizes.streams[-1]):
                yield from _latencies(database, way, size, ours[size].latencies)
            yield from _idling(database, way, sizes.streams[-1], ours[sizes.streams[-1]].quiet)


def _openings(database: str, way: str, ours: Mapping[int, Process]) -> Iterator[Figure]:
    sizes = list(ours)[1:]
    each = {size: ours[size].opening / size for size in sizes}
    for size in sizes:
        label = f"{size:,} streams opened, {way}: time a stream"
        yield Figure(database, label, {OURS: each[size]}, curve=f"opening, by streams: time each, {way}", size=size)
    few, most = sizes[0], sizes[-1]
    many = next((size for size in sizes if size >= 10 * few), most)
    ratio = {OURS: each[many] / each[few]}
    label = f"{many:,} streams opened, {way}: time a stream, to that of {few:,}"
    yield Figure(database, label, ratios=ratio, goal=goals.OPENING_GROWTH)
    label, opened = f"{most:,} streams opened, {way}", ours[most]
    yield Figure(database, label, values={OURS: opened.opening}, unit="s", goal=goals.OPENING)
    if opened.memory is not None:
        kilobytes = {OURS: opened.memory / most / 1e3}
        yield Figure(database, f"{label}: memory a stream", values=kilobytes, unit="kB", goal=goals.STREAM_MEMORY)


def _broadcasts(
    database: str, way: str, to_one: Broadcast, to_all: Broadcast, size: int, peers: Mapping[str, Broadcast]
) -> Iterator[Figure]:
    what = f"broadcast to {size:,} streams, {way}"
    wall = {OURS: to_all.wall, **{name: each.wall for name, each in peers.items()}}
    cpu = {OURS: to_all.cpu, **{name: each.cpu for name, each in peers.items()}}
    yield Figure(
        database, f"{what}: last delivery", wall, curve=f"broadcast, by streams: last delivery, {way}", size=size
    )
    if not peers:
        return
    alone, goal = peers[goals.ASYNCIO], goals.FANOUT[way]
    ratio = {OURS: (to_all.wall - to_one.wall) / alone.wall}
    yield Figure(database, f"{what}: less that of one stream, to asyncio alone", ratios=ratio, goal=goal)
    yield Figure(database, f"{what}: CPU", cpu)
    ratio = {OURS: (to_all.cpu - to_one.cpu) / alone.cpu}
    yield Figure(database, f"{what}: CPU, less that of one stream, to asyncio alone", ratios=ratio, goal=goal)
    yield Figure(database, f"{what}: CPU after it", {OURS: to_all.cpu_after})
    if way == LOG:
        yield from compare_with_peers(database, what, wall, dict.fromkeys(goals.FANOUT_PEERS, goals.AHEAD))


def _latencies(database: str, way: str, size: int, latencies: Sequence[float]) -> Iterator[Figure]:
    for percent, goal in goals.LATENCY[database].items():
        what = f"dispatch to delivery beside {size - 1:,} idle streams, {way}: p{percent}"
        yield Figure(database, what, goal=goal, values={OURS: 1e3 * percentile(latencies, percent)}, unit="ms")


def _idling(database: str, way: str, size: int, found: Quiet | None) -> Iterator[Figure]:
    assert found is not None
    what = f"{size:,} idle streams, {way}"
    of_streams, all_statements = {OURS: 60 * found.of_streams}, {OURS: 60 * found.statements}
    yield Figure(database, f"{what}: statements of streams", values=of_streams, unit="/min", goal=goals.NONE)
    yield Figure(database, f"{what}: all statements", values=all_statements, unit="/min")
    yield Figure(database, f"{what}: CPU", values={OURS: 100 * found.cpu}, unit="%", goal=goals.CPU_OF_MANY_IDLE)


def _measure(crowd: Crowd, sizes: Any) -> Process:
    return asyncio.run(_run(crowd, sizes))


async def _run(crowd: Crowd, sizes: Any) -> Process:
    is_largest = crowd.listeners == sizes.streams[-1]
    latency_samples = sizes.latencies if is_largest or crowd.listeners == 1 else 0
    arrivals = Arrivals()

    def on_event(number: int, each: Mapping[str, Any]) -> None:
        if each["event"] != TYPE:
            raise AssertionError(f"a stream has delivered {each}")
        arrivals.note()

    with remote_function(crowd.sender) as send, crowd.opened() as database:
        before, began = resident_bytes(), Clocks.now()
        async with streaming(database, crowd, on_event):
            opening, after = Clocks.now().since(began).wall, resident_bytes()
            memory = None if before is None or after is None else after - before
            latencies = await _dispatched(arrivals, send.request, latency_samples)
            broadcast = await _broadcast(arrivals, partial(send.request, None), crowd.listeners, sizes)
            found = await quiet(database, sizes.settle_seconds, sizes.idle_seconds) if is_largest else None
    return Process(opening, memory, latencies, broadcast, found)


async def _dispatched(arrivals: Arrivals, request: Any, samples: int) -> Sequence[float]:
    """The latencies of dispatches to one stream."""
    latencies = []
    for _ in range(WARM_UP + samples):
        await asyncio.sleep(random.uniform(*INTERVALS))
        arrivals.expect(1)
        sent = Clocks.now()
        request(listener_id(0))
        latencies.append((await arrivals.wait(ARRIVAL_SECONDS)).since(sent).wall)
    return latencies[WARM_UP:]


async def _broadcast(arrivals: Arrivals, send: Send, count: int, sizes: Any) -> Broadcast:
    """The medians of several broadcasts."""
    samples = []
    for _ in range(WARM_UP + sizes.broadcasts):
        await asyncio.sleep(random.uniform(*INTERVALS))
        arrivals.expect(count)
        sent = Clocks.now()
        send()
        last = await arrivals.wait(ARRIVAL_SECONDS)
        await asyncio.sleep(sizes.pause_seconds)
        samples.append(Broadcast(*last.since(sent), Clocks.now().since(last).cpu))
    return Broadcast(*map(statistics.median, zip(*samples[WARM_UP:], strict=True)))


def _beside(bench: Bench, size: int) -> dict[str, Broadcast]:
    """The same broadcasts by other means."""
    others: dict[str, FanOut] = {goals.ASYNCIO: AsyncioQueues()}
    others |= {name: bench.peers[name] for name in goals.FANOUT_PEERS if name in bench.peers}
    return {
        name: run_in_process(_measure_peer, each, size, bench.sizes)
        for name, each in others.items()
        if size <= goals.MOST_STREAMS.get(name, size)
    }


def _measure_peer(peer: FanOut, count: int, sizes: Any) -> Broadcast:
    async def measure() -> Broadcast:
        arrivals = Arrivals()
        async with peer.streaming(count, arrivals.note) as send:
            return await _broadcast(arrivals, send, count, sizes)

    return asyncio.run(measure())
