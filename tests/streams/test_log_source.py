"""Streams of a log: they resume after ``Last-Event-ID``, contiguous, or with a ``reset`` event where they are not."""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import Iterator
from contextlib import aclosing, contextmanager, suppress
from datetime import timedelta
from typing import Any

import pytest
from eric_sse.exception import InvalidListenerException, NoMessagesException, RepositoryError
from eric_sse.message import Message
from sqlalchemy import URL, text

from eric_sse_sql import Database, SqlQueue
from eric_sse_sql.contract import ERIC_SSE_2_0
from support.catalog import rename_table, table_counts
from support.channels import queue_of
from support.databases import opened
from support.waiting import DEADLINE

if ERIC_SSE_2_0:
    pytest.skip("eric-sse 2.0 has no such channel", allow_module_level=True)

from eric_sse_sql import SqlSSEChannel, SqlSSEChannelRepository, fanout
from eric_sse_sql.streams.source import UNREADABLE


class Feed:
    """A channel with one listener, as a worker has it.

    :param listener_id: of the listener of a channel that is there already
    """

    def __init__(self, database: Database, replay_seconds: float = 60, listener_id: str | None = None) -> None:
        self.database = database
        self.repository = SqlSSEChannelRepository(database)
        if listener_id is None:
            channel = self.repository.create({"channel_id": "feed", "replay_seconds": replay_seconds})
            listener_id = channel.add_listener().id
            self.repository.persist(channel)
        self.listener_id = listener_id
        self.queue = queue_of(self.repository.load_one("feed"), listener_id)

    def push(self, *payloads: Any) -> None:
        channel = self.repository.load_one("feed")
        with self.database.transaction():
            for payload in payloads:
                channel.dispatch(self.listener_id, Message("n", payload))

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


def position(event: Any) -> int:
    """The position in the log that the id of an event tells."""
    return int(event["id"].split("-")[1])


def age(database: Database, condition: str = "true") -> None:
    """Make events of the log older than they are kept."""
    long_ago = {"sqlite": "datetime('now', '-1 day')", "postgresql": "now() - interval '1 day'"}
    with database.engine.begin() as connection:
        moment = long_ago[database.engine.dialect.name]
        connection.execute(text(f"UPDATE sse_events SET created_at = {moment} WHERE {condition}"))


def expire(database: Database, condition: str = "true") -> None:
    """Let events of the log expire."""
    age(database, condition)
    database.prune(older_than=timedelta(days=1))


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
    assert payloads(feed.read(2)) == [1, 2]  # 1 is delivered when the event after it is asked for
    feed.push(3)
    assert payloads(feed.read(2, "")) == [2, 3]  # an empty Last-Event-ID is none


def test_two_streams_of_one_listener_get_every_message(feed: Feed) -> None:
    async def main() -> list[list[Any]]:
        both = [asyncio.create_task(feed.stream(20)) for _ in range(2)]
        await asyncio.sleep(0.3)
        for number in range(20):
            await asyncio.to_thread(feed.push, number)
        return list(await asyncio.gather(*both))

    assert [payloads(events) for events in asyncio.run(main())] == [list(range(20))] * 2


def test_expired_events_cause_a_reset(shared_url: URL) -> None:
    with opened(shared_url) as database:
        feed = Feed(database)
        feed.push(*range(5))
        events = feed.read(5)
        expire(database, "position <= 3")
        with elsewhere(feed) as other:
            assert payloads(other.read(1, events[3]["id"])) == [4]
            # Whether that is the event 3 of this log is gone.
            assert payloads(other.read(3, events[2]["id"])) == ["reset", 3, 4]
            after = other.read(3, events[0]["id"])
            assert payloads(after) == ["reset", 3, 4]
            assert after[0]["data"]  # a browser drops an event without data
        expire(database)
        with elsewhere(feed) as other:
            assert payloads(other.read(1, events[3]["id"])) == ["reset"]
            assert asyncio.run(is_silent(other, events[4]["id"]))  # it has seen all that there was
            feed.push(5)
            assert payloads(other.read(2, events[3]["id"])) == ["reset", 5]


