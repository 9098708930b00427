"""``Database``: an engine, its transactions, its codec and the version of its tables."""

from __future__ import annotations

import asyncio
import logging
import os
import sqlite3
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from types import MappingProxyType, TracebackType
from typing import Any, cast
from weakref import WeakSet, finalize

from eric_sse.exception import RepositoryError
from sqlalchemy import URL, Connection, CursorResult, Engine

from eric_sse_sql.codec import HeldByReference, PickleCodec
from eric_sse_sql.engines import are_same_database, make_engine
from eric_sse_sql.errors import repository_errors
from eric_sse_sql.statements import Compiled, Statement, dialect_of

Row = Sequence[Any]

# Which connection each database runs on inside transaction(), and for which thread and task.
_open: ContextVar[Mapping[Database, tuple[Connection, object]]] = ContextVar(
    "eric_sse_sql_open", default=MappingProxyType({})
)
_owners: WeakSet[Database] = WeakSet()


class Database(HeldByReference):
    """The SQL database that an application keeps its channels in.

    Threads may share it. A forked child gets fresh connections where the engine was made here; an application that
    forks with an engine of its own disposes of it in the child, as SQLAlchemy asks
    (https://docs.sqlalchemy.org/en/20/core/pooling.html#using-connection-pools-with-multiprocessing-or-os-fork).
    On SQLite, do not fork inside a transaction (https://www.sqlite.org/howtocorrupt.html, 2.6).

    A call of one statement runs in autocommit, a call of several in one transaction: READ COMMITTED on Postgres,
    BEGIN IMMEDIATE on SQLite, whatever the engine's default is. No table is made before :meth:`upgrade`.

    Where the engine was made here and nobody listens to it, a single statement goes to the driver's own cursor, on a
    connection of the engine's pool: a fetch from SQLite takes a third of the time (benchmarks/results). As soon as the
    engine has an event listener, is echoed or logged at INFO, every statement goes through it; on an engine of the
    application it always does.

    :param bind: a URL, or the application's own engine, of which nothing is changed. A URL makes an engine in
        autocommit; for SQLite with write-ahead log, foreign keys on and 30 seconds of patience with other writers
    :param codec: how objects become blobs
    :param schema: where the tables are, on Postgres; by default where the search path leads
    :raises RepositoryError: for a ``bind`` that is neither, or of another database or driver
    """

    def __init__(
        self, bind: str | URL | Engine, *, codec: PickleCodec | None = None, schema: str | None = None
    ) -> None:
        self._made_engine = not isinstance(bind, Engine)
        with repository_errors("the database can't be used"):
            self.engine: Engine = bind if isinstance(bind, Engine) else make_engine(bind)
        self.dialect = dialect_of(self.engine)
        self._is_postgres = self.engine.dialect.name == "postgresql"
        if schema is not None and not self._is_postgres:
            raise RepositoryError("schema= is for Postgres; SQLite has one per file") from ValueError(schema)
        self.codec = codec or PickleCodec()
        self.schema = schema
        # SQLite's driver needs no telling, and SQLAlchemy would not give an application back what it had told it.
        foreign_postgres = self._is_postgres and not self._made_engine
        self._autocommit = (
            self.engine.execution_options(isolation_level="AUTOCOMMIT") if foreign_postgres else self.engine
        )
        self._compiled: dict[Statement, Compiled] = {}
        self._closed = False
        if self._made_engine:
            _owners.add(self)
            finalize(self, self.engine.dispose)  # a Database that is dropped, not closed, leaves no connection behind

    # Schema

    def upgrade(self, revision: str = "head") -> None:
        """Make or migrate the tables, under a lock: many processes may do so at once.

        :param revision: the Alembic revision to upgrade to
        :raises RepositoryError: from the cause; the database is then as it was
        """
        from eric_sse_sql import migrations  # type: ignore[attr-defined]  # package-dir puts it there

        if self._current() is not None:
            raise RepositoryError("upgrade() is a transaction of its own; call it before transaction()")
        with repository_errors("the tables can't be upgraded"), self._connected() as connection:
            migrations.upgrade(connection, revision, self.schema)
            self._commit(connection)

    def check(self) -> None:
        """Do nothing, if the tables are those of this release.

        :raises RepositoryError: when they are missing or older, with the command to run, or newer
        """
        from eric_sse_sql import migrations  # type: ignore[attr-defined]  # package-dir puts it there

        self._check_open()
        with repository_errors("the version of the tables can't be read"), self._reading() as connection:
            migrations.check(connection, self.schema)

    def _reading(self) -> AbstractContextManager[Connection]:
        current = self._current()
        return self._autocommit.connect() if current is None else nullcontext(current)

    # Transactions

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All that this thread, or asyncio task, does with the database inside is one transaction.

        An exception rolls it back. Inside another one it is a savepoint.

        :raises RepositoryError: when it can't begin, or can't commit: then nothing was written
        """
        current = self._current()
        if current is not None:
            with _savepoint(current):
                yield
            return
        with self._connected() as connection:
            token = _open.set({**_open.get(), self: (connection, _whose())})
            try:
                yield
                with repository_errors("the transaction can't be committed"):
                    self._commit(connection)
            finally:
                _open.reset(token)

    @contextmanager
    def _connected(self) -> Iterator[Connection]:
        """A connection in a transaction, which is rolled back unless it was committed."""
        with repository_errors("no transaction can be begun"):
            connection = self._begin()
        try:
            yield connection
        finally:
            if not (self._is_postgres or connection.invalidated):
                driver = cast(sqlite3.Connection, connection.connection.driver_connection)
                if driver.in_transaction:  # SQLAlchemy may be told to roll nothing back that is in autocommit
                    driver.rollback()
                if _is_ours(driver):
                    driver.execute("ROLLBACK")
            connection.close()

    def _commit(self, connection: Connection) -> None:
        connection.commit()
        if not self._is_postgres:
            driver = cast(sqlite3.Connection, connection.connection.driver_connection)
            if _is_ours(driver):
                driver.execute("COMMIT")

    def _begin(self) -> Connection:
        self._check_open()
        if self._is_postgres:
            connection = self.engine.connect().execution_options(isolation_level="READ COMMITTED")
            connection.begin()
            return connection
        connection = self._autocommit.connect()
        try:
            connection.begin()
            driver = cast(sqlite3.Connection, connection.connection.driver_connection)
            if driver.in_transaction:  # begun, without the write lock, by the application's engine
                driver.execute("ROLLBACK")
            driver.execute("BEGIN IMMEDIATE")
        except BaseException:
            connection.close()
            raise
        return connection

    def _current(self) -> Connection | None:
        opened = _open.get().get(self)
        if opened is None or opened[1] != _whose():
            return None
        return opened[0]

    # Statements

    def run(self, statement: Statement, **parameters: Any) -> Sequence[Row]:
        """Run a statement: in the open transaction, or in autocommit. Its rows, all fetched."""
        compiled = self._compile(statement)
        sql, values = compiled.sql, compiled.values(parameters)
        current = self._current()
        if current is not None:
            return _rows(current.exec_driver_sql(sql, values))
        self._check_open()
        if self._unobserved():
            return self._run_on_driver(sql, values)
        with self._autocommit.begin() as connection:
            return _rows(connection.exec_driver_sql(sql, values))

    def run_many(self, statement: Statement, rows: Sequence[Mapping[str, Any]]) -> None:
        """Run a statement once for each row, in the open transaction: one call of the driver."""
        current = self._current()
        if current is None:
            raise RuntimeError("run_many() belongs inside transaction()")
        if rows:
            compiled = self._compile(statement)
            current.exec_driver_sql(compiled.sql, [compiled.values(row) for row in rows])

    def _compile(self, statement: Statement) -> Compiled:
        compiled = self._compiled.get(statement)
        if compiled is None:
            compiled = self._compiled[statement] = statement.compile(self.engine, self.schema)
        return compiled

    def _unobserved(self) -> bool:
        """Whether nobody would notice that a statement does not go through the engine."""
        engine = self.engine
        return (
            self._made_engine
            # SQLAlchemy's own flags, and private; without them, somebody is taken to listen.
            and not getattr(engine, "_has_events", True)
            and not getattr(engine.dialect, "_has_events", True)
            and not engine.logger.isEnabledFor(logging.INFO)
        )

    def _run_on_driver(self, sql: str, values: tuple[Any, ...]) -> Sequence[Row]:
        pooled = self.engine.raw_connection()
        try:
            driver: Any = pooled.driver_connection
            if not self._is_postgres:
                return cast(Sequence[Row], driver.execute(sql, values).fetchall())
            try:
                cursor = driver.execute(sql, values, binary=True)
                return cursor.fetchall() if cursor.description else ()
            except BaseException as error:
                if not isinstance(error, Exception) or self.engine.dialect.is_disconnect(
                    cast(Any, error), driver, None
                ):
                    pooled.invalidate()
                    self.engine.dispose()  # the others of the pool are as dead
                raise
        finally:
            pooled.close()

    # Life

    def close(self) -> None:
        """Close the connections of an engine that was made here. What is called afterwards raises."""
        self._closed = True
        if self._made_engine:
            self.engine.dispose()

    def __enter__(self) -> Database:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def is_same(self, other: HeldByReference) -> bool:
        """Whether another ``Database`` leads to the same database, as far as its URL tells."""
        return isinstance(other, Database) and are_same_database(self.engine, other.engine)

    def __repr__(self) -> str:
        return f"Database({self.engine.url!r})"  # SQLAlchemy hides the password

    def _check_open(self) -> None:
        if self._closed:
            raise RepositoryError("this Database is closed; make another one")


def _is_ours(driver: sqlite3.Connection) -> bool:
    """Whether our BEGIN is open on a connection with ``autocommit=True``, whose commit() and rollback() do nothing."""
    return getattr(driver, "autocommit", None) is True and driver.in_transaction


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


def _rows(result: CursorResult[Any]) -> Sequence[Row]:
    return result.fetchall() if result.returns_rows else ()


def _whose() -> object:
    """This thread and asyncio task."""
    try:
        task = asyncio.current_task()
    except RuntimeError:
        task = None
    return threading.get_ident(), task


def _forget_parent() -> None:
    """In a forked child: leave the parent's connections alone, and keep them from being closed by the collector."""
    _open.set(MappingProxyType({}))
    for database in list(_owners):
        _inherited.append(database.engine.pool)
        database.engine.dispose(close=False)


_inherited: list[object] = []
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_parent)
