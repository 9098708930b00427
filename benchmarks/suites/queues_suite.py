"""Measures ``SqlQueue`` against the raw driver and other queues."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import islice

from eric_sse.exception import NoMessagesException
from eric_sse.message import MessageContract

from benchmarks.baselines.connections import raw_queue
from benchmarks.harness.backends import Backend
from benchmarks.harness.figures import (
    APPLICATION,
    LISTENED,
    OURS,
    RAW,
    Figure,
    compare_with_peers,
    compare_with_raw,
    growth,
    judge_application,
)
from benchmarks.harness.goals import (
    APPLICATION_QUEUE,
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
from benchmarks.harness.interfaces import FillableQueue, LeasingQueue, MessageQueue
from benchmarks.harness.locations import close, our_databases
from benchmarks.harness.sample_data import many_messages, new_message
from benchmarks.harness.suite import Bench, Suite
from benchmarks.harness.timing import Step, by_first, interleaved
from benchmarks.peers.queue_peers import queue_peers
from benchmarks.suites.queue_throughput import throughput
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
    producers: int = 4
    rounds: int = 3


QUICK = Sizes(samples=150, pops=60, depths=(1_000, 100_000), messages=2_000, rounds=1)
SMOKE = Sizes(samples=5, pops=5, depths=(10, 100), messages=40, producers=1, rounds=1)


def one_message(bench: Bench) -> Iterator[Figure]:
    """Each operation on one message. Each contender has a database of its own."""
    samples, database = bench.sizes.samples, bench.backend.name
    count = WARM_UP + samples
    messages = [new_message(number) for number in range(2 * count)]
    with contenders(bench.backend) as ours:
        queues = {**ours, **bench.peers}

        pushes: dict[str, Step] = {name: push_step(queue, messages) for name, queue in queues.items()}
        medians = {PUSH: interleaved(pushes, samples, warm_up=WARM_UP, block=10)}
        for queue in queues.values():
            for message in messages[count:]:
                queue.push(message)
        # A pop and a receive are timed in turns, because the report compares them.
        leasing = {name: queue for name, queue in queues.items() if isinstance(queue, LeasingQueue)}
        steps: dict[tuple[str, str], Step] = {(POP, name): partial(pop, queue) for name, queue in queues.items()}
        steps |= {(RECEIVE, name): partial(receive, queue) for name, queue in leasing.items()}
        medians |= by_first(interleaved(steps, samples, warm_up=WARM_UP, block=10))
        for queue in queues.values():
            drain(queue)
        unknown = {name: empty_pop_step(queue, count) for name, queue in queues.items()}
        medians[EMPTY] = interleaved(unknown, samples, warm_up=WARM_UP, block=10)
        known = {name: partial(pop_empty, queue) for name, queue in ours.items() if name != RAW}
        medians[KNOWN_EMPTY] = interleaved(known, samples, warm_up=WARM_UP, block=10)
    for operation in (PUSH, POP, RECEIVE, EMPTY):
        figure = compare_with_raw(database, operation, medians[operation], QUEUE[database].get(operation))
        yield figure
        yield from judge_application(figure, APPLICATION_QUEUE[database].get(operation))
        if operation == RECEIVE:
            yield growth(database, "… compared with pop", medians[RECEIVE], medians[POP], RECEIVE_TO_POP)
    yield Figure(database, KNOWN_EMPTY, medians[KNOWN_EMPTY])
    for operation, goals in QUEUE_PEERS[database].items():
        yield from compare_with_peers(database, operation, medians[operation], goals)


def depth(bench: Bench) -> Iterator[Figure]:
    """A pop from queues of several depths."""
    database, depths = bench.backend.name, bench.sizes.depths
    steps: dict[tuple[int, str], Step] = {}
    with ExitStack() as stack:
        for size in depths:
            messages = size + WARM_UP + bench.sizes.pops
            raw = stack.enter_context(closing(raw_queue(bench.backend.create(), QUEUE_ID)))
            raw.fill(many_messages(messages))
            ours = _filled_queue(bench.backend, messages, stack)
            steps |= {(size, RAW): partial(pop, raw), (size, OURS): partial(pop, ours)}
        medians = by_first(interleaved(steps, bench.sizes.pops, warm_up=WARM_UP, block=5))
    for size in depths:
        peers = _peers_at_depth(bench, size)
        yield compare_with_raw(database, f"{DEPTH} {size:,}", {**medians[size], **peers}, curve=DEPTH, size=size)
    yield growth(database, f"… compared with {depths[0]:,}", medians[depths[-1]], medians[depths[0]], DEPTH_GROWTH)


def _filled_queue(backend: Backend, count: int, stack: ExitStack) -> SqlQueue:
    """Open a queue and push many messages."""
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
"{APPLICATION}" is `SqlQueue(Database(create_engine(url)))`, "{OURS}" is `SqlQueue(Database(url))`, and "{LISTENED}" is
the same with an event listener on the engine.""",
    peers_legend="""\
Other queues with their default settings. A goal compares a peer with the database of the same durability. litequeue,
kombu and procrastinate keep the row of a popped message; procrastinate's workers fetch over asyncio, here it fetches
over its synchronous connector, and its messages are JSON.""",
    contenders=(RAW, APPLICATION, OURS, LISTENED),
    sizes={"full": Sizes(), "quick": QUICK, "smoke": SMOKE},
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
    """Open the raw driver, and the queue in each way that an application opens it."""
    with closing(raw_queue(backend.create(), QUEUE_ID)) as raw, our_databases(backend.create) as ours:
        yield {RAW: raw, **{name: SqlQueue(database, QUEUE_ID) for name, database in ours.items()}}


def _peers_at_depth(bench: Bench, size: int) -> dict[str, float]:
    """Pops of the peers that can insert many messages at once."""
    queues = {name: queue for name, queue in bench.peers.items() if isinstance(queue, FillableQueue)}
    for queue in queues.values():
        queue.fill(many_messages(size + WARM_UP + bench.sizes.pops))
    steps = {name: partial(pop, queue) for name, queue in queues.items()}
    medians = interleaved(steps, bench.sizes.pops, warm_up=WARM_UP, block=5)
    for queue in queues.values():
        queue.clear()
    return medians


def push_step(queue: MessageQueue, messages: Sequence[MessageContract]) -> Step:
    """Pushes another message in each step."""
    return lambda number: queue.push(messages[number])


def pop(queue: MessageQueue, number: int) -> None:
    """A step that pops a message."""
    queue.pop()


def receive(queue: LeasingQueue, number: int) -> None:
    """A step that receives a message and acknowledges it."""
    with queue.receive():
        pass


def empty_pop_step(queue: MessageQueue, count: int) -> Step:
    """Pops from an empty queue in each step, with a query: a new ``SqlQueue`` does not know that it is empty."""
    if not isinstance(queue, SqlQueue):
        return partial(pop_empty, queue)
    queues = [SqlQueue(**queue.kv_constructor_params_as_dict) for _ in range(count)]
    return lambda number: pop_empty(queues[number], number)


def pop_empty(queue: MessageQueue, number: int) -> None:
    """A step that pops from an empty queue."""
    try:
        queue.pop()
    except NoMessagesException:
        return
    raise AssertionError("the queue is not empty")


def drain(queue: MessageQueue) -> None:
    """Pop until the queue is empty."""
    while True:
        try:
            queue.pop()
        except NoMessagesException:
            return
