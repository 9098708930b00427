"""``QueueWatch``: a queue that is known to be empty is not queried, and no message is hidden by that."""

from __future__ import annotations

import pytest
from eric_sse.exception import NoMessagesException
from eric_sse.message import Message

from eric_sse_sql import Database, SqlQueue
from eric_sse_sql.wakeups.queue_watch import QueueWatch
from support.queues import pop_soon, pop_until_known_empty
from support.statements import Record, without_polls
from support.waiting import until


def test_a_queue_that_is_known_to_be_empty_is_not_queried(database: Database, statements: Record) -> None:
    queue = SqlQueue(database)
    pop_until_known_empty(queue)
    seen = statements(database)
    for _ in range(1_000):
        with pytest.raises(NoMessagesException):
            queue.pop()
    assert without_polls(seen) == []


def test_a_queue_is_queried_until_it_was_found_empty_twice(worker: Database, statements: Record) -> None:
    queue, seen = SqlQueue(worker), statements(worker)
    for _ in range(2):
        assert not worker.background.poller.is_running
        with pytest.raises(NoMessagesException):
            queue.pop()
    until(lambda: worker.watcher.is_trusted)
    for _ in range(100):
        with pytest.raises(NoMessagesException):
            queue.pop()
    assert len(without_polls(seen)) == 2
    queue.push(Message("n", 7))
    assert queue.pop().payload == 7
    assert len(without_polls(seen)) == 4


def test_a_push_of_this_process_is_popped_at_once(database: Database) -> None:
    queue = SqlQueue(database)
    pop_until_known_empty(queue)
    SqlQueue(database, queue.id).push(Message("n", 7))
    assert queue.pop().payload == 7


def test_a_push_in_a_transaction_is_popped_once_it_is_committed(database: Database) -> None:
    queue = SqlQueue(database)
    pop_until_known_empty(queue)
    with database.transaction():
        queue.push(Message("n", 7))
    assert queue.pop().payload == 7


def test_a_push_in_a_transaction_of_another_process_is_popped_once_it_is_committed(
    worker: Database, producer: Database
) -> None:
    queue, other = SqlQueue(worker, "q"), SqlQueue(producer, "q")
    pop_until_known_empty(queue)
    with producer.transaction():
        other.push(Message("n", 7))
        if worker.engine.dialect.name == "postgresql":  # on SQLite, the query would wait for the writer
            with pytest.raises(NoMessagesException):
                queue.pop()
        assert queue.is_known_empty
    assert pop_soon(queue) == 7


def test_a_message_is_popped_after_the_pop_of_another_process_was_rolled_back(
    worker: Database, producer: Database
) -> None:
    queue, other = SqlQueue(worker, "q"), SqlQueue(producer, "q")
    queue.push(Message("n", 7))
    with pytest.raises(KeyError), producer.transaction():
        assert other.pop().payload == 7
        if worker.engine.dialect.name == "postgresql":  # on SQLite, the query would wait for the writer
            for _ in range(3):
                with pytest.raises(NoMessagesException):
                    queue.pop()
        raise KeyError
    assert pop_soon(queue) == 7


def test_a_message_is_popped_after_the_pop_of_this_process_was_rolled_back(database: Database) -> None:
    queue = SqlQueue(database)
    pop_until_known_empty(queue)
    queue.push(Message("n", 7))
    with pytest.raises(KeyError), database.transaction():
        assert queue.pop().payload == 7
        with pytest.raises(NoMessagesException):
            queue.pop()
        raise KeyError
    assert queue.pop().payload == 7


def test_inside_a_transaction_every_pop_queries_the_database(database: Database) -> None:
    queue = SqlQueue(database)
    pop_until_known_empty(queue)
    with database.transaction():
        queue.push(Message("n", 7))
        assert queue.pop().payload == 7
        queue.push(Message("n", 8))
        queue.push(Message("n", 9))
        with pytest.raises(KeyError), database.transaction():
            queue.pop()
            raise KeyError
    assert [queue.pop().payload, queue.pop().payload] == [8, 9]


def test_a_callback_that_raises_is_unsubscribed_and_the_others_are_called(caplog: pytest.LogCaptureFixture) -> None:
    watch, called = QueueWatch("q", frozenset()), list[str]()

    def fail() -> None:
        called.append("fail")
        raise ValueError

    watch.subscribe(fail)
    watch.subscribe(lambda: called.append("go on"))
    watch.bump()
    watch.bump()
    assert sorted(called) == ["fail", "go on", "go on"]
    assert len(caplog.records) == 1
