"""``SqlQueue``: first in, first out, at most once, for any number of processes."""

from __future__ import annotations

import signal
import threading
import time

import pytest
from eric_sse.exception import NoMessagesException, RepositoryError
from eric_sse.listener import MessageQueueListener
from eric_sse.message import Message
from sqlalchemy import text

from eric_sse_sql import (
    BlockingSqlQueue,
    Database,
    SqlConnectionsFactory,
    SqlQueue,
)
from support.catalog import table_counts
from support.queues import drain
from support.statements import Record


def test_push_and_pop_are_one_statement_each(database: Database, statements: Record) -> None:
    queue, seen = SqlQueue(database), statements(database)
    queue.push(Message("m"))
    assert len(seen) == 1
    queue.pop()
    assert len(seen) == 2
    with pytest.raises(NoMessagesException):
        queue.pop()
    assert len(seen) == 3


def test_queues_with_the_same_id_share_their_messages(database: Database) -> None:
    SqlQueue(database, "shared").push(Message("m", 1))
    SqlQueue(database, "Shared").push(Message("m", 2))
    assert drain(SqlQueue(database, "shared")) == [1]
    assert drain(SqlQueue(database, "shared2")) == []


def test_messages_that_are_put_back_twice_are_stored_once(database: Database) -> None:
    queue = SqlQueue(database)
    queue.push_many(Message("m", n) for n in range(4))
    taken = queue.take(3)
    queue.put_back(taken[:2])
    queue.put_back(taken)  # as after a commit whose answer was lost
    assert [queue.pop().payload for _ in range(len(queue))] == [0, 1, 2, 3]


def test_each_queue_has_an_id_of_its_own(database: Database) -> None:
    assert SqlQueue(database).id != SqlQueue(database).id
    assert SqlQueue(database, "").id == ""
    with pytest.raises(RepositoryError, match="a queue id must be a str"):
        SqlQueue(database, 7)  # type: ignore[arg-type]


def test_a_message_that_can_not_be_stored_is_not_pushed(database: Database) -> None:
    queue = SqlQueue(database)
    with pytest.raises(RepositoryError, match=r"function .* can't be stored"):
        queue.push(Message("m", lambda: None))  # type: ignore[arg-type]
    assert table_counts(database)["sse_messages"] == 0


@pytest.mark.parametrize("kind", ["a\0b", "\ud800", "x" * 1_000, 7, None])
def test_any_message_type_can_be_pushed(database: Database, kind: str) -> None:
    queue = SqlQueue(database)
    queue.push(Message(kind))
    assert queue.pop().type == kind


def test_plain_sql_shows_the_type_of_a_message(database: Database) -> None:
    SqlQueue(database, "q").push(Message("greeting", "hello"))
    with database.engine.connect() as connection:
        row = connection.execute(text("SELECT queue_id, message_type, created_at FROM sse_messages")).one()
    assert row[:2] == ("q", "greeting") and row[2] is not None


def test_the_id_of_a_message_is_never_used_again(database: Database) -> None:
    queue = SqlQueue(database)
    numbers = []
    for _ in range(3):
        queue.push(Message("m"))
        with database.engine.connect() as connection:
            numbers.append(connection.scalar(text("SELECT max(id) FROM sse_messages")))
        queue.pop()
    assert numbers == sorted(set(numbers))


# Many messages at once


def test_many_messages_are_pushed_in_their_order_by_one_statement(database: Database, statements: Record) -> None:
    queue, seen = SqlQueue(database), statements(database)
    queue.push(Message("n", 0))
    queue.push_many(Message("n", n) for n in range(1, 1_000))
    assert len(seen) == 2
    queue.push_many([])
    assert len(seen) == 2
    assert drain(queue) == list(range(1_000))


def test_when_one_of_many_messages_can_not_be_stored_none_is_pushed(database: Database) -> None:
    queue = SqlQueue(database)
    with pytest.raises(RepositoryError, match="can't be stored"):
        queue.push_many([Message("n", 1), Message("n", lambda: None)])  # type: ignore[arg-type]
    assert len(queue) == 0


def test_a_queue_is_as_long_as_it_has_messages_and_true_without_any(database: Database, statements: Record) -> None:
    queue, other = SqlQueue(database), SqlQueue(database)
    queue.push_many(Message("n", n) for n in range(3))
    other.push(Message("n"))
    seen = statements(database)
    assert len(queue) == 3 and len(seen) == 1
    queue.clear()
    assert len(seen) == 3
    assert (len(queue), len(other)) == (0, 1)
    seen.clear()
    assert queue and other
    assert not seen


# At least once


def test_a_received_message_is_deleted_when_the_block_ends(database: Database, statements: Record) -> None:
    queue = SqlQueue(database)
    queue.push(Message("order", 7))
    seen = statements(database)
    with queue.receive() as delivery:
        assert (delivery.type, delivery.payload, delivery.delivery_count) == ("order", 7, 1)
        assert type(delivery.message) is Message
    assert len(seen) == 2
    with pytest.raises(NoMessagesException), queue.receive():
        pass
    assert table_counts(database)["sse_messages"] == 0


def test_a_leased_message_is_given_to_no_other_consumer(database: Database) -> None:
    queue = SqlQueue(database)
    queue.push_many(Message("n", n) for n in range(3))
    with queue.receive() as first, queue.receive() as second:
        assert (first.payload, second.payload, len(queue)) == (0, 1, 1)
        assert queue.pop().payload == 2
        with pytest.raises(NoMessagesException):
            queue.pop()


def test_a_message_whose_block_raises_returns_to_its_place(database: Database) -> None:
    queue = SqlQueue(database)
    queue.push_many(Message("n", n) for n in range(3))
    for error in (KeyError, KeyboardInterrupt):
        with pytest.raises(error), queue.receive():
            raise error
    with queue.receive() as delivery:
        assert (delivery.payload, delivery.delivery_count) == (0, 3)
    assert drain(queue) == [1, 2]


