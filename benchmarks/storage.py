"""Measures ``SqlStorageEngine`` against the raw driver, operation by operation."""

from __future__ import annotations

import random
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from typing import Any

from benchmarks.contenders import Location, our_databases
from benchmarks.databases import Backend
from benchmarks.figures import APPLICATION, LISTENED, OURS, RAW, Figure, against_raw, growth
from benchmarks.goals import DELETE, EXISTING, FETCH, GROWTH, NEW, PAGE, SCAN, STORAGE
from benchmarks.storage_peers import storage_peers
from benchmarks.stores import KeyStore, Store
from benchmarks.suite import Bench, Suite
from benchmarks.timing import Step, by_first, interleaved
from benchmarks.values import new_value
from eric_sse_sql import SqlStorageEngine

MATCHES = 100
FEW_KEYS = 1000
WARM_UP = 20


@dataclass(frozen=True)
class Sizes:
    """How many times each operation is timed, and on how much."""

    samples: int = 600
    pages: int = 400
    scans: int = 9
    many_keys: int = 1_000_000
    entries: int = 100_000


QUICK = Sizes(samples=200, pages=60, scans=3, many_keys=100_000)


def one_key(bench: Bench) -> Iterator[Figure]:
    """What is done to one key, each contender on a database of its own."""
    count = WARM_UP + bench.sizes.samples
    keys = [uuid.uuid4().hex for _ in range(count)]
    first, second = ([new_value(number) for number in range(count)] for _ in range(2))
    operations: dict[str, Callable[[KeyStore, int], object]] = {
        NEW: lambda store, number: store.upsert(keys[number], first[number]),
        EXISTING: lambda store, number: store.upsert(keys[number], second[number]),
        FETCH: lambda store, number: store.fetch_one(keys[number]),
        DELETE: lambda store, number: store.delete(keys[number]),
    }
    database = bench.backend.name
    with contenders(bench.backend, bench.backend.create) as stores:
        for name, operation in operations.items():
            steps = {each: _step(operation, store) for each, store in {**stores, **bench.peers}.items()}
            medians = interleaved(steps, bench.sizes.samples, warm_up=WARM_UP, block=10)
            yield against_raw(database, name, medians, STORAGE[database][name])


def prefix_page(bench: Bench) -> Iterator[Figure]:
    """The values of a group of keys: among few, among many that were stored group after group, and among many that
    were stored in any order, which puts every match in another place of the table."""
    few, many = f"{PAGE}, {MATCHES} of {FEW_KEYS:,}", f"{PAGE}, {MATCHES} of {bench.sizes.many_keys:,}"
    scattered = f"{many}, scattered"
    steps: dict[tuple[str, str], Step] = {}
    with ExitStack() as stack:
        for table, keys in (
            (few, _grouped_keys(FEW_KEYS)),
            (many, _grouped_keys(bench.sizes.many_keys)),
            (scattered, _shuffled(_grouped_keys(bench.sizes.many_keys))),
        ):
            stores = dict(stack.enter_context(contenders(bench.backend, _on_one_table(bench.backend, keys))))
            if table == few:
                stores |= _filled_peers(bench.peers, keys)
            steps |= {(table, name): _page_step(store, name, len(keys) // MATCHES) for name, store in stores.items()}
        of = by_first(interleaved(steps, bench.sizes.pages, warm_up=WARM_UP, block=5))
    database = bench.backend.name
    goals = STORAGE[database]
    curve = f"{PAGE} of {MATCHES}, by keys in the store"
    yield against_raw(database, few, of[few], curve=curve, size=FEW_KEYS)
    yield against_raw(database, many, of[many], goals[PAGE], curve=curve, size=bench.sizes.many_keys)
    yield growth(database, f"… compared with {FEW_KEYS:,}", of[many], of[few], goals[GROWTH])
    yield against_raw(database, scattered, of[scattered])


def fetch_all(bench: Bench) -> Iterator[Figure]:
    """All values of a table."""
    keys = _grouped_keys(bench.sizes.entries)
    with contenders(bench.backend, _on_one_table(bench.backend, keys)) as stores:
        steps = {name: _scan_step(store, len(keys)) for name, store in stores.items()}
        medians = interleaved(steps, bench.sizes.scans, warm_up=1, block=1)
    yield against_raw(bench.backend.name, f"{SCAN} of {len(keys):,}", medians, STORAGE[bench.backend.name][SCAN])


SUITE = Suite(
    name="storage",
    title="The storage engine against the raw drivers",
    legend=f"""\
"{OURS}" is `SqlStorageEngine(Database(url))`; "{LISTENED}" is the same while somebody listens to the engine's
events, and "{APPLICATION}" the same on an engine made with SQLAlchemy's defaults. In both,
statements go through SQLAlchemy.""",
    peers_legend="Other stores of pickled values.",
    contenders=(RAW, OURS, LISTENED, APPLICATION),
    sizes=Sizes(),
    quick=QUICK,
    amount=lambda sizes: (
        f"Medians of {sizes.samples:,} operations on one key, {sizes.pages:,} pages or {sizes.scans:,} scans."
    ),
    peers=storage_peers,
    operations={"one-key": one_key, "prefix-page": prefix_page, "fetch-all": fetch_all},
)


def _on_one_table(backend: Backend, keys: Iterable[str]) -> Callable[[], Location]:
    """Gives all contenders the same table: they only read it."""
    location = backend.create()
    with closing(backend.raw_store(location)) as raw:
        raw.fill((key, new_value(number)) for number, key in enumerate(keys))
    return lambda: location


def _filled_peers(peers: Mapping[str, KeyStore], keys: Iterable[str]) -> dict[str, Store]:
    """The peers that find keys by their prefix."""
    able = {name: peer for name, peer in peers.items() if isinstance(peer, Store)}
    for peer in able.values():
        for number, key in enumerate(keys):
            peer.upsert(key, new_value(number))
    return able


@contextmanager
def contenders(backend: Backend, create: Callable[[], Location]) -> Iterator[dict[str, Store]]:
    """The raw driver, and the storage engine in each way that applications open it."""
    with closing(backend.raw_store(create())) as raw, our_databases(create) as ours:
        yield {RAW: raw, **{name: SqlStorageEngine(database) for name, database in ours.items()}}


def _step(operation: Callable[[KeyStore, int], object], store: KeyStore) -> Step:
    return lambda number: operation(store, number)


def _page_step(store: Store, name: str, groups: int) -> Step:
    """Reads any group in each step, and none that another contender has just brought into the server's memory."""
    order = random.Random(name).choices([_group(number) for number in range(groups)], k=1000)
    return lambda number: _read(store.fetch_by_prefix(order[number % 1000]), MATCHES)


def _scan_step(store: Store, count: int) -> Step:
    return lambda number: _read(store.fetch_all(), count)


def _read(values: Iterable[Any], expected: int) -> None:
    if sum(1 for _ in values) != expected:
        raise AssertionError(f"not the {expected} values that are there")


def _group(number: int) -> str:
    """How the keys of a group begin."""
    return f"channel-{number:06}:"


def _grouped_keys(count: int) -> list[str]:
    """Keys of groups of a hundred, group after group."""
    return [f"{_group(number // MATCHES)}{number % MATCHES:03}" for number in range(count)]


def _shuffled(keys: list[str]) -> list[str]:
    return random.Random(0).sample(keys, len(keys))
