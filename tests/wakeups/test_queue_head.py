"""``QueueHead``: pops stay fast beside an old snapshot, which keeps deleted rows, and no producer is overtaken."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
import pytest
from eric_sse.exception import NoMessagesException
from eric_sse.message import Message
from sqlalchemy import URL, create_engine, text
from sqlalchemy.orm import Session

from eric_sse_sql import Database, SqlQueue
from eric_sse_sql.wakeups import queue_head
from eric_sse_sql.wakeups.queue_head import QueueHead
from support.catalog import conninfo

DELETED = 20_000  # messages at the head of the queue
SEARCHES = 3  # from the beginning, before others begin after an id


@pytest.fixture(autouse=True)
def after_one_slow_search(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ids are used after one slow search, not after many."""
    monkeypatch.setattr(queue_head, "SLOW_SEARCHES", 1)


@pytest.fixture
def url(new_postgres: Callable[[], URL]) -> URL:
    made = new_postgres()
    with Database(made) as database:
        database.upgrade()
    return made


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each search counts as slow, and none begins at the beginning again without need."""
    monkeypatch.setattr(queue_head, "SLOW_SECONDS", 0.0)
    monkeypatch.setattr(queue_head, "MIN_GAIN", 0.0)
    monkeypatch.setattr(queue_head, "MAX_DUTY_CYCLE", 1e-9)


def push(queue: SqlQueue, *payloads: object) -> None:
    queue.push_many([Message("m", payload) for payload in payloads])


def pop(queue: SqlQueue) -> Any:
    return queue.pop().payload


@contextmanager
def old_snapshot(url: URL) -> Iterator[None]:
    """An open transaction, which may read all rows that are deleted meanwhile."""
    with psycopg.connect(conninfo(url)) as connection:
        connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        connection.execute("SELECT count(*) FROM sse_messages")
        yield


def delete_messages(url: URL, queue_id: str) -> None:
    """Leave deleted rows at the head of a queue."""
    with psycopg.connect(conninfo(url)) as connection:
        connection.execute(
            "INSERT INTO sse_messages (queue_id, message_type, message) "
            "SELECT %s, 'm', 'm' FROM generate_series(1, %s)",
            [queue_id, DELETED],
        )
        connection.execute("DELETE FROM sse_messages")


def pop_one(queue: SqlQueue) -> None:
    queue.pop()


def receive_one(queue: SqlQueue) -> None:
    with queue.receive():
        pass


def take_one(queue: SqlQueue) -> None:
    assert len(queue.take(1)) == 1


def pop_in_transaction(queue: SqlQueue) -> None:
    with queue.database.transaction():
        queue.pop()


@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize("call", [pop_one, receive_one, take_one, pop_in_transaction])
def test_a_search_passes_few_deleted_rows_beside_an_old_snapshot(url: URL, call: Callable[[SqlQueue], None]) -> None:
    engine = create_engine(url, pool_size=1, max_overflow=0)
    with old_snapshot(url), Database(engine) as database:
        queue = SqlQueue(database, "q")
        delete_messages(url, "q")
        push(queue, *range(2 * SEARCHES))

        def entries_read() -> int:
            with engine.begin() as connection:
                connection.execute(text("SELECT pg_stat_force_next_flush()"))
            with engine.begin() as connection:
                read = "SELECT sum(idx_tup_read) FROM pg_stat_user_indexes WHERE relname = 'sse_messages'"
                return int(connection.scalar(text(read)) or 0)

        before = entries_read()
        call(queue)
        assert entries_read() - before >= DELETED
        for _ in range(SEARCHES):
            call(queue)
        before = entries_read()
        call(queue)
        assert entries_read() - before <= 100
    engine.dispose()


@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize("kind", ["transaction", "joined transaction"])
def test_a_message_that_is_committed_late_is_not_overtaken_by_a_later_one_of_its_producer(url: URL, kind: str) -> None:
    engine = create_engine(url)
    with Database(url) as consumer, Database(url) as producer, Session(engine) as session:
        queue, theirs = SqlQueue(consumer, "q"), SqlQueue(producer, "q")
        with producer.transaction() if kind == "transaction" else producer.join(session):
            push(theirs, "early")
            push(queue, *range(4 * SEARCHES))
            popped = [pop(queue) for _ in range(2 * SEARCHES)]
            session.commit()
        push(theirs, "late")
        popped += [pop(queue) for _ in range(2 * SEARCHES + 2)]
        assert popped.index("early") < popped.index("late")
        assert popped.index("early") == 2 * SEARCHES
        assert queue.watch.head.after > 0
    engine.dispose()


@pytest.mark.usefixtures("at_once")
def test_a_message_that_is_back_in_its_place_comes_first(url: URL) -> None:
    with Database(url) as database:
        queue = SqlQueue(database, "q")
        push(queue, *range(40))
        taken = queue.take(2)
        popped = [pop(queue) for _ in range(SEARCHES + 1)]
        assert queue.watch.head.after > 0
        queue.put_back(taken)
        assert [pop(queue) for _ in range(2)] == [0, 1]
        for _ in range(2):
            with pytest.raises(ZeroDivisionError), queue.receive() as delivery:
                popped.append(delivery.payload)
                [pop(queue) for _ in range(2 * SEARCHES)]
                raise ZeroDivisionError
            assert pop(queue) == popped[-1]


@pytest.mark.usefixtures("at_once")
def test_the_last_messages_are_found_wherever_they_are(url: URL) -> None:
    with Database(url) as database, Database(url) as other:
        queue = SqlQueue(database, "q")
        push(queue, *range(10))
        taken = queue.take(1)
        for _ in range(SEARCHES + 2):
            pop(queue)
        assert queue.watch.head.after > 0
        SqlQueue(other, "q").put_back(taken)
        assert [pop(queue) for _ in range(5)] == [6, 7, 8, 9, 0]
        with pytest.raises(NoMessagesException):
            queue.pop()


def test_a_message_of_another_process_that_is_back_in_its_place_is_not_starved(
    url: URL, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queue_head, "SLOW_SECONDS", 0.0)
    monkeypatch.setattr(queue_head, "MIN_GAIN", 0.0)
    with Database(url) as database, Database(url) as other:
        queue = SqlQueue(database, "q")
        push(queue, "old", *range(SEARCHES + 1))
        taken = queue.take(1)
        for _ in range(SEARCHES + 1):
            pop(queue)
        assert queue.watch.head.after > 0
        SqlQueue(other, "q").put_back(taken)
        give_up = time.monotonic() + 10
        while True:
            push(queue, "new", "new")
            if pop(queue) == "old":
                break
            assert time.monotonic() < give_up


def test_searches_from_the_beginning_go_on_where_others_are_no_faster() -> None:
    head, starts = QueueHead(), []

    def search(after: int) -> list[tuple[int]]:
        starts.append(after)
        time.sleep(0.002)
        return [(len(starts),)]

    give_up = time.monotonic() + 0.5
    while time.monotonic() < give_up:
        head.search(search, lambda row: row[0], frozenset)
    assert head.after == 0
    assert 0 < sum(after > 0 for after in starts) < 20


def test_fast_searches_ask_for_no_transactions() -> None:
    head = QueueHead()

    def fail() -> frozenset[str]:
        raise AssertionError

    for _ in range(100):
        assert head.search(lambda after: [(1,)], lambda row: row[0], fail) == [(1,)]
    assert head.after == 0
