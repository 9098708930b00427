"""What the repositories of eric-sse 2.1 do: on its own storage in memory, the oracle, and on every database."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from eric_sse_sql.contract import ERIC_SSE_2_0

if ERIC_SSE_2_0:
    pytest.skip("the repositories of eric-sse 2.1 need eric-sse 2.1", allow_module_level=True)

from eric_sse.connection import Connection, ConnectionsFactory, InMemoryConnectionsFactory
from eric_sse.entities import AbstractChannel
from eric_sse.exception import (
    InvalidConnectionException,
    InvalidListenerException,
    ItemNotFound,
    NoMessagesException,
    RepositoryError,
)
from eric_sse.interfaces import (
    ChannelRepositoryInterface,
    ConnectionRepositoryInterface,
    ListenerRepositoryInterface,
    QueueRepositoryInterface,
)
from eric_sse.listener import MessageQueueListener
from eric_sse.message import Message, MessageContract
from eric_sse.prefabs import SSEChannel, SSEChannelRepository
from eric_sse.queues import Queue
from eric_sse.repository import AbstractChannelRepository, ConnectionRepository, InMemoryStorage

from eric_sse_sql import (
    AbstractSqlChannelRepository,
    SqlConnectionsFactory,
    SqlSSEChannelRepository,
    SqlStorageEngine,
)
from eric_sse_sql.contract import KvStorageEngine


class ListenersInMemory(ListenerRepositoryInterface):
    """The smallest one: eric-sse has none in memory."""

    def __init__(self) -> None:
        self.listeners: dict[str, MessageQueueListener] = {}

    def load(self, connection_id: str) -> MessageQueueListener:
        if connection_id not in self.listeners:
            raise InvalidListenerException(connection_id)
        return self.listeners[connection_id]

    def persist(self, connection_id: str, listener: MessageQueueListener) -> None:
        self.listeners[connection_id] = listener

    def delete(self, connection_id: str) -> None:
        self.listeners.pop(connection_id, None)


class QueuesInMemory(QueueRepositoryInterface):
    """The smallest one: eric-sse has none in memory."""

    def __init__(self) -> None:
        self.queues: dict[str, Queue] = {}

    def load(self, connection_id: str) -> Queue:
        if connection_id not in self.queues:
            raise InvalidConnectionException(connection_id)
        return self.queues[connection_id]

    def persist(self, connection_id: str, queue: Queue) -> None:
        self.queues[connection_id] = queue

    def delete(self, connection_id: str) -> None:
        self.queues.pop(connection_id, None)


class Ear(MessageQueueListener):
    """A listener of an application."""

    def __init__(self) -> None:
        super().__init__()
        self.heard: list[str] = []

    def on_message(self, msg: MessageContract) -> None:
        self.heard.append(msg.type)


class Room(AbstractChannel):
    """A channel of an application."""

    def __init__(self, topic: str, channel_id: str, connections_factory: ConnectionsFactory) -> None:
        super().__init__(channel_id=channel_id, connections_factory=connections_factory)
        self.topic = topic

    def adapt(self, msg: MessageContract) -> Any:
        return self.topic, msg.payload


class Rooms(AbstractChannelRepository):
    """All that a repository of an application's channels has to say itself."""

    def create(self, channel_data: dict[str, Any]) -> Room:
        return Room(**channel_data, connections_factory=self.connections_factory)

    @staticmethod
    def _channel_to_dict(channel: Any) -> dict[str, Any]:
        return {"topic": channel.topic, "channel_id": channel.id}


class SqlRooms(Rooms, AbstractSqlChannelRepository):
    """The same in a database."""


class MendedStorage(InMemoryStorage):
    """eric-sse's own can't be iterated while it changes, as its repositories do when they delete a channel."""

    def fetch_by_prefix(self, prefix: str) -> list[Any]:
        return list(super().fetch_by_prefix(prefix))


def connections_in_memory() -> ConnectionRepositoryInterface:
    return ConnectionRepository(MendedStorage(), ListenersInMemory(), QueuesInMemory())


