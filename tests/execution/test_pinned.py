"""``PinnedConnections``: few, returned when another needs them, and replaced when they are closed."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast

import psycopg
import pytest
from eric_sse.exception import RepositoryError
from eric_sse.message import Message
from sqlalchemy import URL, QueuePool, event

from eric_sse_sql import Database, SqlQueue, SqlStorageEngine
from support.catalog import connections_in_use, conninfo
from support.waiting import DEADLINE


def test_one_connection_serves_call_after_call(shared_url: URL) -> None:
    made: list[object] = []
    with Database(shared_url) as database:
        event.listen(database.engine, "connect", lambda connection, _: made.append(connection))
        database.upgrade()
        storage = SqlStorageEngine(database)
        for n in range(3):
            storage.upsert("a", n)
            with database.transaction():
                storage.upsert("b", n)
            assert list(storage.fetch_all()) == [n, n]
        assert len(made) == 1
        assert connections_in_use(database) == 0


def test_many_threads_leave_at_most_two_pinned_connections(shared_url: URL) -> None:
    with Database(shared_url) as database:
        storage, together = SqlStorageEngine(database), threading.Barrier(5)

        def work(number: int) -> None:
            for n in range(50):
                together.wait(DEADLINE)
                storage.upsert(str(number), n)

        threads = [threading.Thread(target=work, args=(number,)) for number in range(5)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert list(storage.fetch_all()) == [49] * 5
        assert 1 <= cast(QueuePool, database.engine.pool).checkedout() <= 2
        assert connections_in_use(database) == 0


def test_the_busy_timeout_of_pooled_connections_is_restored_after_every_call(tmp_path: Path) -> None:
    with Database(f"sqlite:///{tmp_path / 'a.db'}") as database:
        database.upgrade()
        storage = SqlStorageEngine(database)

        def patience() -> set[Any]:
            with database.engine.connect() as one, database.engine.connect() as other:
                return {each.exec_driver_sql("PRAGMA busy_timeout").scalar() for each in (one, other)}

        storage.upsert("a", 1)
        assert patience() == {30_000}
        event.listen(database.engine, "before_cursor_execute", lambda *args: None)  # what is at hand goes back
        storage.upsert("a", 2)
        assert patience() == {30_000}
        assert connections_in_use(database) == 0


def test_disposing_of_the_engine_closes_the_pinned_connections(shared_url: URL) -> None:
    made: list[Any] = []
    with Database(shared_url) as database:
        event.listen(database.engine, "connect", lambda connection, _: made.append(connection))
        storage = SqlStorageEngine(database)
        storage.upsert("a", 1)
        database.engine.dispose()
        storage.upsert("a", 2)
        assert storage.fetch_one("a") == 2
        assert len(made) == 2
        assert is_closed(made[0])
    assert is_closed(made[1])
    assert connections_in_use(database) == 0


def test_a_connection_that_the_server_has_closed_between_two_calls_is_replaced(migrated_postgres: URL) -> None:
    kill = "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE datname = current_database() AND pid <> "
    with Database(migrated_postgres) as database:
        storage, queue = SqlStorageEngine(database), SqlQueue(database)
        calls: list[Callable[[], object]] = [
            lambda: storage.upsert("a", 2),
            lambda: queue.push_many([Message("m")]),  # a transaction
            queue.clear,
            lambda: storage.delete("a"),
        ]
        for call in calls:
            storage.upsert("a", 1)  # whose connection is at hand then
            with psycopg.connect(conninfo(migrated_postgres)) as other:
                other.execute(kill + "pg_backend_pid()")
            call()


def is_closed(connection: Any) -> bool:
    if isinstance(connection, sqlite3.Connection):
        try:
            connection.execute("SELECT 1")
        except sqlite3.ProgrammingError:
            return True
        return False
    return bool(connection.closed)


def test_a_connection_that_the_server_closes_in_a_call_is_replaced(migrated_postgres: URL) -> None:
    kill = "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
    with Database(migrated_postgres) as database, ThreadPoolExecutor() as threads:
        storage = SqlStorageEngine(database)
        storage.upsert("a", 1)
        with psycopg.connect(conninfo(migrated_postgres)) as other:
            other.execute("LOCK TABLE kv_entries")
            call = threads.submit(storage.fetch_one, "a")
            while not other.execute(kill).fetchall():
                assert not call.done()
            with pytest.raises(RepositoryError, match="closed the connection"):
                call.result(10)
        assert storage.fetch_one("a") == 1
        storage.delete("a")
