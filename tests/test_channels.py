"""The live channel: what a call costs, what it sees of other workers, and which classes an application may use."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import aclosing, suppress
from typing import Any, NamedTuple, cast

import pytest

from eric_sse_sql.contract import ERIC_SSE_2_0
from support.catalog import table_counts
from support.channels import filled
from support.databases import application_engine
from support.queues import drain
from support.statements import Record, Statements
from support.threads import NOTIFIER, WATCHER
from support.waiting import DEADLINE

if ERIC_SSE_2_0:
    pytest.skip("the repositories of eric-sse 2.1 need eric-sse 2.1", allow_module_level=True)

from eric_sse.connection import Connection
from eric_sse.exception import InvalidListenerException, NoMessagesException, RepositoryError
from eric_sse.listener import MessageQueueListener
from eric_sse.message import Message, MessageContract
from eric_sse.prefabs import SSEChannel
from eric_sse.queues import InMemoryQueue
from sqlalchemy import URL, event, text

from eric_sse_sql import (
    AbstractSqlChannelRepository,
    BlockingSqlQueue,
    Database,
    PickleCodec,
    SqlChannel,
    SqlQueue,
    SqlSSEChannel,
    SqlSSEChannelRepository,
    fanout,
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
    with Database(database.engine, codec=PickleCodec(signing_keys=[b"0123456789abcdef"])) as signing:
        channel = filled(SqlSSEChannelRepository(signing), "c", 3)
        seen = statements(database)
        channel.broadcast(Message("m", 1))
        assert len(seen) == 2  # the queues are looked up, since each blob is signed for its own
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


# The cost of a call


class Cost(NamedTuple):
    """How many statements each call takes, on a channel object that was loaded for it."""

    load_one: int
    get_listener: int
    get_listener_again: int
    dispatch: int
    dispatch_again: int
    broadcast: int
    get_connections: int
    deliver_next: int
    persist: int


def cost(database: Database, seen: Statements, channel_id: str, number: int, replay_seconds: float) -> Cost:
    """The cost of each call on a channel with so many listeners."""
    repository = SqlSSEChannelRepository(database)
    made = repository.create({"channel_id": channel_id, "replay_seconds": replay_seconds})
    listener_id = [made.add_listener().id for _ in range(number)][number // 2]
    repository.persist(made)

    def of(call: Callable[[], object]) -> int:
        seen.clear()
        call()
        return len(seen)

    def loaded() -> SqlChannel:
        channel = repository.load_one(channel_id)
        assert isinstance(channel, SqlChannel)
        return channel

    channel, dispatching, adding = loaded(), loaded(), loaded()
    adding.add_listener()
    found = Cost(
        load_one=of(loaded),
        get_listener=of(lambda: channel.get_listener(listener_id)),
        get_listener_again=of(lambda: channel.get_listener(listener_id)),
        dispatch=of(lambda: dispatching.dispatch(listener_id, Message("m", 1))),
        dispatch_again=of(lambda: dispatching.dispatch(listener_id, Message("m", 2))),
        broadcast=of(lambda: loaded().broadcast(Message("m", 3))) - 1,
        get_connections=of(lambda: loaded().get_connections()) - 1,
        deliver_next=of(lambda: channel.get_listener(listener_id).start() or channel.deliver_next(listener_id)),
        persist=of(lambda: repository.persist(adding)),
    )
    assert [channel.deliver_next(listener_id).payload for _ in range(2)] == [2, 3]
    assert len(loaded().get_connections()) == number + 1
    return found


SIGNING = PickleCodec(signing_keys=[b"0123456789abcdef"])


@pytest.mark.parametrize(
    ("codec", "replay_seconds", "expected"),
    [
        pytest.param(PickleCodec(), 0, Cost(1, 1, 0, 1, 1, 1, 1, 1, 5), id="queues"),
        pytest.param(SIGNING, 0, Cost(1, 1, 0, 2, 1, 2, 1, 1, 5), id="signed queues"),
        pytest.param(PickleCodec(), 60, Cost(1, 1, 0, 1, 1, 1, 1, 3, 7), id="log"),
        pytest.param(SIGNING, 60, Cost(1, 1, 0, 1, 1, 1, 1, 3, 7), id="signed log"),
    ],
)
def test_a_call_takes_the_same_statements_whatever_the_number_of_listeners(
    database: Database,
    statements: Record,
    monkeypatch: pytest.MonkeyPatch,
    codec: PickleCodec,
    replay_seconds: float,
    expected: Cost,
) -> None:
    monkeypatch.setattr(fanout, "EXPIRY_CHANCE", 0)
    with Database(database.engine, codec=codec) as used:
        seen = statements(used)
        costs = [cost(used, seen, f"c{number}", number, replay_seconds) for number in (1, 1_000)]
        assert costs == [expected, expected]


def test_a_stream_opens_with_the_same_statements_whatever_the_number_of_listeners(database: Database) -> None:
    repository, seen = SqlSSEChannelRepository(database), list[str]()
    counted: dict[tuple[int, int], int] = {}

    @event.listens_for(database.engine, "before_cursor_execute")
    def record(connection: object, cursor: object, statement: str, *others: object) -> None:
        if threading.current_thread().name not in (WATCHER, NOTIFIER):
            seen.append(statement)

    async def opened(channel: SqlChannel, listener: MessageQueueListener) -> None:
        async with aclosing(cast(AsyncGenerator[Any, None], channel.message_stream(listener))) as stream:
            task = asyncio.ensure_future(anext(stream))
            await asyncio.sleep(0.3)
            assert not task.done()
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task

    for replay_seconds in (0, 60):
        for number in (1, 1_000):
            made = repository.create({"channel_id": f"c{replay_seconds} {number}", "replay_seconds": replay_seconds})
            listener_id = [made.add_listener().id for _ in range(number)][number // 2]
            repository.persist(made)
            channel = repository.load_one(made.id)
            listener = channel.get_listener(listener_id)
            listener.start()
            seen.clear()
            asyncio.run(opened(channel, listener))
            counted[replay_seconds, number] = len(seen)
            assert len(channel.identity_map.held()) == 1
    assert counted[0, 1] == counted[0, 1_000] <= 2
    assert max(counted[60, 1], counted[60, 1_000]) <= 5
    assert abs(counted[60, 1] - counted[60, 1_000]) <= 2  # a poll may have read the log before


# Several workers


@pytest.fixture(params=[0, 60], ids=["queues", "log"])
def workers(request: pytest.FixtureRequest, shared_url: URL) -> Iterator[list[SqlSSEChannelRepository]]:
    """The repositories of two workers, on a database with the channel "c"."""
    with Database(shared_url) as one, Database(shared_url) as other:
        repositories = [SqlSSEChannelRepository(one), SqlSSEChannelRepository(other)]
        made = repositories[0].create({"channel_id": "c", "replay_seconds": request.param})
        made.add_listener()
        repositories[0].persist(made)
        yield repositories


def test_a_worker_reaches_at_once_what_another_one_has_stored(workers: list[SqlSSEChannelRepository]) -> None:
    one, other = (repository.load_one("c") for repository in workers)
    (known,) = one.get_connections()
    added = other.add_listener()
    workers[1].persist(other)
    assert one.get_listener(added.id).id == added.id
    assert {each.listener.id for each in one.get_connections()} == {known.listener.id, added.id}
    later = other.add_listener()
    workers[1].persist(other)
    one.broadcast(Message("m", "to all"))
    one.dispatch(later.id, Message("m", "to one"))
    later.start()
    assert [other.deliver_next(later.id).payload for _ in range(2)] == ["to all", "to one"]


@pytest.mark.parametrize("is_held", [True, False])
@pytest.mark.parametrize("way", ["removed", "connection deleted", "channel deleted"])
def test_a_dispatch_to_a_listener_that_another_worker_has_deleted_is_refused_and_stores_nothing(
    workers: list[SqlSSEChannelRepository], is_held: bool, way: str
) -> None:
    here, there = (repository.load_one("c") for repository in workers)
    (connection,) = there.get_connections()
    listener_id = connection.listener.id
    if is_held:
        here.dispatch(listener_id, Message("m", 1))
    if way == "removed":
        there.remove_listener(listener_id)
        workers[1].persist(there)
    elif way == "connection deleted":
        workers[1].connections_repository.delete("c", connection.id)
    else:
        workers[1].delete("c")
    before = rows(workers[0])
    for _ in range(2):
        with pytest.raises(InvalidListenerException):
            here.dispatch(listener_id, Message("m", 2))
    assert rows(workers[0]) == before
    with pytest.raises(InvalidListenerException):
        here.get_listener(listener_id)


def rows(repository: SqlSSEChannelRepository) -> dict[str, int]:
    """How many messages and events there are."""
    counts = table_counts(repository.connections_factory.database)  # type: ignore[attr-defined]
    return {table: counts.get(table, 0) for table in ("sse_messages", "sse_events")}


def test_a_listener_that_is_removed_here_is_refused_at_once_and_deleted_by_the_next_persist(
    workers: list[SqlSSEChannelRepository],
) -> None:
    here, there = (repository.load_one("c") for repository in workers)
    (connection,) = there.get_connections()
    here.remove_listener(connection.listener.id)
    for call in (
        lambda: here.dispatch(connection.listener.id, Message("m")),
        lambda: here.get_listener(connection.listener.id),
        lambda: here.deliver_next(connection.listener.id),
        lambda: here.remove_listener(connection.listener.id),
    ):
        with pytest.raises(InvalidListenerException):
            call()
    assert list(here.get_connections()) == []
    here.broadcast(Message("m", "not for it"))
    assert there.get_listener(connection.listener.id)
    workers[0].persist(here)
    with pytest.raises(InvalidListenerException):
        workers[1].load_one("c").get_listener(connection.listener.id)


def test_what_was_changed_in_a_transaction_that_is_rolled_back_is_persisted_by_the_next_persist(
    workers: list[SqlSSEChannelRepository],
) -> None:
    here = workers[0].load_one("c")
    (connection,) = here.get_connections()
    database = workers[0].connections_factory.database  # type: ignore[attr-defined]
    here.remove_listener(connection.listener.id)
    added = here.add_listener()
    for _ in range(2):
        with suppress(KeyError), database.transaction():
            workers[0].persist(here)
            here.dispatch(added.id, Message("m", "rolled back"))
            raise KeyError
        stored = workers[1].load_one("c").get_connections()
        assert [each.listener.id for each in stored] == [connection.listener.id]
        with pytest.raises(InvalidListenerException):
            here.get_listener(connection.listener.id)
    workers[0].persist(here)
    here.dispatch(added.id, Message("m", "committed"))
    loaded = workers[1].load_one("c")
    loaded.get_listener(added.id).start()
    assert loaded.deliver_next(added.id).payload == "committed"
    assert [each.listener.id for each in loaded.get_connections()] == [added.id]


@pytest.mark.parametrize("replay_seconds", [0, 60])
def test_a_listener_that_was_persisted_in_a_joined_transaction_is_reached_after_it(
    shared_url: URL, replay_seconds: float
) -> None:
    with Database(shared_url) as database, Database(shared_url) as elsewhere, application_engine(shared_url) as engine:
        repository = SqlSSEChannelRepository(database)
        channel = repository.create({"channel_id": "c", "replay_seconds": replay_seconds})
        listener = channel.add_listener()
        with engine.begin() as connection:
            with database.join(connection):
                repository.persist(channel)
            assert channel.get_listener(listener.id) is listener  # which is not committed yet
        other = SqlSSEChannelRepository(elsewhere).load_one("c")
        other.broadcast(Message("m", 1))
        channel.broadcast(Message("m", 2))
        channel.dispatch(listener.id, Message("m", 3))
        other.dispatch(listener.id, Message("m", 4))
        listener.start()

        async def read() -> list[Any]:
            async with aclosing(cast(AsyncGenerator[Any, None], channel.message_stream(listener))) as stream:
                return [(await asyncio.wait_for(anext(stream), DEADLINE))["data"] for _ in range(4)]

        assert asyncio.run(read()) == [1, 2, 3, 4]
        channel.remove_listener(listener.id)
        repository.persist(channel)
        assert list(SqlSSEChannelRepository(elsewhere).load_one("c").get_connections()) == []


# Classes of an application


class Shop(SqlChannel):
    """A channel of an application's own class."""

    def __init__(self, city: str, **others: Any) -> None:
        super().__init__(**others)
        self.city = city

    def adapt(self, msg: MessageContract) -> Any:
        return {"data": (self.city, msg.payload)}


