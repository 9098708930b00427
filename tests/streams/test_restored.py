"""Clients with an id from before a restore, or of an earlier life of a queue: a ``reset``, or all that they miss."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable, Iterator
from contextlib import aclosing
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from eric_sse.listener import MessageQueueListener
from eric_sse.message import Message
from sqlalchemy import URL, create_engine, make_url, text

from eric_sse_sql import Database, SqlQueue
from eric_sse_sql.contract import ERIC_SSE_2_0
from support.waiting import DEADLINE

if ERIC_SSE_2_0:
    pytest.skip("eric-sse 2.0 has no such channel", allow_module_level=True)

from eric_sse.connection import Connection

from eric_sse_sql import SqlSSEChannelRepository


class Backup(NamedTuple):
    """A database that can be backed up and restored while no process is connected."""

    url: URL
    back_up: Callable[[], object]
    restore: Callable[[], object]


@pytest.fixture(params=["sqlite", "postgres"])
def backup(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Backup]:
    if request.param == "sqlite":
        file, copy = tmp_path / "live.db", tmp_path / "backup.db"

        def replace(target: Path, source: Path) -> None:
            for suffix in ("-wal", "-shm"):
                target.with_name(target.name + suffix).unlink(missing_ok=True)
            shutil.copy(source, target)

        yield Backup(make_url(f"sqlite:///{file}"), lambda: replace(copy, file), lambda: replace(file, copy))
        return
    url: URL = request.getfixturevalue("new_postgres")()
    admin = create_engine(request.getfixturevalue("postgres_server"), isolation_level="AUTOCOMMIT")
    copied = f"{url.database}_backup"

    def run(*statements: str) -> None:
        with admin.connect() as connection:
            for statement in statements:
                connection.execute(text(statement))

    yield Backup(
        url,
        lambda: run(f"CREATE DATABASE {copied} TEMPLATE {url.database}"),
        lambda: run(f"DROP DATABASE {url.database} WITH (FORCE)", f"CREATE DATABASE {url.database} TEMPLATE {copied}"),
    )
    run(f"DROP DATABASE IF EXISTS {copied} WITH (FORCE)")
    admin.dispose()


async def events_until(channel: Any, listener_id: str, last: str, last_event_id: str | None = None) -> list[Any]:
    """The events of a stream up to a payload."""
    listener = channel.get_listener(listener_id)
    listener.start()
    found: list[Any] = []
    async with aclosing(channel.message_stream(listener, last_event_id)) as stream:
        while not found or found[-1]["data"] != last:
            found.append(await asyncio.wait_for(anext(stream), DEADLINE))
    return found


def delivered(channel: Any, listener_id: str, last: str) -> list[Any]:
    """What a client without an id gets, which has delivered it for other clients."""
    return asyncio.run(events_until(channel, listener_id, last))


def comes_back(channel: Any, listener_id: str, last_event_id: str, unseen: list[str]) -> None:
    """A client comes back with an id, while something more is dispatched."""

    async def main() -> list[Any]:
        task = asyncio.create_task(events_until(channel, listener_id, "later", last_event_id))
        await asyncio.sleep(0.2)
        await asyncio.to_thread(channel.dispatch, listener_id, Message("m", "later"))
        return await task

    events = asyncio.run(main())
    if events[0]["event"] != "reset":
        assert [event["data"] for event in events] == [*unseen, "later"]


@pytest.mark.parametrize("count", [0, 5, 15])
def test_an_id_from_after_the_backup_is_not_taken_for_one_of_the_restored_log(backup: Backup, count: int) -> None:
    with Database(backup.url) as database:
        database.upgrade()
        repository = SqlSSEChannelRepository(database)
        channel = repository.create({"channel_id": "news", "replay_seconds": 3600})
        listener_id = channel.add_listener().id
        repository.persist(channel)
        for n in range(10):
            channel.dispatch(listener_id, Message("m", f"first life {n}"))
        delivered(channel, listener_id, "first life 9")
    backup.back_up()
    with Database(backup.url) as database:
        channel = SqlSSEChannelRepository(database).load_one("news")  # type: ignore[assignment]
        for n in range(10, 20):
            channel.dispatch(listener_id, Message("m", f"first life {n}"))
        events = delivered(channel, listener_id, "first life 19")
    for event_id in (events[-1]["id"], events[3]["id"]):
        backup.restore()
        with Database(backup.url) as database:
            channel = SqlSSEChannelRepository(database).load_one("news")  # type: ignore[assignment]
            unseen = [f"second life {n}" for n in range(count)]
            for payload in unseen:
                channel.dispatch(listener_id, Message("m", payload))
            if unseen:
                delivered(channel, listener_id, unseen[-1])
            comes_back(channel, listener_id, event_id, unseen)


def test_an_id_of_a_connection_that_was_made_again_with_the_same_ids_skips_no_event(database: Database) -> None:
    repository = SqlSSEChannelRepository(database)
    repository.persist(repository.create({"channel_id": "users", "replay_seconds": 3600}))

    def log_in() -> tuple[Any, str]:
        listener = MessageQueueListener()
        connection = Connection(listener, SqlQueue(database, "user-7"), "connection-7")
        repository.connections_repository.persist("users", connection)
        return repository.load_one("users"), listener.id

    channel, listener_id = log_in()
    for n in range(20):
        channel.dispatch(listener_id, Message("m", f"first login {n}"))
    last = delivered(channel, listener_id, "first login 19")[-1]["id"]
    repository.connections_repository.delete("users", "connection-7")
    channel, listener_id = log_in()
    unseen = [f"second login {n}" for n in range(25)]
    for payload in unseen:
        channel.dispatch(listener_id, Message("m", payload))
    delivered(channel, listener_id, unseen[-1])
    comes_back(channel, listener_id, last, unseen)


def test_a_client_that_comes_back_before_a_restore_is_noticed_gets_a_reset_and_all_events(database: Database) -> None:
    repository = SqlSSEChannelRepository(database)
    channel = repository.create({"channel_id": "news", "replay_seconds": 3600})
    listener_id = channel.add_listener().id
    repository.persist(channel)
    for n in range(5):
        channel.dispatch(listener_id, Message("m", f"first life {n}"))
    last = delivered(channel, listener_id, "first life 4")[-1]["id"]
    with database.engine.begin() as connection:  # as a backup that is loaded into the tables of a running database
        connection.execute(text("DELETE FROM sse_events WHERE position > 2"))
        connection.execute(text("UPDATE sse_event_logs SET last_position = 2"))
    with Database(database.engine) as elsewhere:
        writing = SqlSSEChannelRepository(elsewhere).load_one("news")
        for n in range(10):
            writing.dispatch(listener_id, Message("m", f"second life {n}"))
        events = asyncio.run(events_until(repository.load_one("news"), listener_id, "second life 9", last))
    payloads = [event["data"] for event in events if event["event"] == "m"]
    assert payloads[-10:] == [f"second life {n}" for n in range(10)]
    assert "reset" in [event["event"] for event in events]
