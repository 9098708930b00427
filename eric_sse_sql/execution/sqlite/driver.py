"""``SqliteDriver``: how statements run on the connections of a SQLite engine."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterable, Iterator, MutableMapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, cast

from eric_sse.exception import RepositoryError
from sqlalchemy import Connection, Engine, PoolProxiedConnection
from sqlalchemy.exc import DBAPIError

from eric_sse_sql.errors import OutcomeUnknown, driver_error
from eric_sse_sql.execution.dialect import Dialect
from eric_sse_sql.execution.driver import CommitSignal, DriverConnection
from eric_sse_sql.execution.pool import FairPool
from eric_sse_sql.execution.raw import RawConnection, raw_of, wrap
from eric_sse_sql.execution.sqlite.busy_retry import BusyRetry, has_code
from eric_sse_sql.execution.sqlite.dialect import SqliteDialect
from eric_sse_sql.execution.sqlite.engine import busy_seconds, is_in_memory
from eric_sse_sql.execution.sqlite.open_files import OpenFiles
from eric_sse_sql.execution.sqlite.samples import check_samples
from eric_sse_sql.execution.statement import Compiled, Row, fetch_rows, run_compiled

OLDEST = 3, 35  # the first release of SQLite with RETURNING
OPEN_FILES = "eric_sse_sql.open_files"  # the key in what the pool keeps with a connection
BEGUN = "eric_sse_sql.begun"  # likewise: the last transaction of an application in which a statement was run
CHECKED = "eric_sse_sql.checked"  # likewise: whether its values were checked
FILE_SUFFIXES = "", "-wal", "-shm"
PINNED_CONNECTIONS = 2  # one for the calling thread, and one for a background thread that runs at the same time


class SqliteDriver:
    """How statements run on the connections of a SQLite engine.

    On a file of an engine that was made here, writes wait for the lock with :class:`BusyRetry`; on an engine of the
    application, as its connections say.

    :param owns_engine: whether the engine was made by this package, in autocommit
    :raises RepositoryError: for a SQLite that is too old
    """

    dialect: Dialect = SqliteDialect()
    binds_columns = False
    has_schemas = False
    fails_transactions = False
    keeps_deleted_rows = False

    def __init__(self, engine: Engine, *, owns_engine: bool) -> None:
        _check_version(engine)
        self.engine = engine
        self._in_memory = is_in_memory(engine.url)
        is_own_file = owns_engine and not self._in_memory
        self.pinned_connections = PINNED_CONNECTIONS if is_own_file else 0
        self._is_own = owns_engine
        self._path: str | None = None
        self._first_files: OpenFiles | None = None  # those of the connection that was opened first, of those still open
        if isinstance(engine.pool, FairPool) and owns_engine:
            engine.pool.check = self.check_connect
        self._retry = BusyRetry(busy_seconds(engine.url)) if is_own_file else None
        if not self._in_memory:
            self.commit_signal = CommitSignal.DATA_VERSION
        else:  # SQLAlchemy's own pool gives each thread a database in memory of its own
            self.commit_signal = CommitSignal.POLLING if owns_engine else CommitSignal.UNREACHABLE

    # A statement by itself

    def enter_autocommit(self, connection: DriverConnection) -> bool:
        driver: sqlite3.Connection = connection.driver
        if self._is_own:
            _check_values(connection.pooled)
            if self._retry:
                self._retry.replace_handler(driver)
            return True
        _check_factories(driver)
        if driver.in_transaction or _has_standard_transactions(driver):
            return False
        _check_values(connection.pooled)
        if driver.isolation_level is not None:
            connection.restore = driver.isolation_level
            driver.isolation_level = None
        return True

    def leave_autocommit(self, connection: DriverConnection) -> None:
        if self._retry:
            self._retry.restore_handler(connection.driver)
        elif connection.restore is not None:
            connection.driver.isolation_level = connection.restore

    def fetch(self, connection: DriverConnection, compiled: Compiled, values: Any) -> Sequence[Row]:
        files: OpenFiles | None = connection.session
        if files is None:
            files = connection.session = self._files(connection.driver, connection.pooled.info)
        files.check()
        try:
            if self._retry:
                return self._retry.execute(connection.driver, compiled.sql, values)
            return cast(Sequence[Row], connection.driver.execute(compiled.sql, values).fetchall())
        except sqlite3.OperationalError as error:
            if compiled.writes:
                _check_interrupt(error)
            raise

    def needs_transaction(self, compiled: Compiled) -> bool:
        return self._retry is not None and compiled.writes

    def fetch_through_engine(self, compiled: Compiled, values: Any) -> Sequence[Row]:
        self.check_connect()
        with self.engine.connect() as connection:
            self._check_not_shared(_driver(connection))
            self.check_files(_driver(connection), connection.info)
            _check_values(connection.connection)
            connection.begin()
            with _outcome_known() if compiled.writes else nullcontext():
                rows = fetch_rows(connection, compiled, values)
            connection.commit()
            return rows

    def is_closed(self, connection: Any) -> bool:
        return False

    def is_broken(self, error: BaseException, connection: Any) -> bool:
        return False

    def is_refused(self, error: BaseException) -> bool:
        return False

    def is_null_refused(self, error: BaseException) -> bool:
        return isinstance(error, sqlite3.IntegrityError) and str(error).startswith("NOT NULL constraint failed")

    def is_conflict(self, error: BaseException) -> bool:
        return False  # the transaction that writes is the only one

    def detached_connection(self) -> Any:
        pooled = self.engine.raw_connection()
        connection = pooled.driver_connection
        pooled.detach()
        return connection

    def check_files(self, connection: sqlite3.Connection, info: MutableMapping[Any, Any]) -> None:
        self._files(connection, info).check()

    def _files(self, connection: sqlite3.Connection, info: MutableMapping[Any, Any]) -> OpenFiles:
        """The files that a connection has open."""
        files: OpenFiles | None = info.get(OPEN_FILES)
        if files is None and connection.in_transaction:  # which the query below would give an old snapshot
            return OpenFiles(connection, ())
        if files is None:
            # A connection that has read keeps the -wal and -shm files open, and no other connection deletes them.
            self._read(connection, "PRAGMA schema_version")
            path = _path(self._read(connection, "PRAGMA database_list"))
            paths = [path + suffix for suffix in FILE_SUFFIXES] if path else []
            files = info[OPEN_FILES] = OpenFiles(connection, paths)
            if self._first_files is None or not self._first_files.is_open:
                self._first_files = files
        return files

    def check_connect(self) -> None:
        if self._first_files is not None and self._first_files.is_open:
            self._first_files.check()

    def _read(self, connection: sqlite3.Connection, sql: str) -> list[Any]:
        return self._retry.execute(connection, sql) if self._retry else connection.execute(sql).fetchall()

    # Transactions

    def begin(self) -> Connection:
        self.check_connect()
        connection = self.engine.connect()
        try:
            driver = _driver(connection)
            self._check_not_shared(driver)
            _check_factories(driver)
            _check_values(connection.connection)
            connection.begin()
            if driver.in_transaction:  # begun by the application's engine, without the write lock
                driver.execute("ROLLBACK")
            self.check_files(driver, connection.info)
            if self._retry:
                self._retry.execute_without_handler(driver, "BEGIN IMMEDIATE")
            else:
                driver.execute("BEGIN IMMEDIATE")
        except BaseException:
            connection.close()
            raise
        return connection

    def _check_not_shared(self, driver: sqlite3.Connection) -> None:
        """
        :raises RepositoryError: where a database in memory has one connection for a thread, and the application's
            transaction is open on it: it would be committed or rolled back
        """
        is_shared = self._in_memory and not self._is_own
        if is_shared and driver.in_transaction and not _has_standard_transactions(driver):
            raise RepositoryError(
                "a transaction of the application is open on the only connection of this thread to the database in "
                "memory; end it, or go into it with Database.join()"
            )

    def check_begun(self, connection: Connection) -> None:
        if not _driver(connection).in_transaction:
            raise _rolled_back()

    def lift_timeout(self, connection: Connection) -> None:
        """A statement that runs has no limit."""

    def commit(self, connection: Connection) -> None:
        self.check_begun(connection)
        with _outcome_known():
            connection.commit()
            driver = _driver(connection)
            if _is_explicit(driver):
                driver.execute("COMMIT")

    def roll_back(self, connection: Connection) -> None:
        # SQLAlchemy rolls nothing back where an event listener has stopped a commit, or in autocommit if told so.
        driver = _driver(connection)
        if driver.in_transaction:
            driver.rollback()
            if _is_explicit(driver):
                driver.execute("ROLLBACK")

    # Transactions of the application

    def is_raw(self, bind: object) -> bool:
        return isinstance(bind, sqlite3.Connection)

    def wrap(self, raw: Any) -> Connection:
        return wrap(RawConnection(raw, _plain_cursor), self.engine.dialect)

    def is_same_database(self, connection: Connection) -> bool:
        if connection.engine.pool is self.engine.pool:
            return True
        if self._in_memory:
            return False
        if self._path is None:
            with self.engine.connect() as own:
                self._path = _path(own.exec_driver_sql("PRAGMA database_list"))
        return self._path is not None and self._path == _path(connection.exec_driver_sql("PRAGMA database_list"))

    def is_in_autocommit(self, connection: Connection) -> bool:
        driver = _driver(connection)
        if driver.in_transaction:
            return False
        return getattr(driver, "autocommit", None) is True or driver.isolation_level is None

    def begin_joined(self, connection: Connection) -> None:
        driver, transaction = _driver(connection), connection.get_transaction()
        self.check_files(driver, connection.info)
        _check_values(connection.connection)
        # The driver begins with the first statement that writes, and takes a savepoint for a transaction of its own.
        if not driver.in_transaction:
            if transaction is not None and connection.info.get(BEGUN) is transaction:
                raise _rolled_back()
            connection.exec_driver_sql("BEGIN IMMEDIATE")
        connection.info[BEGUN] = connection.get_transaction()

    def run_joined(self, connection: Connection, compiled: Compiled, values: Any) -> tuple[Sequence[Row], int]:
        return run_compiled(connection, compiled, values)

    def refuse_commit(self, connection: Connection) -> None:
        transaction, driver = connection.get_transaction(), cast(Any, connection.connection.driver_connection)
        if not driver.in_transaction:
            return  # SQLite has rolled all of it back, and check_begun() says so
        if (raw := raw_of(connection)) is not None:
            raw.rollback()
        elif not self._in_memory:
            connection.invalidate()  # SQLAlchemy refuses each further statement, and the commit
        elif transaction is not None:  # without its only connection, the database would be lost
            transaction.rollback()
            self.roll_back(connection)


def _check_version(engine: Engine) -> None:
    driver: Any = engine.dialect.dbapi
    if driver.sqlite_version_info < OLDEST:
        oldest = ".".join(map(str, OLDEST))
        raise RepositoryError(
            f"SQLite {driver.sqlite_version} is too old; {oldest} is the oldest release that works: use a Python that "
            "is linked with a newer one, or give the engine another driver with create_engine(url, module=...)"
        ) from NotImplementedError(driver.sqlite_version)


def _path(databases: Iterable[Any]) -> str | None:
    """The file of the main database, in the rows of ``PRAGMA database_list``; None in memory."""
    files = {name: file for _, name, file in databases}
    return os.path.realpath(files["main"]) if files["main"] else None


def _rolled_back() -> RepositoryError:
    """What a fault such as a full disk does to a transaction in SQLite, beside the error of the statement."""
    return RepositoryError(
        "a statement of the transaction has failed, and SQLite has rolled all of it back; let the error of that "
        "statement leave the block, and run the whole transaction again"
    )


@contextmanager
def _outcome_known() -> Iterator[None]:
    """
    :raises OutcomeUnknown: in the place of an interrupt
    """
    try:
        yield
    except (DBAPIError, sqlite3.OperationalError) as error:
        _check_interrupt(error)
        raise


def _check_interrupt(error: Exception) -> None:
    """
    :raises OutcomeUnknown: for an interrupt, which SQLite may report after it has committed
    """
    cause = driver_error(error)
    if isinstance(cause, sqlite3.Error) and has_code(cause, ("SQLITE_INTERRUPT",), ("interrupted",)):
        raise OutcomeUnknown("SQLite was interrupted") from cause


def _driver(connection: Connection) -> sqlite3.Connection:
    return cast(sqlite3.Connection, connection.connection.driver_connection)


def _plain_cursor(raw: sqlite3.Connection) -> sqlite3.Cursor:
    """A cursor that returns tuples, whatever rows the connection returns."""
    cursor = sqlite3.Cursor(raw)
    cursor.row_factory = None
    return cursor


def _check_factories(driver: sqlite3.Connection) -> None:
    """
    :raises RepositoryError: where rows or texts come back as something else, and would be mistaken for stored values
    """
    if driver.row_factory not in (None, sqlite3.Row) or driver.text_factory is not str:
        raise RepositoryError(
            "the connections of the engine have a row_factory or text_factory that this package, and SQLAlchemy, can't "
            "read; leave both as they are, or set row_factory to sqlite3.Row"
        ) from NotImplementedError("factory")


def _check_values(pooled: PoolProxiedConnection) -> None:
    """Check the values that a connection writes and reads, once.

    :raises RepositoryError: where they are not those of this package
    """
    if CHECKED not in pooled.info:
        check_samples(pooled.cursor())
        pooled.info[CHECKED] = True


def _is_explicit(driver: sqlite3.Connection) -> bool:
    """Whether an explicit BEGIN is open on a connection with ``autocommit=True``, whose commit() and rollback() do
    nothing."""
    return getattr(driver, "autocommit", None) is True and driver.in_transaction


def _has_standard_transactions(driver: sqlite3.Connection) -> bool:
    """Whether ``autocommit`` is True or False (Python 3.12), so that ``isolation_level`` has no effect."""
    return isinstance(getattr(driver, "autocommit", None), bool)
