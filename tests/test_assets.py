"""Databases that released versions made, as applications have them: they are upgraded, and everything in them is used.

What an asset holds is told by ``assets/shop.py`` and by the program that made the asset.
"""

from __future__ import annotations

import asyncio
import gzip
from collections.abc import Callable, Iterable, Iterator
from contextlib import aclosing
from datetime import timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest
from eric_sse.connection import Connection
from eric_sse.exception import NoMessagesException, RepositoryError
from eric_sse.message import Message
from eric_sse.prefabs import SSEChannel
from sqlalchemy import URL, make_url, text

from assets import shop
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
from eric_sse_sql.contract import ERIC_SSE_2_0, ItemNotFound
from support.catalog import address
from support.waiting import DEADLINE

if not ERIC_SSE_2_0:
    from assets.rooms import RoomRepository
    from eric_sse_sql import SqlSSEChannelRepository

ASSETS = sorted(Path(shop.__file__).parent.glob("0.*_eric_sse_*"))
# An object of eric-sse's own channel classes is stored with the attributes that it has in the eric-sse installed.
OF_THIS_ERIC_SSE = [path for path in ASSETS if ("_eric_sse_2.0_" in path.name) == ERIC_SSE_2_0]
LONG_AGO = timedelta(seconds=1)
DETAILS = (
    *("id", "type", "payload", "sender_id", "number", "content", "name", "parts", "heard"),
    *("topic", "stream_delay_seconds", "retry_timeout_milliseconds", "replay_seconds"),
)


def restored(asset: Path, folder: Path, new_postgres: Callable[[], URL]) -> URL:
    """The URL of a new database that is a copy of an asset."""
    if asset.suffix == ".gz":
        copy = folder / "copy.sqlite"
        copy.write_bytes(gzip.decompress(asset.read_bytes()))
        return make_url(f"sqlite:///{copy}")
    url = new_postgres()
    with psycopg.connect(address(url.set(drivername="postgresql"))) as connection:
        connection.execute(asset.read_bytes())
    return url


def codec_of(asset: Path) -> PickleCodec:
    return PickleCodec(allow=shop.ALLOWED, signing_keys=[] if "_unsigned" in asset.name else [shop.SIGNING_KEY])


@pytest.fixture(params=ASSETS, ids=lambda path: path.name)
def asset(request: pytest.FixtureRequest) -> Path:
    path: Path = request.param
    return path


@pytest.fixture
def url(asset: Path, tmp_path: Path, new_postgres: Callable[[], URL]) -> URL:
    return restored(asset, tmp_path, new_postgres)


@pytest.fixture
def database(asset: Path, url: URL) -> Iterator[Database]:
    """A copy of an asset, upgraded."""
    with Database(url, codec=codec_of(asset)) as database:
        database.upgrade()
        database.check()
        yield database


of_this_eric_sse = pytest.mark.parametrize("asset", OF_THIS_ERIC_SSE, ids=lambda path: path.name, indirect=True)
with_eric_sse_2_1 = pytest.mark.skipif(ERIC_SSE_2_0, reason="eric-sse 2.0 has no such repositories")


def described(value: Any) -> Any:
    """What can be compared of a message, a listener, a queue or a channel."""
    details = {name: getattr(value, name, None) for name in DETAILS}
    is_running = value.is_running() if hasattr(value, "is_running") else None
    return type(value), details, is_running, [described(message) for message in getattr(value, "messages", ())]


def described_all(connections: Iterable[Connection | shop.Parts]) -> list[Any]:
    return [(described(each.listener), described(each.queue)) for each in connections]


def stored_connections(database: Database, channel_id: str) -> list[shop.Parts]:
    """The connections of a channel as they were stored after a broadcast."""
    connections = shop.connections(database, channel_id)
    for _, _, queue in connections:
        if isinstance(queue, shop.Letterbox):
            queue.push(Message("waiting", channel_id))
    return connections


def received(channel: Any, listener_id: str, count: int) -> list[Any]:
    """The types of the next messages of a listener."""
    channel.get_listener(listener_id).start()
    return [channel.deliver_next(listener_id).type for _ in range(count)]