class ShopRepository(AbstractSqlChannelRepository):
    """The repository of such channels."""

    def create(self, channel_data: dict[str, Any]) -> Shop:
        return Shop(**channel_data, connections_factory=self.connections_factory)

    @staticmethod
    def _channel_to_dict(channel: Any) -> dict[str, Any]:
        return {"channel_id": channel.id, "city": channel.city, "replay_seconds": channel.replay_seconds}


@pytest.mark.parametrize("replay_seconds", [0, 60])
def test_a_channel_of_an_applications_own_class_is_live(
    database: Database, statements: Record, replay_seconds: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fanout, "EXPIRY_CHANCE", 0)
    repository = ShopRepository(database)
    made = repository.create({"channel_id": "c", "city": "Rome", "replay_seconds": replay_seconds})
    listener_id = [made.add_listener().id for _ in range(100)][50]
    repository.persist(made)
    seen = statements(database)
    loaded = repository.load_one("c")
    loaded.dispatch(listener_id, Message("m", 1))
    loaded.broadcast(Message("m", 2))
    assert len(seen) == 3
    assert isinstance(loaded, Shop) and loaded.city == "Rome"
    listener = loaded.get_listener(listener_id)
    listener.start()

    async def read() -> list[Any]:
        async with aclosing(cast(AsyncGenerator[Any, None], loaded.message_stream(listener))) as stream:
            return [(await asyncio.wait_for(anext(stream), DEADLINE))["data"] for _ in range(2)]

    assert asyncio.run(read()) == [("Rome", 1), ("Rome", 2)]