@pytest.fixture
def factory(storage: KvStorageEngine) -> ConnectionsFactory:
    """What makes connections whose queues can be stored."""
    if isinstance(storage, SqlStorageEngine):
        return SqlConnectionsFactory(storage.database)
    return InMemoryConnectionsFactory()


@pytest.fixture
def channels(storage: KvStorageEngine, factory: ConnectionsFactory) -> ChannelRepositoryInterface:
    """A repository of channels, empty."""
    if isinstance(storage, SqlStorageEngine):
        return SqlSSEChannelRepository(storage.database, factory)
    return SSEChannelRepository(storage, connections_in_memory(), factory)


@pytest.fixture
def rooms(storage: KvStorageEngine, factory: ConnectionsFactory) -> ChannelRepositoryInterface:
    """A repository of an application's own channels, empty."""
    if isinstance(storage, SqlStorageEngine):
        return SqlRooms(storage.database, factory)
    return Rooms(storage, connections_in_memory(), factory)


@pytest.fixture
def connections(channels: ChannelRepositoryInterface) -> ConnectionRepositoryInterface:
    """A repository of connections, empty."""
    return channels.connections_repository


def connected(
    factory: ConnectionsFactory, connection_id: str, listener: MessageQueueListener | None = None
) -> Connection:
    """A connection of a given id."""
    made = factory.create(listener)
    return Connection(made.listener, made.queue, connection_id)


def ids_of(channel: AbstractChannel) -> set[str]:
    return {connection.id for connection in channel.get_connections()}


def received(channel: AbstractChannel, listener_id: str) -> list[object]:
    """The payloads of all messages that wait for a listener."""
    channel.get_listener(listener_id).start()
    payloads: list[object] = []
    while True:
        try:
            payloads.append(channel.deliver_next(listener_id).payload)
        except NoMessagesException:
            return payloads


# Making channels


def test_a_new_channel_has_all_that_it_was_made_with(channels: ChannelRepositoryInterface) -> None:
    channel = channels.create({"channel_id": "c", "stream_delay_seconds": 3, "retry_timeout_milliseconds": 9})
    assert isinstance(channel, SSEChannel)
    assert (channel.id, channel.stream_delay_seconds, channel.retry_timeout_milliseconds) == ("c", 3, 9)


def test_each_new_channel_has_an_id_of_its_own_by_default(channels: ChannelRepositoryInterface) -> None:
    one, other = channels.create({}), channels.create({})
    assert one.id and other.id and one.id != other.id
    assert one.stream_delay_seconds == 0  # type: ignore[attr-defined]


def test_a_new_channel_is_not_persisted(channels: ChannelRepositoryInterface) -> None:
    channels.create({"channel_id": "c"})
    with pytest.raises(ItemNotFound):
        channels.load_one("c")


def test_new_and_loaded_channels_make_connections_with_the_factory_of_the_repository(
    channels: ChannelRepositoryInterface, factory: ConnectionsFactory
) -> None:
    made = type(factory.create().queue)
    assert channels.connections_factory is factory
    channel = channels.create({"channel_id": "c"})
    channels.persist(channel)
    for each in (channel, channels.load_one("c"), *channels.load_all()):
        each.add_listener()
        assert [type(connection.queue) for connection in each.get_connections()] == [made]


def test_the_factory_is_no_parameter_of_a_channel(
    channels: ChannelRepositoryInterface, factory: ConnectionsFactory
) -> None:
    with pytest.raises((TypeError, RepositoryError)):
        channels.create({"connections_factory": factory})


# Channels


def test_a_channel_is_loaded_with_its_settings(channels: ChannelRepositoryInterface) -> None:
    channels.persist(channels.create({"channel_id": "c", "stream_delay_seconds": 3, "retry_timeout_milliseconds": 9}))
    for loaded in (channels.load_one("c"), *channels.load_all()):
        assert isinstance(loaded, SSEChannel)
        assert (loaded.id, loaded.stream_delay_seconds, loaded.retry_timeout_milliseconds) == ("c", 3, 9)


