"""``PostgresDriver``: how statements run on the connections of a Postgres engine."""

from __future__ import annotations

import logging
from collections.abc import Iterator, MutableMapping, Sequence
from contextlib import closing, contextmanager, nullcontext, suppress
from typing import Any
from weakref import WeakKeyDictionary, WeakSet

import psycopg
from eric_sse.exception import RepositoryError
from sqlalchemy import Connection, Engine, PoolProxiedConnection, event
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import ConnectionPoolEntry

from eric_sse_sql.errors import OutcomeUnknown, driver_error, sqlstate
from eric_sse_sql.execution.dialect import Dialect
from eric_sse_sql.execution.driver import CommitSignal, DriverConnection, Repeats
from eric_sse_sql.execution.postgres import other_drivers
from eric_sse_sql.execution.postgres import session as sessions
from eric_sse_sql.execution.postgres.connection import BoundedConnection, PlainCursor
from eric_sse_sql.execution.postgres.dialect import PostgresDialect
from eric_sse_sql.execution.postgres.session import DISCARD_PLANS, Session, has_plain_cursors
from eric_sse_sql.execution.raw import RawConnection, raw_of, wrap
from eric_sse_sql.execution.statement import Compiled, Row, fetch_rows, run_compiled

logger = logging.getLogger("eric_sse_sql")

PINNED_CONNECTIONS = 2  # one for the calling thread, and one for a background thread that runs at the same time
SAME_DATABASE = "eric_sse_sql.same_database"  # the key in what the pool keeps with a connection
#: Serialization failure, deadlock; foreign key and unique violations, which a row that was deleted or inserted causes.
CONFLICTS = {"40001", "40P01", "23503", "23505"}
BEGIN_READ_COMMITTED = "BEGIN ISOLATION LEVEL READ COMMITTED"

_POOLER = (
    "a pooler, such as PgBouncer, stands before Postgres and may give each transaction another session: statements are "
    "not prepared, and the messages of other processes are polled for five times a second; write "
    "Database(..., notify=False), which says so, or connect to Postgres itself to be notified"
)
_PREPARES = (
    "the engine prepares statements through a pooler, such as PgBouncer, which may give each transaction another "
    "session, where another client's statement may have the same name; make the engine with "
    "connect_args={'prepare_threshold': None}, and write Database(engine, notify=False)"
)


