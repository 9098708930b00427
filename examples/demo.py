"""A process that dispatches messages is killed; another one delivers every one of them.

    python examples/demo.py                             on a SQLite file in a temporary folder
    python examples/demo.py --url postgresql://...      on a database of yours; what the demo stored is deleted again

Exits with 1 if a message is missing, doubled, out of order, or with the wrong listener.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

from eric_sse.connection import Connection
from eric_sse.exception import NoMessagesException
from eric_sse.message import Message
from eric_sse.prefabs import SSEChannel
from listeners import Reader, Translator
from sqlalchemy import text

from eric_sse_sql import ChannelRepository, ConnectionRepository, Database, SqlQueue, SqlStorageEngine

CHANNEL = "demo-newsroom"
ROUNDS = 3
URL_VARIABLE = "ERIC_SSE_SQL_URL"  # not an argument of the processes, which everybody on the machine can read

TABLES = {
    "kv_entries": "SELECT key, value_type FROM kv_entries ORDER BY key LIMIT 20",
    "sse_channels": "SELECT id, channel_type FROM sse_channels LIMIT 20",
    "sse_connections": "SELECT channel_id, listener_key FROM sse_connections LIMIT 20",
    "sse_messages": "SELECT message_type, count(*) AS waiting FROM sse_messages GROUP BY message_type LIMIT 20",
}


def expected() -> dict[str, list[str]]:
    """What each listener must have heard in the end, by its name."""
    ada, bob, eve = [], [], []
    for n in range(1, ROUNDS + 1):
        ada += [f"for Ada, number {n}", f"for all, number {n}"]
        bob += [f"FOR ALL, NUMBER {n}"]
        eve += ["for all, ", "for Eve, "]
    return {"Ada": ada, "Bob": bob, "Eve": eve}


def dispatch(url: str) -> None:
    """The first process: make a channel and its connections, dispatch, broadcast, and never end."""
    database = Database(url)
    engine = SqlStorageEngine(database)
    channels, connections = ChannelRepository(engine), ConnectionRepository(engine)
    channels.delete(CHANNEL)  # what an interrupted demonstration may have left
    channels.persist(SSEChannel(channel_id=CHANNEL))
    ada, bob, eve = Reader("Ada"), Translator("Bob", "loud"), Translator("Eve", "short")
    for listener in (ada, bob, eve):
        connections.persist(Connection(listener, SqlQueue(database)), CHANNEL)

    channel = channels.load_one(CHANNEL)
    for n in range(1, ROUNDS + 1):
        channel.dispatch(ada.id, Message("letter", f"for Ada, number {n}"))
        channel.broadcast(Message("news", f"for all, number {n}"))
        channel.dispatch(eve.id, Message("letter", f"for Eve, number {n}"))
    print("dispatched", flush=True)
    time.sleep(3600)


def deliver(url: str) -> bool:
    """The second process: load the channel and deliver what waits. Whether it was all that had to."""
    heard: dict[str, list[str]] = {}
    with Database(url) as database:
        channel = ChannelRepository(SqlStorageEngine(database)).load_one(CHANNEL)
        for connection in ConnectionRepository(SqlStorageEngine(database)).load_all(CHANNEL):
            listener = channel.get_listener(connection.listener.id)
            listener.start()
            with suppress(NoMessagesException):
                while True:
                    channel.deliver_next(listener.id)
            heard[listener.name] = listener.heard
            print(f"   {type(listener).__name__:<10} {listener.name}: {', '.join(map(repr, listener.heard))}")
    return heard == expected()


def show_tables(database: Database) -> None:
    """What plain SQL sees."""
    with database.engine.connect() as connection:
        for table, query in TABLES.items():
            rows = connection.execute(text(query)).all()
            print(f"   {table}: {'empty' if not rows else ''}")
            for row in rows:
                print("      " + "  ".join(f"{value}" for value in row))


def run(url: str) -> bool:
    """The whole demonstration. Whether every message arrived as it had to."""
    database = Database(url)
    database.upgrade()
    print(f"1. Tables are made in {database.engine.url!r}")
    command, environment = [sys.executable, __file__, "--process"], {**os.environ, URL_VARIABLE: url}
    with subprocess.Popen([*command, "dispatch"], env=environment, stdout=subprocess.PIPE, text=True) as first:
        assert first.stdout is not None
        if first.stdout.readline() != "dispatched\n":
            return False
        first.send_signal(signal.SIGKILL)
    print(
        f"2. Process {first.pid} made a channel with three listeners, dispatched, broadcast, and was killed (SIGKILL)"
    )
    print("3. Plain SQL sees what it left:")
    show_tables(database)
    print("4. Another process loads the channel and delivers:", flush=True)
    complete = subprocess.run([*command, "deliver"], env=environment).returncode == 0
    print("5. Every message arrived once, in order, with its listener" if complete else "5. NOT every message arrived!")
    ChannelRepository(SqlStorageEngine(database)).delete(CHANNEL)
    print("6. The channel is deleted, and all that was its own:")
    show_tables(database)
    database.close()
    return complete


def main() -> int:
    parser = argparse.ArgumentParser(description="Kill the process that dispatches; lose nothing.")
    parser.add_argument("--url", help="a database URL, by default a new SQLite file")
    parser.add_argument("--process", choices=["dispatch", "deliver"], help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.process == "dispatch":
        dispatch(os.environ[URL_VARIABLE])
    if arguments.process == "deliver":
        return 0 if deliver(os.environ[URL_VARIABLE]) else 1
    if arguments.url:
        return 0 if run(arguments.url) else 1
    with tempfile.TemporaryDirectory() as folder:
        return 0 if run(f"sqlite:///{Path(folder) / 'demo.db'}") else 1


if __name__ == "__main__":
    sys.exit(main())
