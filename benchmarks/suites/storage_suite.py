"""Measures ``SqlStorageEngine`` against the raw driver and other stores."""

from __future__ import annotations

import random
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

from benchmarks.baselines.connections import raw_store
from benchmarks.harness.backends import Backend
from benchmarks.harness.figures import (
    APPLICATION,
    LISTENED,
    OURS,
    RAW,
    Figure,
    compare_with_raw,
    growth,
    judge_application,
)
from benchmarks.harness.goals import (
    APPLICATION_STORAGE,
    DELETE,
    EXISTING,
    FETCH,
    GROWTH,
    NEW,
    PAGE,
    SCAN,
    STORAGE,
)
from benchmarks.harness.interfaces import KeyStore, Store
from benchmarks.harness.locations import Location, our_databases
from benchmarks.harness.sample_data import new_value
from benchmarks.harness.suite import Bench, Suite
from benchmarks.harness.timing import Step, by_first, interleaved
from benchmarks.peers.storage_peers import storage_peers
from eric_sse_sql import SqlStorageEngine

MATCHES = 100
WARM_UP = 20


@dataclass(frozen=True)
class Sizes:
    """How many times each operation is timed, and on how much."""

    samples: int = 600
    pages: int = 400
    scans: int = 9
    few_keys: int = 1_000
    many_keys: int = 1_000_000
    entries: int = 100_000


QUICK = Sizes(samples=200, pages=60, scans=3, many_keys=100_000)
SMOKE = Sizes(samples=5, pages=5, scans=1, few_keys=200, many_keys=1_000, entries=1_000)


def one_key(bench: Bench) -> Iterator[Figure]:
    """Each operation on one key. Each contender has a database of its own."""
    operations = key_operations(WARM_UP + bench.sizes.samples)
    database = bench.backend.name
    with contenders(bench.backend.create) as stores:
        for name, operation in operations.items():
            steps = {each: partial(operation, store) for each, store in {**stores, **bench.peers}.items()}
            medians = interleaved(steps, bench.sizes.samples, warm_up=WARM_UP, block=10)
            figure = compare_with_raw(database, name, medians, STORAGE[database][name])
            yield figure
            yield from judge_application(figure, APPLICATION_STORAGE[database].get(name))


def key_operations(count: int) -> dict[str, Callable[[KeyStore, int], object]]:
    """The operations on one key, in the order in which they are to run, each for the key numbers 0 to ``count - 1``."""
    keys = [uuid.uuid4().hex for _ in range(count)]
    first, second = ([new_value(number) for number in range(count)] for _ in range(2))
    return {
        NEW: lambda store, number: store.upsert(keys[number], first[number]),
        EXISTING: lambda store, number: store.upsert(keys[number], second[number]),
        FETCH: lambda store, number: store.fetch_one(keys[number]),
        DELETE: lambda store, number: store.delete(keys[number]),
    }


