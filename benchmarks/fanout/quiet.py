"""Measures what streams cost that get no message, beside a channel that is written to in another process."""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from typing import Any, NamedTuple

from benchmarks.fanout.crowd import REPLAY_SECONDS, Crowd, OnEvent, StatementCount, fail_on_event, streaming
from benchmarks.harness import goals
from benchmarks.harness.cpu_affinity import on_any_core
from benchmarks.harness.figures import OURS, Figure
from benchmarks.harness.sample_data import new_message
from benchmarks.harness.suite import Bench
from benchmarks.harness.worker_processes import run_in_processes, wait_until_all_ready
from benchmarks.streams.stream_locations import listener_id
from eric_sse_sql import Database, SqlSSEChannelRepository

WATCHING_THREAD = "eric_sse_sql watcher"
RATE = 500  # messages per second
START_SECONDS = 120


class Quiet(NamedTuple):
    """What a process did in a second.

    :param cpu: the share of a core
    :param statements: of the whole process
    :param of_streams: those that did not run in the thread that watches for all streams
    """

    cpu: float
    statements: float
    of_streams: float


def topics(bench: Bench) -> Iterator[Figure]:
    """Processes with a channel each, one of which is written to."""
    sizes, database = bench.sizes, bench.backend.name
    count = sizes.topics
    for way in REPLAY_SECONDS:
        with ExitStack() as stack:
            location = stack.enter_context(bench.backend.for_many_processes()).create()
            stack.enter_context(on_any_core())
            crowds = [Crowd(location, f"topic-{number}", sizes.topic_streams, way) for number in range(count)]
            for crowd in crowds:
                crowd.persist()
            written, *others = crowds
            tasks: list[Any] = [partial(_write, written, 2 * (sizes.settle_seconds + sizes.topic_seconds))]
            tasks.append(partial(_measure_topic, written, sizes, _ignore))
            tasks += [partial(_measure_topic, crowd, sizes, fail_on_event) for crowd in others]
            rate, busy, *others_quiet = run_in_processes(tasks)
        what = f"{count} processes, one channel written to, {way}"
        yield Figure(database, f"{what}: messages", values={OURS: rate}, unit="/s")
        yield Figure(database, f"{what}: statements of its process", values={OURS: busy.statements}, unit="/s")
        most = {OURS: max(each.statements for each in others_quiet)}
        goal = goals.STATEMENTS_OF_OTHERS
        yield Figure(database, f"{what}: most statements of another", goal=goal, values=most, unit="/s")
        cpu = {OURS: 100 * max(each.cpu for each in others_quiet)}
        yield Figure(database, f"{what}: most CPU of another", values=cpu, unit="%")


def _measure_topic(crowd: Crowd, sizes: Any, on_event: OnEvent) -> Quiet:
    async def measure() -> Quiet:
        with crowd.opened() as database:
            async with streaming(database, crowd, on_event):
                await asyncio.to_thread(wait_until_all_ready, START_SECONDS)
                return await quiet(database, sizes.settle_seconds, sizes.topic_seconds)

    return asyncio.run(measure())


async def quiet(database: Database, settle_seconds: float, seconds: float) -> Quiet:
    """What this process does once it has settled. An event listens to the engine only after the CPU was measured."""
    await asyncio.sleep(settle_seconds)
    cpu = await _cpu_share(seconds)
    all_statements, of_streams = StatementCount(database), StatementCount(database, is_of_stream)
    await asyncio.sleep(seconds)
    return Quiet(cpu, all_statements.statements / seconds, of_streams.statements / seconds)


async def _cpu_share(seconds: float) -> float:
    began, cpu = time.monotonic(), time.process_time()
    await asyncio.sleep(seconds)
    return (time.process_time() - cpu) / (time.monotonic() - began)


def _write(crowd: Crowd, seconds: float) -> float:
    """Dispatch at a constant rate, and return the rate that was reached."""
    with crowd.opened() as database:
        channel = SqlSSEChannelRepository(database).load_one(crowd.channel_id)
        wait_until_all_ready(START_SECONDS)
        began, count = time.monotonic(), round(seconds * RATE)
        for number in range(count):
            time.sleep(max(0.0, began + number / RATE - time.monotonic()))
            channel.dispatch(listener_id(random.randrange(crowd.listeners)), new_message(number))
        return count / (time.monotonic() - began)


def is_of_stream() -> bool:
    """Whether this thread does not watch for all streams of its process."""
    return threading.current_thread().name != WATCHING_THREAD


def _ignore(number: int, each: object) -> None:
    """Events of the channel that is written to are not counted."""
