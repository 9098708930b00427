"""Everything that is SQLite's alone, through the standard library's driver."""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, cast

from eric_sse.exception import RepositoryError
from sqlalchemy import (
    URL,
    Connection,
    Engine,
    Text,
    bindparam,
    create_engine,
    event,
    func,
    literal_column,
    select,
    type_coerce,
)
from sqlalchemy.dialects import sqlite
from sqlalchemy.exc import DBAPIError

from eric_sse_sql.errors import OutcomeUnknown, driver_error
from eric_sse_sql.execution.busy_retry import BusyRetry, has_code
from eric_sse_sql.execution.dialect import Construct, Dialect
from eric_sse_sql.execution.driver import CommitSignal, DriverConnection
from eric_sse_sql.execution.open_files import OpenFiles
from eric_sse_sql.execution.pool import FairPool
from eric_sse_sql.execution.statement import Compiled, Row, fetch_rows

OLDEST = 3, 35  # the first release of SQLite with RETURNING
BUSY_SECONDS = 30  # for which a statement waits for other writers, unless the URL says otherwise
MAX_BUSY_SECONDS = 24 * 60 * 60  # SQLite counts milliseconds in 32 bits
URL_OPTIONS = {"timeout", "detect_types", "check_same_thread", "cached_statements"}  # what SQLAlchemy passes on
OPEN_FILES = "eric_sse_sql.open_files"  # the key in what the pool keeps with a connection
BEGUN = "eric_sse_sql.begun"  # likewise: the last transaction of an application in which a statement was run
FILE_SUFFIXES = "", "-wal", "-shm"
MAX_LOG_BYTES = 16 * 1024 * 1024  # of the write-ahead log, once a reader that made it grow has ended
PINNED_CONNECTIONS = 2  # one for the calling thread, and one for a background thread that runs at the same time


def make_engine(url: URL, options: Mapping[str, Any]) -> Engine:
    """An engine for a URL: write-ahead log of a bounded size, foreign keys, and a wait for other writers.

    A database in memory is one connection, which its threads use in turn.

    :raises RepositoryError: for a URL with a host, or with an option that would be ignored or has no valid value
    """
    if url.host or url.port or url.username:
        raise RepositoryError(
            "a SQLite URL has three slashes before a relative path, and four before an absolute one"
        ) from ValueError("host")
    _check_query(url)
    arguments: dict[str, Any] = {} if "timeout" in url.query else {"timeout": BUSY_SECONDS}
    options = {"poolclass": FairPool, **options}
    if is_in_memory(url):
        arguments["check_same_thread"] = False
        options.update(pool_size=1, max_overflow=0, pool_timeout=BUSY_SECONDS)
    engine = create_engine(url, connect_args=arguments, **options)
    retry = BusyRetry(_timeout(engine.url))
    event.listen(engine, "connect", lambda connection, record: _set_up(connection, retry))
    return engine


def _check_query(url: URL) -> None:
    """
    :raises RepositoryError: for an option in the URL that would be ignored, or whose value has no sense
    """
    if "plugin" in url.query:  # which may have options of its own
        return
    if "uri" not in url.query and not URL_OPTIONS.issuperset(url.query):
        raise RepositoryError(
            f"the URL has an option that is not one of {', '.join(sorted(URL_OPTIONS))}; an option of SQLite's own, "
            "such as mode=ro, needs sqlite:///file:path/to/file.db?mode=ro&uri=true"
        ) from ValueError("query")
    try:
        is_valid = 0 <= _timeout(url) <= MAX_BUSY_SECONDS
        sqlite.dialect().create_connect_args(url)
    except (TypeError, ValueError):
        is_valid = False
    if not is_valid:
        raise RepositoryError(
            f"an option in the URL has a value that it can't have; timeout is a number of seconds, at most "
            f"{MAX_BUSY_SECONDS:,}, check_same_thread is true or false, the others are whole numbers"
        ) from ValueError("query")


def is_in_memory(url: URL) -> bool:
    """Whether a URL is that of a database in memory."""
    return url.database in (None, "", ":memory:") or url.query.get("mode") == "memory"


