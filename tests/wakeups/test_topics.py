"""Topics: a notification wakes the processes that watch what it is about, and no others."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import psycopg
import pytest
from eric_sse.message import Message
from sqlalchemy import URL, event

from eric_sse_sql import BlockingSqlQueue, Database, SqlQueue
from eric_sse_sql.contract import ERIC_SSE_2_0
from eric_sse_sql.wakeups.notifier import NOTIFY_CHANNEL
from eric_sse_sql.wakeups.topics import ALL, MAX_TOPICS, channel_topic, payload_of, queue_topic, topics_in
from support.catalog import conninfo
from support.queues import pop_soon, pop_until_known_empty
from support.waiting import DEADLINE, until

if ERIC_SSE_2_0:
    pytest.skip("channels that broadcast by one statement need eric-sse 2.1", allow_module_level=True)

from eric_sse_sql import SqlConnectionsFactory, SqlSSEChannel
from eric_sse_sql import SqlSSEChannelRepository as Repository


@pytest.fixture
def ear(postgres: URL) -> Iterator[psycopg.Connection]:
    """A connection that listens."""
    with psycopg.connect(conninfo(postgres), autocommit=True) as connection:
        connection.execute(f"LISTEN {NOTIFY_CHANNEL}")
        yield connection


def payloads(ear: psycopg.Connection, count: int) -> list[str]:
    return [notification.payload for notification in ear.notifies(timeout=DEADLINE, stop_after=count)]


def polls_of(database: Database) -> list[str]:
    """The polls of a database, from now on."""
    polls: list[str] = []

    @event.listens_for(database.engine, "before_cursor_execute")
    def record(connection: object, cursor: object, statement: str, *others: object) -> None:
        if statement.startswith("SELECT"):
            polls.append(statement)

    return polls


def test_the_topics_of_a_payload_are_those_that_it_was_made_of() -> None:
    topics = {queue_topic(None, "q"), queue_topic("tenant", "q"), channel_topic(None, "q")}
    assert len(topics) == 3
    assert topics_in(payload_of(topics)) >= topics


@pytest.mark.parametrize("payload", ["", "q", "qAAAAq", "xAAAA", "{}", "now!!"])
def test_a_payload_of_other_origin_is_about_everything(payload: str) -> None:
    assert topics_in(payload) == ALL


def test_too_many_topics_become_everything() -> None:
    topics = {queue_topic(None, str(number)) for number in range(MAX_TOPICS + 1)}
    assert payload_of(topics) == ""
    assert len(payload_of(sorted(topics)[:MAX_TOPICS])) < 8000


def test_a_push_tells_the_topic_of_its_queue(postgres: URL, ear: psycopg.Connection) -> None:
    with Database(postgres) as producer:
        queues = [SqlQueue(producer) for _ in range(3)]
        for queue in queues:
            queue.push(Message("n", 1))
    first, *others = [queue_topic(None, queue.id) for queue in queues]
    heard: list[str] = []
    while len("".join(heard)) < len(first) * len(queues):
        heard += payloads(ear, 1)
    assert heard[0] == first
    assert {topic for payload in heard[1:] for topic in topics_in(payload)} == set(others)


def test_a_broadcast_tells_the_topic_of_its_channel(postgres: URL, ear: psycopg.Connection) -> None:
    with Database(postgres) as producer:
        channel = SqlSSEChannel(connections_factory=SqlConnectionsFactory(producer))
        channel.add_listener()
        Repository(producer).persist(channel)
        channel.broadcast(Message("n", 1))
        assert payloads(ear, 1) == [channel_topic(None, channel.id)]
        Repository(producer).delete(channel.id)


def test_a_transaction_notifies_after_its_commit(postgres: URL, ear: psycopg.Connection) -> None:
    with Database(postgres) as producer:
        queue = SqlQueue(producer)
        with producer.transaction():
            queue.push(Message("n", 1))
            queue.push(Message("n", 2))
            assert list(ear.notifies(timeout=0.1)) == []
        (payload,) = payloads(ear, 1)
        assert topics_in(payload) == {queue_topic(None, queue.id)}


def test_a_process_is_not_woken_by_pushes_to_what_it_does_not_watch(postgres: URL) -> None:
    with Database(postgres) as worker, Database(postgres) as producer:
        mine, another = SqlQueue(worker), SqlQueue(producer)
        pop_until_known_empty(mine)
        polls = polls_of(worker)
        began = time.monotonic()
        while time.monotonic() < began + 1.5:
            another.push(Message("n", 1))
        assert len(polls) <= 3 + time.monotonic() - began  # once a second, and none for the 75 notifications
        SqlQueue(producer, mine.id).push(Message("n", 2))
        assert pop_soon(mine) == 2


def test_a_consumer_that_does_not_know_its_channel_is_woken_by_broadcasts(postgres: URL) -> None:
    with Database(postgres) as worker, Database(postgres) as producer:
        channel = SqlSSEChannel(connections_factory=SqlConnectionsFactory(producer))
        listener = channel.add_listener()
        repository = Repository(producer)
        repository.persist(channel)
        (connection,) = channel.get_connections()
        queue = BlockingSqlQueue(worker, connection.queue.id)
        pop_until_known_empty(SqlQueue(worker, queue.id))
        for _ in range(5):
            began = time.monotonic()
            repository.load_one(channel.id).broadcast(Message("n", 1))
            assert queue.pop(DEADLINE).payload == 1
            if time.monotonic() - began < 0.5:  # without a notification, it would take a second
                break
        else:
            raise AssertionError("no broadcast was noticed at once")
        repository.delete(channel.id)
        assert listener.id


def test_the_same_id_in_two_schemas_is_two_topics(new_postgres: Callable[[], URL]) -> None:
    url = new_postgres()
    with Database(url, schema="one") as one, Database(url, schema="two") as two, Database(url, schema="two") as other:
        one.upgrade()
        two.upgrade()
        queue = SqlQueue(one, "q")
        pop_until_known_empty(queue)
        polls = polls_of(one)
        began = time.monotonic()
        while time.monotonic() < began + 1:
            SqlQueue(other, "q").push(Message("n", 1))
        assert len(polls) <= 2 + time.monotonic() - began
        until(lambda: len(SqlQueue(two, "q")) > 0)
