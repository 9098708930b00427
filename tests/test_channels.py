"""The channels of this package: a broadcast is one statement."""

from __future__ import annotations

import pytest

from eric_sse_sql.contract import ERIC_SSE_2_0
from support.catalog import table_counts
from support.channels import filled
from support.queues import drain
from support.statements import Record

if ERIC_SSE_2_0:
    pytest.skip("the repositories of eric-sse 2.1 need eric-sse 2.1", allow_module_level=True)

from eric_sse.connection import Connection
from eric_sse.exception import (
    RepositoryError,
)
from eric_sse.listener import MessageQueueListener
from eric_sse.message import Message
from eric_sse.queues import InMemoryQueue
from sqlalchemy import text

from eric_sse_sql import (
    BlockingSqlQueue,
    Database,
    PickleCodec,
    SqlQueue,
    SqlSSEChannel,
    SqlSSEChannelRepository,
)


@pytest.fixture
def channels(database: Database) -> SqlSSEChannelRepository:
    return SqlSSEChannelRepository(database)


def test_a_message_that_can_not_be_stored_is_broadcast_to_no_listener(
    channels: SqlSSEChannelRepository, database: Database
) -> None:
    channel = filled(channels, "c", 3)
    with pytest.raises(RepositoryError, match="can't be stored"):
        channel.broadcast(Message("m", lambda: None))  # type: ignore[arg-type]
    assert table_counts(database)["sse_messages"] == 0


def test_a_broadcast_reaches_blocking_queues_and_queues_of_the_application_too(database: Database) -> None:
    channel = SqlSSEChannel()
    queues = [SqlQueue(database), BlockingSqlQueue(database), InMemoryQueue()]
    for queue in queues:
        channel.register_connection(Connection(MessageQueueListener(), queue))
    channel.broadcast(Message("m", 1))
    assert [queue.pop().payload for queue in queues] == [1, 1, 1]


def test_a_broadcast_keeps_its_place_among_other_messages(channels: SqlSSEChannelRepository) -> None:
    channel = filled(channels, "c", 2)
    one, other = channel.get_connections()
    channel.dispatch(one.listener.id, Message("m", "before"))
    channel.broadcast(Message("m", "to all"))
    channel.dispatch(one.listener.id, Message("m", "after"))
    assert drain(one.queue) == ["before", "to all", "after"]
    assert drain(other.queue) == ["to all"]


def test_a_signed_broadcast_arrives_at_each_queue(database: Database, statements: Record) -> None:
    signing = Database(database.engine, codec=PickleCodec(signing_keys=[b"0123456789abcdef"]))
    channel = filled(SqlSSEChannelRepository(signing), "c", 3)
    seen = statements(database)
    channel.broadcast(Message("m", 1))
    assert len(seen) == 1
    with database.engine.connect() as connection:
        blobs = connection.scalars(text("SELECT message FROM sse_messages")).all()
    assert len(set(map(bytes, blobs))) == 3  # a signature is bound to its queue
    loaded = SqlSSEChannelRepository(signing).load_one("c")
    assert [drain(each.queue) for each in loaded.get_connections()] == [[1]] * 3


def test_a_broadcast_reaches_a_hundred_thousand_queues_in_one_statement(database: Database, statements: Record) -> None:
    channel, number = SqlSSEChannel(), 100_000
    for n in range(number):
        channel.register_connection(Connection(MessageQueueListener(f"l{n}"), SqlQueue(database, f"q{n}"), f"k{n}"))
    seen = statements(database)
    channel.broadcast(Message("m", 1))
    assert len(seen) == 1
    with database.engine.connect() as connection:
        counted = text("SELECT count(*), count(DISTINCT queue_id) FROM sse_messages")
        assert connection.execute(counted).one() == (number, number)
    for n in (0, number // 2, number - 1):
        assert drain(SqlQueue(database, f"q{n}")) == [1]
