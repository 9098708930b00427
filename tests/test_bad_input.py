"""Bad input: the same error on every database and every engine, nothing written, and the next call works."""

from __future__ import annotations

import asyncio
import socket
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import aclosing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from eric_sse.connection import Connection
from eric_sse.exception import NoMessagesException, RepositoryError
from eric_sse.listener import MessageQueueListener
from eric_sse.message import Message, MessageContract
from eric_sse.queues import InMemoryQueue
from sqlalchemy import URL, create_engine, text

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
from eric_sse_sql.contract import ERIC_SSE_2_0
from support import application
from support.catalog import table_counts
from support.waiting import DEADLINE

SECRET = "hunter2"
ENGINES = ("own engine", "application's engine")
NO_TEXT_KEYS = {"bytes": b"key", "a number": 5, "None": None, "a list": ["key"], "a class": str}
BAD_KEYS = {
    "NUL": ("a\0b", "must not hold a NUL character"),
    "NUL alone": ("\0", "must not hold a NUL character"),
    "a lone surrogate": ("a\ud800", "must not hold a lone surrogate"),
    "a low surrogate": ("\udfff", "must not hold a lone surrogate"),
    "1,025 bytes": ("x" * 1025, "must be at most 1024 bytes of UTF-8, not 1025"),
    "1,026 bytes in 342 characters": ("€" * 342, "must be at most 1024 bytes of UTF-8, not 1026"),
    "a megabyte": ("x" * 1_000_000, "must be at most 1024 bytes of UTF-8, not 1000000"),
} | {name: (key, f"must be a str, not {type(key).__name__}") for name, key in NO_TEXT_KEYS.items()}
GOOD_KEYS = ["", "x" * 1024, "€" * 341 + "x", "\U0010ffff" * 256, "/", "'; DROP TABLE kv_entries; --", "%", "\x01", " "]


@pytest.fixture(params=ENGINES)
def used(request: pytest.FixtureRequest, database: Database) -> Iterator[Database]:
    """A database as it is used: through an engine of its own, or one of the application."""
    if request.param == "own engine":
        yield database
    elif database.engine.url.database is None:
        with Database(database.engine) as made:  # there is no other way to the same memory
            yield made
    else:
        engine = create_engine(database.engine.url)
        with Database(engine) as made:
            yield made
        engine.dispose()


@contextmanager
def refused(database: Database, message: str) -> Iterator[None]:
    """The block raises an error that quotes no value. Nothing is written, and the next call works."""
    before = table_counts(database)
    with pytest.raises(RepositoryError) as error:
        yield
    assert message in str(error.value)
    assert SECRET not in "".join(traceback.format_exception(error.value)) + repr(error.value)
    assert table_counts(database) == before
    storage, queue = SqlStorageEngine(database, "next"), SqlQueue(database, "next")
    storage.upsert("key", "value")
    queue.push(Message("next"))
    assert (storage.fetch_one("key"), queue.pop().type) == ("value", "next")
    storage.delete("key")


def is_set_aside(queue: SqlQueue, reason: str, logged: pytest.LogCaptureFixture) -> bool:
    """Whether the only message of a queue is set aside when it is popped, with a reason that quotes no value."""
    logged.clear()
    with pytest.raises(NoMessagesException):
        queue.pop()
    (line,) = logged.messages
    rows = text("SELECT reason FROM sse_set_aside_messages WHERE queue_id = :queue ORDER BY id DESC")
    with queue.database.engine.connect() as connection:
        told = str(connection.scalar(rows, {"queue": queue.id}))
    assert SECRET not in line + told
    return reason in told and told in line


def store(database: Database, blob: Any, key: str = "key") -> None:
    """Replace the blobs of an entry and of a message, as plain SQL can."""
    SqlStorageEngine(database).upsert(key, "good")
    SqlQueue(database, key).push(Message("good"))
    with database.engine.begin() as connection:
        for statement in (
            "UPDATE kv_entries SET value = :blob WHERE key = :entry",
            "UPDATE sse_messages SET message = :blob WHERE queue_id = :queue",
        ):
            connection.execute(text(statement), {"blob": blob, "entry": f"kv/{key}", "queue": key})