class SqliteDialect:
    """How statements are written for SQLite."""

    paramstyle = "qmark"
    locks_rows = False
    insert = staticmethod(sqlite.insert)

    @staticmethod
    def rendered(sql: str) -> str:
        return sql

    @staticmethod
    def insert_rows(model: Any, bound: Mapping[str, str]) -> Any:
        return sqlite.insert(model).values({getattr(model, column): bindparam(name) for column, name in bound.items()})

    @classmethod
    def in_list(cls, column: Any, name: str) -> Construct:
        return column.in_(cls.unnest(name))

    @staticmethod
    def unnest(name: str) -> Construct:
        return select(func.json_each(bindparam(name, type_=Text)).table_valued("value").c.value)

    @staticmethod
    def pairs(name: str) -> Any:
        pair = func.json_each(bindparam(name, type_=Text)).table_valued("key", "value")
        return select(pair.c.key.label("id"), pair.c.value.label("number")).subquery("pairs")

    @staticmethod
    def list_value(values: Sequence[str]) -> str:
        return json.dumps(list(values))

    @staticmethod
    def first_of_each(rows: Any, key: Any) -> tuple[Any, Construct]:
        row = key.class_.__table__.alias("first")
        return row, row.c[key.key].in_(rows.with_only_columns(key))

    @staticmethod
    def ordered_range(
        group: Any, number: Any, value: Any, after: str | None = None
    ) -> tuple[Construct, tuple[Any, ...]]:
        return group == value, (number,)

    @staticmethod
    def open_writers(model: Any) -> Construct:
        return select(literal_column("''")).where(literal_column("0"))

    @staticmethod
    def lookup_join(key: Any, value: Any, *columns: Any) -> tuple[Any, Construct]:
        row = key.class_.__table__.alias()
        return row, row.c[key.key] == value

    @staticmethod
    def not_exists(rows: Any) -> Construct:
        return ~rows.exists()

    @staticmethod
    def looked_up_rows(key: Any, keys: Any) -> Any:
        return key.in_(select(keys.c[key.key]))

    @staticmethod
    def looked_up_pairs(key: Any, pairs: Any) -> Any:
        return key == pairs.c[key.key]  # with IN besides, SQLite would scan all pairs for each row

    @staticmethod
    def with_notification(change: Any) -> Construct:
        return change

    @staticmethod
    def with_notification_for_each(change: Any) -> Construct:
        return change

    @staticmethod
    def advisory_lock(name: str) -> Construct:
        return select(bindparam(name, type_=Text))

    @staticmethod
    def now(shift: str | None = None) -> Construct:
        moment: list[Construct] = [literal_column("'%Y-%m-%d %H:%M:%f'"), literal_column("'now'")]
        return func.strftime(*moment, *([bindparam(shift, type_=Text)] if shift else []))

    @staticmethod
    def seconds_ago(seconds: Any) -> Construct:
        moment: list[Construct] = [literal_column("'%Y-%m-%d %H:%M:%f'"), literal_column("'now'")]
        return func.strftime(*moment, func.printf(literal_column("'-%f seconds'"), seconds))

    @staticmethod
    def token(moment: Any) -> Construct:
        return type_coerce(func.strftime(literal_column("'%Y%m%d%H%M%f'"), moment), Text)

    @classmethod
    def append(cls, row: Any, counter: Any, bound: Mapping[str, str], condition: Construct, returned: Construct) -> Any:
        # A trigger, which the migration makes, writes the number into the counter's row.
        group, *_ = bound
        values = [bindparam(name, type_=getattr(row, column).type) for column, name in bound.items()]
        last = select(counter.last_position).where(getattr(counter, group) == values[0]).scalar_subquery()
        number: Construct = func.coalesce(last, literal_column("0")) + literal_column("1")
        appended = select(*values, number, cls.now()).where(condition)
        insert = sqlite.insert(row).from_select([*bound, "position", "created_at"], appended)
        return insert.returning(row.position, returned)

    @staticmethod
    def greatest(*values: Construct) -> Construct:
        return func.max(*values)

    @staticmethod
    def seconds_value(seconds: float) -> str:
        return f"{seconds:.3f} seconds"


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
            engine.pool.check = self._check_first_files
        self._retry = BusyRetry(_timeout(engine.url)) if is_own_file else None
        if not self._in_memory:
            self.commit_signal = CommitSignal.DATA_VERSION
        else:  # SQLAlchemy's own pool gives each thread a database in memory of its own
            self.commit_signal = CommitSignal.POLLING if owns_engine else CommitSignal.UNREACHABLE

    # A statement by itself

    def enter_autocommit(self, connection: DriverConnection) -> bool:
        driver: sqlite3.Connection = connection.driver
        if self._is_own:
            if self._retry:
                self._retry.replace_handler(driver)
            return True
        _check_factories(driver)
        if driver.in_transaction or _has_standard_transactions(driver):
            return False
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
        with self.engine.connect() as connection:
            self._check_not_shared(_driver(connection))
            self.check_files(_driver(connection), connection.info)
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

    def _check_first_files(self) -> None:
        """Keep the pool from making a connection that would open, or make, another file than the first one has open."""
        if self._first_files is not None and self._first_files.is_open:
            self._first_files.check()

    def _read(self, connection: sqlite3.Connection, sql: str) -> list[Any]:
        return self._retry.execute(connection, sql) if self._retry else connection.execute(sql).fetchall()

    # Transactions

    def begin(self) -> Connection:
        connection = self.engine.connect()
        try:
            driver = _driver(connection)
            self._check_not_shared(driver)
            connection.begin()
            _check_factories(driver)
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
        # The driver begins with the first statement that writes, and takes a savepoint for a transaction of its own.
        if not driver.in_transaction:
            if transaction is not None and connection.info.get(BEGUN) is transaction:
                raise _rolled_back()
            connection.exec_driver_sql("BEGIN IMMEDIATE")
        connection.info[BEGUN] = connection.get_transaction()


