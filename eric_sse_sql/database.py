"""``Database``: an engine, its transactions, its codec and the version of its tables."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import random
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from types import MappingProxyType, TracebackType
from typing import Any, Protocol
from weakref import WeakSet

from eric_sse.exception import RepositoryError
from sqlalchemy import (
    ARRAY,
    URL,
    Connection,
    CursorResult,
    Engine,
    Text,
    any_,
    bindparam,
    create_engine,
    event,
    func,
    make_url,
    select,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.pool import QueuePool

from eric_sse_sql.codec import HeldByReference, PickleCodec
from eric_sse_sql.errors import repository_errors

SQLITE_BUSY_SECONDS = 30

Row = Sequence[Any]
Construct = Any  # one of SQLAlchemy's; its releases 2.0 and 2.1 give them different type parameters


class Dialect(Protocol):
    """What statements are built with where the two databases differ."""

    paramstyle: str

    def insert(self, table: Any) -> Any:
        """An INSERT that takes ``on_conflict_do_update``."""

    def among(self, column: Any, name: str) -> Construct:
        """Whether a column is in the list bound by that name, however long it is."""

    def list_value(self, values: Sequence[str]) -> Any:
        """The value to bind for such a list."""


class _Postgres:
    paramstyle = "format"
    insert = staticmethod(postgresql.insert)

    @staticmethod
    def among(column: Any, name: str) -> Construct:
        return column == any_(bindparam(name, type_=ARRAY(Text)))

    @staticmethod
    def list_value(values: Sequence[str]) -> list[str]:
        return list(values)


class _Sqlite:
    paramstyle = "qmark"
    insert = staticmethod(sqlite.insert)

    @staticmethod
    def among(column: Any, name: str) -> Construct:
        return column.in_(select(func.json_each(bindparam(name, type_=Text)).table_valued("value").c.value))

    @staticmethod
    def list_value(values: Sequence[str]) -> str:
        return json.dumps(list(values))


_DIALECTS: dict[tuple[str, str], Dialect] = {
    ("postgresql", "psycopg"): _Postgres(),
    ("sqlite", "pysqlite"): _Sqlite(),
}


class Statement:
    """One SQL statement, built once from the mapped tables and compiled once by each database that runs it.

    :param build: makes it, with bound parameters, for a dialect
    """

    __slots__ = ("build",)

    def __init__(self, build: Callable[[Dialect], Construct]) -> None:
        self.build = build


_Compiled = tuple[str, tuple[str, ...], Mapping[str, Any]]  # SQL, names by position, values that it brings itself

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
    connection of the engine's pool: SQLAlchemy's execution would cost four times as much as SQLite's. As soon as the
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
            self.engine: Engine = bind if isinstance(bind, Engine) else _make_engine(bind)
        name, driver = self.engine.dialect.name, self.engine.dialect.driver
        if (name, driver) not in _DIALECTS:
            raise RepositoryError(
                f"{name}+{driver} is not supported; use postgresql+psycopg://... or sqlite:///..."
            ) from NotImplementedError(driver)
        if schema is not None and name != "postgresql":
            raise RepositoryError("schema= is for Postgres; SQLite has one per file") from ValueError(name)
        self.codec = codec or PickleCodec()
        self.schema = schema
        self.dialect = _DIALECTS[name, driver]
        self._autocommit = (
            self.engine if self._made_engine else self.engine.execution_options(isolation_level="AUTOCOMMIT")
        )
        self._compiled: dict[Statement, _Compiled] = {}
        self._closed = False
        if self._made_engine:
            _owners.add(self)

    # Schema

    def upgrade(self, revision: str = "head") -> None:
        """Make or migrate the tables, under a lock: many processes may do so at once.

        :param revision: the Alembic revision to upgrade to
        :raises RepositoryError: from the cause; the database is then as it was
        """
        from eric_sse_sql import migrations  # type: ignore[attr-defined]  # package-dir puts it there

        with repository_errors("the tables can't be upgraded"), self._connected() as connection:
            migrations.upgrade(connection, revision, self.schema)

    def check(self) -> None:
        """Do nothing, if the tables are those of this release.

        :raises RepositoryError: when they are missing or older, with the command to run, or newer
        """
        from eric_sse_sql import migrations  # type: ignore[attr-defined]  # package-dir puts it there

        with repository_errors("the version of the tables can't be read"), self._connected() as connection:
            migrations.check(connection, self.schema)

    # Transactions

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All that this thread, or asyncio task, does with the database inside is one transaction.

        An exception rolls it back. Inside another one it is a savepoint.

        :raises RepositoryError: when it can't begin, or can't commit: then nothing was written
        """
        current = self._current()
        if current is not None:
            with current.begin_nested():
                yield
            return
        with self._connected() as connection:
            token = _open.set({**_open.get(), self: (connection, _whose())})
            try:
                yield
                with repository_errors("the transaction can't be committed"):
                    connection.commit()
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
            connection.close()

    def _begin(self) -> Connection:
        self._check_open()
        if self.engine.dialect.name == "postgresql":
            connection = self.engine.connect().execution_options(isolation_level="READ COMMITTED")
            connection.begin()
            return connection
        connection = self._autocommit.connect()
        try:
            connection.begin()
            driver: sqlite3.Connection = connection.connection.driver_connection  # type: ignore[assignment]
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
        sql, names, constants = self._compile(statement)
        values = tuple([constants[name] if name in constants else parameters[name] for name in names])
        current = self._current()
        if current is not None:
            return _rows(current.exec_driver_sql(sql, values))
        self._check_open()
        if self._unobserved():
            return self._run_on_driver(sql, values)
        with self._autocommit.begin() as connection:
            return _rows(connection.exec_driver_sql(sql, values))

    def run_many(self, statement: Statement, rows: Sequence[Mapping[str, Any]]) -> None:
        """Run a statement once for each row, as one call of the driver. Belongs in a transaction."""
        sql, names, constants = self._compile(statement)
        current = self._current()
        assert current is not None
        if rows:
            current.exec_driver_sql(sql, [tuple([{**constants, **row}[name] for name in names]) for row in rows])

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
            try:
                if self.dialect.paramstyle == "qmark":
                    rows: Sequence[Row] = driver.execute(sql, values).fetchall()
                else:
                    cursor = driver.execute(sql, values, binary=True)
                    rows = cursor.fetchall() if cursor.description else ()
                return rows
            except BaseException as error:
                if not isinstance(error, Exception) or self.engine.dialect.is_disconnect(error, driver, None):  # type: ignore[arg-type]
                    pooled.invalidate()
                    self.engine.dispose()  # the others of the pool are as dead
                raise
        finally:
            pooled.close()

    def _compile(self, statement: Statement) -> _Compiled:
        found = self._compiled.get(statement)
        if found is None:
            positional = type(self.engine.dialect)(paramstyle=self.dialect.paramstyle)  # type: ignore[call-arg]
            schema = {"schema_translate_map": {None: self.schema}, "render_schema_translate": True}
            compiled = statement.build(self.dialect).compile(dialect=positional, **(schema if self.schema else {}))
            constants = {name: value for name, value in compiled.params.items() if value is not None}
            found = self._compiled[statement] = compiled.string, tuple(compiled.positiontup), constants
        return found

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

    def __repr__(self) -> str:
        return f"Database({self.engine.url!r})"  # SQLAlchemy hides the password

    def _check_open(self) -> None:
        if self._closed:
            raise RepositoryError("this Database is closed; make another one")


