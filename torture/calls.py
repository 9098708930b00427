"""Every public call that uses the database: what is there before it, and the call."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import aclosing, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from eric_sse.connection import Connection
from eric_sse.exception import RepositoryError
from eric_sse.listener import MessageQueueListener
from eric_sse.message import Message
from eric_sse.prefabs import SSEChannel
from sqlalchemy import create_engine, text
from sqlalchemy.exc import DBAPIError

from eric_sse_sql import (
    BlockingSqlQueue,
    ChannelRepository,
    ConnectionRepository,
    Database,
    ListenerRepository,
    QueueRepository,
    SqlQueue,
    SqlSSEChannelRepository,
    SqlStorageEngine,
)

Act = Callable[[], Any]
STREAM_SECONDS = 5


@dataclass(frozen=True)
class Call:
    """A call.

    :param prepare: makes what is there before, and returns the call
    :param is_atomic: whether it does all or nothing
    :param raises: what it may raise
    """

    prepare: Callable[[Database], Act]
    is_atomic: bool = True
    raises: tuple[type[Exception], ...] = (RepositoryError,)


class _Fault(Exception):
    """Raised by a consumer."""


def _queue(act: Callable[[SqlQueue], Any], *, kind: type[SqlQueue] = SqlQueue) -> Call:
    """A call of a queue that has three messages."""

    def prepare(database: Database) -> Act:
        queue = kind(database, "queue")
        queue.push_many(Message("message", n) for n in range(3))
        return lambda: act(queue)

    return Call(prepare)


def _receive(queue: SqlQueue) -> None:
    with queue.receive():
        pass


def _fail_to_receive(queue: SqlQueue) -> None:
    with suppress(_Fault), queue.receive():
        raise _Fault


def _put_back(database: Database) -> Act:
    queue = SqlQueue(database, "queue")
    queue.push_many(Message("message", n) for n in range(3))
    rows = queue.take(2)
    return lambda: queue.put_back(rows)


def _set_aside(database: Database) -> None:
    """Three messages, of which the second can't be decoded."""
    queue = SqlQueue(database, "queue")
    queue.push_many(Message("message", n) for n in range(3))
    with database.transaction():
        database.connection().execute(
            text("UPDATE sse_messages SET message = :bad WHERE id = (SELECT min(id) FROM sse_messages)"),
            {"bad": b"no pickle"},
        )


def _pop_unreadable(database: Database) -> Act:
    _set_aside(database)
    return SqlQueue(database, "queue").pop


def _retry_set_aside(database: Database) -> Act:
    _set_aside(database)
    SqlQueue(database, "queue").pop()
    return database.retry_set_aside


def _storage(act: Callable[[SqlStorageEngine], Any]) -> Call:
    """A call of a storage engine that has 150 entries."""

    def prepare(database: Database) -> Act:
        storage = SqlStorageEngine(database, "calls")
        with database.transaction():
            for n in range(150):
                storage.upsert(f"key/{n:03}", n)
        return lambda: act(storage)

    return Call(prepare)


def _transaction(database: Database) -> Act:
    storage, queue = SqlStorageEngine(database, "calls"), SqlQueue(database, "queue")

    def act() -> None:
        with database.transaction():
            storage.upsert("key", 1)
            queue.push(Message("message", 1))
            with suppress(_Fault), database.transaction():
                queue.push(Message("message", 2))
                raise _Fault
            storage.upsert("other", 2)

    return act


def _join(database: Database) -> Act:
    storage, queue = SqlStorageEngine(database, "calls"), SqlQueue(database, "queue")

    def act() -> None:
        engine = create_engine(database.engine.url)
        try:
            with engine.begin() as connection, database.join(connection):
                storage.upsert("key", 1)
                queue.push(Message("message", 1))
        finally:
            engine.dispose()

    return act


def _connection(database: Database, name: str) -> Connection:
    return Connection(MessageQueueListener(f"listener {name}"), SqlQueue(database, f"queue {name}"), name)


def _channel(act: Callable[[Any, Any], Any], *, replay_seconds: float = 0) -> Call:
    """A call about a stored channel with three connections, which gets the repository and the loaded channel."""

    def prepare(database: Database) -> Act:
        repository = SqlSSEChannelRepository(database)
        channel = repository.create({"channel_id": "channel", "replay_seconds": replay_seconds})
        for name in ("one", "two", "three"):
            channel.register_connection(_connection(database, name))
        repository.persist(channel)
        channel.broadcast(Message("before", 1))
        loaded = repository.load_one("channel")
        return lambda: act(repository, loaded)

    return Call(prepare)


