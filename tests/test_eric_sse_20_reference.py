"""Every class and member of eric-sse's persistence page, one row each: it is there, has its signature, and works."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest
from eric_sse.connection import Connection
from eric_sse.entities import AbstractChannel
from eric_sse.exception import NoMessagesException
from eric_sse.listener import MessageQueueListener
from eric_sse.message import MessageContract
from eric_sse.prefabs import SSEChannel
from eric_sse.queues import Queue

import eric_sse_sql
from eric_sse_sql import (
    ChannelRepository,
    ConnectionRepository,
    Database,
    ListenerRepository,
    QueueRepository,
    SqlQueue,
    SqlStorageEngine,
    contract,
    inmemory,
)
from eric_sse_sql.contract import (
    ChannelRepositoryInterface,
    ConnectionRepositoryInterface,
    ItemNotFound,
    KvStorageEngine,
    ListenerRepositoryInterface,
    ObjectAsKeyValuePersistenceMixin,
    QueueRepositoryInterface,
    make_connection,
)
from eric_sse_sql.inmemory import (
    InMemoryChannelRepository,
    InMemoryConnectionRepository,
    InMemoryQueueRepository,
    InMemoryStorage,
)


class Kettle(MessageQueueListener, ObjectAsKeyValuePersistenceMixin):
    """A listener that pickle can't take."""

    def __init__(self, litres: int) -> None:
        super().__init__()
        self.litres, self.whistle, self.is_set_up = litres, lambda: "wheee", False

    @property
    def kv_key(self) -> str:
        return self.id

    @property
    def kv_setup_values_as_dict(self) -> dict[str, Any]:
        return {"id": self.id}

    def kv_setup_by_dict(self, setup: dict[str, Any]) -> None:
        self.id, self.is_set_up = setup["id"], True

    @property
    def kv_constructor_params_as_dict(self) -> dict[str, Any]:
        return {"litres": self.litres}


class Basket(Queue):
    """A queue that pickle can take."""

    id = "basket"

    def __init__(self) -> None:
        self.eggs: list[Any] = []

    def push(self, message: MessageContract) -> None:
        self.eggs.append(message)

    def pop(self) -> MessageContract:
        raise NoMessagesException


class World:
    """A database with one of everything in it."""

    def __init__(self, database: Database) -> None:
        self.engine = SqlStorageEngine(database)
        self.listener, self.queue, self.channel = Kettle(2), SqlQueue(database), SSEChannel(channel_id="channel")
        self.connection = make_connection(self.listener, self.queue, "connection")
        self.listeners, self.queues = ListenerRepository(self.engine), QueueRepository(self.engine)
        self.connections, self.channels = ConnectionRepository(self.engine), ChannelRepository(self.engine)
        self.engine.upsert("key", "value")
        self.channels.persist(self.channel)
        self.connections.persist(self.connection, "channel")

    def gone(self, load: Callable[[], Any]) -> bool:
        try:
            load()
        except ItemNotFound:
            return True
        return False


@pytest.fixture
def world(database: Database) -> World:
    return World(database)


def done(*steps: Any) -> Any:
    """The last of some steps."""
    return steps[-1]


Exercise = Callable[[World], bool]
PROPERTY = "property"

MIXIN, ENGINE = ObjectAsKeyValuePersistenceMixin, KvStorageEngine
# Class, member, its parameters as the page has them, and what must hold when it is used.
MEMBERS: list[tuple[type, str, str, Exercise]] = [
    (MIXIN, "kv_as_dict", PROPERTY, lambda w: set(w.listener.kv_as_dict) == AS_DICT),
    (MIXIN, "kv_key", PROPERTY, lambda w: w.listener.kv_key == w.listener.id),
    (
        MIXIN,
        "kv_setup_values_as_dict",
        PROPERTY,
        lambda w: w.listener.kv_as_dict["setup_dict"] == {"id": w.listener.id},
    ),
    (MIXIN, "kv_setup_by_dict", "setup", lambda w: w.listeners.load(w.listener.id).is_set_up),
    (MIXIN, "kv_class_absolute_path", PROPERTY, lambda w: w.listener.kv_as_dict["class_path"] == f"{__name__}.Kettle"),
    (MIXIN, "kv_constructor_params_as_dict", PROPERTY, lambda w: w.listeners.load(w.listener.id).litres == 2),
    (ENGINE, "fetch_by_prefix", "prefix", lambda w: list(w.engine.fetch_by_prefix("ke")) == ["value"]),
    (ENGINE, "fetch_all", "", lambda w: list(w.engine.fetch_all()) == ["value"]),
    (ENGINE, "upsert", "key, value", lambda w: done(w.engine.upsert("key", 2), w.engine.fetch_one("key")) == 2),
    (ENGINE, "fetch_one", "key", lambda w: w.engine.fetch_one("key") == "value"),
    (ENGINE, "delete", "key", lambda w: done(w.engine.delete("key"), w.gone(lambda: w.engine.fetch_one("key")))),
]
AS_DICT = {"class_path", "constructor_parameters", "setup_dict"}

