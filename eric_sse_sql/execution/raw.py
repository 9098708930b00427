"""A driver's own connection, with a transaction of the application, as a connection of SQLAlchemy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from eric_sse.exception import RepositoryError
from sqlalchemy import Connection, Dialect, Engine, StaticPool, make_url


class RawConnection:
    """A driver's connection of which nothing but the cursors is this package's. Only the application ends its
    transaction.

    :param raw: the connection
    :param new_cursor: makes a cursor on it, whatever the application has set on the connection
    """

    def __init__(self, raw: Any, new_cursor: Callable[[Any], Any]) -> None:
        self.raw = raw
        self._new_cursor = new_cursor
        self._is_left = False  # whether SQLAlchemy's connection is closed, for which it rolls back

    def cursor(self) -> Any:
        """A new cursor."""
        return self._new_cursor(self.raw)

    def execute(self, sql: str, values: Sequence[Any] = ()) -> Any:
        """Execute a statement on a new cursor."""
        cursor = self.cursor()
        cursor.execute(sql, values)
        return cursor

    def commit(self) -> None:
        """
        :raises RepositoryError: always
        """
        raise RepositoryError(
            "the transaction is that of the driver's connection that was joined; commit it, or roll it back, there"
        )

    def rollback(self) -> None:
        """
        :raises RepositoryError: unless the transaction is left
        """
        if not self._is_left:
            self.commit()

    def leave(self) -> None:
        """From now on, SQLAlchemy may close its connection. The driver's stays as it is."""
        self._is_left = True

    def close(self) -> None:
        """The connection is the application's."""

    def __getattr__(self, name: str) -> Any:
        return getattr(self.raw, name)


def wrap(raw: RawConnection, dialect: Dialect) -> Connection:
    """A connection of SQLAlchemy, for :func:`leave` to close.

    :param dialect: of an engine of the same driver
    """
    pool = StaticPool(lambda: raw, reset_on_return=None, dialect=dialect)
    url = make_url(f"{dialect.name}+{dialect.driver}://")
    return Engine(pool, dialect, url, hide_parameters=True).connect()


def raw_of(connection: Connection) -> Any:
    """The driver's connection that is wrapped; None where none is."""
    driver = connection.connection.driver_connection
    return driver.raw if isinstance(driver, RawConnection) else None


def leave(connection: Connection) -> None:
    """Close a connection of :func:`wrap`. The driver's stays as it is."""
    if not connection.invalidated:
        driver: Any = connection.connection.driver_connection
        driver.leave()
    connection.close()
