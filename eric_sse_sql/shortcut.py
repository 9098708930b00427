"""Single statements on the driver's own cursor, past the engine."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, cast

from sqlalchemy import Engine, Pool, PoolProxiedConnection

from eric_sse_sql.engines import OneConnectionPool, Patience, has_hung_up
from eric_sse_sql.forks import leave_alone
from eric_sse_sql.statements import Compiled, Row

AT_HAND = 2  # connections: one for whoever calls, and one for the thread that announces or looks meanwhile


class _Connection:
    """A connection, and the pool that it is returned to."""

    __slots__ = ("cursor", "driver", "pool", "pooled")

    def __init__(self, engine: Engine) -> None:
        self.pool: Pool = engine.pool
        self.pooled: PoolProxiedConnection = engine.raw_connection()
        self.driver = cast(Any, self.pooled.driver_connection)
        self.cursor: Any = None  # of Postgres, where to make one is a third of a statement's cost to the client


class Shortcut:
    """Runs single statements on connections of an engine's pool, and keeps two at hand from call to call.

    To take a connection from the pool and to return it takes longer than a fetch from SQLite does. Threads may share
    the shortcut: who finds none at hand takes one from the pool.

    :param engine: made here, in autocommit
    :param patience: how to wait for the lock of SQLite; None where there is nobody to wait for
    """

    def __init__(self, engine: Engine, patience: Patience | None) -> None:
        self._engine = engine
        self._patience = patience
        self._is_postgres = engine.dialect.name == "postgresql"
        self._at_hand: list[_Connection] = []
        self._most = 0 if isinstance(engine.pool, OneConnectionPool) else AT_HAND

    def is_open(self) -> bool:
        """Whether nobody would notice that a statement does not go through the engine."""
        engine = self._engine
        return (
            # SQLAlchemy's own flags, and private; without them, somebody is taken to listen.
            not getattr(engine, "_has_events", True)
            and not getattr(engine.dialect, "_has_events", True)
            and not engine.logger.isEnabledFor(logging.INFO)
        )

    def execute(self, compiled: Compiled, values: tuple[Any, ...]) -> Sequence[Row]:
        """The rows of a statement, all fetched."""
        connection = self._take()
        try:
            rows = self._rows(connection, compiled.sql, values)
        except BaseException as error:
            if self._is_broken(error, connection):
                self._drop(connection)
            else:
                self._put(connection)
            raise
        self._put(connection)
        return rows

    def release(self) -> None:
        """Return what is at hand to the pool, where the engine finds it."""
        while (kept := self._kept()) is not None:
            self._return(kept)

    def close(self) -> None:
        """Return what is at hand, and keep no more."""
        self._most = 0
        self.release()

    def renew(self) -> None:
        """Begin anew, in a forked child: what is at hand is the parent's."""
        leave_alone(self._at_hand)
        self._at_hand = []

    def _take(self) -> _Connection:
        kept = self._kept()
        if kept is not None:
            return kept
        connection = _Connection(self._engine)
        if self._has_hung_up(connection):  # as it has on all others of the pool
            self._drop(connection)
            connection = _Connection(self._engine)
        if self._patience:
            self._patience.replace_handler(connection.driver)
        return connection

    def _kept(self) -> _Connection | None:
        """What is at hand, if it is of any use."""
        while self._at_hand:
            try:
                kept = self._at_hand.pop()
            except IndexError:  # another thread was first
                break
            if self._has_hung_up(kept):
                self._drop(kept)
            elif kept.pool is not self._engine.pool:
                self._return(kept)
            else:
                return kept
        return None

    def _put(self, connection: _Connection) -> None:
        self._at_hand.append(connection)
        if len(self._at_hand) > self._most and (surplus := self._kept()) is not None:
            self._return(surplus)

    def _return(self, connection: _Connection) -> None:
        try:
            if connection.pool is not self._engine.pool:  # the engine was disposed of meanwhile
                connection.pooled.invalidate()
            elif self._patience:
                self._patience.restore_handler(connection.driver)
        finally:
            connection.pooled.close()

    def _drop(self, connection: _Connection) -> None:
        """Close a broken connection, and those of the pool, which are as broken."""
        connection.pooled.invalidate()
        self._engine.dispose()
        connection.pooled.close()

    def _has_hung_up(self, connection: _Connection) -> bool:
        return self._is_postgres and has_hung_up(connection.driver)

    def _rows(self, connection: _Connection, sql: str, values: tuple[Any, ...]) -> Sequence[Row]:
        if self._is_postgres:
            cursor = connection.cursor or connection.driver.cursor(binary=True)
            cursor.execute(sql, values)
            rows: Sequence[Row] = cursor.fetchall() if cursor.rownumber is not None else ()
            connection.cursor = cursor if len(rows) < 2 else None  # for it holds them until its next statement
            return rows
        if self._patience:
            return self._patience.execute(connection.driver, sql, values)
        return cast(Sequence[Row], connection.driver.execute(sql, values).fetchall())

    def _is_broken(self, error: BaseException, connection: _Connection) -> bool:
        """Whether a connection may be unusable: also where a statement of Postgres was left halfway."""
        return self._is_postgres and (
            not isinstance(error, Exception)
            or self._engine.dialect.is_disconnect(cast(Any, error), connection.driver, None)
        )
