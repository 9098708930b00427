"""The engines that this package makes; nothing here touches an engine of the application."""

from __future__ import annotations

import os
import random
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any
from weakref import WeakKeyDictionary

from sqlalchemy import URL, Connection, Engine, create_engine, event, make_url
from sqlalchemy.exc import TimeoutError
from sqlalchemy.pool import ConnectionPoolEntry, QueuePool

BUSY_SECONDS = 30
RETRY_SECONDS = 0.001, 0.004
# With these libpq gives up within a minute a server that has vanished, and asks no more of one that is slow
# (https://www.postgresql.org/docs/current/libpq-connect.html#LIBPQ-PARAMKEYWORDS).
NOTICE_VANISHED = {"keepalives_idle": 30, "keepalives_interval": 10, "keepalives_count": 3, "tcp_user_timeout": 60_000}


def make_engine(bind: str | URL, *, through_proxy: bool = False) -> Engine:
    """An engine in autocommit, whose connections need no reset and whose errors quote no parameter.

    On SQLite with write-ahead log, foreign keys on, and patience with other writers. A database in memory is one
    connection, for which threads take turns.

    On Postgres without plans that read whole tables: one that was made when the queues were empty would be kept, and
    read all of a deep one for each message, until the table is analysed again. And with keep-alives: a call to a server
    that has vanished ends within a minute.

    :param through_proxy: whether each transaction may have another session: no setting of one is changed, and no
        statement prepared in it
    """
    url = make_url(bind)
    if url.drivername == "postgresql":
        url = url.set(drivername="postgresql+psycopg")
    options: dict[str, Any] = {"isolation_level": "AUTOCOMMIT", "pool_reset_on_return": None, "hide_parameters": True}
    if url.get_backend_name() != "sqlite":
        arguments = {name: value for name, value in NOTICE_VANISHED.items() if name not in url.query}
        if through_proxy:
            return create_engine(url, connect_args={"prepare_threshold": None, **arguments}, **options)
        engine = create_engine(url, connect_args=arguments, **options)
        event.listen(engine, "connect", _prepare_postgres)
        return engine
    arguments = {} if "timeout" in url.query else {"timeout": BUSY_SECONDS}
    if is_in_memory(url):
        arguments["check_same_thread"] = False
        options["poolclass"] = OneConnectionPool
    engine = create_engine(url, connect_args=arguments, **options)
    event.listen(engine, "connect", _prepare_sqlite)
    return engine


class Patience:
    """How a statement that writes waits for SQLite's write lock: it asks again at short, random intervals.

    SQLite's own handler waits longer from try to try: beside processes that write in a loop, one waited up to 2.4
    seconds for its turn, where this one waits 0.1 (eight processes, two cores, ``synchronous = FULL``). Ten times as
    short, the intervals would take a third of the messages that go through: who waits would keep the cores busy.

    :param seconds: when to give up
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._restore = f"PRAGMA busy_timeout = {round(seconds * 1000)}"

    def replace_handler(self, driver: sqlite3.Connection) -> None:
        """Let SQLite's own handler on a connection wait no more."""
        driver.execute("PRAGMA busy_timeout = 0")

    def restore_handler(self, driver: sqlite3.Connection) -> None:
        """Let SQLite's own handler wait again."""
        driver.execute(self._restore)

    def execute(self, driver: sqlite3.Connection, sql: str, values: Sequence[Any] = ()) -> list[Any]:
        """The rows of a statement in autocommit, or of BEGIN IMMEDIATE, on a connection whose handler was replaced.

        :raises sqlite3.OperationalError: when the lock is still not free in the end
        """
        give_up = None
        while True:
            try:
                return driver.execute(sql, values).fetchall()
            except sqlite3.OperationalError as error:
                now = time.monotonic()
                give_up = give_up or now + self._seconds
                if str(error) != "database is locked" or now > give_up:
                    raise
                time.sleep(random.uniform(*RETRY_SECONDS))


def patience_of(engine: Engine) -> Patience | None:
    """How an engine that was made here waits for a lock. Only a file is shared with other processes."""
    if engine.dialect.name != "sqlite" or is_in_memory(engine.url):
        return None
    return Patience(float(str(engine.url.query.get("timeout", BUSY_SECONDS))))