def test_a_channel_comes_back_with_its_connections(channels: ChannelRepositoryInterface) -> None:
    channel = channels.create({"channel_id": "c"})
    listeners = {channel.add_listener().id for _ in range(3)}
    channels.persist(channel)
    for loaded in (channels.load_one("c"), *channels.load_all()):
        assert ids_of(loaded) == ids_of(channel)
        assert {connection.listener.id for connection in loaded.get_connections()} == listeners


def test_all_channels_come_back_each_with_its_own_connections(channels: ChannelRepositoryInterface) -> None:
    made = {}
    for channel_id in ("one", "two", "three"):
        channel = channels.create({"channel_id": channel_id})
        channel.add_listener()
        channels.persist(channel)
        made[channel_id] = ids_of(channel)
    assert {channel.id: ids_of(channel) for channel in channels.load_all()} == made


def test_a_repository_without_channels_loads_none(channels: ChannelRepositoryInterface) -> None:
    assert list(channels.load_all()) == []


def test_a_channel_is_replaced_when_it_is_persisted_again(channels: ChannelRepositoryInterface) -> None:
    for delay in (1, 2):
        channels.persist(channels.create({"channel_id": "c", "stream_delay_seconds": delay}))
    assert [channel.stream_delay_seconds for channel in channels.load_all()] == [2]


def test_persisting_again_keeps_connections_and_messages(channels: ChannelRepositoryInterface) -> None:
    channel = channels.create({"channel_id": "c"})
    listener = channel.add_listener()
    channels.persist(channel)
    channel.dispatch(listener.id, Message("m", 1))
    channels.persist(channel)
    channels.persist(channels.load_one("c"))
    assert ids_of(channels.load_one("c")) == ids_of(channel)
    assert received(channels.load_one("c"), listener.id) == [1]


def test_a_connection_added_to_a_loaded_channel_is_persisted_with_it(channels: ChannelRepositoryInterface) -> None:
    channel = channels.create({"channel_id": "c"})
    channel.add_listener()
    channels.persist(channel)
    loaded = channels.load_one("c")
    loaded.add_listener()
    channels.persist(loaded)
    assert len(ids_of(loaded)) == 2
    assert ids_of(channels.load_one("c")) == ids_of(loaded)


@pytest.mark.parametrize("loads", [False, True])
def test_a_connection_removed_from_a_channel_is_gone_with_its_listener_and_queue(
    channels: ChannelRepositoryInterface, connections: ConnectionRepositoryInterface, loads: bool
) -> None:
    channel = channels.create({"channel_id": "c"})
    removed, kept = channel.add_listener(), channel.add_listener()
    ids = {connection.listener.id: connection.id for connection in channel.get_connections()}
    channels.persist(channel)
    if loads:
        channel = channels.load_one("c")
    channel.remove_listener(removed.id)
    channels.persist(channel)
    assert ids_of(channels.load_one("c")) == {ids[kept.id]}
    with pytest.raises(ItemNotFound):
        connections.load_one("c", ids[removed.id])
    with pytest.raises(InvalidListenerException):
        connections.listeners_repository.load(ids[removed.id])
    with pytest.raises(InvalidConnectionException):
        connections.queues_repository.load(ids[removed.id])


def test_a_listener_registered_again_has_one_connection(channels: ChannelRepositoryInterface) -> None:
    channel, listener = channels.create({"channel_id": "c"}), Ear()
    for _ in range(2):
        channel.register_listener(listener)
        channels.persist(channel)
    channel.dispatch(listener.id, Message("m", 1))
    assert ids_of(channels.load_one("c")) == ids_of(channel)
    assert received(channels.load_one("c"), listener.id) == [1]


