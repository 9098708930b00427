"""``Database``: made without tables, shared by threads, and closed."""

from __future__ import annotations

import gc
import threading
from pathlib import Path

import pytest
from eric_sse.exception import RepositoryError
from eric_sse.message import Message
from sqlalchemy import URL, event

from eric_sse_sql import Database, SqlQueue, SqlStorageEngine


def test_a_closed_database_refuses_to_work(database: Database) -> None:
    storage, queue = SqlStorageEngine(database), SqlQueue(database)
    database.close()
    database.close()
    for call in (lambda: storage.upsert("a", 1), queue.pop, database.check, database.upgrade):
        with pytest.raises(RepositoryError, match="closed"):
            call()


def test_a_garbage_collected_database_closes_its_connections(shared_url: URL) -> None:
    database = Database(shared_url)
    closed: list[object] = []
    event.listen(database.engine, "close", lambda *args: closed.append(args))
    SqlStorageEngine(database).upsert("a", 1)
    del database
    gc.collect()
    assert len(closed) == 1


def test_making_a_database_makes_no_tables(tmp_path: Path) -> None:
    path = tmp_path / "never.db"
    with Database(f"sqlite:///{path}") as database:
        SqlStorageEngine(database)
        SqlQueue(database)
    assert not path.exists()


def test_threads_share_a_database(database: Database) -> None:
    storage = SqlStorageEngine(database)
    errors: list[BaseException] = []

    def work(thread: int) -> None:
        try:
            for n in range(30):
                storage.upsert(f"{thread}/{n}", n)
                with database.transaction():
                    assert storage.fetch_one(f"{thread}/{n}") == n
                    storage.upsert(f"{thread}/{n}", -n)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert sorted(storage.fetch_all()) == sorted(-n for n in range(30) for _ in range(6))


def test_a_transaction_can_not_begin_in_a_closed_database(database: Database) -> None:
    queue = SqlQueue(database, "q")
    with database.transaction():
        database.close()  # what has begun goes on
        queue.push(Message("n", 1))
    with pytest.raises(RepositoryError, match="closed"), database.transaction():
        pass
    with pytest.raises(RepositoryError, match="closed"):
        queue.push_many([Message("n", 2), Message("n", 3)])
