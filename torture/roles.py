"""The lives of the processes that make the load. Each writes a journal, and goes on after a fault.

Messages have the name of their producer as type, and a number as payload.
"""

from __future__ import annotations

import asyncio
import logging
import random
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
from eric_sse.exception import NoMessagesException, RepositoryError
from eric_sse.message import Message
from sqlalchemy import create_engine
from sqlalchemy.exc import DBAPIError

from eric_sse_sql import Database, SqlQueue, SqlSSEChannelRepository, SqlStorageEngine
from torture.journal import BEGUN, DONE, EMPTY, GOT, Journal

POP, LEASE, RELAY, RELAYED = "pop", "lease", "relay", "relayed"  # queues, by how their messages are taken
CHANNELS = {"channel-queues": 0, "channel-log": 3600}  # replay_seconds
LISTENERS = 5  # of each of these channels
STORED_LISTENERS = 3  # of a channel that is persisted and deleted
LEASE_SECONDS = 2.0
NAMESPACE = "torture"
END = "end"  # the type of the last message of a channel
PAUSE_SECONDS = 0.002  # of a consumer that finds nothing
BROADCAST_SECONDS = 0.02
MAX_WAITING = 1_000  # messages in a queue, after which producers pause
FAULTS = RepositoryError, DBAPIError, psycopg.Error


@dataclass(frozen=True)
class Post:
    """Where a process works.

    :param name: of the process and its journal
    :param seconds: after which the process ends by itself
    """

    url: str
    folder: Path
    name: str
    seconds: int

    @property
    def path(self) -> Path:
        """The journal."""
        return self.folder / f"{self.name}.journal"

    def is_over(self) -> bool:
        """Whether the load has ended."""
        return (self.folder / "stop").exists()


def live(role: Callable[[Post, Journal], None], post: Post) -> None:
    """Run a role in this process."""
    signal.alarm(post.seconds)
    logging.getLogger("eric_sse_sql").setLevel(logging.ERROR)  # hides the warning of each fault
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # which a terminal sends to all; the first process ends the others
    role(post, Journal(post.path))


@contextmanager
def _survived(post: Post, journal: Journal, database: Database) -> Iterator[None]:
    """Write a fault into the journal, and wait until the database is there again."""
    try:
        yield
    except FAULTS as error:
        journal.write_error(error)
        while not post.is_over():
            with suppress(*FAULTS):
                database.check()
                return
            time.sleep(PAUSE_SECONDS)


# Producers


class _Undone(Exception):
    """Rolls a transaction back."""


def produce(post: Post, journal: Journal) -> None:
    """Push numbers into the queues: singly, several at once, and in transactions with an entry of the same name."""
    rng = random.Random(post.name)
    engine = create_engine(post.url, pool_pre_ping=True)
    with Database(post.url) as database:
        storage = SqlStorageEngine(database, NAMESPACE)
        queues = [SqlQueue(database, name) for name in (POP, LEASE, RELAY)]

        def in_transaction(queue: SqlQueue, many: list[Message], key: str) -> None:
            with database.transaction():
                queue.push_many(many)
                storage.upsert(key, key)

        def joined(queue: SqlQueue, many: list[Message], key: str) -> None:
            with engine.begin() as connection, database.join(connection):
                storage.upsert(key, key)
                queue.push_many(many)

        def rolled_back(queue: SqlQueue, many: list[Message], key: str) -> None:
            with suppress(_Undone), database.transaction():
                in_transaction(queue, many, key)
                raise _Undone

        kinds: dict[str, tuple[int, Callable[[SqlQueue, list[Message], str], None]]] = {
            "push": (12, lambda queue, many, key: queue.push(many[0])),
            "push_many": (3, lambda queue, many, key: queue.push_many(many)),
            "transaction": (3, in_transaction),
            "join": (2, joined),
            "rolled_back": (1, rolled_back),
        }
        weights = [weight for weight, _ in kinds.values()]
        number, turn = 0, 0
        while not post.is_over():
            kind = rng.choices(list(kinds), weights)[0]
            queue = rng.choice(queues)
            many = [Message(post.name, number + i) for i in range(1 if kind == "push" else rng.randint(1, 8))]
            with _survived(post, journal, database):
                journal.write(BEGUN, kind, queue.id, number, len(many))
                kinds[kind][1](queue, many, f"{post.name}/{number}")
                journal.write(DONE)
            number += len(many)
            turn += 1
            if turn % 50 == 0:
                for each in queues:
                    while not post.is_over() and _has_many(each):
                        time.sleep(0.02)
    engine.dispose()


def _has_many(queue: SqlQueue) -> bool:
    with suppress(*FAULTS):
        return len(queue) > MAX_WAITING
    return False


def register(post: Post, journal: Journal) -> None:
    """Persist channels with their connections, and delete every other one."""
    with Database(post.url) as database:
        repository, number = SqlSSEChannelRepository(database), 0
        while not post.is_over():
            number += 1
            channel_id = f"{post.name}/{number}"
            channel = repository.create({"channel_id": channel_id, "replay_seconds": 0})
            for _ in range(STORED_LISTENERS):
                channel.add_listener()
            with _survived(post, journal, database):
                journal.write(BEGUN, "persist", channel_id)
                repository.persist(channel)
                journal.write(DONE)
            if number % 2:
                with _survived(post, journal, database):
                    journal.write(BEGUN, "delete", channel_id)
                    repository.delete(channel_id)
                    journal.write(DONE)
            time.sleep(0.01)