def test_a_deleted_channel_is_gone_with_its_connections(
    channels: ChannelRepositoryInterface, connections: ConnectionRepositoryInterface
) -> None:
    for channel_id in ("gone", "kept"):
        channel = channels.create({"channel_id": channel_id})
        channel.register_connection(connected(channels.connections_factory, f"of {channel_id}"))
        channels.persist(channel)
    channels.delete("gone")
    with pytest.raises(ItemNotFound):
        channels.load_one("gone")
    with pytest.raises(ItemNotFound):
        connections.load_one("gone", "of gone")
    with pytest.raises(InvalidListenerException):
        connections.listeners_repository.load("of gone")
    with pytest.raises(InvalidConnectionException):
        connections.queues_repository.load("of gone")
    assert [(each.id, ids_of(each)) for each in channels.load_all()] == [("kept", {"of kept"})]


def test_a_deleted_channel_can_be_made_again(channels: ChannelRepositoryInterface) -> None:
    channel = channels.create({"channel_id": "c"})
    channel.add_listener()
    channels.persist(channel)
    channels.delete("c")
    channels.persist(channels.create({"channel_id": "c"}))
    assert ids_of(channels.load_one("c")) == set()


# What is not there


def test_an_unknown_channel_is_not_found(channels: ChannelRepositoryInterface) -> None:
    with pytest.raises(ItemNotFound) as raised:
        channels.load_one("unknown")
    assert raised.value.key == "unknown"


def test_an_unknown_channel_has_no_connections(connections: ConnectionRepositoryInterface) -> None:
    assert list(connections.load_all("unknown")) == []


def test_an_unknown_connection_is_not_found(
    channels: ChannelRepositoryInterface, connections: ConnectionRepositoryInterface
) -> None:
    channels.persist(channels.create({"channel_id": "c"}))
    for channel_id in ("c", "unknown"):
        with pytest.raises(ItemNotFound):
            connections.load_one(channel_id, "unknown")


def test_an_unknown_connection_has_no_listener(connections: ConnectionRepositoryInterface) -> None:
    with pytest.raises(InvalidListenerException):
        connections.listeners_repository.load("unknown")


def test_an_unknown_connection_has_no_queue(connections: ConnectionRepositoryInterface) -> None:
    with pytest.raises(InvalidConnectionException):
        connections.queues_repository.load("unknown")


def test_deleting_an_unknown_object_is_no_error(
    channels: ChannelRepositoryInterface, connections: ConnectionRepositoryInterface
) -> None:
    for _ in range(2):
        channels.delete("unknown")
        connections.delete("unknown", "unknown")
        connections.listeners_repository.delete("unknown")
        connections.queues_repository.delete("unknown")


def test_a_second_delete_is_no_error(
    channels: ChannelRepositoryInterface, connections: ConnectionRepositoryInterface
) -> None:
    channel = channels.create({"channel_id": "c"})
    channel.register_connection(connected(channels.connections_factory, "k"))
    channels.persist(channel)
    for _ in range(2):
        connections.delete("c", "k")
    for _ in range(2):
        channels.delete("c")
    assert list(channels.load_all()) == []


# Connections


def test_a_connection_comes_back_whole(connections: ConnectionRepositoryInterface, factory: ConnectionsFactory) -> None:
    listener = Ear()
    connection = connected(factory, "k", listener)
    connections.persist("c", connection)
    connection.queue.push(Message("m", 1))
    for loaded in (connections.load_one("c", "k"), *connections.load_all("c")):
        assert isinstance(loaded, Connection) and loaded.id == "k"
        assert type(loaded.listener) is Ear and loaded.listener.id == listener.id
        assert type(loaded.queue) is type(connection.queue)
    assert loaded.queue.pop().payload == 1


def test_a_connection_persisted_by_itself_is_one_of_its_channel(
    channels: ChannelRepositoryInterface, connections: ConnectionRepositoryInterface
) -> None:
    channels.persist(channels.create({"channel_id": "c"}))
    connection = connected(channels.connections_factory, "k")
    connections.persist("c", connection)
    for loaded in (channels.load_one("c"), *channels.load_all()):
        assert ids_of(loaded) == {"k"}
        assert loaded.get_listener(connection.listener.id).id == connection.listener.id


