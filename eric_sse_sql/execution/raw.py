"""A driver's own connection, with a transaction of the application, as a connection of SQLAlchemy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from eric_sse.exception import RepositoryError
from sqlalchemy import Connection, Dialect, Engine, StaticPool, make_url


class RawConnection:
    """The application's driver connection, on which this package makes its own cursors. Only the application ends its
    transaction.

    :param raw: the connection
    :param new_cursor: makes a cursor on it, whatever the application has set on the connection
    """

    def __init__(self, raw: Any, new_cursor: Callable[[Any], Any]) -> None:
        self.raw = raw
        self._new_cursor = new_cursor
        self._is_left = False  # set before SQLAlchemy's connection is closed, which calls rollback()

    def cursor(self) -> Any:
        """A new cursor."""
        return self._new_cursor(self.raw)

    def execute(self, sql: str, values: Sequence[Any] = ()) -> Any:
        """Execute a statement on a new cursor."""
        cursor = self.cursor()
        cursor.execute(sql, values)
        return cursor

    def commit(self) -> None:
        """Refuse to commit the transaction, which only the application does.

        :raises RepositoryError: always
        """
        raise RepositoryError(
            "the transaction is that of the driver's connection that was joined; commit it, or roll it back, there"
        )

    def rollback(self) -> None:
        """Refuse to roll the transaction back before :meth:`leave`, and do nothing after it.

        :raises RepositoryError: before :meth:`leave`
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
