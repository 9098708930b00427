"""``Executor``: runs the package's statements on one engine."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from eric_sse.exception import RepositoryError
from sqlalchemy import Connection, Engine

from eric_sse_sql.execution import fork
from eric_sse_sql.execution.driver import Driver
from eric_sse_sql.execution.engines import is_observed
from eric_sse_sql.execution.pinned import PinnedConnections
from eric_sse_sql.execution.statement import Compiled, Row, Statement, fetch_rows
from eric_sse_sql.execution.transactions import Transactions


class Executor:
    """Runs statements: in the open transaction of the thread or task, or each in a transaction of its own.

    A statement by itself goes to the driver's cursor while nothing observes the engine; as soon as the engine has an
    event listener, is echoed or logged at INFO, it goes through SQLAlchemy. Threads may share the executor. A forked
    child gets fresh connections where the engine was made by this package.

    :param driver: how statements run on the engine
    :param owns_engine: whether the engine was made by this package, and is disposed of here
    :param schema: of the tables; None for the search path
    """

    def __init__(self, driver: Driver, *, owns_engine: bool, schema: str | None) -> None:
        self.driver = driver
        self.dialect = driver.dialect
        self.engine: Engine = driver.engine
        self.owns_engine = owns_engine
        self.schema = schema
        self.transactions = Transactions(driver, schema)
        self._pinned = PinnedConnections(driver, owns_pool=owns_engine)
        self._compiled: dict[Statement, Compiled] = {}

    def run(self, statement: Statement, **parameters: Any) -> Sequence[Row]:
        """Run a statement. All its rows.

        :raises RepositoryError: when the executor is closed
        """
        compiled = self.compile(statement)
        return self.fetch(compiled, compiled.values(parameters))

    def run_all(self, statements: Iterable[Statement], lock: Statement | None = None, **parameters: Any) -> None:
        """Run some statements.

        :param lock: locks, on a database that locks rows, what they are to change; its last column tells how many rows
            it has found: none, and nothing is run, since rows that are inserted meanwhile are not locked
        """
        if lock is not None and self.dialect.locks_rows and not self.run(lock, **parameters)[0][-1]:
            return
        for statement in statements:
            self.run(statement, **parameters)

    def run_many(self, statement: Statement, rows: Sequence[Mapping[str, Any]], **others: Any) -> None:
        """Run a statement that inserts rows, if there are any, in the open transaction: one call of the driver."""
        if rows:
            compiled = self.compile(statement)
            columns = self.driver.binds_columns
            values = compiled.columns(rows, others) if columns else [compiled.values(row) for row in rows]
            self.transactions.execute(compiled, values)

    def change(self, statement: Statement, **parameters: Any) -> int:
        """Run a statement in the open transaction. How many rows it has changed."""
        compiled = self.compile(statement)
        values = compiled.values(parameters)
        return self.transactions.execute(compiled, values)

    def compile(self, statement: Statement) -> Compiled:
        """A statement as the driver takes it. Compiled once."""
        compiled = self._compiled.get(statement)
        if compiled is None:
            compiled = self._compiled[statement] = statement.compile(self.engine, self.dialect, self.schema)
        return compiled

    def fetch(self, compiled: Compiled, values: tuple[Any, ...]) -> Sequence[Row]:
        """Run a compiled statement. All its rows.

        :raises RepositoryError: when the executor is closed
        """
        rows = self.transactions.fetch(compiled, values)
        if rows is not None:
            return rows
        if self.transactions.is_closed:
            self.check_open()
        if not is_observed(self.engine):
            rows = self._pinned.fetch(compiled, values)
            if rows is not None:
                return rows
        else:
            self._pinned.release()
        return self._fetch_through_engine(compiled, values)

    def connection(self) -> Connection:
        """The connection of the open transaction.

        :raises RepositoryError: when this thread and task are in none
        """
        current = self.transactions.current()
        if current is None:
            raise RepositoryError("no transaction is open here; ask inside transaction() or join()")
        return current

    def release(self) -> None:
        """Return pinned connections to the pool."""
        self._pinned.release()

    @property
    def is_closed(self) -> bool:
        """Whether statements raise, but those of a transaction that has begun before."""
        return self.transactions.is_closed

    def check_open(self) -> None:
        """Do nothing, unless the executor is closed.

        :raises RepositoryError: then
        """
        self.transactions.check_open()

    def refuse_calls(self) -> None:
        """From now on, statements raise, but those of a transaction that has begun before."""
        self.transactions.is_closed = True

    def close(self) -> None:
        """Close the connections of an engine that was made by this package."""
        self.refuse_calls()
        self._pinned.close()
        if self.owns_engine:
            self.engine.dispose()

    def before_fork(self) -> None:
        """Connections need no preparation."""

    def after_fork_in_parent(self) -> None:
        """The parent's connections go on."""

    def after_fork_in_child(self) -> None:
        """Abandon the parent's connections and transactions."""
        self.transactions.after_fork_in_child()
        self._pinned.after_fork_in_child()
        if self.owns_engine:
            fork.abandon(self.engine.pool)
            self.engine.dispose(close=False)

    def _fetch_through_engine(self, compiled: Compiled, values: tuple[Any, ...]) -> Sequence[Row]:
        if not self.driver.needs_transaction(compiled):
            return self.driver.fetch_through_engine(compiled, values)
        with self.transactions.begun() as begun:
            rows = begun.execute(lambda connection: fetch_rows(connection, compiled, values))
            begun.commit()
            return rows
