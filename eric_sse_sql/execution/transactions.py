"""Which transaction a thread or asyncio task is in, and how transactions nest."""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar, copy_context
from types import MappingProxyType
from typing import Any, NamedTuple, TypeVar

from eric_sse.exception import RepositoryError
from sqlalchemy import Connection, TwoPhaseTransaction
from sqlalchemy.exc import SQLAlchemyError

from eric_sse_sql.errors import driver_error, repository_errors
from eric_sse_sql.execution.driver import Driver, Repeats
from eric_sse_sql.execution.engines import JOINABLE
from eric_sse_sql.execution.options import check_execution_options
from eric_sse_sql.execution.raw import leave, raw_of
from eric_sse_sql.execution.statement import Compiled, Row, fetch_rows, run_compiled

TRIES = 5  # of a transaction that conflicts with others
RETRY_SECONDS = 0.001, 0.05  # the shortest and the longest pause between two tries

_ELSEWHERE = (
    "the connection leads to another database than this Database, as far as can be told; join a connection to the same "
    "one, made with the same host, port and name"
)

Result = TypeVar("Result")
Callbacks = list[Callable[[], object]]


class _Begun:
    """A transaction that was begun here.

    Where the session of its connection refuses the first statement, without executing it, the transaction begins again
    on another connection.

    :param driver: begins it
    """

    def __init__(self, driver: Driver) -> None:
        self._driver = driver
        self._pool = driver.engine.pool
        self._is_unused = True  # nothing was executed
        self._is_broken = False
        self._must_roll_back = False
        self._connection = driver.begin()

    def connection(self) -> Connection:
        """The connection, for statements that are not repeated."""
        self._is_unused = False
        self._check()
        return self._connection

    def execute(self, run: Callable[[Connection], Result]) -> Result:
        """Run a statement."""
        repeats = Repeats(self._driver.engine)
        while True:
            try:
                self._check()
                result = run(self._connection)
            except Exception as error:
                if not (self._note(error) and self._driver.is_refused(error)):
                    raise
                self.close()
                if not repeats.take():
                    raise
                self._connection, self._is_unused, self._is_broken = self._driver.begin(), True, False
            else:
                self._is_unused = False
                return result

    def commit(self) -> None:
        """Commit it."""
        self._check()
        try:
            self._driver.commit(self._connection)
        except Exception as error:
            self._note(error)
            raise

    def refuse_commit(self) -> None:
        """From now on, it can only be rolled back: a savepoint in it could not be."""
        self._must_roll_back = True

    def _check(self) -> None:
        """
        :raises RepositoryError: where the transaction can only be rolled back
        """
        self._driver.check_begun(self._connection)
        if self._must_roll_back:
            raise RepositoryError(
                "a savepoint of the transaction could not be rolled back or released, so that all of the transaction "
                "can only be rolled back; let the error leave the block, and run the whole transaction again"
            )

    def close(self) -> None:
        """Roll it back, unless it is committed, and return the connection to the pool. Close it where it is broken."""
        connection = self._connection
        if connection.closed:  # and the transaction has not begun again
            return
        try:
            if not connection.invalidated:
                self._driver.roll_back(connection)
            if self._is_broken or self._driver.engine.pool is not self._pool:  # whose engine was disposed of
                connection.invalidate()
        except BaseException:
            connection.invalidate()
            raise
        finally:
            connection.close()

    def _note(self, error: Exception) -> bool:
        """Note whether an error has broken the connection. Whether it is that of the first statement."""
        is_first, self._is_unused = self._is_unused, False
        if not (self._is_broken or self._connection.invalidated):
            self._is_broken = self._driver.is_broken(error, self._connection.connection.driver_connection)
        return is_first


class _Open(NamedTuple):
    """A transaction that is open."""

    connection: Callable[[], Connection]
    owner: object  # the thread and task that are in it
    needs_savepoints: bool  # whether a failed statement would abort a transaction that belongs to the application
    after_commit: Callbacks | None  # None where the application commits
    begun: _Begun | None  # None where the application has begun it


_open: ContextVar[Mapping[Transactions, _Open]] = ContextVar("eric_sse_sql_open", default=MappingProxyType({}))
#: The thread that runs a call for another thread and task, and these.
_delegated: ContextVar[tuple[int, object] | None] = ContextVar("eric_sse_sql_delegated", default=None)


