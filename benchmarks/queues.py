"""Measures ``SqlQueue`` against the raw driver and other queues."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Any

from eric_sse.exception import NoMessagesException

from benchmarks.contenders import close, our_databases
from benchmarks.databases import Backend
from benchmarks.figures import APPLICATION, LISTENED, OURS, RAW, Figure, against_peers, against_raw, growth
from benchmarks.goals import (
    DEPTH,
    DEPTH_GROWTH,
    EMPTY,
    KNOWN_EMPTY,
    POP,
    PUSH,
    QUEUE,
    QUEUE_PEERS,
    RECEIVE,
    RECEIVE_TO_POP,
)
from benchmarks.queue_peers import queue_peers
from benchmarks.stores import FillableQueue, LeasingQueue, MessageQueue
from benchmarks.suite import Bench, Suite
from benchmarks.throughput import throughput
from benchmarks.timing import Step, by_first, interleaved
from benchmarks.values import many_messages, new_message
from eric_sse_sql import SqlQueue

WARM_UP = 20
QUEUE_ID = "bench"
FILLED_AT_ONCE = 10_000


@dataclass(frozen=True)
class Sizes:
    """How many times each operation is timed, and on how much."""

    samples: int = 600
    pops: int = 200
    depths: tuple[int, ...] = (1_000, 10_000, 100_000, 1_000_000)
    messages: int = 4_000
    rounds: int = 3


QUICK = Sizes(samples=150, pops=60, depths=(1_000, 100_000), messages=2_000, rounds=1)


def one_message(bench: Bench) -> Iterator[Figure]:
    """What is done to one message, each contender on a database of its own."""
    samples, database = bench.sizes.samples, bench.backend.name
    count = WARM_UP + samples
    messages = [new_message(number) for number in range(2 * count)]
    with contenders(bench.backend) as ours:
        queues = {**ours, **bench.peers}

        def timed(step: Callable[[MessageQueue, int], Any]) -> dict[str, float]:
            steps = {name: _step(step, queue) for name, queue in queues.items()}
            return interleaved(steps, samples, warm_up=WARM_UP, block=10)

        medians = {PUSH: timed(lambda queue, number: queue.push(messages[number]))}
        for queue in queues.values():
            for message in messages[count:]:
                queue.push(message)
        # A pop and a receive are timed in turns, for one is measured by the other.
        leasing = {name: queue for name, queue in queues.items() if isinstance(queue, LeasingQueue)}
        steps: dict[tuple[str, str], Step] = {(POP, name): _step(_pop, queue) for name, queue in queues.items()}
        steps |= {(RECEIVE, name): _step(_receive, queue) for name, queue in leasing.items()}
        medians |= by_first(interleaved(steps, samples, warm_up=WARM_UP, block=10))
        for queue in queues.values():
            _drain(queue)
        unknown = {name: _unknown(queue, count) for name, queue in queues.items()}
        looks = {name: _nothing_step(each) for name, each in unknown.items()}
        medians[EMPTY] = interleaved(looks, samples, warm_up=WARM_UP, block=10)
        known = {name: _step(_pop_nothing, queue) for name, queue in ours.items() if name != RAW}
        medians[KNOWN_EMPTY] = interleaved(known, samples, warm_up=WARM_UP, block=10)
    for operation in (PUSH, POP, RECEIVE, EMPTY):
        yield against_raw(database, operation, medians[operation], QUEUE[database].get(operation))
        if operation == RECEIVE:
            yield growth(database, "… compared with pop", medians[RECEIVE], medians[POP], RECEIVE_TO_POP)
    yield Figure(database, KNOWN_EMPTY, medians[KNOWN_EMPTY])
    for operation, goals in QUEUE_PEERS[database].items():
        yield from against_peers(database, operation, medians[operation], goals)


def depth(bench: Bench) -> Iterator[Figure]:
    """A pop from queues of several depths, which get no more messages."""
    database, depths = bench.backend.name, bench.sizes.depths
    steps: dict[tuple[int, str], Step] = {}
    with ExitStack() as stack:
        for size in depths:
            messages = size + WARM_UP + bench.sizes.pops
            raw = stack.enter_context(closing(bench.backend.raw_queue(bench.backend.create(), QUEUE_ID)))
            raw.fill(many_messages(messages))
            ours = _filled(bench.backend, messages, stack)
            steps |= {(size, RAW): _step(_pop, raw), (size, OURS): _step(_pop, ours)}
        medians = by_first(interleaved(steps, bench.sizes.pops, warm_up=WARM_UP, block=5))
    for size in depths:
        peers = _peers_at_depth(bench, size)
        yield against_raw(database, f"{DEPTH} {size:,}", {**medians[size], **peers}, curve=DEPTH, size=size)
    yield growth(database, f"… compared with {depths[0]:,}", medians[depths[-1]], medians[depths[0]], DEPTH_GROWTH)


def _filled(backend: Backend, count: int, stack: ExitStack) -> SqlQueue:
    """A queue of ours with many messages in it."""
    location = backend.create()
    database = location.open()
    stack.callback(close, database)
    queue = SqlQueue(database, QUEUE_ID)
    messages = many_messages(count)
    while batch := list(islice(messages, FILLED_AT_ONCE)):
        queue.push_many(batch)
    backend.settle(location)
    return queue


SUITE = Suite(
    name="queues",
    title="The queue against the raw drivers and other queues",
    legend=f"""\
