"""``Database.transaction()``: atomic, nested as savepoints, and of one thread and task."""

from __future__ import annotations

import asyncio
import threading

import pytest
from eric_sse.exception import NoMessagesException, RepositoryError
from eric_sse.message import Message
from sqlalchemy import URL, event

from eric_sse_sql import Database, SqlQueue, SqlStorageEngine
from eric_sse_sql.contract import ItemNotFound
from support.application import ApplicationError
from support.catalog import table_counts
from support.statements import release_savepoint


def test_all_writes_of_a_transaction_are_committed_together(database: Database) -> None:
    storage, queue = SqlStorageEngine(database), SqlQueue(database)
    with database.transaction():
        storage.upsert("a", 1)
        queue.push(Message("m"))
        assert storage.fetch_one("a") == 1
    assert table_counts(database) == {"kv_entries": 1, "sse_channels": 0, "sse_connections": 0, "sse_messages": 1}


def test_an_exception_rolls_the_transaction_back_and_propagates(database: Database) -> None:
    storage, queue = SqlStorageEngine(database), SqlQueue(database)
    queue.push(Message("m", "kept"))
    with pytest.raises(ApplicationError), database.transaction():
        storage.upsert("a", 1)
        queue.pop()
        raise ApplicationError
    assert table_counts(database)["kv_entries"] == 0
    assert queue.pop().payload == "kept"


def test_an_inner_transaction_is_rolled_back_without_the_outer_one(database: Database) -> None:
    storage = SqlStorageEngine(database)
    with database.transaction():
        storage.upsert("outer", 1)
        with pytest.raises(ApplicationError), database.transaction():
            storage.upsert("inner", 1)
            raise ApplicationError
        with pytest.raises(NoMessagesException):
            SqlQueue(database).pop()
        storage.upsert("after", 1)
    assert [storage.fetch_one(key) for key in ("outer", "after")] == [1, 1]
    with pytest.raises(ItemNotFound):
        storage.fetch_one("inner")


def test_an_error_of_the_application_is_raised_though_its_savepoint_is_gone(database: Database) -> None:
    storage = SqlStorageEngine(database)
    with (
        pytest.raises(ApplicationError),
        database.transaction(),
        database.transaction(),
    ):
        database.connection().exec_driver_sql("ROLLBACK")
        raise ApplicationError
    storage.upsert("next", 1)
    assert storage.fetch_one("next") == 1


@pytest.mark.parametrize("block_fails", [True, False], ids=["rolled back", "released"])
def test_nothing_is_committed_where_a_savepoint_can_not_be_ended(database: Database, block_fails: bool) -> None:
    storage = SqlStorageEngine(database)
    with pytest.raises(RepositoryError, match="savepoint"), database.transaction():
        storage.upsert("outer", 1)
        with pytest.raises(ApplicationError if block_fails else RepositoryError), database.transaction():
            storage.upsert("inner", 1)
            release_savepoint(database)
            if block_fails:
                raise ApplicationError
        with pytest.raises(RepositoryError, match="savepoint"):
            storage.upsert("after", 1)
    assert table_counts(database)["kv_entries"] == 0
    storage.upsert("next", 1)
    assert storage.fetch_one("next") == 1


def test_an_uncommitted_transaction_is_invisible_to_others(shared_url: URL) -> None:
    with Database(shared_url) as database, Database(shared_url) as other:
        with database.transaction():
            SqlStorageEngine(database).upsert("a", 1)
            with pytest.raises(ItemNotFound):
                SqlStorageEngine(other).fetch_one("a")
        assert SqlStorageEngine(other).fetch_one("a") == 1


def test_a_check_is_part_of_a_transaction_and_an_upgrade_is_not(database: Database) -> None:
    with database.transaction():
        database.check()
        with pytest.raises(RepositoryError, match="call it before"):
            database.upgrade()


def test_another_thread_is_not_in_the_transaction(shared_url: URL) -> None:
    with Database(shared_url) as database:
        storage, found = SqlStorageEngine(database), []
        with database.transaction():
            storage.upsert("a", 1)
            thread = threading.Thread(target=lambda: found.extend(storage.fetch_all()))
            thread.start()
            thread.join()
        assert found == []


def test_another_task_is_not_in_the_transaction(shared_url: URL) -> None:
    async def main() -> list[object]:
        with database.transaction():
            storage.upsert("a", 1)

            async def look() -> list[object]:  # a task that is made inside, and copies the context
                return list(storage.fetch_all())

            return await asyncio.create_task(look())

    with Database(shared_url) as database:
        storage = SqlStorageEngine(database)
        assert asyncio.run(main()) == []


def test_a_transaction_closes_its_connection_when_the_engine_was_disposed_of_meanwhile(shared_url: URL) -> None:
    """Another thread disposes of the engine when it finds that the server has closed its connections."""
    made: list[object] = []
    closed: list[object] = []
    with Database(shared_url) as database:
        event.listen(database.engine, "connect", lambda connection, _: made.append(connection))
        event.listen(database.engine, "close", lambda connection, _: closed.append(connection))
        with database.transaction():
            SqlStorageEngine(database).upsert("a", 1)
            database.engine.dispose()
        assert closed == made
        assert SqlStorageEngine(database).fetch_one("a") == 1
