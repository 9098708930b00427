"""Transactions of an application through other drivers than the package's own."""

from __future__ import annotations

import asyncio
import inspect
import shutil
import sqlite3
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, suppress
from itertools import chain
from pathlib import Path
from typing import Any

import psycopg
import pytest
from eric_sse.exception import NoMessagesException, RepositoryError
from eric_sse.message import Message
from sqlalchemy import URL, create_engine, event, make_url, text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import create_async_engine

from eric_sse_sql import BlockingSqlQueue, Database, SqlConnectionsFactory, SqlQueue, SqlStorageEngine
from eric_sse_sql.contract import ERIC_SSE_2_0
from eric_sse_sql.errors import sqlstate
from support.application import ApplicationError
from support.catalog import connected
from support.databases import opened
from support.drivers import APPLICATIONS, Execute, arguments_for, contract, url_for
from support.queues import SqlQueues, drain
from support.waiting import DEADLINE


@pytest.fixture(params=APPLICATIONS)
def application_name(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    pytest.importorskip(name.split()[0])
    return name


@pytest.fixture
def database(application_name: str, request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
    if "sqlite" in application_name:
        url = make_url(f"sqlite:///{tmp_path / 'test.db'}")
        shutil.copyfile(request.getfixturevalue("migrated_sqlite"), tmp_path / "test.db")
    else:
        url = request.getfixturevalue("postgres")
    with opened(url) as made:
        with made.transaction():
            made.connection().execute(text("CREATE TABLE orders (number INTEGER PRIMARY KEY)"))
        yield made
        with made.transaction():
            made.connection().execute(text("DROP TABLE orders"))


@pytest.fixture
def run(application_name: str, database: Database) -> Callable[..., None]:
    """Runs work in a transaction of an application."""
    run_in = APPLICATIONS[application_name]
    return lambda work, url=database.engine.url, **options: run_in(url, work, **options)


def stored(database: Database) -> tuple[list[int], list[Any]]:
    """The numbers of the orders, and the payloads of the messages, which are popped."""
    with database.transaction():
        numbers = list(database.connection().scalars(text("SELECT number FROM orders ORDER BY number")))
    return numbers, drain(SqlQueue(database, "q"))


def test_an_order_and_its_message_are_committed_or_rolled_back_together(
    database: Database, run: Callable[..., None]
) -> None:
    def place(bind: Any, execute: Execute) -> None:
        execute("INSERT INTO orders VALUES (1)")
        with database.join(bind):
            SqlQueue(database, "q").push(Message("order", 1))
        assert len(SqlQueue(database, "q")) == 0  # invisible before the commit

    def fail(bind: Any, execute: Execute) -> None:
        place(bind, execute)
        raise ApplicationError

    run(place, commits=False)
    with pytest.raises(ApplicationError):
        run(fail)
    assert stored(database) == ([], [])
    run(place)
    assert stored(database) == ([1], [1])


def test_a_call_that_fails_and_a_savepoint_that_is_rolled_back_leave_the_transaction_usable(
    database: Database, run: Callable[..., None]
) -> None:
    queue = SqlQueue(database, "q")
    errors: list[RepositoryError] = []

    def place(bind: Any, execute: Execute) -> None:
        execute("CREATE UNIQUE INDEX refuse ON sse_messages (message_type) WHERE message_type = 'once'")
        execute("INSERT INTO orders VALUES (1)")
        with database.join(bind):
            queue.push(Message("once", 1))
            with pytest.raises(RepositoryError) as refused:
                queue.push(Message("once", 2))
            errors.append(refused.value)
            with pytest.raises(RepositoryError):
                queue.push_many([Message("order", 2), Message("once", 2)])
            with suppress(Undo), database.transaction():
                queue.push(Message("order", 3))
                raise Undo
            queue.push(Message("order", 4))
        execute("INSERT INTO orders VALUES (2)")
        execute("DROP INDEX refuse")

    run(place)
    assert stored(database) == ([1, 2], [1, 4])
    cause = errors[0].__cause__
    assert cause is not None
    if database.engine.dialect.name == "postgresql":
        assert sqlstate(cause) == "23505"
        assert "once" not in "".join(traceback.format_exception(cause))  # as in the line DETAIL, which quotes the row


def test_a_commit_wakes_a_waiting_pop(database: Database, run: Callable[..., None]) -> None:
    queue = BlockingSqlQueue(database, "q")
    started = threading.Event()
    popped: list[Any] = []

    def wait() -> None:
        started.set()
        popped.append(queue.pop(DEADLINE).payload)

    def place(bind: Any, execute: Execute) -> None:
        with database.join(bind):
            SqlQueue(database, "q").push(Message("order", 1))

    thread = threading.Thread(target=wait)
    thread.start()
    started.wait(DEADLINE)
    run(place)
    thread.join(DEADLINE)
    assert popped == [1]


def test_a_transaction_that_can_not_be_joined_is_refused_with_what_to_do(
    database: Database, run: Callable[..., None], request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    is_sqlite = database.engine.dialect.name == "sqlite"
    other = make_url(f"sqlite:///{tmp_path / 'other.db'}") if is_sqlite else request.getfixturevalue("new_postgres")()

    def refused(bind: Any, execute: Execute) -> None:
        with database.join(bind):
            SqlQueue(database, "q").push(Message("order", 1))

    with pytest.raises(RepositoryError, match="is in autocommit"):
        run(refused, isolation_level="AUTOCOMMIT")
    with pytest.raises(RepositoryError, match="leads to another database"):
        run(refused, url=other)
    assert stored(database) == ([], [])


def test_a_connection_that_the_server_has_closed_is_reported(database: Database, run: Callable[..., None]) -> None:
    if database.engine.dialect.name == "sqlite":
        return

    def cut(bind: Any, execute: Execute) -> None:
        with database.join(bind):
            SqlQueue(database, "q").push(Message("order", 1))
            with connected(database.engine.url) as admin:
                admin.execute(text("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE state LIKE '%in tr%'"))
            with pytest.raises(RepositoryError, match="the server can't be reached or has closed the connection"):
                SqlQueue(database, "q").push(Message("order", 2))
        raise ApplicationError

    with pytest.raises((ApplicationError, SQLAlchemyError)):  # pg8000 raises again when the session is closed
        run(cut)
    assert stored(database) == ([], [])


def test_what_can_not_be_joined_says_what_to_join_instead(postgres: URL) -> None:
    for driver in ("psycopg2", "pg8000"):
        pytest.importorskip(driver)
        engine = create_engine(url_for(postgres, driver), connect_args=arguments_for(postgres, driver))
        with closing(engine.raw_connection()) as pooled:
            refuse(postgres, pooled.driver_connection, "Join a session or connection of SQLAlchemy on this driver")
        engine.dispose()

    with closing(sqlite3.connect(":memory:")) as connection:
        refuse(postgres, connection, "This Database is not on SQLite")

    async def main() -> None:
        engine = create_async_engine(url_for(postgres, "asyncpg"))
        async with engine.connect() as connection:
            refuse(postgres, connection, "Its calls are coroutines")
            pooled = await connection.get_raw_connection()
            refuse(postgres, pooled.driver_connection, "Its calls are coroutines")
        await engine.dispose()

    asyncio.run(main())
    django: Any = pytest.importorskip("django.db")
    refuse(postgres, django.connection, r"Call its ensure_connection\(\), and join its attribute `connection`")


def refuse(url: URL, bind: Any, advice: str) -> None:
    with Database(url) as database, pytest.raises(RepositoryError, match=advice):
        database.join(bind)


def test_a_call_after_the_end_of_the_transaction_is_refused(postgres: URL) -> None:
    address = postgres.set(drivername="postgresql").render_as_string(hide_password=False)
    with (
        opened(postgres) as database,
        closing(psycopg.connect(address, autocommit=True)) as connection,
        ExitStack() as joined,
    ):
        queue = SqlQueue(database, "q")
        with connection.transaction():
            joined.enter_context(database.join(connection))
            queue.push(Message("order", 1))
        with pytest.raises(RepositoryError, match="the transaction of the connection has ended"):
            queue.push(Message("order", 2))
        joined.close()
        assert drain(queue) == [1]


def test_a_pooled_connection_is_asked_for_its_database_once(postgres: URL) -> None:
    pytest.importorskip("psycopg2")
    engine = create_engine(url_for(postgres, "psycopg2"))
    asked: list[str] = []
    event.listen(engine, "before_cursor_execute", lambda *arguments: asked.append(arguments[2]))
    with opened(postgres) as database:
        for _ in range(2):
            with engine.begin() as connection, database.join(connection):
                SqlQueue(database, "q").push(Message("order", 1))
    engine.dispose()
    assert len([sql for sql in asked if "pg_postmaster_start_time" in sql]) == 1


class Undo(Exception):
    """Rolls a savepoint back."""


def arguments(database: Database) -> dict[str, Any]:
    """What the tests of the contract suites ask for."""
    found: dict[str, Any] = {"queues": SqlQueues(database, SqlQueue), "storage": SqlStorageEngine(database)}
    if not ERIC_SSE_2_0:
        from contract.test_channel_repositories import SqlRooms
        from eric_sse_sql import SqlSSEChannelRepository

        factory = SqlConnectionsFactory(database)
        channels = SqlSSEChannelRepository(database, factory)
        connections = channels.connections_repository
        found |= {"factory": factory, "channels": channels, "connections": connections}
        found["rooms"] = SqlRooms(database, factory)
    return found


def test_the_contracts_hold_in_a_joined_transaction(database: Database, run: Callable[..., None]) -> None:
    modules = ["test_queue", "test_storage_engine", "test_object_repositories"]
    if not ERIC_SSE_2_0:
        modules.append("test_channel_repositories")
    found = arguments(database)

    def hold(bind: Any, execute: Execute) -> None:
        for test in chain.from_iterable(map(contract, modules)):
            wanted = {name: found[name] for name in inspect.signature(test).parameters}
            with suppress(Undo), database.join(bind), database.transaction():
                test(**wanted)
                raise Undo

    run(hold, commits=False)


def everything(database: Database) -> list[Any]:
    """What calls of every kind return."""
    queue = SqlQueue(database, "q")
    for _ in range(2):
        queue.push(Message("m", 1), message_id="a")
    queue.push_many([Message("m", n) for n in range(2, 6)], message_ids="bcde")
    queue.put_back(queue.take(2), since=time.monotonic())
    with queue.receive(lease=60) as delivery:
        found: list[Any] = [delivery.payload, delivery.delivery_count, queue.pop().payload, len(queue)]
    database.connection().execute(text("UPDATE sse_messages SET message = :blob"), {"blob": b"nonsense"})
    with pytest.raises(NoMessagesException):
        queue.pop()
    found += [database.count_set_aside(), database.retry_set_aside(), len(queue)]
    queue.clear()
    found.append(len(queue))
    return found if ERIC_SSE_2_0 else found + [of_channel(database, replay) for replay in (0, 3600)]


def of_channel(database: Database, replay_seconds: float) -> list[Any]:
    """What calls of a channel and its repository return."""
    from eric_sse_sql import SqlSSEChannelRepository

    channels: Any = SqlSSEChannelRepository(database)
    channel = channels.create({"channel_id": f"c{replay_seconds}", "replay_seconds": replay_seconds})
    kept, gone = channel.add_listener(), channel.add_listener()
    channels.persist(channel)
    for _ in range(2):
        channel.broadcast(Message("m", 1), message_id="to all")
        channel.dispatch(kept.id, Message("m", 2), message_id="to one")
    channel.broadcast(Message("m", 3))
    loaded = channels.load_one(channel.id)
    loaded.get_listener(kept.id).start()
    payloads = [loaded.deliver_next(kept.id).payload for _ in range(3)]
    with pytest.raises(NoMessagesException):
        loaded.deliver_next(kept.id)
    loaded.remove_listener(gone.id)
    channels.persist(loaded)
    connections = channels.load_one(channel.id).get_connections()
    assert [each.listener.id for each in connections] == [kept.id]
    channels.delete(channel.id)
    return [payloads, [each.id for each in channels.load_all()]]


def test_calls_of_every_kind_return_in_a_joined_transaction_what_they_return_in_one_of_the_package(
    database: Database, run: Callable[..., None]
) -> None:
    found: list[list[Any]] = []
    with suppress(Undo), database.transaction():
        found.append(everything(database))
        raise Undo

    def call(bind: Any, execute: Execute) -> None:
        with database.join(bind):
            found.append(everything(database))

    run(call, commits=False)
    assert found[0] == found[1]