def _persist_new(database: Database) -> Act:
    repository = SqlSSEChannelRepository(database)
    channel = repository.create({"channel_id": "new", "replay_seconds": 60})
    for name in ("one", "two"):
        channel.register_connection(_connection(database, name))
    return lambda: repository.persist(channel)


def _persist_changed(database: Database) -> Act:
    repository = SqlSSEChannelRepository(database)
    channel = repository.create({"channel_id": "changed", "replay_seconds": 0})
    for name in ("one", "two"):
        channel.register_connection(_connection(database, name))
    repository.persist(channel)
    channel.remove_listener("listener one")
    channel.register_connection(_connection(database, "three"))
    return lambda: repository.persist(channel)


def _stream(repository: Any, channel: Any) -> None:
    """The first two messages of a stream, which goes on by itself after a fault."""

    async def read() -> None:
        listener = channel.get_listener("listener one")
        listener.start()
        channel.dispatch(listener.id, Message("second", 2))
        found: list[str] = []
        async with aclosing(channel.message_stream(listener)) as stream:
            while len(found) < 2:
                event = await asyncio.wait_for(anext(stream), STREAM_SECONDS)
                found += [event["event"]] * (event["event"] != "error")
        if found != ["before", "second"]:
            raise AssertionError(f"the stream has delivered {found}")

    asyncio.run(read())


def _prune(database: Database) -> Act:
    SqlQueue(database, "orphan").push(Message("message"))
    SqlSSEChannelRepository(database).connections_repository.persist("gone", _connection(database, "unseen"))
    return lambda: database.prune(timedelta(0), unseen_for=timedelta(0))


def _seed(persist: Callable[[SqlStorageEngine, Any], Any], act: Callable[[SqlStorageEngine, Any], Any]) -> Call:
    """A call of a repository of eric-sse 2.0's interface, about a connection."""

    def prepare(database: Database) -> Act:
        storage, connection = SqlStorageEngine(database), _connection(database, "seed")
        persist(storage, connection)
        return lambda: act(storage, connection)

    return Call(prepare)


def _nothing(storage: SqlStorageEngine, connection: Connection) -> None:
    """Nothing is stored before."""


def _persist_listener(storage: SqlStorageEngine, connection: Connection) -> None:
    ListenerRepository(storage).persist(connection.listener)


def _persist_queue(storage: SqlStorageEngine, connection: Connection) -> None:
    QueueRepository(storage).persist(connection.queue)


def _persist_connection(storage: SqlStorageEngine, connection: Connection) -> None:
    ConnectionRepository(storage).persist(connection)


def _persist_channel(storage: SqlStorageEngine, connection: Connection) -> None:
    channel = SSEChannel(channel_id="seed")
    channel.register_connection(connection)
    ChannelRepository(storage).persist(channel)


