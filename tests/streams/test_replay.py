"""Streams that resume after ``Last-Event-ID``: contiguous, or with a ``reset`` event where they are not."""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections.abc import Iterator
from contextlib import aclosing
from datetime import timedelta
from typing import Any

import pytest
from eric_sse.exception import RepositoryError
from eric_sse.message import Message
from sqlalchemy import URL, text

from eric_sse_sql import Database, SqlQueue
from eric_sse_sql.contract import ERIC_SSE_2_0
from support.catalog import table_counts
from support.channels import queue_of
from support.waiting import DEADLINE

if ERIC_SSE_2_0:
    pytest.skip("eric-sse 2.0 has no such channel", allow_module_level=True)

from eric_sse_sql import SqlSSEChannel, SqlSSEChannelRepository


class Feed:
    """A channel with one listener, as a worker has it."""

    def __init__(self, database: Database, replay_seconds: float = 60) -> None:
        self.repository = SqlSSEChannelRepository(database)
        channel = self.repository.create({"channel_id": "feed", "replay_seconds": replay_seconds})
        self.listener_id = channel.add_listener().id
        self.repository.persist(channel)
        self.queue = queue_of(channel, self.listener_id)

    def push(self, *payloads: Any) -> None:
        self.queue.push_many([Message("n", payload) for payload in payloads])

    async def stream(self, count: int, last_event_id: str | None = None) -> list[Any]:
        """The next events, on a channel that was loaded for it, as a worker does after a restart."""
        channel = self.repository.load_one("feed")
        listener = channel.get_listener(self.listener_id)
        listener.start()
        events: list[Any] = []
        async with aclosing(channel.message_stream(listener, last_event_id)) as stream:
            while len(events) < count:
                events.append(await asyncio.wait_for(anext(stream), DEADLINE))
        return events

    def read(self, count: int, last_event_id: str | None = None) -> list[Any]:
        return asyncio.run(self.stream(count, last_event_id))


def payloads(events: list[Any]) -> list[Any]:
    return ["reset" if event["event"] == "reset" else event["data"] for event in events]


@pytest.fixture
def feed(database: Database) -> Feed:
    return Feed(database)


def test_events_have_ids_and_a_stream_resumes_after_the_last_one(feed: Feed) -> None:
    feed.push(0, 1, 2, 3)
    first = feed.read(2)
    assert payloads(first) == [0, 1]
    feed.push(4)
    assert payloads(feed.read(3, first[-1]["id"])) == [2, 3, 4]
    assert payloads(feed.read(4, first[0]["id"])) == [1, 2, 3, 4]


def test_a_stream_without_a_last_event_begins_with_undelivered_messages(feed: Feed) -> None:
    feed.push(0, 1)
    assert payloads(feed.read(2)) == [0, 1]
    feed.push(2)
    assert payloads(feed.read(1)) == [2]


def test_two_streams_of_one_listener_get_every_message(feed: Feed) -> None:
    async def main() -> list[list[Any]]:
        both = [asyncio.create_task(feed.stream(20)) for _ in range(2)]
        await asyncio.sleep(0.3)
        for number in range(20):
            await asyncio.to_thread(feed.push, number)
        return list(await asyncio.gather(*both))

    assert [payloads(events) for events in asyncio.run(main())] == [list(range(20))] * 2


def test_expired_messages_cause_a_reset(feed: Feed, database: Database) -> None:
    feed.push(*range(5))
    events = feed.read(5)
    with database.engine.begin() as connection:
        connection.execute(text("DELETE FROM sse_delivered_messages WHERE position <= 3"))
    assert payloads(feed.read(2, events[2]["id"])) == [3, 4]  # of what it had not seen, nothing is gone
    after = feed.read(3, events[0]["id"])
    assert payloads(after) == ["reset", 3, 4]
    assert after[0]["id"] == "3"  # behind which the browser may come back
    with database.engine.begin() as connection:
        connection.execute(text("DELETE FROM sse_delivered_messages"))
    feed.push(5)
    assert payloads(feed.read(1, events[4]["id"])) == [5]  # it has seen all that is gone


@pytest.mark.parametrize("unknown", ["", "x", "-1", "99", "1.5", "²", "9" * 19, "9" * 5_000])
def test_an_event_id_that_was_never_assigned_causes_a_reset(feed: Feed, unknown: str) -> None:
    feed.push(0, 1)
    feed.read(2)
    feed.push(2)
    events = feed.read(2, unknown)
    assert payloads(events) == ["reset", 2]
    assert events[0]["data"]  # a browser drops an event without data


def test_messages_are_kept_for_a_time_and_then_deleted(database: Database) -> None:
    feed = Feed(database, replay_seconds=1)
    feed.push(0)
    feed.read(1)
    assert table_counts(database)["sse_delivered_messages"] == 1
    give_up = time.monotonic() + DEADLINE
    number = 0
    while time.monotonic() < give_up:
        number += 1
        feed.push(number)
        feed.read(1)
        with database.engine.connect() as connection:
            if connection.scalar(text("SELECT min(position) FROM sse_delivered_messages")) > 1:
                return
        time.sleep(0.2)
    raise AssertionError("a message is kept for ever")


def test_deleting_a_channel_deletes_its_delivered_messages(feed: Feed, database: Database) -> None:
    feed.push(0, 1)
    feed.read(1)
    feed.repository.delete("feed")
    assert set(table_counts(database).values()) == {0}