def test_a_connection_may_be_persisted_before_its_channel(
    channels: ChannelRepositoryInterface, connections: ConnectionRepositoryInterface
) -> None:
    connections.persist("c", connected(channels.connections_factory, "k"))
    assert connections.load_one("c", "k").id == "k"
    assert [connection.id for connection in connections.load_all("c")] == ["k"]


def test_connections_make_no_channel(
    channels: ChannelRepositoryInterface, connections: ConnectionRepositoryInterface
) -> None:
    connections.persist("c", connected(channels.connections_factory, "k"))
    with pytest.raises(ItemNotFound):
        channels.load_one("c")
    assert list(channels.load_all()) == []


def test_a_connection_is_found_only_in_its_own_channel(
    connections: ConnectionRepositoryInterface, factory: ConnectionsFactory
) -> None:
    for channel_id in ("one", "two"):
        connections.persist(channel_id, connected(factory, f"of {channel_id}"))
    assert [connection.id for connection in connections.load_all("one")] == ["of one"]
    with pytest.raises(ItemNotFound):
        connections.load_one("one", "of two")


def test_a_connection_is_replaced_when_it_is_persisted_again(
    connections: ConnectionRepositoryInterface, factory: ConnectionsFactory
) -> None:
    for listener in (MessageQueueListener(), Ear()):
        connections.persist("c", connected(factory, "k", listener))
    assert [each.listener.id for each in connections.load_all("c")] == [listener.id]
    assert connections.listeners_repository.load("k").id == listener.id


def test_a_deleted_connection_is_gone_with_its_listener_and_queue(
    channels: ChannelRepositoryInterface, connections: ConnectionRepositoryInterface
) -> None:
    channel = channels.create({"channel_id": "c"})
    for connection_id in ("gone", "kept"):
        channel.register_connection(connected(channels.connections_factory, connection_id))
    channels.persist(channel)
    connections.delete("c", "gone")
    assert ids_of(channels.load_one("c")) == {"kept"}
    with pytest.raises(ItemNotFound):
        connections.load_one("c", "gone")
    with pytest.raises(InvalidListenerException):
        connections.listeners_repository.load("gone")
    with pytest.raises(InvalidConnectionException):
        connections.queues_repository.load("gone")


# Listeners and queues by the id of their connection


def test_the_listener_of_a_connection_is_found_by_its_id(
    connections: ConnectionRepositoryInterface, factory: ConnectionsFactory
) -> None:
    connection = connected(factory, "k", Ear())
    connections.persist("c", connection)
    loaded = connections.listeners_repository.load("k")
    assert (type(loaded), loaded.id) == (Ear, connection.listener.id)


def test_the_queue_of_a_connection_is_found_by_its_id(
    connections: ConnectionRepositoryInterface, factory: ConnectionsFactory
) -> None:
    connection = connected(factory, "k")
    connections.persist("c", connection)
    connections.queues_repository.load("k").push(Message("m", 1))
    assert connection.queue.pop().payload == 1


def test_a_listener_persisted_by_itself_is_that_of_its_connection(
    channels: ChannelRepositoryInterface, connections: ConnectionRepositoryInterface
) -> None:
    channel = channels.create({"channel_id": "c"})
    channel.register_connection(connected(channels.connections_factory, "k"))
    channels.persist(channel)
    ear = Ear()
    connections.listeners_repository.persist("k", ear)
    assert connections.load_one("c", "k").listener.id == ear.id
    assert type(channels.load_one("c").get_listener(ear.id)) is Ear


def test_a_queue_persisted_by_itself_is_that_of_its_connection(
    connections: ConnectionRepositoryInterface, factory: ConnectionsFactory
) -> None:
    connections.persist("c", connected(factory, "k"))
    queue = factory.create().queue
    queue.push(Message("m", 1))
    connections.queues_repository.persist("k", queue)
    assert connections.load_one("c", "k").queue.pop().payload == 1


