"""Single statements on the driver's own cursor, past the engine."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, cast

from sqlalchemy import Engine, Pool, PoolProxiedConnection

from eric_sse_sql.engines import OneConnectionPool, Patience
from eric_sse_sql.statements import Compiled, Row

_inherited: list[object] = []  # connections that a forked child must neither use nor close


class Shortcut:
    """Runs single statements on a connection of an engine's pool, and keeps one at hand from call to call.

    To take a connection from the pool and to return it takes longer than a fetch from SQLite does. Threads may share
    the shortcut: who finds none at hand takes one from the pool.

    :param engine: made here, in autocommit
    :param patience: how to wait for the lock of SQLite; None where there is nobody to wait for
    """

    def __init__(self, engine: Engine, patience: Patience | None) -> None:
        self._engine = engine
        self._patience = patience
        self._is_postgres = engine.dialect.name == "postgresql"
        self._keeps = not isinstance(engine.pool, OneConnectionPool)
        self._at_hand: list[tuple[Pool, PoolProxiedConnection]] = []
        self._is_closed = False

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
        pool, pooled = self._take()
        try:
            rows = self._rows(cast(Any, pooled.driver_connection), compiled.sql, values)
        except BaseException as error:
            if self._is_broken(error, pooled):
                pooled.invalidate()
                self._engine.dispose()  # the others of the pool are as dead
                pooled.close()
            else:
                self._put(pool, pooled)
            raise
        self._put(pool, pooled)
        return rows

    def release(self) -> None:
        """Return what is at hand to the pool, where the engine finds it."""
        while self._at_hand:
            try:
                kept = self._at_hand.pop()
            except IndexError:  # another thread was first
                return
            self._return(*kept)

    def close(self) -> None:
        """Return what is at hand, and keep no more."""
        self._is_closed = True
        self.release()

    def renew(self) -> None:
        """Begin anew, in a forked child: what is at hand is the parent's."""
        _inherited.append(self._at_hand)
        self._at_hand = []

    def _take(self) -> tuple[Pool, PoolProxiedConnection]:
        pool = self._engine.pool
        while self._at_hand:
            try:
                kept = self._at_hand.pop()
            except IndexError:
                break
            if kept[0] is pool:
                return kept
            self._return(*kept)
        pooled = self._engine.raw_connection()
        if self._patience:
            self._patience.replace_handler(cast(Any, pooled.driver_connection))
        return pool, pooled

    def _put(self, pool: Pool, pooled: PoolProxiedConnection) -> None:
        if self._keeps and not self._at_hand:
            self._at_hand.append((pool, pooled))
            if self._is_closed:
                self.release()
        else:
            self._return(pool, pooled)

    def _return(self, pool: Pool, pooled: PoolProxiedConnection) -> None:
        try:
            if pool is not self._engine.pool:  # the engine was disposed of meanwhile
                pooled.invalidate()
            elif self._patience:
                self._patience.restore_handler(cast(Any, pooled.driver_connection))
        finally:
            pooled.close()

    def _rows(self, driver: Any, sql: str, values: tuple[Any, ...]) -> Sequence[Row]:
        if self._is_postgres:
            cursor = driver.execute(sql, values, binary=True)
            return cast(Sequence[Row], cursor.fetchall()) if cursor.rownumber is not None else ()
        if self._patience:
            return self._patience.execute(driver, sql, values)
        return cast(Sequence[Row], driver.execute(sql, values).fetchall())

    def _is_broken(self, error: BaseException, pooled: PoolProxiedConnection) -> bool:
        """Whether a connection may be unusable: also where a statement of Postgres was left halfway."""
        driver = cast(Any, pooled.driver_connection)
        return self._is_postgres and (
            not isinstance(error, Exception) or self._engine.dialect.is_disconnect(cast(Any, error), driver, None)
        )
