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
from support.queues import drain
from support.statements import Record


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
