"""The repositories of eric-sse 2.0: connections belong to channels, and are loaded and deleted with all their parts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from eric_sse.connection import Connection
from eric_sse.entities import AbstractChannel
from eric_sse.exception import NoMessagesException, RepositoryError
from eric_sse.listener import MessageQueueListener
from eric_sse.message import Message, MessageContract
from eric_sse.prefabs import SSEChannel
from eric_sse.queues import InMemoryQueue
from sqlalchemy import create_engine, event, text
from sqlalchemy.exc import OperationalError

from eric_sse_sql import (
    ChannelRepository,
    ConnectionRepository,
    Database,
    ListenerRepository,
    PickleCodec,
    QueueRepository,
    SqlQueue,
    SqlStorageEngine,
)
from eric_sse_sql.contract import (
    ItemNotFound,
    ObjectAsKeyValuePersistenceMixin,
    make_connection,
    register,
    registered_connections,
)
from support.catalog import table_counts
from support.statements import Record
from support.upstream import upstream_storage

EMPTY = {"kv_entries": 0, "sse_channels": 0, "sse_connections": 0, "sse_messages": 0}


class Clerk(MessageQueueListener):
    """A listener of an application, by pickle."""

    def __init__(self) -> None:
        super().__init__()
        self.desk = {"drawer": [1, 2]}
        self.seen: list[str] = []

    def on_message(self, msg: MessageContract) -> None:
        self.seen.append(msg.type)


class Robot(MessageQueueListener, ObjectAsKeyValuePersistenceMixin):
    """A listener of an application, by the mixin: pickle can't take its callable."""

    def __init__(self, serial: int) -> None:
        super().__init__()
        self.serial, self.act, self.set_up = serial, lambda: serial, False

    @property
    def kv_key(self) -> str:
        return self.id

    @property
    def kv_constructor_params_as_dict(self) -> dict[str, Any]:
        return {"serial": self.serial}

    @property
    def kv_setup_values_as_dict(self) -> dict[str, Any]:
        return {"id": self.id}

    def kv_setup_by_dict(self, setup: dict[str, Any]) -> None:
        self.id, self.set_up = setup["id"], True


class Order(Message):
    """A message of an application."""

    def __init__(self, number: int) -> None:
        super().__init__("order", {"number": number})
        self.number = number


class Room(AbstractChannel):
    """A channel of an application, by pickle."""

    def __init__(self, topic: str, channel_id: str | None = None) -> None:
        super().__init__(channel_id=channel_id)
        self.topic = topic

    def adapt(self, msg: MessageContract) -> Any:
        return msg.payload


class Hall(Room, ObjectAsKeyValuePersistenceMixin):
    """A channel of an application, by the mixin."""

    def __init__(self, topic: str, channel_id: str | None = None) -> None:
        super().__init__(topic, channel_id)
        self.bell = lambda: "dong"

    @property
    def kv_key(self) -> str:
        return self.id

    @property
    def kv_constructor_params_as_dict(self) -> dict[str, Any]:
        return {"topic": self.topic, "channel_id": self.id}

    @property
    def kv_setup_values_as_dict(self) -> dict[str, Any]:
        return {}

    def kv_setup_by_dict(self, setup: dict[str, Any]) -> None: ...


@pytest.fixture
def storage_engine(database: Database) -> SqlStorageEngine:
    return SqlStorageEngine(database)


@pytest.fixture
def channels(storage_engine: SqlStorageEngine) -> ChannelRepository:
    return ChannelRepository(storage_engine)


@pytest.fixture
def connections(storage_engine: SqlStorageEngine) -> ConnectionRepository:
    return ConnectionRepository(storage_engine)


def connect(
    channel: AbstractChannel, database: Database, listener: MessageQueueListener | None = None, queue: Any = None
) -> MessageQueueListener:
    """Register a listener, and the queue that it reads, with a channel object."""
    listener = listener or MessageQueueListener()
    register(channel, make_connection(listener, queue or SqlQueue(database), f"c-{listener.id}"))
    return listener


def listeners_of(channel: AbstractChannel) -> set[str]:
    return {listener.id for _, listener, _ in registered_connections(channel)}


# Connections


