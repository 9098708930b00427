"""Where a database is, and the ways in which an application opens it."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
from sqlalchemy import URL, create_engine, event

from benchmarks.harness.figures import APPLICATION, LISTENED, OURS
from eric_sse_sql import Database

BUSY_TIMEOUT_SECONDS = 30  # of the raw SQLite driver; eric_sse_sql uses the same


@dataclass(frozen=True)
class Location:
    """A database that any process can open. It can be pickled.

    :param url: of the database
    :param pragmas: executed on each new connection, on SQLite
    """

    url: URL
    pragmas: tuple[str, ...] = ()

    @property
    def is_sqlite(self) -> bool:
        """Whether it is a SQLite file."""
        return self.url.get_backend_name() == "sqlite"

    @property
    def path(self) -> Path:
        """The SQLite file."""
        return Path(str(self.url.database))

    def open(self, messages: str = "pickle") -> Database:
        """Open it with the URL.

        :param messages: the format in which they are stored
        """
        return self._configured(Database(self.url, messages=messages))

    def open_without_notifications(self) -> Database:
        """Open it with the URL; pushes do not notify other processes."""
        return self._configured(Database(self.url, notify=False))

    def open_listened(self) -> Database:
        """Open it with the URL; an event listener on the engine sees every statement."""
        database = self.open()
        event.listen(database.engine, "before_cursor_execute", lambda *arguments: None)
        return database

    def open_application(self) -> Database:
        """Open it with an engine that the application created with SQLAlchemy's defaults."""
        return self._configured(Database(create_engine(self.url)))

    def _configured(self, database: Database) -> Database:
        if self.pragmas:
            event.listen(database.engine, "connect", lambda connection, record: self._set_pragmas(connection))
        return database

    def connect_sqlite(self) -> sqlite3.Connection:
        """Connect with the raw driver, in autocommit."""
        connection = sqlite3.connect(self.path, BUSY_TIMEOUT_SECONDS, isolation_level=None)
        self._set_pragmas(connection)
        return connection

    def connect_postgres(self) -> psycopg.Connection[Any]:
        """Connect with the raw driver, in autocommit."""
        return psycopg.connect(conninfo(self.url), autocommit=True)

    def _set_pragmas(self, connection: sqlite3.Connection) -> None:
        for pragma in self.pragmas:
            connection.execute(f"PRAGMA {pragma}")


OPENERS: dict[str, Callable[[Location], Database]] = {
    APPLICATION: Location.open_application,
    OURS: Location.open,
    LISTENED: Location.open_listened,
}


@contextmanager
def our_databases(create: Callable[[], Location]) -> Iterator[dict[str, Database]]:
    """Open a database in each way of ``OPENERS``, and close them all when the block ends.

    :param create: gives the location of each
    """
    databases = {name: open_database(create()) for name, open_database in OPENERS.items()}
    try:
        yield databases
    finally:
        for each in databases.values():
            close(each)


def close(database: Database) -> None:
    """Close all connections, those of an application's engine too."""
    database.close()
    database.engine.dispose()


def conninfo(url: URL) -> str:
    """The URL in the form that psycopg takes."""
    return url.set(drivername="postgresql").render_as_string(hide_password=False)
