"""Other stores of pickled values by key, for comparison: those that are installed."""

from __future__ import annotations

import importlib
import shutil
import socket
import subprocess
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from benchmarks.placement import on_last_core
from benchmarks.stores import KeyStore

REDIS_START_SECONDS = 10


class LeftOut(Exception):
    """Why a peer can't be measured here."""


class MappingStore:
    """sqlitedict and diskcache, which are dictionaries, or nearly, and find no keys by their prefix."""

    def __init__(self, mapping: Any) -> None:
        self._mapping = mapping

    def upsert(self, key: str, value: Any) -> None:
        self._mapping[key] = value

    def fetch_one(self, key: str) -> Any:
        return self._mapping[key]

    def delete(self, key: str) -> None:
        del self._mapping[key]


class RedisStore:
    """eric-redis-queues' storage, which adds the separator behind a prefix by itself."""

    def __init__(self, storage: Any) -> None:
        self.upsert, self.fetch_one, self.delete = storage.upsert, storage.fetch_one, storage.delete
        self.fetch_all = storage.fetch_all
        self._storage = storage

    def fetch_by_prefix(self, prefix: str) -> Iterable[Any]:
        found: Iterable[Any] = self._storage.fetch_by_prefix(prefix.removesuffix(":"))
        return found


@contextmanager
def installed_peers(folder: Path) -> Iterator[tuple[dict[str, KeyStore], list[str]]]:
    """The peers, each on its own files, and for each that is missing the reason why."""
    stores: dict[str, KeyStore] = {}
    missing: list[str] = []
    with ExitStack() as stack:
        for name, make in _PEERS.items():
            place = folder / f"peer-{len(stores)}"
            place.mkdir()
            try:
                stores[name] = make(place, stack)
            except LeftOut as reason:
                missing.append(f"{name} is left out: {reason}")
        yield stores, missing


def _sqlitedict(folder: Path, stack: ExitStack) -> KeyStore:
    module = _imported("sqlitedict")
    return MappingStore(stack.enter_context(module.SqliteDict(folder / "peer.db", autocommit=True, journal_mode="WAL")))


def _diskcache(folder: Path, stack: ExitStack) -> KeyStore:
    return MappingStore(stack.enter_context(_imported("diskcache").Cache(folder)))


def _redis_in_memory(folder: Path, stack: ExitStack) -> KeyStore:
    return _redis_storage(folder, stack, "--appendonly", "no")


def _redis_on_disk(folder: Path, stack: ExitStack) -> KeyStore:
    return _redis_storage(folder, stack, "--appendonly", "yes", "--appendfsync", "always")


def _redis_storage(folder: Path, stack: ExitStack, *options: str) -> KeyStore:
    module = _imported("eric_redis_queues")
    repository = _imported("eric_redis_queues.repository")
    port = stack.enter_context(_redis_server(folder, options))
    return RedisStore(repository.RedisStorage("bench", module.RedisConnection(port=port)))


_PEERS = {  # and when their commits are on the disk
    "sqlitedict (OFF)": _sqlitedict,
    "diskcache (NORMAL)": _diskcache,
    "RedisStorage (no disk)": _redis_in_memory,
    "RedisStorage (fsync)": _redis_on_disk,
}


def _imported(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise LeftOut(f"{error.name} is not installed") from error


@contextmanager
def _redis_server(folder: Path, options: tuple[str, ...]) -> Iterator[int]:
    """A server of our own on a free port, gone when the block ends."""
    program = shutil.which("redis-server")
    if program is None:
        raise LeftOut("there is no redis-server")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
    command = [program, "--port", str(port), "--bind", "127.0.0.1", "--dir", str(folder), "--save", "", *options]
    with on_last_core():
        server = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        _await_port(port)
        yield port
    finally:
        server.terminate()
        server.wait()


def _await_port(port: int) -> None:
    give_up = time.monotonic() + REDIS_START_SECONDS
    while True:
        try:
            socket.create_connection(("127.0.0.1", port)).close()
            return
        except OSError as error:
            if time.monotonic() > give_up:
                raise LeftOut("redis-server does not start") from error
            time.sleep(0.02)
