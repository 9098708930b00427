"""Other stores of pickled values by key: sqlitedict, diskcache and eric-redis-queues."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.harness.backends import Backend
from benchmarks.harness.interfaces import KeyStore
from benchmarks.harness.optional_peers import Opener, import_peer
from benchmarks.peers.redis_server import IN_MEMORY, ON_DISK, redis_server


class MappingStore:
    """sqlitedict or diskcache: mappings, which cannot look up keys by prefix."""

    def __init__(self, mapping: Any) -> None:
        self._mapping = mapping

    def upsert(self, key: str, value: Any) -> None:
        self._mapping[key] = value

    def fetch_one(self, key: str) -> Any:
        return self._mapping[key]

    def delete(self, key: str) -> None:
        del self._mapping[key]


class RedisStore:
    """The storage of eric-redis-queues, which appends the separator to a prefix."""

    def __init__(self, storage: Any) -> None:
        self.upsert, self.fetch_one, self.delete = storage.upsert, storage.fetch_one, storage.delete
        self.fetch_all = storage.fetch_all
        self._storage = storage

    def fetch_by_prefix(self, prefix: str) -> Iterable[Any]:
        found: Iterable[Any] = self._storage.fetch_by_prefix(prefix.removesuffix(":"))
        return found


def storage_peers(backend: Backend) -> Mapping[str, Opener[KeyStore]]:
    """The peers of the storage engine, the same for every backend. Their names say how durable their commits are."""
    return {
        "sqlitedict (OFF)": _sqlitedict,
        "diskcache (NORMAL)": _diskcache,
        "RedisStorage (no disk)": partial(_redis, IN_MEMORY),
        "RedisStorage (fsync)": partial(_redis, ON_DISK),
    }


def _sqlitedict(folder: Path, stack: ExitStack) -> KeyStore:
    module = import_peer("sqlitedict")
    return MappingStore(stack.enter_context(module.SqliteDict(folder / "peer.db", autocommit=True, journal_mode="WAL")))


def _diskcache(folder: Path, stack: ExitStack) -> KeyStore:
    return MappingStore(stack.enter_context(import_peer("diskcache").Cache(folder)))


def _redis(options: tuple[str, ...], folder: Path, stack: ExitStack) -> KeyStore:
    module, repository = import_peer("eric_redis_queues"), import_peer("eric_redis_queues.repository")
    port = stack.enter_context(redis_server(folder, options))
    return RedisStore(repository.RedisStorage("bench", module.RedisConnection(port=port)))
