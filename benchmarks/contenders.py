"""Our databases, as applications open them."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from sqlalchemy import URL, create_engine, event

from benchmarks.figures import APPLICATION, LISTENED, OURS
from eric_sse_sql import Database


@dataclass(frozen=True)
class Location:
    """A database that any process can open.

    :param url: where it is
    :param pragmas: what SQLite is told on each connection
    """

    url: URL
    pragmas: tuple[str, ...] = ()

    def open(self) -> Database:
        """As it is made from a URL."""
        return self._configured(Database(self.url))

    def open_without_notifications(self) -> Database:
        """The same, which tells no other process of what it pushes."""
        return self._configured(Database(self.url, notify=False))

    def open_listened(self) -> Database:
        """The same, while somebody listens to the events of its engine."""
        database = self.open()
        event.listen(database.engine, "before_cursor_execute", lambda *arguments: None)
        return database

    def open_application(self) -> Database:
        """On an engine that the application made with SQLAlchemy's defaults."""
        return self._configured(Database(create_engine(self.url)))

    def _configured(self, database: Database) -> Database:
        if self.pragmas:
            event.listen(database.engine, "connect", lambda connection, record: self._set_pragmas(connection))
        return database

    def _set_pragmas(self, connection: sqlite3.Connection) -> None:
        for pragma in self.pragmas:
            connection.execute(f"PRAGMA {pragma}")


@contextmanager
def our_databases(create: Callable[[], Location]) -> Iterator[dict[str, Database]]:
    """The package on an engine made from a URL, on the same with an event listener, and on an application's engine.

    :param create: gives each its database
    """
    databases = {
        OURS: create().open(),
        LISTENED: create().open_listened(),
        APPLICATION: create().open_application(),
    }
    try:
        yield databases
    finally:
        for each in databases.values():
            close(each)


def close(database: Database) -> None:
    """Close all connections, those of an application's engine too."""
    database.close()
    database.engine.dispose()
