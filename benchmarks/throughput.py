"""How many messages a second go through a queue that many processes push to and pop from."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

from eric_sse.exception import NoMessagesException

from benchmarks import goals
from benchmarks.contenders import Location
from benchmarks.figures import OURS, RAW, Figure, against_peers, against_raw
from benchmarks.peers import Opener, installed
from benchmarks.placement import on_any_core
from benchmarks.processes import are_done, await_others, say_done, together
from benchmarks.queue_peers import redis_location
from benchmarks.redis_server import IN_MEMORY, ON_DISK
from benchmarks.stores import MessageQueue
from benchmarks.suite import Bench
from benchmarks.values import new_message
from eric_sse_sql import SqlQueue

PRODUCERS = CONSUMERS = 4
QUEUE_ID = "bench"
START_SECONDS, RUN_SECONDS = 60, 60
WARM_UP = 20
PAUSE_SECONDS = 0.001  # after an empty pop: who waits leaves the others alone


class QueueLocation(Protocol):
    """Where a queue is, told to another process."""

    def open(self) -> MessageQueue: ...


@dataclass(frozen=True)
class SqlQueueLocation:
    """A queue of ours."""

    location: Location

    def open(self) -> MessageQueue:
        return SqlQueue(self.location.open(), QUEUE_ID)


@dataclass(frozen=True)
class RawQueueLocation:
    """The raw driver's."""

    connect: Callable[[Location, str], MessageQueue]
    location: Location

    def open(self) -> MessageQueue:
        return self.connect(self.location, QUEUE_ID)


@dataclass(frozen=True)
class Span:
    """What a process has moved, and when, on the clock that all processes share."""

    messages: int
    began: float
    ended: float


def throughput(bench: Bench) -> Iterator[Figure]:
    """Four producers and four consumers, on all cores, as is the server: round after round, each contender in turn."""
    database = bench.backend.name
    seconds: dict[str, list[float]] = {}
    with ExitStack() as stack:
        backend = stack.enter_context(bench.backend.for_many_processes())
        locations, _ = stack.enter_context(installed(_PEERS, bench.folder / "throughput"))
        contenders: Mapping[str, QueueLocation] = {
            RAW: RawQueueLocation(backend.raw_queue, backend.create()),
            OURS: SqlQueueLocation(backend.create()),
            **locations,
        }
        order = list(contenders)
        for _ in range(bench.sizes.rounds):
            for name in order:
                seconds.setdefault(name, []).append(_seconds_a_message(contenders[name], bench.sizes.messages))
            order.append(order.pop(0))
    medians = {name: statistics.median(taken) for name, taken in seconds.items()}
    operation = f"{PRODUCERS} producers, {CONSUMERS} consumers"
    yield against_raw(database, operation, medians, is_rate=True)
    yield from against_peers(database, operation, medians, goals.THROUGHPUT[database])


def _redis(options: tuple[str, ...]) -> Opener[QueueLocation]:
    def opened(folder: Path, stack: ExitStack) -> QueueLocation:
        return redis_location(options, folder, stack, on_any_core)

    return opened


_PEERS: Mapping[str, Opener[QueueLocation]] = {
    goals.REDIS_QUEUE_IN_MEMORY: _redis(IN_MEMORY),
    goals.REDIS_QUEUE_ON_DISK: _redis(ON_DISK),
}


def _seconds_a_message(location: QueueLocation, messages: int) -> float:
    """From the first push to the last pop, shared by all messages.

    :raises AssertionError: when not every message came out once
    """
    share = messages // PRODUCERS
    with on_any_core():
        spans = together([partial(_produce, location, share)] * PRODUCERS + [partial(_consume, location)] * CONSUMERS)
    moved = sum(span.messages for span in spans[PRODUCERS:])
    if moved != share * PRODUCERS:
        raise AssertionError(f"{moved} messages came out of a queue that {share * PRODUCERS} were pushed to")
    return (max(span.ended for span in spans) - min(span.began for span in spans)) / moved


def _produce(location: QueueLocation, count: int) -> Span:
    queue = location.open()
    for number in range(WARM_UP):  # until all is imported, connected and prepared
        queue.push(new_message(number))
    messages = [new_message(number) for number in range(count)]
    await_others(START_SECONDS)
    began = time.monotonic()
    for message in messages:
        queue.push(message)
    say_done()
    return Span(count, began, time.monotonic())


def _consume(location: QueueLocation) -> Span:
    """Pops until no producer is left and the queue is empty, for somebody who has not asked it before, too: who has
    found it empty is told of a push a little later."""
    queue, popped = location.open(), 0
    while popped < WARM_UP:  # as many as a producer has pushed
        try:
            queue.pop()
        except NoMessagesException:
            time.sleep(PAUSE_SECONDS)
        else:
            popped += 1
    await_others(START_SECONDS)
    began = ended = time.monotonic()
    popped, is_last_look = 0, False
    while time.monotonic() < began + RUN_SECONDS:
        try:
            queue.pop()
        except NoMessagesException:
            if is_last_look:
                break
            if are_done(PRODUCERS):
                queue, is_last_look = location.open(), True
            time.sleep(PAUSE_SECONDS)
        else:
            popped, ended = popped + 1, time.monotonic()
    return Span(popped, began, ended)
