"""Measures the throughput of a queue that many processes push to and pop from."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

from eric_sse.exception import NoMessagesException

from benchmarks.baselines.connections import raw_queue
from benchmarks.harness import goals
from benchmarks.harness.cpu_affinity import on_any_core
from benchmarks.harness.figures import OURS, RAW, Figure, compare_with_peers, compare_with_raw
from benchmarks.harness.interfaces import MessageQueue
from benchmarks.harness.locations import Location
from benchmarks.harness.optional_peers import Opener, open_peers
from benchmarks.harness.sample_data import new_message
from benchmarks.harness.suite import Bench
from benchmarks.harness.worker_processes import are_all_done, mark_done, run_in_processes, wait_until_all_ready
from benchmarks.peers.queue_peers import redis_location
from benchmarks.peers.redis_server import IN_MEMORY, ON_DISK
from eric_sse_sql import SqlQueue

QUEUE_ID = "bench"
START_SECONDS, RUN_SECONDS = 60, 60
WARM_UP = 20
PAUSE_SECONDS = 0.001  # after an empty pop


class QueueLocation(Protocol):
    """Where a queue is. It can be pickled, to be passed to another process."""

    def open(self) -> MessageQueue: ...


@dataclass(frozen=True)
class SqlQueueLocation:
    """A queue of eric_sse_sql."""

    location: Location

    def open(self) -> MessageQueue:
        return SqlQueue(self.location.open(), QUEUE_ID)


@dataclass(frozen=True)
class RawQueueLocation:
    """A queue over the raw driver."""

    location: Location

    def open(self) -> MessageQueue:
        return raw_queue(self.location, QUEUE_ID)


@dataclass(frozen=True)
class Span:
    """How many messages a process has moved, and from when to when, on the clock that all processes share."""

    messages: int
    began: float
    ended: float


def throughput(bench: Bench) -> Iterator[Figure]:
    """As many producers as consumers. They and the server run on all cores; the contenders take turns."""
    database, sizes = bench.backend.name, bench.sizes
    seconds: dict[str, list[float]] = {}
    with ExitStack() as stack:
        backend = stack.enter_context(bench.backend.for_many_processes())
        locations, _ = stack.enter_context(open_peers(bench.peer_filter(_PEERS), bench.folder / "throughput"))
        contenders: Mapping[str, QueueLocation] = {
            RAW: RawQueueLocation(backend.create()),
            OURS: SqlQueueLocation(backend.create()),
            **locations,
        }
        order = list(contenders)
        for _ in range(sizes.rounds):
            for name in order:
                taken = _seconds_per_message(contenders[name], sizes.producers, sizes.messages)
                seconds.setdefault(name, []).append(taken)
            order = order[1:] + order[:1]
    medians = {name: statistics.median(taken) for name, taken in seconds.items()}
    operation = f"{sizes.producers} producers, {sizes.producers} consumers"
    yield compare_with_raw(database, operation, medians, is_rate=True)
    yield from compare_with_peers(database, operation, medians, goals.THROUGHPUT[database])


def _redis(options: tuple[str, ...]) -> Opener[QueueLocation]:
    def opened(folder: Path, stack: ExitStack) -> QueueLocation:
        return redis_location(options, folder, stack, on_any_core)

    return opened


_PEERS: Mapping[str, Opener[QueueLocation]] = {
    goals.REDIS_QUEUE_IN_MEMORY: _redis(IN_MEMORY),
    goals.REDIS_QUEUE_ON_DISK: _redis(ON_DISK),
}


def _seconds_per_message(location: QueueLocation, producers: int, messages: int) -> float:
    """The time from the first push to the last pop, divided by the number of messages.

    :raises AssertionError: when the number of popped messages is not that of the pushed ones
    """
    share = messages // producers
    tasks = [partial(_produce, location, share)] * producers + [partial(_consume, location, producers)] * producers
    with on_any_core():
        spans = run_in_processes(tasks)
    moved = sum(span.messages for span in spans[producers:])
    if moved != share * producers:
        raise AssertionError(f"{moved} messages were popped, and {share * producers} pushed")
    return (max(span.ended for span in spans) - min(span.began for span in spans)) / moved


def _produce(location: QueueLocation, count: int) -> Span:
    queue = location.open()
    for number in range(WARM_UP):  # imports modules, connects and prepares statements
        queue.push(new_message(number))
    messages = [new_message(number) for number in range(count)]
    wait_until_all_ready(START_SECONDS)
    began = time.monotonic()
    for message in messages:
        queue.push(message)
    mark_done()
    return Span(count, began, time.monotonic())


def _consume(location: QueueLocation, producers: int) -> Span:
    """Pop until all producers are done and a newly opened queue is empty.

    A queue that was found empty before skips the query until it learns of a push.
    """
    queue, popped = location.open(), 0
    while popped < WARM_UP:  # the warm-up messages of one producer
        try:
            queue.pop()
        except NoMessagesException:
            time.sleep(PAUSE_SECONDS)
        else:
            popped += 1
    wait_until_all_ready(START_SECONDS)
    began = ended = time.monotonic()
    popped, is_final_check = 0, False
    while time.monotonic() < began + RUN_SECONDS:
        try:
            queue.pop()
        except NoMessagesException:
            if is_final_check:
                break
            if are_all_done(producers):
                queue, is_final_check = location.open(), True
            time.sleep(PAUSE_SECONDS)
        else:
            popped, ended = popped + 1, time.monotonic()
    return Span(popped, began, ended)
