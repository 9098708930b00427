"""Measures the calls of a request on channels with few and with very many listeners."""

from __future__ import annotations

import random
import statistics
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

from eric_sse.entities import AbstractChannel

from benchmarks.baselines.connections import raw_channels
from benchmarks.fanout.crowd import LOG, QUEUES, REPLAY_SECONDS, Crowd, StatementCount
from benchmarks.harness import goals
from benchmarks.harness.backends import Backend
from benchmarks.harness.figures import OURS, RAW, Figure, Goal, growth
from benchmarks.harness.locations import Location
from benchmarks.harness.sample_data import new_message
from benchmarks.harness.suite import Bench
from benchmarks.harness.timing import Step, interleaved
from benchmarks.streams.stream_locations import listener_id
from benchmarks.suites.channels_suite import new_channels
from eric_sse_sql import SqlSSEChannelRepository

WARM_UP = 3
COUNTED_CALLS = 5
LEAST_SAMPLES = 5
MOST_ROWS = 100_000  # that all samples of a broadcast write together, beyond the least number of samples
WRITTEN_BROADCASTS = 20

GET_LISTENER = "get_listener, first time"
DISPATCH = "dispatch"
PERSIST_ONE = "persist after one add_listener"

Call = Callable[[SqlSSEChannelRepository, Any, str], object]  # gets a channel just loaded and a listener's id


def _persist_one(repository: SqlSSEChannelRepository, channel: AbstractChannel, listener: str) -> None:
    channel.add_listener()
    repository.persist(channel)


CALLS: Mapping[str, Call] = {
    goals.LOAD_ONE: lambda repository, channel, listener: repository.load_one(channel.id),
    GET_LISTENER: lambda repository, channel, listener: channel.get_listener(listener),
    DISPATCH: lambda repository, channel, listener: channel.dispatch(listener, new_message(0)),
    goals.BROADCAST: lambda repository, channel, listener: channel.broadcast(new_message(0)),
    PERSIST_ONE: _persist_one,
}


def calls(bench: Bench) -> Iterator[Figure]:
    """The statements and the time of each call, the rows and bytes of a broadcast, and its time beside the driver's."""
    for way in REPLAY_SECONDS:
        location = bench.backend.create()
        crowds = [Crowd(location, f"crowd-{size}", size, way) for size in bench.sizes.crowds]
        for crowd in crowds:
            crowd.persist()
        bench.backend.settle(location)
        yield from _statements(bench.backend.name, crowds)
        yield from _times(bench, crowds)
        if way == LOG:
            yield from _written(bench.backend, [crowds[0], crowds[-1]])
    yield from _beside_raw(bench)


def _statements(database: str, crowds: Sequence[Crowd]) -> Iterator[Figure]:
    for name, call in CALLS.items():
        counts = [_count(crowd, call) for crowd in crowds]
        for crowd, count in zip(crowds, counts, strict=True):
            goal = Goal(counts[0]) if name == PERSIST_ONE else goals.ONE_STATEMENT
            what = f"{name}, {crowd.way}, N = {crowd.listeners:,}: statements"
            yield Figure(database, what, goal=goal, values={OURS: count})


def _count(crowd: Crowd, call: Call) -> int:
    with crowd.opened() as database:
        repository = SqlSSEChannelRepository(database)
        counter = StatementCount(
            database, _is_of_caller
        )  # not those of the thread that notifies for many calls at once
        counts = []
        for _ in range(COUNTED_CALLS):
            channel = repository.load_one(crowd.channel_id)
            counter.statements = 0
            call(repository, channel, _any_listener(crowd))
            counts.append(counter.statements)
    return statistics.median_low(counts)  # one in a hundred appends also deletes expired events


def _is_of_caller() -> bool:
    return threading.current_thread() is threading.main_thread()


