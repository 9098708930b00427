"""Transactions of the application's own: what the package writes is committed, rolled back and seen with them."""

from __future__ import annotations

import asyncio
import random
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from eric_sse.exception import NoMessagesException, RepositoryError
from eric_sse.message import Message
from sqlalchemy import URL, Connection, Engine, create_engine, make_url, text
from sqlalchemy.exc import IntegrityError, SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine
from sqlalchemy.orm import Session, scoped_session, sessionmaker

from eric_sse_sql import BlockingSqlQueue, Database, SqlQueue, SqlStorageEngine
from support.application import ApplicationError
from support.databases import application_engine, opened
from support.queues import drain
from support.statements import Record, release_savepoint

ORDERS = "CREATE TABLE orders (number INTEGER PRIMARY KEY)"
ORDER = text("INSERT INTO orders VALUES (:number)")


@pytest.fixture
def engine(shared_url: URL) -> Iterator[Engine]:
    """The application's own engine, made with SQLAlchemy's defaults, and its own table."""
    with application_engine(shared_url) as made:
        with made.begin() as connection:
            connection.execute(text(ORDERS))
        yield made
        with made.begin() as connection:
            connection.execute(text("DROP TABLE orders"))


@pytest.fixture
def database(shared_url: URL) -> Iterator[Database]:
    with opened(shared_url) as made:
        yield made


@pytest.fixture(params=["the same engine", "another engine"])
def joinable(request: pytest.FixtureRequest, engine: Engine, database: Database) -> Iterator[Database]:
    """A database on the application's engine, and one on an engine of its own."""
    if request.param == "another engine":
        yield database
        return
    with opened(engine) as made:
        yield made


def waiting(database: Database, queue_id: str = "q") -> list[Any]:
    """Pop all messages of a queue. Their payloads."""
    return drain(SqlQueue(database, queue_id))


def orders(engine: Engine) -> list[int]:
    with engine.connect() as connection:
        return list(connection.scalars(text("SELECT number FROM orders ORDER BY number")))


# Joining


def test_an_order_and_its_message_are_committed_together(engine: Engine, joinable: Database) -> None:
    queue = SqlQueue(joinable, "q")
    with Session(engine) as session:
        session.execute(ORDER, {"number": 7})
        with joinable.join(session):
            queue.push(Message("order", 7))
        assert (
            orders(engine) == [] and len(SqlQueue(Database(engine), "q")) == 0
        )  # both are invisible before the commit
        session.commit()
    assert (orders(engine), waiting(joinable)) == ([7], [7])


def test_an_order_and_its_message_are_rolled_back_together(engine: Engine, joinable: Database) -> None:
    with Session(engine) as session:
        with joinable.join(session):
            SqlQueue(joinable, "q").push(Message("order", 7))
            SqlStorageEngine(joinable).upsert("order/7", 7)
        session.execute(ORDER, {"number": 7})
        session.rollback()
    assert (orders(engine), waiting(joinable), list(SqlStorageEngine(joinable).fetch_all())) == ([], [], [])


def test_a_transaction_that_is_not_committed_stores_nothing(engine: Engine, joinable: Database) -> None:
    with engine.connect() as connection, joinable.join(connection):
        SqlQueue(joinable, "q").push(Message("order", 7))
    assert waiting(joinable) == []


def test_inside_the_block_the_package_reads_its_own_writes(engine: Engine, joinable: Database) -> None:
    with engine.begin() as connection, joinable.join(connection):
        SqlStorageEngine(joinable).upsert("key", 1)
        SqlQueue(joinable, "q").push(Message("order", 7))
        assert SqlStorageEngine(joinable).fetch_one("key") == 1
        assert waiting(joinable) == [7]
    assert waiting(joinable) == []


def test_after_the_block_calls_are_transactions_of_their_own(engine: Engine, joinable: Database) -> None:
    with engine.connect() as connection:
        with joinable.join(connection):
            SqlQueue(joinable, "q").push(Message("order", 1))
        connection.rollback()
        SqlQueue(joinable, "q").push(Message("order", 2))
    assert waiting(joinable) == [2]


def test_a_scoped_session_can_be_joined(engine: Engine, joinable: Database) -> None:
    session = scoped_session(sessionmaker(engine))
    with joinable.join(session):
        SqlQueue(joinable, "q").push(Message("order", 7))
    session.commit()
    session.remove()
    assert waiting(joinable) == [7]


