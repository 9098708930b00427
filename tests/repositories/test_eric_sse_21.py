"""The repositories of eric-sse 2.1 in a database: ids are compared, other writers respected, the cost constant."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
from sqlalchemy import make_url

from eric_sse_sql.contract import ERIC_SSE_2_0
from support.catalog import table_counts
from support.channels import filled
from support.databases import application_engine
from support.queues import drain
from support.statements import Record, Statements

if ERIC_SSE_2_0:
    pytest.skip("the repositories of eric-sse 2.1 need eric-sse 2.1", allow_module_level=True)

from eric_sse.connection import Connection, InMemoryConnectionsFactory
from eric_sse.entities import AbstractChannel
from eric_sse.exception import (
    InvalidConnectionException,
    InvalidListenerException,
    ItemNotFound,
    RepositoryError,
)
from eric_sse.listener import MessageQueueListener
from eric_sse.message import Message
from eric_sse.prefabs import SSEChannel
from eric_sse.queues import InMemoryQueue

from eric_sse_sql import (
    BlockingSqlQueue,
    ChannelRepository,
    Database,
    SqlConnectionsFactory,
    SqlQueue,
    SqlSSEChannelRepository,
    SqlStorageEngine,
)

EMPTY = {"kv_entries": 0, "sse_channels": 0, "sse_connections": 0, "sse_messages": 0}


@pytest.fixture
def channels(database: Database) -> SqlSSEChannelRepository:
    return SqlSSEChannelRepository(database)


def connected(database: Database, connection_id: str) -> Connection:
    return Connection(MessageQueueListener(), SqlQueue(database), connection_id)


def ids(connections: Iterable[Connection]) -> set[str]:
    return {connection.id for connection in connections}


def ids_of(channel: AbstractChannel) -> set[str]:
    return ids(channel.get_connections())


# Ids


def test_a_channel_has_only_its_own_connections_where_ids_share_a_prefix(
    channels: SqlSSEChannelRepository, database: Database
) -> None:
    names = ("chan", "chan2", "chan:2", "ch%n", "ch_n", "CHAN", "")
    for channel_id in names:
        channels.persist(channels.create({"channel_id": channel_id}))
        channels.connections_repository.persist(channel_id, connected(database, f"of {channel_id}"))
    for channel_id in names:
        assert ids(channels.connections_repository.load_all(channel_id)) == {f"of {channel_id}"}
        assert ids_of(channels.load_one(channel_id)) == {f"of {channel_id}"}
    assert ids(channels.connections_repository.load_all("cha")) == set()
    channels.delete("chan")
    assert {each.id: ids_of(each) for each in channels.load_all()} == {
        channel_id: {f"of {channel_id}"} for channel_id in names[1:]
    }


def test_separators_in_ids_cause_no_collision(channels: SqlSSEChannelRepository, database: Database) -> None:
    connections = channels.connections_repository
    pairs = [("a", "b:c"), ("a:b", "c"), ("a/b", "d"), ("a", "b/d")]
    for channel_id, connection_id in pairs:
        connections.persist(channel_id, connected(database, connection_id))
    for channel_id, connection_id in pairs:
        assert connections.load_one(channel_id, connection_id).id == connection_id
    for channel_id, connection_id in (("a:b", "b:c"), ("a", "c"), ("a:b:c", ""), ("a/b", "b/d")):
        with pytest.raises(ItemNotFound):
            connections.load_one(channel_id, connection_id)


def test_a_connection_of_another_channel_is_not_deleted(channels: SqlSSEChannelRepository, database: Database) -> None:
    connections = channels.connections_repository
    connections.persist("one", connected(database, "k"))
    before = table_counts(database)
    connections.delete("two", "k")
    assert table_counts(database) == before
    assert connections.load_one("one", "k").listener.id == connections.listeners_repository.load("k").id


def test_a_connection_is_in_the_channel_that_it_was_last_given_to(
    channels: SqlSSEChannelRepository, database: Database
) -> None:
    connections, connection = channels.connections_repository, connected(database, "k")
    for channel_id in ("one", "two"):
        connections.persist(channel_id, connection)
    assert (ids(connections.load_all("one")), ids(connections.load_all("two"))) == (set(), {"k"})


def test_all_channels_of_the_database_are_loaded_in_the_order_of_their_ids(
    channels: SqlSSEChannelRepository, database: Database
) -> None:
    for channel_id in ("b", "a", "C"):
        filled(channels, channel_id)
    assert [channel.id for channel in SqlSSEChannelRepository(database).load_all()] == ["C", "a", "b"]


# Several processes


def test_a_connection_that_another_process_added_stays_when_a_stale_channel_is_persisted(
    channels: SqlSSEChannelRepository, database: Database
) -> None:
    stale, other = filled(channels, "c"), SqlSSEChannelRepository(database)
    fresh = other.load_one("c")
    added = fresh.add_listener()
    fresh.dispatch(added.id, Message("m", 1))
    other.persist(fresh)
    other.connections_repository.persist("c", connected(database, "by itself"))
    channels.persist(stale)
    loaded = channels.load_one("c")
    assert ids_of(loaded) == {*ids_of(stale), *ids_of(fresh), "by itself"}
    loaded.get_listener(added.id).start()
    assert loaded.deliver_next(added.id).payload == 1


def test_a_channel_created_again_with_the_same_id_keeps_its_connections(
    channels: SqlSSEChannelRepository, database: Database
) -> None:
    first = filled(channels, "c")
    second = filled(SqlSSEChannelRepository(database), "c")
    assert ids_of(channels.load_one("c")) == {*ids_of(first), *ids_of(second)}


def test_connections_persisted_before_their_channel_are_in_it(
    channels: SqlSSEChannelRepository, database: Database
) -> None:
    channels.connections_repository.persist("c", connected(database, "early"))
    channel = filled(channels, "c")
    assert ids_of(channels.load_one("c")) == {*ids_of(channel), "early"}


def test_deleting_a_channel_that_was_never_persisted_deletes_its_connections(
    channels: SqlSSEChannelRepository, database: Database
) -> None:
    connection = connected(database, "early")
    connection.queue.push(Message("m"))
    channels.connections_repository.persist("c", connection)
    channels.delete("c")
    assert table_counts(database) == EMPTY


# Gone with their owner


each_part = pytest.mark.parametrize("part", ["listeners_repository", "queues_repository"])


@each_part
def test_deleting_a_listener_or_queue_deletes_its_connection(channels: SqlSSEChannelRepository, part: str) -> None:
    channel = filled(channels, "c", 2)
    gone, kept = sorted(ids_of(channel))
    getattr(channels.connections_repository, part).delete(gone)
    assert ids_of(channels.load_one("c")) == {kept}
    with pytest.raises(ItemNotFound):
        channels.connections_repository.load_one("c", gone)


@each_part
def test_deleting_a_listener_or_queue_deletes_all_rows_of_its_connection_alone(database: Database, part: str) -> None:
    channels = SqlSSEChannelRepository(database)
    channel = filled(channels, "c", 2)
    channel.broadcast(Message("m"))
    gone, kept = channel.get_connections()
    getattr(channels.connections_repository, part).delete(gone.id)
    assert table_counts(database) == {"kv_entries": 3, "sse_channels": 1, "sse_connections": 1, "sse_messages": 1}
    assert drain(kept.queue) == [None]


@each_part
def test_the_rows_of_a_connection_are_deleted_without_the_foreign_keys_of_sqlite(tmp_path: Path, part: str) -> None:
    with application_engine(make_url(f"sqlite:///{tmp_path / 'app.db'}")) as engine, Database(engine) as database:
        database.upgrade()
        test_deleting_a_listener_or_queue_deletes_all_rows_of_its_connection_alone(database, part)


@each_part
def test_deleting_a_listener_or_queue_keeps_the_messages_of_a_queue_that_another_connection_has(
    channels: SqlSSEChannelRepository, database: Database, part: str
) -> None:
    queue, connections = SqlQueue(database), channels.connections_repository
    for channel_id, connection_id in (("one", "gone"), ("two", "kept")):
        connections.persist(channel_id, Connection(MessageQueueListener(), queue, connection_id))
    queue.push(Message("m"))
    getattr(connections, part).delete("gone")
    assert ids(connections.load_all("one")) == set()
    assert drain(connections.load_one("two", "kept").queue) == [None]


def test_deletes_leave_no_row_behind(channels: SqlSSEChannelRepository, database: Database) -> None:
    connections = channels.connections_repository
    for delete in (
        lambda: channels.delete("c"),
        lambda: [connections.delete("c", connection_id) for connection_id in ids(connections.load_all("c"))],
    ):
        channel = filled(channels, "c", 3)
        channel.broadcast(Message("m"))
        delete()
        assert table_counts(database)["sse_connections"] == table_counts(database)["sse_messages"] == 0
    channels.delete("c")
    assert table_counts(database) == EMPTY


def test_removing_a_connection_deletes_its_own_messages_only(
    channels: SqlSSEChannelRepository, database: Database
) -> None:
    channel = filled(channels, "c", 2)
    channel.broadcast(Message("m"))
    removed, kept = list(channel.get_connections())
    channel.remove_listener(removed.listener.id)
    channels.persist(channel)
    assert table_counts(database) == {"kv_entries": 3, "sse_channels": 1, "sse_connections": 1, "sse_messages": 1}
    assert drain(kept.queue) == [None]


def test_deleting_a_queue_deletes_its_messages(channels: SqlSSEChannelRepository, database: Database) -> None:
    channel = filled(channels, "c")
    channel.broadcast(Message("m"))
    (connection,) = channel.get_connections()
    channels.connections_repository.queues_repository.delete(connection.id)
    with pytest.raises(InvalidConnectionException):
        channels.connections_repository.queues_repository.load(connection.id)
    with pytest.raises(InvalidListenerException):
        channels.load_one("c").get_listener(connection.listener.id)
    assert table_counts(database)["sse_messages"] == 0


# What can't be stored


def test_a_channel_with_a_queue_in_memory_is_refused_as_a_whole(
    channels: SqlSSEChannelRepository, database: Database
) -> None:
    channel = channels.create({"channel_id": "c"})
    channel.add_listener()
    channel.register_connection(InMemoryConnectionsFactory().create())
    with pytest.raises(RepositoryError, match=r"InMemoryQueue .* use eric_sse_sql.SqlQueue"):
        channels.persist(channel)
    with pytest.raises(RepositoryError, match=r"InMemoryQueue .* use eric_sse_sql.SqlQueue"):
        channels.connections_repository.queues_repository.persist("k", InMemoryQueue())
    assert table_counts(database) == EMPTY


def test_loading_a_channel_with_the_other_kind_of_repository_is_an_error(
    channels: SqlSSEChannelRepository, database: Database
) -> None:
    by_object = ChannelRepository(SqlStorageEngine(database))
    by_object.persist(SSEChannel(channel_id="object"))
    channels.persist(channels.create({"channel_id": "dictionary"}))
    with pytest.raises(RepositoryError, match="stored by ChannelRepository; load it with that"):
        channels.load_one("object")
    with pytest.raises(RepositoryError, match="stored by SqlSSEChannelRepository"):
        by_object.load_one("dictionary")


# Queues


@pytest.mark.parametrize("queue_class", [SqlQueue, BlockingSqlQueue])
def test_a_queue_comes_back_as_the_class_that_the_factory_made(database: Database, queue_class: type[SqlQueue]) -> None:
    channels = SqlSSEChannelRepository(database, SqlConnectionsFactory(database, queue_class=queue_class))
    channel = filled(channels, "c")
    (connection,) = channel.get_connections()
    connections = channels.connections_repository
    for queue in (
        *(each.queue for each in channels.load_one("c").get_connections()),
        connections.load_one("c", connection.id).queue,
        connections.queues_repository.load(connection.id),
        *(each.queue for each in SqlSSEChannelRepository(database).load_one("c").get_connections()),
    ):
        assert type(queue) is queue_class
        assert queue.id == connection.queue.id  # type: ignore[attr-defined]


# Cost


def costs(channels: SqlSSEChannelRepository, database: Database, seen: Statements, number: int) -> dict[str, list[str]]:
    """The statements of each call on a channel that has as many connections."""

    def cost(call: Callable[[], object]) -> list[str]:
        seen.clear()
        call()
        return list(seen)

    channel = channels.create({"channel_id": f"c{number}"})
    for _ in range(number):
        channel.add_listener()
    one_id = next(iter(ids_of(channel)))
    found = {
        "broadcast": cost(lambda: channel.broadcast(Message("m"))),
        "persist": cost(lambda: channels.persist(channel)),
        "persist again": cost(lambda: channels.persist(channel)),
        "load_one": cost(lambda: channels.load_one(channel.id)),
        "load_all of connections": cost(lambda: list(channels.connections_repository.load_all(channel.id))),
        "load_one of connections": cost(lambda: channels.connections_repository.load_one(channel.id, one_id)),
    }
    assert len(ids_of(channels.load_one(channel.id))) == number
    for listener_id in [connection.listener.id for connection in channel.get_connections()][number // 2 :]:
        channel.remove_listener(listener_id)
    found["persist without half of them"] = cost(lambda: channels.persist(channel))
    found["delete"] = cost(lambda: channels.delete(channel.id))
    return found


def test_every_call_takes_the_same_statements_for_any_number_of_connections(
    channels: SqlSSEChannelRepository, database: Database, statements: Record
) -> None:
    seen = statements(database)
    few, many, most = (costs(channels, database, seen, number) for number in (2, 100, 1_000))
    assert few == many == most
    locks = 2 * database.executor.dialect.locks_rows
    assert {name: len(found) for name, found in few.items()} == {
        "broadcast": 1,
        "persist": 5,
        "persist again": 2,
        "load_one": 1,
        "load_all of connections": 1,
        "load_one of connections": 1,
        "persist without half of them": 6 + locks,
        "delete": 8 + locks,
    }
    assert table_counts(database) == EMPTY


def test_a_channel_of_one_connection_takes_no_other_statements(
    channels: SqlSSEChannelRepository, database: Database, statements: Record
) -> None:
    seen = statements(database)
    one, many = (costs(channels, database, seen, number) for number in (1, 100))
    assert set(one.pop("delete")) <= set(many.pop("delete"))  # it has no connection any more
    assert one == many


def test_all_channels_are_a_statement_for_each_hundred(
    channels: SqlSSEChannelRepository, database: Database, statements: Record
) -> None:
    with database.transaction():
        for n in range(205):
            filled(channels, f"{n:03}", n % 3)
    seen = statements(database)
    loaded = list(channels.load_all())
    assert len(seen) == 3
    assert [(each.id, len(ids_of(each))) for each in loaded] == [(f"{n:03}", n % 3) for n in range(205)]


def test_a_connection_is_persisted_and_deleted_in_a_constant_number_of_statements(
    channels: SqlSSEChannelRepository, database: Database, statements: Record
) -> None:
    seen, counted = statements(database), []
    connections = channels.connections_repository
    for number in (1, 100):
        filled(channels, f"c{number}", number)
        for delete in (
            lambda n=number: connections.delete(f"c{n}", "k"),
            lambda: connections.listeners_repository.delete("k"),
            lambda: connections.queues_repository.delete("k"),
        ):
            for call in (lambda n=number: connections.persist(f"c{n}", connected(database, "k")), delete):
                seen.clear()
                call()
                counted.append(len(seen))
    lock = int(database.executor.dialect.locks_rows)
    assert counted == [4, 4 + lock, 4, 5 + lock, 4, 5 + lock] * 2