def test_pruning_deletes_delivered_messages_of_queues_without_owner(feed: Feed, database: Database) -> None:
    feed.push(0, 1)
    feed.read(2)
    database.prune(older_than=timedelta(days=-1))
    assert table_counts(database)["sse_delivered_messages"] == 2
    with database.engine.begin() as connection:
        connection.execute(text("DELETE FROM sse_connections"))
    database.prune(older_than=timedelta(days=1))
    assert table_counts(database)["sse_delivered_messages"] == 2
    database.prune(older_than=timedelta(days=-1))
    assert not {"sse_delivered_messages", "sse_delivery_positions"} & set(table_counts(database))


def test_without_replay_nothing_is_kept_and_no_event_has_an_id(database: Database) -> None:
    feed = Feed(database, replay_seconds=0)
    feed.push(0, 1)
    assert [event.get("id") for event in feed.read(2)] == [None, None]
    assert "sse_delivered_messages" not in table_counts(database)
    assert table_counts(database)["sse_messages"] == 0


def test_the_replay_seconds_of_a_channel_are_stored(feed: Feed) -> None:
    loaded = feed.repository.load_one("feed")
    assert isinstance(loaded, SqlSSEChannel) and loaded.replay_seconds == 60


def test_an_unreadable_message_is_kept_and_delays_the_messages_after_it(feed: Feed, database: Database) -> None:
    feed.push(0, 1, 2)
    damage = text("UPDATE sse_messages SET message = :blob WHERE id = (SELECT max(id) - 1 FROM sse_messages)")
    with database.engine.begin() as connection:
        good = connection.scalar(text("SELECT message FROM sse_messages ORDER BY id LIMIT 1 OFFSET 1"))
        connection.execute(damage, {"blob": b"damaged"})
    events = feed.read(2)
    assert [event["event"] for event in events] == ["n", "error"]
    with database.engine.begin() as connection:
        connection.execute(damage, {"blob": good})
    assert payloads(feed.read(2, events[0]["id"])) == [1, 2]


def test_error_events_have_no_id(feed: Feed, database: Database) -> None:
    rename = "ALTER TABLE sse_delivery_positions RENAME TO elsewhere"
    back = "ALTER TABLE elsewhere RENAME TO sse_delivery_positions"
    feed.push(0)

    async def main() -> list[Any]:
        with database.engine.begin() as connection:
            connection.execute(text(rename))
        task = asyncio.create_task(feed.stream(2))
        await asyncio.sleep(0.5)
        with database.engine.begin() as connection:
            connection.execute(text(back))
        return await task

    error, event = asyncio.run(main())
    assert error["event"] == "error" and "id" not in error
    assert (event["data"], event["id"]) == (0, "1")


# Random cuts


@pytest.fixture
def shared(shared_url: URL) -> Iterator[tuple[Database, Database]]:
    """A database as a worker and a producer have it, each on an engine of its own."""
    with Database(shared_url) as worker, Database(shared_url) as producer:
        yield worker, producer


def test_streams_interrupted_200_times_are_contiguous_or_reset(shared: tuple[Database, Database]) -> None:
    worker, producer = shared
    rng = random.Random(200)
    feed = Feed(worker)
    pushed, is_over = 0, threading.Event()

    def produce() -> None:
        nonlocal pushed
        queue = SqlQueue(producer, feed.queue.id)
        while not is_over.is_set():
            queue.push_many([Message("n", pushed + number) for number in range(3)])
            pushed += 3
            is_over.wait(0.002)

    async def main() -> tuple[list[int], int]:
        seen: list[int] = []
        resets, last = 0, None
        for _ in range(200):
            if rng.random() < 0.1:  # as a prune
                with worker.engine.begin() as connection:
                    connection.execute(
                        text("DELETE FROM sse_delivered_messages WHERE position < :at"),
                        {"at": max(0, len(seen) + rng.randint(-20, 3))},
                    )
            for event in await feed.stream(rng.randint(1, 12), last):
                last = event["id"]
                if event["event"] == "reset":
                    resets += 1
                    seen = list(range(int(last)))
                else:
                    assert event["data"] == len(seen) == int(event["id"]) - 1
                    seen.append(event["data"])
        return seen, resets

    thread = threading.Thread(target=produce)
    thread.start()
    try:
        seen, resets = asyncio.run(main())
    finally:
        is_over.set()
        thread.join(DEADLINE)
    assert len(seen) >= 200
    assert resets < 200


def test_a_stream_whose_last_events_were_pruned_is_reset(feed: Feed, database: Database) -> None:
    feed.push(0, 1)
    events = feed.read(2)
    with database.engine.begin() as connection:
        connection.execute(text("DELETE FROM sse_delivered_messages"))
    reset = feed.read(1, events[0]["id"])
    assert payloads(reset) == ["reset"] and reset[0]["id"] == "2"


def test_a_failed_delivery_is_not_half_written(feed: Feed, database: Database) -> None:
    feed.push(0)
    with database.engine.begin() as connection:
        connection.execute(text("ALTER TABLE sse_delivered_messages RENAME TO elsewhere"))
    with pytest.raises(RepositoryError):
        asyncio.run(_fetch(feed))
    with database.engine.begin() as connection:
        connection.execute(text("ALTER TABLE elsewhere RENAME TO sse_delivered_messages"))
    assert payloads(feed.read(1)) == [0]


async def _fetch(feed: Feed) -> None:
    from eric_sse_sql.streams.replay import Replay

    await asyncio.to_thread(Replay(feed.queue, 60, None).fetch)
