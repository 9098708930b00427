"""Each call is atomic: whichever statement in it fails, all its writes are visible or none, and a retry works."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from eric_sse.exception import RepositoryError
from eric_sse.listener import MessageQueueListener
from eric_sse.message import Message
from eric_sse.prefabs import SSEChannel
from sqlalchemy import Connection, event, text

from eric_sse_sql import (
    ChannelRepository,
    ConnectionRepository,
    Database,
    ListenerRepository,
    QueueRepository,
    SqlQueue,
    SqlStorageEngine,
    contract,
)
from eric_sse_sql.queues import broadcast
from support.catalog import connections_in_use

COLUMNS = {
    "kv_entries": "key, value",
    "sse_channels": "id, entry_key, channel_type",
    "sse_connections": "id, channel_id, listener_id, listener_key, queue_id, queue_key",
    "sse_messages": "queue_id, message_type, message, delivery_count",
}


#: Whose thread would make calls of its own. The fixture comes before that of the database.
pytestmark = pytest.mark.usefixtures("without_notifier")


class Failing:
    """Fails the n-th call that the engine makes of its database: a statement, a savepoint or a commit."""

    def __init__(self, database: Database) -> None:
        self.left = 0
        event.listen(database.engine, "before_cursor_execute", self.count)
        event.listen(database.engine, "commit", self.count)

    def count(self, connection: Connection, *arguments: Any) -> None:
        driver: Any = connection.connection.driver_connection
        if not arguments and not (
            driver.in_transaction if hasattr(driver, "in_transaction") else not driver.autocommit
        ):
            return  # a commit where the driver has nothing to commit
        self.left -= 1
        if self.left == 0:
            raise ConnectionError("injected")


def snapshot(database: Database) -> dict[str, int]:
    """A number for what is in each table."""
    with database.engine.connect() as connection:
        return {
            table: hash(frozenset(map(tuple, connection.execute(text(f"SELECT {columns} FROM {table}")))))
            for table, columns in COLUMNS.items()
        }


def connect(channel: Any, database: Database, name: str) -> MessageQueueListener:
    listener = MessageQueueListener()
    listener.id = f"listener {name}"
    queue = SqlQueue(database, f"queue {name}")
    contract.register(channel, contract.make_connection(listener, queue, f"connection {name}"))
    queue.push(Message("waiting", name))
    return listener


def of_2_0(database: Database) -> dict[str, Callable[[], object]]:
    """The calls of the repositories of eric-sse 2.0, on a channel with two connections."""
    storage = SqlStorageEngine(database)
    channels = ChannelRepository(storage)
    channel = SSEChannel(channel_id="channel")
    first, second = (connect(channel, database, name) for name in "ab")
    channels.persist(channel)
    storage.upsert("key", 1)
    changed = channels.load_one("channel")
    changed.remove_listener(first.id)
    connect(changed, database, "c")
    changed.stream_delay_seconds = 3
    new = contract.make_connection(MessageQueueListener(), SqlQueue(database, "queue d"), "connection d")
    stored = list(ConnectionRepository(storage).load_all("channel"))  # of which eric-sse 2.0 keeps no ids
    first.start()
    queue = SqlQueue(database, "queue a")
    return {
        "upsert": lambda: storage.upsert("key", 2),
        "delete": lambda: storage.delete("key"),
        "persist a listener": lambda: ListenerRepository(storage).persist(first),
        "delete a listener": lambda: ListenerRepository(storage).delete(second.id),
        "delete a queue": lambda: QueueRepository(storage).delete("queue a"),
        "persist a connection": lambda: ConnectionRepository(storage).persist(new, "channel"),
        "delete a connection": lambda: ConnectionRepository(storage).delete(stored[0].id),
        "persist a channel": lambda: channels.persist(changed),
        "delete a channel": lambda: channels.delete("channel"),
        "push": lambda: queue.push(Message("m", 1)),
        "push many": lambda: queue.push_many(Message("m", n) for n in range(3)),
        "broadcast": lambda: broadcast(Message("m"), [queue, SqlQueue(database, "queue b")]),
        "pop": queue.pop,
        "clear": queue.clear,
    }


def of_2_1(database: Database) -> dict[str, Callable[[], object]]:
    """The calls of the repositories of eric-sse 2.1."""
    if contract.ERIC_SSE_2_0:
        return {}
    from eric_sse_sql import SqlSSEChannelRepository

    repository = SqlSSEChannelRepository(database)
    connections = repository.connections_repository
    channel = repository.create({"channel_id": "channel"})
    first, _ = (connect(channel, database, name) for name in "ab")
    repository.persist(channel)
    changed = repository.load_one("channel")
    changed.remove_listener(first.id)
    connect(changed, database, "c")
    changed.stream_delay_seconds = 3
    new = contract.make_connection(MessageQueueListener(), SqlQueue(database, "queue d"), "connection d")
    other = MessageQueueListener()
    return {
        "persist a channel of 2.1": lambda: repository.persist(changed),
        "delete a channel of 2.1": lambda: repository.delete("channel"),
        "broadcast in 2.1": lambda: channel.broadcast(Message("m")),
        "persist a connection of 2.1": lambda: connections.persist("channel", new),
        "persist a connection before its channel": lambda: connections.persist("nowhere", new),
        "delete a connection of 2.1": lambda: connections.delete("channel", "connection a"),
        "persist a connection's listener": lambda: connections.listeners_repository.persist("connection a", other),
        "delete a connection's listener": lambda: connections.listeners_repository.delete("connection a"),
        "persist a connection's queue": lambda: connections.queues_repository.persist("connection a", new.queue),
        "delete a connection's queue": lambda: connections.queues_repository.delete("connection a"),
    }


CALLS = [
    *((of_2_0, name) for name in (
        *("upsert", "delete", "persist a listener", "delete a listener", "delete a queue", "persist a connection"),
        *("delete a connection", "persist a channel", "delete a channel", "push", "push many", "broadcast", "pop"),
        "clear",
    )),
    *((of_2_1, name) for name in (
        *("persist a channel of 2.1", "delete a channel of 2.1", "broadcast in 2.1", "persist a connection of 2.1"),
        *("persist a connection before its channel", "delete a connection of 2.1", "persist a connection's listener"),
        *("delete a connection's listener", "persist a connection's queue", "delete a connection's queue"),
    )),
]  # fmt: skip


@pytest.mark.parametrize(("calls", "name"), CALLS, ids=[name for _, name in CALLS])
def test_a_call_that_fails_at_any_statement_changes_nothing_and_can_be_repeated(
    calls: Callable[[Database], dict[str, Callable[[], object]]], name: str, database: Database
) -> None:
    if calls is of_2_1 and contract.ERIC_SSE_2_0:
        pytest.skip("eric-sse 2.0 has no such repository")
    call = calls(database)[name]
    before, failing, nth = snapshot(database), Failing(database), 0
    while True:
        nth += 1
        failing.left = nth
        try:
            call()
            break
        except RepositoryError as error:
            assert isinstance(error.__cause__, ConnectionError)
        failing.left = 0
        assert snapshot(database) == before, f"call {nth} of the database"
        assert connections_in_use(database) == 0
    failing.left = 0
    assert nth > 1
    assert snapshot(database) != before


def test_a_prune_that_fails_at_any_statement_can_be_repeated(database: Database) -> None:
    queue, failing, nth = SqlQueue(database), Failing(database), 0
    while True:
        nth += 1
        queue.clear()
        queue.push(Message("m"))
        failing.left = nth
        try:
            pruned = database.prune(older_than=timedelta(0))
            break
        except RepositoryError as error:
            assert isinstance(error.__cause__, ConnectionError)
        failing.left = 0
        assert connections_in_use(database) == 0
        assert len(queue) <= 1  # each page is a transaction of its own
    failing.left = 0
    assert nth > 3
    assert (pruned.messages, len(queue)) == (1, 0)


def test_in_a_transaction_a_call_that_fails_at_any_statement_rolls_all_calls_back(database: Database) -> None:
    calls = of_2_0(database)
    before, failing, nth = snapshot(database), Failing(database), 0
    while True:
        nth += 1
        failing.left = nth
        try:
            with database.transaction():
                for name in ("upsert", "persist a channel", "push many", "pop", "delete a channel"):
                    calls[name]()
            break
        except RepositoryError:
            pass
        failing.left = 0
        assert snapshot(database) == before, f"call {nth} of the database"
    failing.left = 0
    assert nth > 15
    assert snapshot(database) != before
