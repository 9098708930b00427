"""Engines: those made from a URL, and those of an application, which stay as they are."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import psycopg
import pytest
from eric_sse.exception import RepositoryError
from eric_sse.message import Message
from sqlalchemy import URL, Engine, create_engine, event, text
from sqlalchemy.exc import TimeoutError

from eric_sse_sql import Database, SqlQueue, SqlStorageEngine
from support import databases
from support.application import ApplicationError


def test_an_observed_engine_shows_the_statements_of_every_call(database: Database) -> None:
    storage, queue = SqlStorageEngine(database), SqlQueue(database)
    storage.upsert("a", 1)
    queue.push(Message("m", 1))
    seen: list[str] = []
    event.listen(database.engine, "before_cursor_execute", lambda *args: seen.append(args[2]))
    assert storage.fetch_one("a") == 1
    assert queue.pop().payload == 1
    storage.delete("a")
    assert [statement.split()[0] for statement in seen] == ["SELECT", "DELETE", "DELETE"]


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
    options: dict[str, Any] = {"begins": request.param == "begin recipe"}
    if request.param in ("serializable", "autocommit"):
        options["isolation_level"] = request.param.upper()
    if isinstance(request.param, bool) and shared_url.get_backend_name() == "sqlite":
        options["connect_args"] = {"autocommit": request.param}
    with databases.application_engine(shared_url, **options) as engine:
        yield engine


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
    with pytest.raises(ApplicationError), database.transaction():
        storage.upsert("a", 2)
        queue.pop()
        raise ApplicationError
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


@pytest.mark.parametrize("observed", [False, True])
def test_the_isolation_level_of_a_connection_is_restored(migrated_postgres: URL, observed: bool) -> None:
    engine = create_engine(migrated_postgres, pool_size=1, max_overflow=0)
    level = psycopg.IsolationLevel.SERIALIZABLE
    event.listen(engine, "connect", lambda connection, _: setattr(connection, "isolation_level", level))
    if observed:
        event.listen(engine, "before_cursor_execute", lambda *_: None)

    def levels() -> set[str]:
        with engine.connect() as connection:
            return {connection.scalar(text("SHOW transaction_isolation"))}

    database, seen = Database(engine), levels()
    queue, storage = SqlQueue(database), SqlStorageEngine(database)
    calls: list[Callable[[], object]] = [
        lambda: queue.push(Message("m", 1)),
        lambda: queue.push_many([Message("m", 2), Message("m", 3)]),
        queue.pop,
        lambda: storage.upsert("a", 1),
        queue.clear,
        lambda: storage.delete("a"),
        database.check,
    ]
    for call in calls:
        call()
        seen |= levels()
    with pytest.raises(ApplicationError), database.transaction():
        storage.upsert("b", 1)
        raise ApplicationError
    assert seen | levels() == {"serializable"}
    database.close()
    engine.dispose()


@pytest.mark.parametrize("autocommit", [False, True])
def test_the_settings_of_a_connection_are_restored_when_no_transaction_can_begin(
    migrated_postgres: URL, autocommit: bool
) -> None:
    engine = create_engine(migrated_postgres, pool_size=1, max_overflow=0)

    @event.listens_for(engine, "connect")
    def set_up(connection: psycopg.Connection, record: object) -> None:
        connection.isolation_level = psycopg.IsolationLevel.SERIALIZABLE
        connection.autocommit = autocommit

    def settings() -> tuple[object, ...]:
        with closing(engine.raw_connection()) as pooled:
            connection: Any = pooled.driver_connection
            return connection, connection.isolation_level, connection.autocommit

    def refuse(connection: object) -> None:
        raise ApplicationError

    database, before = Database(engine), settings()
    queue = SqlQueue(database, "queue")
    calls: list[Callable[[], object]] = [lambda: queue.push(Message("m")), database.transaction().__enter__]
    event.listen(engine, "begin", refuse)
    for call in calls:
        with pytest.raises(RepositoryError) as error:
            call()
        assert isinstance(error.value.__cause__, ApplicationError)
        assert settings() == before
    event.remove(engine, "begin", refuse)
    queue.clear()
    assert settings() == before
    database.close()
    engine.dispose()


def test_an_open_transaction_on_the_connection_of_a_thread_in_memory_is_not_ended() -> None:
    engine = create_engine("sqlite://")
    database = Database(engine)
    database.upgrade()
    queue = SqlQueue(database)
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE orders (number INTEGER)"))
    with engine.connect() as connection:
        connection.execute(text("INSERT INTO orders VALUES (1)"))
        for call in (lambda: len(queue), lambda: queue.push(Message("m")), lambda: queue.push_many([Message("m")] * 2)):
            with pytest.raises(RepositoryError, match="a transaction of the application is open"):
                call()
        with database.join(connection):
            queue.push(Message("m"))
        connection.rollback()
        assert connection.scalar(text("SELECT count(*) FROM orders")) == 0
    assert len(queue) == 0
    engine.dispose()


def test_an_exhausted_pool_is_reported_as_one(tmp_path: Path) -> None:
    engine = create_engine(f"sqlite:///{tmp_path / 'a.db'}", pool_size=1, max_overflow=0, pool_timeout=0.05)
    database = Database(engine)
    database.upgrade()
    with engine.connect(), pytest.raises(RepositoryError, match="pool_size") as caught:
        SqlStorageEngine(database).upsert("a", 1)
    assert isinstance(caught.value.__cause__, TimeoutError)
    SqlStorageEngine(database).upsert("a", 1)
    engine.dispose()


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
    with Database("postgresql://user:secret@localhost/app") as database:
        assert database.engine.dialect.driver == "psycopg"
        assert "secret" not in repr(database)


def test_databases_with_the_same_url_are_the_same(shared_url: URL) -> None:
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