def prefix_page(bench: Bench) -> Iterator[Figure]:
    """The values of a group of keys: among few keys, among many that were inserted group by group, and among many that
    were inserted in random order, so that the rows of a group are scattered over the table."""
    few_keys, many_keys = bench.sizes.few_keys, bench.sizes.many_keys
    few, many = f"{PAGE}, {MATCHES} of {few_keys:,}", f"{PAGE}, {MATCHES} of {many_keys:,}"
    scattered = f"{many}, scattered"
    steps: dict[tuple[str, str], Step] = {}
    with ExitStack() as stack:
        for table, keys in (
            (few, grouped_keys(few_keys)),
            (many, grouped_keys(many_keys)),
            (scattered, _shuffled(grouped_keys(many_keys))),
        ):
            stores = dict(stack.enter_context(contenders(_shared_table(bench.backend, keys))))
            if table == few:
                stores |= _fill_peers(bench.peers, keys)
            steps |= {(table, name): page_step(store, name, len(keys) // MATCHES) for name, store in stores.items()}
        medians = by_first(interleaved(steps, bench.sizes.pages, warm_up=WARM_UP, block=5))
    database = bench.backend.name
    goals = STORAGE[database]
    curve = f"{PAGE} of {MATCHES}, by keys in the store"
    yield compare_with_raw(database, few, medians[few], curve=curve, size=few_keys)
    yield compare_with_raw(database, many, medians[many], goals[PAGE], curve=curve, size=many_keys)
    yield growth(database, f"… compared with {few_keys:,}", medians[many], medians[few], goals[GROWTH])
    yield compare_with_raw(database, scattered, medians[scattered])


def fetch_all(bench: Bench) -> Iterator[Figure]:
    """All values of a table."""
    keys = grouped_keys(bench.sizes.entries)
    with contenders(_shared_table(bench.backend, keys)) as stores:
        steps = {name: scan_step(store, len(keys)) for name, store in stores.items()}
        medians = interleaved(steps, bench.sizes.scans, warm_up=1, block=1)
    yield compare_with_raw(bench.backend.name, f"{SCAN} of {len(keys):,}", medians, STORAGE[bench.backend.name][SCAN])


SUITE = Suite(
    name="storage",
    title="The storage engine against the raw drivers",
    legend=f"""\
"{APPLICATION}" is `SqlStorageEngine(Database(create_engine(url)))`, "{OURS}" is `SqlStorageEngine(Database(url))`, and
"{LISTENED}" is the same with an event listener on the engine.""",
    peers_legend="Other stores of pickled values.",
    contenders=(RAW, APPLICATION, OURS, LISTENED),
    sizes={"full": Sizes(), "quick": QUICK, "smoke": SMOKE},
    amount=lambda sizes: (
        f"Medians of {sizes.samples:,} operations on one key, {sizes.pages:,} pages or {sizes.scans:,} scans."
    ),
    peers=storage_peers,
    operations={"one-key": one_key, "prefix-page": prefix_page, "fetch-all": fetch_all},
)


def _shared_table(backend: Backend, keys: Iterable[str]) -> Callable[[], Location]:
    """Fill one table, which all contenders read."""
    location = backend.create()
    fill_table(location, keys)
    return lambda: location


def fill_table(location: Location, keys: Iterable[str]) -> None:
    """Store a value for each key."""
    with closing(raw_store(location)) as raw:
        raw.fill((key, new_value(number)) for number, key in enumerate(keys))


def _fill_peers(peers: Mapping[str, KeyStore], keys: Iterable[str]) -> dict[str, Store]:
    """Fill and return the peers that can look up keys by prefix."""
    able = {name: peer for name, peer in peers.items() if isinstance(peer, Store)}
    for peer in able.values():
        for number, key in enumerate(keys):
            peer.upsert(key, new_value(number))
    return able


@contextmanager
def contenders(create: Callable[[], Location]) -> Iterator[dict[str, Store]]:
    """Open the raw driver, and the storage engine in each way that an application opens it."""
    with closing(raw_store(create())) as raw, our_databases(create) as ours:
        yield {RAW: raw, **{name: SqlStorageEngine(database) for name, database in ours.items()}}


def page_step(store: Store, name: str, groups: int) -> Step:
    """Reads a random group in each step, in an order of its own: no contender profits from the reads of another.

    :param name: of the contender
    """
    order = random.Random(name).choices([_group(number) for number in range(groups)], k=1000)
    return lambda number: _read(store.fetch_by_prefix(order[number % 1000]), MATCHES)


def scan_step(store: Store, count: int) -> Step:
    return lambda number: _read(store.fetch_all(), count)


def _read(values: Iterable[Any], expected: int) -> None:
    if sum(1 for _ in values) != expected:
        raise AssertionError(f"the store did not return {expected} values")


def _group(number: int) -> str:
    """The prefix of the keys of a group."""
    return f"channel-{number:06}:"


def grouped_keys(count: int) -> list[str]:
    """Keys in groups of ``MATCHES``, group by group."""
    return [f"{_group(number // MATCHES)}{number % MATCHES:03}" for number in range(count)]


def _shuffled(keys: list[str]) -> list[str]:
    return random.Random(0).sample(keys, len(keys))