def test_a_connection_comes_back_whole(database: Database, connections: ConnectionRepository) -> None:
    listener, queue = Clerk(), SqlQueue(database)
    connection = make_connection(listener, queue, "c")
    connections.persist(connection)
    queue.push(Order(7))
    loaded = connections.load_one("c")
    assert type(loaded) is Connection and loaded.id == "c"
    assert type(loaded.listener) is Clerk and loaded.listener.desk == listener.desk
    assert type(loaded.queue) is SqlQueue and loaded.queue.id == queue.id
    assert loaded.queue.pop().number == 7


def test_connections_belong_to_one_channel(channels: ChannelRepository, database: Database) -> None:
    connections = channels.connection_repository
    for channel_id in ("chan", "chan2", "chan:2", "ch%n", ""):
        channels.persist(SSEChannel(channel_id=channel_id))
        connection = make_connection(MessageQueueListener(), SqlQueue(database), f"connection of {channel_id}")
        connections.persist(connection, channel_id)
    for channel_id in ("chan", "chan2", "chan:2", "ch%n", ""):
        assert [each.id for each in connections.load_all(channel_id)] == [f"connection of {channel_id}"]
    assert list(connections.load_all("cha")) == []


def test_a_connection_keeps_its_channel_unless_it_is_given_another(
    channels: ChannelRepository, database: Database
) -> None:
    connections = channels.connection_repository
    for channel_id in ("one", "two"):
        channels.persist(SSEChannel(channel_id=channel_id))
    connection = make_connection(MessageQueueListener(), SqlQueue(database), "c")
    connections.persist(connection)
    assert connections.load_one("c").id == "c"
    connections.persist(connection, "one")
    connections.persist(connection)
    assert [each.id for each in connections.load_all("one")] == ["c"]
    connections.persist(connection, "two")
    assert list(connections.load_all("one")) == []
    assert [each.id for each in connections.load_all("two")] == ["c"]


def test_a_connection_of_an_unknown_channel_is_not_stored(
    connections: ConnectionRepository, database: Database
) -> None:
    with pytest.raises(ItemNotFound):
        connections.persist(make_connection(MessageQueueListener(), SqlQueue(database), "c"), "nowhere")
    assert table_counts(database) == EMPTY


def test_a_missing_connection_is_not_found_and_deleted_without_error(connections: ConnectionRepository) -> None:
    connections.delete("unknown")
    with pytest.raises(ItemNotFound):
        connections.load_one("unknown")


def test_deleting_a_connection_deletes_its_objects_and_messages(
    connections: ConnectionRepository, database: Database
) -> None:
    queue, other = SqlQueue(database), SqlQueue(database)
    connections.persist(make_connection(MessageQueueListener(), queue, "c"))
    for each in (queue, queue, other):
        each.push(Message("m"))
    connections.delete("c")
    assert table_counts(database) == {**EMPTY, "sse_messages": 1}
    assert other.pop().type == "m"


def test_an_object_that_another_connection_has_too_is_not_deleted(
    connections: ConnectionRepository, database: Database
) -> None:
    listener, queue = MessageQueueListener(), SqlQueue(database)
    for connection_id in ("a", "b"):
        connections.persist(make_connection(listener, queue, connection_id))
    queue.push(Message("m"))
    connections.delete("a")
    assert connections.load_one("b").listener.id == listener.id
    assert connections.load_one("b").queue.pop().type == "m"
    connections.delete("b")
    assert table_counts(database) == EMPTY


@pytest.mark.parametrize("repository", [ListenerRepository, QueueRepository])
def test_deleting_a_listener_or_queue_deletes_the_connection_that_needs_it(
    repository: Any, storage_engine: SqlStorageEngine, connections: ConnectionRepository, database: Database
) -> None:
    listener, queue = MessageQueueListener(), SqlQueue(database)
    connections.persist(make_connection(listener, queue, "c"))
    queue.push(Message("m"))
    repository(storage_engine).delete(listener.id if repository is ListenerRepository else queue.id)
    with pytest.raises(ItemNotFound):
        connections.load_one("c")
    assert table_counts(database)["sse_messages"] == (1 if repository is ListenerRepository else 0)


def test_a_listener_persisted_by_itself_is_the_one_of_its_connections(
    storage_engine: SqlStorageEngine, connections: ConnectionRepository, database: Database
) -> None:
    listener = Clerk()
    connections.persist(make_connection(listener, SqlQueue(database), "c"))
    listener.desk = {"drawer": []}
    ListenerRepository(storage_engine).persist(listener)
    assert connections.load_one("c").listener.desk == {"drawer": []}


