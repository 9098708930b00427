"""``SqlStorageEngine``: its cost, its indexes, its memory, its limits."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import pytest
from eric_sse.exception import RepositoryError
from sqlalchemy import URL, text

from eric_sse_sql import Database, SqlStorageEngine
from eric_sse_sql.execution.statement import Statement
from eric_sse_sql.sql.entries import FIRST_PAGE, NEXT_PAGE
from eric_sse_sql.storage import FIRST_PAGE_ROWS
from support.catalog import connections_in_use
from support.statements import Record


def test_each_call_is_one_statement(database: Database, statements: Record) -> None:
    storage, seen = SqlStorageEngine(database), statements(database)
    for call in (
        lambda: storage.upsert("key", 1),
        lambda: storage.upsert("key", 2),
        lambda: storage.fetch_one("key"),
        lambda: list(storage.fetch_by_prefix("k")),
        lambda: list(storage.fetch_all()),
        lambda: storage.delete("key"),
        lambda: storage.delete("key"),
    ):
        seen.clear()
        call()
        assert len(seen) == 1


def test_iterating_takes_one_statement_a_page(database: Database, statements: Record) -> None:
    storage = SqlStorageEngine(database)
    with database.transaction():
        for n in range(FIRST_PAGE_ROWS + 1):
            storage.upsert(f"{n:04}", n)
    seen = statements(database)
    values = storage.fetch_all()
    assert seen == []
    next(values)
    assert len(seen) == 1
    assert list(values) == list(range(1, FIRST_PAGE_ROWS + 1))
    assert len(seen) == 2


def test_values_come_in_the_order_of_their_keys_code_points(database: Database) -> None:
    storage = SqlStorageEngine(database)
    keys = ["", "A", "Z", "a", "é", "\ud7ff", "\ue000", "\uffff", "\U00010000", "\U0010ffff"]
    for key in reversed(keys):
        storage.upsert(key, key)
    assert list(storage.fetch_all()) == keys


def test_namespaces_are_independent(database: Database) -> None:
    one, other = SqlStorageEngine(database, "a"), SqlStorageEngine(database, "ab")
    one.upsert("b", 1)
    other.upsert("", 2)
    assert list(one.fetch_all()) == [1]
    assert list(other.fetch_all()) == [2]
    one.delete("b")
    assert list(other.fetch_all()) == [2]


@pytest.mark.parametrize("namespace", ["", "a/b", "sse:listeners", "x" * 65, "a\0", 7])
def test_a_namespace_that_could_collide_with_another_is_refused(database: Database, namespace: str) -> None:
    with pytest.raises(RepositoryError, match="a namespace must"):
        SqlStorageEngine(database, namespace)


def test_a_row_shows_the_class_of_its_value(database: Database) -> None:
    SqlStorageEngine(database).upsert("answer", {"n": 42})
    with database.engine.connect() as connection:
        row = connection.execute(text("SELECT key, value_type, created_at, updated_at FROM kv_entries")).one()
    assert row[:2] == ("kv/answer", "builtins.dict")
    assert row[2] is not None and row[3] is not None


def test_an_abandoned_iterator_holds_no_connection_and_no_lock(database: Database) -> None:
    storage = SqlStorageEngine(database)
    for n in range(3):
        storage.upsert(str(n), n)
    values = storage.fetch_all()
    assert next(values) == 0
    assert connections_in_use(database) == 0
    if database.engine.dialect.name == "postgresql":
        with database.engine.connect() as connection:
            idle = "SELECT count(*) FROM pg_stat_activity WHERE state LIKE 'idle in transaction%'"
            assert connection.scalar(text(idle)) == 0
    storage.upsert("3", 3)  # nor does it keep a writer out
    storage.delete("1")
    assert list(values) == [1, 2]  # its page was read before


@pytest.mark.parametrize("statement", [FIRST_PAGE, NEXT_PAGE])
def test_a_prefix_is_an_index_search(database: Database, statement: Statement) -> None:
    storage = SqlStorageEngine(database)
    with database.transaction():
        for n in range(2_000):
            storage.upsert(f"{n:05}", n)
    compiled = database.executor.compile(statement)
    sql, values = compiled.sql, compiled.values({"start": "kv/01", "end": "kv/02", "count": 100})
    with database.engine.begin() as connection:
        if database.engine.dialect.name == "postgresql":
            connection.exec_driver_sql("ANALYZE kv_entries")
            plan = connection.exec_driver_sql(f"EXPLAIN {sql}", values).scalars().all()
            assert "Index Scan using pk_kv_entries" in "\n".join(plan)
            assert "Index Cond" in "\n".join(plan)
        else:
            plan = connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {sql}", values).all()
            assert [row[3].split(" USING ")[0] for row in plan] == ["SEARCH kv_entries"]


def test_memory_does_not_grow_with_the_result(shared_url: URL) -> None:
    entries = 200_000
    with Database(shared_url) as database, database.engine.begin() as connection:
        fill = {
            "postgresql": "SELECT 'kv/' || n, '\\x80054b012e'::bytea, 'builtins.int' FROM generate_series(1, %s) t(n)",
            "sqlite": "WITH RECURSIVE t(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM t WHERE n < ?) "
            "SELECT 'kv/' || n, x'80054b012e', 'builtins.int' FROM t",
        }[database.engine.dialect.name]
        connection.exec_driver_sql(f"INSERT INTO kv_entries (key, value, value_type) {fill}", (entries,))
    program = """
        import resource, sys
        from eric_sse_sql import SqlStorageEngine
        storage = SqlStorageEngine(sys.argv[1])
        peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        next(storage.fetch_all())
        before = peak()
        count = sum(storage.fetch_all())
        print(count, peak() - before)
    """
    command = [sys.executable, "-c", textwrap.dedent(program), shared_url.render_as_string(hide_password=False)]
    count, grown = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    assert int(count) == entries
    assert float(grown) < 30, "megabytes"


def test_a_page_of_large_values_is_short(database: Database, statements: Record) -> None:
    storage = SqlStorageEngine(database)
    with database.transaction():
        for n in range(FIRST_PAGE_ROWS + 8):
            storage.upsert(f"{n:04}", bytes(1024 * 1024))
    seen = statements(database)
    for _ in storage.fetch_all():
        pass
    assert len(seen) > 2  # 8 more of a megabyte each do not come as one page of 1,000