LISTENERS: list[tuple[str, str, Exercise]] = [
    ("load", "listener_id", lambda w: type(w.listeners.load(w.listener.id)) is Kettle),
    (
        "persist",
        "listener",
        lambda w: done(w.listeners.persist(other := Kettle(3)), w.listeners.load(other.id).litres) == 3,
    ),
    (
        "delete",
        "listener_id",
        lambda w: done(w.listeners.delete(w.listener.id), w.gone(lambda: w.listeners.load(w.listener.id))),
    ),
]
QUEUES: list[tuple[str, str, Exercise]] = [
    ("load", "queue_id", lambda w: w.queues.load(w.queue.id).id == w.queue.id),
    ("persist", "queue", lambda w: done(w.queues.persist(Basket()), type(w.queues.load("basket"))) is Basket),
    ("delete", "queue_id", lambda w: done(w.queues.delete(w.queue.id), w.gone(lambda: w.queues.load(w.queue.id)))),
]
CONNECTIONS: list[tuple[str, str, Exercise]] = [
    ("load_all", "channel_id", lambda w: [each.id for each in w.connections.load_all("channel")] == ["connection"]),
    ("load_one", "connection_id", lambda w: w.connections.load_one("connection").listener.id == w.listener.id),
    (
        "persist",
        "connection",
        lambda w: done(w.connections.persist(w.connection), w.connections.load_one("connection").id) == "connection",
    ),
    (
        "delete",
        "connection_id",
        lambda w: done(w.connections.delete("connection"), w.gone(lambda: w.connections.load_one("connection"))),
    ),
]
CHANNELS: list[tuple[str, str, Exercise]] = [
    ("load_all", "", lambda w: [each.id for each in w.channels.load_all()] == ["channel"]),
    (
        "load_one",
        "channel_id",
        lambda w: w.channels.load_one("channel").get_listener(w.listener.id).id == w.listener.id,
    ),
    (
        "persist",
        "channel",
        lambda w: done(w.channels.persist(SSEChannel(channel_id="c2")), w.channels.load_one("c2").id) == "c2",
    ),
    (
        "delete",
        "channel_id",
        lambda w: done(w.channels.delete("channel"), w.gone(lambda: w.channels.load_one("channel"))),
    ),
]
for classes, rows in (
    ((ListenerRepositoryInterface, ListenerRepository), LISTENERS),
    ((QueueRepositoryInterface, QueueRepository), QUEUES),
    ((ConnectionRepositoryInterface, ConnectionRepository), CONNECTIONS),
    ((ChannelRepositoryInterface, ChannelRepository), CHANNELS),
):
    MEMBERS += [(cls, name, parameters, exercise) for cls in classes for name, parameters, exercise in rows]


@pytest.mark.parametrize(
    ("cls", "name", "parameters", "exercise"), MEMBERS, ids=[f"{row[0].__name__}.{row[1]}" for row in MEMBERS]
)
def test_a_member_has_its_signature_and_works(
    cls: type, name: str, parameters: str, exercise: Exercise, world: World
) -> None:
    member = inspect.getattr_static(cls, name)
    if parameters == PROPERTY:
        assert isinstance(member, property)
    else:
        given = list(inspect.signature(member).parameters.values())[1:]
        required = [each.name for each in given if each.default is inspect.Parameter.empty]
        assert ", ".join(required) == parameters
    assert exercise(world)


