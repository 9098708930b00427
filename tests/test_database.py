"""``Database``: transactions, threads, tasks, forks, and the application's own engine."""

from __future__ import annotations

import asyncio
import gc
import sqlite3
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast

import psycopg
import pytest
from eric_sse.exception import NoMessagesException, RepositoryError
from eric_sse.message import Message
from sqlalchemy import URL, Engine, QueuePool, create_engine, event, text
from sqlalchemy.exc import TimeoutError

from eric_sse_sql import Database, QueueRepository, SqlQueue, SqlStorageEngine
from eric_sse_sql.contract import ItemNotFound
from eric_sse_sql.execution import sqlite
from support.catalog import address, connections_in_use, table_counts
from support.processes import fork, forking


class Boom(Exception):
    pass


# Transactions


def test_what_is_done_inside_a_transaction_is_there_together(database: Database) -> None:
    storage, queue = SqlStorageEngine(database), SqlQueue(database)
    with database.transaction():
        storage.upsert("a", 1)
        queue.push(Message("m"))
        assert storage.fetch_one("a") == 1
    assert table_counts(database) == {"kv_entries": 1, "sse_channels": 0, "sse_connections": 0, "sse_messages": 1}


def test_an_exception_takes_all_of_it_back_and_passes(database: Database) -> None:
    storage, queue = SqlStorageEngine(database), SqlQueue(database)
    queue.push(Message("m", "kept"))
    with pytest.raises(Boom), database.transaction():
        storage.upsert("a", 1)
        queue.pop()
        raise Boom
    assert table_counts(database)["kv_entries"] == 0
    assert queue.pop().payload == "kept"


def test_an_inner_transaction_can_fail_alone(database: Database) -> None:
    storage = SqlStorageEngine(database)
    with database.transaction():
        storage.upsert("outer", 1)
        with pytest.raises(Boom), database.transaction():
            storage.upsert("inner", 1)
            raise Boom
        with pytest.raises(NoMessagesException):
            SqlQueue(database).pop()
        storage.upsert("after", 1)
    assert [storage.fetch_one(key) for key in ("outer", "after")] == [1, 1]
    with pytest.raises(ItemNotFound):
        storage.fetch_one("inner")


def test_nobody_sees_a_transaction_before_it_is_committed(shared_url: URL) -> None:
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


def test_a_reader_of_sqlite_never_becomes_a_writer_too_late(tmp_path: Path) -> None:
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


# Engines


def test_statements_take_the_same_way_whether_somebody_listens_or_not(database: Database) -> None:
    storage, queue = SqlStorageEngine(database), SqlQueue(database)
    storage.upsert("a", 1)
    queue.push(Message("m", 1))
    seen: list[str] = []
    event.listen(database.engine, "before_cursor_execute", lambda *args: seen.append(args[2]))
    assert storage.fetch_one("a") == 1
    assert queue.pop().payload == 1
    storage.delete("a")
    assert [statement.split()[0] for statement in seen] == ["SELECT", "DELETE", "DELETE"]


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


