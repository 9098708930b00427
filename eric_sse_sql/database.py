"""``Database``: the SQL database in which an application keeps its channels."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable, Iterator, MutableMapping
from contextlib import AbstractContextManager, nullcontext, suppress
from datetime import timedelta
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar
from weakref import WeakKeyDictionary, WeakValueDictionary, finalize

from eric_sse.exception import RepositoryError
from sqlalchemy import URL, Connection, Engine
from sqlalchemy.orm import Session, scoped_session

from eric_sse_sql.arguments import kind_of, validate_number, validate_schema, validate_type
from eric_sse_sql.codec import PersistentReference, PickleCodec
from eric_sse_sql.errors import repository_errors
from eric_sse_sql.execution import fork
from eric_sse_sql.execution.driver import CommitSignal
from eric_sse_sql.execution.engines import are_same_database, driver_of, instead_of_joining, open_engine
from eric_sse_sql.execution.executor import Executor
from eric_sse_sql.execution.options import check_engine_options
from eric_sse_sql.execution.statement import Statement
from eric_sse_sql.message_codec import PICKLE, MessageCodec
from eric_sse_sql.sql import connections, events, message_ids, messages, pruning
from eric_sse_sql.sql.messages import SetAsideMessage
from eric_sse_sql.wakeups.background import Background, background_of
from eric_sse_sql.wakeups.expiry import EXPIRED_PAGE, expire
from eric_sse_sql.wakeups.publisher import Publisher
from eric_sse_sql.wakeups.watcher import QueueWatcher

if TYPE_CHECKING:
    import psycopg

_HEAD = "leave it out for the newest one"
PRUNE_ROWS = 1000  # deleted by one statement of prune(), at most
LISTED_ROWS = 1000  # of one statement of list_set_aside(), at most
LEAST_NUMBER = 1 - 2**63  # below that of each message that was set aside; -2**63 is no literal of Postgres
MAX_AGE = timedelta(days=365_000)  # within what both databases can subtract from their clocks

Result = TypeVar("Result")


class Pruned(NamedTuple):
    """How many rows :meth:`Database.prune` has deleted."""

    messages: int  # of queues that no connection has, and that are not stored
    connections: int  # that were not streamed for a time
    set_aside: int  # messages of such queues that could not be decoded
    events: int  # that their channel's log has kept long enough
    message_ids: int  # that were remembered for messages


class Database(PersistentReference):
    """The SQL database in which an application keeps its channels.

    Threads may share it. A forked child gets fresh connections where the engine was made here; an application that
    forks with an engine of its own disposes of it in the child, as SQLAlchemy asks
    (https://docs.sqlalchemy.org/en/20/core/pooling.html#using-connection-pools-with-multiprocessing-or-os-fork).
    Do not fork inside a transaction: a child that leaves the block ends the parent's, and on SQLite it can corrupt the
    file (https://www.sqlite.org/howtocorrupt.html, 2.6).

    Each call is atomic: a single statement in autocommit, several in one transaction, with BEGIN IMMEDIATE on SQLite.
    On Postgres all run in READ COMMITTED, whatever the default of the engine, the database or the role is. No table is
    made before :meth:`upgrade`.

    While nothing observes the engine, a single statement goes to the driver's own cursor. As soon as the engine has an
    event listener, is echoed or logged at INFO, every statement goes through SQLAlchemy.

    :param bind: a URL, or the application's own engine, of which no setting is changed. A URL makes an engine that is
        this package's own tool: in autocommit; for SQLite with write-ahead log, foreign keys on and a wait of 30
        seconds for other writers; on Postgres, a statement other than those of :meth:`upgrade` fails after 60 seconds
        without an answer. ``?timeout=`` changes these seconds. Give your own statements an engine of your own
    :param codec: how objects become blobs
    :param schema: where the tables are, on Postgres; by default where the search path leads. Processes whose streams
        and queues are to wake each other give the same
    :param notify: whether Postgres tells other processes of a push at once. Without it, they ask five times a second,
        and nothing is prepared: for poolers that give each transaction another session, such as PgBouncer. Where there
        is one and ``notify`` is True, the first connection tells, a warning is logged, and only pushes notify
    :param messages: how messages are stored: ``"pickle"``, of any class that the codec allows, or ``"json"``, which
        other programs and plain SQL can read and write: then only a ``Message`` with plain data is stored, and a tuple
        comes back as a list. Either is read, so that processes with different settings may share the tables
    :raises RepositoryError: for a ``bind`` that is neither, for another database or driver, for an engine with an
        option that can't be honoured, and for another value of ``messages``
    """

    def __init__(
        self,
        bind: str | URL | Engine,
        *,
        codec: PickleCodec | None = None,
        schema: str | None = None,
        notify: bool = True,
        messages: str = PICKLE,
    ) -> None:
        owns_engine = not isinstance(bind, Engine)
        with repository_errors("the database can't be used"):
            validate_type("notify=", notify, bool)
            pickles = PickleCodec() if codec is None else validate_type("codec=", codec, PickleCodec)
            self.message_codec = MessageCodec(pickles, messages)
            engine = open_engine(bind)
            driver = driver_of(engine, owns_engine=owns_engine, through_proxy=not notify)
            validate_schema(schema, has_schemas=driver.has_schemas)
            check_engine_options(engine, schema, is_in_memory=driver.commit_signal is CommitSignal.UNREACHABLE)
        self.executor = Executor(driver, owns_engine=owns_engine, schema=schema)
        self.background = background_of(driver, notifies=notify)
        self.watcher = QueueWatcher(self.executor)
        notifies = notify and driver.commit_signal is CommitSignal.NOTIFICATION
        self.publisher = Publisher(self.executor, self.watcher, self.background.throttle if notifies else None)
        #: What streams keep for each event loop, until the loop is collected, and for all of them.
        self.loop_state: MutableMapping[Any, Any] = WeakKeyDictionary()
        #: The logs of channels that streams of this process read, by the id of the channel.
        self.event_logs: WeakValueDictionary[str, Any] = WeakValueDictionary()
        #: What is called first when it is closed.
        self.on_close: list[Callable[[], None]] = []
        self.background.enter(self.watcher)
        for part in (self.executor, self.watcher):
            fork.register(part)
        # A Database that is dropped without close() leaves no connection and no thread behind.
        finalize(self, _close, self.background, self.publisher, self.watcher, self.executor)

    @property
    def codec(self) -> PickleCodec:
        """How objects become blobs."""
        return self.message_codec.codec

    @codec.setter
    def codec(self, codec: PickleCodec) -> None:
        self.message_codec.codec = validate_type("codec", codec, PickleCodec)

    @property
    def engine(self) -> Engine:
        """The engine that the statements of this package run on."""
        return self.executor.engine

    @property
    def schema(self) -> str | None:
        """The schema of the tables; None where the search path leads."""
        return self.executor.schema

    # Tables

    def upgrade(self, revision: str = "head") -> None:
        """Make or migrate the tables, under a lock: many processes may do so at once.

        :param revision: the Alembic revision to upgrade to
        :raises RepositoryError: from the cause; the database is then as it was
        """
        from eric_sse_sql import migrations  # type: ignore[attr-defined]  # package-dir puts it there

        if self.in_transaction():
            raise RepositoryError("upgrade() is a transaction of its own; call it before transaction()")
        if not validate_type("revision", revision, str, _HEAD):
            raise RepositoryError(f"revision must not be empty; {_HEAD}") from ValueError("empty")
        with repository_errors("the tables can't be upgraded"), self.transaction():
            connection = self.connection()
            self.executor.driver.lift_timeout(connection)
            migrations.upgrade(connection, revision, self.schema)

    def check(self) -> None:
        """Do nothing, if the tables are those of this release.

        :raises RepositoryError: when they are missing or older, with the command to run, or newer; and when a SQLite
            file was deleted or replaced while it is open
        """
        from eric_sse_sql import migrations  # type: ignore[attr-defined]  # package-dir puts it there

        self.check_open()
        with repository_errors("the version of the tables can't be read"), self._reading() as connection:
            self.executor.driver.check_files(connection.connection.driver_connection, connection.info)
            migrations.check(connection, self.schema)

    def _reading(self) -> AbstractContextManager[Connection]:
        current = self.executor.transactions.current()
        if current is None:
            self.executor.driver.check_connect()
        return self.engine.connect() if current is None else nullcontext(current)  # without SQLite's write lock

    # Transactions

    def transaction(self) -> AbstractContextManager[None]:
        """All that this thread, or asyncio task, does with the database inside is one transaction.

        An exception rolls it back. Inside another one, or inside :meth:`join`, it is a savepoint.

        :raises OutcomeUnknown: when the connection breaks before the reply to COMMIT: all of it was written, or none
        :raises RepositoryError: when it can't begin, or can't commit: then nothing was written
        """
        self.check_open()
        self.executor.release()
        return self.executor.transactions.transaction()

    def run_in_transaction(self, work: Callable[[], Result]) -> Result:
        """Run a function in a transaction, or in a savepoint of the open one. It is run again where the transaction
        conflicts with another one, and is not part of an open one.

        :raises RepositoryError: as :meth:`transaction`, and for what is no function
        """
        if not callable(work):
            raise RepositoryError(f"work must be a function, not {kind_of(work)}") from TypeError(kind_of(work))
        self.check_open()
        self.executor.release()
        return self.executor.transactions.run(work)

    def join(
        self, bind: Session | scoped_session[Any] | Connection | psycopg.Connection[Any] | sqlite3.Connection
    ) -> AbstractContextManager[None]:
        """All that this thread, or asyncio task, does with the database inside goes into the application's transaction.

        Only the application ends that: the writes are committed with it, rolled back with it, and invisible to other
        transactions before. A call that fails leaves the transaction as it was, and usable. On SQLite the transaction
        takes the write lock at once, unless the application has begun it already.

        In a two-phase transaction no notification is sent: Postgres refuses PREPARE TRANSACTION after NOTIFY. Consumers
        that wait find the messages within a second of its commit.

        In asyncio, join inside ``AsyncSession.run_sync``, the session that it gives.

        :param bind: a session or connection of SQLAlchemy on the same database, of an engine that is not in
            autocommit: never :attr:`engine`, where a URL made it. On Postgres its driver is psycopg, asyncpg, psycopg2
            or pg8000. Or a driver's own ``psycopg.Connection`` or ``sqlite3.Connection``, as Django has in
            ``connection.connection``, in a transaction or not in autocommit
        :raises RepositoryError: before anything is written, for a connection that leads to another database, is in
            autocommit, or has an option that can't be honoured; and inside another transaction of this ``Database``
        """
        self.check_open()
        if isinstance(bind, (Session, scoped_session)):
            return self.executor.transactions.joined(bind.connection)
        if isinstance(bind, Connection):
            return self.executor.transactions.joined(lambda: bind)
        if self.executor.driver.is_raw(bind):
            return self.executor.transactions.joined_raw(bind)
        raise RepositoryError(
            "join() takes a Session or a Connection; in asyncio, the one that run_sync() gives; not "
            f"{kind_of(bind)}. {instead_of_joining(bind)}"
        ) from TypeError(kind_of(bind))

    def in_transaction(self) -> bool:
        """Whether this thread and asyncio task are inside :meth:`transaction` or :meth:`join`."""
        return self.executor.transactions.is_open()

    def connection(self) -> Connection:
        """The connection of the transaction that this thread and asyncio task are in.

        :raises RepositoryError: when they are in none
        """
        return self.executor.connection()

    # Housekeeping

    def prune(
        self,
        older_than: timedelta,
        *,
        unseen_for: timedelta | None = None,
        on_progress: Callable[[int], None] | None = None,
    ) -> Pruned:
        """Delete rows that no connection owns any more and, on request, connections without a live stream.

        Messages of queues that no connection has and that ``QueueRepository`` has not stored are deleted: those pushed
        to a queue that was never persisted, or is deleted. Messages of a queue that the application uses by itself,
        without any connection, are among them. Events that their log has kept long enough are deleted, too, and what is
        left of the logs of channels that are not stored.

        The ids of messages that were added with a ``message_id`` are forgotten: the same id adds a message again.

        A transaction deletes at most a thousand messages, events or ids, or a thousand connections with all that is
        theirs.

        :param older_than: the age, on the clock of the database, below which a message stays, since connections may be
            persisted after the first message, and the id of a message is remembered. From 0 to 365,000 days
        :param unseen_for: how long no stream of a connection was alive, or, of one that was never streamed, how long it
            is stored; such connections are deleted with their messages, listeners and queues. By default, none are
        :param on_progress: called after each transaction, with the number of rows deleted by it
        :returns: how many rows were deleted
        :raises RepositoryError: for an age out of range, inside :meth:`transaction` or :meth:`join`, and for any fault
            of the database
        """
        age = self._age("older_than", older_than)
        unseen = None if unseen_for is None else self._age("unseen_for", unseen_for)
        if self.in_transaction():
            raise RepositoryError("prune() runs many transactions; call it outside of transaction() and join()")

        def total(pages: Iterable[int]) -> int:
            deleted = 0
            for page in pages:
                deleted += page
                if on_progress is not None:
                    on_progress(page)
            return deleted

        with repository_errors("the database can't be pruned"):
            gone = 0 if unseen is None else total(self._prune_connections(unseen))
            orphans = total(self._prune_rows(pruning.MESSAGES, age, 0))
            set_aside = total(self._prune_rows(pruning.SET_ASIDE, age, LEAST_NUMBER))
            expired = total(self._prune_events())
            total(self._prune_rows(pruning.LOGS, age, ""))
            forgotten = total(self._prune_message_ids(age))
        return Pruned(orphans, gone, set_aside, expired, forgotten)

    def count_prunable(self, older_than: timedelta, *, unseen_for: timedelta | None = None) -> Pruned:
        """How many rows :meth:`prune` would delete now. It changes nothing.

        :param older_than: as for :meth:`prune`
        :param unseen_for: as for :meth:`prune`
        :raises RepositoryError: for an age out of range, and for any fault of the database
        """
        age = self._age("older_than", older_than)
        unseen = None if unseen_for is None else self._age("unseen_for", unseen_for)

        def count(statement: Statement, **parameters: Any) -> int:
            return int(self.executor.run(statement, **parameters)[0][0])

        with repository_errors("the rows can't be counted"):
            return Pruned(
                messages=count(pruning.COUNT_MESSAGES, age=age),
                connections=0 if unseen is None else count(connections.COUNT_UNSEEN, age=unseen),
                set_aside=count(pruning.COUNT_SET_ASIDE, age=age),
                events=count(events.COUNT_EXPIRED),
                message_ids=count(message_ids.COUNT_OLD, age=age),
            )

    def _age(self, name: str, age: timedelta) -> Any:
        validate_type(name, age, timedelta, "write timedelta(days=7), for example")
        if not timedelta(0) <= age <= MAX_AGE:
            raise RepositoryError(f"{name} must be from 0 to {MAX_AGE.days:,} days") from ValueError(age)
        return self.executor.dialect.seconds_value(-age.total_seconds())

    def _prune_rows(self, statement: Statement, age: Any, first: int | str) -> Iterator[int]:
        def delete(after: Any) -> list[Any]:
            run = partial(self.executor.run, statement, age=age, after=after, count=PRUNE_ROWS)
            return [key for (key,) in self.run_in_transaction(run)]

        return map(len, _pages(delete, first))

    def _prune_message_ids(self, age: Any) -> Iterator[int]:
        forget = partial(self.executor.run, message_ids.FORGET, age=age, count=PRUNE_ROWS)
        return map(len, _pages(lambda _: [key for (key,) in self.run_in_transaction(forget)], ""))

    def _prune_events(self) -> Iterator[int]:
        def find(after: Any) -> list[Any]:
            return [key for (key,) in self.executor.run(events.WITH_EXPIRED, after=after, count=PRUNE_ROWS)]

        for page in _pages(find, ""):
            for channel_id in page:
                expired = EXPIRED_PAGE
                while expired == EXPIRED_PAGE:
                    expired = expire(self.executor, channel_id)
                    yield expired

    def _prune_connections(self, age: Any) -> Iterator[int]:
        return map(len, _pages(lambda after: self.run_in_transaction(partial(self._prune_page, age, after)), ""))

    def _prune_page(self, age: Any, after: str) -> list[str]:
        found = self.executor.run(connections.UNSEEN, age=age, after=after, count=PRUNE_ROWS)
        page = [row_id for (row_id,) in found]
        if page:
            connection_ids = self.executor.dialect.list_value(page)
            self.executor.run_all(*connections.DELETE_CONNECTIONS, connection_ids=connection_ids)
        return page

    def count_set_aside(self) -> int:
        """How many messages were set aside, since they could not be decoded. One statement."""
        with repository_errors("the messages that were set aside can't be counted"):
            ((count,),) = self.executor.run(messages.COUNT_SET_ASIDE)
        return int(count)

    def retry_set_aside(self) -> int:
        """Put all messages that were set aside back to their places in their queues, in one transaction.

        Where another message has the number of one, since the database has begun to number from the beginning again, it
        goes to the end of its queue.

        :returns: how many there were
        """
        with repository_errors("the messages that were set aside can't be put back"), self.transaction():
            found = self.executor.run(messages.LOCK_SET_ASIDE)
            ids = self.executor.dialect.list_value([str(message_id) for (message_id,) in found])
            self.executor.run_all((messages.RETRY_SET_ASIDE, messages.RETRY_AT_END, messages.DELETE_SET_ASIDE), ids=ids)
            self.executor.transactions.after_commit(self.watcher.forget_heads)
            return len(found)

    def list_set_aside(self, after: int = LEAST_NUMBER, count: int = 100) -> list[SetAsideMessage]:
        """Messages that were set aside: a page of them, by id. One statement; nothing is decoded.

        :param after: the id after which the page begins
        :param count: how many: from 1 to 1,000
        """
        validate_number("after", after, LEAST_NUMBER, -LEAST_NUMBER, whole=True)
        validate_number("count", count, 1, LISTED_ROWS, whole=True)
        with repository_errors("the messages that were set aside can't be listed"):
            rows = self.executor.run(messages.LIST_SET_ASIDE, after=after, count=count)
            return list(map(SetAsideMessage._make, rows))

    def delete_set_aside(self, ids: Iterable[int] | None = None) -> int:
        """Delete messages that were set aside, for good. One statement.

        :param ids: of the messages; by default all
        :returns: how many there were
        """
        with repository_errors("the messages that were set aside can't be deleted"), self.transaction():
            if ids is None:
                return self.executor.change(messages.DELETE_ALL_SET_ASIDE)
            numbers = list(validate_type("ids", ids, Iterable))
            for number in numbers:
                validate_number("an id", number, LEAST_NUMBER, -LEAST_NUMBER, whole=True)
            values = list(map(str, numbers))
            return self.executor.change(messages.DELETE_SET_ASIDE, ids=self.executor.dialect.list_value(values))

    # Life

    def close(self) -> None:
        """End all waits, and close the connections of an engine that was made here. Later calls raise.

        What was fetched for streams that are still open goes back to its queues.
        """
        for close in self.on_close:
            close()
        _close(self.background, self.publisher, self.watcher, self.executor)

    def check_open(self) -> None:
        """Do nothing, unless the database is closed.

        :raises RepositoryError: then
        """
        self.executor.check_open()

    def __enter__(self) -> Database:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def is_same(self, other: PersistentReference) -> bool:
        """Whether another ``Database`` leads to the same tables, as far as the two URLs and schemas tell."""
        if not isinstance(other, Database) or not are_same_database(self.engine, other.engine):
            return False
        return self.schema == other.schema or None in (self.schema, other.schema)

    def __repr__(self) -> str:
        url = self.engine.url.set(query={})  # which may have passwords; SQLAlchemy hides that of the user
        return f"Database({url!r})"


def _pages(page_after: Callable[[Any], list[Any]], first: int | str) -> Iterator[list[Any]]:
    """Pages of keys, until one is not full.

    :param page_after: the page after a key: at most ``PRUNE_ROWS`` keys
    :param first: less than every key
    """
    after: Any = first
    while True:
        page = page_after(after)
        yield page
        if len(page) < PRUNE_ROWS:
            return
        after = max(page)


def _close(background: Background, publisher: Publisher, watcher: QueueWatcher, executor: Executor) -> None:
    publisher.close()
    background.finish()  # what was fetched for streams that have ended, and for cancelled calls, goes back
    with suppress(RepositoryError):  # where it fails, the streams begin a little earlier
        watcher.presence.write_positions()
    executor.refuse_calls()
    background.leave(watcher)
    watcher.close()
    executor.close()
