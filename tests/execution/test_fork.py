"""Connections and transactions in a forked child."""

from __future__ import annotations

from sqlalchemy import URL

from eric_sse_sql import Database, SqlStorageEngine
from support.forking import fork, forking


@forking
def test_a_forked_child_gets_connections_of_its_own(shared_url: URL) -> None:
    with Database(shared_url) as database:
        storage = SqlStorageEngine(database)
        storage.upsert("parent", 1)  # leaves a connection in the pool
        with fork(lambda: [storage.upsert(f"child {n}", n) for n in range(20)]):
            for n in range(20):
                storage.upsert(f"parent {n}", n)
        assert len(list(storage.fetch_all())) == 41


@forking
def test_a_child_forked_inside_a_transaction_is_in_none(migrated_postgres: URL) -> None:
    with Database(migrated_postgres) as database:
        storage = SqlStorageEngine(database)
        with database.transaction():
            storage.upsert("parent", 1)
            with fork(lambda: storage.upsert("child", len(list(storage.fetch_all())))):
                pass
        assert list(storage.fetch_all()) == [0, 1]
        for key in ("parent", "child"):
            storage.delete(key)