def test_a_listener_and_a_queue_may_be_persisted_before_their_connection(
    connections: ConnectionRepositoryInterface, factory: ConnectionsFactory
) -> None:
    connection = connected(factory, "k", Ear())
    connections.listeners_repository.persist("k", connection.listener)
    connections.queues_repository.persist("k", connection.queue)
    connection.queue.push(Message("m", 1))
    assert connections.listeners_repository.load("k").id == connection.listener.id
    connections.persist("c", connection)
    assert connections.load_one("c", "k").listener.id == connection.listener.id
    assert connections.queues_repository.load("k").pop().payload == 1


def test_a_listener_and_a_queue_make_no_connection(
    connections: ConnectionRepositoryInterface, factory: ConnectionsFactory
) -> None:
    connections.listeners_repository.persist("k", MessageQueueListener())
    connections.queues_repository.persist("k", factory.create().queue)
    with pytest.raises(ItemNotFound):
        connections.load_one("c", "k")


def test_a_deleted_listener_is_not_found(
    connections: ConnectionRepositoryInterface, factory: ConnectionsFactory
) -> None:
    connections.persist("c", connected(factory, "k"))
    for connection_id in ("k", "by itself"):
        connections.listeners_repository.persist(connection_id, MessageQueueListener())
        connections.listeners_repository.delete(connection_id)
        with pytest.raises(InvalidListenerException):
            connections.listeners_repository.load(connection_id)


def test_a_deleted_queue_is_not_found(connections: ConnectionRepositoryInterface, factory: ConnectionsFactory) -> None:
    connections.persist("c", connected(factory, "k"))
    for connection_id in ("k", "by itself"):
        connections.queues_repository.persist(connection_id, factory.create().queue)
        connections.queues_repository.delete(connection_id)
        with pytest.raises(InvalidConnectionException):
            connections.queues_repository.load(connection_id)


# Messages


def test_a_message_dispatched_before_the_first_persist_arrives_after_loading(
    channels: ChannelRepositoryInterface,
) -> None:
    channel = channels.create({"channel_id": "c"})
    listener = channel.add_listener()
    channel.dispatch(listener.id, Message("m", 1))
    channels.persist(channel)
    channel.dispatch(listener.id, Message("m", 2))
    assert received(channels.load_one("c"), listener.id) == [1, 2]


def test_a_registered_listener_gets_what_is_dispatched_to_it(channels: ChannelRepositoryInterface) -> None:
    channel, ear, other = channels.create({"channel_id": "c"}), Ear(), Ear()
    for listener in (ear, other):
        channel.register_listener(listener)
    channels.persist(channel)
    channels.load_one("c").dispatch(ear.id, Message("m", 1))
    loaded = channels.load_one("c")
    assert (received(loaded, ear.id), received(loaded, other.id)) == ([1], [])
    assert loaded.get_listener(ear.id).heard == ["m"]  # type: ignore[attr-defined]


def test_a_broadcast_arrives_at_each_listener_once(channels: ChannelRepositoryInterface) -> None:
    channel = channels.create({"channel_id": "c"})
    listeners = [channel.add_listener() for _ in range(3)]
    channels.persist(channel)
    loaded = channels.load_one("c")
    for n in range(2):
        loaded.broadcast(Message("m", n))
    again = channels.load_one("c")
    assert [received(again, listener.id) for listener in listeners] == [[0, 1]] * 3


def test_a_broadcast_in_a_channel_without_listeners_is_no_error(channels: ChannelRepositoryInterface) -> None:
    channel = channels.create({"channel_id": "c"})
    channel.broadcast(Message("m"))
    listener = channel.add_listener()
    assert received(channel, listener.id) == []


