"""How long callers wait on SQLite: to write a read-only file, and to open a locked one."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, TimeoutError
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from eric_sse.exception import RepositoryError
from eric_sse.message import Message

from eric_sse_sql import Database, SqlQueue, SqlStorageEngine
from support.waiting import DEADLINE


@pytest.mark.parametrize("journal_mode", ["delete", "wal"])
def test_a_read_only_file_is_read_at_once_and_refuses_writes_at_once(tmp_path: Path, journal_mode: str) -> None:
    file = tmp_path / "a.db"
    with Database(f"sqlite:///{file}") as database:
        database.upgrade()
        SqlStorageEngine(database).upsert("key", 1)
    connection = sqlite3.connect(file)
    assert connection.execute(f"PRAGMA journal_mode = {journal_mode}").fetchone() == (journal_mode,)
    connection.close()

    began = time.monotonic()
    with Database(f"sqlite:///file:{file}?mode=ro&uri=true") as database:
        database.check()
        assert SqlStorageEngine(database).fetch_one("key") == 1
        with pytest.raises(RepositoryError):
            SqlStorageEngine(database).upsert("key", 2)
        with pytest.raises(RepositoryError), database.transaction():
            SqlQueue(database, "q").push(Message("m"))
    assert time.monotonic() - began < DEADLINE / 2


@contextmanager
def locked(file: Path, lock: str) -> Iterator[None]:
    """A file that is not in write-ahead mode, while another connection holds a lock on it."""
    with closing(sqlite3.connect(file, isolation_level=None, check_same_thread=False)) as writer:
        writer.execute("CREATE TABLE theirs (number INTEGER)")
        writer.execute(f"BEGIN {lock}")
        yield
        writer.execute("ROLLBACK")


@pytest.mark.parametrize("lock", ["IMMEDIATE", "EXCLUSIVE"])
def test_opening_a_locked_file_waits_no_longer_than_the_timeout_of_the_url(tmp_path: Path, lock: str) -> None:
    file = tmp_path / "a.db"
    with locked(file, lock), Database(f"sqlite:///{file}?timeout=2") as database:
        began = time.monotonic()
        with pytest.raises(RepositoryError, match="another writer holds the SQLite database"):
            database.check()
        assert 2 <= time.monotonic() - began < 3.9


@pytest.mark.parametrize("lock", ["IMMEDIATE", "EXCLUSIVE"])
def test_opening_a_locked_file_waits_for_the_end_of_the_lock(tmp_path: Path, lock: str) -> None:
    file = tmp_path / "a.db"
    with Database(f"sqlite:///{file}") as database, ThreadPoolExecutor(1) as thread:
        with locked(file, lock):
            upgrade = thread.submit(database.upgrade)
            with pytest.raises(TimeoutError):
                upgrade.result(0.3)
        upgrade.result(DEADLINE)
        with database.engine.connect() as connection:
            pragmas = [
                connection.exec_driver_sql(f"PRAGMA {name}").scalar() for name in ("journal_mode", "busy_timeout")
            ]
        assert pragmas == ["wal", 30_000]