def is_in_memory(url: URL) -> bool:
    """Whether a SQLite URL is that of a database in memory."""
    return url.database in (None, "", ":memory:") or url.query.get("mode") == "memory"


def are_same_database(one: Engine, other: Engine) -> bool:
    """Whether two engines lead to one database, as far as their URLs tell; the many names of a host do not."""
    if one.pool is other.pool:
        return True
    if one.dialect.name != other.dialect.name:
        return False
    if one.dialect.name == "sqlite":
        paths = [
            None if is_in_memory(engine.url) else os.path.realpath(str(engine.url.database)) for engine in (one, other)
        ]
        return paths[0] is not None and paths[0] == paths[1]
    return one.url.database == other.url.database


def is_on_database(connection: Connection, engine: Engine) -> bool:
    """Whether a connection leads to the database of an engine. The two databases are asked, not their URLs."""
    if connection.engine.pool is engine.pool:
        return True
    if connection.dialect.name != engine.dialect.name:
        return False
    if connection.dialect.name == "sqlite":
        return not is_in_memory(engine.url) and _sqlite_path(connection) == os.path.realpath(str(engine.url.database))
    return _postgres_identity(connection, connection.engine) == _postgres_identity(None, engine)


def _sqlite_path(connection: Connection) -> str | None:
    files = {name: file for _, name, file in connection.exec_driver_sql("PRAGMA database_list")}
    return os.path.realpath(files["main"]) if files["main"] else None


_identities: WeakKeyDictionary[Engine, object] = WeakKeyDictionary()


def _postgres_identity(connection: Connection | None, engine: Engine) -> object:
    """The cluster and the name of a database, asked once an engine."""
    if engine not in _identities:
        with nullcontext(connection) if connection else engine.connect() as asked:
            row = asked.exec_driver_sql("SELECT system_identifier, current_database() FROM pg_control_system()").one()
        _identities[engine] = tuple(row)
    return _identities[engine]


def has_hung_up(driver: Any) -> bool:
    """Whether Postgres has closed a connection that nobody used, as far as can be told without asking it."""
    try:
        for _ in range(2):  # its last words, and the end
            driver.pgconn.consume_input()
    except Exception:
        return True
    return False


def _prepare_postgres(connection: Any, record: object) -> None:
    try:
        connection.execute("SET enable_seqscan = off")
        connection.commit()
    except BaseException:  # of which SQLAlchemy would leave the connection open
        connection.close()
        raise


def _prepare_sqlite(connection: sqlite3.Connection, record: object) -> None:
    connection.execute("PRAGMA foreign_keys = ON")
    give_up = time.monotonic() + BUSY_SECONDS
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError:  # for this switch SQLite does not wait for other processes by itself
            if time.monotonic() > give_up:
                raise
            time.sleep(random.uniform(0.001, 0.02))


class OneConnectionPool(QueuePool):
    """A pool of one connection, which goes to whoever has waited longest.

    SQLAlchemy's own goes to whoever comes first: a thread that asks in a loop keeps all others out.
    """

    def __init__(self, creator: Any, **options: Any) -> None:
        super().__init__(creator, **{**options, "pool_size": 1, "max_overflow": 0})
        self._mutex = threading.Lock()
        self._line: deque[threading.Event] = deque()  # whose turn it is, and who comes next

    def _do_get(self) -> ConnectionPoolEntry:
        turn = threading.Event()
        with self._mutex:
            self._line.append(turn)
            self._line[0].set()
        if not turn.wait(BUSY_SECONDS):
            self._leave(turn)
            raise TimeoutError(f"another thread has used the only connection for {BUSY_SECONDS} seconds")
        try:
            return super()._do_get()
        except BaseException:
            self._leave(turn)
            raise

    def _do_return_conn(self, record: ConnectionPoolEntry) -> None:
        super()._do_return_conn(record)
        self._leave(self._line[0])

    def _leave(self, turn: threading.Event) -> None:
        with self._mutex:
            self._line.remove(turn)
            if self._line:
                self._line[0].set()
