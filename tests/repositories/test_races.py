"""Calls on one channel from many threads at once, each with connections of its own: none fails because of another."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import timedelta
from typing import Any

import pytest
from eric_sse.exception import InvalidListenerException, NoMessagesException
from eric_sse.listener import MessageQueueListener
from eric_sse.message import Message
from sqlalchemy import URL, event, text

from eric_sse_sql import Database, SqlQueue
from eric_sse_sql.contract import ERIC_SSE_2_0, ItemNotFound, make_connection
from eric_sse_sql.sql.connections import MARK_SEEN
from support.databases import opened
from support.waiting import DEADLINE, until

if ERIC_SSE_2_0:
    pytest.skip("eric-sse 2.0 has no such channel", allow_module_level=True)

from eric_sse_sql import SqlSSEChannelRepository

SECONDS, TIMES = 0.6, 20  # for which each race goes on at least, and how often each of its calls is made
NAMES = [f"{name}{n}" for n in range(5) for name in "ba"]  # of queues and listeners, not in the order of their keys
GONE = ItemNotFound, InvalidListenerException, NoMessagesException
Call = Callable[[Database], object]


def listener(name: str) -> MessageQueueListener:
    made = MessageQueueListener()
    made.id = f"listener {name}"
    return made


def connection(database: Database, name: str) -> Any:
    return make_connection(listener(name), SqlQueue(database, f"queue {name}"), f"connection {name}")


def persist_channel(database: Database, replay_seconds: float = 0) -> None:
    repository = SqlSSEChannelRepository(database)
    channel = repository.create({"channel_id": "c", "replay_seconds": replay_seconds})
    for name in NAMES:
        channel.register_connection(connection(database, name))
    repository.persist(channel)


def delete_channel(database: Database) -> None:
    SqlSSEChannelRepository(database).delete("c")


def persist_connection(database: Database) -> None:
    SqlSSEChannelRepository(database).connections_repository.persist("c", connection(database, NAMES[0]))


def delete_connection(database: Database) -> None:
    SqlSSEChannelRepository(database).connections_repository.delete("c", f"connection {NAMES[0]}")


def persist_listener(database: Database) -> None:
    repository = SqlSSEChannelRepository(database).connections_repository
    for name in NAMES:
        repository.listeners_repository.persist(f"connection {name}", listener(name))


def delete_queue(database: Database) -> None:
    repository = SqlSSEChannelRepository(database).connections_repository
    for name in NAMES:
        repository.queues_repository.delete(f"connection {name}")


def persist_changed_listener(database: Database) -> None:
    repository = SqlSSEChannelRepository(database)
    channel = repository.load_one("c")
    channel.get_listener(f"listener {NAMES[0]}").start()
    repository.persist(channel)


def remove_listeners(database: Database) -> None:
    repository = SqlSSEChannelRepository(database)
    channel = repository.load_one("c")
    for name in NAMES[::2]:
        channel.remove_listener(f"listener {name}")
    repository.persist(channel)


def broadcast(database: Database) -> None:
    SqlSSEChannelRepository(database).load_one("c").broadcast(Message("m", 1))


def dispatch(database: Database) -> None:
    SqlSSEChannelRepository(database).load_one("c").dispatch(f"listener {NAMES[0]}", Message("m", 1))


def clear(database: Database) -> None:
    for name in NAMES:
        SqlQueue(database, f"queue {name}").clear()


def put_back(database: Database) -> None:
    for name in NAMES:
        queue = SqlQueue(database, f"queue {name}")
        since = time.monotonic()
        queue.put_back(queue.take(2), since)


def prune(database: Database) -> None:
    database.prune(older_than=timedelta(0), unseen_for=timedelta(0))


def mark_seen(database: Database) -> None:
    ids = [f"connection {name}" for name in NAMES]
    database.executor.run(MARK_SEEN, connection_ids=database.executor.dialect.list_value(ids))


def deliver(database: Database) -> None:
    for each in SqlSSEChannelRepository(database).load_one("c").get_connections():
        each.queue.pop()


def persist_log(database: Database) -> None:
    persist_channel(database, 60)


RACES: dict[str, list[Call]] = {
    "channel persisted and deleted": [persist_channel, persist_channel, delete_channel],
    "connection persisted, channel deleted": [persist_connection, persist_connection, delete_channel, persist_channel],
    "connection persisted and deleted": [
        persist_connection,
        delete_connection,
        persist_channel,
        persist_changed_listener,
        remove_listeners,
    ],
    "objects": [persist_listener, delete_queue, persist_channel, delete_channel],
    "messages": [persist_channel, delete_channel, broadcast, clear, put_back],
    "log": [persist_log, delete_channel, broadcast, dispatch, deliver],
    "pruning": [persist_channel, prune, mark_seen, delete_channel, broadcast],
}


@pytest.mark.parametrize("race", RACES)
def test_no_call_fails_because_of_another_one(shared_url: URL, race: str) -> None:
    with ExitStack() as stack:
        databases = [stack.enter_context(opened(shared_url)) for _ in RACES[race]]
        end, give_up = time.monotonic() + SECONDS, time.monotonic() + DEADLINE
        calls: Counter[str] = Counter()
        failed: Counter[str] = Counter()

        def fewest() -> int:
            return min(calls[call.__name__] for call in RACES[race])

        def repeat(call: Call, database: Database) -> None:
            while (time.monotonic() < end or fewest() < TIMES) and time.monotonic() < give_up:
                try:
                    with suppress(*GONE):
                        call(database)
                    calls[call.__name__] += 1
                except Exception as error:
                    failed[f"{call.__name__}: {error.__cause__!r:.200}"] += 1

        threads = [threading.Thread(target=repeat, args=pair) for pair in zip(RACES[race], databases, strict=True)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not failed, calls
        assert set(calls) == {call.__name__ for call in RACES[race]}


@contextmanager
def meanwhile(database: Database, call: Callable[[], object]) -> Iterator[None]:
    """When the block has looked connections up, another thread makes a call: until it has ended, or waits for a
    lock."""
    thread = threading.Thread(target=call)
    is_locked = text("SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'")

    @event.listens_for(database.engine, "after_cursor_execute")
    def begin(connection: Any, cursor: Any, statement: str, *others: object) -> None:
        if "FROM sse_connections" in statement and thread.ident is None:
            thread.start()
            with database.engine.connect() as second:
                until(lambda: not thread.is_alive() or second.scalar(is_locked))

    yield
    assert thread.ident is not None
    thread.join()


def test_two_workers_that_persist_a_listener_at_once_store_one_connection(postgres: URL) -> None:
    with opened(postgres) as database, opened(postgres) as other:
        channels = [SqlSSEChannelRepository(worker).create({"channel_id": "c"}) for worker in (database, other)]
        for channel in channels:
            channel.register_listener(listener("a"))
        with meanwhile(database, lambda: SqlSSEChannelRepository(other).persist(channels[1])):
            SqlSSEChannelRepository(database).persist(channels[0])
        assert len(list(SqlSSEChannelRepository(database).connections_repository.load_all("c"))) == 1


@pytest.mark.parametrize("delete", [delete_connection, prune])
def test_a_changed_listener_that_is_deleted_while_it_is_persisted_stays_deleted(postgres: URL, delete: Call) -> None:
    with opened(postgres) as database, opened(postgres) as other:
        persist_channel(database)
        channel = SqlSSEChannelRepository(database).load_one("c")
        channel.get_listener(f"listener {NAMES[0]}").start()
        with meanwhile(database, lambda: delete(other)):
            SqlSSEChannelRepository(database).persist(channel)
        found = SqlSSEChannelRepository(database).connections_repository.load_all("c")
        assert f"connection {NAMES[0]}" not in {each.id for each in found}