def test_acknowledging_after_the_lease_has_expired_is_an_error(database: Database) -> None:
    queue = SqlQueue(database)
    queue.push(Message("n", 7))
    with pytest.raises(RepositoryError, match=r"the lease of 0.01 seconds had expired .* longer lease"):  # noqa: SIM117
        with queue.receive(lease=0.01):
            time.sleep(0.05)
            with queue.receive() as other:
                assert (other.payload, other.delivery_count) == (7, 2)
                time.sleep(0.05)
    assert len(queue) == 0


def test_a_message_of_a_dead_consumer_is_delivered_again_when_its_lease_has_expired(database: Database) -> None:
    queue = SqlQueue(database)
    queue.push_many([Message("n", 0), Message("n", 1)])
    leased = queue.receive(0.2)
    leased.__enter__()  # and no more: its process has died
    assert queue.pop().payload == 1
    waited = BlockingSqlQueue(database, queue.id).receive(timeout=30)
    with waited as delivery:
        assert (delivery.payload, delivery.delivery_count) == (0, 2)


@pytest.mark.parametrize("lease", [0, -1, float("nan")])
def test_a_lease_must_be_a_positive_number_of_seconds(database: Database, lease: float) -> None:
    queue = SqlQueue(database)
    queue.push(Message("n"))
    with pytest.raises(RepositoryError, match="longer than 0 seconds"), queue.receive(lease=lease):
        pass
    assert len(queue) == 1


def test_in_a_transaction_that_is_rolled_back_a_message_is_not_acknowledged(database: Database) -> None:
    queue = SqlQueue(database)
    queue.push(Message("n", 7))
    with pytest.raises(KeyError), database.transaction():
        with queue.receive() as delivery:
            assert delivery.payload == 7
        raise KeyError
    with queue.receive() as delivery:
        assert delivery.delivery_count == 1


def test_plain_sql_shows_how_many_messages_are_leased(database: Database) -> None:
    queue = SqlQueue(database, "q")
    queue.push_many(Message("n", n) for n in range(3))
    with queue.receive(), database.engine.connect() as connection:
        row = connection.execute(text("SELECT queue_id, depth, leased FROM sse_queue_overview")).one()
    assert tuple(row) == ("q", 3, 1)


# Blocking


def test_a_blocking_queue_with_messages_returns_one_at_once(database: Database) -> None:
    queue = BlockingSqlQueue(database)
    queue.push_many([Message("n", 0), Message("n", 1)])
    assert queue.pop().payload == 0
    with queue.receive() as delivery:
        assert delivery.payload == 1


def test_a_blocking_queue_waits_for_a_message(database: Database) -> None:
    queue = BlockingSqlQueue(database)
    timer = threading.Timer(0.05, lambda: SqlQueue(database, queue.id).push(Message("n", 7)))
    timer.start()
    assert queue.pop().payload == 7
    timer.join()


def test_a_blocking_queue_raises_after_its_timeout(database: Database) -> None:
    queue = BlockingSqlQueue(database)
    for timeout in (0, 0.02, -1):
        with pytest.raises(NoMessagesException):
            queue.pop(timeout=timeout)
        with pytest.raises(NoMessagesException), queue.receive(timeout=timeout):
            pass


def test_closing_the_database_ends_the_wait(database: Database) -> None:
    caught: list[Exception] = []

    def wait() -> None:
        try:
            BlockingSqlQueue(other, "q").pop()
        except Exception as error:
            caught.append(error)

    other = Database(database.engine)  # which closing leaves open
    thread = threading.Thread(target=wait)
    thread.start()
    time.sleep(0.05)
    other.close()
    thread.join(30)
    (error,) = caught
    assert isinstance(error, RepositoryError) and "closed" in str(error)


def test_an_interrupt_ends_the_wait(database: Database) -> None:
    queue = BlockingSqlQueue(database)
    timer = threading.Timer(0.1, lambda: signal.raise_signal(signal.SIGINT))
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore the signal
    try:
        timer.start()
        with pytest.raises(KeyboardInterrupt):
            queue.pop()
    finally:
        timer.join()
        signal.signal(signal.SIGINT, before)


# Connections


@pytest.mark.parametrize("queue_class", [SqlQueue, BlockingSqlQueue])
def test_a_factory_connects_listeners_to_queues_of_its_class(database: Database, queue_class: type[SqlQueue]) -> None:
    factory, listener = SqlConnectionsFactory(database, queue_class), MessageQueueListener()
    one, other = factory.create(listener), factory.create()
    assert one.listener is listener and other.listener.id != listener.id
    assert type(one.queue) is type(other.queue) is queue_class
    assert len({one.id, other.id}) == len({one.queue.id, other.queue.id}) == 2


def test_a_message_whose_number_another_one_has_got_goes_back_to_the_end(database: Database) -> None:
    queue, other = SqlQueue(database), SqlQueue(database)
    queue.push_many(Message("m", n) for n in range(3))
    taken = queue.take(3)
    restart_at = {
        "postgresql": f"ALTER TABLE sse_messages ALTER COLUMN id RESTART WITH {taken[-1].id}",
        "sqlite": f"UPDATE sqlite_sequence SET seq = {taken[-1].id - 1} WHERE name = 'sse_messages'",
    }
    with database.engine.begin() as connection:
        connection.execute(text(restart_at[database.engine.dialect.name]))
    other.push(Message("m", "other"))
    queue.push(Message("m", 3))
    queue.put_back(taken)
    assert drain(other) == ["other"]
    assert drain(queue) == [0, 1, 3, 2]