CALLS: dict[str, Call] = {
    "push": _queue(lambda queue: queue.push(Message("message", 9))),
    "push_many": _queue(lambda queue: queue.push_many(Message("message", n) for n in range(9))),
    "pop": _queue(lambda queue: queue.pop()),
    "pop of a blocking queue": _queue(lambda queue: queue.pop(), kind=BlockingSqlQueue),
    "pop of an unreadable message": Call(_pop_unreadable, is_atomic=False),
    "take": _queue(lambda queue: queue.take(2)),
    "put_back": Call(_put_back),
    "receive, acknowledged": Call(_queue(_receive).prepare, is_atomic=False),
    "receive, released": Call(_queue(_fail_to_receive).prepare, is_atomic=False),
    "clear": _queue(lambda queue: queue.clear()),
    "len": _queue(len),
    "count_set_aside": Call(lambda database: database.count_set_aside),
    "retry_set_aside": Call(_retry_set_aside),
    "upsert": _storage(lambda storage: storage.upsert("key/001", "new")),
    "fetch_one": _storage(lambda storage: storage.fetch_one("key/001")),
    "fetch_by_prefix": _storage(lambda storage: list(storage.fetch_by_prefix("key/"))),
    "fetch_all": _storage(lambda storage: list(storage.fetch_all())),
    "delete": _storage(lambda storage: storage.delete("key/001")),
    "transaction": Call(_transaction),
    "join": Call(_join, raises=(RepositoryError, DBAPIError)),  # the application's own statements fail, too
    "check": Call(lambda database: database.check),
    "upgrade of what is up to date": Call(lambda database: database.upgrade),
    "prune": Call(_prune, is_atomic=False),
    "persist of a new channel": Call(_persist_new),
    "persist of a changed channel": Call(_persist_changed),
    "load_one of a channel": _channel(lambda repository, channel: repository.load_one("channel")),
    "load_all of channels": _channel(lambda repository, channel: list(repository.load_all())),
    "delete of a channel": _channel(lambda repository, channel: repository.delete("channel")),
    "delete of a channel with a log": _channel(
        lambda repository, channel: repository.delete("channel"), replay_seconds=60
    ),
    "load_all of connections": _channel(
        lambda repository, channel: list(repository.connections_repository.load_all("channel"))
    ),
    "load_one of a connection": _channel(
        lambda repository, channel: repository.connections_repository.load_one("channel", "one")
    ),
    "persist of a connection": _channel(
        lambda repository, channel: repository.connections_repository.persist(
            "channel", _connection(repository.connections_factory.create().queue.database, "four")
        )
    ),
    "delete of a connection": _channel(
        lambda repository, channel: repository.connections_repository.delete("channel", "one")
    ),
    "load of a listener": _channel(
        lambda repository, channel: repository.connections_repository.listeners_repository.load("one")
    ),
    "delete of a queue": _channel(
        lambda repository, channel: repository.connections_repository.queues_repository.delete("one")
    ),
    "get_listener": _channel(lambda repository, channel: channel.get_listener("listener one")),
    "get_connections": _channel(lambda repository, channel: channel.get_connections()),
    "dispatch": _channel(lambda repository, channel: channel.dispatch("listener one", Message("message"))),
    "broadcast": _channel(lambda repository, channel: channel.broadcast(Message("message"))),
    "deliver_next": _channel(lambda repository, channel: _delivered(channel)),
    "dispatch to a log": _channel(
        lambda repository, channel: channel.dispatch("listener one", Message("message")), replay_seconds=60
    ),
    "broadcast to a log": _channel(
        lambda repository, channel: channel.broadcast(Message("message")), replay_seconds=60
    ),
    "deliver_next from a log": _channel(lambda repository, channel: _delivered(channel), replay_seconds=60),
    "message_stream": Call(_channel(_stream).prepare, is_atomic=False),
    "message_stream of a log": Call(_channel(_stream, replay_seconds=60).prepare, is_atomic=False),
    "persist of a listener (2.0)": _seed(_nothing, _persist_listener),
    "load of a listener (2.0)": _seed(
        _persist_listener, lambda storage, connection: ListenerRepository(storage).load(connection.listener.id)
    ),
    "delete of a listener (2.0)": _seed(
        _persist_listener, lambda storage, connection: ListenerRepository(storage).delete(connection.listener.id)
    ),
    "persist of a queue (2.0)": _seed(_nothing, _persist_queue),
    "load of a queue (2.0)": _seed(
        _persist_queue, lambda storage, connection: QueueRepository(storage).load(connection.queue.id)
    ),
    "delete of a queue (2.0)": _seed(
        _persist_queue, lambda storage, connection: QueueRepository(storage).delete(connection.queue.id)
    ),
    "persist of a connection (2.0)": _seed(_nothing, _persist_connection),
    "load_one of a connection (2.0)": _seed(
        _persist_connection, lambda storage, connection: ConnectionRepository(storage).load_one(connection.id)
    ),
    "delete of a connection (2.0)": _seed(
        _persist_connection, lambda storage, connection: ConnectionRepository(storage).delete(connection.id)
    ),
    "persist of a channel (2.0)": _seed(_nothing, _persist_channel),
    "load_one of a channel (2.0)": _seed(
        _persist_channel, lambda storage, connection: ChannelRepository(storage).load_one("seed")
    ),
    "delete of a channel (2.0)": _seed(
        _persist_channel, lambda storage, connection: ChannelRepository(storage).delete("seed")
    ),
}


def _delivered(channel: Any) -> Any:
    channel.get_listener("listener one").start()
    return channel.deliver_next("listener one")