def test_a_listener_and_a_queue_may_have_the_same_id(connections: ConnectionRepository, database: Database) -> None:
    listener = MessageQueueListener()
    connections.persist(make_connection(listener, SqlQueue(database, listener.id), "c"))
    loaded = connections.load_one("c")
    assert type(loaded.listener) is MessageQueueListener and type(loaded.queue) is SqlQueue


@pytest.mark.parametrize("repository", [ConnectionRepository, ChannelRepository])
def test_relations_need_a_sql_storage_engine(repository: Any) -> None:
    with pytest.raises(RepositoryError, match="needs a SqlStorageEngine"):
        repository(upstream_storage())


# Channels


@pytest.mark.parametrize("listener", [MessageQueueListener, Clerk, lambda: Robot(7)])
@pytest.mark.parametrize("channel", [SSEChannel, lambda: Room("tea"), lambda: Hall("tea")])
def test_a_channel_comes_back_with_its_connections(
    channel: Any, listener: Any, channels: ChannelRepository, database: Database
) -> None:
    made, heard = channel(), listener()
    connect(made, database, heard)
    made.dispatch(heard.id, Order(1))  # before anything is persisted
    channels.persist(made)
    made.dispatch(heard.id, Order(2))
    for loaded in (channels.load_one(made.id), *channels.load_all()):
        assert type(loaded) is type(made) and loaded.id == made.id
        assert getattr(loaded, "topic", None) == getattr(made, "topic", None)
        assert type(loaded.get_listener(heard.id)) is type(heard)
    loaded.get_listener(heard.id).start()
    assert [loaded.deliver_next(heard.id).number for _ in range(2)] == [1, 2]
    with pytest.raises(NoMessagesException):
        made.get_listener(heard.id).start()
        made.deliver_next(heard.id)


def test_the_settings_of_a_channel_come_back(channels: ChannelRepository) -> None:
    channels.persist(SSEChannel(stream_delay_seconds=3, retry_timeout_milliseconds=9, channel_id="c"))
    loaded = channels.load_one("c")
    assert (loaded.stream_delay_seconds, loaded.retry_timeout_milliseconds) == (3, 9)


def test_persisting_again_changes_nothing_but_the_channel(channels: ChannelRepository, database: Database) -> None:
    channel = Room("tea")
    listener = connect(channel, database)
    channel.dispatch(listener.id, Message("m"))
    channels.persist(channel)
    before = table_counts(database)
    ids = {each.id for each in channels.connection_repository.load_all(channel.id)}
    channel.topic = "coffee"
    channels.persist(channel)
    assert table_counts(database) == before
    assert {each.id for each in channels.connection_repository.load_all(channel.id)} == ids
    assert channels.load_one(channel.id).topic == "coffee"


def test_the_channel_object_is_left_as_it_is(channels: ChannelRepository, database: Database) -> None:
    channel = Room("tea")
    listener = connect(channel, database)
    channels.persist(channel)
    assert listeners_of(channel) == {listener.id}
    assert channel.get_listener(listener.id) is listener


def test_a_removed_listener_is_deleted_with_its_messages(channels: ChannelRepository, database: Database) -> None:
    channel = SSEChannel()
    removed, kept = connect(channel, database), connect(channel, database)
    channels.persist(channel)
    loaded = channels.load_one(channel.id)
    for each in (removed, kept):
        loaded.dispatch(each.id, Message("m"))
    loaded.remove_listener(removed.id)
    channels.persist(loaded)
    assert listeners_of(channels.load_one(channel.id)) == {kept.id}
    assert table_counts(database) == {"kv_entries": 3, "sse_channels": 1, "sse_connections": 1, "sse_messages": 1}


def test_a_connection_that_another_process_added_stays(channels: ChannelRepository, database: Database) -> None:
    channel = SSEChannel()
    own = connect(channel, database)
    channels.persist(channel)
    added = make_connection(MessageQueueListener(), SqlQueue(database), "added")
    channels.connection_repository.persist(added, channel.id)
    channels.persist(channel)
    assert listeners_of(channels.load_one(channel.id)) == {own.id, added.listener.id}