def test_a_transaction_inside_a_joined_one_is_a_savepoint(engine: Engine, joinable: Database) -> None:
    queue = SqlQueue(joinable, "q")
    with engine.begin() as connection, joinable.join(connection):
        queue.push(Message("order", 1))
        with pytest.raises(KeyError), joinable.transaction():
            queue.push(Message("order", 2))
            raise KeyError
        with joinable.join(connection), joinable.transaction():
            queue.push(Message("order", 3))
    assert waiting(joinable) == [1, 3]


def test_a_savepoint_that_the_application_rolls_back_undoes_the_writes_in_it(
    engine: Engine, joinable: Database
) -> None:
    queue = SqlQueue(joinable, "q")
    with Session(engine) as session:
        session.execute(ORDER, {"number": 1})
        with joinable.join(session):
            queue.push(Message("order", 1))
            savepoint = session.begin_nested()
            queue.push(Message("order", 2))
            savepoint.rollback()
            queue.push(Message("order", 3))
        session.commit()
    assert waiting(joinable) == [1, 3]


def test_the_application_can_not_commit_where_a_savepoint_could_not_be_rolled_back(
    engine: Engine, joinable: Database
) -> None:
    with Session(engine) as session:
        session.execute(ORDER, {"number": 1})
        with suppress(ApplicationError), joinable.join(session), joinable.transaction():
            SqlQueue(joinable, "q").push(Message("m"))
            release_savepoint(joinable)
            raise ApplicationError
        with pytest.raises(RepositoryError), joinable.join(session):
            SqlQueue(joinable, "q").push(Message("m"))
        with pytest.raises(SQLAlchemyError):
            session.execute(ORDER, {"number": 2})
        if engine.dialect.name == "sqlite":  # on Postgres, COMMIT rolls an aborted transaction back
            with pytest.raises(SQLAlchemyError):
                session.commit()
        session.rollback()
    assert orders(engine) == [] and waiting(joinable) == []


@contextmanager
def refusing(engine: Engine) -> Iterator[None]:
    """While it lasts, the database refuses messages of the type "forbidden"."""
    if engine.dialect.name == "sqlite":
        make = (
            "CREATE TRIGGER refuse BEFORE INSERT ON sse_messages WHEN new.message_type = 'forbidden' "
            "BEGIN SELECT RAISE(ABORT, 'refused'); END"
        )
        end = "DROP TRIGGER refuse"
    else:
        make = "ALTER TABLE sse_messages ADD CONSTRAINT refuse CHECK (message_type <> 'forbidden')"
        end = "ALTER TABLE sse_messages DROP CONSTRAINT refuse"
    with engine.begin() as connection:
        connection.execute(text(make))
    yield
    with engine.begin() as connection:
        connection.execute(text(end))


def test_a_statement_that_fails_leaves_the_application_s_transaction_usable(engine: Engine, joinable: Database) -> None:
    queue = SqlQueue(joinable, "q")
    with refusing(engine):
        with Session(engine) as session:
            session.execute(ORDER, {"number": 1})
            with joinable.join(session):
                queue.push(Message("order", 1))
                with pytest.raises(RepositoryError):
                    queue.push(Message("forbidden"))
                with pytest.raises(RepositoryError):
                    queue.push_many([Message("order", 2), Message("forbidden")])
                queue.push(Message("order", 3))
            session.execute(ORDER, {"number": 2})
            session.commit()
        assert (orders(engine), waiting(joinable)) == ([1, 2], [1, 3])


def test_committing_a_transaction_with_a_failed_statement_is_an_error(engine: Engine, database: Database) -> None:
    queue = SqlQueue(database, "q")
    with refusing(engine):
        try:
            with database.transaction():
                queue.push(Message("order", 1))
                with pytest.raises(RepositoryError):
                    queue.push(Message("forbidden"))
        except RepositoryError as error:
            assert "let the error of that statement leave the block" in str(error)
            assert waiting(database) == []
        else:
            assert waiting(database) == [1]  # on SQLite, a statement that fails leaves its transaction as it was


@pytest.mark.skipif(not hasattr(sqlite3, "SQLITE_BUSY"), reason="before Python 3.11 errors of SQLite have no code")
def test_a_transaction_on_sqlite_that_read_before_another_connection_wrote_says_what_to_do(tmp_path: Path) -> None:
    url = make_url(f"sqlite:///{tmp_path / 'a.db'}")
    advice = "another connection has written since; roll it back and run it again, or begin it with BEGIN IMMEDIATE"
    with Database(url) as database, application_engine(url, begins=True) as engine, Session(engine) as session:
        database.upgrade()
        queue = SqlQueue(database)
        session.scalar(text("SELECT count(*) FROM sse_messages"))
        queue.push(Message("of another connection"))
        with pytest.raises(RepositoryError, match=advice), database.join(session):
            queue.push(Message("m"))
        session.rollback()
        session.scalar(text("SELECT count(*) FROM sse_messages"))
        with database.join(session):
            queue.push(Message("m"))
        session.commit()
        assert len(queue) == 2


