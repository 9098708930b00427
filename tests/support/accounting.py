"""What the processes of ``test_accounting`` do: each function that takes a :class:`Post` is the life of one process."""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import Iterator
from contextlib import aclosing, suppress
from typing import Any

import pytest
from eric_sse.exception import RepositoryError
from eric_sse.message import Message
from sqlalchemy import create_engine
from sqlalchemy.exc import DBAPIError

from eric_sse_sql import Database
from eric_sse_sql.contract import ERIC_SSE_2_0
from support.processes import PATIENCE, Post
from support.waiting import until

if ERIC_SSE_2_0:
    pytest.skip("eric-sse 2.0 has no such channel", allow_module_level=True)

from eric_sse_sql import SqlSSEChannelRepository

CHANNEL, ALL, END = "ledger", "*", "end"
PAUSE_SECONDS = 0.005  # between two messages of a producer
FAULTS = RepositoryError, DBAPIError


def produce(post: Post, count: int, listener_ids: list[str]) -> None:
    """Broadcast the numbers from 0 on or, where there are listeners, dispatch each number to one of them.

    Logs each number and its listener once the call has returned; with a "?" where it has failed, and may be stored.
    """
    rng = random.Random(post.name)
    with Database(post.url) as database:
        channel = SqlSSEChannelRepository(database).load_one(CHANNEL)
        post.ready()
        for n in _paced(database, rng, count):
            listener_id = rng.choice(listener_ids) if listener_ids else ALL
            outcome = "sent"
            try:
                _send(channel, listener_id, Message(post.name, n))
            except RepositoryError:
                outcome = "?"
            post.log(outcome, n, listener_id)


def produce_in_joined_transactions(post: Post, count: int, listener_ids: list[str]) -> None:
    """The same in transactions of the application, of which every third is rolled back: those are not logged."""
    rng = random.Random(post.name)
    engine = create_engine(post.url, pool_pre_ping=True)
    with Database(post.url) as database:
        channel = SqlSSEChannelRepository(database).load_one(CHANNEL)
        post.ready()
        for n in _paced(database, rng, count):
            some = [(n, rng.choice(listener_ids)) for _ in range(rng.randint(1, 3))]
            is_kept, outcome = rng.random() < 2 / 3, "sent"
            try:
                with engine.connect() as connection, connection.begin() as transaction:
                    with database.join(connection):
                        for part, (number, listener_id) in enumerate(some):
                            _send(channel, listener_id, Message(post.name, 10 * number + part))
                    if not is_kept:
                        transaction.rollback()
            except FAULTS:
                outcome = "?"
            if is_kept:
                for part, (number, listener_id) in enumerate(some):
                    post.log(outcome, 10 * number + part, listener_id)
    engine.dispose()


def _paced(database: Database, rng: random.Random, count: int) -> Iterator[int]:
    for n in range(count):
        yield n
        asyncio.run(asyncio.sleep(rng.uniform(0, 2 * PAUSE_SECONDS)))
        until(lambda: _is_there(database), PATIENCE)


def _is_there(database: Database) -> bool:
    with suppress(*FAULTS):
        database.check()
        return True
    return False


def _send(channel: Any, listener_id: str, message: Message) -> None:
    if listener_id == ALL:
        channel.broadcast(message)
    else:
        channel.dispatch(listener_id, message)


def serve(post: Post, last_ids: dict[str, str | None], returns_without_id: float) -> None:
    """Streams of some listeners that come and go, up to the message that says that it is the last.

    Logs each stream that opens, with its last event id, and each event as soon as the client has it.

    :param last_ids: of the clients
    :param returns_without_id: the share of streams that are opened without an id
    """
    file = os.open(post.folder / f"{post.name}.log", os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def log(*words: object) -> None:
        os.write(file, (" ".join(map(str, words)) + "\n").encode())

    with Database(post.url) as database:
        channel = SqlSSEChannelRepository(database).load_one(CHANNEL)
        for connection in channel.get_connections():
            connection.listener.start()
        post.ready()

        async def main() -> None:
            clients = (
                _browse(channel, listener_id, last_id, returns_without_id, log)
                for listener_id, last_id in last_ids.items()
            )
            await asyncio.wait_for(asyncio.gather(*clients), PATIENCE)

        asyncio.run(main())
    os.close(file)


async def _browse(channel: Any, listener_id: str, last_id: str | None, without_id: float, log: Any) -> None:
    rng = random.Random(listener_id)
    listener = channel.get_listener(listener_id)
    is_known = last_id is not None
    while True:
        event_id = None if is_known and rng.random() < without_id else last_id
        log("open", listener_id, event_id or "-")
        async with aclosing(channel.message_stream(listener, event_id)) as stream:
            for _ in range(rng.randint(1, 40)):
                try:
                    event = await asyncio.wait_for(anext(stream), rng.uniform(0.05, 2.0))
                except asyncio.TimeoutError:  # the client has gone while the stream waited
                    break
                if event["event"] == "error":
                    continue
                last_id = event.get("id")
                is_known = True
                log("event", listener_id, event["event"], event["data"], last_id or "-")
                if event["event"] == END:
                    return
        await asyncio.sleep(rng.uniform(0, 0.05))
