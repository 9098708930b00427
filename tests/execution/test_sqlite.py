"""What is SQLite's alone: BEGIN IMMEDIATE, the settings of a file, and the one connection of a database in memory."""

from __future__ import annotations

import signal
import sqlite3
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest
from eric_sse.exception import RepositoryError
from eric_sse.message import Message
from sqlalchemy import Engine, create_engine, event

import eric_sse_sql
from eric_sse_sql import Database, SqlQueue, SqlStorageEngine
from eric_sse_sql.contract import ERIC_SSE_2_0
from eric_sse_sql.execution.sqlite import engine as sqlite
from support.waiting import DEADLINE


def test_a_transaction_on_sqlite_that_reads_first_can_still_write(tmp_path: Path) -> None:
    """BEGIN IMMEDIATE: a transaction that reads first may still write when another has written in between."""
    url = f"sqlite:///{tmp_path / 'a.db'}"
    with Database(url) as database, Database(url) as other:
        database.upgrade()
        storage = SqlStorageEngine(database)
        with database.transaction():
            assert list(storage.fetch_all()) == []
            thread = threading.Thread(target=SqlStorageEngine(other).upsert, args=("b", 2))
            thread.start()
            thread.join(0.2)
            assert thread.is_alive()  # the other writer waits for its turn
            storage.upsert("a", 1)
        thread.join()
        assert list(storage.fetch_all()) == [1, 2]


def test_sqlite_engines_made_from_a_url_are_set_up_for_many_processes(tmp_path: Path) -> None:
    with Database(f"sqlite:///{tmp_path / 'a.db'}") as database, database.engine.connect() as connection:
        pragma = {
            name: connection.exec_driver_sql(f"PRAGMA {name}").scalar()
            for name in ("journal_mode", "foreign_keys", "busy_timeout", "synchronous")
        }
    assert pragma == {"journal_mode": "wal", "foreign_keys": 1, "busy_timeout": 30_000, "synchronous": 2}


def test_the_write_ahead_log_shrinks_once_a_long_reader_has_ended(tmp_path: Path) -> None:
    file, log = tmp_path / "a.db", tmp_path / "a.db-wal"
    with Database(f"sqlite:///{file}") as database, closing(sqlite3.connect(file, isolation_level=None)) as reader:
        database.upgrade()
        queue = SqlQueue(database)
        reader.execute("BEGIN")
        reader.execute("SELECT * FROM sse_messages").fetchall()
        queue.push_many([Message("m", b"x" * 1024 * 1024) for _ in range(32)])
        assert log.stat().st_size > 2 * sqlite.MAX_LOG_BYTES
        reader.execute("COMMIT")
        for _ in range(3):
            queue.push(Message("m"))
        assert log.stat().st_size <= sqlite.MAX_LOG_BYTES


def test_a_timeout_in_the_url_is_kept(tmp_path: Path) -> None:
    with Database(f"sqlite:///{tmp_path / 'a.db'}?timeout=2") as database, database.engine.connect() as connection:
        assert connection.exec_driver_sql("PRAGMA busy_timeout").scalar() == 2_000


def test_a_locked_sqlite_database_is_reported_as_one(tmp_path: Path) -> None:
    with Database(f"sqlite:///{tmp_path / 'a.db'}?timeout=0.1") as database:
        database.upgrade()
        writer = sqlite3.connect(tmp_path / "a.db", isolation_level=None)
        writer.execute("BEGIN IMMEDIATE")
        for call in (lambda: SqlStorageEngine(database).upsert("a", 1), SqlQueue(database).pop):
            with pytest.raises(RepositoryError, match="another writer holds the SQLite database") as caught:
                call()
            assert isinstance(caught.value.__cause__, sqlite3.OperationalError)
        writer.execute("ROLLBACK")
        writer.close()
        SqlStorageEngine(database).upsert("a", 1)


def test_waiting_for_the_only_connection_of_a_database_in_memory_ends_with_an_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sqlite, "BUSY_SECONDS", 0.05)
    with Database("sqlite://") as database, ThreadPoolExecutor(1) as thread:
        database.upgrade()
        storage = SqlStorageEngine(database)
        with database.transaction(), pytest.raises(RepositoryError, match="every pooled connection is in use"):
            thread.submit(storage.upsert, "a", 1).result()
        thread.submit(storage.upsert, "a", 2).result()
        assert list(storage.fetch_all()) == [2]


class Interrupted(BaseException):
    """What a signal raises."""


def test_an_interrupted_wait_leaves_the_only_connection_of_a_database_in_memory_usable() -> None:
    def interrupt(*_: object) -> None:
        raise Interrupted

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        with Database("sqlite://") as database, ThreadPoolExecutor(1) as thread:
            database.upgrade()
            storage = SqlStorageEngine(database)
            held, may_end = threading.Event(), threading.Event()

            def hold() -> None:
                with database.transaction():
                    held.set()
                    may_end.wait(DEADLINE)

            holding = thread.submit(hold)
            assert held.wait(DEADLINE)
            signal.setitimer(signal.ITIMER_REAL, 0.2)
            with pytest.raises(Interrupted):
                storage.upsert("a", 1)
            may_end.set()
            holding.result()
            storage.upsert("a", 2)
            assert list(storage.fetch_all()) == [2]
    finally:
        signal.signal(signal.SIGALRM, before)


class Steps:
    """Counts the steps of SQLite's virtual machine on all connections of an engine."""

    def __init__(self, engine: Engine) -> None:
        self.taken = 0
        event.listen(engine, "connect", lambda connection, record: connection.set_progress_handler(self._count, 1))

    def _count(self) -> None:
        self.taken += 1


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    made = create_engine(f"sqlite:///{tmp_path / 'steps.db'}")
    yield made
    made.dispose()


@pytest.mark.skipif(ERIC_SSE_2_0, reason="channels of eric-sse 2.0 have no log")
def test_a_broadcast_to_a_log_takes_as_many_steps_with_many_listeners_as_with_one(engine: Engine) -> None:
    steps, taken = Steps(engine), {}
    with Database(engine) as database:
        database.upgrade()
        repository = eric_sse_sql.SqlSSEChannelRepository(database)
        for listeners in (1, 500):
            channel = repository.create({"channel_id": str(listeners), "replay_seconds": 60})
            for _ in range(listeners):
                channel.add_listener()
            repository.persist(channel)
            handle = repository.load_one(channel.id)
            steps.taken = 0
            handle.broadcast(Message("m"))
            taken[listeners] = steps.taken
    assert taken[1] > 0
    assert taken[500] <= 1.5 * taken[1]


@pytest.mark.skipif(ERIC_SSE_2_0, reason="channels of eric-sse 2.0 have no log")
def test_positions_of_many_streams_are_written_in_steps_in_proportion_to_them(engine: Engine) -> None:
    steps, taken = Steps(engine), {}
    with Database(engine) as database:
        database.upgrade()
        repository = eric_sse_sql.SqlSSEChannelRepository(database)
        presence = database.watcher.presence
        for streams in (50, 500):
            channel = repository.create({"channel_id": str(streams), "replay_seconds": 60})
            for _ in range(streams):
                channel.add_listener()
            repository.persist(channel)
            for connection in channel.get_connections():
                presence.open(connection.id).position = 1
            steps.taken = 0
            presence.write_positions()
            taken[streams] = steps.taken
    assert taken[50] > 0
    assert taken[500] <= 15 * taken[50]