class PostgresDriver:
    """How statements run on the connections of a Postgres engine.

    A statement by itself runs in autocommit where the default isolation level of the session is READ COMMITTED;
    otherwise, a BEGIN and a COMMIT are sent together with it. Each connection is asked once for its default, and
    whether it has a session of its own. Where a pooler gives each transaction another session, nothing is prepared, no
    setting of a session is relied on, and nothing is listened to.

    Postgres keeps the plan of a prepared statement until the table is analysed again: a plan that was made while a
    table was empty scans all of a full one. So the plans of a connection are discarded once a second.

    :param owns_engine: whether the engine was made by this package, in autocommit
    :param through_proxy: whether the application says that there is a pooler
    :raises RepositoryError: for an engine that writes its statements in another way than psycopg's cursor reads them
    """

    dialect: Dialect = PostgresDialect()
    commit_signal = CommitSignal.NOTIFICATION
    binds_columns = True
    has_schemas = True
    fails_transactions = True
    keeps_deleted_rows = True

    def __init__(self, engine: Engine, *, owns_engine: bool, through_proxy: bool = False) -> None:
        _check_statements(engine)
        self.engine = engine
        self.pinned_connections = PINNED_CONNECTIONS if owns_engine else 0
        self._is_own = owns_engine
        self._knows_proxy = through_proxy
        self._address: object = None
        self._raw_sessions: WeakKeyDictionary[Any, Session] = WeakKeyDictionary()
        self._raw_same: WeakKeyDictionary[Any, WeakSet[PostgresDriver]] = WeakKeyDictionary()
        if owns_engine:
            event.listen(engine, "connect", self._set_up)

    # A statement by itself

    def enter_autocommit(self, connection: DriverConnection) -> bool:
        driver = connection.driver
        if not (_is_idle(driver) and has_plain_cursors(driver)):
            return False
        session = connection.session = self._checked_session(connection.pooled)
        if not session.is_plain:
            return False
        session.change(driver, "autocommit", True)
        return True

    def leave_autocommit(self, connection: DriverConnection) -> None:
        connection.session.restore(connection.driver)

    def fetch(self, connection: DriverConnection, compiled: Compiled, values: Any) -> Sequence[Row]:
        session = connection.session
        if session.expire_plans():
            connection.driver.execute(DISCARD_PLANS)
        cursor = session.cursor or _cursor(connection.driver)
        try:
            if session.is_read_committed:
                cursor.execute(compiled.sql, values)
            else:
                _execute_in_read_committed(connection.driver, cursor, compiled.sql, values)
        except Exception as error:
            if compiled.writes and connection.driver.closed and not sessions.is_refusal(error):
                raise OutcomeUnknown from error
            raise
        rows: Sequence[Row] = cursor.fetchall() if cursor.rownumber is not None else ()
        session.cursor = cursor if len(rows) < 2 else None  # a cursor keeps its rows until the next execute
        return rows

    def needs_transaction(self, compiled: Compiled) -> bool:
        return False

    def fetch_through_engine(self, compiled: Compiled, values: Any) -> Sequence[Row]:
        repeats = Repeats(self.engine)
        while True:
            connection = self._connect()
            try:
                return self._fetch_in_autocommit(connection, compiled, values)
            except Exception as error:
                if not sessions.is_end(error):
                    raise
                if not connection.invalidated:
                    connection.invalidate()
                if not (self.is_refused(error) and repeats.take()):
                    raise
            finally:
                with connection:
                    self._restore(connection)

    def _fetch_in_autocommit(self, connection: Connection, compiled: Compiled, values: Any) -> Sequence[Row]:
        pooled = connection.connection
        session = self._checked_session(pooled)
        session.change(pooled.driver_connection, "autocommit", True)
        self._discard_old_plans(pooled)
        if not session.is_read_committed:
            connection = self._begin(connection)
            rows = fetch_rows(connection, compiled, values)
            self.commit(connection)
            return rows
        connection.begin()
        with _outcome_known(connection) if compiled.writes else nullcontext():
            rows = fetch_rows(connection, compiled, values)
        connection.commit()
        return rows

    def is_closed(self, connection: Any) -> bool:
        try:
            for _ in range(2):  # the server's last message, and the end of the stream
                connection.pgconn.consume_input()
        except Exception:
            return True
        return False

    def is_broken(self, error: BaseException, connection: Any) -> bool:
        if isinstance(error, OutcomeUnknown) or not isinstance(error, Exception):
            return True  # after an interrupt, the statement may be executing still
        return connection.closed is True or sessions.is_end(error)

    def is_refused(self, error: BaseException) -> bool:
        return sessions.is_refusal(error)

    def is_null_refused(self, error: BaseException) -> bool:
        return sqlstate(error) == "23502"

    def is_conflict(self, error: BaseException) -> bool:
        return sqlstate(error) in CONFLICTS

    def detached_connection(self) -> Any:
        while True:  # each connection of the pool at most once
            pooled = self.engine.raw_connection()
            connection: Any = pooled.driver_connection
            if self.is_closed(connection):
                pooled.invalidate()
                pooled.close()
            elif self._has_own_session(pooled):
                pooled.detach()
                return connection
            else:
                pooled.close()
                return None

    def check_connect(self) -> None:
        """The files are the server's."""

    def check_files(self, connection: Any, info: MutableMapping[Any, Any]) -> None:
        """The files are the server's."""

    # Transactions

    def begin(self) -> Connection:
        connection = self._connect()
        try:
            self._checked_session(connection.connection)
            connection = self._begin(connection)
            self._discard_old_plans(connection.connection)
        except BaseException:
            with connection:
                self._restore(connection)
            raise
        return connection

    def _begin(self, connection: Connection) -> Connection:
        """Begin a transaction in READ COMMITTED. A connection of the application that is in autocommit stays in it."""
        driver: Any = connection.connection.driver_connection
        if self._is_own:
            connection = connection.execution_options(isolation_level="READ COMMITTED")
            connection.begin()
            return connection
        if not driver.autocommit:
            level = psycopg.IsolationLevel.READ_COMMITTED
            self._session(connection.connection).change(driver, "isolation_level", level)
            connection.begin()
            return connection
        connection.begin()
        try:
            driver.execute(BEGIN_READ_COMMITTED)
        except BaseException:
            connection.invalidate()
            raise
        return connection

    def check_begun(self, connection: Connection) -> None:
        """Postgres refuses all further statements until the client rolls the transaction back."""

    def lift_timeout(self, connection: Connection) -> None:
        if self._is_own:
            pooled = connection.connection
            self._session(pooled).change(pooled.driver_connection, "answer_seconds", None)

    def commit(self, connection: Connection) -> None:
        if _status(connection.connection.driver_connection) == "INERROR":
            raise RepositoryError(
                "a statement of the transaction has failed, so that Postgres can only roll it back; let the error of "
                "that statement leave the block"
            )
        with _outcome_known(connection):
            connection.commit()

    def roll_back(self, connection: Connection) -> None:
        # SQLAlchemy rolls nothing back where an event listener has stopped a commit.
        driver: Any = connection.connection.driver_connection
        if not _is_idle(driver):
            driver.rollback()
        if session := Session.find(connection.connection.info):
            session.restore(driver)

    def _restore(self, connection: Connection) -> None:
        """Roll back, before a connection returns to the pool; close it where that fails."""
        if not connection.invalidated:
            try:
                self.roll_back(connection)
            except Exception:
                connection.invalidate()

    # Transactions of the application

    def is_raw(self, bind: object) -> bool:
        return isinstance(bind, psycopg.Connection)

    def wrap(self, raw: Any) -> Connection:
        connection = wrap(RawConnection(raw, PlainCursor), self.engine.dialect)
        if raw not in self._raw_sessions:
            self._raw_sessions[raw] = self._session(connection.connection)
        connection.info[Session.KEY] = self._raw_sessions[raw]
        connection.info[SAME_DATABASE] = self._raw_same.setdefault(raw, WeakSet())
        return connection

    def is_same_database(self, connection: Connection) -> bool:
        if connection.engine.pool is self.engine.pool:
            return True
        if _is_psycopg(connection):
            if self._address is None:
                with closing(self.engine.raw_connection()) as pooled:
                    self._address = _address(pooled.driver_connection)
            if _address(connection.connection.driver_connection) == self._address:
                return True
        known: WeakSet[PostgresDriver] = connection.info.setdefault(SAME_DATABASE, WeakSet())
        if self in known:
            return True
        theirs: Any = None
        with suppress(DBAPIError), connection.begin_nested():  # a savepoint: a refused query leaves the rest usable
            theirs = _server(connection)
        if theirs is not None:
            with self.engine.connect() as own:
                if theirs == _server(own):
                    known.add(self)
        return self in known

    def is_in_autocommit(self, connection: Connection) -> bool:
        if not _is_psycopg(connection):
            return other_drivers.is_in_autocommit(connection)
        driver: Any = connection.connection.driver_connection
        return bool(driver.autocommit) and _is_idle(driver)

    def begin_joined(self, connection: Connection) -> None:
        if raw_of(connection) is not None and self.is_in_autocommit(connection):  # after a block of transaction()
            raise RepositoryError(
                "the transaction of the connection has ended, and what it executes now is committed at once; leave "
                "join() before the transaction ends"
            )
        if not _is_psycopg(connection):
            other_drivers.prepare(connection)
            return
        session = self._session(connection.connection)
        if not session.is_checked:
            with connection.begin_nested():  # a savepoint: a refused query leaves the rest usable
                session.check(connection.connection.cursor())
        self._discard_old_plans(connection.connection)  # psycopg begins with the first statement

    def run_joined(self, connection: Connection, compiled: Compiled, values: Any) -> tuple[Sequence[Row], int]:
        if not _is_psycopg(connection):
            return other_drivers.run(connection, compiled.sql, values)
        return run_compiled(connection, compiled, values)

    def _discard_old_plans(self, pooled: PoolProxiedConnection) -> None:
        if self._session(pooled).expire_plans():
            cursor = pooled.cursor()
            cursor.execute(DISCARD_PLANS)
            cursor.close()

    # Sessions

    def _connect(self) -> Connection:
        """A connection of the pool that the server has not closed, as far as is known."""
        while True:  # each connection of the pool at most once
            connection = self.engine.connect()
            if not self.is_closed(connection.connection.driver_connection):
                return connection
            connection.invalidate()
            connection.close()

    def _has_own_session(self, pooled: PoolProxiedConnection) -> bool:
        try:
            return self._session(pooled).is_own
        except BaseException:
            pooled.invalidate()
            raise

    def _set_up(self, driver: Any, record: ConnectionPoolEntry) -> None:
        """Learn whether a new connection has a session of its own, before anything is prepared on it."""
        try:
            record.info[Session.KEY] = self._new_session(driver)
        except BaseException:
            driver.close()
            raise

    def _checked_session(self, pooled: PoolProxiedConnection) -> Session:
        """The session of an idle connection.

        :raises RepositoryError: where its cursors do not write and read the values of this package as they are
        """
        session = self._session(pooled)
        if not session.is_checked:
            session.change(pooled.driver_connection, "autocommit", True)
            try:
                session.check(pooled.cursor())
            finally:
                session.restore(pooled.driver_connection)
        return session

    def _session(self, pooled: PoolProxiedConnection) -> Session:
        """The session of a connection, which is asked for it the first time."""
        session = Session.find(pooled.info)
        if session is None:
            session = pooled.info[Session.KEY] = self._new_session(pooled.driver_connection)
        return session

    def _new_session(self, driver: Any) -> Session:
        is_own = isinstance(driver, BoundedConnection)  # and not one of the application that was joined
        if is_own and self._knows_proxy:
            driver.prepare_threshold = None
        session = Session(driver)
        if not session.is_own:
            if not self._knows_proxy:
                self._knows_proxy = True
                logger.warning(_POOLER)
            if is_own:
                session.stop_preparing(driver)
            elif driver.prepare_threshold is not None:
                raise RepositoryError(_PREPARES) from NotImplementedError("prepare_threshold")
        return session

    def refuse_commit(self, connection: Connection) -> None:
        """The failed statement has aborted the transaction, which Postgres can only roll back."""