def stored(database: Database, table: str, column: str) -> list[Any]:
    with database.engine.connect() as connection:
        return list(connection.scalars(text(f"SELECT {column} FROM {table} ORDER BY 1")))


# Keys and ids


@pytest.mark.parametrize("name", BAD_KEYS)
def test_an_invalid_key_is_refused_by_every_call(database: Database, name: str) -> None:
    key, message = BAD_KEYS[name]
    storage, connection = SqlStorageEngine(database), Connection(MessageQueueListener(), SqlQueue(database))
    listener = MessageQueueListener()
    listener.id = key
    for call in (
        lambda: storage.upsert(key, SECRET),
        lambda: storage.fetch_one(key),
        lambda: storage.delete(key),
        lambda: list(storage.fetch_by_prefix(key)),
        lambda: ListenerRepository(storage).persist(listener),
        lambda: ListenerRepository(storage).load(key),
        lambda: ListenerRepository(storage).delete(key),
        lambda: QueueRepository(storage).load(key),
        lambda: QueueRepository(storage).delete(key),
        lambda: ConnectionRepository(storage).persist(Connection(listener, SqlQueue(database))),
        lambda: list(ConnectionRepository(storage).load_all(key)),
        lambda: ConnectionRepository(storage).load_one(key),
        lambda: ConnectionRepository(storage).delete(key),
        lambda: ChannelRepository(storage).load_one(key),
        lambda: ChannelRepository(storage).delete(key),
    ):
        with refused(database, message):
            call()
    if key is not None:
        with refused(database, message):
            SqlQueue(database, key)
        with refused(database, message):
            ConnectionRepository(storage).persist(connection, key)


@pytest.mark.parametrize("key", GOOD_KEYS, ids=ascii)
def test_a_valid_key_is_stored_and_found(database: Database, key: str) -> None:
    storage, queue = SqlStorageEngine(database), SqlQueue(database, key)
    storage.upsert(key, "value")
    queue.push(Message("type"))
    assert storage.fetch_one(key) == "value"
    assert list(storage.fetch_by_prefix(key)) == ["value"]
    assert queue.pop().type == "type"
    storage.delete(key)
    assert table_counts(database)["kv_entries"] == 0


# Values


def _local() -> Any:
    class Local(Message):
        """A class that no name leads to."""

    return Local(SECRET)


def _deep() -> Any:
    value: Any = SECRET
    for _ in range(100_000):
        value = [value]
    return value


UNSTORABLE: dict[str, tuple[Callable[[], Any], str]] = {
    "a lambda": (lambda: lambda: SECRET, "the function"),
    "a lock": (threading.Lock, "can't be stored"),
    "a generator": (lambda: (each for each in SECRET), "can't be stored"),
    "a module": (lambda: application, "can't be stored"),
    "a local class": (_local, f"class {__name__}._local.<locals>.Local is not allowed"),
    "a class that is not allowed": (lambda: application.Notebook(SECRET), "PickleCodec(allow=[Notebook])"),
    "a member of an enumeration": (lambda: application.Colour.RED, "PickleCodec(allow=[Colour])"),
    "a queue in memory": (InMemoryQueue, "use eric_sse_sql.SqlQueue"),
    "the mixin with a path to nothing": (lambda: application.Misplaced(SECRET), "application.Nowhere is not allowed"),
    "too many lists in each other": (_deep, "RecursionError"),
}


@pytest.mark.parametrize("name", UNSTORABLE)
def test_a_value_that_could_not_be_decoded_is_not_stored(used: Database, name: str) -> None:
    make, message = UNSTORABLE[name]
    storage, queue = SqlStorageEngine(used), SqlQueue(used, "queue")
    storage.upsert("key", "old")
    for value in (make(), {SECRET: [SECRET, make()]}):
        with refused(used, message):
            storage.upsert("key", value)
        with refused(used, message):
            queue.push(Message(SECRET, value))
    assert storage.fetch_one("key") == "old"


def test_a_connection_with_one_invalid_part_is_refused_as_a_whole(database: Database) -> None:
    listener = application.Clerk("name")
    listener.act = lambda: SECRET
    connections = ConnectionRepository(SqlStorageEngine(database))
    with refused(database, "the function"):
        connections.persist(Connection(listener, SqlQueue(database)))
    with refused(database, "eric_sse_sql.SqlQueue"):
        connections.persist(Connection(application.Clerk("name"), InMemoryQueue()))