def streamed(channel: Any, listener_id: str, is_last: Callable[[Any], bool], *last_event_id: str) -> list[Any]:
    """The events of a listener's stream, up to the last one asked for."""

    async def read() -> list[Any]:
        listener, events = channel.get_listener(listener_id), list[Any]()
        listener.start()
        async with aclosing(channel.message_stream(listener, *last_event_id)) as stream:
            while not events or not is_last(events[-1]):
                events.append(await asyncio.wait_for(anext(stream), DEADLINE))
        return events

    return asyncio.run(read())


def test_every_kind_of_database_is_among_the_assets() -> None:
    assert {asset.name for asset in ASSETS} >= {
        f"0.1.0_eric_sse_{eric_sse}_{signed}.{kind}"
        for eric_sse in ("2.0", "2.1")
        for signed in ("signed", "unsigned")
        for kind in ("postgres.sql", "sqlite.gz")
    }


# Values, messages, leases


def test_values_come_back_and_are_replaced_and_deleted(database: Database) -> None:
    storage, values = SqlStorageEngine(database), shop.values()
    assert {key: storage.fetch_one(key) for key in values} == values
    assert list(storage.fetch_all()) == [values[key] for key in sorted(values)]
    assert list(storage.fetch_by_prefix("order/1")) == [values["order/1"], values["order/10"]]
    assert list(SqlStorageEngine(database, "other").fetch_all()) == ["of the other namespace"]
    for key, value in values.items():
        storage.upsert(key, [value])
        assert storage.fetch_one(key) == [value]
        storage.delete(key)
    assert list(storage.fetch_all()) == []


def test_waiting_messages_are_popped_in_their_order_before_new_ones(database: Database) -> None:
    queue, waiting = SqlQueue(database, "stock"), shop.messages()
    queue.push(Message("new"))
    assert len(queue) == len(waiting) + 1
    popped = [queue.pop() for _ in waiting]
    assert [described(message) for message in popped] == [described(message) for message in waiting]
    assert queue.pop().type == "new"
    with pytest.raises(NoMessagesException):
        queue.pop()


def test_a_lease_lasts_as_long_as_it_was_asked_for(database: Database) -> None:
    queue = QueueRepository(SqlStorageEngine(database)).load("worklist")
    assert type(queue) is SqlQueue
    with database.engine.connect() as connection:
        overview = text("SELECT depth, leased FROM sse_queue_overview WHERE queue_id = 'worklist'")
        assert connection.execute(overview).one() == (3, 1)
    assert len(queue) == 2
    for payload, delivery_count in (("expired", 2), ("waiting", 1)):
        with queue.receive() as delivery:
            assert (delivery.payload, delivery.delivery_count) == (payload, delivery_count)
    with pytest.raises(NoMessagesException):
        queue.pop()


def test_pruning_deletes_the_messages_of_a_queue_that_is_neither_stored_nor_connected(database: Database) -> None:
    assert database.prune(older_than=LONG_AGO) == (len(shop.messages()), 0, 0, 0, 0)
    depths = {queue_id: len(SqlQueue(database, queue_id)) for queue_id in ("stock", "worklist", "queue of unassigned")}
    assert depths == {"stock": 0, "worklist": 2, "queue of unassigned": 1}


@pytest.mark.parametrize("asset", [path for path in ASSETS if "_signed" in path.name], indirect=True)
def test_signed_blobs_need_their_key_which_can_be_replaced(database: Database) -> None:
    url, new_key, text_key = database.engine.url, b"the signing key of today", "text"
    with Database(url) as without_key, pytest.raises(RepositoryError, match="signed"):
        SqlStorageEngine(without_key).fetch_one(text_key)
    with Database(url, codec=PickleCodec(signing_keys=[new_key, shop.SIGNING_KEY])) as both:
        storage = SqlStorageEngine(both)
        storage.upsert(text_key, storage.fetch_one(text_key))
        assert SqlQueue(both, "stock").pop().type == "plain"
    with Database(url, codec=PickleCodec(signing_keys=[new_key])) as new:
        assert SqlStorageEngine(new).fetch_one(text_key) == shop.values()[text_key]


# Listeners, queues, connections