@contextmanager
def _outcome_known(connection: Connection) -> Iterator[None]:
    """
    :raises OutcomeUnknown: for an error with which the connection breaks, but not for a refusal of the session
    """
    driver: Any = connection.connection.driver_connection
    was_closed = driver.closed
    try:
        yield
    except Exception as error:
        if driver.closed and not was_closed and not sessions.is_refusal(error):
            raise OutcomeUnknown from driver_error(error)
        raise


def _check_statements(engine: Engine) -> None:
    dialect: Any = engine.dialect
    if dialect.paramstyle not in ("pyformat", "format"):
        raise RepositoryError(
            "the engine has a paramstyle, which psycopg's own cursors do not read; make it without paramstyle"
        ) from NotImplementedError(dialect.paramstyle)
    if getattr(dialect, "server_side_cursors", False):
        raise RepositoryError(
            "the engine has server_side_cursors, which work in a transaction only, and single statements run in "
            "autocommit; make it without them, and set stream_results on your own statements"
        ) from NotImplementedError("server_side_cursors")


def _is_psycopg(connection: Connection) -> bool:
    return connection.dialect.driver == "psycopg"


def _cursor(connection: Any) -> Any:
    return connection.cursor(binary=True)


def _execute_in_read_committed(connection: Any, cursor: Any, sql: str, values: Any) -> None:
    """Execute a statement between BEGIN and COMMIT: one round trip for the three."""
    try:
        with connection.pipeline():
            connection.execute(BEGIN_READ_COMMITTED)
            cursor.execute(sql, values)
            connection.execute("COMMIT")
    except Exception:
        if not connection.closed:
            connection.rollback()
        raise


def _status(connection: Any) -> str:
    """The state of the transaction, as libpq names it: IDLE, INTRANS, INERROR, ..."""
    name: str = connection.info.transaction_status.name
    return name


def _is_idle(connection: Any) -> bool:
    return bool(connection.pgconn.transaction_status == 0)


def _address(connection: Any) -> tuple[Any, ...]:
    """Host, port and database of a connection, from the client's memory."""
    info = connection.info
    return info.host, info.port, info.dbname


def _server(connection: Connection) -> tuple[Any, ...]:
    """When the server was started, in microseconds, and the database: the same by whatever address it is reached."""
    row = connection.exec_driver_sql("SELECT pg_postmaster_start_time(), current_database()").one()
    return tuple(row)