# Constructor parameter, what it may be filled from, and what must then be found under "key".
CONSTRUCTORS: list[tuple[type, str, Callable[[], Any], Callable[[Any], Any]]] = [
    (InMemoryStorage, "objects", lambda: {"a": 1}, lambda made: made.fetch_one("key") == {"a": 1}),
    (
        InMemoryConnectionRepository,
        "connections",
        lambda: make_connection(Kettle(1), Basket(), "key"),
        lambda made: (made.load_one("key").id, made.load_one("key").listener.litres) == ("key", 1),
    ),
    (
        InMemoryChannelRepository,
        "channels",
        lambda: SSEChannel(channel_id="key"),
        lambda made: made.load_one("key").id == "key" and [each.id for each in made.load_all()] == ["key"],
    ),
    (InMemoryQueueRepository, "queues", Basket, lambda made: type(made.load("key")) is Basket),
]


@pytest.mark.parametrize(
    ("cls", "parameter", "value", "found"), CONSTRUCTORS, ids=[row[0].__name__ for row in CONSTRUCTORS]
)
def test_an_in_memory_class_is_filled_from_its_dictionary(cls: Any, parameter: str, value: Any, found: Any) -> None:
    assert list(inspect.signature(cls).parameters) == [parameter]
    assert inspect.signature(cls).parameters[parameter].default is None
    assert found(cls({"key": value()}))
    with pytest.raises(ItemNotFound):
        getattr(cls(), "load_one" if hasattr(cls, "load_one") else "load" if hasattr(cls, "load") else "fetch_one")(
            "key"
        )


BASES = [
    (SqlStorageEngine, KvStorageEngine),
    (InMemoryStorage, KvStorageEngine),
    (InMemoryConnectionRepository, ConnectionRepository),
    (InMemoryChannelRepository, ChannelRepository),
    (InMemoryQueueRepository, QueueRepository),
    (ListenerRepository, ListenerRepositoryInterface),
    (QueueRepository, QueueRepositoryInterface),
    (ConnectionRepository, ConnectionRepositoryInterface),
    (ChannelRepository, ChannelRepositoryInterface),
    (SqlQueue, Queue),
    (SqlQueue, ObjectAsKeyValuePersistenceMixin),
]

if not contract.ERIC_SSE_2_0:
    from eric_sse.repository import KvStorage

    BASES.append((SqlStorageEngine, KvStorage))


@pytest.mark.parametrize(("cls", "base"), BASES, ids=[f"{row[0].__name__}-{row[1].__name__}" for row in BASES])
def test_a_class_has_its_base(cls: type, base: type) -> None:
    assert issubclass(cls, base)


@pytest.mark.parametrize("repository", [ListenerRepository, QueueRepository, ConnectionRepository, ChannelRepository])
def test_a_repository_takes_a_storage_engine(repository: type) -> None:
    assert list(inspect.signature(repository).parameters) == ["storage_engine"]


def test_interfaces_are_abstract() -> None:
    for cls in (
        KvStorageEngine,
        ObjectAsKeyValuePersistenceMixin,
        ListenerRepositoryInterface,
        ChannelRepositoryInterface,
    ):
        with pytest.raises(TypeError, match="abstract"):
            cls()


def test_on_eric_sse_2_0_the_contract_is_upstreams_own() -> None:
    expected = "eric_sse" if contract.ERIC_SSE_2_0 else "eric_sse_sql"
    for name in set(contract.__all__) - {"ItemNotFound"}:
        assert getattr(contract, name).__module__.split(".")[0] == expected
    assert contract.ItemNotFound.__module__.split(".")[0] == "eric_sse"


def test_public_names_are_those_that_the_modules_offer() -> None:
    for module in (eric_sse_sql, contract, inmemory):
        for name in module.__all__:
            assert getattr(module, name).__doc__ or contract.ERIC_SSE_2_0


def test_the_loaded_types_are_eric_sses_own(world: World) -> None:
    assert isinstance(world.connections.load_one("connection"), Connection)
    assert isinstance(world.channels.load_one("channel"), AbstractChannel)
