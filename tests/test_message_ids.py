"""Messages that are added with an id: a repeated call adds them once, whatever became of the first one."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from threading import Barrier
from typing import Any

import pytest
from eric_sse.exception import RepositoryError
from eric_sse.message import Message
from sqlalchemy import URL

from eric_sse_sql import Database, OutcomeUnknown, PickleCodec, SqlQueue
from eric_sse_sql.contract import ERIC_SSE_2_0
from support.catalog import table_counts
from support.cutting_proxy import COMMIT, CuttingProxy
from support.databases import opened
from support.queues import drain
from support.statements import Record

needs_channels = pytest.mark.skipif(ERIC_SSE_2_0, reason="eric-sse 2.0 has no such channels")


def count_of_ids(database: Database) -> int:
    return table_counts(database).get("sse_message_ids", 0)


def test_a_push_with_the_id_of_an_earlier_one_adds_nothing(database: Database) -> None:
    queue = SqlQueue(database)
    for n in (1, 2):
        queue.push(Message("m", n), message_id="order 1")
    queue.push(Message("m", 3), message_id="order 2")
    assert drain(queue) == [1, 3]
    queue.push(Message("m", 4), "order 1")  # delivered messages count, too
    assert drain(queue) == []


def test_an_id_is_of_one_queue(database: Database) -> None:
    queues = [SqlQueue(database) for _ in range(2)]
    for queue in queues:
        queue.push(Message("m", 1), message_id="order 1")
    assert [drain(queue) for queue in queues] == [[1], [1]]


def test_of_many_messages_those_with_new_ids_are_added_in_their_order(database: Database) -> None:
    queue = SqlQueue(database)
    queue.push(Message("m", 0), message_id="b")
    queue.push_many((Message("m", n) for n in range(1, 6)), message_ids=["z", "b", "a", "z", "c"])
    assert drain(queue) == [0, 1, 3, 5]
    queue.push_many([], message_ids=[])
    queue.push_many([Message("m", 6)], message_ids=["a"])
    assert drain(queue) == []
    with pytest.raises(RepositoryError, match="one message id for each message, not 1 for 2"):
        queue.push_many([Message("m", 1)] * 2, message_ids=["d"])


def test_a_call_that_fails_does_not_remember_its_id(database: Database) -> None:
    queue = SqlQueue(database)
    with pytest.raises(RepositoryError):
        queue.push(Message("m", lambda: None), message_id="order 1")
    with pytest.raises(ZeroDivisionError), database.transaction():
        queue.push(Message("m", 1), message_id="order 1")
        raise ZeroDivisionError
    assert count_of_ids(database) == 0
    queue.push(Message("m", 2), message_id="order 1")
    assert drain(queue) == [2]


@pytest.mark.parametrize("message_id", ["", "é" * 128, "a\0b", "\ud800", 7], ids=ascii)
def test_an_id_that_no_database_could_keep_is_refused(database: Database, message_id: Any) -> None:
    queue = SqlQueue(database)
    with pytest.raises(RepositoryError, match="a message id must"):
        queue.push(Message("m", 1), message_id=message_id)
    with pytest.raises(RepositoryError, match="a message id must"):
        queue.push_many([Message("m", 1)], message_ids=[message_id])
    assert drain(queue) == []


def test_a_message_without_id_costs_nothing_more(database: Database, statements: Record) -> None:
    seen = statements(database)
    SqlQueue(database).push(Message("m", 1))
    assert len(seen) == 1
    assert "sse_message_ids" not in seen[0]


def test_an_id_is_remembered_until_it_is_pruned(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("eric_sse_sql.database.PRUNE_ROWS", 2)
    queue = SqlQueue(database)
    ids = [f"order {n}" for n in range(5)]
    queue.push_many([Message("m", n) for n in range(5)], message_ids=ids)
    drain(queue)
    assert database.prune(older_than=timedelta(hours=1)).message_ids == 0
    queue.push_many([Message("m", n) for n in range(5)], message_ids=ids)
    assert drain(queue) == []
    database.prune(older_than=timedelta(0))
    assert count_of_ids(database) == 0
    queue.push(Message("m", 9), message_id="order 1")
    assert drain(queue) == [9]


def test_threads_that_push_the_same_ids_at_once_add_each_message_once(shared_url: URL) -> None:
    threads, ids = 4, [f"order {n}" for n in range(20)]
    start = Barrier(threads)

    def push(number: int) -> None:
        order = ids if number % 2 else ids[::-1]
        with opened(shared_url) as database:
            start.wait()
            for message_id in order:
                SqlQueue(database, "q").push(Message("m", message_id), message_id=message_id)
            SqlQueue(database, "q").push_many([Message("m", each) for each in order], message_ids=order)

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(push, range(threads)))
    with opened(shared_url) as database:
        assert sorted(drain(SqlQueue(database, "q"))) == sorted(ids)


@needs_channels
@pytest.mark.parametrize("replay_seconds", [0, 60])
@pytest.mark.parametrize("codec", [PickleCodec(), PickleCodec(signing_keys=[b"0123456789abcdef"])], ids=["", "signed"])
@pytest.mark.parametrize("is_stored", [True, False])
def test_a_dispatch_and_a_broadcast_with_an_id_are_given_once(
    shared_url: URL, replay_seconds: int, codec: PickleCodec, is_stored: bool
) -> None:
    from eric_sse_sql import SqlSSEChannelRepository

    with Database(shared_url, codec=codec) as database:
        repository = SqlSSEChannelRepository(database)
        channel = repository.create({"channel_id": "c", "replay_seconds": replay_seconds})
        listeners = [channel.add_listener() for _ in range(2)]
        if is_stored:
            repository.persist(channel)
        for listener in listeners:
            listener.start()
            for _ in range(2):  # the same id for each listener, and for the channel
                channel.dispatch(listener.id, Message("m", "dispatch"), message_id="1")
        for _ in range(2):
            channel.broadcast(Message("m", "broadcast"), message_id="1")
        for listener in listeners:
            queue = next(each.queue for each in channel.get_connections() if each.listener is listener)
            assert drain(queue) == ["dispatch", "broadcast"]


@needs_channels
def test_a_channel_in_no_database_takes_no_id() -> None:
    from eric_sse_sql import SqlSSEChannel

    channel = SqlSSEChannel()
    with pytest.raises(RepositoryError, match="persist it first"):
        channel.broadcast(Message("m", 1), message_id="1")


CALLS: dict[str, Callable[[SqlQueue], None]] = {
    "push": lambda queue: queue.push(Message("m", 1), message_id="order 1"),
    "push_many": lambda queue: queue.push_many([Message("m", 1)], message_ids=["order 1"]),
}


@pytest.mark.parametrize("call", CALLS)
def test_a_call_whose_reply_was_lost_is_repeated_with_its_id(migrated_postgres: URL, call: str) -> None:
    with CuttingProxy(migrated_postgres) as proxy, opened(proxy.url) as database:
        queue = SqlQueue(database, "repeated")
        assert len(queue) == 0  # SQLAlchemy's first connection runs transactions of its own
        proxy.lose_reply_to(COMMIT)
        with pytest.raises(OutcomeUnknown):
            CALLS[call](queue)
        CALLS[call](queue)
        assert drain(queue) == [1]
        database.prune(older_than=timedelta(0))