def test_listeners_and_queues_come_back_by_their_own_ids(database: Database) -> None:
    storage = SqlStorageEngine(database)
    listeners, queues = ListenerRepository(storage), QueueRepository(storage)
    for _, listener, queue in shop.connections(database, "alone"):
        loaded_listener, loaded_queue = listeners.load(listener.id), queues.load(queue.id)
        assert described(loaded_listener) == described(listener)
        assert described(loaded_queue) == described(queue)
        listeners.persist(loaded_listener)
        queues.persist(loaded_queue)
        listeners.delete(listener.id)
        queues.delete(queue.id)
        with pytest.raises(ItemNotFound):
            listeners.load(listener.id)
        with pytest.raises(ItemNotFound):
            queues.load(queue.id)


def test_a_connection_without_a_channel_comes_back_and_is_given_to_one(database: Database) -> None:
    storage = SqlStorageEngine(database)
    connections, expected = ConnectionRepository(storage), shop.connections(database, "unassigned")
    loaded = [connections.load_one(parts.connection_id) for parts in expected]
    assert described_all(loaded) == described_all(expected)
    assert loaded[0].queue.pop().payload == "unassigned"
    ChannelRepository(storage).persist(SSEChannel(channel_id="new"))
    for connection in loaded:
        connections.persist(connection, "new")
    assert described_all(connections.load_all("new")) == described_all(expected)
    connections.delete(loaded[0].id)
    assert described_all(connections.load_all("new")) == described_all(expected[1:])


def test_connections_come_back_by_their_channel_with_either_eric_sse(asset: Path, database: Database) -> None:
    connections = ConnectionRepository(SqlStorageEngine(database))
    for channel_id in ("classic", "classic room", *(() if "_eric_sse_2.0_" in asset.name else ("channel", "room"))):
        expected = stored_connections(database, channel_id)
        loaded = list(connections.load_all(channel_id))
        assert [connection.id for connection in loaded] == [parts.connection_id for parts in expected]
        assert described_all(loaded) == described_all(expected)


# Channels


def channels_of(database: Database) -> dict[str, tuple[Any, Any]]:
    """By the id of a channel: the repository that loads it, and a channel with the same settings."""
    classic = ChannelRepository(SqlStorageEngine(database))
    made: dict[str, tuple[Any, Any]] = {
        "classic": (classic, SSEChannel(channel_id="classic", **shop.SETTINGS)),
        "classic empty": (classic, SSEChannel(channel_id="classic empty")),
        "classic room": (classic, shop.Room("tea", "classic room")),
    }
    if not ERIC_SSE_2_0:
        channels, rooms = SqlSSEChannelRepository(database), RoomRepository(database)
        defaults = {"stream_delay_seconds": 0, "retry_timeout_milliseconds": 5}  # of version 0.1.0
        settings = {"channel": shop.SETTINGS, "empty": defaults, "replayed": shop.REPLAY_SETTINGS}
        for channel_id, own in settings.items():
            made[channel_id] = channels, channels.create({"channel_id": channel_id, **own})
        made["room"] = rooms, rooms.create({"channel_id": "room", "topic": "tea"})
    return made


ONE_OF_EACH_REPOSITORY = ("classic",) if ERIC_SSE_2_0 else ("classic", "channel", "room")
FULL = ("classic", "classic room") if ERIC_SSE_2_0 else ("classic", "classic room", "channel", "room")


@of_this_eric_sse
def test_channels_come_back_with_their_settings(database: Database) -> None:
    for channel_id, (repository, expected) in channels_of(database).items():
        assert described(repository.load_one(channel_id)) == described(expected)


@of_this_eric_sse
@pytest.mark.parametrize("channel_id", ONE_OF_EACH_REPOSITORY)
def test_all_channels_of_a_repository_come_back(database: Database, channel_id: str) -> None:
    channels = channels_of(database)
    repository, _ = channels[channel_id]
    for other_id, (other, _) in channels.items():
        if other is not repository:  # it can't load what another one has stored
            other.delete(other_id)
    loaded = {channel.id: described(channel) for channel in repository.load_all()}
    assert loaded == {own: described(channel) for own, (other, channel) in channels.items() if other is repository}