def test_another_token_in_the_id_of_a_last_event_that_has_expired_causes_a_reset(shared_url: URL) -> None:
    with opened(shared_url) as database:
        feed = Feed(database)
        feed.push(0, 1)
        last = feed.read(2)[-1]["id"]
        expire(database)
        with elsewhere(feed) as other:
            assert asyncio.run(is_silent(other, last))
            assert payloads(other.read(1, f"{last}9")) == ["reset"]


@contextmanager
def elsewhere(feed: Feed) -> Iterator[Feed]:
    """The same listener in another worker, which has read nothing of the log yet."""
    with opened(feed.database.engine.url) as database:
        yield Feed(database, listener_id=feed.listener_id)


async def is_silent(feed: Feed, last_event_id: str) -> bool:
    """Whether a stream that resumes after an event delivers nothing for a while."""
    try:
        await asyncio.wait_for(feed.stream(1, last_event_id), 0.5)
    except asyncio.TimeoutError:
        return True
    return False


UNKNOWN = [
    *("x", "-1", "99", "1.5", "²", "9" * 19, "0x10", ".", "..", "k\0f.1", "1\n2"),
    *("9" * digits for digits in (4_300, 4_301, 5_000, 100_000)),
]


def test_an_event_id_that_was_never_assigned_causes_a_reset(feed: Feed) -> None:
    feed.push(0, 1)
    feed.read(2)
    feed.push(2)
    for unknown in UNKNOWN:
        events = feed.read(4, unknown)
        assert payloads(events) == ["reset", 0, 1, 2], unknown[:100]
        assert events[0]["data"]


def test_an_event_id_that_was_changed_causes_a_reset(feed: Feed) -> None:
    feed.push(0, 1)
    last = feed.read(1)[-1]["id"]
    assert payloads(feed.read(1, last)) == [1]
    epoch, position, token = last.split("-")
    for changed in (
        f"{epoch}0-{position}-{token}",
        f"{epoch}-{position}-{token}9",
        f"{epoch}-{position}{'9' * 4_300}-{token}",
        f"{epoch}-9{position}-{token}",
        f"{epoch}-{position}-{token}x",
        f"{epoch}-{position}",
        f" {epoch}-{position}-{token}",
        f"{epoch}-{position}-{token}\n",
    ):
        assert payloads(feed.read(3, changed)) == ["reset", 0, 1], changed[:100]


def test_events_are_kept_for_a_time_and_then_deleted(feed: Feed, database: Database) -> None:
    feed.push(0)
    feed.read(1)
    database.prune(older_than=timedelta(days=1))
    assert table_counts(database)["sse_events"] == 1
    expire(database)
    assert "sse_events" not in table_counts(database)


def test_a_log_that_is_appended_to_deletes_its_expired_events(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fanout, "EXPIRY_CHANCE", 1.0)
    feed = Feed(database)
    feed.push(*range(5))
    age(database)
    feed.repository.load_one("feed").broadcast(Message("n", "new"))
    assert table_counts(database)["sse_events"] == 1


def test_the_events_of_a_quiet_channel_are_deleted_while_it_is_streamed(database: Database) -> None:
    feed = Feed(database, replay_seconds=0.5)
    feed.push(0)

    async def main() -> None:
        task = asyncio.create_task(feed.stream(2))
        while "sse_events" in await asyncio.to_thread(table_counts, database):
            await asyncio.sleep(0.05)
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task

    asyncio.run(asyncio.wait_for(main(), DEADLINE))


def test_deleting_a_channel_deletes_its_log(feed: Feed, database: Database) -> None:
    feed.push(0, 1)
    feed.read(1)
    feed.repository.delete("feed")
    assert table_counts(database) == {"kv_entries": 0, "sse_channels": 0, "sse_connections": 0, "sse_messages": 0}


def test_without_replay_nothing_is_kept_and_no_event_has_an_id(database: Database) -> None:
    feed = Feed(database, replay_seconds=0)
    feed.push(0, 1)
    assert [event.get("id") for event in feed.read(2)] == [None, None]
    assert not {"sse_events", "sse_event_logs"} & set(table_counts(database))
    assert table_counts(database)["sse_messages"] == 0


