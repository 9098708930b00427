"""Messages that can't be decoded: they are set aside, each with one log line, and the next ones are delivered."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
from eric_sse.exception import NoMessagesException
from eric_sse.message import Message
from sqlalchemy import text

from eric_sse_sql import Database, PickleCodec, SqlQueue
from support.application import Point
from support.catalog import table_counts
from support.queues import drain

EMPTY = {"kv_entries": 0, "sse_channels": 0, "sse_connections": 0, "sse_messages": 0}


def damage(database: Database, payload_number: int) -> bytes:
    """Damage one of the waiting messages. What its blob was before."""
    with database.engine.begin() as connection:
        row = text("SELECT id, message FROM sse_messages ORDER BY id LIMIT 1 OFFSET :number")
        message_id, good = connection.execute(row, {"number": payload_number}).one()
        change = text("UPDATE sse_messages SET message = :blob WHERE id = :id")
        connection.execute(change, {"blob": b"damaged", "id": message_id})
    return bytes(good)


def repair(database: Database, good: bytes) -> None:
    """Repair all messages that were set aside."""
    with database.engine.begin() as connection:
        connection.execute(text("UPDATE sse_set_aside_messages SET message = :blob"), {"blob": good})


def received(queue: SqlQueue) -> list[Any]:
    """Receive all messages that wait. Their payloads."""
    payloads = []
    with suppress(NoMessagesException):
        while True:
            with queue.receive() as delivery:
                payloads.append(delivery.payload)
    return payloads


TAKES: dict[str, Callable[[SqlQueue], list[Any]]] = {"pop": drain, "receive": received}
taken_by = pytest.mark.parametrize("take", TAKES.values(), ids=TAKES)


@taken_by
def test_an_unreadable_message_is_set_aside_and_the_next_one_is_delivered(
    database: Database, caplog: pytest.LogCaptureFixture, take: Callable[[SqlQueue], list[Any]]
) -> None:
    queue = SqlQueue(database, "queue")
    queue.push_many(Message("m", n) for n in range(4))
    damage(database, 1)
    damage(database, 2)
    assert take(queue) == [0, 3]
    assert table_counts(database) == {**EMPTY, "sse_set_aside_messages": 2}
    with database.engine.connect() as connection:
        rows = connection.execute(text("SELECT * FROM sse_set_aside_messages ORDER BY id")).mappings().all()
    for row, record in zip(rows, caplog.records, strict=True):
        assert (row["queue_id"], row["message_type"], bytes(row["message"])) == ("queue", "m", b"damaged")
        assert "damaged" in row["reason"]
        assert record.levelname == "WARNING"
        assert f"message {row['id']} of queue queue" in record.getMessage()


@taken_by
def test_messages_that_were_set_aside_are_counted_and_put_back_at_their_places(
    database: Database, take: Callable[[SqlQueue], list[Any]]
) -> None:
    queue = SqlQueue(database)
    queue.push_many(Message("m", n) for n in range(3))
    good = damage(database, 0)
    assert database.count_set_aside() == 0
    assert queue.pop().payload == 1
    assert database.count_set_aside() == 1
    repair(database, good)
    assert database.retry_set_aside() == 1
    assert (database.count_set_aside(), database.retry_set_aside()) == (0, 0)
    assert take(queue) == [0, 2]


def test_a_message_that_is_still_unreadable_is_set_aside_again(database: Database) -> None:
    queue = SqlQueue(database)
    queue.push_many(Message("m", n) for n in range(2))
    damage(database, 0)
    for expected in ([1], [], []):
        assert drain(queue) == expected
        assert database.count_set_aside() == 1
        assert database.retry_set_aside() == 1


def test_messages_that_have_the_number_of_another_one_are_set_aside_and_put_back(database: Database) -> None:
    queue = SqlQueue(database)
    good = b""
    for n in range(3):
        queue.push(Message("m", n))
        good = damage(database, 0)
        give_first_number(database, n)
        assert (drain(queue), database.count_set_aside()) == ([], n + 1)
    repair(database, good)
    queue.push(Message("m", 3))
    give_first_number(database, 3)
    assert database.retry_set_aside() == 3
    assert (database.count_set_aside(), drain(queue)) == (0, [3, 2, 2, 2])


def give_first_number(database: Database, hour: int) -> None:
    """Give the only message that waits the first number, as after TRUNCATE ... RESTART IDENTITY, and a time of push."""
    with database.engine.begin() as connection:
        change = text("UPDATE sse_messages SET id = 1, created_at = :moment")
        connection.execute(change, {"moment": f"2026-01-01 {hour:02}:00:00"})


def test_an_unreadable_message_of_a_class_that_is_not_allowed_names_the_class(
    database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    reader = SqlQueue(database)
    with Database(database.engine, codec=PickleCodec(unrestricted=True)) as writer:
        SqlQueue(writer, reader.id).push_many([Message("m", Point(1, 2)), Message("m", 3)])
        assert drain(reader) == [3]
        (record,) = caplog.records
        assert "Point" in record.getMessage()
        with database.engine.connect() as connection:
            assert "Point" in str(connection.scalar(text("SELECT reason FROM sse_set_aside_messages")))


@taken_by
def test_setting_aside_in_a_transaction_is_rolled_back_with_it(
    database: Database, take: Callable[[SqlQueue], list[Any]]
) -> None:
    queue = SqlQueue(database)
    queue.push_many(Message("m", n) for n in range(2))
    good = damage(database, 0)
    with pytest.raises(KeyError), database.transaction():
        assert take(queue) == [1]
        raise KeyError
    assert (len(queue), database.count_set_aside()) == (2, 0)
    with database.engine.begin() as connection:
        repaired = text("UPDATE sse_messages SET message = :blob WHERE message = :damaged")
        connection.execute(repaired, {"blob": good, "damaged": b"damaged"})
    assert drain(queue) == [0, 1]


def test_messages_that_were_set_aside_are_listed_in_pages_and_deleted(database: Database) -> None:
    queue = SqlQueue(database, "queue")
    queue.push_many(Message("m", n) for n in range(3))
    for number in range(3):
        damage(database, number)
    assert drain(queue) == []
    first, second, third = database.list_set_aside()
    assert (first.queue_id, first.message_type, first.head) == ("queue", "m", b"damaged")
    assert "damaged" in first.reason
    assert 0 <= first.age_seconds < 60
    assert [each.id for each in database.list_set_aside(first.id, 1)] == [second.id]
    assert database.delete_set_aside([second.id, -5]) == 1
    assert [each.id for each in database.list_set_aside()] == [first.id, third.id]
    assert (database.delete_set_aside(), database.delete_set_aside(), database.list_set_aside()) == (2, 0, [])