def test_a_listener_that_gets_a_new_queue_has_one_connection(channels: ChannelRepository, database: Database) -> None:
    channel, queue = SSEChannel(), SqlQueue(database)
    listener = connect(channel, database)
    channel.dispatch(listener.id, Message("to the old queue"))
    channels.persist(channel)
    register(channel, make_connection(listener, queue, "new"))
    channels.persist(channel)
    (connection,) = channels.connection_repository.load_all(channel.id)
    assert connection.queue.id == queue.id
    assert table_counts(database) == {"kv_entries": 3, "sse_channels": 1, "sse_connections": 1, "sse_messages": 0}


def test_a_connection_persisted_before_its_channel_belongs_to_it(
    channels: ChannelRepository, database: Database
) -> None:
    listener, queue, channel = MessageQueueListener(), SqlQueue(database), SSEChannel()
    connection = make_connection(listener, queue, "early")
    channels.connection_repository.persist(connection)
    register(channel, connection)
    channels.persist(channel)
    assert [each.id for each in channels.connection_repository.load_all(channel.id)] == ["early"]


def test_one_listener_in_two_channels_is_deleted_with_the_last(channels: ChannelRepository, database: Database) -> None:
    listener = Clerk()
    for channel_id in ("one", "two"):
        channel = SSEChannel(channel_id=channel_id)
        register(channel, make_connection(listener, SqlQueue(database), f"c-{channel_id}"))
        channels.persist(channel)
    channels.delete("one")
    assert listeners_of(channels.load_one("two")) == {listener.id}
    channels.delete("two")
    assert table_counts(database) == EMPTY


def test_deleting_a_channel_changes_no_other_channel(channels: ChannelRepository, database: Database) -> None:
    for channel_id in ("chan", "chan2"):
        channel = SSEChannel(channel_id=channel_id)
        listener = connect(channel, database)
        channel.dispatch(listener.id, Message("m"))
        channels.persist(channel)
    channels.delete("chan")
    channels.delete("chan")
    with pytest.raises(ItemNotFound):
        channels.load_one("chan")
    assert [each.id for each in channels.load_all()] == ["chan2"]
    assert table_counts(database) == {"kv_entries": 3, "sse_channels": 1, "sse_connections": 1, "sse_messages": 1}


def test_a_channel_with_a_queue_that_can_not_be_stored_is_refused_as_a_whole(
    channels: ChannelRepository, database: Database
) -> None:
    channel = SSEChannel()
    connect(channel, database)
    channels.persist(channel)
    before = table_counts(database)
    connect(channel, database)
    connect(channel, database, queue=InMemoryQueue())
    with pytest.raises(RepositoryError, match=r"InMemoryQueue .* use eric_sse_sql.SqlQueue"):
        channels.persist(channel)
    assert table_counts(database) == before


def test_all_channels_come_back_page_by_page(
    channels: ChannelRepository, database: Database, statements: Record
) -> None:
    with database.transaction():
        for n in range(205):
            channel = SSEChannel(channel_id=f"{n:03}")
            if n % 2:
                connect(channel, database)
            channels.persist(channel)
    seen = statements(database)
    assert [(each.id, len(listeners_of(each))) for each in channels.load_all()] == [
        (f"{n:03}", n % 2) for n in range(205)
    ]
    assert len(seen) == 2 * 3


# Cost


def test_loading_the_connections_of_a_channel_is_one_statement_for_any_number(
    channels: ChannelRepository, database: Database, statements: Record
) -> None:
    seen = statements(database)
    for number in (1, 1_000):
        channel = SSEChannel()
        for _ in range(number):
            connect(channel, database)
        channels.persist(channel)
        seen.clear()
        assert len(list(channels.connection_repository.load_all(channel.id))) == number
        assert len(seen) == 1 and seen[0].count("JOIN") == 2