def test_an_error_of_the_application_passes_unchanged(engine: Engine, joinable: Database) -> None:
    with (
        pytest.raises(IntegrityError),
        engine.begin() as connection,
        joinable.join(connection),
    ):
        connection.execute(ORDER, {"number": 1})
        connection.execute(ORDER, {"number": 1})
    assert orders(engine) == []


def test_a_message_that_can_not_be_read_is_set_aside_in_a_joined_transaction(
    engine: Engine, joinable: Database
) -> None:
    queue = SqlQueue(joinable, "q")
    queue.push(Message("order", 1))
    with engine.begin() as connection:
        connection.execute(text("UPDATE sse_messages SET message = :blob"), {"blob": b"nonsense"})
    with engine.connect() as connection:
        with joinable.join(connection), pytest.raises(NoMessagesException):
            queue.pop()
        connection.rollback()
    assert (len(queue), joinable.count_set_aside()) == (1, 0)
    with engine.begin() as connection, joinable.join(connection):
        connection.execute(ORDER, {"number": 1})
        with pytest.raises(NoMessagesException):
            queue.pop()
    assert (orders(engine), len(queue), joinable.count_set_aside()) == ([1], 0, 1)


# What can't be joined


def test_another_database_is_refused(engine: Engine, database: Database, tmp_path: Path, new_postgres: Any) -> None:
    elsewhere = create_engine(f"sqlite:///{tmp_path / 'other.db'}")
    if engine.dialect.name == "postgresql":
        elsewhere = create_engine(new_postgres())
    memory = create_engine("sqlite://")
    for other in (elsewhere, memory):
        with (
            other.connect() as connection,
            pytest.raises(RepositoryError, match=r"leads to another database|join one|can't be joined"),
            database.join(connection),
        ):
            pass
    elsewhere.dispose()
    memory.dispose()


def test_other_names_of_the_same_database_are_known(database: Database, shared_url: URL, tmp_path: Path) -> None:
    other = shared_url
    if shared_url.get_backend_name() == "sqlite":
        link = tmp_path / "link.db"
        link.symlink_to(str(shared_url.database))
        other = shared_url.set(database=str(link))
    engine = create_engine("postgresql+psycopg://", creator=lambda: database.engine.dialect.connect(*_arguments(other)))
    if shared_url.get_backend_name() == "sqlite":
        engine = create_engine(other)
    with engine.begin() as connection, database.join(connection):
        SqlQueue(database, "q").push(Message("order", 7))
    engine.dispose()
    assert waiting(database) == [7]


def _arguments(url: URL) -> tuple[Any, ...]:
    return (url.set(drivername="postgresql").render_as_string(hide_password=False),)


def test_a_connection_in_autocommit_is_refused(shared_url: URL, database: Database) -> None:
    options: dict[str, Any] = {"isolation_level": "AUTOCOMMIT"}
    if shared_url.get_backend_name() == "sqlite":
        if not hasattr(sqlite3.Connection, "autocommit"):
            return  # before Python 3.12, every connection of SQLite can be in a transaction
        options = {"connect_args": {"autocommit": True}}
    engine = create_engine(shared_url, **options)
    with (
        engine.connect() as connection,
        pytest.raises(RepositoryError, match="is in autocommit"),
        database.join(connection),
    ):
        pass
    engine.dispose()


@pytest.mark.parametrize("nothing", [None, "session", 7, AsyncSession()])
def test_an_object_other_than_a_session_or_connection_is_refused(database: Database, nothing: Any) -> None:
    with pytest.raises(
        RepositoryError, match=r"a Session or a Connection; in asyncio, the one that run_sync\(\) gives"
    ):
        database.join(nothing)


def test_joining_inside_another_transaction_is_refused(engine: Engine, database: Database) -> None:
    with engine.connect() as connection, database.transaction():
        SqlQueue(database, "q").push(Message("order", 1))
        with pytest.raises(RepositoryError, match="another transaction"), database.join(connection):
            pass
    assert waiting(database) == [1]


def test_a_blocking_queue_does_not_wait_inside_a_transaction(engine: Engine, database: Database) -> None:
    queue = BlockingSqlQueue(database, "q")
    queue.push(Message("order", 1))
    with engine.begin() as connection, database.join(connection):
        assert queue.pop().payload == 1
        with pytest.raises(RepositoryError, match="can't wait inside a transaction"):
            queue.pop()


# Threads and tasks