def test_a_listener_that_is_not_started_gets_nothing(channels: ChannelRepositoryInterface) -> None:
    channel = channels.create({"channel_id": "c"})
    listener = channel.add_listener()
    channel.dispatch(listener.id, Message("m", 1))
    channels.persist(channel)
    loaded = channels.load_one("c")
    with pytest.raises(NoMessagesException):
        loaded.deliver_next(listener.id)
    assert received(loaded, listener.id) == [1]


def test_a_listener_that_was_persisted_running_runs_when_it_is_loaded(channels: ChannelRepositoryInterface) -> None:
    channel = channels.create({"channel_id": "c"})
    listener = channel.add_listener()
    listener.start()
    channel.dispatch(listener.id, Message("m", 1))
    channels.persist(channel)
    assert channels.load_one("c").deliver_next(listener.id).payload == 1


def test_nothing_is_dispatched_or_delivered_to_a_listener_that_is_unknown_or_removed(
    channels: ChannelRepositoryInterface,
) -> None:
    channel = channels.create({"channel_id": "c"})
    removed = channel.add_listener()
    channels.persist(channel)
    loaded = channels.load_one("c")
    loaded.remove_listener(removed.id)
    for listener_id in (removed.id, "unknown"):
        with pytest.raises(InvalidListenerException):
            loaded.dispatch(listener_id, Message("m"))
        with pytest.raises(InvalidListenerException):
            loaded.deliver_next(listener_id)
        with pytest.raises(InvalidListenerException):
            loaded.remove_listener(listener_id)


def streamed(
    channel: AbstractChannel, listener: MessageQueueListener, number: int, reply: MessageContract | None = None
) -> list[Any]:
    """The next events of a listener's stream, which then ends.

    :param reply: is dispatched to the listener after its first event
    """

    async def read() -> list[Any]:
        events: list[Any] = []
        async for event in channel.message_stream(listener):
            events.append(event)
            if reply and len(events) == 1:
                channel.dispatch(listener.id, reply)
            if len(events) == number:
                listener.stop()
        return events

    return asyncio.run(asyncio.wait_for(read(), 60))


def test_a_loaded_channel_streams_what_was_dispatched_before_and_meanwhile(
    channels: ChannelRepositoryInterface,
) -> None:
    channel = channels.create({"channel_id": "c", "retry_timeout_milliseconds": 9})
    listener = channel.add_listener()
    channel.dispatch(listener.id, Message("greeting", "before"))
    channels.persist(channel)
    loaded = channels.load_one("c")
    heard = loaded.get_listener(listener.id)
    heard.start()
    assert streamed(loaded, heard, 2, reply=Message("greeting", "meanwhile")) == [
        {"event": "greeting", "retry": 9, "data": payload} for payload in ("before", "meanwhile")
    ]


def test_an_unknown_listener_is_not_streamed(channels: ChannelRepositoryInterface) -> None:
    channels.persist(channels.create({"channel_id": "c"}))
    stranger = MessageQueueListener()
    stranger.start()
    with pytest.raises(InvalidListenerException):
        streamed(channels.load_one("c"), stranger, 1)


# Channels of an application


def test_a_channel_of_an_application_needs_two_methods_of_its_repository(rooms: ChannelRepositoryInterface) -> None:
    room = rooms.create({"topic": "tea", "channel_id": "r"})
    listener = room.add_listener()
    room.dispatch(listener.id, Message("m", 1))
    rooms.persist(room)
    for loaded in (rooms.load_one("r"), *rooms.load_all()):
        assert isinstance(loaded, Room)
        assert (loaded.id, loaded.topic, ids_of(loaded)) == ("r", "tea", ids_of(room))
    heard = loaded.get_listener(listener.id)
    heard.start()
    assert streamed(loaded, heard, 1) == [("tea", 1)]


def test_a_channel_of_an_application_is_deleted_with_its_connections(rooms: ChannelRepositoryInterface) -> None:
    room = rooms.create({"topic": "tea", "channel_id": "r"})
    room.add_listener()
    rooms.persist(room)
    rooms.delete("r")
    assert list(rooms.load_all()) == []
    assert list(rooms.connections_repository.load_all("r")) == []
