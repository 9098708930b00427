"""Measures ``SqlStorageEngine`` against the raw driver, operation by operation."""

from __future__ import annotations

import random
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from sqlalchemy import URL, create_engine, event

from benchmarks.databases import Backend
from benchmarks.goals import (
    APPLICATION,
    DELETE,
    EXISTING,
    FETCH,
    GOALS,
    GROWTH,
    LISTENED,
    NEW,
    OURS,
    PAGE,
    RAW,
    SCAN,
    Figure,
    against_raw,
    growth,
)
from benchmarks.stores import KeyStore, Store
from benchmarks.timing import Step, interleaved
from eric_sse_sql import Database, SqlStorageEngine

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


def new_value(number: int) -> object:
    """Data of the size of a small message, never twice the same: SQLite does not write what is there already."""
    payload = {"title": f"Order {number} has shipped", "tags": ["order", "shipping"], "read": False}
    return {"id": uuid.uuid4().hex, "number": number, "type": "notification", "payload": payload}


class StorageBenchmark:
    """The operations on one database.

    :param peers: other stores, which take part in what they can do
    """

    def __init__(self, backend: Backend, sizes: Sizes, peers: Mapping[str, KeyStore]) -> None:
        self._backend = backend
        self._sizes = sizes
        self._peers = peers
        self._goals = GOALS[backend.name]

    def one_key(self) -> Iterator[Figure]:
        """What is done to one key, each contender on a database of its own."""
        count = WARM_UP + self._sizes.samples
        keys = [uuid.uuid4().hex for _ in range(count)]
        first, second = ([new_value(number) for number in range(count)] for _ in range(2))
        operations: dict[str, Callable[[KeyStore, int], object]] = {
            NEW: lambda store, number: store.upsert(keys[number], first[number]),
            EXISTING: lambda store, number: store.upsert(keys[number], second[number]),
            FETCH: lambda store, number: store.fetch_one(keys[number]),
            DELETE: lambda store, number: store.delete(keys[number]),
        }
        with contenders(self._backend, self._backend.create) as stores:
            for name, operation in operations.items():
                steps = {each: _step(operation, store) for each, store in {**stores, **self._peers}.items()}
                medians = interleaved(steps, self._sizes.samples, warm_up=WARM_UP, block=10)
                yield against_raw(self._backend.name, name, medians, self._goals[name])

    def prefix_page(self) -> Iterator[Figure]:
        """The values of a group of keys: among few, among many that were stored group after group, and among many that
        were stored in any order, which puts every match in another place of the table."""
        few, many = f"{PAGE}, {MATCHES} of {FEW_KEYS:,}", f"{PAGE}, {MATCHES} of {self._sizes.many_keys:,}"
        scattered = f"{many}, scattered"
        steps: dict[tuple[str, str], Step] = {}
        with ExitStack() as stack:
            for table, keys in (
                (few, _grouped_keys(FEW_KEYS)),
                (many, _grouped_keys(self._sizes.many_keys)),
                (scattered, _shuffled(_grouped_keys(self._sizes.many_keys))),
            ):
                stores = dict(stack.enter_context(contenders(self._backend, self._on_one_table(keys))))
                if table == few:
                    stores |= self._filled_peers(keys)
                steps |= {
                    (table, name): _page_step(store, name, len(keys) // MATCHES) for name, store in stores.items()
                }
            medians = interleaved(steps, self._sizes.pages, warm_up=WARM_UP, block=5)
        of = {
            table: {name: medians[at, name] for at, name in medians if at == table} for table in (few, many, scattered)
        }
        yield against_raw(self._backend.name, few, of[few])
        yield against_raw(self._backend.name, many, of[many], self._goals[PAGE])
        yield growth(self._backend.name, f"… compared with {FEW_KEYS:,}", of[many], of[few], self._goals[GROWTH])
        yield against_raw(self._backend.name, scattered, of[scattered])

    def fetch_all(self) -> Iterator[Figure]:
        """All values of a table."""
        keys = _grouped_keys(self._sizes.entries)
        with contenders(self._backend, self._on_one_table(keys)) as stores:
            steps = {name: _scan_step(store, len(keys)) for name, store in stores.items()}
            medians = interleaved(steps, self._sizes.scans, warm_up=1, block=1)
        yield against_raw(self._backend.name, f"{SCAN} of {len(keys):,}", medians, self._goals[SCAN])

    def _on_one_table(self, keys: Iterable[str]) -> Callable[[], URL]:
        """Gives all contenders the same table: they only read it."""
        url = self._backend.create()
        raw = self._backend.raw(url)
        raw.fill((key, new_value(number)) for number, key in enumerate(keys))
        raw.close()
        return lambda: url

    def _filled_peers(self, keys: Iterable[str]) -> dict[str, Store]:
        """The peers that find keys by their prefix."""
        able = {name: peer for name, peer in self._peers.items() if isinstance(peer, Store)}
        for peer in able.values():
            for number, key in enumerate(keys):
                peer.upsert(key, new_value(number))
        return able


@contextmanager
def contenders(backend: Backend, database: Callable[[], URL]) -> Iterator[dict[str, Store]]:
    """The raw driver, the storage engine as it is made from a URL, the same where somebody listens to the engine's
    events, and the same on an engine that the application made with SQLAlchemy's defaults."""
    raw = backend.raw(database())
    ours, listened = Database(database()), Database(database())
    application = Database(create_engine(database()))
    for each in (ours, listened, application):
        backend.configure(each.engine)
    event.listen(listened.engine, "before_cursor_execute", lambda *arguments: None)
    try:
        yield {
            RAW: raw,
            OURS: SqlStorageEngine(ours),
            LISTENED: SqlStorageEngine(listened),
            APPLICATION: SqlStorageEngine(application),
        }
    finally:
        raw.close()
        for each in (ours, listened, application):
            each.close()
            each.engine.dispose()


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
