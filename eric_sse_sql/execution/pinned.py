"""Connections of the driver for single statements, past SQLAlchemy's execution."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from eric_sse_sql.execution import fork
from eric_sse_sql.execution.driver import Driver, DriverConnection, Repeats
from eric_sse_sql.execution.pool import FairPool
from eric_sse_sql.execution.statement import Compiled, Row


class PinnedConnections:
    """Runs single statements on connections of an engine's pool, and keeps some of them checked out between calls.

    Checking a connection out of SQLAlchemy's pool and in again takes longer than a fetch from SQLite. Threads may share
    the object: a thread that finds no pinned connection checks one out.

    On an engine of the application, none is pinned: each call checks a connection out, and returns it as it was.

    :param driver: runs the statements
    :param owns_pool: whether the pool may be disposed of when the server has closed its connections
    """

    def __init__(self, driver: Driver, *, owns_pool: bool) -> None:
        self._driver = driver
        self._engine = driver.engine
        self._owns_pool = owns_pool
        self._size = driver.pinned_connections
        self._pinned: list[DriverConnection] = []
        if owns_pool and isinstance(self._engine.pool, FairPool):
            self._engine.pool.reclaim = self.release

    def fetch(self, compiled: Compiled, values: tuple[Any, ...]) -> Sequence[Row] | None:
        """Run a statement in a transaction of its own. All its rows; None where the driver's connection can't be used
        as it is, and the statement was not run.

        A statement that a session has refused, without executing it, is repeated on another connection.
        """
        repeats: Repeats | None = None
        while True:
            connection = self.checkout()
            if connection is None:
                return None
            try:
                rows = self._driver.fetch(connection, compiled, values)
            except BaseException as error:
                if not self._driver.is_broken(error, connection.driver):
                    self.checkin(connection)
                    raise
                self.discard(connection)
                repeats = repeats or Repeats(self._engine)
                if not (self._driver.is_refused(error) and repeats.take()):
                    raise
            else:
                self.checkin(connection)
                return rows

    def checkout(self) -> DriverConnection | None:
        """A connection in autocommit; None where the application's pool gives one that must stay as it is."""
        if self._pinned and (pinned := self._pop()) is not None:
            return pinned
        self._driver.check_connect()
        connection = DriverConnection(self._engine)
        while self._driver.is_closed(connection.driver):  # as all others of the pool are, after the server has ended
            self.discard(connection)
            connection = DriverConnection(self._engine)
        try:
            usable = self._driver.enter_autocommit(connection)
        except BaseException:
            self.discard(connection)
            raise
        if usable:
            return connection
        connection.pooled.close()
        return None

    def checkin(self, connection: DriverConnection) -> None:
        """Keep a connection for the next call, or return it to the pool, where another thread may wait for it."""
        if self._size == 0:
            self._return(connection)
            return
        self._pinned.append(connection)
        # In this order: a thread that begins to wait in between has the pinned connections returned.
        is_surplus = len(self._pinned) > self._size or self._is_awaited()
        if is_surplus and (surplus := self._pop()) is not None:
            self._return(surplus)

    def discard(self, connection: DriverConnection) -> None:
        """Close a connection that can't be used; on a pool of the package's own, close the others too."""
        connection.pooled.invalidate()
        if self._owns_pool:
            self._engine.dispose()
        connection.pooled.close()

    def release(self) -> None:
        """Return the pinned connections to the pool, where the engine finds them."""
        while (pinned := self._pop()) is not None:
            self._return(pinned)

    def close(self) -> None:
        """Return the pinned connections, and pin no more."""
        self._size = 0
        self.release()

    def after_fork_in_child(self) -> None:
        """Abandon the pinned connections: they are the parent's."""
        fork.abandon(self._pinned)
        self._pinned = []

    def _is_awaited(self) -> bool:
        pool = self._engine.pool
        return isinstance(pool, FairPool) and pool.is_awaited

    def _pop(self) -> DriverConnection | None:
        """A pinned connection that can be used, if there is one."""
        while self._pinned:
            try:
                pinned = self._pinned.pop()
            except IndexError:  # another thread was first
                break
            if self._driver.is_closed(pinned.driver):
                self.discard(pinned)
            elif pinned.pool is not self._engine.pool:
                self._return(pinned)
            else:
                return pinned
        return None

    def _return(self, connection: DriverConnection) -> None:
        try:
            if connection.pool is not self._engine.pool:  # the engine was disposed of meanwhile
                connection.pooled.invalidate()
            else:
                self._driver.leave_autocommit(connection)
        except BaseException:
            connection.pooled.invalidate()
            raise
        finally:
            connection.pooled.close()
