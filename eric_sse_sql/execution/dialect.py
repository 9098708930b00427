"""In what the databases differ: how a statement is written, and how it is run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import Enum
from typing import TYPE_CHECKING, Any, Protocol

from sqlalchemy import Connection, Engine

if TYPE_CHECKING:
    from eric_sse_sql.execution.pinned import DriverConnection
    from eric_sse_sql.execution.statement import Compiled, Row

Construct = Any  # a construct of SQLAlchemy, whose releases 2.0 and 2.1 give it different type parameters


class CommitSignal(Enum):
    """How a process learns that another one has committed."""

    NOTIFICATION = "LISTEN and NOTIFY"
    DATA_VERSION = "the change counter of a SQLite file"
    POLLING = "no signal: a query now and then"
    UNREACHABLE = "each thread has a database of its own"


class Dialect(Protocol):
    """How statements are written."""

    paramstyle: str

    def rendered(self, sql: str) -> str:
        """The compiled SQL as the driver takes it."""

    def insert(self, table: Any) -> Any:
        """An INSERT that takes ``on_conflict_do_update``."""

    def insert_rows(self, model: Any, bound: Mapping[str, str]) -> Any:
        """An INSERT of many rows in order: executed for each row on SQLite, with an array for each column on Postgres.

        :param bound: the name of the parameter that holds the value of each column
        """

    def in_list(self, column: Any, name: str) -> Construct:
        """The condition that a column is in the bound list, of any length."""

    def unnest(self, name: str) -> Construct:
        """A SELECT of the values of the bound list, in their order."""

    def list_value(self, values: Sequence[str]) -> Any:
        """The value to bind for such a list."""

    def ordered_range(self, group: Any, number: Any, name: str) -> tuple[Construct, tuple[Any, ...]]:
        """The condition that selects the rows of the bound group, and the columns that order them by number.

        Both are written so that Postgres reads them from the index over (group, number), in order.
        """

    def lookup_join(self, key: Any, value: Any, *columns: Any) -> tuple[Any, Construct]:
        """What to join, and on which condition, to look up the row of another table by its key, once for each row.

        :param columns: the columns that are read of that row
        """

    def not_exists(self, rows: Any) -> Construct:
        """An anti-join: the condition that a SELECT, correlated with the row, finds nothing. A lookup for each row."""

    def looked_up_rows(self, key: Any, keys: Any) -> Any:
        """The condition that a row of a DELETE has one of the keys of a small SELECT, by a lookup for each key."""

    def with_notification(self, change: Any) -> Construct:
        """The same change, with a notification of the channel bound as ``notify_channel``, on Postgres."""

    def advisory_lock(self, name: str) -> Construct:
        """A SELECT that takes the lock of the bound text until the transaction ends. On SQLite, the transaction that
        writes is the only one, and nothing is locked."""

    def now(self, shift: str | None = None) -> Construct:
        """The clock of the database at the start of the statement, shifted by the bound number of seconds."""

    def seconds_value(self, seconds: float) -> Any:
        """The value to bind for such a shift."""


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

    # A statement by itself

    def enter_autocommit(self, connection: DriverConnection) -> bool:
        """Prepare a connection of the pool for statements in autocommit. False where it can't be used for them."""

    def leave_autocommit(self, connection: DriverConnection) -> None:
        """Give the connection its settings back, before it returns to the pool."""

    def fetch(self, connection: DriverConnection, compiled: Compiled, values: Any) -> Sequence[Row]:
        """Run a statement on the driver's cursor, in a transaction of its own. All its rows."""

    def needs_transaction(self, compiled: Compiled) -> bool:
        """Whether a single statement that goes through the engine runs in a transaction of :meth:`begin`."""

    def fetch_through_engine(self, compiled: Compiled, values: Any) -> Sequence[Row]:
        """Run a statement through SQLAlchemy, in a transaction of its own. All its rows."""

    def is_closed(self, connection: Any) -> bool:
        """Whether the server has closed a driver's connection, as far as the client knows without a round trip."""

    def is_broken(self, error: BaseException, connection: Any) -> bool:
        """Whether a driver's connection can't be used any more, after an error."""

    def detached_connection(self) -> Any:
        """A new driver's connection with the settings of the engine, which does not return to its pool."""

    # Transactions

    def begin(self) -> Connection:
        """A connection in a new transaction: READ COMMITTED on Postgres, BEGIN IMMEDIATE on SQLite."""

    def commit(self, connection: Connection) -> None:
        """Commit the transaction of :meth:`begin`.

        :raises RepositoryError: when a statement in it has failed, so that the database can only roll it back
        """

    def roll_back(self, connection: Connection) -> None:
        """End, on the driver, whatever is still open after :meth:`begin`."""

    # Transactions of the application

    def is_same_database(self, connection: Connection) -> bool:
        """Whether a connection of the application leads to the database of the engine. Its transaction stays usable."""

    def is_in_autocommit(self, connection: Connection) -> bool:
        """Whether a connection has no transaction, and each of its statements is committed at once."""

    def begin_joined(self, connection: Connection) -> None:
        """Begin on the driver what SQLAlchemy has begun."""
