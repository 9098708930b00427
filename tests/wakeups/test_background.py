"""``Background``: the databases on one engine share their threads and one listening connection."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import pytest
from eric_sse.message import Message
from sqlalchemy import URL, create_engine, event, text

from eric_sse_sql import Database, SqlQueue
from support.queues import pop_soon, pop_until_known_empty
from support.threads import NOTIFIER, WATCHER, background_threads
from support.waiting import until

TENANTS = 5


@pytest.fixture
def tenants(new_postgres: Callable[[], URL]) -> Iterator[list[Database]]:
    """Databases on one engine of an application, each in a schema of its own."""
    engine = create_engine(new_postgres())
    databases = [Database(engine, schema=f"tenant_{number}") for number in range(TENANTS)]
    for database in databases:
        database.upgrade()
    yield databases
    for database in databases:
        database.close()
    assert background_threads() == []
    engine.dispose()


def test_the_databases_of_one_engine_share_a_thread_and_a_listening_connection(tenants: list[Database]) -> None:
    queues = [SqlQueue(database) for database in tenants]
    for queue in queues:
        pop_until_known_empty(queue)
    assert [thread.name for thread in background_threads()] == [WATCHER]
    with tenants[0].engine.connect() as connection:
        assert connection.scalar(text("SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'LISTEN%'")) == 1
    with Database(tenants[0].engine.url, schema="tenant_3") as producer:
        SqlQueue(producer, queues[3].id).push(Message("n", 3))
        assert pop_soon(queues[3]) == 3


def test_one_notification_window_serves_all_databases_of_an_engine(tenants: list[Database]) -> None:
    for _ in range(3):
        for database in tenants:
            SqlQueue(database).push(Message("n", 1))
    assert [thread.name for thread in background_threads()] == [NOTIFIER]


def test_closing_one_database_leaves_the_others_awake(tenants: list[Database]) -> None:
    first, second = tenants[:2]
    queue = SqlQueue(second)
    pop_until_known_empty(SqlQueue(first))
    pop_until_known_empty(queue)
    first.close()
    assert second.background.poller.is_running
    with Database(second.engine.url, schema=second.schema) as producer:
        SqlQueue(producer, queue.id).push(Message("n", 1))
        assert pop_soon(queue) == 1


def test_a_closed_database_has_sent_the_notification_that_it_owed(tenants: list[Database]) -> None:
    first = tenants[0]
    with Database(first.engine.url, schema=first.schema) as worker:
        queue = SqlQueue(worker)
        pop_until_known_empty(queue)
        SqlQueue(first, queue.id).push(Message("n", 1))
        SqlQueue(first, queue.id).push(Message("n", 2))
        first.close()
        assert [pop_soon(queue), pop_soon(queue)] == [1, 2]


def test_a_database_whose_tables_are_gone_does_not_delay_the_others(tenants: list[Database]) -> None:
    broken, working = tenants[:2]
    queue, lost = SqlQueue(working), SqlQueue(broken)
    pop_until_known_empty(lost)
    pop_until_known_empty(queue)
    with broken.engine.begin() as connection:
        connection.execute(text("DROP SCHEMA tenant_0 CASCADE"))
    until(lambda: not broken.watcher.is_trusted)
    with Database(working.engine.url, schema=working.schema) as producer:
        for number in range(5):
            pop_until_known_empty(queue)
            began = time.monotonic()
            SqlQueue(producer, queue.id).push(Message("n", number))
            assert pop_soon(queue) == number
            if time.monotonic() - began < 0.5:
                break
        else:
            raise AssertionError("no push was noticed at once")


def test_a_window_widens_while_notifications_are_slow(notifying: Database) -> None:
    database = notifying
    sent: list[float] = []

    @event.listens_for(database.engine, "before_cursor_execute")
    def slow(connection: object, cursor: object, statement: str, *others: object) -> None:
        if statement.startswith("SELECT pg_notify"):
            sent.append(time.monotonic())
            time.sleep(0.02)  # as where many processes notify and many listen

    queue = SqlQueue(database)
    give_up = time.monotonic() + 1.5
    while time.monotonic() < give_up:
        queue.push(Message("n", 1))
    assert 3 <= len(sent) <= 12  # of 75 windows of 20 ms: each is ten times as long as its notification


@pytest.fixture
def notifying(migrated_postgres: URL) -> Iterator[Database]:
    """A database whose notifications a test may slow down."""
    with Database(migrated_postgres) as database:
        yield database
        SqlQueue(database).clear()
        with database.engine.begin() as connection:
            connection.execute(text("TRUNCATE sse_messages"))
