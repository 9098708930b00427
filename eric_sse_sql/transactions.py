"""Transactions: how they begin, nest and end on either database, and which one a thread or asyncio task is in."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from types import MappingProxyType
from typing import Any, NamedTuple, cast

from eric_sse.exception import RepositoryError
from sqlalchemy import Connection, CursorResult, Engine

from eric_sse_sql.engines import Patience, is_on_database
from eric_sse_sql.errors import repository_errors
from eric_sse_sql.statements import Compiled, Row


class _Open(NamedTuple):
    """A transaction that is open."""

    connect: Callable[[], Connection]  # gives its connection
    owner: object  # the thread and task that are in it
    needs_shield: bool  # whether a statement that fails would spoil it, though it is the application's
    after_commit: list[Callable[[], object]] | None  # none where the application commits


_open: ContextVar[Mapping[Transactions, _Open]] = ContextVar("eric_sse_sql_open", default=MappingProxyType({}))


def forget_all() -> None:
    """In a forked child: no transaction of the parent is one of its own."""
    _open.set(MappingProxyType({}))


class Transactions:
    """The transactions of a database: READ COMMITTED on Postgres, BEGIN IMMEDIATE on SQLite.

    :param engine: where they are
    :param patience: how to wait for the lock of SQLite; by default as the engine does
    :param made_here: whether the engine is in autocommit, as those of this package are
    """

    def __init__(self, engine: Engine, patience: Patience | None, made_here: bool) -> None:
        self._engine = engine
        self._patience = patience
        self._is_postgres = engine.dialect.name == "postgresql"
        # SQLite's driver needs no telling, and SQLAlchemy would not give an application back what it had told it.
        foreign_postgres = self._is_postgres and not made_here
        #: The engine, each of whose statements is a transaction.
        self.autocommit = engine.execution_options(isolation_level="AUTOCOMMIT") if foreign_postgres else engine

    def current(self) -> Connection | None:
        """The connection of the transaction that this thread and task are in."""
        current = self._current()
        return current.connect() if current else None

    def execute(self, compiled: Compiled, values: Any) -> Sequence[Row] | None:
        """The rows of a statement in the transaction that is open; None where none is.

        In one of the application, a statement that fails leaves it as it was.
        """
        current = self._current()
        if current is None:
            return None
        connection = current.connect()
        with _savepoint(connection) if current.needs_shield else nullcontext():
            return _rows(connection.exec_driver_sql(compiled.sql, values))

    def execute_alone(self, compiled: Compiled, values: Any) -> Sequence[Row]:
        """The rows of a statement that is a transaction by itself."""
        if self._patience and compiled.writes:  # the engine itself would wait less fairly
            with self.begun() as connection:
                rows = _rows(connection.exec_driver_sql(compiled.sql, values))
                self.commit(connection)
                return rows
        with self.autocommit.begin() as connection:
            return _rows(connection.exec_driver_sql(compiled.sql, values))

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All inside is one transaction, or, inside another one, a savepoint. An exception rolls it back."""
        current = self._current()
        if current is not None:
            connection = current.connect()
            with _savepoint(connection), self._opened(lambda: connection, current.after_commit):
                yield
            return
        after_commit: list[Callable[[], object]] = []
        with self.begun() as connection:
            with self._opened(lambda: connection, after_commit):
                yield
            with repository_errors("the transaction can't be committed"):
                self.commit(connection)
        for callback in after_commit:
            callback()

    def after_commit(self, callback: Callable[[], object]) -> None:
        """Call something when what is done here is committed: at once, outside of a transaction. When the application
        commits a transaction of its own, nobody learns of it here."""
        current = self._current()
        if current is None:
            callback()
        elif current.after_commit is not None:
            current.after_commit.append(callback)

    @contextmanager
    def joined(self, connect: Callable[[], Connection]) -> Iterator[None]:
        """All inside is part of a transaction that whoever owns it ends.

        :param connect: gives its connection; it is asked for each statement, as a session may have set a savepoint
        """
        begun = connect if self._is_postgres else lambda: _begun(connect())
        with repository_errors("the transaction can't be joined"):
            self._check_joinable(connect())
            begun()
        with self._opened(begun, None, needs_shield=self._is_postgres):
            yield

    @contextmanager
    def begun(self) -> Iterator[Connection]:
        """A connection in a transaction, which is rolled back unless it was committed."""
        with repository_errors("no transaction can be begun"):
            connection = self._begin()
        try:
            yield connection
        finally:
            try:
                if not connection.invalidated:
                    _roll_back(connection)
            except BaseException:
                connection.invalidate()
                raise
            finally:
                connection.close()

    def commit(self, connection: Connection) -> None:
        """Commit a transaction that :meth:`begun` has begun."""
        if self._is_postgres and _has_failed(connection):
            raise RepositoryError(
                "a statement of the transaction has failed, so that Postgres can only roll it back; let the error of "
                "that statement leave the block"
            )
        connection.commit()
        if not self._is_postgres:
            driver = _sqlite_driver(connection)
            if _is_ours(driver):
                driver.execute("COMMIT")

    def _current(self) -> _Open | None:
        opened = _open.get().get(self)
        return opened if opened is not None and opened.owner == _whose() else None

    @contextmanager
    def _opened(
        self,
        connect: Callable[[], Connection],
        after_commit: list[Callable[[], object]] | None,
        needs_shield: bool = False,
    ) -> Iterator[None]:
        token = _open.set({**_open.get(), self: _Open(connect, _whose(), needs_shield, after_commit)})
        try:
            yield
        finally:
            _open.reset(token)

    def _begin(self) -> Connection:
        if self._is_postgres:
            connection = self._engine.connect().execution_options(isolation_level="READ COMMITTED")
            connection.begin()
            return connection
        connection = self.autocommit.connect()
        try:
            connection.begin()
            driver = _sqlite_driver(connection)
            if driver.in_transaction:  # begun, without the write lock, by the application's engine
                driver.execute("ROLLBACK")
            if self._patience:
                self._patience.replace_handler(driver)
                try:
                    self._patience.execute(driver, "BEGIN IMMEDIATE")
                finally:
                    self._patience.restore_handler(driver)
            else:
                driver.execute("BEGIN IMMEDIATE")
        except BaseException:
            connection.close()
            raise
        return connection

    def _check_joinable(self, connection: Connection) -> None:
        current = self.current()
        if current is not None and current is not connection:
            raise RepositoryError("another transaction of this Database is open here; join first, or end that one")
        if (connection.dialect.name, connection.dialect.driver) not in _JOINABLE:
            raise RepositoryError(
                f"a connection of {connection.dialect.name}+{connection.dialect.driver} can't be joined; "
                "connect with psycopg (postgresql+psycopg://...) or with SQLite"
            )
        if not is_on_database(connection, self._engine):
            raise RepositoryError("the connection leads to another database than this Database; join one to the same")
        driver = connection.connection.dbapi_connection
        if getattr(driver, "autocommit", None) is True and not getattr(driver, "in_transaction", False):
            raise RepositoryError("the connection is in autocommit: it has no transaction to join; begin one")


