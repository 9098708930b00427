"""Transactions of an application through other drivers than the package's own."""

from __future__ import annotations

import inspect
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import chain
from typing import Any

import pytest
from eric_sse.exception import RepositoryError
from eric_sse.message import Message
from sqlalchemy import URL, text

from eric_sse_sql import BlockingSqlQueue, Database, SqlConnectionsFactory, SqlQueue, SqlStorageEngine
from eric_sse_sql.contract import ERIC_SSE_2_0
from eric_sse_sql.errors import sqlstate
from support.application import ApplicationError
from support.catalog import connected
from support.databases import opened
from support.drivers import APPLICATIONS, Execute, application, contract
from support.queues import SqlQueues, drain
from support.waiting import DEADLINE


@pytest.fixture
def database(postgres: URL) -> Iterator[Database]:
    with opened(postgres) as made:
        with made.transaction():
            made.connection().execute(text("CREATE TABLE orders (number INTEGER PRIMARY KEY)"))
        yield made
        with made.transaction():
            made.connection().execute(text("DROP TABLE orders"))


@pytest.fixture(params=APPLICATIONS)
def run(request: pytest.FixtureRequest, database: Database) -> Callable[..., None]:
    """Runs work in a transaction of an application."""
    run_in = application(request.param)
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
        execute("ALTER TABLE sse_messages ADD CONSTRAINT refuse CHECK (message_type <> 'forbidden')")
        execute("INSERT INTO orders VALUES (1)")
        with database.join(bind):
            queue.push(Message("order", 1))
            with pytest.raises(RepositoryError) as refused:
                queue.push(Message("forbidden", "secret"))
            errors.append(refused.value)
            with pytest.raises(RepositoryError):
                queue.push_many([Message("order", 2), Message("forbidden")])
            with suppress(Undo), database.transaction():
                queue.push(Message("order", 3))
                raise Undo
            queue.push(Message("order", 4))
        execute("INSERT INTO orders VALUES (2)")
        execute("ALTER TABLE sse_messages DROP CONSTRAINT refuse")

    run(place)
    assert stored(database) == ([1, 2], [1, 4])
    cause = errors[0].__cause__
    assert sqlstate(cause) == "23514"
    assert "forbidden" not in "".join(traceback.format_exception(cause))  # as the line DETAIL quotes the row


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
    database: Database, run: Callable[..., None], new_postgres: Callable[[], URL]
) -> None:
    def refused(bind: Any, execute: Execute) -> None:
        with database.join(bind):
            SqlQueue(database, "q").push(Message("order", 1))

    with pytest.raises(RepositoryError, match="is in autocommit"):
        run(refused, isolation_level="AUTOCOMMIT")
    with pytest.raises(RepositoryError, match="leads to another database"):
        run(refused, url=new_postgres())
    assert stored(database) == ([], [])


def test_a_connection_that_the_server_has_closed_is_reported(database: Database, run: Callable[..., None]) -> None:
    def cut(bind: Any, execute: Execute) -> None:
        with database.join(bind):
            SqlQueue(database, "q").push(Message("order", 1))
            with connected(database.engine.url) as admin:
                admin.execute(text("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE state LIKE '%in tr%'"))
            with pytest.raises(RepositoryError, match="the server can't be reached or has closed the connection"):
                SqlQueue(database, "q").push(Message("order", 2))
        raise ApplicationError

    with pytest.raises(ApplicationError):
        run(cut)
    assert stored(database) == ([], [])


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