def test_the_replay_seconds_of_a_channel_are_stored(feed: Feed) -> None:
    loaded = feed.repository.load_one("feed")
    assert isinstance(loaded, SqlSSEChannel) and loaded.replay_seconds == 60


def test_an_object_that_was_loaded_before_replay_seconds_was_changed_leaves_the_change_alone(
    feed: Feed, database: Database
) -> None:
    stale, changing = feed.repository.load_one("feed"), feed.repository.load_one("feed")
    for seconds in (30, 90):
        changing.replay_seconds = seconds  # type: ignore[attr-defined]
        feed.repository.persist(changing)
        feed.repository.persist(stale)
        with database.engine.connect() as connection:
            assert connection.scalar(text("SELECT replay_seconds FROM sse_event_logs")) == seconds


def test_persisting_a_loaded_channel_sets_the_replay_seconds_of_a_log_that_was_migrated(
    feed: Feed, database: Database
) -> None:
    with database.engine.begin() as connection:
        connection.execute(text("UPDATE sse_event_logs SET replay_seconds = 86400"))
    feed.repository.persist(feed.repository.load_one("feed"))
    with database.engine.connect() as connection:
        assert connection.scalar(text("SELECT replay_seconds FROM sse_event_logs")) == 60


def test_a_log_is_not_left_behind_with_its_events(feed: Feed) -> None:
    feed.push(0)
    without_log = feed.repository.create({"channel_id": "feed", "replay_seconds": 0})
    without_log.add_listener()
    loaded = feed.repository.load_one("feed")
    loaded.replay_seconds = 0  # type: ignore[attr-defined]
    for channel in (without_log, loaded):
        with pytest.raises(RepositoryError, match="replay_seconds"):
            feed.repository.persist(channel)
    assert len(list(feed.repository.load_one("feed").get_connections())) == 1
    assert [event["data"] for event in feed.read(1)] == [0]
    feed.repository.delete("feed")
    feed.repository.persist(without_log)