@of_this_eric_sse
@pytest.mark.parametrize("channel_id", FULL)
def test_a_channel_is_loaded_dispatched_to_persisted_and_deleted(database: Database, channel_id: str) -> None:
    repository, _ = channels_of(database)[channel_id]
    connections, expected = ConnectionRepository(SqlStorageEngine(database)), stored_connections(database, channel_id)
    assert described_all(connections.load_all(channel_id)) == described_all(expected)
    channel = repository.load_one(channel_id)
    channel.broadcast(Message("broadcast"))
    for _, listener, queue in expected:
        assert described(channel.get_listener(listener.id)) == described(listener)
        channel.dispatch(listener.id, Message("dispatched"))
        types = ["order", "waiting"] if isinstance(queue, shop.Letterbox) else ["waiting"]
        assert received(channel, listener.id, len(types) + 2) == [*types, "broadcast", "dispatched"]
    removed, *others = expected
    channel.dispatch(removed.listener.id, Message("removed"))
    channel.remove_listener(removed.listener.id)
    repository.persist(channel)
    assert [each.listener.id for each in connections.load_all(channel_id)] == [each.listener.id for each in others]
    assert len(SqlQueue(database, removed.queue.id)) == 0
    again = repository.load_one(channel_id)
    assert again.get_listener(f"{channel_id} clerk").heard == ["waiting", "broadcast", "dispatched"]
    for _, listener, _ in others:
        again.dispatch(listener.id, Message("again"))
        assert received(again, listener.id, 1) == ["again"]
    repository.delete(channel_id)
    assert list(connections.load_all(channel_id)) == []
    with pytest.raises(ItemNotFound):
        repository.load_one(channel_id)


@of_this_eric_sse
@pytest.mark.parametrize("channel_id", ONE_OF_EACH_REPOSITORY)
def test_a_stream_begins_with_the_waiting_messages(database: Database, channel_id: str) -> None:
    repository, expected = channels_of(database)[channel_id]
    waiting = expected.adapt(Message("waiting", channel_id))
    for _, listener, queue in shop.connections(database, channel_id):
        if isinstance(queue, SqlQueue):
            assert streamed(repository.load_one(channel_id), listener.id, lambda event: True) == [waiting]


@of_this_eric_sse
@with_eric_sse_2_1
def test_a_channel_gets_the_connections_that_were_persisted_before_it(database: Database) -> None:
    repository, expected = SqlSSEChannelRepository(database), shop.connections(database, "later")
    assert described_all(repository.connections_repository.load_all("later")) == described_all(expected)
    repository.persist(repository.create({"channel_id": "later"}))
    assert described_all(repository.load_one("later").get_connections()) == described_all(expected)


@of_this_eric_sse
@with_eric_sse_2_1
def test_listeners_and_queues_come_back_by_the_id_of_their_connection(database: Database) -> None:
    connections = SqlSSEChannelRepository(database).connections_repository
    for connection_id, listener, queue in shop.connections(database, "loose"):
        assert described(connections.listeners_repository.load(connection_id)) == described(listener)
        assert described(connections.queues_repository.load(connection_id)) == described(queue)


@of_this_eric_sse
@with_eric_sse_2_1
@pytest.mark.parametrize("last_event_id", [(), ("1",), ("3",), ("5",)])
def test_a_stream_is_contiguous_after_its_last_event_or_begins_with_a_reset(
    database: Database, last_event_id: tuple[str, ...]
) -> None:
    """0 to 4 were delivered, with the ids 1 to 5; 5 and 6 wait. A later version may not know these ids any more."""
    repository, listener_id = SqlSSEChannelRepository(database), "listener of the replayed channel"

    def stream(*last_event_id: str) -> list[Any]:
        return streamed(repository.load_one("replayed"), listener_id, lambda event: event["data"] == 7, *last_event_id)

    repository.load_one("replayed").dispatch(listener_id, Message("number", 7))
    events = stream(*last_event_id)
    is_reset = events[0]["event"] == "reset"
    numbers = [event["data"] for event in events[1 if is_reset else 0 :]]
    assert numbers == list(range(numbers[0], 8))
    if last_event_id and not is_reset:
        assert numbers[0] == int(last_event_id[0])
    else:
        assert numbers[0] <= 5  # what was not delivered is not lost
    assert [event["data"] for event in stream(events[-2]["id"])] == [7]
