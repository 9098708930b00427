"""``Driver``: how statements and transactions run on the connections of an engine."""

from __future__ import annotations

from collections.abc import MutableMapping, Sequence
from enum import Enum
from typing import Any, Protocol

from sqlalchemy import Connection, Engine, Pool, PoolProxiedConnection, QueuePool

from eric_sse_sql.execution.dialect import Dialect
from eric_sse_sql.execution.statement import Compiled, Row


class CommitSignal(Enum):
    """How a process learns that another one has committed."""

    NOTIFICATION = "LISTEN and NOTIFY"
    DATA_VERSION = "the change counter of a SQLite file"
    POLLING = "no signal: a query now and then"
    UNREACHABLE = "each thread has a database of its own"


class DriverConnection:
    """A driver's connection that was checked out of a pool."""

    __slots__ = ("driver", "pool", "pooled", "restore", "session")

    def __init__(self, engine: Engine) -> None:
        self.pool: Pool = engine.pool
        self.pooled: PoolProxiedConnection = engine.raw_connection()
        self.driver: Any = self.pooled.driver_connection
        self.restore: Any = None  # the setting that the pool gets back
        self.session: Any = None  # what is known of the server's session, or of the open files


class Repeats:
    """Bounds how often one call repeats a statement that sessions refuse: once, and for each idle connection of the
    pool, which may be as old as the one that was refused.

    :param engine: of the pool
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._left: int | None = None

    def take(self) -> bool:
        """Whether it may be repeated once more, after the connection that was refused has left the pool."""
        if self._left is None:
            pool = self._engine.pool
            self._left = 1 + (pool.checkedin() if isinstance(pool, QueuePool) else 0)
        self._left -= 1
        return self._left >= 0


class Driver(Protocol):
    """How statements and transactions run on the connections of one engine."""

    engine: Engine
    dialect: Dialect
    commit_signal: CommitSignal
    #: How many connections may be pinned: kept between calls, outside of the pool.
    pinned_connections: int
    #: Whether a list of rows is bound as one list for each column, not as a row for each execution.
    binds_columns: bool
    #: Whether tables are in schemas.
    has_schemas: bool
    #: Whether a failed statement aborts the transaction around it.
    fails_transactions: bool
    #: Whether a search passes deleted rows, as long as an open transaction may read them.
    keeps_deleted_rows: bool

    # A statement by itself

    def enter_autocommit(self, connection: DriverConnection) -> bool:
        """Prepare a connection of the pool for statements in autocommit. False where it can't be used for them."""

    def leave_autocommit(self, connection: DriverConnection) -> None:
        """Give the connection its settings back, before it returns to the pool."""

    def fetch(self, connection: DriverConnection, compiled: Compiled, values: Any) -> Sequence[Row]:
        """Run a statement on the driver's cursor, in a transaction of its own. All its rows.

        :raises OutcomeUnknown: when the connection breaks before the reply to a statement that writes
        """

    def needs_transaction(self, compiled: Compiled) -> bool:
        """Whether a single statement that goes through the engine runs in a transaction of :meth:`begin`."""

    def fetch_through_engine(self, compiled: Compiled, values: Any) -> Sequence[Row]:
        """Run a statement through SQLAlchemy, in a transaction of its own. All its rows.

        :raises OutcomeUnknown: as :meth:`fetch`
        """

    def is_closed(self, connection: Any) -> bool:
        """Whether the server has closed a driver's connection, as far as the client knows without a round trip."""

    def is_broken(self, error: BaseException, connection: Any) -> bool:
        """Whether a driver's connection, or the server's session behind it, is of no use any more after an error."""

    def is_refused(self, error: BaseException) -> bool:
        """Whether the server's session has refused a statement, without executing it, that another one may execute."""

    def is_null_refused(self, error: BaseException) -> bool:
        """Whether a driver's error says that a column takes no NULL."""

    def is_conflict(self, error: BaseException) -> bool:
        """Whether a driver's error says that a transaction conflicts with another one, and may be run again."""

    def detached_connection(self) -> Any:
        """A driver's connection with the settings of the engine, which does not return to its pool; None where other
        processes' commits can't be noticed on it."""

    def check_connect(self) -> None:
        """Called before a connection is taken from the pool, which may make a new one. Do nothing, unless that would
        open, or make, another file than the one that is open.

        :raises RepositoryError: then
        """

    def check_files(self, connection: Any, info: MutableMapping[Any, Any]) -> None:
        """Do nothing, unless the files that a driver's connection has open were deleted or replaced since it was first
        checked.

        :param info: what is kept with the connection
        :raises RepositoryError: then
        """

    # Transactions

    def begin(self) -> Connection:
        """A connection in a new transaction: READ COMMITTED on Postgres, BEGIN IMMEDIATE on SQLite."""

    def check_begun(self, connection: Connection) -> None:
        """Do nothing, unless the database has rolled the transaction of :meth:`begin` back, so that a further statement
        would be committed by itself.

        :raises RepositoryError: then
        """

    def lift_timeout(self, connection: Connection) -> None:
        """Let the statements of a transaction of :meth:`begin` take however long they take."""

    def commit(self, connection: Connection) -> None:
        """Commit the transaction of :meth:`begin`.

        :raises OutcomeUnknown: when the connection breaks before the reply
        :raises RepositoryError: when a statement in it has failed, so that the database can only roll it back
        """

    def roll_back(self, connection: Connection) -> None:
        """End, on the driver, whatever is still open after :meth:`begin`."""

    # Transactions of the application

    def is_raw(self, bind: object) -> bool:
        """Whether an object is the driver's own connection, which need not be one of an engine."""

    def wrap(self, raw: Any) -> Connection:
        """The driver's own connection as one of SQLAlchemy, for :func:`eric_sse_sql.execution.raw.leave` to close."""

    def is_same_database(self, connection: Connection) -> bool:
        """Whether a connection of the application leads to the database of the engine. Its transaction stays usable."""

    def is_in_autocommit(self, connection: Connection) -> bool:
        """Whether a connection has no transaction, and each of its statements is committed at once."""

    def begin_joined(self, connection: Connection) -> None:
        """Begin on the driver what SQLAlchemy has begun. Called before each statement.

        :raises RepositoryError: when the database has rolled the transaction back
        """

    def run_joined(self, connection: Connection, compiled: Compiled, values: Any) -> tuple[Sequence[Row], int]:
        """Run a statement. All its rows, and how many it has changed."""

    def refuse_commit(self, connection: Connection) -> None:
        """Let the application commit nothing of its transaction: a savepoint in it could not be rolled back."""