"{OURS}" is `SqlQueue(Database(url))`; "{LISTENED}" is the same while somebody listens to the engine's events, and
"{APPLICATION}" the same on an engine made with SQLAlchemy's defaults. In both, statements go through SQLAlchemy.""",
    peers_legend="""\
Other queues, as they come. A goal compares equals: where each commit of the peer waits for the disk, so does ours.
litequeue, kombu and procrastinate keep a popped message; procrastinate's workers fetch over asyncio, which is left out
here, and its messages are JSON.""",
    contenders=(RAW, OURS, LISTENED, APPLICATION),
    sizes=Sizes(),
    quick=QUICK,
    amount=lambda sizes: (
        f"""\
Medians of {sizes.samples:,} operations on one message, {sizes.pops:,} pops at each depth, or {sizes.rounds} runs of
many processes with {sizes.messages:,} messages."""
    ),
    peers=queue_peers,
    operations={"one-message": one_message, "depth": depth, "throughput": throughput},
)


@contextmanager
def contenders(backend: Backend) -> Iterator[Mapping[str, MessageQueue]]:
    """The raw driver, and the queue in each way that applications open it."""
    with closing(backend.raw_queue(backend.create(), QUEUE_ID)) as raw, our_databases(backend.create) as ours:
        yield {RAW: raw, **{name: SqlQueue(database, QUEUE_ID) for name, database in ours.items()}}


def _peers_at_depth(bench: Bench, size: int) -> dict[str, float]:
    """Pops of the peers that take many messages at once, and are empty before."""
    queues = {name: queue for name, queue in bench.peers.items() if isinstance(queue, FillableQueue)}
    for queue in queues.values():
        queue.fill(many_messages(size + WARM_UP + bench.sizes.pops))
    steps = {name: _step(_pop, queue) for name, queue in queues.items()}
    medians = interleaved(steps, bench.sizes.pops, warm_up=WARM_UP, block=5)
    for queue in queues.values():
        queue.clear()
    return medians


def _step(operation: Callable[[Any, int], object], queue: MessageQueue) -> Step:
    return lambda number: operation(queue, number)


def _pop(queue: MessageQueue, number: int) -> None:
    queue.pop()


def _receive(queue: LeasingQueue, number: int) -> None:
    with queue.receive():
        pass


def _pop_nothing(queue: MessageQueue, number: int) -> None:
    try:
        queue.pop()
    except NoMessagesException:
        return
    raise AssertionError("the queue is not empty")


def _unknown(queue: MessageQueue, count: int) -> list[MessageQueue]:
    """An empty queue, as many times as it is asked for: ours asks the database only as long as it does not know."""
    if isinstance(queue, SqlQueue):
        return [SqlQueue(queue.database, queue.id) for _ in range(count)]
    return [queue] * count


def _nothing_step(queues: Sequence[MessageQueue]) -> Step:
    return lambda number: _pop_nothing(queues[number], number)


def _drain(queue: MessageQueue) -> None:
    while True:
        try:
            queue.pop()
        except NoMessagesException:
            return