def _times(bench: Bench, crowds: Sequence[Crowd]) -> Iterator[Figure]:
    database, way, samples = bench.backend.name, crowds[0].way, bench.sizes.calls
    sizes = [crowd.listeners for crowd in crowds]
    for name, call in CALLS.items():
        writes_all = name == goals.BROADCAST and way == QUEUES
        fewer = {size: max(LEAST_SAMPLES, min(samples, MOST_ROWS // size)) for size in sizes} if writes_all else {}
        with crowds[0].opened() as database_object:
            repository = SqlSSEChannelRepository(database_object)
            steps = {
                crowd.listeners: _step(repository, crowd, call, WARM_UP + fewer.get(crowd.listeners, samples))
                for crowd in crowds
            }
            medians = interleaved(steps, samples, warm_up=WARM_UP, block=1, fewer=fewer)
        for size in sizes:
            label, curve = f"{name}, {way}, N = {size:,}", f"{name}, {way}"
            yield Figure(database, label, {OURS: medians[size]}, curve=curve, size=size)
        if not writes_all:
            goal = goals.SAME_TIME if name == goals.BROADCAST else None
            first, last = ({OURS: medians[size]} for size in (sizes[0], sizes[-1]))
            label = f"{name}, {way}, N = {sizes[-1]:,}, to N = {sizes[0]:,}"
            yield growth(database, label, last, first, goal)


def _step(repository: SqlSSEChannelRepository, crowd: Crowd, call: Call, count: int) -> Step:
    """Calls on another channel object, which has just been loaded, in each step."""
    channels = [repository.load_one(crowd.channel_id) for _ in range(count)]
    listeners = [_any_listener(crowd) for _ in range(count)]
    return lambda number: call(repository, channels[number], listeners[number])


def _any_listener(crowd: Crowd) -> str:
    return listener_id(random.randrange(crowd.listeners))


@dataclass(frozen=True)
class Written:
    """What broadcasts have written, each on average."""

    rows: float
    size: float


def _written(backend: Backend, crowds: Sequence[Crowd]) -> Iterator[Figure]:
    written = [_of_broadcasts(backend, crowd) for crowd in crowds]
    for crowd, each in zip(crowds, written, strict=True):
        what = f"broadcast, {LOG}, N = {crowd.listeners:,}"
        yield Figure(backend.name, f"{what}: rows written", goal=goals.ONE_ROW, values={OURS: each.rows})
        yield Figure(backend.name, f"{what}: bytes of the write-ahead log", values={OURS: each.size}, unit="B")


def _of_broadcasts(backend: Backend, crowd: Crowd) -> Written:
    with crowd.opened() as database:
        channel = SqlSSEChannelRepository(database).load_one(crowd.channel_id)
        channel.broadcast(new_message(0))
        backend.settle(crowd.location)
        channel.broadcast(new_message(0))  # after a checkpoint, Postgres writes the first change of a page as a whole
        rows, size = _rows(crowd.location), _log_size(crowd.location)
        for number in range(WRITTEN_BROADCASTS):
            channel.broadcast(new_message(number))
        rows, size = _rows(crowd.location) - rows, _log_size(crowd.location) - size
    return Written(rows / WRITTEN_BROADCASTS, size / WRITTEN_BROADCASTS)


def _rows(location: Location) -> int:
    count = "SELECT (SELECT count(*) FROM sse_events) + (SELECT count(*) FROM sse_messages)"
    return _selected(location, count)


def _log_size(location: Location) -> int:
    """How many bytes were written to the write-ahead log: on SQLite since the last checkpoint."""
    if location.is_sqlite:
        return location.path.with_name(f"{location.path.name}-wal").stat().st_size
    return _selected(location, "SELECT pg_wal_lsn_diff(pg_current_wal_insert_lsn(), '0/0')::bigint")


def _selected(location: Location, query: str) -> int:
    with closing(location.connect_sqlite() if location.is_sqlite else location.connect_postgres()) as connection:
        ((found,),) = connection.execute(query).fetchall()
    return int(found)


def _beside_raw(bench: Bench) -> Iterator[Figure]:
    """A broadcast to the queues of the largest channel; the raw driver has their ids in memory."""
    size, location, raw_location = max(bench.sizes.crowds), bench.backend.create(), bench.backend.create()
    crowd = Crowd(location, "crowd", size, QUEUES)
    crowd.persist()
    with closing(raw_channels(raw_location)) as raw, crowd.opened() as database:
        repository = SqlSSEChannelRepository(database)
        (raw_channel,) = new_channels(raw, 1, size)
        steps: Mapping[str, Step] = {
            RAW: lambda number: raw.broadcast(raw_channel, new_message(number)),
            OURS: lambda number: repository.load_one(crowd.channel_id).broadcast(new_message(number)),
        }
        medians = interleaved(steps, LEAST_SAMPLES, warm_up=1, block=1)
    ratios = {OURS: medians[OURS] / medians[RAW]}
    what = f"load_one and broadcast, {QUEUES}, N = {size:,}, beside the {RAW}"
    yield Figure(bench.backend.name, what, medians, ratios, goals.BROADCAST_TO_QUEUES)
