"""``Database.prune``: deletes the messages that no connection and no stored queue owns."""

from __future__ import annotations

from datetime import timedelta

from eric_sse.listener import MessageQueueListener
from eric_sse.message import Message
from sqlalchemy import text

from eric_sse_sql import (
    ConnectionRepository,
    Database,
    QueueRepository,
    SqlQueue,
    SqlStorageEngine,
)
from eric_sse_sql.contract import make_connection
from eric_sse_sql.database import Pruned
from eric_sse_sql.models import ConnectionRow, EventRow, MessageIdRow, MessageRow, SetAsideRow
from support.ages import backdate
from support.queues import drain
from support.statements import Record

EVENTS = """
    INSERT INTO sse_events (channel_id, position, message_type, message)
    VALUES ('gone', 1, 'm', :blob), ('gone', 2, 'm', :blob)
"""
LOG = """
    INSERT INTO sse_event_logs (channel_id, epoch, last_position, first_position, last_event_at, replay_seconds)
    VALUES ('gone', '1', 2, 1, CURRENT_TIMESTAMP, 60)
    ON CONFLICT (channel_id) DO UPDATE SET replay_seconds = 60
"""


def test_pruning_deletes_old_messages_of_queues_without_owner(database: Database, statements: Record) -> None:
    storage = SqlStorageEngine(database)
    connected, stored, orphan = (SqlQueue(database) for _ in range(3))
    ConnectionRepository(storage).persist(make_connection(MessageQueueListener(), connected, "c"))
    QueueRepository(storage).persist(stored)
    for queue in (connected, stored, orphan):
        queue.push(Message("old"))
    age = {"sqlite": "datetime('now', '-2 hours')", "postgresql": "now() - interval '2 hours'"}
    with database.engine.begin() as connection:
        connection.execute(text(f"UPDATE sse_messages SET created_at = {age[database.engine.dialect.name]}"))
    orphan.push(Message("new"))
    seen = statements(database)
    assert database.prune(older_than=timedelta(hours=3)) == (0, 0, 0, 0, 0)
    assert len(seen) == 5
    assert database.prune(older_than=timedelta(hours=1)).messages == 1
    assert [len(connected), len(stored), drain(orphan)] == [1, 1, [None]]
    orphan.push(Message("new"))
    assert database.prune(older_than=timedelta(0)).messages == 1


def test_what_would_be_pruned_is_counted_and_then_pruned_with_progress(database: Database) -> None:
    storage = SqlStorageEngine(database)
    connected = SqlQueue(database)
    ConnectionRepository(storage).persist(make_connection(MessageQueueListener(), connected, "c"))
    connected.push(Message("of the connection"))
    orphan = SqlQueue(database)
    orphan.push(Message("m"), message_id="1")
    with database.engine.begin() as connection:
        damage = text("UPDATE sse_messages SET message = :blob WHERE queue_id = :queue_id")
        connection.execute(damage, {"blob": b"damaged", "queue_id": orphan.id})
    assert drain(orphan) == []
    orphan.push(Message("m"))
    with database.engine.begin() as connection:
        connection.execute(text(EVENTS), {"blob": b""})
        connection.execute(text(LOG))
    ages = {"older_than": timedelta(hours=1), "unseen_for": timedelta(hours=1)}
    assert database.count_prunable(**ages) == (0, 0, 0, 0, 0)
    for column in (
        MessageRow.created_at,
        ConnectionRow.created_at,
        SetAsideRow.set_aside_at,
        EventRow.created_at,
        MessageIdRow.created_at,
    ):
        backdate(database, column, timedelta(hours=2))
    expected = Pruned(messages=1, connections=1, set_aside=1, events=2, message_ids=1)
    assert database.count_prunable(**ages) == expected
    assert database.count_prunable(timedelta(hours=1)) == (1, 0, 1, 2, 1)
    pages: list[int] = []
    assert database.prune(**ages, on_progress=pages.append) == expected
    assert sum(pages) == sum(expected)
    assert database.count_prunable(**ages) == (0, 0, 0, 0, 0)