_JOINABLE = {("postgresql", "psycopg"), ("sqlite", "pysqlite"), ("sqlite", "aiosqlite")}


def _rows(result: CursorResult[Any]) -> Sequence[Row]:
    """All rows of a result; none of a statement that returns none."""
    return result.fetchall() if result.returns_rows else ()


def _begun(connection: Connection) -> Connection:
    """Begin what SQLAlchemy says is begun: the driver of SQLite waits for a statement that writes, and takes a
    savepoint for a transaction of its own."""
    if not cast(Any, connection.connection.driver_connection).in_transaction:
        connection.exec_driver_sql("BEGIN IMMEDIATE")
    return connection


def _roll_back(connection: Connection) -> None:
    """End, on the driver, what is still open: SQLAlchemy rolls nothing back whose commit an event listener has stopped,
    and may be told to roll nothing back that is in autocommit."""
    driver: Any = connection.connection.driver_connection
    if connection.dialect.name == "postgresql":
        if driver.info.transaction_status.name != "IDLE":
            driver.rollback()
    elif driver.in_transaction:
        driver.rollback()
        if _is_ours(driver):
            driver.execute("ROLLBACK")


def _sqlite_driver(connection: Connection) -> sqlite3.Connection:
    return cast(sqlite3.Connection, connection.connection.driver_connection)


def _is_ours(driver: sqlite3.Connection) -> bool:
    """Whether our BEGIN is open on a connection with ``autocommit=True``, whose commit() and rollback() do nothing."""
    return getattr(driver, "autocommit", None) is True and driver.in_transaction


def _has_failed(connection: Connection) -> bool:
    driver: Any = connection.connection.driver_connection
    return bool(driver.info.transaction_status.name == "INERROR")


@contextmanager
def _savepoint(connection: Connection) -> Iterator[None]:
    with repository_errors("no savepoint can be set"):
        savepoint = connection.begin_nested()
    try:
        yield
    except BaseException:
        savepoint.rollback()
        raise
    with repository_errors("the savepoint can't be released"):
        savepoint.commit()


def _whose() -> object:
    """This thread and asyncio task."""
    try:
        task = asyncio.current_task()
    except RuntimeError:
        task = None
    return threading.get_ident(), task