def broadcast(post: Post, journal: Journal) -> None:
    """Broadcast numbers to the channels in turn."""
    with Database(post.url) as database:
        repository = SqlSSEChannelRepository(database)
        channels = [repository.load_one(channel_id) for channel_id in CHANNELS]
        number = 0
        while not post.is_over():
            for channel in channels:
                with _survived(post, journal, database):
                    journal.write(BEGUN, "broadcast", channel.id, number)
                    channel.broadcast(Message(post.name, number))
                    journal.write(DONE)
            number += 1
            time.sleep(BROADCAST_SECONDS)


# Consumers


def consume(post: Post, journal: Journal) -> None:
    """Pop messages."""
    with Database(post.url) as database:
        queue = SqlQueue(database, POP)
        while not post.is_over():
            with _survived(post, journal, database):
                try:
                    journal.write(BEGUN, "pop")
                    message = queue.pop()
                    journal.write(DONE, message.type, message.payload)
                except NoMessagesException:
                    journal.write(EMPTY)
                    time.sleep(PAUSE_SECONDS)


def receive(post: Post, journal: Journal) -> None:
    """Receive messages with a lease."""
    with Database(post.url) as database:
        queue = SqlQueue(database, LEASE)
        while not post.is_over():
            with _survived(post, journal, database):
                try:
                    journal.write(BEGUN, "receive")
                    with queue.receive(lease=LEASE_SECONDS) as delivery:
                        words = delivery.type, delivery.payload
                        journal.write(GOT, *words, delivery.delivery_count)
                    journal.write(DONE, *words)
                except NoMessagesException:
                    journal.write(EMPTY)
                    time.sleep(PAUSE_SECONDS)


def relay(post: Post, journal: Journal) -> None:
    """Move messages to another queue, each in a transaction."""
    with Database(post.url) as database:
        source, target = SqlQueue(database, RELAY), SqlQueue(database, RELAYED)
        while not post.is_over():
            with _survived(post, journal, database):
                try:
                    journal.write(BEGUN, "relay")
                    with database.transaction():
                        target.push(source.pop())
                    journal.write(DONE)
                except NoMessagesException:
                    journal.write(EMPTY)
                    time.sleep(PAUSE_SECONDS)


def listen(post: Post, journal: Journal) -> None:
    """Stream every listener of the channels, until each has got the message that ends it."""
    with Database(post.url) as database:
        repository = SqlSSEChannelRepository(database)
        asyncio.run(_listen(post, journal, [repository.load_one(channel_id) for channel_id in CHANNELS]))


async def _listen(post: Post, journal: Journal, channels: list[Any]) -> None:
    async def read(channel: Any, listener: Any) -> None:
        async for event in channel.message_stream(listener):
            if event["event"] == END:
                return
            if event["event"] != "error":
                journal.write(GOT, channel.id, listener.id, event["event"], event["data"])

    tasks = []
    for channel in channels:
        for connection in channel.get_connections():
            connection.listener.start()
            tasks.append(asyncio.create_task(read(channel, connection.listener)))
    await asyncio.sleep(0.5)
    journal.write("ready")
    await asyncio.gather(*tasks)


# For the comparison with the raw driver


def push_steadily(post: Post, journal: Journal) -> None:
    """Push through the package, with a time for each success; repeat what has failed after a short pause."""
    with Database(post.url) as database:
        queue = SqlQueue(database, "steady")
        _steadily(post, journal, lambda: queue.push(Message("steady", 0)))


def insert_steadily(post: Post, journal: Journal) -> None:
    """The same through psycopg alone, with a table of its own."""
    connection: psycopg.Connection[Any] | None = None
    conninfo = psycopg_conninfo(post.url)

    def insert() -> None:
        nonlocal connection
        if connection is None or connection.closed:
            connection = psycopg.connect(conninfo, autocommit=True)
        try:
            connection.execute("INSERT INTO raw_rows (content) VALUES ('x')")
        except psycopg.Error:
            connection.close()
            raise

    _steadily(post, journal, insert)


def _steadily(post: Post, journal: Journal, act: Callable[[], None]) -> None:
    while not post.is_over():
        with suppress(*FAULTS):
            act()
            journal.write(DONE)
        time.sleep(0.005)


def psycopg_conninfo(url: str) -> str:
    """A URL of SQLAlchemy, of one host or several, as psycopg takes it."""
    engine = create_engine(url)
    _, arguments = engine.dialect.create_connect_args(engine.url)
    arguments.pop("context", None)  # SQLAlchemy's adapters, which are no part of an address
    return psycopg.conninfo.make_conninfo(**arguments)


def entries(target_rows: Callable[[str], list[Any]]) -> set[str]:
    """The keys of the entries that producers have stored."""
    start = f"{NAMESPACE}/"
    return {key[len(start) :] for (key,) in target_rows("SELECT key FROM kv_entries") if key.startswith(start)}