def _set_up(connection: sqlite3.Connection, retry: BusyRetry) -> None:
    """Turn foreign keys and the write-ahead log on. A file that can't be written keeps its journal mode.

    The log can't be reset while a reader needs it, and the next write after that cuts it to its size.
    """
    connection.execute("PRAGMA foreign_keys = ON")
    connection.execute(f"PRAGMA journal_size_limit = {MAX_LOG_BYTES}")
    try:
        # SQLite's own handler does not wait for a writer to change the mode.
        retry.execute_without_handler(connection, "PRAGMA journal_mode = WAL")
    except sqlite3.OperationalError as error:
        if not _is_read_only(error):
            raise


def _check_version(engine: Engine) -> None:
    driver: Any = engine.dialect.dbapi
    if driver.sqlite_version_info < OLDEST:
        oldest = ".".join(map(str, OLDEST))
        raise RepositoryError(
            f"SQLite {driver.sqlite_version} is too old; {oldest} is the oldest release that works: use a Python that "
            "is linked with a newer one, or give the engine another driver with create_engine(url, module=...)"
        ) from NotImplementedError(driver.sqlite_version)


def _is_read_only(error: sqlite3.Error) -> bool:
    return has_code(error, ("SQLITE_READONLY",), ("attempt to write a readonly database",))


def _timeout(url: URL) -> float:
    return float(str(url.query.get("timeout", BUSY_SECONDS)))


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


def _check_factories(driver: sqlite3.Connection) -> None:
    """
    :raises RepositoryError: where rows or texts come back as something else, and would be mistaken for stored values
    """
    if driver.row_factory not in (None, sqlite3.Row) or driver.text_factory is not str:
        raise RepositoryError(
            "the connections of the engine have a row_factory or text_factory that this package, and SQLAlchemy, can't "
            "read; leave both as they are, or set row_factory to sqlite3.Row"
        ) from NotImplementedError("factory")


def _is_explicit(driver: sqlite3.Connection) -> bool:
    """Whether an explicit BEGIN is open on a connection with ``autocommit=True``, whose commit() and rollback() do
    nothing."""
    return getattr(driver, "autocommit", None) is True and driver.in_transaction


def _has_standard_transactions(driver: sqlite3.Connection) -> bool:
    """Whether ``autocommit`` is True or False (Python 3.12), so that ``isolation_level`` has no effect."""
    return isinstance(getattr(driver, "autocommit", None), bool)
