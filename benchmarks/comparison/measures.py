"""The measures by which two installations of eric_sse_sql are compared.

They use nothing but the public names of the package, so that older and newer versions run the same code.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial

from benchmarks.harness.figures import APPLICATION, LISTENED, OURS
from benchmarks.harness.goals import DEPTH, EMPTY, KNOWN_EMPTY, LOAD_ALL, PAGE, POP, PUSH, RECEIVE, SCAN
from benchmarks.harness.repository_channels import RepositoryChannels
from benchmarks.harness.sample_data import many_messages, new_message, new_value
from benchmarks.harness.timing import Step
from benchmarks.suites.channels_suite import CONNECTIONS, OPERATIONS, channel_step, load_all_step, new_channels
from benchmarks.suites.queues_suite import drain, empty_pop_step, pop, pop_empty, push_step, receive
from benchmarks.suites.storage_suite import MATCHES, grouped_keys, key_operations, page_step, scan_step
from eric_sse_sql import Database, SqlQueue, SqlSSEChannelRepository, SqlStorageEngine

BLOCK = 20  # steps of a round, where a step takes microseconds


@dataclass(frozen=True)
class Sizes:
    """How much is measured.

    :param seconds: for how long repetitions begin; in each, both installations are started anew
    :param repetitions: how many there are at least
    :param rounds: how many rounds each measure has in a repetition, besides the uncounted first one
    :param keys: of the table that is scanned
    :param depth: of the deep queue
    :param connections: of the channels
    :param channels: among which ``load_all`` finds one
    """

    seconds: float = 540
    repetitions: int = 5
    rounds: int = 6
    keys: int = 1_000
    depth: int = 2_000
    connections: tuple[int, ...] = (10, 1_000)
    channels: int = 20

    @property
    def all_rounds(self) -> int:
        """The rounds of a measure in a repetition, with the uncounted one."""
        return 1 + self.rounds


SIZES = {
    "full": Sizes(),
    "quick": Sizes(seconds=160, rounds=3),
    "smoke": Sizes(seconds=0, repetitions=1, rounds=1, keys=200, depth=10, connections=(2,), channels=2),
}


@dataclass(frozen=True)
class Measure:
    """An operation to time.

    :param step: does it; its argument counts the calls
    :param block: how many steps a round has
    :param prepare: is called before the first round
    """

    name: str
    step: Step
    block: int = BLOCK
    prepare: Callable[[], object] = lambda: None


def storage_measures(database: Database, sizes: Sizes, stack: ExitStack) -> Iterator[Measure]:
    """The operations on one key, a prefix page and a scan."""
    store = SqlStorageEngine(database)
    for name, operation in key_operations(sizes.all_rounds * BLOCK).items():
        yield Measure(name, partial(operation, store))
    full, keys = SqlStorageEngine(database, "full"), grouped_keys(sizes.keys)

    def fill() -> None:
        with database.transaction():
            for number, key in enumerate(keys):
                full.upsert(key, new_value(number))

    yield Measure(f"{PAGE}, {MATCHES} of {sizes.keys:,}", page_step(full, "page", sizes.keys // MATCHES), 10, fill)
    yield Measure(f"{SCAN} of {sizes.keys:,}", scan_step(full, sizes.keys), 3)


def queue_measures(database: Database, sizes: Sizes, stack: ExitStack) -> Iterator[Measure]:
    """The operations on one message, and a pop from a deep queue."""
    steps = sizes.all_rounds * BLOCK
    queue, deep = SqlQueue(database, "compared"), SqlQueue(database, "deep")
    messages = [new_message(number) for number in range(steps)]
    yield Measure(PUSH, push_step(queue, messages))
    yield Measure(POP, partial(pop, queue))
    yield Measure(RECEIVE, partial(receive, queue), prepare=lambda: queue.push_many(messages))
    fill = partial(_fill, deep, sizes.depth + steps, stack)
    yield Measure(f"{DEPTH} {sizes.depth:,}", partial(pop, deep), prepare=fill)
    yield Measure(EMPTY, empty_pop_step(queue, steps), prepare=lambda: drain(queue))
    yield Measure(KNOWN_EMPTY, partial(pop_empty, queue), prepare=lambda: drain(queue))


def _fill(queue: SqlQueue, count: int, stack: ExitStack) -> None:
    queue.push_many(many_messages(count))
    stack.callback(queue.clear)


def channel_measures(database: Database, sizes: Sizes, stack: ExitStack) -> Iterator[Measure]:
    """The operations on whole channels, and the connections of one channel among others."""
    store = RepositoryChannels(SqlSSEChannelRepository(database))
    for connections in sizes.connections:
        block = max(2, min(BLOCK // 2, 100 // connections))
        channels = list(new_channels(store, sizes.all_rounds * block, connections))
        for name, work in OPERATIONS.items():
            yield Measure(f"{name}, N = {connections:,}", channel_step(work, store, channels), block)
    others = list(new_channels(store, sizes.channels, CONNECTIONS))

    def persist() -> None:
        for channel in others:
            store.persist(channel)
            stack.callback(store.delete, channel.id)

    yield Measure(LOAD_ALL, load_all_step(store, [channel.id for channel in others]), 5, persist)


@dataclass(frozen=True)
class ComparedSuite:
    """The measures of a suite.

    :param engines: in which ways the database is opened: keys of ``OPENERS``
    :param measures: creates the measures on an open database; the stack deletes what they leave behind
    """

    engines: Sequence[str]
    measures: Callable[[Database, Sizes, ExitStack], Iterator[Measure]]


SUITES: Mapping[str, ComparedSuite] = {
    "storage": ComparedSuite((APPLICATION, OURS, LISTENED), storage_measures),
    "queues": ComparedSuite((APPLICATION, OURS, LISTENED), queue_measures),
    "channels": ComparedSuite((APPLICATION, OURS), channel_measures),
}