def test_a_value_that_is_too_large_is_refused(database: Database) -> None:
    database.codec.max_blob_bytes = 1000
    with refused(database, "a blob must be at most 1000 bytes"):
        SqlStorageEngine(database).upsert("key", SECRET * 1000)
    with refused(database, "a blob must be at most 1000 bytes"):
        SqlQueue(database, "queue").push(Message(SECRET, SECRET * 1000))


# Blobs


GOOD = PickleCodec().encode({"secret": [SECRET, application.Order(1)]}, "anywhere")
BAD_BLOBS = {
    "empty": b"",
    "truncated": GOOD[:-1],
    "truncated in the middle": GOOD[: len(GOOD) // 2],
    "continued": GOOD + b".",
    "flipped": GOOD[:3] + bytes([GOOD[3] ^ 0x40]) + GOOD[4:],
    "no pickle": SECRET.encode() * 10,
    "forged": f"cos\nsystem\n(S'echo {SECRET}'\ntR.".encode(),
    "of a class that is not allowed": PickleCodec(unrestricted=True).encode(application.Notebook(SECRET), "anywhere"),
    "signed": PickleCodec(signing_keys=[b"k" * 16]).encode(SECRET, "kv_entries/kv/key"),
}


@pytest.mark.parametrize("name", BAD_BLOBS)
def test_an_invalid_blob_of_an_entry_is_refused_and_one_of_a_message_is_set_aside(
    used: Database, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    store(used, BAD_BLOBS[name])
    storage = SqlStorageEngine(used)
    for call in (
        lambda: storage.fetch_one("key"),
        lambda: list(storage.fetch_by_prefix("k")),
        lambda: list(storage.fetch_all()),
    ):
        with refused(used, ""):
            call()
    assert is_set_aside(SqlQueue(used, "key"), "", caplog)
    assert stored(used, "sse_set_aside_messages", "message") == [BAD_BLOBS[name]]
    storage.upsert("key", "mended")
    assert storage.fetch_one("key") == "mended"


def test_a_text_in_the_column_of_a_blob_is_refused(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Only SQLite takes a text, or a number, where a blob belongs."""
    with Database(f"sqlite:///{tmp_path / 'test.db'}") as database:
        database.upgrade()
        for blob in (SECRET, 5, 1.5):
            store(database, blob)
            with refused(database, "a stored blob can't be read"):
                SqlStorageEngine(database).fetch_one("key")
            assert is_set_aside(SqlQueue(database, "key"), "a stored blob can't be read", caplog)
        assert stored(database, "sse_set_aside_messages", "message") == [1.5, 5, SECRET]  # as SQLite orders them


def test_a_signed_blob_is_valid_in_its_own_row_only(used: Database, caplog: pytest.LogCaptureFixture) -> None:
    with Database(used.engine, codec=PickleCodec(signing_keys=[b"k" * 16])) as signing:
        storage = SqlStorageEngine(signing)
        storage.upsert("key", SECRET)
        storage.upsert("other", "value")
        for key in ("queue", "kv/key"):
            SqlQueue(signing, key).push(Message("type"))
        with signing.engine.begin() as connection:
            blob = connection.scalar(text("SELECT value FROM kv_entries WHERE key = 'kv/key'"))
            connection.execute(text("UPDATE kv_entries SET value = :blob WHERE key = 'kv/other'"), {"blob": blob})
            connection.execute(text("UPDATE sse_messages SET message = :blob"), {"blob": blob})
        assert storage.fetch_one("key") == SECRET
        with refused(signing, "the blob of kv_entries/kv/other has no valid signature"):
            storage.fetch_one("other")
        for key in ("kv/key", "queue"):
            reason = f"the blob of sse_messages/{key} has no valid signature"
            assert is_set_aside(SqlQueue(signing, key), reason, caplog)


# Databases


def leaks_nothing(error: RepositoryError) -> bool:
    """Whether neither the password of a URL nor a value can be seen in an error."""
    return SECRET not in str(error) + repr(error)


@pytest.mark.parametrize("engine", ENGINES)
def test_missing_tables_are_an_error_that_says_how_to_make_them(empty_url: URL, engine: str) -> None:
    made = create_engine(empty_url)
    with Database(empty_url if engine == "own engine" else made) as database:
        storage, queue = SqlStorageEngine(database), SqlQueue(database, "queue")
        for call in (
            lambda: storage.upsert("key", SECRET),
            lambda: storage.fetch_one("key"),
            lambda: list(storage.fetch_by_prefix("k")),
            lambda: list(storage.fetch_all()),
            lambda: storage.delete("key"),
            lambda: queue.push(Message(SECRET)),
            queue.pop,
            lambda: ChannelRepository(storage).persist(application.Room(SECRET, "id")),
            lambda: list(ChannelRepository(storage).load_all()),
            lambda: ConnectionRepository(storage).delete("id"),
            database.check,
        ):
            with pytest.raises(
                RepositoryError, match=r"missing.*Database\.upgrade\(\),? or .*`eric-sse-sql upgrade`"
            ) as error:
                call()
            assert leaks_nothing(error.value)
            assert SECRET not in "".join(traceback.format_exception(error.value))
        database.upgrade()
        with refused(database, "function"):
            storage.upsert("key", lambda: SECRET)
    made.dispose()


def rename(database: Database, column: str, new: str) -> None:
    with database.engine.begin() as connection:
        connection.execute(text(f"ALTER TABLE kv_entries RENAME COLUMN {column} TO {new}"))


@pytest.mark.parametrize("engine", ENGINES)
def test_tables_of_another_version_are_reported_as_such(empty_url: URL, engine: str) -> None:
    made = create_engine(empty_url)
    with Database(empty_url if engine == "own engine" else made) as database:
        database.upgrade()
        rename(database, "value", "content")
        with pytest.raises(RepositoryError, match=r"another version.* Database\.check\(\)") as error:
            SqlStorageEngine(database).upsert("key", SECRET)
        assert SECRET not in "".join(traceback.format_exception(error.value))
        rename(database, "content", "value")
        with refused(database, "function"):
            SqlStorageEngine(database).upsert("key", lambda: SECRET)
    made.dispose()


def _closed_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        port: int = listening.getsockname()[1]
        return port


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("backend", ["sqlite", "postgres"])
def test_a_database_that_can_not_be_reached_is_reported_as_such(backend: str, engine: str, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/missing/test.db"
    message = "the SQLite file can't be opened"
    if backend == "postgres":
        url = f"postgresql+psycopg://someone:{SECRET}@127.0.0.1:{_closed_port()}/shop"
        message = "the server can't be reached"
    made = create_engine(url)
    with Database(url if engine == "own engine" else made) as database:
        storage, queue = SqlStorageEngine(database), SqlQueue(database, "queue")
        for call in (
            lambda: storage.upsert("key", SECRET),
            lambda: storage.fetch_one("key"),
            lambda: list(storage.fetch_all()),
            lambda: storage.delete("key"),
            lambda: queue.push(Message(SECRET)),
            queue.pop,
            database.check,
            database.upgrade,
            lambda: ConnectionRepository(storage).delete("id"),
        ):
            with pytest.raises(RepositoryError, match=message) as error:
                call()
            assert error.value.__cause__ is not None
            assert leaks_nothing(error.value)
        assert SECRET not in repr(database)
    assert not (tmp_path / "missing").exists()
    made.dispose()


@pytest.mark.parametrize(
    "bind",
    [
        *(None, 5, b"sqlite://", [], object()),
        *("", SECRET, f"no url {SECRET}", f"//{SECRET}", f"unknown://me:{SECRET}@host/db"),
        *(f"mysql://me:{SECRET}@host/db", f"postgresql+psycopg2://me:{SECRET}@host/db"),
        *(f"postgresql+asyncpg://me:{SECRET}@host/db", "sqlite+aiosqlite://", "sqlite+pysqlcipher://"),
        f"postgresql+psycopg://me:{SECRET}@host:no-port/db",
    ],
    ids=lambda bind: bind if isinstance(bind, str) else type(bind).__name__,
)
def test_an_unsupported_bind_is_refused(bind: Any) -> None:
    for make in (Database, SqlStorageEngine):
        with pytest.raises(RepositoryError) as error:
            make(bind)
        assert error.value.__cause__ is not None
        assert leaks_nothing(error.value)


# Channels


LIVE = pytest.mark.skipif(ERIC_SSE_2_0, reason="eric-sse 2.0 has no such channel")


def live(
    database: Database, replay_seconds: float = 0, channel_id: str = "channel"
) -> tuple[Any, MessageQueueListener]:
    """A channel that is stored, and its only listener, which is started."""
    from eric_sse_sql import SqlSSEChannelRepository

    repository = SqlSSEChannelRepository(database)
    channel = repository.create({"channel_id": channel_id, "replay_seconds": replay_seconds})
    listener = channel.add_listener()
    listener.start()
    repository.persist(channel)
    return channel, listener


def first_event(channel: Any, listener: Any, last_event_id: Any = None) -> Any:
    async def main() -> Any:
        async with aclosing(channel.message_stream(listener, last_event_id)) as stream:
            return await asyncio.wait_for(anext(stream), DEADLINE)

    return asyncio.run(main())


@LIVE
def test_an_adapt_that_returns_no_dict_is_refused_where_events_have_ids(database: Database) -> None:
    channel, listener = live(database, replay_seconds=60)
    channel.broadcast(Message("m", 1))
    for adapted in (None, SECRET, b"data", 5, [SECRET]):
        channel.adapt = lambda message, adapted=adapted: adapted
        with refused(database, "SqlSSEChannel.adapt() returns must be a Mapping, not " + type(adapted).__name__):
            first_event(channel, listener)
    del channel.adapt
    assert first_event(channel, listener)["data"] == 1


@LIVE
@pytest.mark.parametrize("replay_seconds", [0, 60])
def test_an_adapt_that_raises_is_an_event_once_and_an_error_where_it_can_not_tell_that(
    database: Database, replay_seconds: float
) -> None:
    channel, listener = live(database, replay_seconds)
    for unadaptable in ("m", "error"):

        def adapt(message: MessageContract, least: str = unadaptable) -> Any:
            if message.type >= least:
                raise AttributeError("the type says so")
            return {"event": message.type}

        channel.adapt = adapt
        channel.broadcast(Message("m"))
        if unadaptable == "m":
            assert first_event(channel, listener)["event"] == "error"
        else:
            with pytest.raises(RepositoryError, match=r"SqlSSEChannel\.adapt\(\) raised AttributeError"):
                first_event(channel, listener)


@LIVE
def test_channels_of_two_classes_are_loaded_by_the_repository_of_each_alone(database: Database) -> None:
    from eric_sse_sql import SqlSSEChannelRepository

    class Shops(SqlSSEChannelRepository):
        """Channels that are stored with a city."""

        def create(self, channel_data: dict[str, Any]) -> Any:
            channel_data.pop("city")
            return super().create(channel_data)

        @staticmethod
        def _channel_to_dict(channel: Any) -> dict[str, Any]:
            return {"channel_id": channel.id, "city": SECRET}

    shops, channels = Shops(database), SqlSSEChannelRepository(database)
    shops.persist(channels.create({"channel_id": "shop"}))
    channels.persist(channels.create({"channel_id": "channel"}))
    for repository in (shops, channels):
        with refused(database, "load a channel with the repository of its class"):
            list(repository.load_all())
    with refused(database, "channel_data must be parameters"):
        channels.load_one("shop")
    assert shops.load_one("shop").id == "shop"
    assert channels.load_one("channel").id == "channel"


@LIVE
def test_a_channel_that_could_not_be_loaded_is_not_stored(database: Database) -> None:
    from eric_sse_sql import SqlSSEChannelRepository

    channel, _ = live(database)
    for stored, message in (
        (None, "_channel_to_dict() returns must be a dict, not NoneType"),
        ({"channel_id": "other"}, "create() makes a channel with another id"),
        (
            {"city": SECRET},
            "channel_data must be parameters of SqlSSEChannel, without connections_factory; let create() take",
        ),
    ):

        class Broken(SqlSSEChannelRepository):
            """What it stores is no channel."""

            @staticmethod
            def _channel_to_dict(channel: Any, stored: Any = stored) -> Any:
                return stored

        with refused(database, message):
            Broken(database).persist(channel)
