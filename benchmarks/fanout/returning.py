"""Measures streams that go on after the last event that their browser has seen."""

from __future__ import annotations

import asyncio
import random
import statistics
import time
from collections.abc import Iterator, Mapping
from contextlib import closing
from typing import Any, NamedTuple

from benchmarks.fanout.arrivals import Arrivals
from benchmarks.fanout.crowd import LOG, Browser, Browsers, Crowd, StatementCount
from benchmarks.fanout.quiet import is_of_stream
from benchmarks.harness import goals
from benchmarks.harness.bulk_load import load_postgres, load_sqlite
from benchmarks.harness.figures import OURS, Figure
from benchmarks.harness.locations import Location
from benchmarks.harness.sample_data import new_message
from benchmarks.harness.suite import Bench
from benchmarks.harness.timing import existing_objects_frozen
from benchmarks.harness.worker_processes import run_in_process
from benchmarks.streams.stream_locations import listener_id
from eric_sse_sql import Database, SqlSSEChannelRepository

MISSED = 20  # events that were broadcast while the browsers were away: each has seen some of them
ARRIVAL_SECONDS = 120
COUNTED_SHARE = 10  # the statements of one browser of so many are counted, since counting takes time
OTHERS = 100  # listeners that the dispatches in the long log are for
WARM_UP = 2


class Return(NamedTuple):
    """How browsers came back.

    :param seconds: until the last one has all that it has missed
    """

    seconds: float
    statements: int
    lost: int
    repeated: int


def comeback(bench: Bench) -> Iterator[Figure]:
    """All browsers of a channel come back at the same moment, to one process that has just started."""
    database, count = bench.backend.name, bench.sizes.returning
    crowd = Crowd(bench.backend.create(), "crowd", count, LOG)
    crowd.persist()
    seen = _broadcast_missed(crowd)
    bench.backend.settle(crowd.location)
    seconds = bench.sizes.repetition_seconds
    all_of_them = run_in_process(_come_back, crowd, seen, count, seconds, False)
    counted = count // COUNTED_SHARE
    of_counted = run_in_process(_come_back, crowd, seen, counted, seconds, True)
    statements = round(of_counted.statements / counted, 1)  # the process reads the tail of the log once
    what = f"{count:,} browsers come back at once"
    yield Figure(database, what, values={OURS: all_of_them.seconds}, unit="s", goal=goals.COMEBACK)
    yield Figure(database, f"{what}: statements each", values={OURS: statements}, goal=goals.STATEMENTS_OF_COMEBACK)
    yield Figure(database, f"{what}: events lost", values={OURS: all_of_them.lost}, goal=goals.NONE)
    yield Figure(database, f"{what}: events repeated", values={OURS: all_of_them.repeated}, goal=goals.NONE)


def long_log(bench: Bench) -> Iterator[Figure]:
    """One browser comes back; to a log with many dispatches to others since, and to one with none."""
    count = bench.sizes.dispatches
    medians: dict[int, float] = {}
    for dispatches in (0, count):
        crowd = Crowd(bench.backend.create(), "crowd", 1 + OTHERS, LOG)
        crowd.persist()
        seen = _broadcast_missed(crowd)
        _load(crowd, dispatches)
        _broadcast_once(crowd)
        bench.backend.settle(crowd.location)
        medians[dispatches] = run_in_process(_return_alone, crowd, seen[-1], bench.sizes.returns)
    what = "a browser comes back"
    yield Figure(bench.backend.name, f"{what} to an empty log", {OURS: medians[0]})
    ratios = {OURS: medians[count] / medians[0]}
    label = f"{what} to a log of {count:,} dispatches to others"
    yield Figure(bench.backend.name, label, {OURS: medians[count]}, ratios, goals.LONG_LOG)


def _broadcast_missed(crowd: Crowd) -> list[str]:
    """Broadcast what the browsers miss, and return the ids of these events and of the one before."""

    async def ids() -> list[str]:
        with crowd.opened() as database:
            repository = SqlSSEChannelRepository(database)
            channel = repository.load_one(crowd.channel_id)
            for number in range(MISSED):
                channel.broadcast(new_message(number))
            browser = Browser.load(repository, crowd.channel_id, 0)
            found: list[str] = []
            events = browser.events()
            while len(found) < 1 + MISSED:
                found.append((await anext(events))["id"])
            await events.aclose()
            return found

    return asyncio.run(ids())