def test_every_call_takes_the_same_statements_for_any_number_of_connections(
    channels: ChannelRepository, database: Database, statements: Record
) -> None:
    seen = statements(database)

    def cost(call: Callable[[], Any]) -> list[str]:
        seen.clear()
        call()
        return list(seen)

    def costs(number: int) -> dict[str, list[str]]:
        channel = SSEChannel()
        listeners = [connect(channel, database) for _ in range(number)]
        first = cost(lambda: channels.persist(channel))
        again = cost(lambda: channels.persist(channel))
        loaded = cost(lambda: channels.load_one(channel.id))
        for listener in listeners[: number // 2]:
            channel.remove_listener(listener.id)
        removing = cost(lambda: channels.persist(channel))
        deleting = cost(lambda: channels.delete(channel.id))
        return {"first": first, "again": again, "load": loaded, "remove": removing, "delete": deleting}

    assert costs(2) == costs(100)
    locks = 2 * database.executor.dialect.locks_rows
    assert {name: len(found) for name, found in costs(3).items()} == {
        **{"first": 5, "again": 5, "load": 1, "remove": 9 + locks, "delete": 8 + locks}
    }


# Engines of the application


def test_deletes_do_not_depend_on_the_foreign_keys_of_sqlite(tmp_path: Any) -> None:
    engine = create_engine(f"sqlite:///{tmp_path / 'app.db'}")  # SQLite's foreign keys are off
    with Database(engine) as database:
        database.upgrade()
        storage = SqlStorageEngine(database)
        channels, listeners = ChannelRepository(storage), ListenerRepository(storage)
        channel = SSEChannel()
        gone, kept = connect(channel, database), connect(channel, database)
        channels.persist(channel)
        listeners.delete(gone.id)
        assert listeners_of(channels.load_one(channel.id)) == {kept.id}
        with pytest.raises(ItemNotFound):
            channels.connection_repository.persist(make_connection(kept, SqlQueue(database), "c"), "nowhere")
        channels.delete(channel.id)
        counts = table_counts(database)
        assert counts["sse_channels"] == counts["sse_connections"] == 0
    engine.dispose()


def test_a_persist_that_fails_at_any_statement_leaves_nothing_and_can_be_repeated(
    channels: ChannelRepository, database: Database
) -> None:
    channel = Room("tea")
    removed = connect(channel, database)
    channels.persist(channel)
    before = snapshot(database)
    channel.remove_listener(removed.id)
    connect(channel, database)
    channel.topic = "coffee"
    countdown = [0]

    @event.listens_for(database.engine, "before_cursor_execute")
    def fail(*args: Any) -> None:
        countdown[0] -= 1
        if countdown[0] == 0:
            raise OperationalError("injected", {}, ConnectionError("injected"))

    failures = 0
    while True:
        countdown[0] = failures + 1
        try:
            channels.persist(channel)
            break
        except RepositoryError as error:
            assert isinstance(error.__cause__, ConnectionError)
            countdown[0] = 0
            assert snapshot(database) == before
            failures += 1
    assert failures == 9 + 2 * database.executor.dialect.locks_rows
    countdown[0] = 0
    assert listeners_of(channels.load_one(channel.id)) == listeners_of(channel)


def snapshot(database: Database) -> list[Any]:
    with database.engine.connect() as connection:
        return [
            connection.execute(text("SELECT key, value FROM kv_entries ORDER BY key")).all(),
            connection.execute(text("SELECT id, entry_key FROM sse_channels ORDER BY id")).all(),
            connection.execute(text("SELECT id, channel_id, queue_id FROM sse_connections ORDER BY id")).all(),
        ]


def test_objects_are_signed_wherever_they_are_stored(database: Database) -> None:
    with Database(database.engine, codec=PickleCodec(signing_keys=[b"0123456789abcdef"])) as signing:
        storage = SqlStorageEngine(signing)
        channels, channel = ChannelRepository(storage), SSEChannel()
        listener = connect(channel, signing)
        channel.dispatch(listener.id, Message("m"))
        channels.persist(channel)
        assert listeners_of(channels.load_one(channel.id)) == {listener.id}
        with pytest.raises(RepositoryError, match="is signed"):
            ChannelRepository(SqlStorageEngine(database)).load_one(channel.id)
        with database.engine.begin() as connection:
            connection.execute(
                text("UPDATE kv_entries SET value = (SELECT value FROM kv_entries WHERE key LIKE '%queue%')")
            )
        with pytest.raises(RepositoryError, match="no valid signature"):
            channels.load_one(channel.id)


def test_connections_have_ids_of_their_own_on_every_eric_sse(
    connections: ConnectionRepository, database: Database
) -> None:
    made = [Connection(MessageQueueListener(), SqlQueue(database)) for _ in range(3)]
    for connection in made:
        connections.persist(connection)
    assert [connections.load_one(each.id).queue.id for each in made] == [each.queue.id for each in made]
