"""Migration 0004: delivered messages become events of a log, and come back by a downgrade."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
from alembic import command
from eric_sse.listener import MessageQueueListener
from eric_sse.message import Message
from sqlalchemy import URL, text

from eric_sse_sql import Database, PickleCodec, SqlQueue, migrations
from eric_sse_sql.contract import ERIC_SSE_2_0, make_connection
from support.catalog import catalog, connected
from support.queues import drain
from support.waiting import DEADLINE

if ERIC_SSE_2_0:
    pytest.skip("eric-sse 2.0 has no channel with delivered messages", allow_module_level=True)

from eric_sse_sql import SqlSSEChannelRepository

BEFORE, HERE = "eric_sse_sql_0003", "eric_sse_sql_0004"
CODECS = {"unsigned": PickleCodec(), "signed": PickleCodec(signing_keys=[b"0123456789abcdef"])}
Rows = list[tuple[Any, ...]]


def listener(name: str) -> MessageQueueListener:
    made = MessageQueueListener()
    made.id = f"listener {name}"
    return made


def rows(url: URL, query: str) -> Rows:
    with connected(url) as connection:
        return [tuple(row) for row in connection.execute(text(query))]


def filled(url: URL, codec: PickleCodec) -> None:
    """The tables of 0003. Of the channel "news", 0 and 1 were delivered to a, and 2 to b; 3 waits for a, 4 for b."""
    with Database(url, codec=codec) as database:
        database.upgrade()
        repository = SqlSSEChannelRepository(database)
        for channel_id in ("news", "other"):
            channel = repository.create({"channel_id": channel_id, "replay_seconds": 3600})
            for name in "ab":
                queue = SqlQueue(database, f"{channel_id} {name}")
                channel.register_connection(make_connection(listener(queue.id), queue, queue.id))
            repository.persist(channel)
    command.downgrade(migrations.config(url), BEFORE)
    with Database(url, codec=codec) as database, connected(url) as connection:
        delivered = "INSERT INTO sse_delivered_messages (queue_id, position, message_type, message, delivered_at) "
        delivered += "VALUES (:queue_id, :position, 'm', :message, :at)"
        waiting = "INSERT INTO sse_messages (queue_id, message_type, message) VALUES (:queue_id, 'm', :message)"
        now = datetime.now(timezone.utc)
        for statement, name, position, payload in (
            (delivered, "a", 1, 0),
            (delivered, "a", 2, 1),
            (delivered, "b", 1, 2),
            (waiting, "a", None, 3),
            (waiting, "b", None, 4),
        ):
            queue = SqlQueue(database, f"news {name}")
            blob = codec.encode(Message("m", payload), queue.context, database)
            row: dict[str, Any] = {"queue_id": queue.id, "message": blob}
            if position is not None:
                row |= {"position": position, "at": str(now - timedelta(seconds=10 - payload))}
            connection.execute(text(statement), row)
        for name, last in (("a", 2), ("b", 1)):
            positions = "INSERT INTO sse_delivery_positions (queue_id, last_position) VALUES (:queue_id, :last)"
            connection.execute(text(positions), {"queue_id": f"news {name}", "last": last})


def read(database: Database, name: str, count: int, *last_event_id: str) -> list[Any]:
    """The first events of a new stream."""

    async def main() -> list[Any]:
        channel = SqlSSEChannelRepository(database).load_one("news")
        found = channel.get_listener(f"listener news {name}")
        found.start()
        async with aclosing(channel.message_stream(found, *last_event_id)) as stream:
            return [await asyncio.wait_for(anext(stream), DEADLINE) for _ in range(count)]

    return asyncio.run(main())


def payloads(events: list[Any]) -> list[Any]:
    return ["reset" if event["event"] == "reset" else event["data"] for event in events]


@pytest.mark.parametrize("codec", CODECS.values(), ids=CODECS)
def test_delivered_and_waiting_messages_are_events_of_their_listeners_after_the_upgrade(
    empty_url: URL, codec: PickleCodec
) -> None:
    filled(empty_url, codec)
    with Database(empty_url, codec=codec) as database:
        database.upgrade()
        assert rows(empty_url, "SELECT count(*) FROM sse_messages") == [(0,)]
        logs = "SELECT last_position, first_position FROM sse_event_logs WHERE channel_id = 'news'"
        assert rows(empty_url, logs) == [(5, 1)]
        channel = SqlSSEChannelRepository(database).load_one("news")
        channel.broadcast(Message("m", "new"))
        # Without an id, each goes on after what was delivered to it.
        assert payloads(read(database, "a", 2)) == [3, "new"]
        assert payloads(read(database, "b", 2)) == [4, "new"]
        # With an id from before, all that is kept comes again.
        first = read(database, "a", 5, "1")
        assert payloads(first) == ["reset", 0, 1, 3, "new"]
        assert payloads(read(database, "a", 2, first[2]["id"])) == [3, "new"]
        assert payloads(read(database, "b", 4, "1")) == ["reset", 2, 4, "new"]


@pytest.mark.parametrize("codec", CODECS.values(), ids=CODECS)
def test_after_down_and_up_again_nothing_that_was_not_delivered_is_lost(empty_url: URL, codec: PickleCodec) -> None:
    filled(empty_url, codec)
    with Database(empty_url, codec=codec) as database:
        database.upgrade()
        made = catalog(empty_url)
    command.downgrade(migrations.config(empty_url), BEFORE)
    assert rows(empty_url, "SELECT queue_id, last_position FROM sse_delivery_positions ORDER BY 1") == [
        ("news a", 2),
        ("news b", 1),
    ]
    waiting = rows(empty_url, "SELECT queue_id, count(*) FROM sse_messages GROUP BY 1 ORDER BY 1")
    assert waiting == [("news a", 1), ("news b", 1)]
    with Database(empty_url, codec=codec) as database:
        database.upgrade()
        assert catalog(empty_url) == made
        assert payloads(read(database, "a", 1)) == [3]
        assert payloads(read(database, "b", 1)) == [4]


def test_messages_of_channels_without_a_log_stay_in_their_queues(empty_url: URL) -> None:
    with Database(empty_url) as database:
        database.upgrade(BEFORE)
        SqlQueue(database, "by itself")
    filled_queue = "INSERT INTO sse_messages (queue_id, message_type, message) VALUES ('by itself', 'm', :message)"
    with Database(empty_url) as database, connected(empty_url) as connection:
        blob = database.codec.encode(Message("m", 7), "sse_messages/by itself", database)
        connection.execute(text(filled_queue), {"message": blob})
    with Database(empty_url) as database:
        database.upgrade()
        assert drain(SqlQueue(database, "by itself")) == [7]
    assert rows(empty_url, "SELECT count(*) FROM sse_events") == [(0,)]


def test_a_message_that_was_set_aside_waits_again_after_the_downgrade(empty_url: URL) -> None:
    with Database(empty_url) as database:
        database.upgrade()
        queue = SqlQueue(database, "q")
        queue.push(Message("m", 1))
        with connected(empty_url) as connection:
            connection.execute(text("UPDATE sse_messages SET message = :blob"), {"blob": b"damaged"})
        assert drain(queue) == []
        assert database.count_set_aside() == 1
    command.downgrade(migrations.config(empty_url), BEFORE)
    assert [(key, bytes(blob)) for key, blob in rows(empty_url, "SELECT queue_id, message FROM sse_messages")] == [
        ("q", b"damaged")
    ]


def test_queues_of_a_class_that_pushes_by_itself_are_marked(empty_url: URL) -> None:
    with Database(empty_url) as database:
        database.upgrade(BEFORE)
    insert_entry = "INSERT INTO kv_entries (key, value, value_type) VALUES (:key, :value, :type)"
    ours = "eric_sse_sql.queues"
    types = {"plain": f"{ours}.SqlQueue", "blocking": f"{ours}.BlockingSqlQueue", "own": "shop.Letterbox"}
    with connected(empty_url) as connection:
        for name, path in types.items():
            for key, kind in ((f"l {name}", "listener"), (f"q {name}", path)):
                connection.execute(text(insert_entry), {"key": key, "value": b"v", "type": kind})
            connection.execute(
                text(
                    "INSERT INTO sse_connections (id, listener_id, listener_key, queue_id, queue_key) "
                    "VALUES (:name, :name, :listener, :name, :queue)"
                ),
                {"name": name, "listener": f"l {name}", "queue": f"q {name}"},
            )
    with Database(empty_url) as database:
        database.upgrade(HERE)
    marked = rows(empty_url, "SELECT id FROM sse_connections WHERE has_own_push")
    assert marked == [("own",)]