def _make_engine(bind: str | URL) -> Engine:
    """An engine in autocommit, whose connections need no reset and whose errors quote no parameter."""
    url = make_url(bind)
    if url.drivername == "postgresql":
        url = url.set(drivername="postgresql+psycopg")
    options: dict[str, Any] = {
        "isolation_level": "AUTOCOMMIT",
        "pool_reset_on_return": None,
        "hide_parameters": True,
    }
    if url.get_backend_name() != "sqlite":
        return create_engine(url, **options)
    if "timeout" not in url.query:
        options["connect_args"] = {"timeout": SQLITE_BUSY_SECONDS}
    if url.database in (None, "", ":memory:") or url.query.get("mode") == "memory":
        # One connection is the database; those who wait for it take turns.
        options |= {"poolclass": QueuePool, "pool_size": 1, "max_overflow": 0}
        options["connect_args"] = {**options.get("connect_args", {}), "check_same_thread": False}
    engine = create_engine(url, **options)
    event.listen(engine, "connect", _prepare_sqlite)
    return engine


def _prepare_sqlite(connection: sqlite3.Connection, record: object) -> None:
    connection.execute("PRAGMA foreign_keys = ON")
    give_up = time.monotonic() + SQLITE_BUSY_SECONDS
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError:  # for this switch SQLite does not wait for other processes by itself
            if time.monotonic() > give_up:
                raise
            time.sleep(random.uniform(0.001, 0.02))


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
    for database in _owners:
        _inherited.append(database.engine.pool)
        database.engine.dispose(close=False)


_inherited: list[object] = []
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_parent)