class Loud(SqlQueue):
    """A queue that changes what is pushed."""

    def push(self, message: MessageContract) -> None:
        super().push(Message(message.type, str(message.payload).upper()))


@pytest.mark.parametrize("codec", [PickleCodec(), SIGNING], ids=["unsigned", "signed"])
@pytest.mark.parametrize("replay_seconds", [0, 60])
def test_a_stored_queue_that_pushes_by_itself_is_reached_by_every_worker(
    database: Database, codec: PickleCodec, replay_seconds: float
) -> None:
    with Database(database.engine, codec=codec) as used:
        repository = SqlSSEChannelRepository(used)
        channel = repository.create({"channel_id": "c", "replay_seconds": replay_seconds})
        plain, loud = channel.add_listener(), MessageQueueListener()
        channel.register_connection(Connection(loud, Loud(used)))
        channel.broadcast(Message("m", "before"))
        repository.persist(channel)
        other = repository.load_one("c")
        other.broadcast(Message("m", "all"))
        other.dispatch(loud.id, Message("m", "one"))
        with used.transaction():
            other.broadcast(Message("m", "in a transaction"))
        channel.broadcast(Message("m", "again"))
        for listener, expected in (
            (plain, ["before", "all", "in a transaction", "again"]),
            (loud, ["BEFORE", "ALL", "ONE", "IN A TRANSACTION", "AGAIN"]),
        ):
            reading = repository.load_one("c")
            reading.get_listener(listener.id).start()
            assert [reading.deliver_next(listener.id).payload for _ in expected] == expected
            with pytest.raises(NoMessagesException):
                reading.deliver_next(listener.id)