def test_another_thread_is_not_in_the_transaction(engine: Engine, database: Database) -> None:
    if engine.dialect.name == "sqlite":
        return  # which has one writer at a time: the other thread would wait for this one
    queue = SqlQueue(database, "q")
    with engine.connect() as connection, database.join(connection):
        queue.push(Message("order", "rolled back"))
        thread = threading.Thread(target=lambda: queue.push(Message("order", "kept")))
        thread.start()
        thread.join(30)
    assert waiting(database) == ["kept"]


def test_another_task_is_not_in_the_transaction(engine: Engine, database: Database) -> None:
    seen: list[bool] = []

    async def look() -> None:
        seen.append(database.in_transaction())

    async def main() -> None:
        with engine.connect() as connection, database.join(connection):
            await asyncio.create_task(look())
            await look()

    asyncio.run(main())
    assert seen == [False, True]


# asyncio


@contextmanager
def async_engine(url: URL) -> Iterator[AsyncEngine]:
    driver = {"sqlite": "sqlite+aiosqlite", "postgresql": "postgresql+psycopg"}[url.get_backend_name()]
    yield create_async_engine(url.set(drivername=driver))


def test_an_async_session_is_joined_in_run_sync(engine: Engine, database: Database, shared_url: URL) -> None:
    queue = SqlQueue(database, "q")

    def place(session: Session, number: int) -> None:
        session.execute(ORDER, {"number": number})
        with database.join(session):
            queue.push_many([Message("order", number), Message("copy", number)])
            with database.transaction():
                SqlStorageEngine(database).upsert(f"order/{number}", number)

    async def main() -> None:
        with async_engine(shared_url) as asynchronous:
            async with AsyncSession(asynchronous) as session:
                await session.run_sync(place, 1)
                await session.rollback()
                await session.run_sync(place, 2)
                await session.commit()
            await asynchronous.dispose()

    asyncio.run(main())
    assert (orders(engine), waiting(database)) == ([2], [2, 2])
    assert list(SqlStorageEngine(database).fetch_all()) == [2]


def test_tasks_that_share_an_event_loop_have_transactions_of_their_own(
    engine: Engine, database: Database, shared_url: URL
) -> None:
    if engine.dialect.name == "sqlite":
        return  # which has one writer at a time

    async def place(asynchronous: AsyncEngine, number: int) -> None:
        def push(session: Session) -> None:
            with database.join(session):
                SqlQueue(database, "q").push(Message("order", number))

        async with AsyncSession(asynchronous) as session:
            await session.run_sync(push)
            await asyncio.sleep(0)
            await session.run_sync(lambda joined: joined.execute(ORDER, {"number": number}))
            await (session.commit() if number % 2 else session.rollback())

    async def main() -> None:
        with async_engine(shared_url) as asynchronous:
            await asyncio.gather(*(place(asynchronous, number) for number in range(8)))
            await asynchronous.dispose()

    asyncio.run(main())
    assert sorted(waiting(database)) == orders(engine) == [1, 3, 5, 7]


# The outbox


def test_of_500_transactions_each_stores_both_its_row_and_its_message_or_neither(
    engine: Engine, database: Database
) -> None:
    rng = random.Random(500)
    queue = SqlQueue(database, "q")
    kept: list[int] = []

    def place(connection: Connection, number: int) -> None:
        first, second = (
            lambda: connection.execute(ORDER, {"number": number}),
            lambda: queue.push(Message("order", number)),
        )
        for act in (first, second) if rng.random() < 0.5 else (second, first):
            act()

    for number in range(500):
        with engine.connect() as connection:
            transaction = connection.begin()
            with database.join(connection):
                if rng.random() < 0.3:
                    savepoint = connection.begin_nested()
                    place(connection, 1000 + number)
                    if rng.random() < 0.5:
                        savepoint.rollback()
                        inner = []
                    else:
                        savepoint.commit()
                        inner = [1000 + number]
                else:
                    inner = []
                place(connection, number)
            if rng.random() < 0.5:
                transaction.commit()
                kept += [*inner, number]
            else:
                transaction.rollback()
    assert sorted(waiting(database)) == orders(engine) == sorted(kept)
    assert 150 < len(kept) < 450


def test_joining_costs_no_statement_but_the_savepoints_of_postgres(
    engine: Engine, statements: Record, shared_url: URL
) -> None:
    database = Database(engine)
    seen = statements(database)
    with engine.begin() as connection:
        connection.execute(ORDER, {"number": 1})
        with database.join(connection):
            SqlQueue(database, "q").push(Message("order", 1))
    shield = ["SAVEPOINT", "WITH", "RELEASE"] if engine.dialect.name == "postgresql" else ["INSERT"]
    assert [statement.split()[0] for statement in seen] == ["INSERT", *shield]
