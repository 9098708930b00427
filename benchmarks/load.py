"""Many streams under load: whether every message arrives once and in order, how soon, and on how much memory."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from benchmarks import goals
from benchmarks.figures import OURS, Figure
from benchmarks.memory import resident
from benchmarks.placement import on_any_core
from benchmarks.processes import are_done, await_others, say_done, together
from benchmarks.receiving import START_SECONDS, percentile, stamped, streaming
from benchmarks.stream_peers import SqlStreams, Streams, listener_id
from benchmarks.suite import Bench

DISPATCHERS = 2
RATE = 500  # messages a second, of all dispatchers
BACKLOG_SECONDS = 30  # which the last messages have to arrive
DOUBLES_SECONDS = 3  # which those have that must not arrive


@dataclass
class Ledger:
    """What of each dispatcher has arrived.

    :param share: how many messages each of them dispatches
    """

    share: int
    latencies: list[float] = field(default_factory=list)
    doubled: int = 0
    disordered: int = 0
    cpu: float = 0
    memory: list[int | None] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.latencies = [0.0] * (DISPATCHERS * self.share)  # all there is to be, so that nothing grows
        self._last: dict[tuple[str, int], int] = {}
        self._seen = [bytearray(self.share) for _ in range(DISPATCHERS)]
        self.arrived = 0

    def take(self, listener: str, payload: Mapping[str, Any]) -> None:
        dispatcher, number = payload["dispatcher"], payload["number"]
        if self._seen[dispatcher][number]:
            self.doubled += 1
            return
        self._seen[dispatcher][number] = 1
        self.latencies[self.arrived] = time.time() - payload["dispatched"]
        self.arrived += 1
        self.disordered += number < self._last.get((listener, dispatcher), -1)
        self._last[listener, dispatcher] = number


def load(bench: Bench) -> Iterator[Figure]:
    """Two processes dispatch to any of the streams of a third."""
    count, seconds = bench.sizes.loaded_streams, bench.sizes.load_seconds
    share = RATE // DISPATCHERS * seconds
    with ExitStack() as stack:
        streams = SqlStreams(stack.enter_context(bench.backend.for_many_processes()).create())
        stack.enter_context(on_any_core())
        dispatchers = [partial(_dispatch, streams, count, share, number) for number in range(DISPATCHERS)]
        ledger, *rates = together([partial(_take, streams, count, share, seconds), *dispatchers])
    database, what = bench.backend.name, f"{count:,} streams under load"

    def figure(name: str, value: float, unit: str, goal: goals.Goal | None = None) -> Figure:
        return Figure(database, f"{what}: {name}", goal=goal, values={OURS: value}, unit=unit)

    yield figure("messages dispatched", sum(rates), "/s")
    yield figure("lost", DISPATCHERS * share - ledger.arrived, "", goals.NONE)
    yield figure("doubled", ledger.doubled, "", goals.NONE)
    yield figure("out of order", ledger.disordered, "", goals.NONE)
    arrived = ledger.latencies[: ledger.arrived]
    for percent in (50, 99):
        yield figure(f"p{percent}", 1e3 * percentile(arrived, percent), "ms")
    yield figure("CPU of the receiving process", 100 * ledger.cpu, "%")
    if None not in ledger.memory:
        for moment, size in zip(("at the start", "after a third", "at the end"), ledger.memory, strict=True):
            yield figure(f"memory {moment}", size / 1e6, "MB")
        _, before, after = ledger.memory
        yield figure("memory, growth since the first third", 100 * (after / before - 1), "%", goals.FLAT)


def _dispatch(streams: Streams, count: int, share: int, dispatcher: int) -> float:
    """Dispatch at an even pace. How many messages a second were."""
    channel = streams.open(count)
    await_others(START_SECONDS)
    began = time.monotonic()
    for number in range(share):
        time.sleep(max(0.0, began + number * DISPATCHERS / RATE - time.monotonic()))
        channel.dispatch(listener_id(random.randrange(count)), stamped(number, dispatcher=dispatcher))
    say_done()
    return share / (time.monotonic() - began)


def _take(streams: Streams, count: int, share: int, seconds: float) -> Ledger:
    ledger = Ledger(share)
    asyncio.run(_fill(ledger, streams, count, seconds))
    return ledger


async def _fill(ledger: Ledger, streams: Streams, count: int, seconds: float) -> None:
    async with streaming(streams.open(count), ledger.take):
        await asyncio.to_thread(await_others, START_SECONDS)
        ledger.memory.append(resident())
        began, cpu = time.monotonic(), time.process_time()
        await asyncio.sleep(seconds / 3)
        ledger.memory.append(resident())
        await asyncio.sleep(2 * seconds / 3)
        ledger.cpu = (time.process_time() - cpu) / (time.monotonic() - began)
        give_up = time.monotonic() + seconds + BACKLOG_SECONDS
        while time.monotonic() < give_up and not (are_done(DISPATCHERS) and ledger.arrived == len(ledger.latencies)):
            await asyncio.sleep(0.1)
        ledger.memory.append(resident())
        await asyncio.sleep(DOUBLES_SECONDS)