class Delegation:
    """Runs calls in other threads, one after the other, in the transactions of the thread and task that has made it."""

    def __init__(self) -> None:
        self._owner = _owner()
        self._context = copy_context()

    def run(self, call: Callable[..., Result], *arguments: object) -> Result:
        """Run a call, in any thread."""
        return self._context.run(self._run, call, *arguments)

    def _run(self, call: Callable[..., Result], *arguments: object) -> Result:
        token = _delegated.set((threading.get_ident(), self._owner))
        try:
            return call(*arguments)
        finally:
            _delegated.reset(token)

    @contextmanager
    def adopted(self) -> Iterator[None]:
        """The transactions that its calls have opened are open inside for the task that has made it."""
        before = _open.get()
        _open.set(self._context[_open])
        try:
            yield
        finally:
            _open.set(before)


class Transactions:
    """The transactions of one engine, in this process.

    :param driver: begins and ends them
    :param schema: of the tables; None for the search path
    """

    def __init__(self, driver: Driver, schema: str | None) -> None:
        self._driver = driver
        self._schema = schema
        self.is_closed = False  # whether no transaction may begin any more

    def current(self) -> Connection | None:
        """The connection of the transaction that this thread and task are in."""
        current = self._current()
        return current.connection() if current else None

    def check_open(self) -> None:
        """Do nothing, unless the database is closed.

        :raises RepositoryError: then
        """
        if self.is_closed:
            raise RepositoryError("this Database is closed; make another one")

    def is_open(self) -> bool:
        """Whether this thread and task are in a transaction."""
        return self._current() is not None

    def is_joined(self) -> bool:
        """Whether this thread and task are in a transaction of the application, whose end is not seen here."""
        current = self._current()
        return current is not None and current.after_commit is None

    def is_two_phase(self) -> bool:
        """Whether this thread and task are in a transaction that ends with PREPARE TRANSACTION."""
        current = self.current()
        return current is not None and isinstance(current.get_transaction(), TwoPhaseTransaction)

    def fetch(self, compiled: Compiled, values: Any) -> Sequence[Row] | None:
        """Run a statement in the open transaction. All its rows; None where no transaction is open.

        In a transaction of the application, a statement that fails changes nothing, and the transaction stays usable.
        """
        current = self._current()
        if current is None:
            return None
        if current.begun is not None:
            return current.begun.execute(lambda connection: fetch_rows(connection, compiled, values))
        connection = current.connection()
        with self._savepoint(current, connection) if current.needs_savepoints else nullcontext():
            return self._driver.run_joined(connection, compiled, values)[0]

    def execute(self, compiled: Compiled, values: Any) -> int:
        """Run a statement in the open transaction. How many rows it has changed.

        :param values: those of one execution, or a list of those of many
        :raises RepositoryError: when none is open
        """
        current = self._current()
        if current is None:
            raise RepositoryError("no transaction is open here; ask inside transaction() or join()")
        if current.begun is None:
            return self._driver.run_joined(current.connection(), compiled, values)[1]
        return current.begun.execute(lambda connection: run_compiled(connection, compiled, values))[1]

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All statements inside are one transaction or, in an open transaction, one savepoint. An exception rolls it
        back."""
        current = self._current()
        after_commit: Callbacks = []
        if current is not None:
            connection = current.connection()
            joined = current.after_commit is None
            inside = self._opened(current.connection, None if joined else after_commit, begun=current.begun)
            with self._savepoint(current, connection), inside:
                yield
            if current.after_commit is not None:
                current.after_commit.extend(after_commit)
            return
        with self.begun() as begun:
            with self._opened(begun.connection, after_commit, begun=begun):
                yield
            with repository_errors("the transaction can't be committed"):
                begun.commit()
        for callback in after_commit:
            callback()

    def run(self, work: Callable[[], Result]) -> Result:
        """Run a function in a transaction.

        Where that conflicts with another transaction, it is rolled back and run again: a few times at most, and not
        inside an open transaction, of which the function is only a part.
        """
        tries = 1 if self.is_open() else TRIES
        while True:
            tries -= 1
            try:
                with self.transaction():
                    return work()
            except Exception as error:
                cause = error.__cause__ if isinstance(error, RepositoryError) else driver_error(error)
                if not tries or cause is None or not self._driver.is_conflict(cause):
                    raise
            time.sleep(random.uniform(*RETRY_SECONDS))

    def after_commit(self, callback: Callable[[], object]) -> None:
        """Call a function when the open transaction or savepoint is committed; at once, where none is open.

        It is never called where that is rolled back, or where the application commits.
        """
        current = self._current()
        if current is None:
            callback()
        elif current.after_commit is not None:
            current.after_commit.append(callback)

    @contextmanager
    def joined(self, connect: Callable[[], Connection]) -> Iterator[None]:
        """All statements inside are part of a transaction of the application, which alone ends it.

        :param connect: returns its connection, and is called for each statement, as a session may set a savepoint
        :raises RepositoryError: for a connection without a transaction, for one to another database, and for one with
            an option that can't be honoured
        """

        def begun() -> Connection:
            connection = connect()
            self._driver.begin_joined(connection)
            return connection

        with repository_errors("the transaction can't be joined"):
            self._check_joinable(connect())
            begun()
        with self._opened(begun, None, needs_savepoints=self._driver.fails_transactions):
            yield

    @contextmanager
    def joined_raw(self, raw: Any) -> Iterator[None]:
        """The same for a driver's own connection.

        :raises RepositoryError: as :meth:`joined`
        """
        current = self._current()
        if current is not None and current.begun is None and raw_of(current.connection()) is raw:
            with self.joined(current.connection):
                yield
            return
        with repository_errors("the transaction can't be joined"):
            connection = self._driver.wrap(raw)
        try:
            with self.joined(lambda: connection):
                yield
        finally:
            leave(connection)

    @contextmanager
    def begun(self) -> Iterator[_Begun]:
        """A new transaction, which is rolled back unless it was committed."""
        self.check_open()
        with repository_errors("no transaction can be begun"):
            begun = _Begun(self._driver)
        try:
            yield begun
        finally:
            begun.close()

    def after_fork_in_child(self) -> None:
        """Forget the open transactions: they are the parent's."""
        _open.set(MappingProxyType({}))

    def _current(self) -> _Open | None:
        opened = _open.get().get(self)
        return opened if opened is not None and opened.owner == _owner() else None

    @contextmanager
    def _opened(
        self,
        connection: Callable[[], Connection],
        after_commit: Callbacks | None,
        needs_savepoints: bool = False,
        begun: _Begun | None = None,
    ) -> Iterator[None]:
        opened = _Open(connection, _owner(), needs_savepoints, after_commit, begun)
        token = _open.set({**_open.get(), self: opened})
        try:
            yield
        finally:
            _open.reset(token)

    @contextmanager
    def _savepoint(self, current: _Open, connection: Connection) -> Iterator[None]:
        """A savepoint. Where it can be neither rolled back nor released, nothing of the transaction is committed."""
        with repository_errors("no savepoint can be set"):
            savepoint = connection.begin_nested()
        try:
            yield
        except BaseException:
            try:
                savepoint.rollback()
            except SQLAlchemyError:  # as where the database has rolled the whole transaction back
                self._refuse_commit(current, connection)
            raise
        try:
            with repository_errors("the savepoint can't be released"):
                savepoint.commit()
        except BaseException:
            self._refuse_commit(current, connection)
            raise

    def _refuse_commit(self, current: _Open, connection: Connection) -> None:
        if current.begun is None:
            self._driver.refuse_commit(connection)
        else:
            current.begun.refuse_commit()

    def _check_joinable(self, connection: Connection) -> None:
        current = self.current()
        if current is not None and current is not connection:
            raise RepositoryError("another transaction of this Database is open here; join first, or end that one")
        if (connection.dialect.name, connection.dialect.driver) not in JOINABLE:
            raise RepositoryError(
                f"a connection of {connection.dialect.name}+{connection.dialect.driver} can't be joined; give that "
                "engine one of these drivers: psycopg, asyncpg, psycopg2 or pg8000 for Postgres, pysqlite or aiosqlite "
                "for SQLite"
            )
        check_execution_options(connection.get_execution_options(), self._schema, "the connection")
        if connection.dialect.name != self._driver.engine.dialect.name:
            raise RepositoryError(_ELSEWHERE)
        if self._driver.is_in_autocommit(connection):
            raise RepositoryError(
                "the connection is in autocommit: it has no transaction to join, and what it executes is committed at "
                "once; join a session of an engine of your own, made without isolation_level='AUTOCOMMIT', or inside a "
                "block that has begun a transaction"
            )
        if not self._driver.is_same_database(connection):
            raise RepositoryError(_ELSEWHERE)


def _owner() -> object:
    """This thread and asyncio task, or those that this thread runs a call for."""
    thread = threading.get_ident()
    try:
        task = asyncio.current_task()
    except RuntimeError:
        delegated = _delegated.get()
        if delegated is not None and delegated[0] == thread:
            return delegated[1]
        task = None
    return thread, task