def test_of_many_threads_two_connections_stay_at_hand(shared_url: URL) -> None:
    with Database(shared_url) as database:
        storage, together = SqlStorageEngine(database), threading.Barrier(5)

        def work(number: int) -> None:
            for n in range(50):
                together.wait(10)
                storage.upsert(str(number), n)

        threads = [threading.Thread(target=work, args=(number,)) for number in range(5)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert list(storage.fetch_all()) == [49] * 5
        assert 1 <= cast(QueuePool, database.engine.pool).checkedout() <= 2
        assert connections_in_use(database) == 0


def test_what_the_engine_gives_waits_for_other_writers_whatever_was_done_before(tmp_path: Path) -> None:
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


def test_an_engine_that_was_disposed_of_leaves_nothing_at_hand(shared_url: URL) -> None:
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
            with psycopg.connect(address(migrated_postgres.set(drivername="postgresql"))) as other:
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


def test_a_logged_engine_logs_every_statement(database: Database, caplog: pytest.LogCaptureFixture) -> None:
    storage = SqlStorageEngine(database)
    storage.upsert("a", "the value is a secret")
    with caplog.at_level("INFO", logger="sqlalchemy.engine.Engine"):
        database.engine.echo = True  # reads the level again
        storage.upsert("a", "another secret")
    assert "INSERT INTO kv_entries" in caplog.text
    assert "secret" not in caplog.text  # parameters are hidden on an engine that was made here
    database.engine.echo = False


DRIVER_AUTOCOMMIT = [True, False] if sys.version_info >= (3, 12) else []  # what sqlite3 calls autocommit=


@pytest.fixture(params=["default", "serializable", "begin recipe", "autocommit", *DRIVER_AUTOCOMMIT])
def application_engine(request: pytest.FixtureRequest, shared_url: URL) -> Any:
    """The application's own engine, in the ways that applications have them."""
    options: dict[str, Any] = {}
    if request.param in ("serializable", "autocommit"):
        options["isolation_level"] = request.param.upper()
    if isinstance(request.param, bool) and shared_url.get_backend_name() == "sqlite":
        options["connect_args"] = {"autocommit": request.param}
    engine = create_engine(shared_url, **options)
    if request.param == "begin recipe" and engine.dialect.name == "sqlite":
        # https://docs.sqlalchemy.org/en/20/dialects/sqlite.html#sqlite-transactions
        event.listen(engine, "connect", lambda connection, _: setattr(connection, "isolation_level", None))
        event.listen(engine, "begin", lambda connection: connection.exec_driver_sql("BEGIN"))
    yield engine
    assert engine.pool.checkedout() == 0  # type: ignore[attr-defined]
    engine.dispose()


def test_an_engine_of_the_application_is_used_and_left_as_it_is(application_engine: Engine) -> None:
    def settings() -> list[Any]:
        with application_engine.connect() as connection:
            if application_engine.dialect.name == "sqlite":
                names = ("journal_mode", "foreign_keys", "synchronous", "busy_timeout")
                pragmas = [connection.exec_driver_sql(f"PRAGMA {name}").scalar() for name in names]
                return [*pragmas, connection.connection.driver_connection.isolation_level]  # type: ignore[union-attr]
            return [connection.get_isolation_level(), connection.exec_driver_sql("SHOW search_path").scalar()]

    before = settings()
    database = Database(application_engine)
    storage, queue = SqlStorageEngine(database), SqlQueue(database)
    storage.upsert("a", 1)
    queue.push(Message("m", 1))
    with pytest.raises(Boom), database.transaction():
        storage.upsert("a", 2)
        queue.pop()
        raise Boom
    assert storage.fetch_one("a") == 1
    assert queue.pop().payload == 1
    with database.transaction():
        storage.upsert("b", 1)
        with database.transaction():
            storage.upsert("a", 3)
    with Database(application_engine.url) as other:
        assert list(SqlStorageEngine(other).fetch_all()) == [3, 1]
    database.close()
    assert settings() == before
    with application_engine.connect() as connection:  # closing the Database does not close the engine
        assert connection.scalar(text("SELECT count(*) FROM kv_entries")) == 2


def test_pop_is_read_committed_whatever_the_engine_is(postgres_server: URL, migrated_postgres: URL) -> None:
    strict = migrated_postgres.update_query_dict({"options": "-c default_transaction_isolation=serializable"})
    with Database(strict) as database:
        queue = SqlQueue(database)
        with database.transaction():
            queue.push(Message("m"))
            (level,) = database.connection().exec_driver_sql("SHOW transaction_isolation").one()
            assert level == "read committed"
        assert queue.pop().type == "m"


def test_sqlite_engines_made_here_are_set_up_for_many_processes(tmp_path: Path) -> None:
    with Database(f"sqlite:///{tmp_path / 'a.db'}") as database, database.engine.connect() as connection:
        pragma = {
            name: connection.exec_driver_sql(f"PRAGMA {name}").scalar()
            for name in ("journal_mode", "foreign_keys", "busy_timeout", "synchronous")
        }
    assert pragma == {"journal_mode": "wal", "foreign_keys": 1, "busy_timeout": 30_000, "synchronous": 2}


def test_a_timeout_in_the_url_is_kept(tmp_path: Path) -> None:
    with Database(f"sqlite:///{tmp_path / 'a.db'}?timeout=2") as database, database.engine.connect() as connection:
        assert connection.exec_driver_sql("PRAGMA busy_timeout").scalar() == 2_000


def test_a_locked_sqlite_database_is_an_error_that_says_so(tmp_path: Path) -> None:
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


def test_a_pool_without_free_connection_is_an_error_that_says_so(tmp_path: Path) -> None:
    engine = create_engine(f"sqlite:///{tmp_path / 'a.db'}", pool_size=1, max_overflow=0, pool_timeout=0.05)
    database = Database(engine)
    database.upgrade()
    with engine.connect(), pytest.raises(RepositoryError, match="pool_size") as caught:
        SqlStorageEngine(database).upsert("a", 1)
    assert isinstance(caught.value.__cause__, TimeoutError)
    SqlStorageEngine(database).upsert("a", 1)
    engine.dispose()


def test_a_thread_does_not_wait_for_ever_for_the_one_connection_of_a_database_in_memory(
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


def test_a_connection_that_the_server_closes_in_a_call_is_replaced(migrated_postgres: URL) -> None:
    kill = "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
    with Database(migrated_postgres) as database, ThreadPoolExecutor() as threads:
        storage = SqlStorageEngine(database)
        storage.upsert("a", 1)
        with psycopg.connect(address(migrated_postgres.set(drivername="postgresql"))) as other:
            other.execute("LOCK TABLE kv_entries")
            call = threads.submit(storage.fetch_one, "a")
            while not other.execute(kill).fetchall():
                assert not call.done()
            with pytest.raises(RepositoryError, match="closed the connection"):
                call.result(10)
        assert storage.fetch_one("a") == 1
        storage.delete("a")


def test_behind_a_proxy_no_statement_is_prepared(migrated_postgres: URL) -> None:
    """Another client of the proxy would find it in its session: PgBouncer 1.18 failed with "already exists"."""

    def prepared(notify: bool) -> Any:
        with Database(migrated_postgres, notify=notify) as database:
            for _ in range(20):
                SqlStorageEngine(database).delete("a")
            with database.transaction():  # on the same connection
                return database.connection().scalar(text("SELECT count(*) FROM pg_prepared_statements"))

    assert prepared(notify=True) > 0
    assert prepared(notify=False) == 0


def test_a_server_that_vanishes_is_noticed_by_keep_alives_unless_the_url_says_how(migrated_postgres: URL) -> None:
    for url, idle in (
        (migrated_postgres, "30"),
        (migrated_postgres.update_query_dict({"keepalives_idle": "7"}), "7"),
    ):
        with Database(url) as database, database.engine.connect() as connection:
            driver = cast("psycopg.Connection[Any]", connection.connection.driver_connection)
            parameters = driver.info.get_parameters()
            assert (parameters["keepalives_idle"], parameters["tcp_user_timeout"]) == (idle, "60000")


def test_tables_can_be_in_a_schema_of_their_own(migrated_postgres: URL) -> None:
    with Database(migrated_postgres, schema='odd "Schema"') as database, Database(migrated_postgres) as public:
        database.upgrade()
        database.check()
        storage = SqlStorageEngine(database)
        storage.upsert("a", 1)
        assert list(storage.fetch_all()) == [1]
        assert list(SqlStorageEngine(public).fetch_all()) == []
        queue = SqlQueue(database)
        queue.push(Message("m", 1))
        assert queue.pop().payload == 1
        with public.engine.begin() as connection:
            connection.execute(text('DROP SCHEMA "odd ""Schema""" CASCADE'))


def test_a_schema_is_refused_on_sqlite() -> None:
    with pytest.raises(RepositoryError, match="schema= is for Postgres"):
        Database("sqlite://", schema="app")


def test_a_plain_postgresql_url_means_psycopg_3() -> None:
    with Database("postgresql://somebody:secret@localhost/app") as database:
        assert database.engine.dialect.driver == "psycopg"
        assert "secret" not in repr(database)


# Life


def test_a_closed_database_refuses_to_work(database: Database) -> None:
    storage, queue = SqlStorageEngine(database), SqlQueue(database)
    database.close()
    database.close()
    for call in (lambda: storage.upsert("a", 1), queue.pop, database.check, database.upgrade):
        with pytest.raises(RepositoryError, match="closed"):
            call()


def test_a_database_that_is_dropped_closes_its_connections(shared_url: URL) -> None:
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

    def work(who: int) -> None:
        try:
            for n in range(30):
                storage.upsert(f"{who}/{n}", n)
                with database.transaction():
                    assert storage.fetch_one(f"{who}/{n}") == n
                    storage.upsert(f"{who}/{n}", -n)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(who,)) for who in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert sorted(storage.fetch_all()) == sorted(-n for n in range(30) for _ in range(6))


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
def test_a_child_forked_inside_a_transaction_is_outside_of_it(migrated_postgres: URL) -> None:
    with Database(migrated_postgres) as database:
        storage = SqlStorageEngine(database)
        with database.transaction():
            storage.upsert("parent", 1)
            with fork(lambda: storage.upsert("child", len(list(storage.fetch_all())))):
                pass
        assert list(storage.fetch_all()) == [0, 1]
        for key in ("parent", "child"):
            storage.delete(key)


# Identity


def test_a_queue_of_another_database_is_not_stored_as_one_of_this(database: Database, tmp_path: Path) -> None:
    with Database(f"sqlite:///{tmp_path / 'other.db'}") as other, Database("sqlite://") as memory:
        for elsewhere in (other, memory):
            with pytest.raises(RepositoryError, match="another database"):
                QueueRepository(SqlStorageEngine(database)).persist(SqlQueue(elsewhere))
    assert table_counts(database)["kv_entries"] == 0


def test_two_ways_to_one_database_are_the_same(shared_url: URL) -> None:
    engine = create_engine(shared_url)
    with Database(shared_url) as one, Database(shared_url) as other:
        application = Database(engine)
        assert one.is_same(other) and one.is_same(application) and application.is_same(Database(engine))
        assert not one.is_same(Database("sqlite://"))
    engine.dispose()


def test_a_relative_path_is_the_same_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with Database("sqlite:///a.db") as relative, Database(f"sqlite:///{tmp_path / 'a.db'}") as absolute:
        assert relative.is_same(absolute)