def _broadcast_once(crowd: Crowd) -> None:
    with crowd.opened() as database:
        SqlSSEChannelRepository(database).load_one(crowd.channel_id).broadcast(new_message(0))


def _come_back(crowd: Crowd, ids: list[str], count: int, repetition_seconds: float, is_counted: bool) -> Return:
    return asyncio.run(_come_back_at_once(crowd, ids, count, repetition_seconds, is_counted))


async def _come_back_at_once(
    crowd: Crowd, ids: list[str], count: int, repetition_seconds: float, is_counted: bool
) -> Return:
    """Each browser has seen one of the events, or none after its connection was made, and misses at least the last."""
    seen = [random.randrange(len(ids) - 1) for _ in range(count)]
    next_ones = [number + 1 for number in seen]  # the index in ids of the event that each gets next
    positions = {event_id: number for number, event_id in enumerate(ids)}
    arrivals = Arrivals()
    arrivals.expect(count)
    lost = repeated = 0

    def on_event(number: int, each: Mapping[str, Any]) -> None:
        nonlocal lost, repeated
        position = positions.get(each["id"]) if "id" in each else None
        if position is None:
            raise AssertionError(f"a stream has delivered {each}")
        if position < next_ones[number]:
            repeated += 1
            return
        lost += position - next_ones[number]
        next_ones[number] = position + 1
        if position == len(ids) - 1:
            arrivals.note()

    with crowd.opened() as database:
        counter = StatementCount(database, is_of_stream) if is_counted else None
        browsers = Browsers(database, crowd.channel_id, on_event)
        with existing_objects_frozen():
            began = time.perf_counter()
            await asyncio.gather(*(browsers.open(number, ids[seen[number]]) for number in range(count)))
            await arrivals.wait(ARRIVAL_SECONDS)
            seconds = time.perf_counter() - began
        statements = counter.statements if counter else 0
        await asyncio.sleep(repetition_seconds)
        await browsers.close()
    return Return(seconds, statements, lost, repeated)


def _return_alone(crowd: Crowd, last_event_id: str, samples: int) -> float:
    """The median time from a request to the event, each time in a database object that has read nothing yet."""

    async def seconds() -> float:
        with crowd.opened() as database:
            return await _seconds_to_event(database, crowd, last_event_id)

    times = [asyncio.run(seconds()) for _ in range(WARM_UP + samples)]
    return statistics.median(times[WARM_UP:])


async def _seconds_to_event(database: Database, crowd: Crowd, last_event_id: str) -> float:
    repository = SqlSSEChannelRepository(database)
    repository.load_one(crowd.channel_id)  # connects
    began = time.perf_counter()
    browser = await asyncio.to_thread(Browser.load, repository, crowd.channel_id, 0)
    events = browser.events(last_event_id)
    event = await anext(events)
    seconds = time.perf_counter() - began
    if event["event"] != "notification":
        raise AssertionError(f"the stream has delivered {event}")
    browser.listener.stop()
    await events.aclose()
    return seconds


_COLUMNS = {"channel_id": "text", "position": "int8", "listener_id": "text", "message_type": "text", "message": "bytea"}


def _load(crowd: Crowd, count: int) -> None:
    """Insert dispatches to others into the log, as if they had been dispatched just now."""
    location, channel_id = crowd.location, crowd.channel_id
    last = f"UPDATE sse_event_logs SET last_position = last_position + {count} WHERE channel_id = '{channel_id}'"
    ((blob, position),) = _run(location, "SELECT message, position FROM sse_events ORDER BY position DESC LIMIT 1")
    rows = (
        (channel_id, position + 1 + number, listener_id(1 + number % OTHERS), "notification", blob)
        for number in range(count)
    )
    if location.is_sqlite:
        places = ", ".join("?" * len(_COLUMNS))
        with closing(location.connect_sqlite()) as connection:
            load_sqlite(connection, f"INSERT INTO sse_events ({', '.join(_COLUMNS)}) VALUES ({places})", rows)
    else:
        with closing(location.connect_postgres()) as connection:
            load_postgres(connection, "sse_events", _COLUMNS, rows)
    _run(location, last)


def _run(location: Location, statement: str) -> list[Any]:
    with closing(location.connect_sqlite() if location.is_sqlite else location.connect_postgres()) as connection:
        done = connection.execute(statement)
        return done.fetchall() if done.description else []
