"""Measures many streams under load: lost, repeated and reordered messages, latency, CPU time and memory."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from benchmarks.harness import goals
from benchmarks.harness.cpu_affinity import on_any_core
from benchmarks.harness.figures import OURS, Figure, Goal
from benchmarks.harness.process_memory import resident_bytes
from benchmarks.harness.suite import Bench
from benchmarks.harness.worker_processes import are_all_done, mark_done, run_in_processes, wait_until_all_ready
from benchmarks.streams.receiver import START_SECONDS, percentile, stamped, streaming
from benchmarks.streams.stream_locations import SqlStreams, StreamsLocation, listener_id

DISPATCHERS = 2
RATE = 500  # messages per second, of all dispatchers together
BACKLOG_SECONDS = 30  # for the last messages to arrive


@dataclass
class Ledger:
    """Counts the messages of each dispatcher that have arrived.

    :param share: how many messages each dispatcher sends
    """

    share: int
    latencies: list[float] = field(default_factory=list)
    arrived: int = 0
    repeated: int = 0
    reordered: int = 0
    cpu: float = 0
    memory: list[int | None] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.latencies = [0.0] * (DISPATCHERS * self.share)  # allocated in advance, so that its growth is not measured
        self._last: dict[tuple[str, int], int] = {}
        self._seen = [bytearray(self.share) for _ in range(DISPATCHERS)]

    def record(self, listener: str, payload: Mapping[str, Any]) -> None:
        dispatcher, number = payload["dispatcher"], payload["number"]
        if self._seen[dispatcher][number]:
            self.repeated += 1
            return
        self._seen[dispatcher][number] = 1
        self.latencies[self.arrived] = time.time() - payload["dispatched"]
        self.arrived += 1
        self.reordered += number < self._last.get((listener, dispatcher), -1)
        self._last[listener, dispatcher] = number


def load(bench: Bench) -> Iterator[Figure]:
    """Two processes dispatch to random streams of a third process."""
    sizes = bench.sizes
    count, share = sizes.loaded_streams, RATE // DISPATCHERS * sizes.load_seconds
    with ExitStack() as stack:
        streams = SqlStreams(stack.enter_context(bench.backend.for_many_processes()).create())
        stack.enter_context(on_any_core())
        receiver = partial(_receive, streams, count, share, sizes.load_seconds, sizes.repetition_seconds)
        dispatchers = [partial(_dispatch, streams, count, share, number) for number in range(DISPATCHERS)]
        tasks: list[Any] = [receiver, *dispatchers]
        ledger, *rates = run_in_processes(tasks)
    database, what = bench.backend.name, f"{count:,} streams under load"

    def figure(name: str, value: float, unit: str, goal: Goal | None = None) -> Figure:
        return Figure(database, f"{what}: {name}", goal=goal, values={OURS: value}, unit=unit)

    yield figure("messages dispatched", sum(rates), "/s")
    yield figure("lost", DISPATCHERS * share - ledger.arrived, "", goals.NONE)
    yield figure("delivered twice", ledger.repeated, "", goals.NONE)
    yield figure("out of order", ledger.reordered, "", goals.NONE)
    arrived = ledger.latencies[: ledger.arrived]
    for percent in (50, 99):
        yield figure(f"p{percent}", 1e3 * percentile(arrived, percent), "ms")
    yield figure("CPU of the receiving process", 100 * ledger.cpu, "%")
    if None not in ledger.memory:
        for moment, size in zip(("at the start", "after a third", "at the end"), ledger.memory, strict=True):
            yield figure(f"memory {moment}", size / 1e6, "MB")
        _, before, after = ledger.memory
        yield figure("memory, growth since the first third", 100 * (after / before - 1), "%", goals.FLAT)


def _dispatch(streams: StreamsLocation, count: int, share: int, dispatcher: int) -> float:
    """Dispatch at a constant rate, and return the rate that was reached, in messages per second."""
    channel = streams.open(count)
    wait_until_all_ready(START_SECONDS)
    began = time.monotonic()
    for number in range(share):
        time.sleep(max(0.0, began + number * DISPATCHERS / RATE - time.monotonic()))
        channel.dispatch(listener_id(random.randrange(count)), stamped(number, dispatcher=dispatcher))
    mark_done()
    return share / (time.monotonic() - began)


def _receive(
    streams: StreamsLocation, count: int, share: int, load_seconds: float, repetition_seconds: float
) -> Ledger:
    ledger = Ledger(share)
    asyncio.run(_record(ledger, streams, count, load_seconds, repetition_seconds))
    return ledger


async def _record(
    ledger: Ledger, streams: StreamsLocation, count: int, load_seconds: float, repetition_seconds: float
) -> None:
    async with streaming(streams.open(count), ledger.record):
        await asyncio.to_thread(wait_until_all_ready, START_SECONDS)
        ledger.memory.append(resident_bytes())
        began, cpu = time.monotonic(), time.process_time()
        await asyncio.sleep(load_seconds / 3)
        ledger.memory.append(resident_bytes())
        await asyncio.sleep(2 * load_seconds / 3)
        ledger.cpu = (time.process_time() - cpu) / (time.monotonic() - began)
        deadline = time.monotonic() + load_seconds + BACKLOG_SECONDS
        while time.monotonic() < deadline and not (
            are_all_done(DISPATCHERS) and ledger.arrived == len(ledger.latencies)
        ):
            await asyncio.sleep(0.1)
        ledger.memory.append(resident_bytes())
        await asyncio.sleep(repetition_seconds)