@pytest.mark.parametrize("replay_seconds", [0, 60])
def test_queues_in_memory_are_reached_beside_stored_ones(database: Database, replay_seconds: float) -> None:
    repository = SqlSSEChannelRepository(database)
    channel = repository.create({"channel_id": "c", "replay_seconds": replay_seconds})
    stored = channel.add_listener()
    repository.persist(channel)
    loaded = repository.load_one("c")
    in_memory = MessageQueueListener()
    loaded.register_connection(Connection(in_memory, InMemoryQueue()))
    loaded.broadcast(Message("m", 1))
    loaded.dispatch(in_memory.id, Message("m", 2))
    in_memory.start()
    assert [loaded.deliver_next(in_memory.id).payload for _ in range(2)] == [1, 2]
    loaded.get_listener(stored.id).start()
    assert loaded.deliver_next(stored.id).payload == 1

    async def read() -> Any:
        loaded.dispatch(in_memory.id, Message("m", 3))
        async with aclosing(cast(AsyncGenerator[Any, None], loaded.message_stream(in_memory))) as stream:
            return await asyncio.wait_for(anext(stream), DEADLINE)

    assert asyncio.run(read())["data"] == 3
    with pytest.raises(RepositoryError, match="InMemoryQueue"):
        repository.persist(loaded)


def test_a_channel_of_eric_sses_own_class_is_loaded_whole(database: Database) -> None:
    class Repository(AbstractSqlChannelRepository):
        def create(self, channel_data: dict[str, Any]) -> SSEChannel:
            return SSEChannel(**channel_data, connections_factory=self.connections_factory)

        @staticmethod
        def _channel_to_dict(channel: Any) -> dict[str, Any]:
            return {"channel_id": channel.id}

    repository = Repository(database)
    channel = repository.create({"channel_id": "c"})
    listener = channel.add_listener()
    repository.persist(channel)
    loaded = repository.load_one("c")
    loaded.broadcast(Message("m", 1))
    loaded.get_listener(listener.id).start()
    assert loaded.deliver_next(listener.id).payload == 1
    loaded.remove_listener(listener.id)
    repository.persist(loaded)
    assert list(repository.load_one("c").get_connections()) == []


def test_many_threads_may_share_a_channel(database: Database) -> None:
    repository = SqlSSEChannelRepository(database)
    made = repository.create({"channel_id": "c"})
    listener_ids = [made.add_listener().id for _ in range(40)]
    repository.persist(made)
    channel = repository.load_one("c")
    found: list[list[MessageQueueListener]] = []

    def work() -> None:
        found.append([channel.get_listener(listener_id) for listener_id in listener_ids])
        channel.broadcast(Message("m"))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(DEADLINE)
    assert len(found) == 4
    assert all(one is other for each in found for one, other in zip(found[0], each, strict=True))
    assert [len(connection.queue) for connection in channel.get_connections()] == [4] * 40  # type: ignore[arg-type]
