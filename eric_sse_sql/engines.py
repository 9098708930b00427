"""The engines that this package makes; nothing here touches an engine of the application."""

from __future__ import annotations

import os
import random
import sqlite3
import threading
import time
from collections import deque
from typing import Any

from sqlalchemy import URL, Engine, create_engine, event, make_url
from sqlalchemy.exc import TimeoutError
from sqlalchemy.pool import ConnectionPoolEntry, QueuePool

BUSY_SECONDS = 30


def make_engine(bind: str | URL) -> Engine:
    """An engine in autocommit, whose connections need no reset and whose errors quote no parameter.

    On SQLite with write-ahead log, foreign keys on, and patience with other writers. A database in memory is one
    connection, for which threads take turns.
    """
    url = make_url(bind)
    if url.drivername == "postgresql":
        url = url.set(drivername="postgresql+psycopg")
    options: dict[str, Any] = {"isolation_level": "AUTOCOMMIT", "pool_reset_on_return": None, "hide_parameters": True}
    if url.get_backend_name() != "sqlite":
        return create_engine(url, **options)
    arguments: dict[str, Any] = {} if "timeout" in url.query else {"timeout": BUSY_SECONDS}
    if is_in_memory(url):
        arguments["check_same_thread"] = False
        options["poolclass"] = OneConnectionPool
    engine = create_engine(url, connect_args=arguments, **options)
    event.listen(engine, "connect", _prepare_sqlite)
    return engine


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
