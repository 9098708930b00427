"""``Database``: an engine, its transactions, its codec and the version of its tables."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from datetime import timedelta
from functools import partial
from threading import Lock
from types import TracebackType
from typing import Any, cast
from weakref import WeakValueDictionary, finalize, ref

from eric_sse.exception import RepositoryError
from sqlalchemy import URL, Connection, Engine
from sqlalchemy.orm import Session, scoped_session

from eric_sse_sql import transactions
from eric_sse_sql.announcements import Announcer, channel_of
from eric_sse_sql.codec import PersistentReference, PickleCodec
from eric_sse_sql.engines import are_same_database, is_in_memory, make_engine, patience_of
from eric_sse_sql.errors import repository_errors
from eric_sse_sql.forks import leave_alone
from eric_sse_sql.gates import Gate
from eric_sse_sql.maintenance import PRUNE, PRUNE_DELIVERED, PRUNE_POSITIONS
from eric_sse_sql.message_statements import LOOK, NOTIFY, POSITIONS
from eric_sse_sql.shortcut import Shortcut
from eric_sse_sql.signals import Bell, FileVersion, Notifications, Polling, Signals
from eric_sse_sql.statements import Compiled, Publication, Row, Statement, dialect_of
from eric_sse_sql.transactions import Transactions
from eric_sse_sql.wakeups import Outage, Wakeups

_all: WeakValueDictionary[int, Database] = WeakValueDictionary()


class Database(PersistentReference):
    """The SQL database that an application keeps its channels in.

    Threads may share it. A forked child gets fresh connections where the engine was made here; an application that
    forks with an engine of its own disposes of it in the child, as SQLAlchemy asks
    (https://docs.sqlalchemy.org/en/20/core/pooling.html#using-connection-pools-with-multiprocessing-or-os-fork).
    On SQLite, do not fork inside a transaction (https://www.sqlite.org/howtocorrupt.html, 2.6).

    A call of one statement runs in autocommit, a call of several in one transaction: READ COMMITTED on Postgres,
    BEGIN IMMEDIATE on SQLite, whatever the engine's default is. No table is made before :meth:`upgrade`.

    Where the engine was made here and nobody listens to it, a single statement goes to the driver's own cursor, on one
    of two connections of the engine's pool that are kept at hand. As soon as the engine has an event listener, is
    echoed or logged at INFO, every statement goes through it; on an engine of the application it always does.

    :param bind: a URL, or the application's own engine, of which nothing is changed. A URL makes an engine in
        autocommit; for SQLite with write-ahead log, foreign keys on and 30 seconds of patience with other writers
    :param codec: how objects become blobs
    :param schema: where the tables are, on Postgres; by default where the search path leads. Processes whose streams
        and queues are to wake each other give the same
    :param notify: whether Postgres tells other processes of a push at once. Without, they ask five times a second: for
        proxies that give each transaction another connection, through which nobody can listen
    :raises RepositoryError: for a ``bind`` that is neither, or of another database or driver
    """

    def __init__(
        self,
        bind: str | URL | Engine,
        *,
        codec: PickleCodec | None = None,
        schema: str | None = None,
        notify: bool = True,
    ) -> None:
        self._made_engine = not isinstance(bind, Engine)
        with repository_errors("the database can't be used"):
            self.engine: Engine = bind if isinstance(bind, Engine) else make_engine(bind, through_proxy=not notify)
        self.dialect = dialect_of(self.engine)
        self._is_postgres = self.engine.dialect.name == "postgresql"
        if schema is not None and not self._is_postgres:
            raise RepositoryError("schema= is for Postgres; SQLite has one per file") from ValueError(schema)
        self.codec = codec or PickleCodec()
        self.schema = schema
        patience = patience_of(self.engine) if self._made_engine else None
        self._transactions = Transactions(self.engine, patience, self._made_engine)
        self._shortcut = Shortcut(self.engine, patience) if self._made_engine else None
        self._compiled: dict[Statement, Compiled] = {}
        self._closed = False
        self._channel = channel_of(schema) if self._is_postgres and notify else None
        self._announcer = self._make_announcer() if self._channel else None
        self.outage = Outage()
        itself = ref(self)  # so that no thread keeps a Database that is dropped
        self.wakeups = Wakeups(lambda gates: _look(itself(), gates), self._signals(), self.outage)
        _all[id(self)] = self
        # A Database that is dropped, not closed, leaves no connection and no thread behind.
        finalize(self, _end, self.wakeups, self._announcer, self._shortcut, self.engine if self._made_engine else None)

    # Schema

    def upgrade(self, revision: str = "head") -> None:
        """Make or migrate the tables, under a lock: many processes may do so at once.

        :param revision: the Alembic revision to upgrade to
        :raises RepositoryError: from the cause; the database is then as it was
        """
        from eric_sse_sql import migrations  # type: ignore[attr-defined]  # package-dir puts it there

        if self.in_transaction():
            raise RepositoryError("upgrade() is a transaction of its own; call it before transaction()")
        with repository_errors("the tables can't be upgraded"), self.transaction():
            migrations.upgrade(self.connection(), revision, self.schema)

    def check(self) -> None:
        """Do nothing, if the tables are those of this release.

        :raises RepositoryError: when they are missing or older, with the command to run, or newer
        """
        from eric_sse_sql import migrations  # type: ignore[attr-defined]  # package-dir puts it there

        self.check_open()
        with repository_errors("the version of the tables can't be read"), self._reading() as connection:
            migrations.check(connection, self.schema)

    def _reading(self) -> AbstractContextManager[Connection]:
        current = self._transactions.current()
        return self._transactions.autocommit.connect() if current is None else nullcontext(current)

    # Transactions

    def transaction(self) -> AbstractContextManager[None]:
        """All that this thread, or asyncio task, does with the database inside is one transaction.

        An exception rolls it back. Inside another one, or inside :meth:`join`, it is a savepoint.

        :raises RepositoryError: when it can't begin, or can't commit: then nothing was written
        """
        self.check_open()
        if self._shortcut is not None:
            self._shortcut.release()
        return self._transactions.transaction()

    def join(self, bind: Session | scoped_session[Any] | Connection) -> AbstractContextManager[None]:
        """All that this thread, or asyncio task, does with the database inside goes into the application's transaction.

        Only the application ends that: what was written is committed with it, rolled back with it, and seen by nobody
        before. A call that fails leaves the transaction as it was, and usable. On SQLite the transaction takes the
        write lock at once, unless the application has begun it already.

        In asyncio, join inside ``AsyncSession.run_sync``, the session that it gives.

        :param bind: a session or connection on the same database, with psycopg's own or its asyncio driver on Postgres
        :raises RepositoryError: for one that leads to another database, or is in autocommit; and inside another
            transaction of this ``Database``
        """
        self.check_open()
        if isinstance(bind, (Session, scoped_session)):
            return self._transactions.joined(bind.connection)
        if not isinstance(bind, Connection):
            raise RepositoryError(
                "join() takes a Session or a Connection; in asyncio, the one that run_sync() gives"
            ) from TypeError(type(bind).__name__)
        return self._transactions.joined(lambda: bind)

    def in_transaction(self) -> bool:
        """Whether this thread and asyncio task are inside :meth:`transaction` or :meth:`join`."""
        return self._transactions.current() is not None

    def connection(self) -> Connection:
        """The connection of the transaction that this thread and asyncio task are in.

        :raises RepositoryError: when they are in none
        """
        current = self._transactions.current()
        if current is None:
            raise RepositoryError("no transaction is open here; ask inside transaction() or join()")
        return current

    # Statements

    def run(self, statement: Statement, **parameters: Any) -> Sequence[Row]:
        """Run a statement: in the open transaction, or in autocommit. Its rows, all fetched."""
        compiled = self._compile(statement)
        return self._execute(compiled, compiled.values(parameters))

    def run_many(self, statement: Statement, rows: Sequence[Mapping[str, Any]], **others: Any) -> None:
        """Run a statement that inserts rows, if there are any, in the open transaction: one call of the driver."""
        if rows:
            compiled = self._compile(statement)
            values = compiled.columns(rows, others) if self._is_postgres else [compiled.values(row) for row in rows]
            self.connection().exec_driver_sql(compiled.sql, cast(Any, values))

    def _execute(self, compiled: Compiled, values: tuple[Any, ...]) -> Sequence[Row]:
        rows = self._transactions.execute(compiled, values)
        if rows is not None:
            return rows
        self.check_open()
        return _execute_alone(self._transactions, self._shortcut, compiled, values)

    def _compile(self, statement: Statement) -> Compiled:
        compiled = self._compiled.get(statement)
        if compiled is None:
            compiled = self._compiled[statement] = statement.compile(self.engine, self.schema)
        return compiled

    # Messages for whoever waits

    def publish(self, publication: Publication, queue_ids: Iterable[str], **parameters: Any) -> None:
        """Run a statement, as :meth:`run` does, that writes messages; and wake those who wait for them.

        :param queue_ids: of the queues that it writes to
        """
        is_within, announcer = self.in_transaction(), self._announcer
        if announcer is None:
            self.run(publication.plain, **parameters)
        elif is_within or announcer.leads():  # in a transaction always, where Postgres sends one for many
            self.run(publication.notifying, notify_channel=self._channel, **parameters)
        else:
            self.run(publication.plain, **parameters)
            announcer.follow()
        if is_within:
            self._announce(queue_ids)
        else:
            self.wakeups.announce(queue_ids)

    def publish_many(
        self, publication: Publication, queue_ids: Iterable[str], rows: Sequence[Mapping[str, Any]]
    ) -> None:
        """Run a statement that inserts messages, as :meth:`run_many` does; and wake those who wait for them."""
        if self._channel:
            self.run_many(publication.notifying, rows, notify_channel=self._channel)
        else:
            self.run_many(publication.plain, rows)
        self._announce(queue_ids)

    def _announce(self, queue_ids: Iterable[str]) -> None:
        self._transactions.after_commit(lambda: self.wakeups.announce(queue_ids))

    def _make_announcer(self) -> Announcer:
        compiled = self._compile(NOTIFY)
        values = compiled.values({"notify_channel": self._channel})
        # Of parts that a Database which is dropped leaves behind, so that what is owed is sent even then.
        return Announcer(partial(_notify, self._transactions, self._shortcut, compiled, values))

    def _signals(self) -> Callable[[Bell], Signals] | None:
        engine, channel = self.engine, self._channel
        if channel is not None:
            return lambda bell: Notifications(engine, bell, channel)
        if not self._is_postgres and not is_in_memory(engine.url):
            return lambda bell: FileVersion(engine, bell)
        if self._is_postgres or self._made_engine:
            return Polling
        return None  # SQLAlchemy gives each thread a database in memory of its own

    # Housekeeping

    def prune(self, older_than: timedelta) -> int:
        """Delete messages that no connection owns and no stored queue: what a producer pushed to a queue that was never
        persisted, or is deleted. Three statements; they read whole tables.

        Messages of a queue that the application uses by itself, without any connection, are among them, unless
        ``QueueRepository`` has stored the queue.

        :param older_than: the age, on the clock of the database, below which a message stays: connections may be
            persisted after the first message
        :returns: how many messages were deleted that had not been delivered
        :raises RepositoryError: for any fault of the database, which then is as it was
        """
        age = self.dialect.seconds_value(-older_than.total_seconds())
        compiled = self._compile(PRUNE)
        with repository_errors("the messages can't be pruned"), self.transaction():
            pruned = self.connection().exec_driver_sql(compiled.sql, compiled.values({"age": age}))
            self.run(PRUNE_DELIVERED, age=age)
            self.run(PRUNE_POSITIONS)
            return pruned.rowcount

    # Life

    def close(self) -> None:
        """End all waiting, and close the connections of an engine that was made here. What is called afterwards
        raises."""
        if self._announcer is not None:
            self._announcer.close()
        self._closed = True
        self.wakeups.close()
        if self._shortcut is not None:
            self._shortcut.close()
            self.engine.dispose()

    def check_open(self) -> None:
        """Do nothing, unless the database is closed.

        :raises RepositoryError: then
        """
        if self._closed:
            raise RepositoryError("this Database is closed; make another one")

    def __enter__(self) -> Database:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def is_same(self, other: PersistentReference) -> bool:
        """Whether another ``Database`` leads to the same database, as far as its URL tells."""
        return isinstance(other, Database) and are_same_database(self.engine, other.engine)

    def __repr__(self) -> str:
        return f"Database({self.engine.url!r})"  # SQLAlchemy hides the password


def _execute_alone(
    transactions: Transactions, shortcut: Shortcut | None, compiled: Compiled, values: tuple[Any, ...]
) -> Sequence[Row]:
    if shortcut is not None:
        if shortcut.is_open():
            return shortcut.execute(compiled, values)
        shortcut.release()
    return transactions.execute_alone(compiled, values)


def _look(database: Database | None, gates: Collection[Gate]) -> None:
    """Open the gates of queues that hold something."""
    if database is None:
        return
    by_id = {gate.queue_id: gate for gate in gates}
    for (queue_id,) in database.run(LOOK, queues=database.dialect.list_value(list(by_id))):
        by_id[queue_id].open()
    kept = {gate.queue_id: gate.position for gate in gates if gate.position is not None}
    if kept:
        for queue_id, last in database.run(POSITIONS, queues=database.dialect.list_value(list(kept))):
            if last > kept[queue_id]:
                by_id[queue_id].open()


def _notify(transactions: Transactions, shortcut: Shortcut | None, compiled: Compiled, values: tuple[Any, ...]) -> None:
    with repository_errors("no notification can be sent"):
        _execute_alone(transactions, shortcut, compiled, values)


def _end(wakeups: Wakeups, announcer: Announcer | None, shortcut: Shortcut | None, engine: Engine | None) -> None:
    if announcer is not None:
        announcer.close()
    wakeups.close()
    if shortcut is not None:
        shortcut.close()
    if engine is not None:
        engine.dispose()


def _living() -> list[Database]:
    """All that somebody holds. References are copied in one step: threads make others meanwhile."""
    return [database for reference in _all.valuerefs() if (database := reference()) is not None]


_resting: list[Lock] = []


def _rest() -> None:
    """Before a fork: let no thread of ours be inside of a driver."""
    _resting.extend(lock for database in _living() if (lock := database.wakeups.rest()) is not None)


def _go_on() -> None:
    """After a fork, in the parent."""
    while _resting:
        _resting.pop().release()


def _forget_parent() -> None:
    """In a forked child: leave the parent's connections and threads alone, and keep them from being closed by the
    collector."""
    _resting.clear()
    transactions.forget_all()
    for database in _living():
        if database._shortcut is not None:
            database._shortcut.renew()
            leave_alone(database.engine.pool)
            database.engine.dispose(close=False)
        if database._announcer is not None:
            database._announcer.renew()
        database.wakeups.renew()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_rest, after_in_parent=_go_on, after_in_child=_forget_parent)