def test_an_unreadable_event_is_reported_and_the_next_one_is_delivered(
    feed: Feed, database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    feed.push(0, 1, 2)
    damage = text("UPDATE sse_events SET message = :blob WHERE position = 2")
    with database.engine.begin() as connection:
        good = connection.scalar(text("SELECT message FROM sse_events WHERE position = 2"))
        connection.execute(damage, {"blob": b"damaged"})
    events = feed.read(3)
    assert [(event["event"], event["data"]) for event in events] == [("n", 0), ("error", UNREADABLE), ("n", 2)]
    assert [position(event) for event in events] == [1, 2, 3]
    (record,) = caplog.records
    assert "event 2 of channel feed can't be decoded" in record.getMessage()
    with database.engine.begin() as connection:
        connection.execute(damage, {"blob": good})
    with Database(database.engine) as elsewhere:  # which has nothing in memory
        again = Feed(elsewhere, listener_id=feed.listener_id)
        assert payloads(again.read(2, events[0]["id"])) == [1, 2]  # it has stayed in the log


def test_events_about_an_outage_have_no_id(feed: Feed, database: Database) -> None:
    feed.push(0)

    async def main() -> list[Any]:
        await asyncio.to_thread(rename_table, database, "sse_events", "elsewhere")
        task = asyncio.create_task(feed.stream(2))
        await asyncio.sleep(0.5)
        await asyncio.to_thread(rename_table, database, "elsewhere", "sse_events")
        return await task

    error, event = asyncio.run(main())
    assert error["event"] == "error" and "id" not in error
    assert (event["data"], position(event)) == (0, 1)


def test_a_database_that_can_not_write_positions_is_closed(shared_url: URL) -> None:
    with Database(shared_url) as other:
        closing = Database(shared_url)
        feed = Feed(closing)
        feed.push(0, 1)
        assert len(feed.read(2)) == 2
        rename_table(other, "sse_connections", "elsewhere")
        try:
            closing.close()
        finally:
            rename_table(other, "elsewhere", "sse_connections")
        with pytest.raises(RepositoryError, match="closed"):
            closing.check_open()


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
        channel = SqlSSEChannelRepository(producer).load_one("feed")
        while not is_over.is_set():
            with producer.transaction():
                for number in range(3):
                    channel.broadcast(Message("n", pushed + number))
            pushed += 3
            is_over.wait(0.002)

    async def main() -> tuple[list[int], int]:
        seen: list[int] = []
        resets, last, is_reset = 0, None, False
        for _ in range(200):
            if rng.random() < 0.1:
                at = max(0, len(seen) + rng.randint(-20, 3))
                await asyncio.to_thread(expire, producer, f"position < {at}")
            for event in await feed.stream(rng.randint(1, 12), last):
                if event["event"] == "reset":
                    resets, is_reset = resets + 1, True
                    continue
                last = event["id"]
                if is_reset:
                    assert event["data"] >= len(seen)
                    seen, is_reset = list(range(event["data"])), False
                assert event["data"] == len(seen) == position(event) - 1
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


def test_a_stream_whose_last_events_have_expired_is_reset(shared_url: URL) -> None:
    with opened(shared_url) as database:
        feed = Feed(database)
        feed.push(0, 1)
        events = feed.read(2)
        expire(database)
        with elsewhere(feed) as other:
            assert payloads(other.read(1, events[0]["id"])) == ["reset"]


# Positions of connections


def test_an_event_is_delivered_when_the_next_one_is_asked_for(feed: Feed) -> None:
    feed.push(0, 1, 2)
    assert payloads(feed.read(0)) == []
    assert payloads(feed.read(1)) == [0]
    assert payloads(feed.read(2)) == [0, 1]  # nothing was asked for after 0
    assert payloads(feed.read(2)) == [1, 2]


def test_a_stream_that_is_opened_and_closed_before_its_first_event_skips_none(feed: Feed) -> None:
    feed.push(*range(50))

    async def open_and_close() -> None:
        channel = feed.repository.load_one("feed")
        listener = channel.get_listener(feed.listener_id)
        listener.start()
        for pause in (0, 0.05, 0.5):
            stream = channel.message_stream(listener)
            with suppress(asyncio.TimeoutError):
                await asyncio.wait_for(asyncio.shield(task := asyncio.ensure_future(anext(stream))), pause)
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
            await stream.aclose()

    asyncio.run(open_and_close())
    assert payloads(feed.read(50)) == list(range(50))


def test_a_listener_gets_nothing_from_before_its_connection_whatever_id_it_sends(feed: Feed) -> None:
    feed.push(0, 1)
    old = feed.read(2)
    channel = feed.repository.load_one("feed")
    listener = channel.add_listener()
    channel.broadcast(Message("n", "between"))  # registered here already
    feed.repository.persist(channel)
    feed.repository.load_one("feed").broadcast(Message("n", "after"))
    for last_event_id in (None, old[0]["id"], old[1]["id"], "made up"):
        events = asyncio.run(read_as(feed, listener.id, last_event_id, "after"))
        assert [each for each in payloads(events) if each != "reset"] == ["between", "after"]


async def read_as(feed: Feed, listener_id: str, last_event_id: str | None, last: Any) -> list[Any]:
    """The events of a listener up to a payload."""
    channel = feed.repository.load_one("feed")
    listener = channel.get_listener(listener_id)
    listener.start()
    events: list[Any] = []
    async with aclosing(channel.message_stream(listener, last_event_id)) as stream:
        while not events or events[-1]["data"] != last:
            events.append(await asyncio.wait_for(anext(stream), DEADLINE))
    return events


def test_a_stream_gets_the_broadcasts_and_its_own_dispatches_in_one_order(feed: Feed) -> None:
    channel = feed.repository.load_one("feed")
    other = channel.add_listener()
    feed.repository.persist(channel)
    for number in range(3):
        channel.broadcast(Message("n", f"all {number}"))
        channel.dispatch(feed.listener_id, Message("n", f"one {number}"))
        channel.dispatch(other.id, Message("n", f"other {number}"))
    assert payloads(feed.read(6)) == ["all 0", "one 0", "all 1", "one 1", "all 2", "one 2"]
    events = asyncio.run(read_as(feed, other.id, None, "other 2"))
    assert payloads(events) == ["all 0", "other 0", "all 1", "other 1", "all 2", "other 2"]


def test_a_message_pushed_into_the_queue_itself_is_moved_to_the_log_when_the_next_stream_begins(
    feed: Feed, database: Database
) -> None:
    SqlQueue(database, feed.queue.id).push_many([Message("n", 0), Message("n", 1)])
    events = feed.read(2)
    assert payloads(events) == [0, 1]
    assert (table_counts(database)["sse_messages"], table_counts(database)["sse_events"]) == (0, 2)
    assert payloads(feed.read(1, events[0]["id"])) == [1]


def test_events_are_popped_once_each_by_competing_callers(feed: Feed) -> None:
    feed.push(*range(40))
    popped: list[Any] = []

    def pop() -> None:
        channel = feed.repository.load_one("feed")
        channel.get_listener(feed.listener_id).start()
        with suppress(NoMessagesException):
            while True:
                popped.append(channel.deliver_next(feed.listener_id).payload)

    threads = [threading.Thread(target=pop) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(DEADLINE)
    assert sorted(popped) == list(range(40))


def test_an_event_that_this_process_has_in_memory_is_popped(feed: Feed) -> None:
    feed.push("read by a stream")
    assert [event["data"] for event in feed.read(1)] == ["read by a stream"]
    feed.push("appended later")
    assert [feed.queue.pop().payload for _ in range(2)] == ["read by a stream", "appended later"]
    with pytest.raises(NoMessagesException):
        feed.queue.pop()


def test_the_length_of_a_queue_counts_the_events_that_wait(feed: Feed) -> None:
    queue = feed.queue
    assert len(queue) == 0
    feed.push(0, 1, 2)
    assert len(queue) == 3
    assert queue.pop().payload == 0
    assert len(queue) == 2
    queue.clear()
    assert len(queue) == 0
    with pytest.raises(NoMessagesException):
        queue.pop()
    feed.push(3)
    assert payloads(feed.read(1)) == [3]


# Lives of a log


def test_an_id_of_a_channel_that_was_deleted_and_made_again_causes_a_reset(database: Database) -> None:
    feed = Feed(database)
    feed.push(*range(5))
    last = feed.read(5)[-1]["id"]
    feed.repository.delete("feed")
    again = Feed(database)
    again.push(*range(10, 20))
    assert payloads(again.read(11, last)) == ["reset", *range(10, 20)]


def test_an_id_of_another_channel_causes_a_reset(feed: Feed, database: Database) -> None:
    other = feed.repository.create({"channel_id": "other", "replay_seconds": 60})
    listener = other.add_listener()
    feed.repository.persist(other)
    feed.push(0, 1)
    other.broadcast(Message("n", "of the other channel"))
    last = feed.read(1)[-1]["id"]
    listener.start()

    async def read() -> list[Any]:
        async with aclosing(other.message_stream(listener, last)) as stream:
            return [await anext(stream) for _ in range(2)]

    assert payloads(asyncio.run(asyncio.wait_for(read(), DEADLINE))) == ["reset", "of the other channel"]


def test_a_stream_ends_when_its_channel_is_deleted_and_made_again(feed: Feed, database: Database) -> None:
    feed.push(0)

    async def main() -> list[Any]:
        channel = feed.repository.load_one("feed")
        listener = channel.get_listener(feed.listener_id)
        listener.start()
        events: list[Any] = []
        with suppress(InvalidListenerException):  # which it raises where it finds out by the log, before a poll does
            async for event in channel.message_stream(listener):
                events.append(event)
                if len(events) == 1:
                    await asyncio.to_thread(feed.repository.delete, "feed")
                    await asyncio.to_thread(Feed, database)
        return events

    assert payloads(asyncio.run(asyncio.wait_for(main(), DEADLINE))) == [0]
